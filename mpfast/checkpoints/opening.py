"""Opening whatever holds the tensors of a model, and the list of formats that files of tensors have."""

from __future__ import annotations

import importlib
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from mpfast.checkpoints.base import Checkpoint
from mpfast.checkpoints.safetensors import is_safetensors
from mpfast.support import CheckpointError, front_door

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
    begins : function, optional
        Whether a file, of which the first bytes are given, is of this format whatever it is called. None where that
        shows in the name alone.
    """

    suffixes: tuple[str, ...]
    description: str
    opener: str
    begins: Callable[[Path, bytes], bool] | None = None

    def open(self, path: Path) -> Checkpoint:
        """Open a file of this format."""
        module, _, name = self.opener.partition(":")
        opener = getattr(importlib.import_module(f"{__package__}.{module}"), name)
        return cast(Callable[[Path], Checkpoint], opener)(path)


def _is_safetensors(path: Path, first: bytes) -> bool:
    return is_safetensors(first, path.stat().st_size)


def _is_npy(path: Path, first: bytes) -> bool:
    return first.startswith(b"\x93NUMPY")


def _is_npz(path: Path, first: bytes) -> bool:
    names = _members(path, first)
    return bool(names) and any(name.endswith(".npy") for name in names) and not _is_torch(path, first)


def _is_torch(path: Path, first: bytes) -> bool:
    # An archive with the pickle of the dictionary in it, or before PyTorch 1.6 the pickle of a number that is theirs.
    return first.startswith(_TORCH_MAGIC) or any(
        name.rpartition("/")[2] == "data.pkl" for name in _members(path, first)
    )


def _members(path: Path, first: bytes) -> list[str]:
    """Names in a zip archive; none where it is no archive, or a damaged one."""
    if not first.startswith(b"PK\3\4"):
        return []
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except Exception:  # zipfile raises its own, struct.error and others, by where the damage is
        return []


_FIRST_BYTES = 16
_TORCH_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"

#: Every format, once: what is opened, what error messages and the documentation name.
FORMATS = (
    Format((".safetensors",), "safetensors, memory-mapped", "safetensors:SafetensorsFile", _is_safetensors),
    Format((".safetensors.index.json",), "the index of a safetensors checkpoint in shards", "sharded:open_index"),
    Format((".npz",), "arrays that `numpy.savez` wrote", "numpy_files:NpzFile", _is_npz),
    Format((".npy",), "one array that `numpy.save` wrote", "numpy_files:NpyFile", _is_npy),
    Format(
        (".pt", ".pth", ".bin", ".ckpt", ".pth.tar"),
        "a PyTorch state dictionary: tensors only, nothing else is unpickled",
        "torch_state:open_torch_file",
        _is_torch,
    ),
    Format((".bin.index.json",), "the index of a PyTorch checkpoint in shards", "torch_state:open_torch_index"),
    Format((".onnx",), "the initialisers and constants of an ONNX model", "onnx_file:OnnxFile"),
)


def format_of(path: Path) -> Format | None:
    """Return the format of a file by its first bytes, or else by its name; None if none is known."""
    try:
        with path.open("rb") as stream:
            first = stream.read(_FIRST_BYTES)
    except OSError:
        first = b""
    for format in FORMATS:
        if first and format.begins is not None and format.begins(path, first):
            return format
    name = path.name.lower()
    return next((format for format in FORMATS if name.endswith(format.suffixes)), None)


@front_door
def open_checkpoint(model: Any) -> Checkpoint:
    """Open whatever holds a model's tensors. Nothing but headers is read.

    Parameters
    ----------
    model : path, mapping of arrays, module or Checkpoint
        A file of one of the `FORMATS`; a directory of safetensors files, with or without an index; a Hugging Face
        model directory; a mapping from names to arrays of any framework (nested ones are flattened); or a live PyTorch,
        Keras or Flax model.

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
    if path.is_dir():
        from mpfast.checkpoints.sharded import open_directory

        return open_directory(path)
    found = format_of(path)
    if found is None:
        known = ", ".join(suffix for format in FORMATS for suffix in format.suffixes)
        raise CheckpointError(f"{path}: unknown kind of file; one of these is expected: {known}")
    return found.open(path)
