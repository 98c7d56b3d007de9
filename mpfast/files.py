"""Writing result files so that a reader never sees half of one."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from pathlib import Path

__all__ = ["write_text_atomically"]


def write_text_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` (UTF-8, line ends untouched) to `path`, all of it or nothing.

    The text goes to a temporary file in the same directory, is flushed to the disk and then renamed over
    `path`; if anything fails before the rename, an older file of that name is left as it was. A path that
    exists and is no regular file (a pipe, ``/dev/stdout``) is written to directly.

    Raises
    ------
    OSError
        The directory does not exist, is not writable or the disk is full.
    """
    target = Path(path).resolve()  # through a symbolic link: replace what it points to, not the link
    if target.exists() and not target.is_file():
        with target.open("w", encoding="utf-8", newline="") as stream:
            stream.write(text)
        return
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.tmp")
    try:
        with temporary.open("x", encoding="utf-8", newline="") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        if target.exists():
            shutil.copymode(target, temporary)
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_directory(target.parent)


def _sync_directory(directory: Path) -> None:
    """Make the rename durable too. Not every system can open a directory; the file is whole either way."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
