"""What ComfyUI says of a quantised weight: in a tensor beside it, or in the header of the file."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from mpfast.checkpoints.quantised.group import Group, NotDecodedError
from mpfast.support import parse_json

__all__ = ["check_comfy"]

_MARKER = "comfy_quant"
_HEADER = "_quantization_metadata"
# One object of a few settings.
_MARKER_BYTES = 4096
#: Formats with a scale for the matrix. The others have theirs in the order of a tensor core, and high nibbles first.
_READ = ("float8_e4m3fn", "float8_e5m2")


def check_comfy(group: Group) -> None:
    """Raise NotDecodedError where ComfyUI says that a weight is in another format than its parts look like."""
    for said in (_beside(group), _in_header(group)):
        if said is not None and said.get("format") not in _READ:
            raise NotDecodedError(f"is {said.get('format')} of ComfyUI, which is not read")


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
