"""The mark of a directory that mpfast wrote, ``.mpfast.json``: it lists the files, so that others can be told."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from mpfast.support.json_records import parse_json
from mpfast.support.safe_files import write_text_atomically

__all__ = ["MARK_FILE", "MARK_SCHEMA", "files_below", "is_marked", "read_mark", "strangers_in", "write_mark"]

#: The mark of a directory that mpfast wrote.
MARK_FILE = ".mpfast.json"
MARK_SCHEMA = "mpfast.output/1"


def write_mark(directory: Path, command: str, **facts: Any) -> None:
    """Mark a directory as written by mpfast: schema, version, command and time, and whatever else is told.

    The mark lists the files that are there with their sizes in bytes: whatever comes later is not of mpfast.
    """
    try:
        version = metadata.version("mpfast")
    except metadata.PackageNotFoundError:
        version = "unknown"
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    document = {
        "schema": MARK_SCHEMA,
        "version": version,
        "command": command,
        "time": now,
        **facts,
        "files": _sizes(directory),
    }
    write_text_atomically(directory / MARK_FILE, json.dumps(document, indent=1, allow_nan=False) + "\n")


def read_mark(directory: Path) -> Mapping[str, Any] | None:
    """Return what the mark of a directory says; None where there is none, or it is no mark of ours."""
    path = directory / MARK_FILE
    try:
        if not path.is_file() or path.is_symlink():
            return None
        document = parse_json(path.read_bytes())
    except (OSError, ValueError):
        return None
    return document if isinstance(document, dict) and document.get("schema") == MARK_SCHEMA else None


def is_marked(directory: Path) -> bool:
    """Whether mpfast wrote this directory."""
    return read_mark(directory) is not None


def strangers_in(directory: Path) -> list[str]:
    """Return the files of a directory that its mark does not list, or lists with another size; links are files, too.

    Without a mark these are all. Empty directories do not count.
    """
    mark = read_mark(directory)
    listed = None if mark is None else mark.get("files")
    known = listed if isinstance(listed, dict) else {}
    found = _sizes(directory, marked=mark is not None)
    return [name for name, size in found.items() if size is None or known.get(name) != size]


def _sizes(directory: Path, marked: bool = True) -> dict[str, int | None]:
    """Sizes of all files below a directory but the mark, by their names there; None for links and what is no file."""
    sizes: dict[str, int | None] = {}
    for path in files_below(directory):
        name = path.relative_to(directory).as_posix()
        if name != MARK_FILE or not marked:
            status = path.lstat()
            sizes[name] = status.st_size if stat.S_ISREG(status.st_mode) else None
    return dict(sorted(sizes.items()))


def files_below(directory: Path) -> Iterator[Path]:
    """Yield all files below a directory, and links to directories, which are not entered."""
    for folder, folders, files in os.walk(directory):
        links = (name for name in folders if Path(folder, name).is_symlink())
        yield from (Path(folder, name) for name in (*files, *links))
