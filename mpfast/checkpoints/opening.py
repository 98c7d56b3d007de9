"""Opening whatever holds the tensors of a model, and the list of formats that files of tensors have."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from mpfast.checkpoints.base import Checkpoint
from mpfast.support import CheckpointError, restore_directory

__all__ = ["FORMATS", "Format", "format_of", "open_checkpoint"]


@dataclass(frozen=True)
class Format:
    """A format that is read.

    Attributes
    ----------
    suffixes : tuple of str
        How the names of such files end, in lower case.
    description : str
        What the files are.
    opener : str
        The function from a path to a `Checkpoint`, ``"module:name"`` in this room: a reader, and the library that it
        may need, is loaded when a file asks for it.
    """

    suffixes: tuple[str, ...]
    description: str
    opener: str

    def open(self, path: Path) -> Checkpoint:
        """Open a file of this format."""
        module, _, name = self.opener.partition(":")
        opener = getattr(importlib.import_module(f"{__package__}.{module}"), name)
        return cast(Callable[[Path], Checkpoint], opener)(path)


#: Every format, once: what is opened, what error messages and the documentation name.
FORMATS = (
    Format((".safetensors",), "safetensors, memory-mapped", "safetensors:SafetensorsFile"),
    Format((".safetensors.index.json",), "the index of a safetensors checkpoint in shards", "sharded:open_index"),
    Format((".npz",), "arrays that `numpy.savez` wrote", "numpy_files:NpzFile"),
    Format((".npy",), "one array that `numpy.save` wrote", "numpy_files:NpyFile"),
    Format(
        (".pt", ".pth", ".bin", ".ckpt"),
        "a PyTorch state dictionary: tensors only, nothing else is unpickled",
        "torch_state:open_torch_file",
    ),
    Format((".bin.index.json",), "the index of a PyTorch checkpoint in shards", "torch_state:open_torch_index"),
    Format((".onnx",), "the initialisers of an ONNX model", "onnx_file:OnnxFile"),
)


def _address(path: str) -> str | None:
    """Return the address that a path was before one of its slashes was taken away; None for a path."""
    found = re.match("([A-Za-z][A-Za-z0-9+.-]+):/{1,2}(?=[^/])", path)
    return None if found is None else f"{found[1]}://{path[found.end() :]}"


def format_of(path: Path) -> Format | None:
    """Return the format that the name of a file says it has; None if none is known."""
    name = path.name.lower()
    return next((format for format in FORMATS if name.endswith(format.suffixes)), None)


def open_checkpoint(model: Any, function: str = "open_checkpoint") -> Checkpoint:
    """Open whatever holds a model's tensors. Nothing but headers is read.

    Parameters
    ----------
    model : path, mapping of arrays, module or Checkpoint
        A file of one of the `FORMATS`; a directory of safetensors files, with or without an index; a Hugging Face
        model directory; a mapping from names to arrays of any framework (nested ones are flattened); or a live PyTorch,
        Keras or Flax model.
    function : str
        Whom error messages name.

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

        return ArrayMapping(model, function)
    path = Path(os.fsdecode(model))
    if not path.exists():
        if (address := _address(str(path))) is not None:
            raise FileNotFoundError(
                f"{address}: is an address, and nothing is fetched from a network; download it first"
            )
        if not restore_directory(path):
            raise FileNotFoundError(f"{path}: no such file or directory")
    if path.is_dir():
        from mpfast.checkpoints.sharded import open_directory

        return open_directory(path)
    found = format_of(path)
    if found is None:
        known = ", ".join(suffix for format in FORMATS for suffix in format.suffixes)
        raise CheckpointError(f"{path}: unknown kind of file; one of these is expected: {known}")
    return found.open(path)
