"""What `narrow` writes: smaller tensors in their places, a configuration that says so, all else as it was."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mpfast.checkpoints import (
    Checkpoint,
    SafetensorsWriter,
    SourceFiles,
    TensorInfo,
    content_hash,
    copy_companions,
    files_behind,
    files_of,
    shards_of,
    stored,
    stored_chunks,
    write_index,
)
from mpfast.models.joints import Joint, Joints
from mpfast.models.narrow_fits import NarrowedLayer, NarrowedReader
from mpfast.models.output_mark import mark_output
from mpfast.support import OutputDirectory

__all__ = ["narrowed_shapes", "write_narrowed"]

CONFIGURATION = "config.json"


def narrowed_shapes(checkpoint: Checkpoint, found: Sequence[Joints]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors by name, as they are to be."""
    shapes = {info.name: info.shape for info in checkpoint.tensors}
    for joints in found:
        for joint in joints.all:
            shapes |= joint.shapes(joints.units, joints.kept)
    return shapes


def write_narrowed(
    checkpoint: Checkpoint,
    place: OutputDirectory,
    found: Sequence[Joints],
    fitted: Callable[[Joints, Joint], NarrowedReader],
) -> tuple[tuple[NarrowedLayer, ...], tuple[str, ...]]:
    """Write the smaller model, all or nothing; the tensors of one block are in memory at a time.

    Parameters
    ----------
    checkpoint
        The source.
    place
        Where to write.
    found
        What is to go.
    fitted
        Gives a matrix that reads what stays.

    Returns
    -------
    layers : tuple of NarrowedLayer
    left : tuple of str
        What lies beside the weights and was not copied, and why.
    """
    source = SourceFiles(files_behind(checkpoint))
    shapes, files = narrowed_shapes(checkpoint, found), files_of(checkpoint)
    infos = {info.name: TensorInfo(info.name, shapes[info.name], info.dtype) for info in checkpoint.tensors}
    headers = {shard.path.name: shard.metadata for shard in shards_of(checkpoint)}
    home = {name: file for file, names in files.items() for name in names}
    layers: list[NarrowedLayer] = []
    written: dict[str, str] = {}
    with place.staged() as staging:
        with contextlib.ExitStack() as stack:
            writers = {}
            for file, names in files.items():
                header = headers.get(file, {"format": "pt"})
                writer = SafetensorsWriter.create(staging / file, [infos[name] for name in names], header)
                writers[file] = stack.enter_context(writer)

            def write(name: str, tensor: Any) -> None:
                writers[home[name]].write(name, tensor)
                written[name] = content_hash(tensor)

            for joints in found:
                for joint in joints.all:
                    reader = fitted(joints, joint)
                    layers.append(reader.layer)
                    write(joint.reader.file_name, reader.weights)
                    for part in joint.writers:
                        tensor = stored(checkpoint.read(part.info.name), part.info.name)
                        write(part.info.name, part.narrowed(tensor, joints.units, reader.layer.kept))
                        checkpoint.release(part.info.name)
            for writer in writers.values():
                for name in writer.missing:
                    writer.write_chunks(name, stored_chunks(checkpoint, name))
                    checkpoint.release(name)
        left = copy_companions(checkpoint, staging)
        settings = {name: value for joints in found for name, value in joints.settings.items()}
        _write_settings(staging / CONFIGURATION, settings)
        write_index(checkpoint, staging, files)
        source.check()
        listed = [
            {"name": layer.name, "kind": layer.kind, "units": layer.units, "kept": list(layer.kept)} for layer in layers
        ]
        mark_output(staging, "narrow", checkpoint, layers=listed, settings=settings, written=written)
    return tuple(layers), left


def _write_settings(path: Path, settings: dict[str, int]) -> None:
    """Have a configuration, as it was copied, say other sizes."""
    config = json.loads(path.read_text(encoding="utf-8")) | settings
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
