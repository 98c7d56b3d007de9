"""Files written so that a reader never sees half of one, and names of files that stay where they should.

Whole directories: `mpfast.support.output_directories`.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mpfast.support.checks import check_path
from mpfast.support.errors import CheckpointError
from mpfast.support.json_records import is_text, short

__all__ = [
    "named_errors",
    "plain_name",
    "replaced_file",
    "return_or_write",
    "sync_directory",
    "write_bytes_atomically",
    "write_text_atomically",
]

# No separators of any system, and not "..": such a name stays within the directory.
_PLAIN_NAME = re.compile(r"(?!\.\.?$)[^/\\:\0]+")
# The limit of every common file system; a longer one makes the system's calls fail in their own ways.
_MAX_NAME_BYTES = 255
STAGING_SUFFIX = ".mpfast-partial"


def write_text_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` (UTF-8, line ends untouched) to `path`, all of it or nothing; see `write_bytes_atomically`."""
    write_bytes_atomically(path, text.encode())


def return_or_write(text: str, path: str | os.PathLike[str] | None) -> str | None:
    """Return `text` where there is no `path`, else write it there as `write_text_atomically` does and return None."""
    if path is None:
        return text
    check_path(path, "path")
    write_text_atomically(path, text)
    return None


def write_bytes_atomically(path: str | os.PathLike[str], content: bytes) -> None:
    """Write `content` to `path`, all of it or nothing.

    It goes to a temporary file in the same directory, is flushed to the disk and then renamed over
    `path`; if anything fails before the rename, an older file of that name is left as it was. A path that
    exists and is no regular file (a pipe, ``/dev/stdout``) is written to directly.

    Raises
    ------
    OSError
        The directory does not exist, is not writable or the disk is full.
    """
    target = Path(path).resolve()
    if target.exists() and not target.is_file():
        with named_errors(path), target.open("wb") as stream:
            stream.write(content)
        return
    with named_errors(path), replaced_file(path) as temporary, temporary.open("xb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


@contextlib.contextmanager
def named_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Let errors of the system that name no file, those of a full disk for one, name this one."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def replaced_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a path in the same directory to write to and flush, and rename it over `path` when all went well.

    If anything fails before the rename, an older file of that name is left as it was.
    """
    target = Path(path).resolve()  # through a symbolic link: replace what it points to, not the link
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.tmp")
    try:
        yield temporary
        if target.exists():
            shutil.copymode(target, temporary)
        temporary.replace(target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno is not None and error.filename in (temporary, str(temporary)):
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error  # what the caller has named
        raise
    sync_directory(target.parent)


def sync_directory(directory: Path) -> None:
    """Make the rename durable too. Not every system can open a directory; the file is whole either way."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def plain_name(file: Any, index: Path, tensor: str) -> str:
    """Return the name of a file beside the index; CheckpointError for one that leads elsewhere."""
    if not is_text(file) or not _PLAIN_NAME.fullmatch(file) or len(file.encode()) > _MAX_NAME_BYTES:
        raise CheckpointError(
            f"{index}: tensor {short(tensor)} is in {short(file)}, which is no plain file name", tensor=tensor
        )
    return str(file)
