"""What `compress` writes: a checkpoint with factors in the place of matrices, or a LoRA adapter."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.arrays import narrowed
from mpfast.checkpoints import (
    Checkpoint,
    Layer,
    SafetensorsWriter,
    TensorInfo,
    copy_companions,
    files_of,
    index_name,
    stored,
)
from mpfast.models.factoring import FactoredLayer, Factoring, Factors

__all__ = ["write_adapter", "write_factors"]

FACTORS_FORMAT = "mpfast.factors/1"


def write_factors(factoring: Factoring, chosen: Sequence[Layer], staging: Path) -> tuple[FactoredLayer, ...]:
    """Write one file for every file of the source; the factors of one file are in memory at a time."""
    checkpoint = factoring.checkpoint
    wanted = {layer.name: layer for layer in chosen}
    reports: list[FactoredLayer] = []
    weight_map: dict[str, str] = {}
    files = files_of(checkpoint)
    for file, names in files.items():
        factors = {name: found for name in names if name in wanted and (found := factoring.factored(wanted[name]))}
        tensors = _write_file(checkpoint, staging / file, names, factors)
        weight_map |= {tensor.name: file for tensor in tensors}
        reports += [found[0] for found in factors.values()]
    copy_companions(checkpoint, staging)
    if len(files) > 1:
        size = sum((staging / file).stat().st_size for file in files)
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (staging / index_name(checkpoint)).write_text(json.dumps(index, indent=1), encoding="utf-8")
    return tuple(reports)


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
                writer.write(f"{name}_A", _stored_as(left, infos[name].dtype))
                writer.write(f"{name}_B", _stored_as(right, infos[name].dtype))
            else:
                writer.write(name, stored(checkpoint.read(name), name))
                checkpoint.release(name)
    return tensors


def write_adapter(
    factoring: Factoring, base: Checkpoint, chosen: Sequence[Layer], staging: Path
) -> tuple[FactoredLayer, ...]:
    """Write a LoRA adapter as PEFT stores it: the update of a layer is ``lora_B @ lora_A``."""
    factors = [found for layer in chosen if (found := factoring.factored(layer)) is not None]
    if not factors:
        return ()
    # The adapter goes onto the base: its modules have the names that they have there.
    found_in = factoring.difference
    modules = {
        report.name: (report.name if found_in is None else found_in.base_name(report.name)).removesuffix(".weight")
        for report, _, _ in factors
    }
    tensors = []
    for report, left, right in factors:
        module = f"base_model.model.{modules[report.name]}"
        tensors.append((TensorInfo(f"{module}.lora_A.weight", right.shape, "float32"), right))
        tensors.append((TensorInfo(f"{module}.lora_B.weight", left.shape, "float32"), left))
    with SafetensorsWriter.create(
        staging / "adapter_model.safetensors", [info for info, _ in tensors], {"format": "pt"}
    ) as writer:
        for info, factor in tensors:
            writer.write(info.name, factor.astype(np.float32))
    ranks = {modules[report.name]: report.rank for report, _, _ in factors}
    largest = max(ranks.values())
    configuration = {
        "peft_type": "LORA",
        "base_model_name_or_path": base.source,
        "r": largest,
        "lora_alpha": largest,
        "rank_pattern": ranks,
        "alpha_pattern": ranks,  # alpha = r: the update is applied as it is
        "target_modules": sorted(ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    text = json.dumps(configuration, indent=1) + "\n"
    (staging / "adapter_config.json").write_text(text, encoding="utf-8")
    return tuple(report for report, _, _ in factors)


def _stored_as(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    return narrowed(values) if dtype == "bfloat16" else values.astype(dtype)
