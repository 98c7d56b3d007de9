"""Readers and writers of checkpoints: one module per format, all with the interface of `Checkpoint`."""

from mpfast.checkpoints.adapter_names import factor_roles
from mpfast.checkpoints.adapter_products import AdapterProducts, has_updates
from mpfast.checkpoints.adapter_settings import (
    ADAPTER_CONFIG,
    METADATA_KEY,
    AdapterSettings,
    live_settings,
    packed_settings,
    settings_beside,
    unpacked_settings,
)
from mpfast.checkpoints.adapter_updates import Update, updated_modules, updates_of
from mpfast.checkpoints.base import Checkpoint, NoTensor, OutputPart, Role, TensorInfo, prefetched
from mpfast.checkpoints.companions import copy_companions, home_directory
from mpfast.checkpoints.config_json import read_config, setting
from mpfast.checkpoints.difference import Difference, counterparts
from mpfast.checkpoints.families import other_names, stacked_expert
from mpfast.checkpoints.gguf_file import GgufFile
from mpfast.checkpoints.gguf_writer import GGUF_TYPES, GgufWriter
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
from mpfast.checkpoints.low_rank_products import KroneckerProduct, LowRankProduct
from mpfast.checkpoints.mapping import ArrayMapping
from mpfast.checkpoints.mask_files import MASKS_FILE, MaskFile, mask_writer, packed
from mpfast.checkpoints.matrices import MIN_SIDE, WHOLE, ConvView, ExpertsView, QkvView, Views
from mpfast.checkpoints.moment_files import MomentFile, is_moment_file, write_moments
from mpfast.checkpoints.moments import (
    FEW_ROWS_PER_INPUT,
    InputSum,
    Moments,
    WatchedWeight,
    weight_of,
)
from mpfast.checkpoints.numpy_files import NpyFile
from mpfast.checkpoints.opening import FORMATS, Format, format_of, located, open_checkpoint, path_of
from mpfast.checkpoints.quantised import (
    DENSE_TYPES,
    DenseCopy,
    Dequantised,
    dense_copy,
    reason_against_masking,
    repackable,
)
from mpfast.checkpoints.quantised.bit_streams import packed as packed_codes
from mpfast.checkpoints.quantised.bit_streams import words_for
from mpfast.checkpoints.rewriter import CheckpointOutput, files_of, write_index
from mpfast.checkpoints.roles import quantised_weight, roles_of, shares_memory, stays_dense, unseen_quantisation
from mpfast.checkpoints.safetensors import SafetensorsFile, stored_bytes
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
from mpfast.checkpoints.widths import WIDTHS, Units, Widths

__all__ = [
    "ADAPTER_CONFIG",
    "DENSE_TYPES",
    "FEW_ROWS_PER_INPUT",
    "FORMATS",
    "GGUF_TYPES",
    "MASKS_FILE",
    "METADATA_KEY",
    "MIN_SIDE",
    "WHOLE",
    "WIDTHS",
    "AdapterProducts",
    "AdapterSettings",
    "ArrayMapping",
    "Checkpoint",
    "CheckpointOutput",
    "ConvView",
    "DenseCopy",
    "Dequantised",
    "Difference",
    "ExpertsView",
    "Format",
    "GgufFile",
    "GgufWriter",
    "InputSum",
    "KroneckerProduct",
    "Layer",
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
    "Units",
    "Update",
    "Views",
    "WatchedWeight",
    "Widths",
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
    "factor_roles",
    "files_behind",
    "files_of",
    "format_of",
    "has_updates",
    "home_directory",
    "is_moment_file",
    "is_report",
    "layer_matrix",
    "layer_part",
    "live_settings",
    "located",
    "mask_writer",
    "name_filter",
    "open_checkpoint",
    "other_names",
    "overall_hash",
    "packed",
    "packed_codes",
    "packed_settings",
    "path_of",
    "prefetched",
    "quantised_weight",
    "read_config",
    "read_layer",
    "reason_against_masking",
    "repackable",
    "roles_of",
    "select_layers",
    "setting",
    "settings_beside",
    "shards_of",
    "shares_memory",
    "stacked_expert",
    "stays_dense",
    "stored",
    "stored_bits",
    "stored_bytes",
    "stored_chunks",
    "telling_reason",
    "unmatched_patterns",
    "unpacked_settings",
    "unseen_quantisation",
    "updated_modules",
    "updates_of",
    "weight_of",
    "words_for",
    "write_index",
    "write_moments",
]
