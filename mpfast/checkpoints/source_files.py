"""Which files the tensors of a model come from, however it was given, and whether they are as they were."""

from __future__ import annotations

import bisect
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mpfast.checkpoints.mapping import ArrayMapping
from mpfast.checkpoints.safetensors import SafetensorsFile
from mpfast.checkpoints.torch_state import TorchState
from mpfast.support import CheckpointError

__all__ = ["SourceFiles", "files_behind"]

_MAPS = Path("/proc/self/maps")
# Start and end of a mapping, its access, offset, device, and inode; then the file.
_LINE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ (\d+) +(/.*)")
# Checkpoints whose tensors are views of memory, perhaps of mapped files: to read them costs nothing.
_IN_MEMORY = (ArrayMapping, SafetensorsFile, TorchState)
_OCTAL = re.compile(r"\\([0-7]{3})")


def files_behind(*models: Any) -> list[Path]:
    """Return the files and directories that models come from: what may not be written over.

    Parameters
    ----------
    *models : path, Checkpoint, mapping of arrays, module or None
        A path stands for itself; of a checkpoint its source counts, and of all arrays the file that their memory is
        mapped from: known for every array where the system tells (Linux), else for ``numpy.memmap`` and PyTorch.
    """
    found: dict[Path, None] = {}
    mapped = _Mappings()
    for model in models:
        for path in _paths(model, mapped, set()):
            found[path.absolute()] = None
    return list(found)


class SourceFiles:
    """Remembers how files look, to tell later whether somebody changed them."""

    def __init__(self, paths: Iterable[Path]) -> None:
        # Not all that is in a directory: who trains there writes more than weights.
        self._states = {path: state for path in paths if (state := _state(path)) is not None}

    def check(self) -> None:
        """Raise CheckpointError where a file is not the one that it was: what was read may be a mixture of both."""
        for file, before in self._states.items():
            if _state(file) != before:
                raise CheckpointError(f"{file}: was changed while it was read; nothing is written, run again")


def _state(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    if not path.is_file():
        return None
    # The time of the last change of the inode is set by the system alone.
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _paths(model: Any, mapped: _Mappings, seen: set[int]) -> Iterator[Path]:
    if model is None or id(model) in seen:
        return
    seen.add(id(model))
    if isinstance(model, str | os.PathLike):
        yield Path(os.fsdecode(model))
    elif isinstance(model, Mapping):
        for value in model.values():
            yield from _paths(value, mapped, seen)
    elif _has(model, "shape") and _has(model, "dtype"):
        yield from _files_of_array(model, mapped)
    elif all(hasattr(model, attribute) for attribute in ("tensors", "read", "release", "source")):
        yield from _paths_of_checkpoint(model, mapped, seen)
    else:
        yield from _files_of_live_model(model, mapped, seen)


def _has(model: Any, attribute: str) -> bool:
    """Whether an object has an attribute, which may raise: the shape of a parameter that is not initialised does."""
    try:
        getattr(model, attribute)
    except AttributeError:
        return hasattr(type(model), attribute)
    except Exception:  # whatever a foreign property raises
        pass
    return True


def _paths_of_checkpoint(checkpoint: Any, mapped: _Mappings, seen: set[int]) -> Iterator[Path]:
    found = False
    try:
        source = Path(checkpoint.source)
        if source.exists():
            found = True
            yield source
    except (OSError, ValueError, TypeError):  # no name that the system takes: a type's
        pass
    for shard in getattr(checkpoint, "shards", None) or []:
        yield from _paths(shard, mapped, seen)
    path = getattr(checkpoint, "path", None)
    if isinstance(path, str | os.PathLike):
        yield Path(os.fsdecode(path))
    if getattr(checkpoint, "shards", None) or (found and not isinstance(checkpoint, _IN_MEMORY)):
        return  # to read what is in a file whose name is known would decompress it
    for info in checkpoint.tensors:
        try:
            tensor = checkpoint.read(info.name)
        except (ValueError, KeyError, TypeError):  # of a type that is not read
            continue
        files = list(_paths(tensor, mapped, seen))
        checkpoint.release(info.name)
        yield from files
        if files and isinstance(checkpoint, SafetensorsFile):
            return  # all of it is one file


def _files_of_live_model(model: Any, mapped: _Mappings, seen: set[int]) -> Iterator[Path]:
    state = getattr(model, "state_dict", None)
    if callable(state):
        found = state()
        if isinstance(found, Mapping):
            yield from _paths(found, mapped, seen)


def _files_of_array(array: Any, mapped: _Mappings) -> Iterator[Path]:
    address = _address(array)
    if address is not None and (file := mapped.file_at(address)) is not None:
        yield file
    base = array
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap) and base.filename is not None:
            yield Path(os.fsdecode(base.filename))
        base = base.base
    storage = getattr(array, "untyped_storage", None)
    if callable(storage):
        try:
            name = getattr(storage(), "filename", None)
        except (RuntimeError, NotImplementedError, ValueError):  # sparse, nested or without entries yet: none
            return
        if isinstance(name, str):
            yield Path(name)


def _address(array: Any) -> int | None:
    try:
        if isinstance(array, np.ndarray):
            return int(array.__array_interface__["data"][0]) if array.size else None
        pointer = getattr(array, "data_ptr", None)
        if callable(pointer):
            return int(pointer()) or None
        if not hasattr(array, "__cuda_array_interface__") and hasattr(array, "__array_interface__"):
            return int(array.__array_interface__["data"][0]) or None
    except Exception:  # whatever a foreign object raises: it has no address to tell
        pass
    return None


class _Mappings:
    """The files that are mapped into this process, by address; read once, when first asked for."""

    def __init__(self) -> None:
        self._starts: list[int] | None = None
        self._ends: list[int] = []
        self._files: list[Path] = []

    def file_at(self, address: int) -> Path | None:
        if self._starts is None:
            self._starts = []
            self._read()
        at = bisect.bisect_right(self._starts, address) - 1
        return self._files[at] if at >= 0 and address < self._ends[at] else None

    def _read(self) -> None:
        try:
            text = os.fsdecode(_MAPS.read_bytes())
        except OSError:  # not Linux
            return
        assert self._starts is not None
        for line in text.split("\n"):
            found = _LINE.match(line)
            if found is not None:
                self._starts.append(int(found[1], 16))
                self._ends.append(int(found[2], 16))
                name = found[4].removesuffix(" (deleted)")
                self._files.append(Path(_OCTAL.sub(lambda octal: chr(int(octal[1], 8)), name)))
