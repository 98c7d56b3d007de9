"""A checkpoint written next to another: same names, types, order, metadata and files, some tensors replaced."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.arrays import as_bits, as_numpy
from mpfast.checkpoints.base import Checkpoint
from mpfast.checkpoints.opening import FORMATS
from mpfast.checkpoints.safetensors import SafetensorsFile
from mpfast.checkpoints.safetensors_writer import SafetensorsWriter
from mpfast.checkpoints.sharded import INDEX_SUFFIX, ShardedSafetensors
from mpfast.support import parse_json, write_text_atomically

__all__ = ["CheckpointOutput", "copy_companions", "files_of", "fingerprint", "index_name", "stored"]

PROGRESS_FILE = ".progress.json"
DEFAULT_NAME = "model.safetensors"
DEFAULT_INDEX = "model.safetensors.index.json"
_READ = frozenset(suffix for format in FORMATS for suffix in format.suffixes)
_INDEX_SUFFIXES = tuple(suffix for suffix in _READ if suffix.endswith(".json"))
# Other forms of the same weights: beside a changed checkpoint they would be stale.
_WEIGHT_SUFFIXES = _READ.difference(_INDEX_SUFFIXES) | {
    ".pkl",
    ".h5",
    ".msgpack",
    ".gguf",
    ".ggml",
    ".tflite",
    ".ot",
    ".keras",
    ".pb",
    ".mlmodel",
}


def fingerprint(checkpoint: Checkpoint, job: str, options: list[Any]) -> str:
    """Say which job this is, `job` being its kind: what is written for one is of no use for another."""
    files = []
    for shard in _shards(checkpoint):
        status = shard.path.stat()
        files.append([str(shard.path.resolve()), status.st_size, status.st_mtime_ns])
    return json.dumps([job, files, options], default=str)


def _shards(checkpoint: Checkpoint) -> list[SafetensorsFile]:
    if isinstance(checkpoint, SafetensorsFile):
        return [checkpoint]
    return checkpoint.shards if isinstance(checkpoint, ShardedSafetensors) else []


class CheckpointOutput:
    """Writes into a staging directory, file by file; see `mpfast.support.staged_directory`. A context manager.

    Safetensors files keep their names, headers and layout; any other checkpoint becomes one ``model.safetensors``.
    Tensors that are not written are copied from the source. A file that a killed process had finished is kept if the
    process had the same fingerprint.

    Parameters
    ----------
    checkpoint : Checkpoint
        The source.
    staging : Path
        Where to write.
    job : str
        The `fingerprint`.
    """

    def __init__(self, checkpoint: Checkpoint, staging: Path, job: str) -> None:
        self._checkpoint = checkpoint
        self._staging = staging
        self._shards = {shard.path.name: shard for shard in _shards(checkpoint)}
        self._home = {name: file for file, shard in self._shards.items() for name in shard.spans}
        if not self._shards:
            self._home = dict.fromkeys((info.name for info in checkpoint.tensors), DEFAULT_NAME)
        self._job = hashlib.blake2b(job.encode(), digest_size=16).hexdigest()
        self._done = self._finished_files()
        self._current: SafetensorsWriter | None = None
        self._file = ""

    def _finished_files(self) -> set[str]:
        """Files of an earlier try at the same job; anything else in the staging directory is removed."""
        done: set[str] = set()
        if self._shards:  # what is in memory now need not be what was in memory then
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                progress = parse_json((self._staging / PROGRESS_FILE).read_bytes())
                if progress["job"] == self._job:
                    done = set(progress["done"]) & self._shards.keys()
        for path in self._staging.iterdir():
            if path.name in done:
                continue
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return done

    def write(self, name: str, chunks: Iterable[memoryview]) -> None:
        """Write one tensor in place of the source's, of the same size; tensors come file by file.

        `chunks` is consumed even where the tensor is there already.
        """
        file = self._home[name]
        if file in self._done:
            for _ in chunks:
                pass
            return
        self._open(file).write_chunks(name, chunks)

    def _open(self, file: str) -> SafetensorsWriter:
        if self._current is None or self._file != file:
            self._close()
            target = self._staging / file
            if self._shards:
                self._current = SafetensorsWriter.like(self._shards[file], target)
            else:
                self._current = SafetensorsWriter.create(target, self._checkpoint.tensors, {"format": "pt"})
            self._file = file
        return self._current

    def _close(self) -> None:
        """Fill up the current file with what was not written."""
        if self._current is None:
            return
        for name in self._current.missing:
            if self._shards:
                self._current.write(name, self._shards[self._file].raw(name))
            else:
                self._current.write(name, stored(self._checkpoint.read(name), name))
            self._checkpoint.release(name)
        self._current.close()
        self._current = None
        self._done.add(self._file)
        progress = {"job": self._job, "done": sorted(self._done)}
        write_text_atomically(self._staging / PROGRESS_FILE, json.dumps(progress))

    def __enter__(self) -> CheckpointOutput:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._current is not None:  # something failed; an open file could not be removed everywhere
            self._current.abandon()

    def finish(self) -> None:
        """Complete the last file, write those of which no tensor was replaced, and copy what lies beside them."""
        self._close()
        for file in self._shards or [DEFAULT_NAME]:
            if file not in self._done:
                self._open(file)
                self._close()
        copy_companions(self._checkpoint, self._staging)
        (self._staging / PROGRESS_FILE).unlink(missing_ok=True)


def index_name(checkpoint: Checkpoint) -> str:
    """Name of the index of several files: the source's, or ``model.safetensors.index.json``."""
    name = Path(checkpoint.source).name
    return name if isinstance(checkpoint, ShardedSafetensors) and name.endswith(INDEX_SUFFIX) else DEFAULT_INDEX


def files_of(checkpoint: Checkpoint) -> dict[str, list[str]]:
    """Return the tensors of every file to write: the source's files, or one ``model.safetensors``."""
    shards = _shards(checkpoint)
    if not shards:
        return {DEFAULT_NAME: [info.name for info in checkpoint.tensors]}
    return {shard.path.name: list(shard.spans) for shard in shards}


def copy_companions(checkpoint: Checkpoint, target: Path) -> None:
    """Copy configuration, tokenizer and the like: every file beside the weights that is not weights itself."""
    shards = _shards(checkpoint)
    if not shards:
        return
    directory = shards[0].path.parent
    index = index_name(checkpoint)
    if len(shards) == 1 and not (directory / "config.json").exists():
        return  # a file of its own, not a model directory: what lies beside it is none of our business
    for path in sorted(directory.rglob("*")):
        relative = path.relative_to(directory)
        hidden = any(part.startswith(".") for part in relative.parts)
        if hidden or not path.is_file() or path.suffix.lower() in _WEIGHT_SUFFIXES:
            continue
        if path.name.endswith(_INDEX_SUFFIXES) and (len(shards) == 1 or relative != Path(index)):
            continue  # of files that are not written: whoever opened the directory would look for them
        (target / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / relative)


def stored(tensor: Any, name: str) -> NDArray[Any]:
    """Return the bits of a tensor of any framework."""
    if isinstance(tensor, np.ndarray):
        return tensor
    try:
        array, _ = as_numpy(tensor, name=name)
    except TypeError:  # no floating-point numbers: indices, masks
        array = as_bits(tensor, name=name)
    return array
