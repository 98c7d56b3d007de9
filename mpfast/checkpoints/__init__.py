"""Readers and writers of checkpoints: one module per format, all with the interface of `Checkpoint`."""

from mpfast.checkpoints.base import Checkpoint, NoTensor, OutputPart, Role, TensorInfo, prefetched
from mpfast.checkpoints.companions import copy_companions, home_directory, index_name
from mpfast.checkpoints.difference import Difference, counterparts
from mpfast.checkpoints.families import other_names, stacked_expert
from mpfast.checkpoints.identity import content_sample_hash
from mpfast.checkpoints.layers import (
    Layer,
    NameFilter,
    as_layer,
    as_layers,
    layer_matrix,
    layer_part,
    name_filter,
    read_layer,
    select_layers,
    telling_reason,
    unmatched_patterns,
)
from mpfast.checkpoints.lora import LoraProducts, LowRankProduct, has_lora_pairs
from mpfast.checkpoints.mapping import ArrayMapping
from mpfast.checkpoints.mask_files import MASKS_FILE, MaskFile, mask_writer, packed
from mpfast.checkpoints.matrices import MIN_SIDE, WHOLE, ConvView, ExpertsView, QkvView, Views
from mpfast.checkpoints.moments import (
    FEW_ROWS_PER_INPUT,
    InputSum,
    MomentFile,
    Moments,
    WatchedWeight,
    is_moment_file,
    weight_of,
    write_moments,
)
from mpfast.checkpoints.numpy_files import NpyFile
from mpfast.checkpoints.opening import FORMATS, Format, format_of, located, open_checkpoint, path_of
from mpfast.checkpoints.quantised import DENSE_TYPES, DenseCopy, Dequantised, dense_copy
from mpfast.checkpoints.rewriter import CheckpointOutput, files_of, write_index
from mpfast.checkpoints.roles import quantised_weight, roles_of, shares_memory, stays_dense, unseen_quantisation
from mpfast.checkpoints.safetensors import SafetensorsFile
from mpfast.checkpoints.safetensors_writer import SafetensorsWriter
from mpfast.checkpoints.source_files import SourceFiles, files_behind
from mpfast.checkpoints.targets import check_target, is_report
from mpfast.checkpoints.tensor_bits import (
    as_stored,
    check_writable,
    content_hash,
    content_hashes,
    overall_hash,
    shards_of,
    stored,
    stored_bits,
    stored_chunks,
)
from mpfast.checkpoints.torch_modules import TorchModules

__all__ = [
    "DENSE_TYPES",
    "FEW_ROWS_PER_INPUT",
    "FORMATS",
    "MASKS_FILE",
    "MIN_SIDE",
    "WHOLE",
    "ArrayMapping",
    "Checkpoint",
    "CheckpointOutput",
    "ConvView",
    "DenseCopy",
    "Dequantised",
    "Difference",
    "ExpertsView",
    "Format",
    "InputSum",
    "Layer",
    "LoraProducts",
    "LowRankProduct",
    "MaskFile",
    "MomentFile",
    "Moments",
    "NameFilter",
    "NoTensor",
    "NpyFile",
    "OutputPart",
    "QkvView",
    "Role",
    "SafetensorsFile",
    "SafetensorsWriter",
    "SourceFiles",
    "TensorInfo",
    "TorchModules",
    "Views",
    "WatchedWeight",
    "as_layer",
    "as_layers",
    "as_stored",
    "check_target",
    "check_writable",
    "content_hash",
    "content_hashes",
    "content_sample_hash",
    "copy_companions",
    "counterparts",
    "dense_copy",
    "files_behind",
    "files_of",
    "format_of",
    "has_lora_pairs",
    "home_directory",
    "index_name",
    "is_moment_file",
    "is_report",
    "layer_matrix",
    "layer_part",
    "located",
    "mask_writer",
    "name_filter",
    "open_checkpoint",
    "other_names",
    "overall_hash",
    "packed",
    "path_of",
    "prefetched",
    "quantised_weight",
    "read_layer",
    "roles_of",
    "select_layers",
    "shards_of",
    "shares_memory",
    "stacked_expert",
    "stays_dense",
    "stored",
    "stored_bits",
    "stored_chunks",
    "telling_reason",
    "unmatched_patterns",
    "unseen_quantisation",
    "weight_of",
    "write_index",
    "write_moments",
]
