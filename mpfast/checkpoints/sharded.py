"""Several safetensors files that are one checkpoint, with or without an index."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mpfast.checkpoints.base import NoTensor, TensorInfo
from mpfast.checkpoints.config_json import read_config
from mpfast.checkpoints.safetensors import SafetensorsFile
from mpfast.checkpoints.shard_index import weight_map_of
from mpfast.support import CheckpointError

__all__ = ["INDEX_SUFFIX", "ShardedSafetensors", "open_index"]

INDEX_SUFFIX = ".safetensors.index.json"


class ShardedSafetensors:
    """Several safetensors files that together are one checkpoint.

    Parameters
    ----------
    source : path
        The directory or the index, for messages.
    shards : list of path
        The files, in the order their tensors are to be listed.

    Raises
    ------
    CheckpointError
        A file is malformed, or two files hold a tensor of the same name.

    Attributes
    ----------
    shards : list of SafetensorsFile
        The open files.
    others : tuple of NoTensor
        Other checkpoints of the directory, where that was opened.
    """

    def __init__(self, source: Path, shards: list[Path]) -> None:
        self._source = source
        self.others: tuple[NoTensor, ...] = ()
        self.shards: list[SafetensorsFile] = []
        self._tensors: list[TensorInfo] = []
        self._home: dict[str, SafetensorsFile] = {}
        for path in shards:
            shard = SafetensorsFile(path)
            self.shards.append(shard)
            for info in shard.tensors:
                if info.name in self._home:
                    raise CheckpointError(
                        f"{source}: tensor {info.name!r} is in {self._home[info.name].source} and in {path}; "
                        "pass the file that is meant",
                        tensor=info.name,
                    )
                self._home[info.name] = shard
                self._tensors.append(info)

    @property
    def source(self) -> str:
        """The path of the directory or the index."""
        return str(self._source)

    @property
    def config(self) -> Mapping[str, Any] | None:
        """What the ``config.json`` beside the files says; None where there is none."""
        return read_config(self.shards[0].path.parent) if self.shards else None

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """All tensors, shard after shard."""
        return tuple(self._tensors)

    def read(self, name: str) -> Any:
        """Return one tensor; see `SafetensorsFile.read`."""
        return self._home[name].read(name)

    def raw(self, name: str) -> memoryview:
        """Return the bytes of one tensor; see `SafetensorsFile.raw`."""
        return self._home[name].raw(name)

    def prefetch(self, name: str) -> None:
        """Begin to read a tensor; see `Checkpoint.prefetch`."""
        self._home[name].prefetch(name)

    def release(self, name: str) -> None:
        """Give a tensor's memory back; see `Checkpoint.release`."""
        self._home[name].release(name)

    def shard_of(self, name: str) -> str | None:
        """Path of the file that holds the tensor `name`, None if none does."""
        shard = self._home.get(name)
        return None if shard is None else shard.source


def open_index(index: Path) -> ShardedSafetensors:
    """Open the shards that a ``*.safetensors.index.json`` file lists under ``weight_map``.

    Raises
    ------
    CheckpointError
        The index is malformed, a shard is missing, or a tensor is not in the shard the index names.
    """
    weight_map = weight_map_of(index)
    shards = [index.parent / file for file in dict.fromkeys(weight_map.values())]
    checkpoint = ShardedSafetensors(index, shards)
    paths = {file: str(index.parent / file) for file in weight_map.values()}
    for name, file in weight_map.items():
        if checkpoint.shard_of(name) != paths[file]:
            raise CheckpointError(f"{index}: tensor {name!r} is not in {file}, where the index puts it", tensor=name)
    return checkpoint
