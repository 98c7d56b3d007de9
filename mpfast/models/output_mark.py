"""Where an output comes from, as its mark says: the source by its path and by the hashes of all its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpfast.checkpoints import DENSE_TYPES, Checkpoint, DenseCopy, content_hashes, overall_hash
from mpfast.support import is_text, read_mark, write_mark

__all__ = ["SourceRecord", "mark_output", "noted_source"]


@dataclass(frozen=True)
class SourceRecord:
    """What the mark of an output says of its source.

    Attributes
    ----------
    hash : str
        Of all tensors together.
    tensors : mapping of str to str
        Content hash of every tensor by name.
    dequantized : str or None
        The type that its quantised weights were rounded to before anything was done; None where there were none.
    """

    hash: str
    tensors: Mapping[str, str]
    dequantized: str | None = None

    @classmethod
    def of(cls, directory: Path) -> SourceRecord | None:
        """Read the mark; None where it is missing, or does not say."""
        mark = read_mark(directory)
        source = None if mark is None else mark.get("source")
        if not isinstance(source, dict):
            return None
        tensors = source.get("tensors")
        if not is_text(source.get("hash")) or not isinstance(tensors, dict) or not all(map(is_text, tensors.values())):
            return None
        dequantized = source.get("dequantized")
        return cls(str(source["hash"]), tensors, str(dequantized) if dequantized in DENSE_TYPES.values() else None)


def noted_source(directory: Path) -> Path | None:
    """Return the path of the source as the mark of an output has it; None where it does not say."""
    mark = read_mark(directory)
    source = None if mark is None else mark.get("source")
    path = source.get("path") if isinstance(source, dict) else None
    return Path(path) if is_text(path) and path else None


def mark_output(
    staging: Path, command: str, checkpoint: Checkpoint, known: Mapping[str, str] | None = None, **facts: Any
) -> None:
    """Mark a directory as written by mpfast from this checkpoint.

    Parameters
    ----------
    staging
        The directory.
    command
        What wrote it.
    checkpoint
        The source. Its tensors are read, those `known` excepted.
    known
        Content hashes by tensor.
    **facts
        Whatever else is to be in the mark.
    """
    hashes = dict(content_hashes(checkpoint, known or {}))
    source = {"path": checkpoint.source, "hash": overall_hash(checkpoint.tensors, hashes), "tensors": hashes}
    if isinstance(checkpoint, DenseCopy):
        source["dequantized"] = checkpoint.dtype
    write_mark(staging, command, source=source, **facts)
