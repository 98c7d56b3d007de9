"""Directories of safetensors files, with or without an index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mpfast.checkpoints.base import Checkpoint, TensorInfo
from mpfast.checkpoints.safetensors import SafetensorsFile
from mpfast.checkpoints.shard_index import weight_map_of
from mpfast.support import CheckpointError

__all__ = ["ShardedSafetensors", "open_directory"]

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
    """

    def __init__(self, source: Path, shards: list[Path]) -> None:
        self._source = source
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
    def tensors(self) -> tuple[TensorInfo, ...]:
        """All tensors, shard after shard."""
        return tuple(self._tensors)

    def read(self, name: str) -> Any:
        """Return one tensor; see `SafetensorsFile.read`."""
        return self._home[name].read(name)

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


def open_directory(directory: Path) -> Checkpoint:
    """Open the checkpoint in `directory`: by its index if it has one, else all its safetensors files.

    Where there are none, PyTorch's files of a Hugging Face model directory are opened.

    Raises
    ------
    CheckpointError
        No or several checkpoints are in the directory, or one is malformed.
    """
    indices = sorted(directory.glob("*" + INDEX_SUFFIX))
    if len(indices) == 1:
        return open_index(indices[0])
    if indices:
        names = ", ".join(path.name for path in indices)
        raise CheckpointError(f"{directory}: holds several checkpoints ({names}); pass the index that is meant")
    # Masks lie beside the weights that they belong to.
    files = sorted(
        path for path in directory.glob("*.safetensors") if path.name != "masks.safetensors" and path.is_file()
    )
    if not files:
        return _open_torch_directory(directory)
    return SafetensorsFile(files[0]) if len(files) == 1 else ShardedSafetensors(directory, files)


def _open_torch_directory(directory: Path) -> Checkpoint:
    from mpfast.checkpoints.torch_state import TorchState, open_torch_index

    if (directory / "pytorch_model.bin.index.json").is_file():
        return open_torch_index(directory / "pytorch_model.bin.index.json")
    if (directory / "pytorch_model.bin").is_file():
        return TorchState(directory, [directory / "pytorch_model.bin"])
    raise CheckpointError(f"{directory}: holds no .safetensors file; pass the path of the checkpoint file")


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
    for name, file in weight_map.items():
        if checkpoint.shard_of(name) != str(index.parent / file):
            raise CheckpointError(f"{index}: tensor {name!r} is not in {file}, where the index puts it", tensor=name)
    return checkpoint
