"""How the masks of a checkpoint come about when its tensors are read one at a time.

A plan looks at the weights as often as it must when it is made, and then gives out the masks, tensor by tensor in the
order of the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mpfast import _core
from mpfast.arrays import raise_if_nonfinite, wide
from mpfast.checkpoints import Checkpoint, Layer, prefetched, read_layer, stored
from mpfast.masks import prune_rows, row_counts
from mpfast.models.budget_row import along_inputs, from_inputs
from mpfast.models.mask_fit import FittedMasks
from mpfast.support import InvalidValueError, floor_count

__all__ = [
    "GivenMasks",
    "GlobalCut",
    "LayerCuts",
    "MaskPlan",
    "Pattern",
    "Refit",
    "RowCuts",
    "cut_counts",
    "global_cut",
    "matrix_of",
    "stored_rows",
]


@dataclass(frozen=True)
class Refit:
    """What has become of the weights that a mask keeps.

    Attributes
    ----------
    rows : array or None
        All weights of the layer as `stored_rows` gives them, zeros where they are pruned; None: as they were.
    error, masked_error, heldout_error : float or None
        As in `LayerBudget`.
    reason : str or None
        Why they are as they were.
    """

    rows: NDArray[Any] | None
    error: float | None = None
    masked_error: float | None = None
    heldout_error: float | None = None
    reason: str | None = None


class MaskPlan(Protocol):
    """Gives out masks, and new values of what they keep."""

    def mask(self, layer: Layer, rows: NDArray[Any], keep: NDArray[np.bool_]) -> Refit | None:
        """Write the mask of the next layer, whose weights ``rows`` are, into ``keep`` of the same shape.

        Returns
        -------
        Refit or None
            None where nothing but the mask was asked for.
        """


def stored_rows(tensor: Any, layer: Layer) -> NDArray[Any]:
    """Return a tensor of a checkpoint as contiguous rows of its bits in the machine's order (bfloat16 as uint16)."""
    array = stored(tensor, layer.name)
    return np.ascontiguousarray(array).reshape(array.shape[0], -1)


def matrix_of(rows: NDArray[Any], layer: Layer) -> _core.Matrix:
    """Return rows of a layer's bits as the core reads them."""
    bits = rows.view(np.uint16) if layer.dtype == "bfloat16" else rows
    return _core.Matrix(bits, layer.dtype)


def _raise_if_bad(found: tuple[int, int, int] | None, layer: Layer, rows: NDArray[Any]) -> None:
    if found is not None:
        _, count, first = found
        index = np.unravel_index(first, layer.tensor_shape)
        raise_if_nonfinite(layer.name, count, tuple(int(i) for i in index))


class GlobalCut:
    """The ``pruned`` entries of smallest |w| * scale of all layers together go; as `mpfast.masks.magnitude`.

    Reads the weights twice or three times, and once more for the masks.
    """

    def __init__(
        self, checkpoint: Checkpoint, layers: Sequence[Layer], scales: Sequence[float], pruned: int, threads: int
    ) -> None:
        self._scales = {layer.name: float(scale) for layer, scale in zip(layers, scales, strict=True)}
        self._threads = threads
        storage = [(layer.dtype, self._scales[layer.name]) for layer in layers]
        self._search = _core.CutSearch(sum(layer.size for layer in layers), pruned, storage)
        while not self._search.done:
            for layer, _ in zip(layers, prefetched((layer.file_name for layer in layers), checkpoint), strict=True):
                rows = stored_rows(read_layer(checkpoint, layer), layer)
                found = self._search.count(matrix_of(rows, layer), self._scales[layer.name], threads)
                _raise_if_bad(found, layer, rows)
                checkpoint.release(layer.file_name)
            self._search.narrow()

    def mask(self, layer: Layer, rows: NDArray[Any], keep: NDArray[np.bool_]) -> None:
        self._search.write(matrix_of(rows, layer), self._scales[layer.name], keep, self._threads)


