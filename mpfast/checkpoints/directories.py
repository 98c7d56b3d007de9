"""Directories: which of the checkpoints in one is meant, or what to pass instead."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

from mpfast.checkpoints.base import Checkpoint, NoTensor
from mpfast.checkpoints.distributed import DistributedSafetensors, is_distributed
from mpfast.checkpoints.safetensors import SafetensorsFile, is_safetensors
from mpfast.checkpoints.sharded import INDEX_SUFFIX, ShardedSafetensors, open_index
from mpfast.support import CheckpointError, parse_json

__all__ = ["open_directory", "refuse_pickled_pieces"]

# What transformers and diffusers call the file of the weights that they load, and its index.
_STEMS = ("model", "diffusion_pytorch_model")
_TORCH_FILES = ("pytorch_model.bin", "adapter_model.bin", "diffusion_pytorch_model.bin")
# Diffusers' list of the components of a pipeline, each in a directory of its own.
_PIPELINE = "model_index.json"
# PyTorch's distributed checkpoints: the index, which is a pickle, and the pieces.
_DCP_INDEX, _DCP_SUFFIX = ".metadata", ".distcp"


def open_directory(directory: Path) -> Checkpoint:
    """Open the checkpoint in `directory`, the one that transformers or diffusers would load.

    That is, in this order, ``model.safetensors``, its index, the same of ``diffusion_pytorch_model``,
    ``pytorch_model.bin`` and its index; after the former any other index, and all safetensors files together. What is
    passed over is named in `others`.

    Raises
    ------
    CheckpointError
        No or several checkpoints are in the directory, one is malformed, or the directory is a pipeline or holds
        PyTorch's distributed format.
    """
    # Masks lie beside the weights that they belong to.
    files = sorted(
        path for path in directory.glob("*.safetensors") if path.name != "masks.safetensors" and path.is_file()
    )
    indices = sorted(directory.glob("*" + INDEX_SUFFIX))
    usual = [directory / f"{stem}{suffix}" for stem in _STEMS for suffix in (".safetensors", INDEX_SUFFIX)]
    chosen = next((path for path in usual if path in files or path in indices), None)
    if chosen is None and len(indices) == 1:
        chosen = indices[0]
    if chosen is not None and chosen in files:
        file = SafetensorsFile(chosen)
        file.others = _passed_over(path for path in (*files, *indices) if path != chosen)
        return file
    if chosen is not None:
        shards = open_index(chosen)
        members = {shard.path for shard in shards.shards}
        shards.others = _passed_over(path for path in (*files, *indices) if path != chosen and path not in members)
        return shards
    if indices:
        names = ", ".join(path.name for path in indices)
        raise CheckpointError(f"{directory}: holds several checkpoints ({names}); pass the index that is meant")
    if not files:
        return _open_without_safetensors(directory)
    if is_distributed(files):
        return DistributedSafetensors(directory, files)
    return SafetensorsFile(files[0]) if len(files) == 1 else ShardedSafetensors(directory, files)


def refuse_pickled_pieces(path: Path) -> None:
    """Raise CheckpointError where a file or directory is of PyTorch's distributed format; it is never unpickled."""
    directory = path if path.is_dir() else path.parent
    is_part = not path.is_dir() and (path.name == _DCP_INDEX or path.suffix == _DCP_SUFFIX)
    if is_part or (path.is_dir() and (path / _DCP_INDEX).is_file()) or (path.is_dir() and any(path.glob("*.distcp"))):
        target = f"{directory.resolve().name}.pt"
        line = f"dcp_to_torch {shlex.quote(str(directory))} {shlex.quote(target)}"
        raise CheckpointError(
            f"{path}: a distributed checkpoint of PyTorch (DCP), whose index is a pickle and is never loaded; this "
            f"makes one file of it: python -m torch.distributed.checkpoint.format_utils {line}"
        )


def _passed_over(paths: Iterable[Path]) -> tuple[NoTensor, ...]:
    reason = "another checkpoint in the directory: pass its path if it is meant"
    return tuple(NoTensor(path.name, "file", reason) for path in paths)


def _open_without_safetensors(directory: Path) -> Checkpoint:
    from mpfast.checkpoints.torch_state import TorchState, open_torch_index

    for name in _TORCH_FILES:
        if (directory / name).is_file():
            return TorchState(directory, [directory / name])
    if (directory / "pytorch_model.bin.index.json").is_file():
        return open_torch_index(directory / "pytorch_model.bin.index.json")
    refuse_pickled_pieces(directory)
    # A file that was downloaded under the hash of its content, and what is written from one.
    blobs = [
        path for path in sorted(directory.iterdir()) if not path.suffix and path.is_file() and _is_safetensors(path)
    ]
    if len(blobs) == 1:
        return SafetensorsFile(blobs[0])
    components = _components(directory)
    if components:
        raise CheckpointError(
            f"{directory}: a pipeline of Diffusers; pass the directory of one of its components: "
            + ", ".join(f"{name} ({kind})" for name, kind in components.items())
        )
    parts = sorted({path.parent.name for path in directory.glob("*/*.safetensors")})
    advice = f"pass one of its parts: {', '.join(parts)}" if parts else "pass the path of the checkpoint file"
    raise CheckpointError(f"{directory}: holds no .safetensors file; {advice}")


def _components(directory: Path) -> dict[str, str]:
    """The components of a pipeline that have weights, and their classes; none where it is no pipeline."""
    try:
        found = parse_json((directory / _PIPELINE).read_bytes())
    except (OSError, ValueError):
        return {}
    components = {}
    for name, entry in found.items() if isinstance(found, dict) else ():
        # [library, class]; whatever else is a setting of the pipeline.
        named = isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)
        if named and Path(name).name == name and _has_weights(directory / name):
            components[name] = entry[1]
    return components


def _has_weights(directory: Path) -> bool:
    return any(path.is_file() for pattern in ("*.safetensors", "*.bin") for path in directory.glob(pattern))


def _is_safetensors(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            return is_safetensors(stream.read(10), path.stat().st_size)
    except OSError:
        return False
