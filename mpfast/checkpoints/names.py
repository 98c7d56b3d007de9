"""File names that come from a checkpoint, which may lie."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mpfast.errors import CheckpointError

__all__ = ["plain_name"]

# No separators of any system, and not "..": such a name stays within the directory.
_PLAIN_NAME = re.compile(r"(?!\.\.?$)[^/\\:\0]+")


def plain_name(file: Any, index: Path, tensor: str) -> str:
    """Return the name of a file beside the index; CheckpointError for one that leads elsewhere."""
    if not isinstance(file, str) or not _PLAIN_NAME.fullmatch(file):
        raise CheckpointError(f"{index}: tensor {tensor!r} is in {file!r}, which is no plain file name", tensor=tensor)
    return file
