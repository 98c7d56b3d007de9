"""Steps of conjugate gradients towards the least squares on a mask, on the host, and what comes after them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast import _core
from mpfast.reconstruct.layer import Layer
from mpfast.support import InvalidValueError

__all__ = ["LARGEST_SCALE", "LEAST_SCALE", "ROUNDING", "check_steps", "finish", "settle", "worse_rows"]

Single = NDArray[np.float32]
Mask = NDArray[np.bool_]

# Beyond, nothing changes any more.
_MOST_STEPS = 10_000
# By how much a row may be scaled: beyond, it says more about the moment than about the row.
LEAST_SCALE, LARGEST_SCALE = 0.5, 2.0
# Rows whose scales are computed at a time: as many as keep the product with C at its rate, and take little memory.
_SCALED_ROWS = 128
# What single precision may leave of a square that is zero, in units of that of uncorrelated inputs.
ROUNDING = 1e-4


def check_steps(value: Any, name: str) -> int:
    """Return a number of steps as a Python integer; ValueError unless it is one of at least 0."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not 0 <= value <= _MOST_STEPS:
        raise InvalidValueError(name, f"must be an integer between 0 and {_MOST_STEPS}, not {value!r}")
    return int(value)


def settle(layer: Layer, values: Single, keep: Mask, steps: int) -> None:
    """Take steps towards the least squares on a mask, from `values` and in place; these are zero where it drops."""
    if steps == 0 or keep.all() or not keep.any():
        return
    factor = layer.factor
    basis, base = factor.leading_part
    roots = factor.relative_roots
    _core.refit(layer.weights, values, keep, factor.correlations, roots, basis, base, steps, layer.threads)


def finish(layer: Layer, values: Single, keep: Mask, steps: int) -> None:
    """Take the last steps, in place, and then scale the rows to suit C undamped; no steps, no change."""
    settle(layer, values, keep, steps)
    if steps > 0 and (layer.factor.damping > 0 or layer.factor.diagonal > 0):
        # Weights of inputs that are always zero change nothing and stay as they are.
        scales, seen = _row_scales(layer, values), layer.factor.damping_shares < 1
        np.multiply(values, scales[:, None], out=values, where=seen)
    if layer.factor.is_delicate:
        _take_back(layer, values, keep)


def _take_back(layer: Layer, values: Single, keep: Mask) -> None:
    """Leave rows as the mask alone makes them that rounding has made worse than that, or no numbers, in place."""
    masked = np.where(keep, layer.weights, np.float32(0))
    worse = worse_rows(layer, values, masked)
    values[worse] = masked[worse]


def worse_rows(layer: Layer, values: Single, others: Single) -> Mask:
    """Which rows, (out,), change outputs more than others in their place would, by C undamped, or are no numbers."""
    moment = layer.factor.moment / layer.factor.root_unit / layer.factor.root_unit
    with np.errstate(over="ignore", invalid="ignore"):
        changes = [layer.weights - rows.astype(np.float64) for rows in (values, others)]
        fitted, plain = (np.einsum("ij,ij->i", change @ moment, change) for change in changes)
        worse: Mask = ~(fitted <= plain)
    return worse


def _row_scales(layer: Layer, values: Single) -> Single:
    """The factors of the rows v, (out,), with which these are nearest to those of W by C undamped, within limits."""
    factor = layer.factor
    roots, correlations, shares = factor.relative_roots, factor.correlations, factor.damping_shares
    scales = np.ones(len(values))
    for first in range(0, len(values), _SCALED_ROWS):
        rows = slice(first, first + _SCALED_ROWS)
        scaled = values[rows] * roots
        image = _core.product(scaled, correlations, layer.threads)
        image -= scaled * shares
        square = np.einsum("ij,ij->i", image, scaled, dtype=np.float64)
        common = np.einsum("ij,ij->i", image, layer.weights[rows] * roots, dtype=np.float64)
        # Of a row of zeros, or whose square is rounding, nothing is known.
        known = square > ROUNDING * np.einsum("ij,ij->i", scaled, scaled, dtype=np.float64)
        np.divide(common, square, out=scales[rows], where=known)
    limited: Single = np.clip(scales, LEAST_SCALE, LARGEST_SCALE).astype(np.float32)
    return limited
