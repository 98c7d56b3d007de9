"""Which files may be written: none that is read, and none that holds something else than what is written."""

from __future__ import annotations

import codecs
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from mpfast.checkpoints.companions import is_model_directory
from mpfast.checkpoints.opening import format_of, path_of

__all__ = ["check_target", "is_report"]

_BLOCK_BYTES = 1 << 16
# What a report says of itself: its schema, the generator of a page, a column that every table has.
_JSON_MARK = '"schema": "mpfast.'
_HTML_MARK = '<meta name="generator" content="mpfast">'
_CSV_MARK = ",sigma_plus,"


def is_report(path: Path) -> bool:
    """Whether a file can be an older report: it is text, and no index of a checkpoint by its name."""
    known = format_of(path)
    return _beginning(path) is not None and (known is None or not path.name.lower().endswith(".index.json"))


def check_target(
    path: str | os.PathLike[str], *, reads: Iterable[object] = (), is_ours: Callable[[Path], bool] = is_report
) -> None:
    """Raise FileExistsError where a file that is to be written is read, or holds something else.

    What does not exist is free, and so is what is no regular file: a pipe, a device.

    Parameters
    ----------
    path : path
        The file, by whatever name: through links, too.
    reads : iterable
        What is read; all but paths and Hugging Face ids are passed over. Of a directory, and of the model directory
        that a file lies in, every file counts but the reports of mpfast.
    is_ours : function
        Whether a file is of the kind that is written, and may be replaced if it is not read. Empty ones are not asked
        about.
    """
    target = Path(path)
    if not target.is_file():
        return
    for read in reads:
        source = path_of(read) if isinstance(read, str | os.PathLike) else None
        if source is not None:
            _check_against(path, target, source)
    if target.stat().st_size and not is_ours(target):
        raise FileExistsError(
            f"{path}: not replaced, for what it holds is not what mpfast writes there; name another file, or remove "
            "this one yourself"
        )


def _check_against(path: object, target: Path, source: Path) -> None:
    if target.samefile(source):
        raise FileExistsError(f"{path}: not written, for it is {source}, which is read; name another file")
    directory = source if source.is_dir() else source.parent
    if not source.is_dir() and not is_model_directory(directory) and not source.name.endswith(".index.json"):
        return  # a file of its own
    # As it is named, where its links lead, and what has another name there.
    places = (target.parent.resolve() / target.name, target.resolve())
    inside = any(directory.resolve() in place.parents for place in places)
    if (inside or any(_is_same(target, file) for file in directory.iterdir())) and not _says_mpfast(target):
        raise FileExistsError(f"{path}: not written, for it belongs to {directory}, which is read; name another file")


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # a link that leads nowhere
        return False


def _says_mpfast(path: Path) -> bool:
    """Whether a file is a report of mpfast by what it says of itself."""
    text = _beginning(path)
    if text is None:
        return False
    return _JSON_MARK in text[:256] or _HTML_MARK in text[:256] or _CSV_MARK in text.partition("\n")[0]


def _beginning(path: Path) -> str | None:
    """Return the beginning of a text in UTF-8; None of any other file."""
    with path.open("rb") as stream:
        block = stream.read(_BLOCK_BYTES)
    # No text of ours has a NUL or begins with a control character, as protocol buffers do.
    if b"\0" in block or (block and block[0] < ord(" ") and not block[:1].isspace()):
        return None
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(block)
    except UnicodeDecodeError:
        return None