# Entries that are looked at to foretell a layer's share, at most and at least, and of all layers together.
_SAMPLE = 1 << 11
_SMALLEST_SAMPLE = 1 << 6
_ALL_SAMPLES = 1 << 22
# How far below the ceiling the foretold share must be for a layer to be safe: ten standard errors of a full sample.
_MARGIN = 0.1


def global_cut(
    checkpoint: Checkpoint,
    layers: Sequence[Layer],
    scales: Sequence[float],
    pruned: int,
    ceiling: float,
    threads: int,
) -> MaskPlan:
    """Plan a `GlobalCut` in which no layer loses more than the share `ceiling`: what it cannot give, the others do.

    Where a sample of the entries says that no layer comes near the ceiling, nothing more is read than for the cut.
    """
    shares = _foretold_shares(checkpoint, layers, scales, pruned) if ceiling < 1 else np.zeros(len(layers))
    if shares.max() < ceiling - _MARGIN:
        return GlobalCut(checkpoint, layers, scales, pruned, threads)
    return LayerCuts(cut_counts(checkpoint, layers, scales, pruned, ceiling, threads), threads)


def cut_counts(
    checkpoint: Checkpoint,
    layers: Sequence[Layer],
    scales: Sequence[float],
    pruned: int,
    ceiling: float,
    threads: int,
) -> dict[str, int]:
    """Count what `global_cut` takes of each layer; reads the weights three times, and again for every layer capped."""
    most = {layer.name: floor_count(ceiling, layer.size) for layer in layers}
    capped: dict[str, int] = {}
    free = list(zip(layers, scales, strict=True))
    while free:
        rest, factors = [layer for layer, _ in free], [scale for _, scale in free]
        found = _counts(checkpoint, rest, factors, pruned - sum(capped.values()), threads)
        over = {name: most[name] for name, count in found.items() if count > most[name]}
        if not over:
            return {**capped, **found}
        capped |= over
        free = [(layer, scale) for layer, scale in free if layer.name not in over]
    raise InvalidValueError("ceiling", f"leaves no room: {ceiling} of every layer is less than is to go")


