"""What ComfyUI says of a quantised weight: in a tensor beside it, or in the header of the file."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from mpfast.arrays import Decoder
from mpfast.checkpoints.quantised.codes import FLOAT8
from mpfast.checkpoints.quantised.group import Group, NotDecodedError
from mpfast.checkpoints.quantised.tensor_core import block_scaled
from mpfast.support import parse_json, short

__all__ = ["check_comfy", "is_tensor_core", "tensor_core"]

_MARKER = "comfy_quant"
_HEADER = "_quantization_metadata"
# One object of a few settings.
_MARKER_BYTES = 4096
# Formats with one scale for the matrix, which others have in the same form.
_PLAIN = ("float8_e4m3fn", "float8_e5m2")
# Formats with scales in the order of tensor cores.
_TILED = ("nvfp4", "mxfp8")


def check_comfy(group: Group) -> None:
    """Raise NotDecodedError where ComfyUI says that a weight is in a format that is not read."""
    for format in _formats_said(group):
        if format not in (*_PLAIN, *_TILED):
            raise NotDecodedError(f"is {short(format)} of ComfyUI, which is not read")


def is_tensor_core(group: Group) -> bool:
    """Whether ComfyUI says that a weight is NVFP4 or MXFP8."""
    return any(format in _TILED for format in _formats_said(group))


def tensor_core(group: Group) -> Decoder:
    """Return the decoder of NVFP4, the first of two numbers in the high nibble and under a multiplier, or of MXFP8.

    Numbers of rows and columns are those of what is stored, which ComfyUI pads with zeros to multiples of 16 or 32.
    """
    said = set(_formats_said(group))
    if len(said) != 1:
        raise NotDecodedError(f"is {' and '.join(sorted(map(str, said)))} of ComfyUI at once")
    if said == {"mxfp8"}:
        group.only(group.codes, "weight_scale")
        if group.info.dtype not in FLOAT8:
            raise NotDecodedError(f"is {group.info.dtype}, where ComfyUI's mxfp8 has float8")
        return block_scaled(group, "weight_scale", 32, powers=True, tiled=True)
    group.only(group.codes, "weight_scale", "weight_scale_2")
    if group.info.dtype != "uint8":
        raise NotDecodedError(f"is {group.info.dtype}, where ComfyUI's nvfp4 has uint8")
    return block_scaled(group, "weight_scale", 16, powers=False, tiled=True, last="weight_scale_2", high_first=True)


def _formats_said(group: Group) -> list[Any]:
    """What ComfyUI calls the format of a weight, beside it and in the header; nothing where it does not say."""
    return [said.get("format") for said in (_beside(group), _in_header(group)) if said is not None]


def _beside(group: Group) -> Mapping[str, Any] | None:
    if not group.has(_MARKER):
        return None
    info = group.parts[_MARKER]
    if info.dtype != "uint8" or info.size > _MARKER_BYTES:
        raise NotDecodedError(f"{info.name} is no text of at most {_MARKER_BYTES} bytes")
    return _object(group.read(_MARKER).tobytes(), info.name)


def _in_header(group: Group) -> Mapping[str, Any] | None:
    if _HEADER not in group.metadata:
        return None
    layers = _layers(group.metadata[_HEADER])
    said = layers.get(group.stem)
    if said is not None and not isinstance(said, Mapping):
        raise NotDecodedError(f"{_HEADER} in the header says no object of it")
    return said


@functools.lru_cache(maxsize=8)
def _layers(text: str) -> Mapping[str, Any]:
    layers = _object(text, _HEADER).get("layers", {})
    if not isinstance(layers, Mapping):
        raise NotDecodedError(f"{_HEADER} in the header holds no layers")
    return layers


def _object(text: str | bytes, name: str) -> Mapping[str, Any]:
    try:
        found = parse_json(text if isinstance(text, str) else text.decode("utf-8"))
    except ValueError as error:
        raise NotDecodedError(f"{name} is no valid JSON: {error}") from None
    if not isinstance(found, Mapping):
        raise NotDecodedError(f"{name} is no object")
    return found
