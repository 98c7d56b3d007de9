"""What `compress` writes of a model: truncated matrices in their places, or factors for `load_factors`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast import _core
from mpfast.arrays import narrowed
from mpfast.checkpoints import (
    Checkpoint,
    CheckpointOutput,
    Layer,
    SafetensorsWriter,
    SourceFiles,
    TensorInfo,
    copy_companions,
    files_behind,
    files_of,
    stored_chunks,
    write_index,
)
from mpfast.models.factoring import FactoredLayer, Factoring, Factors
from mpfast.support import InvalidValueError

__all__ = ["FACTORS_FORMAT", "check_factor_names", "stored_as", "write_dense", "write_factors"]

FACTORS_FORMAT = "mpfast.factors/1"
# What makes other libraries load a directory as a model: of one with factors they would initialise what they miss.
_CONFIGURATIONS = ("config.json", "model_index.json", "adapter_config.json")
# Entries of a truncated matrix that are in memory at a time.
CHUNK_ENTRIES = 1 << 22


def write_dense(
    factoring: Factoring, chosen: Sequence[Layer], staging: Path
) -> tuple[tuple[FactoredLayer, ...], tuple[str, ...]]:
    """Write the checkpoint with truncated matrices under the same names, all else as it was.

    Returns
    -------
    layers : tuple of FactoredLayer
    left : tuple of str
        What lies beside the weights and was not copied, and why.
    """
    reports = []
    with CheckpointOutput(factoring.checkpoint, staging) as output:
        for layer in chosen:
            found = factoring.factored(layer)
            if found is not None:
                report, left, right = found
                output.write(layer.name, _product(left, right, layer.dtype, factoring.threads))
                reports.append(report)
        return tuple(reports), output.finish()


def _product(left: NDArray[Any], right: NDArray[Any], dtype: str, threads: int) -> Iterator[memoryview]:
    """Yield the bytes of ``left @ right``, formed in float64, some rows at a time."""
    step = max(1, CHUNK_ENTRIES // right.shape[1])
    wide = right.astype(np.float64)
    for at in range(0, len(left), step):
        rows = stored_as(_core.dense_product(left[at : at + step].astype(np.float64), wide, threads), dtype)
        yield np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data


def check_factor_names(checkpoint: Checkpoint, chosen: Sequence[Layer]) -> None:
    """Raise InvalidValueError where the factors would have the name of another tensor."""
    names = {info.name for info in checkpoint.tensors}
    for layer in chosen:
        for factor in (f"{layer.name}_A", f"{layer.name}_B"):
            if factor in names:
                raise InvalidValueError(
                    "",
                    f"{layer.name}: cannot be split, for the model has a tensor {factor} already",
                    f"leave it out: exclude={layer.name!r}",
                )


def write_factors(
    factoring: Factoring, chosen: Sequence[Layer], staging: Path
) -> tuple[tuple[FactoredLayer, ...], tuple[str, ...]]:
    """Write one file for every file of the source, with factors for matrices, for `load_factors`; as `write_dense`.

    The factors of one file are in memory at a time. No configuration is copied: other libraries would take the
    directory for a model of theirs and fill what they do not find with random numbers.
    """
    checkpoint = factoring.checkpoint
    source = SourceFiles(files_behind(checkpoint))
    wanted = {layer.name: layer for layer in chosen}
    reports: list[FactoredLayer] = []
    written: dict[str, list[str]] = {}
    files = files_of(checkpoint)
    for file, names in files.items():
        factors = {name: found for name in names if name in wanted and (found := factoring.factored(wanted[name]))}
        tensors = _write_file(checkpoint, staging / file, names, factors)
        written[file] = [tensor.name for tensor in tensors]
        reports += [found[0] for found in factors.values()]
    left = copy_companions(checkpoint, staging, leave_out=_CONFIGURATIONS)
    write_index(checkpoint, staging, written)
    source.check()
    return tuple(reports), left


def _write_file(
    checkpoint: Checkpoint, path: Path, names: Sequence[str], factors: Mapping[str, Factors]
) -> list[TensorInfo]:
    """Write these tensors, factored ones as two; return what was written."""
    infos = {info.name: info for info in checkpoint.tensors}
    tensors: list[TensorInfo] = []
    for name in names:
        if name in factors:
            _, left, right = factors[name]
            tensors.append(TensorInfo(f"{name}_A", left.shape, infos[name].dtype))
            tensors.append(TensorInfo(f"{name}_B", right.shape, infos[name].dtype))
        else:
            tensors.append(infos[name])
    listed = {name: {"shape": infos[name].shape, "rank": found[0].rank} for name, found in factors.items()}
    metadata = {"format": "pt", "mpfast": FACTORS_FORMAT, "factors": json.dumps(listed)}
    with SafetensorsWriter.create(path, tensors, metadata) as writer:
        for name in names:
            if name in factors:
                _, left, right = factors[name]
                writer.write(f"{name}_A", stored_as(left, infos[name].dtype))
                writer.write(f"{name}_B", stored_as(right, infos[name].dtype))
            else:
                writer.write_chunks(name, stored_chunks(checkpoint, name))
                checkpoint.release(name)
    return tensors


def stored_as(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return the values in an element type; bfloat16 as its bits."""
    return narrowed(values) if dtype == "bfloat16" else values.astype(dtype)
