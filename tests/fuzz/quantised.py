"""Codes and scales that fit each other, or nearly, with a configuration that speaks of them."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mpfast.checkpoints import dense_copy, open_checkpoint, reason_against_masking, select_layers, stored_chunks
from mpfast.checkpoints.quantised import masked_codes
from mpfast.checkpoints.safetensors import stored_bytes
from mpfast.support import CheckpointError, InvalidValueError

from .hostile_files import MODERATE, Folder, header_of, read_all
from .structure import Bytes, altered, json_bytes, safetensors

# Names of the parts of quantised weights, types of codes and scales, and extents that fit each other by chance.
_WORDS = (
    *("weight", "weight_packed", "experts.up_proj", "experts.up_proj_blocks", "experts.up_proj_scales", "comfy_quant"),
    *("weight_scale_inv", "weight_scale", "scale", "scale_weight", "weight_scale_2", "weight_global_scale"),
    *("experts.up_proj_scale_inv", "input_scale", "pre_quant_scale", "bias", "qweight", "qzeros", "scales", "g_idx"),
    *("weight_shape", "weight_zero_point", "biases", "weight.absmax", "weight.quant_map", "SCB"),
    *("weight_g_idx", "weight.nested_absmax", "weight.nested_quant_map", "qbiases", "weight_format"),
)
_KINDS = {
    **dict.fromkeys(("U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
    **dict.fromkeys(("F16", "BF16"), 2),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    "I64": 8,
}
_EXTENTS = (0, 1, 2, 3, 4, 8, 16, 32, 33, 64, 128, 129, 256)
_METHODS = (
    *("fp8", "mxfp4", "mxfp8", "compressed-tensors", "modelopt", "gptq", "awq", "bitsandbytes", "new", None, 7),
    *("auto-round", "metal", "affine", "torchao"),
)
# What else configurations say, and what the header of a file says of a tensor.
_SAID: dict[str, Any] = {
    "packing_format": "auto_round:auto_gptq",
    "config_groups": {"a": {"weights": {"num_bits": 4, "symmetric": False, "block_structure": [8, 32]}}},
}
_CLASSES: tuple[dict[str, Any], ...] = (
    {"_type": "Int8Tensor", "_data": {"block_size": [1, 32], "target_dtype": {"_data": "int4"}}},
    {"_type": "Int4Tensor", "_data": {"block_size": [1, 32]}},
    {
        "_type": "MXTensor",
        "_data": {"block_size": 32, "elem_dtype": {"_data": "float4_e2m1fn_x2"}, "is_swizzled_scales": True},
    },
    {
        "_type": "NVFP4Tensor",
        "_data": {"block_size": 16, "is_swizzled_scales": False},
        "_tensor_data_names": ["qdata", "scale", "per_tensor_scale"],
    },
)
_STATE = {"quant_type": "nf4", "blocksize": 64, "shape": [8, 64], "nested_blocksize": 256, "nested_offset": 0.5}
_STATE_WORD = "weight.quant_state.bitsandbytes__nf4"
# Parts that fit each other, of which some are then changed: word, type, shape.
_FITTING = (
    (("weight", "F8_E4M3", (129, 64)), ("weight_scale_inv", "F32", (2, 1))),
    (("weight", "F8_E5M2", (32, 64)), ("weight_scale", "U8", (32, 2))),
    (("weight", "I8", (8, 32)), ("scale", "F8_E8M0", (8, 2))),
    (("experts.up_proj_blocks", "U8", (2, 8, 2, 16)), ("experts.up_proj_scales", "U8", (2, 8, 2))),
    (("weight_packed", "U8", (8, 32)), ("weight_scale", "F8_E4M3", (8, 4)), ("weight_global_scale", "F32", (1,))),
    (("weight", "U8", (8, 32)), ("weight_scale", "F8_E4M3", (8, 4)), ("weight_scale_2", "F32", ())),
    (("experts.up_proj", "F8_E4M3", (2, 64, 32)), ("experts.up_proj_scale_inv", "BF16", (2, 1, 1))),
    (("qweight", "I32", (8, 32)), ("qzeros", "I32", (2, 4)), ("scales", "F16", (2, 32)), ("g_idx", "I32", (64,))),
    (("qweight", "I32", (64, 4)), ("qzeros", "I32", (2, 4)), ("scales", "F16", (2, 32))),
    (
        *(("weight_packed", "I32", (8, 8)), ("weight_scale", "F32", (8, 2)), ("weight_shape", "I64", (2,))),
        *(("weight_zero_point", "I32", (1, 2)), ("weight_g_idx", "I32", (64,))),
    ),
    (("weight", "I8", (8, 64)), ("weight_scale", "F32", (1, 2)), ("weight_zero_point", "I8", (1, 2))),
    (
        *(("weight", "U8", (256, 1)), ("weight.absmax", "U8", (8,)), ("weight.quant_map", "F32", (16,))),
        *(("weight.nested_absmax", "F32", (1,)), ("weight.nested_quant_map", "F32", (256,))),
        (_STATE_WORD, "U8", (len(json.dumps(_STATE)),)),
    ),
    (("weight", "I8", (8, 64)), ("SCB", "F32", (8,)), ("weight_format", "U8", ())),
    (("weight", "U32", (8, 8)), ("scales", "F16", (8, 2)), ("biases", "F16", (8, 2))),
    (("_weight_qdata", "I8", (8, 64)), ("_weight_scale", "F32", (8, 2)), ("_weight_zero_point", "I8", (8, 2))),
    (("_weight_qdata", "I8", (8, 32)), ("_weight_scale", "BF16", (2, 8)), ("_weight_zero_point", "BF16", (2, 8))),
    (("_weight_qdata", "U8", (8, 32)), ("_weight_scale", "F8_E8M0", (32, 16))),
    (("_weight_qdata", "U8", (8, 32)), ("_weight_scale", "F8_E4M3", (8, 4)), ("_weight_per_tensor_scale", "F32", ())),
    (("weight", "U8", (8, 32)), ("weight_scale", "F8_E4M3", (128, 4)), ("weight_scale_2", "F32", ())),
    (("weight", "F8_E4M3", (8, 64)), ("weight_scale", "U8", (128, 4))),
)


def _tiled(parts: Sequence[tuple[str, str, tuple[int, ...]]]) -> tuple[dict[str, Any], int]:
    """A header in which the tensors follow each other, and the bytes that they take."""
    header: dict[str, Any] = {}
    at = 0
    for word, kind, shape in parts:
        end = at + _KINDS[kind] * math.prod(shape)
        if f"l.{word}" not in header and end < MODERATE:
            header[f"l.{word}"] = header_of(kind, shape, at, end)
            at = end
    return header, at


def _told(header: dict[str, Any], content: bytes, data: Bytes) -> bytes:
    """The content with parts that say something of the others: most often what is true, or nearly."""
    changed = bytearray(content)
    said = {"l.weight_shape": np.array([8, 64]).tobytes(), f"l.{_STATE_WORD}": json_bytes(altered(_STATE, data), data)}
    for name, text in said.items():
        if name in header and data.byte() % 8:
            begin, end = header[name]["data_offsets"]
            changed[begin:end] = text[: end - begin].ljust(end - begin)
    return bytes(changed)


def fuzz_quantised(content: bytes) -> None:
    data = Bytes(content)
    parts = list(data.choose(_FITTING))
    for _ in range(data.byte() % 4):
        at = data.byte() % (len(parts) + 1)
        word, kind, shape = parts.pop(at) if at < len(parts) else ("weight", "U8", (8, 32))
        change = data.byte() % 5
        word = data.choose(_WORDS) if change == 0 else word
        kind = data.choose(tuple(_KINDS)) if change == 1 else kind
        if change == 2:
            shape = tuple(data.choose(_EXTENTS) for _ in range(data.byte() % 5))
        elif change == 3 and shape:
            shape = (*shape[:-1], data.choose(_EXTENTS))
        if change < 4:
            parts.insert(at, (word, kind, shape))
    header, size = _tiled(parts)
    said = {"format": data.choose(("float8_e4m3fn", "nvfp4", "x", "mxfp8"))}
    if data.byte() > 200:
        metadata = {
            "_quantization_metadata": json_bytes(altered({"layers": {"l": said}}, data), data).decode("latin-1")
        }
        header["__metadata__"] = metadata
    if "l._weight_qdata" in header:
        header["__metadata__"] = {"l.weight": json_bytes(altered(data.choose(_CLASSES), data), data).decode("latin-1")}
    quantisation = {"quant_method": data.choose(_METHODS), "weight_block_size": [128, data.choose((128, 0, -1, 64))]}
    quantisation |= _SAID | {"bits": data.choose((4, 4, 8, 3, 0, -1)), "group_size": data.choose((32, 32, -1, 0, 64))}
    key = data.choose(("quantization_config", "quantization_config", "quantization"))
    config = {"model_type": data.choose(("gpt_oss", "deepseek_v3", "x")), key: quantisation}
    with Folder() as folder:
        if data.byte() % 4:
            (folder / "config.json").write_bytes(json_bytes(altered(config, data), data))
        written = altered(header, data) if data.byte() > 220 else header
        repeated = (data.take(16) or b"\x38") * (size // 16 + 16)
        (folder / "model.safetensors").write_bytes(safetensors(written, _told(header, repeated[:size], data), data))
        read_all(folder)
        with contextlib.suppress(CheckpointError, MemoryError, InvalidValueError):
            checkpoint = open_checkpoint(folder)
            select_layers(checkpoint, None, None)
            _mask(checkpoint)
            dense = dense_copy(checkpoint, "bfloat16")
            for info in dense.tensors:
                assert sum(chunk.nbytes for chunk in stored_chunks(dense, info.name)) == stored_bytes(info)


def _mask(checkpoint: Any) -> None:
    """Drop every second entry of the weights that can be masked in their own format."""
    for weight in getattr(checkpoint, "weights", {}).values():
        if not reason_against_masking(weight):
            keep = np.arange(math.prod(weight.decoder.shape)) % 2 == 0
            with contextlib.suppress(InvalidValueError):
                written = sum(chunk.nbytes for chunk in masked_codes(weight, keep))
                assert written == stored_bytes(weight.group.info)
