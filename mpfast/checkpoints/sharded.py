"""Directories of safetensors files, with or without an index."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mpfast.checkpoints.base import Checkpoint, NoTensor, TensorInfo
from mpfast.checkpoints.families import read_config
from mpfast.checkpoints.safetensors import SafetensorsFile, is_safetensors
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
    """Open the checkpoint in `directory`, the one that transformers would load.

    That is, in this order, ``model.safetensors``, its index, ``pytorch_model.bin`` and its index; after the first two
    any other index, and all safetensors files together. What is passed over is named in `others`.

    Raises
    ------
    CheckpointError
        No or several checkpoints are in the directory, or one is malformed.
    """
    # Masks lie beside the weights that they belong to.
    files = sorted(
        path for path in directory.glob("*.safetensors") if path.name != "masks.safetensors" and path.is_file()
    )
    indices = sorted(directory.glob("*" + INDEX_SUFFIX))
    whole, index = directory / "model.safetensors", directory / f"model{INDEX_SUFFIX}"
    if whole in files:
        file = SafetensorsFile(whole)
        file.others = _passed_over([path for path in (*files, *indices) if path != whole])
        return file
    chosen = index if index in indices else indices[0] if len(indices) == 1 else None
    if chosen is not None:
        shards = open_index(chosen)
        members = {shard.path for shard in shards.shards}
        shards.others = _passed_over([path for path in (*files, *indices) if path != chosen and path not in members])
        return shards
    if indices:
        names = ", ".join(path.name for path in indices)
        raise CheckpointError(f"{directory}: holds several checkpoints ({names}); pass the index that is meant")
    if not files:
        return _open_torch_directory(directory)
    return SafetensorsFile(files[0]) if len(files) == 1 else ShardedSafetensors(directory, files)


def _passed_over(paths: Iterable[Path]) -> tuple[NoTensor, ...]:
    reason = "another checkpoint in the directory: pass its path if it is meant"
    return tuple(NoTensor(path.name, "file", reason) for path in paths)


def _open_torch_directory(directory: Path) -> Checkpoint:
    from mpfast.checkpoints.torch_state import TorchState, open_torch_index

    for name in ("pytorch_model.bin", "adapter_model.bin"):
        if (directory / name).is_file():
            return TorchState(directory, [directory / name])
    if (directory / "pytorch_model.bin.index.json").is_file():
        return open_torch_index(directory / "pytorch_model.bin.index.json")
    # A file that was downloaded under the hash of its content, and what is written from one.
    blobs = [
        path for path in sorted(directory.iterdir()) if not path.suffix and path.is_file() and _is_safetensors(path)
    ]
    if len(blobs) == 1:
        return SafetensorsFile(blobs[0])
    parts = sorted({path.parent.name for path in directory.glob("*/*.safetensors")})
    advice = f"pass one of its parts: {', '.join(parts)}" if parts else "pass the path of the checkpoint file"
    raise CheckpointError(f"{directory}: holds no .safetensors file; {advice}")


def _is_safetensors(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return is_safetensors(stream.read(10), path.stat().st_size)
    except OSError:
        return False


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
