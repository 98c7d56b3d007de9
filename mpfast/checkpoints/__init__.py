"""Readers and writers of checkpoints: one module per format, all with the interface of `Checkpoint`."""

from mpfast.checkpoints.base import Checkpoint, NoTensor, Role, TensorInfo, prefetched
from mpfast.checkpoints.difference import Difference
from mpfast.checkpoints.layers import (
    WHOLE,
    ConvView,
    ExpertsView,
    Layer,
    NameFilter,
    QkvView,
    Views,
    as_layer,
    first_reason,
    layer_matrix,
    name_filter,
    read_layer,
    select_layers,
    unmatched_patterns,
)
from mpfast.checkpoints.lora import LoraProducts, LowRankProduct, has_lora_pairs
from mpfast.checkpoints.mapping import ArrayMapping
from mpfast.checkpoints.mask_files import MASKS_FILE, MaskFile, mask_writer, packed
from mpfast.checkpoints.numpy_files import NpyFile
from mpfast.checkpoints.opening import FORMATS, Format, format_of, open_checkpoint
from mpfast.checkpoints.rewriter import CheckpointOutput, copy_companions, files_of, fingerprint, index_name, stored
from mpfast.checkpoints.roles import quantised_weight, roles_of, stays_dense
from mpfast.checkpoints.safetensors import SafetensorsFile
from mpfast.checkpoints.safetensors_writer import SafetensorsWriter

__all__ = [
    "FORMATS",
    "MASKS_FILE",
    "WHOLE",
    "ArrayMapping",
    "Checkpoint",
    "CheckpointOutput",
    "ConvView",
    "Difference",
    "ExpertsView",
    "Format",
    "Layer",
    "LoraProducts",
    "LowRankProduct",
    "MaskFile",
    "NameFilter",
    "NoTensor",
    "NpyFile",
    "QkvView",
    "Role",
    "SafetensorsFile",
    "SafetensorsWriter",
    "TensorInfo",
    "Views",
    "as_layer",
    "copy_companions",
    "files_of",
    "fingerprint",
    "first_reason",
    "format_of",
    "has_lora_pairs",
    "index_name",
    "layer_matrix",
    "mask_writer",
    "name_filter",
    "open_checkpoint",
    "packed",
    "prefetched",
    "quantised_weight",
    "read_layer",
    "roles_of",
    "select_layers",
    "stays_dense",
    "stored",
    "unmatched_patterns",
]
