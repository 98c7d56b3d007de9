"""Files written so that a reader never sees half of one, and names of files that stay where they should."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mpfast.support.errors import CheckpointError
from mpfast.support.json_records import is_text, short

__all__ = [
    "check_directory",
    "plain_name",
    "replaced_file",
    "return_or_write",
    "staged_directory",
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
        with target.open("wb") as stream:
            stream.write(content)
        return
    with replaced_file(target) as temporary, temporary.open("xb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


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
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_directory(target.parent)


def check_directory(out: str | os.PathLike[str], *, overwrite: bool, sources: Iterable[Any] = ()) -> Path:
    """Return where `out` is to be written; errors as `staged_directory`, before any work is done.

    What is replaced vanishes with all that lies in it: a directory that holds one of `sources` (those that are paths)
    or the working directory is refused.
    """
    target = Path(out).absolute()
    if target.name == "..":
        target = target.resolve()
    if target.exists() and not overwrite:
        raise FileExistsError(f"{out}: exists already; overwrite=True (--overwrite) replaces it")
    if target.exists() and not target.is_dir():
        raise FileExistsError(f"{out}: is a file; a directory is to be written")
    if target.exists():
        paths = [Path(os.fsdecode(source)) for source in sources if isinstance(source, str | os.PathLike)]
        for path in (Path.cwd(), *paths):
            # As it is named, and where its links lead.
            places = (path.parent.resolve() / path.name, path.resolve())
            if any(target.resolve() in (place, *place.parents) for place in places):
                raise FileExistsError(f"{out}: not replaced, for {path} lies there; name another directory")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target.parent}: no such directory")
    return target


@contextlib.contextmanager
def staged_directory(out: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a directory to write into, which becomes `out` when all went well and vanishes when something failed.

    It lies beside `out` and is called ``.<name>.mpfast-partial``. One that a killed process left is handed out again,
    with what it holds: whoever writes decides what of it is still good.

    Raises
    ------
    FileExistsError
        `out` exists and `overwrite` is false.
    FileNotFoundError
        The directory that `out` is to lie in does not exist.
    """
    target = check_directory(out, overwrite=overwrite)
    staging = target.with_name(f".{target.name}{STAGING_SUFFIX}")
    staging.mkdir(exist_ok=True)
    try:
        yield staging
        _sync_tree(staging)
        _replace_directory(staging, target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    _sync_directory(target.parent)


def _replace_directory(new: Path, target: Path) -> None:
    """Rename `new` to `target`; directories cannot be exchanged in one step, so an old one steps aside first."""
    if not target.exists():
        new.rename(target)
        return
    aside = target.with_name(f".{target.name}.{secrets.token_hex(6)}.old")
    target.rename(aside)
    try:
        new.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    if aside.is_symlink():
        aside.unlink()
    else:
        shutil.rmtree(aside, ignore_errors=True)


def _sync_tree(directory: Path) -> None:
    for path in directory.rglob("*"):
        if path.is_dir():
            _sync_directory(path)
        else:
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
    _sync_directory(directory)


def _sync_directory(directory: Path) -> None:
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
