"""A checkpoint written next to another: same names, types, order, metadata and files, some tensors replaced."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.checkpoints.base import Checkpoint
from mpfast.checkpoints.companions import copy_companions, index_name
from mpfast.checkpoints.quantised import DenseCopy, Dequantised, QuantisedWeight, masked_codes
from mpfast.checkpoints.safetensors import SafetensorsFile
from mpfast.checkpoints.safetensors_writer import SafetensorsWriter
from mpfast.checkpoints.shard_index import WEIGHTS_FILE
from mpfast.checkpoints.source_files import SourceFiles, files_behind
from mpfast.checkpoints.tensor_bits import as_stored, check_writable, shards_of, stored_chunks

__all__ = ["CheckpointOutput", "files_of", "write_index"]

# Entries masked at a time.
_CHUNK_ENTRIES = 4 << 20


class CheckpointOutput:
    """Writes into a staging directory, file by file; see `mpfast.support.staged_directory`. A context manager.

    Safetensors files keep their names, headers and layout; any other checkpoint becomes one ``model.safetensors``.
    Tensors that are not written are copied from the source. What a killed process has left in the directory is compared
    with what is to be written, byte by byte, and only where they differ is it written again: whatever that process saw,
    the result is that of a run from scratch. Of quantised weights their parts are written, as they are stored.

    Parameters
    ----------
    checkpoint : Checkpoint
        The source.
    staging : Path
        Where to write.

    Raises
    ------
    InvalidValueError
        A tensor that a safetensors file cannot hold.
    """

    def __init__(self, checkpoint: Checkpoint, staging: Path) -> None:
        self._quantised: Mapping[str, QuantisedWeight] = {}
        if isinstance(checkpoint, Dequantised):
            self._quantised, checkpoint = checkpoint.weights, as_stored(checkpoint)
        check_writable(checkpoint)
        self._checkpoint = checkpoint
        self._staging = staging
        self._shards = {shard.path.name: shard for shard in shards_of(checkpoint)}
        self._files = files_of(checkpoint)
        self._home = {name: file for file, names in self._files.items() for name in names}
        self._source = SourceFiles(files_behind(checkpoint))
        self._done: set[str] = set()
        self._current: SafetensorsWriter | None = None
        self._file = ""
        self._remove_strangers()

    def _remove_strangers(self) -> None:
        """Leave nothing of an earlier try but files that are to be written again, in regular files of their own."""
        for path in self._staging.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name not in self._files or path.is_symlink() or not path.is_file() or path.stat().st_nlink > 1:
                path.unlink()

    def write(self, name: str, chunks: Iterable[memoryview]) -> None:
        """Write one tensor in place of the source's, of the same size; tensors come file by file."""
        self._open(self._home[name]).write_chunks(name, chunks)

    def write_masked(self, name: str, entries: NDArray[Any], keep: NDArray[np.bool_]) -> None:
        """Write one tensor with zeros where a mask drops entries; of a quantised one only its codes are changed.

        Parameters
        ----------
        name
            Of the tensor.
        entries
            Its entries; of a quantised one they are not looked at.
        keep
            True = kept, one for each entry.
        """
        weight = self._quantised.get(name)
        if weight is None:
            self.write(name, _masked_chunks(entries, keep))
        else:
            self.write(weight.group.info.name, masked_codes(weight, keep))

    def _open(self, file: str) -> SafetensorsWriter:
        if self._current is None or self._file != file:
            self._close()
            if file in self._done:
                raise RuntimeError(f"{file}: is complete; tensors come file by file")
            target = self._staging / file
            if self._shards:
                self._current = SafetensorsWriter.like(self._shards[file], target)
            else:
                infos = {info.name: info for info in self._checkpoint.tensors}
                tensors = [infos[name] for name in self._files[file]]
                self._current = SafetensorsWriter.create(target, tensors, {"format": "pt"})
            self._file = file
        return self._current

    def _close(self) -> None:
        """Fill up the current file with what was not written."""
        if self._current is None:
            return
        for name in self._current.missing:
            self._current.write_chunks(name, stored_chunks(self._checkpoint, name))
            self._checkpoint.release(name)
        self._current.close()
        self._current = None
        self._done.add(self._file)

    def __enter__(self) -> CheckpointOutput:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._current is not None:  # something failed; an open file could not be removed everywhere
            self._current.abandon()

    def finish(self) -> tuple[str, ...]:
        """Complete the last file, write those of which no tensor was replaced, and copy what lies beside them.

        Returns
        -------
        tuple of str
            What lies beside the weights and was not copied, and why.

        Raises
        ------
        CheckpointError
            The source was changed meanwhile.
        """
        self._close()
        for file in self._files:
            if file not in self._done:
                self._open(file)
                self._close()
        left = copy_companions(self._checkpoint, self._staging)
        if not self._shards:
            write_index(self._checkpoint, self._staging, self._files)
        self._source.check()
        return left


def _masked_chunks(entries: NDArray[Any], keep: NDArray[np.bool_]) -> Iterator[memoryview]:
    """Yield the bytes of the entries that are kept, zeros for the others."""
    bits = entries.reshape(-1).view(f"u{entries.itemsize}")
    flat = keep.reshape(-1)
    for at in range(0, bits.size, _CHUNK_ENTRIES):
        dense = bits[at : at + _CHUNK_ENTRIES]
        yield np.multiply(dense, flat[at : at + _CHUNK_ENTRIES], dtype=dense.dtype).view(np.uint8).data


def files_of(checkpoint: Checkpoint) -> dict[str, list[str]]:
    """Return the tensors of every file to write: the source's files, or one ``model.safetensors``."""
    if isinstance(checkpoint, DenseCopy):
        return checkpoint.files
    shards = shards_of(checkpoint)
    if not shards:
        return {WEIGHTS_FILE: [info.name for info in checkpoint.tensors]}
    return {shard.path.name: list(shard.spans) for shard in shards}


def write_index(checkpoint: Checkpoint, folder: Path, files: Mapping[str, Iterable[str]]) -> None:
    """Write the index of several files, by the names of the tensors in each; nothing where there is one.

    Its size is that of the tensors, without headers, as other libraries give it.
    """
    if len(files) > 1:
        spans = [span for file in files for span in SafetensorsFile(folder / file).spans.values()]
        size = sum(end - begin for begin, end in spans)
        weight_map = {name: file for file, names in files.items() for name in names}
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (folder / index_name(checkpoint)).write_text(json.dumps(index, indent=1), encoding="utf-8")
