"""File names that come from a checkpoint, which may lie; and the indices that hold them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mpfast.documents import is_text, parse_json, short
from mpfast.errors import CheckpointError

__all__ = ["plain_name", "weight_map_of"]

# No separators of any system, and not "..": such a name stays within the directory.
_PLAIN_NAME = re.compile(r"(?!\.\.?$)[^/\\:\0]+")
# The limit of every common file system; a longer one makes the system's calls fail in their own ways.
_MAX_NAME_BYTES = 255


def plain_name(file: Any, index: Path, tensor: str) -> str:
    """Return the name of a file beside the index; CheckpointError for one that leads elsewhere."""
    if not is_text(file) or not _PLAIN_NAME.fullmatch(file) or len(file.encode()) > _MAX_NAME_BYTES:
        raise CheckpointError(
            f"{index}: tensor {short(tensor)} is in {short(file)}, which is no plain file name", tensor=tensor
        )
    return str(file)


def weight_map_of(index: Path) -> dict[str, str]:
    """Return the map from tensors to files of an index, each of which is a file beside it.

    Raises
    ------
    CheckpointError
        The index is malformed, or a file is missing.
    """
    try:
        content = parse_json(index.read_bytes())
    except ValueError as error:
        offset = getattr(error, "pos", getattr(error, "start", 0))
        raise CheckpointError(f"{index}: no valid JSON: {error}", offset=offset) from None
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: has no weight_map from tensor names to files")
    for name, file in weight_map.items():
        plain_name(file, index, name)  # one with a directory in it would read files that the user did not name
    for file in dict.fromkeys(weight_map.values()):
        if not (index.parent / file).is_file():
            raise CheckpointError(f"{index}: the shard {file} is missing; is the download complete?")
    return weight_map
