"""Opening whatever holds the tensors of a model, and the list of formats that files of tensors have."""

from __future__ import annotations

import importlib
import os
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpfast.checkpoints.base import Checkpoint
from mpfast.checkpoints.directories import open_directory, refuse_pickled_pieces
from mpfast.checkpoints.quantised import dequantised
from mpfast.checkpoints.safetensors import is_safetensors
from mpfast.support import CheckpointError, check_path, front_door, restore_directory

__all__ = ["FORMATS", "Format", "format_of", "located", "open_checkpoint", "path_of"]


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
        opener: Callable[[Path], Checkpoint] = getattr(importlib.import_module(f"{__package__}.{module}"), name)
        return opener(path)


def _is_safetensors(path: Path, first: bytes) -> bool:
    return is_safetensors(first, path.stat().st_size)


def _is_gguf(path: Path, first: bytes) -> bool:
    return first.startswith(b"GGUF")


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
    Format((".safetensors",), "safetensors, memory-mapped", "distributed:open_whole_file", _is_safetensors),
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
    Format((".gguf",), "GGUF, its blocks decoded to float32", "gguf_file:GgufFile", _is_gguf),
)


def _address(path: str) -> str | None:
    """Return the address that a path was before one of its slashes was taken away; None for a path."""
    found = re.match("([A-Za-z][A-Za-z0-9+.-]+):/{1,2}(?=[^/])", path)
    return None if found is None else f"{found[1]}://{path[found.end() :]}"


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


def path_of(model: Any) -> Path | None:
    """Return where a model's files are: of a path, of a Hugging Face id in the local cache, or of an open checkpoint.

    None where `model` is in memory, or its files are not there.
    """
    if isinstance(model, str | os.PathLike):
        try:
            return located(model)
        except OSError:
            return None
    source = getattr(model, "source", None)
    if not isinstance(source, str) or not hasattr(model, "tensors"):
        return None
    try:
        return Path(source) if Path(source).exists() else None
    except (OSError, ValueError):  # no name that the system takes
        return None


def located(model: str | os.PathLike[str]) -> Path:
    """Return the path of a checkpoint that is named by its path, or by its Hugging Face id where the cache has it.

    Nothing is fetched: of ``org/name`` the snapshot is taken that ``refs/main`` of the local cache names, below
    ``HF_HUB_CACHE``, or ``hub`` in ``HF_HOME``, or ``~/.cache/huggingface/hub``; of ``org/name/unet`` what is called so
    in there. A path goes before an id.

    Raises
    ------
    FileNotFoundError
        There is neither such a path, nor such a model in the cache; or `model` is a URL.
    """
    text = os.fsdecode(model)
    path = Path(text)
    if path.exists() or restore_directory(path):
        return path
    address = _address(text)
    if address is not None:
        raise FileNotFoundError(f"{address}: nothing is fetched from the network; download it and pass the path")
    home = os.environ.get("HF_HOME") or Path("~/.cache/huggingface").expanduser()
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()
    found = _HUB_PATH.fullmatch(text)
    if found is not None and (cache / _folder(found["id"])).is_dir():
        inside = located(found["id"]) / found["inside"]
        if inside.exists():
            return inside
    if not _HUB_ID.fullmatch(text) or format_of(path) is not None:
        raise FileNotFoundError(f"{path}: no such file or directory")
    folder = cache / _folder(text)
    try:
        revision = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        why = "has no refs/main" if folder.is_dir() else "does not hold it"
        advice = f"hf download {text} puts it there" if folder.is_dir() else f"hf download {text}, or pass a path"
        raise FileNotFoundError(
            f"{text}: no such file or directory; as a Hugging Face id: the cache {cache} {why}; {advice}"
        ) from None
    snapshot = folder / "snapshots" / revision
    if not re.fullmatch(r"[\w.-]+", revision) or revision.strip(".") == "" or not snapshot.is_dir():
        raise FileNotFoundError(
            f"{text}: no such file or directory; the Hugging Face cache {cache} has no snapshot {revision[:64]!r} of "
            f"it; hf download {text} puts it there"
        )
    return snapshot


def _folder(hub_id: str) -> str:
    """What the cache calls the folder of a model."""
    return f"models--{hub_id.replace('/', '--')}"


# One or two names; the hub's own rule, and what would be a path with a suffix is none.
_ID = r"(?!.*(--|\.\.))[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}"
_HUB_ID = re.compile(_ID)
# What lies in a model: a component of a pipeline, a file.
_HUB_PATH = re.compile(rf"(?P<id>{_ID})/(?P<inside>[\w.-]+(/[\w.-]+)*)")
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_HTML = re.compile(rb"\s*<(!doctype\s+html|html|head|\?xml)\b", re.IGNORECASE)


def _refuse_what_only_looks_like_weights(path: Path) -> None:
    """Name the files that come in the place of weights, whatever their names are."""
    with path.open("rb") as file:
        first = file.read(256)
    if not first and path.is_file():
        raise CheckpointError(f"{path}: is empty; is the download complete?", offset=0)
    if first.startswith(_LFS_POINTER):
        size = re.search(rb"^size (\d+)", first, flags=re.MULTILINE)
        large = f" of {int(size[1][:20]):,} bytes" if size else ""
        raise CheckpointError(f"{path}: a Git LFS pointer to a file{large}, not the file; git lfs pull fetches it")
    if _HTML.match(first):
        raise CheckpointError(f"{path}: a web page, not a checkpoint; download the file itself, not the page about it")


@front_door
def open_checkpoint(model: Any, *, gather: Callable[[Any], Any] | None = None) -> Checkpoint:
    """Open whatever holds a model's tensors. Nothing but headers is read.

    Parameters
    ----------
    model : path, mapping of arrays, module or Checkpoint
        A file of one of the `FORMATS`; a directory of safetensors files, with or without an index; a Hugging Face
        model directory, or the id of a model in the local cache; a mapping from names to arrays of any framework
        (nested ones are flattened); or a live PyTorch, Keras or Flax model.
    gather : function, optional
        Makes the whole of a PyTorch DTensor of which this process holds a part, whenever the tensor is read: all
        processes must then read the same tensors in the same order. Without it such parts are refused.

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

    Notes
    -----
    Quantised weights are seen as the numbers that they stand for, and decoded as they are read; see `Dequantised`.

    Examples
    --------
    >>> import numpy as np
    >>> checkpoint = open_checkpoint({"head.weight": np.zeros((10, 64), np.float32)})
    >>> checkpoint.tensors
    (TensorInfo(name='head.weight', shape=(10, 64), dtype='float32'),)
    """
    if all(hasattr(model, attribute) for attribute in ("tensors", "read", "release", "source")):
        checkpoint: Checkpoint = model
        return checkpoint
    return dequantised(_as_stored(model, gather))


def _as_stored(model: Any, gather: Callable[[Any], Any] | None) -> Checkpoint:
    """Open what is no checkpoint yet, its tensors as they are stored."""
    if not isinstance(model, str | os.PathLike):
        from mpfast.checkpoints.mapping import ArrayMapping

        return ArrayMapping(model, gather)
    check_path(model, "model")
    path = located(model)
    if path.is_dir():
        return open_directory(path)
    refuse_pickled_pieces(path)
    _refuse_what_only_looks_like_weights(path)
    found = format_of(path)
    if found is None:
        known = ", ".join(suffix for format in FORMATS for suffix in format.suffixes)
        raise CheckpointError(f"{path}: unknown kind of file; one of these is expected: {known}")
    return found.open(path)
