"""Whether what `compress` wrote is what its mark says, and else the source."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.arrays import wide
from mpfast.checkpoints import Checkpoint, content_hash, content_hashes, home_directory, open_checkpoint, stored
from mpfast.models.factoring import FactoredLayer
from mpfast.models.written_tensors import WrittenTensors, key_of, some
from mpfast.spectra import spectrum
from mpfast.support import Record

__all__ = ["CompressedOutput", "facts_of", "layers_of"]

# The largest relative error of one entry when it is stored, and the smallest number that is stored: below it, the
# error is half of that.
_UNIT = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
_SMALLEST = {"float64": 2.0**-1074, "float32": 2.0**-149, "float16": 2.0**-24, "bfloat16": 2.0**-133}
# Of the norm: what the factors may be off by, and of its square what their energy may (`factoring.TOLERANCE`).
_PRODUCT_ERROR = 1e-5
_ENERGY_ERROR = 1e-6


def facts_of(staging: Any, format: str, layers: Sequence[FactoredLayer]) -> dict[str, Any]:
    """Return what the mark notes, for `CompressedOutput` to check later.

    Parameters
    ----------
    staging
        The directory, complete but for the mark.
    format
        "dense" or "factors".
    layers
        What was factored.
    """
    names = {name for layer in layers for name in _written_names(layer.name, format)}
    checkpoint = open_checkpoint(staging)
    others = dict.fromkeys((info.name for info in checkpoint.tensors if info.name not in names), "")
    hashes = {name: found for name, found in content_hashes(checkpoint, others) if name in names}
    listed = [
        {"name": layer.name, "shape": list(layer.shape), "rank": layer.rank, "energy": layer.energy} for layer in layers
    ]
    return {"format": format, "layers": listed, "written": hashes}


def _written_names(name: str, format: str) -> tuple[str, ...]:
    return (name,) if format == "dense" else (f"{name}_A", f"{name}_B")


def layers_of(mark: Mapping[str, Any]) -> tuple[FactoredLayer, ...]:
    """Return what a mark lists as factored; ValueError where it lists nothing, or is damaged."""
    records = Record(mark, "the mark").records("layers")
    return tuple(
        FactoredLayer(entry.text("name"), _pair(entry), entry.integer("rank"), entry.number("energy", 0))
        for entry in records
    )


def _pair(entry: Record) -> tuple[int, int]:
    shape = entry.shape("shape")
    if len(shape) != 2:
        raise entry.refuse("shape", "that of a matrix")
    return shape[0], shape[1]


@dataclass
class CompressedOutput:
    """Compares an output with its mark and, as far as it is there, its source.

    Attributes
    ----------
    tensors
        The output and the source.
    format
        "dense" or "factors".
    layers
        What the mark lists.
    written
        Content hashes of what was written in the place of those, by name.
    """

    tensors: WrittenTensors
    format: str
    layers: tuple[FactoredLayer, ...]
    written: Mapping[str, str]

    def run(self) -> tuple[list[str], int, list[str]]:
        """Return the problems, how many tensors are the source's, and what was not compared."""
        mine = self.tensors.mine
        replaced = {name for layer in self.layers for name in _written_names(layer.name, self.format)}
        others = [name for name in mine if name not in replaced]
        untouched, unknown, changed = self.tensors.look_at(others)
        problems = [*self._name_problems(), *self._content_problems(replaced)]
        for layer in self.layers:
            problems += self._layer_problems(layer)
        problems += [self.tensors.difference(name, found) for name, found in changed.items()]
        return problems, untouched, self._not_compared(unknown)

    def _name_problems(self) -> Iterator[str]:
        dense, record = self.tensors.dense, self.tensors.record
        if dense is not None:
            expected = {key for info in dense.tensors for key in self._expected(info.name, key_of(info))}
            if expected != {key_of(info) for info in self.tensors.written.tensors}:
                yield "names, shapes or types of the tensors are not those that the source and the mark give"
        elif record is not None:
            names = {key[0] for name in record.tensors for key in self._expected(name, (name, (), ""))}
            if names != set(self.tensors.mine):
                yield "names of the tensors are not those that the mark gives"

    def _expected(self, name: str, key: tuple[str, tuple[int, ...], str]) -> list[tuple[str, tuple[int, ...], str]]:
        layer = next((layer for layer in self.layers if layer.name == name), None)
        if layer is None or self.format == "dense":
            return [key]
        shapes = ((layer.shape[0], layer.rank), (layer.rank, layer.shape[1])) if key[2] else ((), ())
        return [(f"{name}_A", shapes[0], key[2]), (f"{name}_B", shapes[1], key[2])]

    def _content_problems(self, replaced: set[str]) -> Iterator[str]:
        others = dict.fromkeys((name for name in self.tensors.mine if name not in replaced), "")
        for name, found in content_hashes(self.tensors.written, others):
            if name in replaced and found != self.written.get(name):
                yield f"{name}: its content hash is not that of what was written"

    def _layer_problems(self, layer: FactoredLayer) -> Iterator[str]:
        """Compare with the source and, of truncated matrices, count the singular values that are not rounding."""
        names = _written_names(layer.name, self.format)
        if any(name not in self.tensors.mine for name in names):
            return  # among the problems already
        dtype = self.tensors.mine[names[0]].dtype
        pieces = [_matrix(self.tensors.written, name) for name in names]
        m, n = layer.shape
        shapes = [(m, n)] if self.format == "dense" else [(m, layer.rank), (layer.rank, n)]
        if dtype not in _UNIT or [piece.size for piece in pieces] != [a * b for a, b in shapes]:
            yield f"{layer.name}: has not the shape or the type of what the mark says"
            return
        if not all(np.isfinite(piece).all() for piece in pieces):
            yield f"{layer.name}: has NaN or infinite entries"
            return
        product = pieces[0].reshape(shapes[0])
        if len(pieces) == 2:
            product = product @ pieces[1].reshape(shapes[1])
        norm = float(np.linalg.norm(product))
        # The entries of both factors are rounded; their norms, multiplied, are at most sqrt(rank) that of the product.
        rounding = (2 * _UNIT[dtype] * math.sqrt(max(1, layer.rank))) * norm + _SMALLEST[dtype] * math.sqrt(m * n)
        if self.format == "dense":
            found = spectrum(product, method="exact")
            assert found.values is not None, "an exact spectrum has all singular values"
            beyond = float(np.linalg.norm(found.values[layer.rank :]))
            if beyond > rounding + math.sqrt(min(m, n)) * found.resolution * found.values[0]:
                yield f"{layer.name}: is of a rank larger than {layer.rank}"
        dense = self.tensors.dense
        if dense is None or layer.name not in self.tensors.its:
            return
        recorded = self.tensors.recorded(layer.name)
        if recorded is not None and recorded != content_hash(stored(dense.read(layer.name), layer.name)):
            yield f"{layer.name}: the source is not the one that was factored: its content hash differs"
        original = _matrix(dense, layer.name)
        if original.size != m * n:
            return  # among the problems already
        whole = float(np.linalg.norm(original))
        allowed = (math.sqrt(max(0.0, 1 - layer.energy) + _ENERGY_ERROR) + _PRODUCT_ERROR) * whole + rounding
        distance = float(np.linalg.norm(original.reshape(m, n) - product))
        if distance > allowed:
            yield f"{layer.name}: is {distance:.3g} away from the source (Frobenius norm), not {allowed:.3g} at most"

    def _not_compared(self, unknown: Sequence[str]) -> list[str]:
        found = []
        if self.tensors.dense is None:
            matrices = "matrix" if len(self.layers) == 1 else "matrices"
            found.append(f"how close the {len(self.layers)} {matrices} are to the dense model: it is not at hand")
        if unknown:
            found.append(f"{some(unknown)}: there is nothing to compare with")
        if home_directory(self.tensors.written) is not None:
            found.append("files beside the weights (configuration, tokenizer)")
        return found


def _matrix(checkpoint: Checkpoint, name: str) -> NDArray[np.float64]:
    tensor = stored(checkpoint.read(name), name)
    dtype = next(info.dtype for info in checkpoint.tensors if info.name == name)
    found = np.array(wide(tensor, dtype), np.float64) if dtype in _UNIT else np.zeros(0)
    checkpoint.release(name)
    return found
