"""A checkpoint of packed integers, in the format ``pack-quantized`` of compressed-tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.checkpoints import (
    Checkpoint,
    Layer,
    SafetensorsWriter,
    SourceFiles,
    TensorInfo,
    content_hash,
    copy_companions,
    files_behind,
    files_of,
    packed_codes,
    roles_of,
    shards_of,
    stored_chunks,
    words_for,
    write_index,
)
from mpfast.models.integer_fits import IntegerFits, Integers, QuantizedLayer
from mpfast.models.output_mark import mark_output
from mpfast.support import OutputDirectory

__all__ = ["write_packed"]

_CONFIGURATION = "config.json"
# What the library treats as weights of a linear module where it says nothing else: all but embeddings.
_HEAD = "lm_head"


def write_packed(
    checkpoint: Checkpoint, place: OutputDirectory, chosen: Sequence[Layer], fits: IntegerFits
) -> tuple[tuple[QuantizedLayer, ...], tuple[str, ...], int]:
    """Write the checkpoint with these matrices packed, all or nothing; one is in memory at a time.

    Returns
    -------
    layers : tuple of QuantizedLayer
    left : tuple of str
        What lies beside the weights and was not copied, and why.
    size : int
        Bytes of the files of weights.
    """
    source = SourceFiles(files_behind(checkpoint))
    wanted = {layer.name: layer for layer in chosen}
    headers = {shard.path.name: shard.metadata for shard in shards_of(checkpoint)}
    infos = {info.name: info for info in checkpoint.tensors}
    rows: list[QuantizedLayer] = []
    written: dict[str, str] = {}
    files: dict[str, list[str]] = {}
    with place.staged() as staging:
        for file, names in files_of(checkpoint).items():
            tensors: list[TensorInfo] = []
            for name in names:
                tensors += _parts(wanted[name], fits) if name in wanted else [infos[name]]
            files[file] = [info.name for info in tensors]
            header = headers.get(file, {"format": "pt"})
            with SafetensorsWriter.create(staging / file, tensors, header) as writer:
                for name in names:
                    if name not in wanted:
                        writer.write_chunks(name, stored_chunks(checkpoint, name))
                        checkpoint.release(name)
                        continue
                    row, integers = fits.fitted(wanted[name])
                    rows.append(row)
                    for part, array in _packed(wanted[name], integers, fits.bits).items():
                        writer.write(part, array)
                        written[part] = content_hash(array)
        size = sum((staging / file).stat().st_size for file in files)
        left = copy_companions(checkpoint, staging)
        _write_settings(staging / _CONFIGURATION, _settings(checkpoint, wanted, fits))
        write_index(checkpoint, staging, files)
        source.check()
        listed = [row.name for row in rows]
        mark_output(staging, "quantize", checkpoint, format="compressed-tensors", layers=listed, written=written)
    return tuple(rows), left, size


def _parts(layer: Layer, fits: IntegerFits) -> list[TensorInfo]:
    """What is stored in the place of a matrix."""
    out, inputs = layer.shape
    groups = inputs // fits.group
    return [
        TensorInfo(f"{layer.name}_packed", (out, words_for(inputs, fits.bits)), "int32"),
        TensorInfo(f"{layer.name}_scale", (out, groups), layer.dtype),
        TensorInfo(f"{layer.name}_shape", (2,), "int64"),
    ]


def _packed(layer: Layer, integers: Integers, bits: int) -> dict[str, NDArray[Any]]:
    """The same, by name."""
    return {
        f"{layer.name}_packed": packed_codes(integers.codes, bits),
        f"{layer.name}_scale": integers.scales,
        f"{layer.name}_shape": np.array(layer.shape, np.int64),
    }


def _settings(checkpoint: Checkpoint, wanted: Mapping[str, Layer], fits: IntegerFits) -> dict[str, Any]:
    """What the configuration says of the quantisation: which linear modules are not packed, above all."""
    others = [
        name.removesuffix(".weight")
        for name, role in roles_of(checkpoint).items()
        if role.kind in ("linear", "head") and name.endswith(".weight") and name not in wanted
    ]
    weights = {
        "num_bits": fits.bits,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": fits.group,
        "dynamic": False,
    }
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {**group, "format": "pack-quantized"}},
        "ignore": sorted({_HEAD, *others}),
    }


def _write_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Have a configuration, as it was copied, say how weights are stored."""
    config = json.loads(path.read_text(encoding="utf-8")) | {"quantization_config": settings}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
