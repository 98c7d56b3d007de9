"""Directories written as a whole: one writer at a time, and at any moment the old one or the new one is there.

Beside ``out``, in the same directory, may lie:

- ``.out.mpfast-lock``, held (`flock`) by whoever writes, with his process, machine and time in it;
- ``.out.mpfast-partial``, where he writes; a killed process leaves it behind, and the next one takes it over;
- ``.out.<hex>.old``, the old ``out`` for the moment between two renames, where the system cannot exchange directories
  in one step. Found without an ``out``, it is put back.

A directory that was written whole has a mark (`directory_marks`): only such a one, which holds nothing else, is ever
replaced.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mpfast.support.checks import check_path
from mpfast.support.directory_locks import held_lock
from mpfast.support.directory_marks import MARK_FILE, files_below, is_marked, strangers_in
from mpfast.support.errors import warn_caller
from mpfast.support.safe_files import STAGING_SUFFIX, named_errors, sync_directory

__all__ = ["OutputDirectory", "claimed_directory", "restore_directory", "staged_directory"]

LOCK_SUFFIX = ".mpfast-lock"
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


def _checked(out: str | os.PathLike[str], *, overwrite: bool, sources: Iterable[Any] = ()) -> Path:
    """Return where `out` is to be written; errors as `claimed_directory`, before any work is done.

    What is replaced vanishes with all that lies in it: only a directory with the mark of mpfast that holds what the
    mark lists and nothing else, or an empty one, is, and none that holds one of `sources` (those that are paths), under
    this or another name, or the working directory. A link is not replaced by a directory. Nothing is written into a
    directory that is a source.
    """
    target = Path(out).absolute()
    if target.name == "..":
        target = target.resolve()
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target.parent}: no such directory")
    sources = list(sources)
    _check_that_it_lies_in_no_source(target, sources)
    if not os.access(target.parent, os.W_OK | os.X_OK):  # else some hidden file beside `out` would be named
        raise PermissionError(f"{target.parent}: is not writable, and {out} is to lie there; name another directory")
    if not os.path.lexists(target):
        return target
    if target.is_symlink():
        raise FileExistsError(
            f"{out}: is a symbolic link to {target.readlink()}, and a directory is to be written; name another one"
        )
    if not overwrite:
        ours = target.is_dir() and (is_marked(target) or not any(target.iterdir()))
        advice = "overwrite=True (--overwrite) replaces it" if ours else "name another: what is there is not mpfast's"
        raise FileExistsError(f"{out}: exists already; {advice}")
    if not target.is_dir():
        raise FileExistsError(f"{out}: is no directory, and a directory is to be written; name another one")
    _check_that_no_source_is_there(out, target, sources)
    if not is_marked(target) and any(target.iterdir()):
        raise FileExistsError(
            f"{out}: not replaced, for it is not marked ({MARK_FILE}) as written by mpfast; name another directory, or "
            "remove this one yourself"
        )
    if strangers := strangers_in(target):
        raise FileExistsError(
            f"{out}: not replaced, for mpfast did not write all that it holds, or not as it is now: "
            f"{_named(strangers)}; move these elsewhere, or name another directory"
        )
    return target


def _named(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _check_that_it_lies_in_no_source(target: Path, sources: Iterable[Any]) -> None:
    place = target.parent.resolve()
    for source in sources:
        folder = Path(os.fsdecode(source)).resolve() if isinstance(source, str | os.PathLike) else None
        if folder in (place, *place.parents):
            raise FileExistsError(f"{target}: lies in {source}, which is only read; name a directory outside of it")


def _check_that_no_source_is_there(out: Any, target: Path, sources: Iterable[Any]) -> None:
    paths = [Path(os.fsdecode(source)).absolute() for source in sources if isinstance(source, str | os.PathLike)]
    inside = target.resolve()
    for path in (Path.cwd(), *paths):
        # As it is named, and where its links lead.
        places = (path.parent.resolve() / path.name, path.resolve())
        if any(inside in (place, *place.parents) for place in places):
            raise FileExistsError(f"{out}: not replaced, for {path} lies there; name another directory")
    # The same file under another name: a hard link.
    there = {identity for path in files_below(inside) if (identity := _identity(path)) is not None}
    for path in paths:
        files = [entry for entry in path.iterdir() if entry.is_file()] if path.is_dir() else [path]
        for file in files:
            if _identity(file) in there:
                raise FileExistsError(f"{out}: not replaced, for {file} lies there; name another directory")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


class OutputDirectory:
    """A directory to write, claimed for this process: nobody else can write it meanwhile.

    Attributes
    ----------
    target : Path
        Where it will be.
    """

    def __init__(self, target: Path, overwrite: bool) -> None:
        self.target = target
        self._overwrite = overwrite

    @contextlib.contextmanager
    def staged(self, *, resume: bool = False) -> Iterator[Path]:
        """Yield a directory to write into, which takes the place of the target when all went well.

        It vanishes when something failed. With `resume`, one that a killed process left is handed out with what it
        holds: whoever writes looks at all of it. An error of the system that names no file names the target.
        """
        staging = _beside(self.target, STAGING_SUFFIX)
        if staging.is_symlink() or (staging.exists() and not staging.is_dir()):
            staging.unlink()
        elif staging.exists() and not resume:
            _make_changeable(staging)
            shutil.rmtree(staging)
        elif staging.exists():
            _make_changeable(staging)
        staging.mkdir(exist_ok=True)
        try:
            with named_errors(self.target):
                yield staging
                _sync_tree(staging)
                if os.path.lexists(self.target) and not self._overwrite:  # somebody who knows no locks
                    raise FileExistsError(f"{self.target}: exists already; overwrite=True (--overwrite) replaces it")
                _replace_directory(staging, self.target)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        sync_directory(self.target.parent)


@contextlib.contextmanager
def claimed_directory(
    out: str | os.PathLike[str], *, overwrite: bool = False, sources: Iterable[Any] = ()
) -> Iterator[OutputDirectory]:
    """Keep everybody else from writing `out` until the end.

    Raises
    ------
    FileExistsError
        `out` exists and `overwrite` is false; or it was not written by mpfast, or is a link, or holds what mpfast did
        not write, one of `sources` or the working directory. Or another process, or another thread of this one, is
        writing it: the message says which.
    FileNotFoundError, PermissionError
        The directory that `out` is to lie in does not exist, or may not be written.
    InvalidTypeError, InvalidValueError
        `out` is no path.
    """
    check_path(out, "out")
    sources = list(sources)
    restore_directory(out)
    target = _checked(out, overwrite=overwrite, sources=sources)
    with held_lock(out, _beside(target, LOCK_SUFFIX)):
        # Whoever held the lock a moment ago may have written it, or was killed while he did.
        _restore(target)
        _remove_leftovers(target)
        _checked(out, overwrite=overwrite, sources=sources)
        yield OutputDirectory(target, overwrite)


@contextlib.contextmanager
def staged_directory(
    out: str | os.PathLike[str], *, overwrite: bool = False, sources: Iterable[Any] = (), resume: bool = False
) -> Iterator[Path]:
    """Yield a directory to write into, which becomes `out` when all went well and vanishes when something failed.

    Errors as `claimed_directory`; see `OutputDirectory.staged`. Write a mark into it (`write_mark`), else nothing will
    ever replace it.
    """
    with (
        claimed_directory(out, overwrite=overwrite, sources=sources) as directory,
        directory.staged(resume=resume) as staging,
    ):
        yield staging


def restore_directory(out: str | os.PathLike[str]) -> bool:
    """Put back what a killed process had moved aside, if `out` is missing for that; True if so."""
    try:
        target = Path(out).absolute()
        if os.path.lexists(target) or not target.parent.is_dir() or not any(_set_aside(target)):
            return False
        with held_lock(out, _beside(target, LOCK_SUFFIX)):
            return _restore(target)
    except (OSError, ValueError):  # no name that the system takes, a directory that is not ours, or a writer at work
        return False


def _restore(target: Path) -> bool:
    if os.path.lexists(target):
        return False
    aside = max(_set_aside(target), key=lambda path: path.lstat().st_ctime_ns, default=None)
    if aside is None:
        return False
    aside.rename(target)
    sync_directory(target.parent)
    warn_caller("", f"{target}: was missing, and is put back from {aside.name}, where a killed run had moved it")
    return True


def _remove_leftovers(target: Path) -> None:
    """Remove older outputs that a killed run had replaced already."""
    for aside in _set_aside(target):
        if aside.is_symlink():
            aside.unlink()
        elif is_marked(aside) and not strangers_in(aside):
            _make_changeable(aside)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            continue
        warn_caller("", f"{aside}: removed; a killed run had replaced it by {target.name}")


def _set_aside(target: Path) -> list[Path]:
    pattern = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{12}}\.old")
    return [path for path in target.parent.iterdir() if pattern.fullmatch(path.name)]


def _beside(target: Path, suffix: str) -> Path:
    return target.with_name(f".{target.name}{suffix}")


def _replace_directory(new: Path, target: Path) -> None:
    """Rename `new` to `target`: in one step if the system can exchange two names, else the old one steps aside first.

    Where it is killed between the two steps, `restore_directory` puts the old one back. The old one is removed if it
    holds nothing but what mpfast wrote, else it stays under another name.
    """
    if not os.path.lexists(target):
        new.rename(target)
        return
    if _exchange(new, target):
        old = new
    else:
        old = target.with_name(f".{target.name}.{secrets.token_hex(6)}.old")
        target.rename(old)
        try:
            new.rename(target)
        except BaseException:
            old.rename(target)
            raise
    sync_directory(target.parent)
    strangers = [] if old.is_symlink() else strangers_in(old)
    if old.is_symlink() or strangers:  # it was looked at before the work, which may have taken hours
        kept = target.with_name(f"{target.name}.{secrets.token_hex(6)}.old")
        old.rename(kept)
        what = _named(strangers) if strangers else "a link"
        warn_caller(
            "", f"{target}: something came there while it was written, {what}; what was there is kept as {kept}"
        )
        return
    _make_changeable(old)
    shutil.rmtree(old, ignore_errors=True)
    if old.exists():
        warn_caller("", f"{old}: holds what {target.name} was before, and could not be removed; remove it yourself")


def _make_changeable(directory: Path) -> None:
    """Let its owner remove what is in a directory and below it, as far as the system permits that."""
    for folder in (directory, *(Path(above, name) for above, names, _ in os.walk(directory) for name in names)):
        with contextlib.suppress(OSError):
            if not folder.is_symlink():
                folder.chmod(stat.S_IMODE(folder.stat().st_mode) | stat.S_IRWXU)


def _exchange(one: Path, other: Path) -> bool:
    """Let two names change places in one step; False where the system or the file system cannot."""
    if sys.platform != "linux":
        return False
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # an old C library
        return False
    names = os.fsencode(one), os.fsencode(other)
    call.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    return int(call(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE)) == 0


def _sync_tree(directory: Path) -> None:
    for path in directory.rglob("*"):
        if path.is_dir():
            sync_directory(path)
        else:
            with named_errors(path), path.open("rb") as stream:
                os.fsync(stream.fileno())
    sync_directory(directory)
