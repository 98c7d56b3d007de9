"""What lies beside the weights of a model and goes along with a changed copy of it: configuration, tokenizer."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from mpfast.checkpoints.adapter_settings import ADAPTER_CONFIG
from mpfast.checkpoints.base import Checkpoint
from mpfast.checkpoints.opening import FORMATS
from mpfast.checkpoints.sharded import INDEX_SUFFIX
from mpfast.checkpoints.tensor_bits import as_stored, shards_of
from mpfast.support import MARK_FILE

__all__ = ["copy_companions", "home_directory", "index_name", "is_model_directory"]

# Of a model, and of an adapter.
_CONFIGURATIONS = ("config.json", ADAPTER_CONFIG)
DEFAULT_INDEX = "model.safetensors.index.json"
_INDEX_SUFFIXES = tuple(suffix for format in FORMATS for suffix in format.suffixes if suffix.endswith(".json"))
# Parts of names, between dots, of files that hold weights: beside a changed checkpoint they would be stale, whatever
# else is in the name ("model.safetensors.bak", "pytorch_model.bin.1", "model.onnx.data").
_WEIGHTS = frozenset(
    part
    for format in FORMATS
    for suffix in format.suffixes
    for part in [suffix.strip(".").partition(".")[0]]
    if not suffix.endswith(".json")
)
_OTHER_WEIGHTS = """
blob caffemodel dduf distcp dlc dnn engine ggml ggmf ggjt gguf h5 hdf5 hef hlo jit joblib keras llamafile
mar mlmodel mlpackage mnn msgpack ncnn nemo nnef onnx_data ort ot params parquet part pb pdiparams pdmodel
pdopt pdparams pickle pkl plan pt2 pte ptl qnn rknn sft t7 tflite tgz torchscript trt uff weight weights zst
"""
_ARCHIVES = frozenset(("7z", "bz2", "gz", "rar", "tar", "xz", "zip"))
# TensorFlow's checkpoints come in "variables.data-00000-of-00001" and "variables.index".
_WEIGHT_PREFIXES = ("data-",)
# How files of weights begin, whatever they are called: PyTorch's and NumPy's archives, GGUF and its elders, HDF5,
# NumPy; and pickles.
_MAGIC = (b"PK\x03\x04", b"GGUF", b"ggml", b"tjgg", b"fmgg", b"lmgg", b"\x89HDF\r\n", b"\x93NUMPY")
_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_SAFETENSORS_PREFIX = 9
# What mpfast wrote of the source is not true of what it writes now.
_OURS = ("budget.json", "masks.safetensors", "reconstruction.json")


def index_name(checkpoint: Checkpoint) -> str:
    """Name of the index of several files: the source's, or ``model.safetensors.index.json``."""
    name = Path(checkpoint.source).name
    return name if name.endswith(INDEX_SUFFIX) else DEFAULT_INDEX


def is_model_directory(directory: Path) -> bool:
    """Whether the configuration of a model, or of an adapter, lies in a directory."""
    return any((directory / name).exists() for name in _CONFIGURATIONS)


def home_directory(checkpoint: Checkpoint) -> Path | None:
    """Return the model directory that a checkpoint comes from; None for a file of its own or what is in memory."""
    shards = shards_of(as_stored(checkpoint))
    try:
        source = shards[0].path.parent if shards else Path(checkpoint.source)
        if not shards and not source.exists():
            return None
        directory = source if source.is_dir() else source.parent
        if len(shards) > 1 or source.name.endswith(_INDEX_SUFFIXES) or is_model_directory(directory):
            return directory
    except (OSError, ValueError):  # no name that the system takes
        pass
    return None


