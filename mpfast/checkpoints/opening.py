"""Opening whatever holds the tensors of a model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mpfast.checkpoints.base import Checkpoint
from mpfast.support import CheckpointError, front_door

__all__ = ["open_checkpoint"]

_TORCH_SUFFIXES = {".bin", ".pt", ".pth", ".ckpt"}


@front_door
def open_checkpoint(model: Any) -> Checkpoint:
    """Open whatever holds a model's tensors. Nothing but headers is read.

    Parameters
    ----------
    model : path, mapping of arrays, module or Checkpoint
        A ``.safetensors``, ``.npz``, ``.npy`` or ``.onnx`` file; a PyTorch state dictionary; a directory of
        safetensors files or its ``*.safetensors.index.json``; a Hugging Face model directory; a mapping from names to
        arrays of any framework (nested ones are flattened); or a live PyTorch, Keras or Flax model.

    Raises
    ------
    FileNotFoundError
        The path does not exist.
    CheckpointError
        The file is malformed or of a kind that is not read.
    TypeError
        `model` is none of the above.
    ValueError
        Two arrays of a mapping come out with the same name.

    Examples
    --------
    >>> import numpy as np
    >>> checkpoint = open_checkpoint({"head.weight": np.zeros((10, 64), np.float32)})
    >>> checkpoint.tensors
    (TensorInfo(name='head.weight', shape=(10, 64), dtype='float32'),)
    """
    if all(hasattr(model, attribute) for attribute in ("tensors", "read", "release", "source")):
        return model  # type: ignore[no-any-return]
    if not isinstance(model, str | os.PathLike):
        from mpfast.checkpoints.mapping import ArrayMapping

        return ArrayMapping(model)
    path = Path(os.fsdecode(model))
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or directory")
    return _open_path(path)


def _open_path(path: Path) -> Checkpoint:
    suffix = path.suffix.lower()
    if path.is_dir():
        from mpfast.checkpoints.sharded import open_directory

        return open_directory(path)
    if path.name.endswith(".safetensors.index.json"):
        from mpfast.checkpoints.sharded import open_index

        return open_index(path)
    if suffix == ".safetensors":
        from mpfast.checkpoints.safetensors import SafetensorsFile

        return SafetensorsFile(path)
    if suffix in (".npy", ".npz"):
        from mpfast.checkpoints.numpy_files import NpyFile, NpzFile

        return NpyFile(path) if suffix == ".npy" else NpzFile(path)
    if suffix == ".onnx":
        from mpfast.checkpoints.onnx_file import OnnxFile

        return OnnxFile(path)
    if suffix in _TORCH_SUFFIXES or path.name.endswith(".bin.index.json"):
        from mpfast.checkpoints.torch_state import TorchState, open_torch_index

        return open_torch_index(path) if suffix == ".json" else TorchState(path, [path])
    raise CheckpointError(
        f"{path}: unknown kind of file; a .safetensors, .npz, .npy, .onnx or PyTorch file is expected"
    )
