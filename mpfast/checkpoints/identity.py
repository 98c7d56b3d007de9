"""Which checkpoint it was, told by a part of its bytes: reading all of them would take as long as the analysis."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from mpfast.checkpoints.opening import FORMATS

__all__ = ["content_sample_hash"]

_ENDS = 1 << 16
_PIECE = 1 << 12
_PIECES = 64


def content_sample_hash(path: str | os.PathLike[str]) -> str | None:
    """Return ``"sha256-sample:<hex>"`` of a checkpoint file, or of all weight files of a directory.

    What is hashed, file by file in the order of their names: the size, the first and the last 64 KiB, and 64 pieces of
    4 KiB at even distances between. Names and dates are not. So two fine-tunings of one model differ, a copy does not,
    and a change of a few weights may go unseen; a budget has the hash of all bytes of every pruned tensor besides.

    Returns
    -------
    str or None
        None where there is no file.
    """
    found = Path(path)
    if found.name.endswith(".index.json"):
        found = found.parent
    suffixes = tuple(suffix for format in FORMATS for suffix in format.suffixes if not suffix.endswith(".json"))
    files = [found] if found.is_file() else _weight_files(found, suffixes)
    if not files:
        return None
    state = hashlib.sha256()
    for file in files:
        _add(state, file)
    return f"sha256-sample:{state.hexdigest()}"


def _weight_files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.iterdir() if file.is_file() and file.name.lower().endswith(suffixes))


def _add(state: hashlib._Hash, path: Path) -> None:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        state.update(size.to_bytes(8, "little"))
        places = [(0, _ENDS)]
        if size > 2 * _ENDS:
            places += [(_ENDS + (size - 2 * _ENDS) * piece // _PIECES, _PIECE) for piece in range(_PIECES)]
        for at, length in [*places, (max(0, size - _ENDS), _ENDS)]:
            file.seek(at)
            state.update(file.read(length))