def _foretold_shares(
    checkpoint: Checkpoint, layers: Sequence[Layer], scales: Sequence[float], pruned: int
) -> NDArray[np.float64]:
    """Share of each layer that a global cut takes, by a sample of its entries."""
    wanted = min(_SAMPLE, max(_SMALLEST_SAMPLE, _ALL_SAMPLES // len(layers)))
    scores, weights, owners = [], [], []
    for number, (layer, scale) in enumerate(zip(layers, scales, strict=True)):
        rows = stored_rows(read_layer(checkpoint, layer), layer)
        # Pieces of 64 entries, each of another row.
        flat = rows.reshape(-1)
        pieces = max(1, min(wanted // _SMALLEST_SAMPLE, flat.size // _SMALLEST_SAMPLE))
        starts = (np.arange(pieces) * 2 + 1) * flat.size // (2 * pieces) - min(flat.size, _SMALLEST_SAMPLE) // 2
        at = np.clip(starts[:, None] + np.arange(_SMALLEST_SAMPLE), 0, flat.size - 1)
        with np.errstate(invalid="ignore", over="ignore"):  # what is not finite is refused when all entries are counted
            sample = np.abs(wide(flat[at].reshape(-1), layer.dtype)) * scale
        scores.append(sample)
        weights.append(np.full(sample.size, layer.size / sample.size))
        owners.append(np.full(sample.size, number))
        checkpoint.release(layer.file_name)
    order = np.argsort(np.concatenate(scores), kind="stable")
    gone = np.cumsum(np.concatenate(weights)[order]) <= pruned
    counts = np.bincount(np.concatenate(owners)[order][gone], minlength=len(layers))
    shares: NDArray[np.float64] = counts / np.array([sample.size for sample in scores])
    return shares


def _counts(
    checkpoint: Checkpoint, layers: Sequence[Layer], scales: Sequence[float], pruned: int, threads: int
) -> dict[str, int]:
    """Entries of each layer that a global cut takes; reads the weights once more."""
    cut = GlobalCut(checkpoint, layers, scales, pruned, threads)
    counts = {}
    for layer, file_name in zip(layers, prefetched((layer.file_name for layer in layers), checkpoint), strict=True):
        rows = stored_rows(read_layer(checkpoint, layer), layer)
        keep = np.empty(rows.shape, np.bool_)
        cut.mask(layer, rows, keep)
        counts[layer.name] = int(keep.size - np.count_nonzero(keep))
        checkpoint.release(file_name)
    return counts


class LayerCuts:
    """In each layer, the given number of entries of smallest magnitude goes."""

    def __init__(self, pruned: dict[str, int], threads: int) -> None:
        self._pruned = pruned
        self._threads = threads

    def mask(self, layer: Layer, rows: NDArray[Any], keep: NDArray[np.bool_]) -> None:
        found = _core.prune_smallest([matrix_of(rows, layer)], [1.0], [keep], self._pruned[layer.name], self._threads)
        _raise_if_bad(found, layer, rows)


class RowCuts:
    """In each layer, the given number of entries goes, the smallest of each row, as many of every one as of another.

    A row runs along the inputs; where it is not known which axes these are, as the tensor is stored. Of layers that
    `rows` has, so many go of each row.
    """

    def __init__(
        self, pruned: Mapping[str, int], threads: int, rows: Mapping[str, NDArray[np.int64]] | None = None
    ) -> None:
        self._pruned = pruned
        self._threads = threads
        self._rows = rows or {}

    def mask(self, layer: Layer, rows: NDArray[Any], keep: NDArray[np.bool_]) -> None:
        turned = along_inputs(rows.reshape(layer.tensor_shape), layer.input_axes) if layer.input_axes else rows
        kept = np.empty(turned.shape, np.bool_)
        bits = turned.view(np.uint16) if layer.dtype == "bfloat16" else turned
        counts = self._rows.get(layer.name)
        if counts is None:
            counts = row_counts(self._pruned[layer.name], len(turned))
        if prune_rows(bits, layer.dtype, kept, counts, self._threads) is not None:
            bad = np.flatnonzero(~np.isfinite(wide(rows, layer.dtype)))
            _raise_if_bad((0, len(bad), int(bad[0])), layer, rows)
        back = from_inputs(kept, layer.tensor_shape, layer.input_axes) if layer.input_axes else kept
        keep[...] = back.reshape(keep.shape)


class Pattern:
    """The n largest of every m consecutive entries along the inputs stay."""

    def __init__(self, n: int, m: int, threads: int) -> None:
        self._n = n
        self._m = m
        self._threads = threads

    def mask(self, layer: Layer, rows: NDArray[Any], keep: NDArray[np.bool_]) -> None:
        turned = along_inputs(rows.reshape(layer.tensor_shape), layer.input_axes)
        if np.shares_memory(turned, rows):
            found = _core.keep_largest_of_groups([matrix_of(rows, layer)], [keep], self._n, self._m, self._threads)
            _raise_if_bad(found, layer, rows)
            return
        kept = np.empty(turned.shape, np.bool_)
        found = _core.keep_largest_of_groups([matrix_of(turned, layer)], [kept], self._n, self._m, self._threads)
        if found is not None:
            bad = np.flatnonzero(~np.isfinite(wide(rows, layer.dtype)))
            raise_if_nonfinite(
                layer.name, found[1], tuple(int(i) for i in np.unravel_index(bad[0], layer.tensor_shape))
            )
        keep[...] = from_inputs(kept, layer.tensor_shape, layer.input_axes).reshape(keep.shape)


class GivenMasks:
    """Masks that the caller has."""

    def __init__(self, masks: FittedMasks) -> None:
        self._masks = masks

    def mask(self, layer: Layer, rows: NDArray[Any], keep: NDArray[np.bool_]) -> None:
        keep[...] = self._masks.mask_of(layer).reshape(keep.shape)