def copy_companions(checkpoint: Checkpoint, target: Path, *, leave_out: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Copy every file beside the weights that is not weights itself; hidden ones stay.

    Parameters
    ----------
    checkpoint
        The source.
    target
        The directory to copy to.
    leave_out
        Names of files that are not wanted, wherever they lie.

    Returns
    -------
    tuple of str
        What was not copied and why, a sentence each: other forms of the same weights, and symbolic links that lead out
        of the directory, which are not followed, but for the index of the files. Links of a Hugging Face cache into the
        blobs of the same repository are. What a `DenseCopy` has another text of is written as it says.
    """
    directory = home_directory(checkpoint)
    if directory is None:
        return ()
    shards = shards_of(as_stored(checkpoint))
    left_out = dict.fromkeys(leave_out, "") | getattr(checkpoint, "left_out", {})
    documents: Mapping[str, str] = getattr(checkpoint, "documents", {})
    written = {shard.path.name for shard in shards}
    index = index_name(checkpoint) if len(shards) > 1 else None
    left = []
    for path in _files(directory):
        relative = path.relative_to(directory)
        if any(part.startswith(".") for part in relative.parts) or path.name in (*_OURS, *left_out):
            if left_out.get(path.name):
                left.append(f"{relative.as_posix()}: {left_out[path.name]}")
            continue
        if str(relative) in written or (shards == [] and str(relative) == Path(checkpoint.source).name):
            continue
        if path.name.endswith(_INDEX_SUFFIXES) and str(relative) != index:
            continue  # of files that are not written: whoever opened the directory would look for them
        # The index has been read as one, wherever a link to it leads, and without it the files are no model.
        reason = "" if str(relative) == index else _link_reason(path, directory) or _weights_reason(path, directory)
        if reason:
            left.append(f"{relative.as_posix()}: {reason}")
            continue
        if path.is_file():
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path.resolve(), target / relative)
    for name, text in documents.items():
        if name not in left_out:
            (target / name).write_text(text, encoding="utf-8")
    return tuple(left)


def _files(directory: Path) -> Iterator[Path]:
    """All files below a directory, and links to directories, which are not entered."""
    for folder, folders, files in os.walk(directory):
        links = [name for name in folders if Path(folder, name).is_symlink()]
        # Not into what mpfast wrote there: the older output, for one, that is about to be replaced.
        ours = [name for name in folders if (Path(folder, name) / MARK_FILE).is_file()]
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in (*links, *ours))
        yield from (Path(folder, name) for name in sorted([*files, *links]))


def _link_reason(path: Path, directory: Path) -> str:
    """Say why a symbolic link is not followed; nothing where it is, or is none."""
    if path.is_symlink():
        try:
            place = path.resolve(strict=True)
        except (OSError, RuntimeError):  # leads nowhere, or in a circle
            return "a link that leads nowhere"
        if not _is_own(place, directory.resolve()):
            return "a link that leaves the model's directory: not followed"
        if not place.is_file():
            return "a link to a directory: not followed"
    return ""


def _weights_reason(path: Path, directory: Path) -> str:
    """Say why a file looks like one of weights; nothing where it does not."""
    # Of the folders' names, too: some forms are directories.
    names = path.relative_to(directory).parts
    parts = {part.rstrip("~") for name in names for part in name.lower().split(".")[1:]}
    known = {*_WEIGHTS, *_OTHER_WEIGHTS.split()}
    if not parts.isdisjoint(known) or any(part.startswith(_WEIGHT_PREFIXES) for part in parts):
        return "holds weights in another form, which would be stale"
    if not parts.isdisjoint(_ARCHIVES):
        return "an archive, which may hold weights"
    return "holds weights, by how it begins" if path.is_file() and _begins_like_weights(path) else ""


def _is_own(place: Path, directory: Path) -> bool:
    """Whether a place lies in the directory, unhidden, or is a blob of the same repository in a Hugging Face cache."""
    if place.is_relative_to(directory):
        return not any(part.startswith(".") for part in place.relative_to(directory).parts)
    # <repository>/snapshots/<revision>/... links to <repository>/blobs/<hash>.
    repositories = (parent.parent for parent in (directory, *directory.parents) if parent.name == "snapshots")
    return any(place.parent == repository / "blobs" for repository in repositories)


def _begins_like_weights(path: Path) -> bool:
    with path.open("rb") as stream:
        begin = stream.read(16)
        size = os.fstat(stream.fileno()).st_size
    if begin.startswith((*_MAGIC, *_PICKLES)):
        return True
    # A safetensors file: the length of its header, which is a JSON object.
    header = int.from_bytes(begin[:8], "little")
    return begin[8:_SAFETENSORS_PREFIX] == b"{" and 2 <= header <= size - 8
