"""How large each layer's share is, from what was measured of all layers: one function for each method.

A rule gets the layers, what was measured of each, and the target, and returns the share of each layer that it would
like to go; `mpfast.masks.allocate` makes these exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast import reconstruct
from mpfast.masks import ScoreCounts, cut_shares, mapped_shares, spread
from mpfast.models.layer_data import LayerData, Target, block_of, depths_of, given
from mpfast.reconstruct import output_energies, row_weights
from mpfast.spectra import fixed_aspect_hill

__all__ = [
    "Measure",
    "Rule",
    "by_depth",
    "by_error_curves",
    "by_hill_of_blocks",
    "by_outliers_of_blocks",
    "cut_by_scores",
    "error_curve",
    "hill_of_half",
    "hill_of_windows",
    "input_norm_scores",
    "loss_scores",
    "rank_share",
    "same_share",
    "spread_by_rank",
]

Array = NDArray[np.float64]
#: What is to be known of a layer before anything is shared out; also from the sparsity.
Measure = Callable[[LayerData, float], Any]
#: From the layers, what was measured of them and the target to the share wanted of each.
Rule = Callable[[Sequence[LayerData], Sequence[Any], Target], Array]

# AlphaPruning's and FARMS's epsilon, OWL's M and lambda, as published.
_EPSILON = 0.3
_OUTLIER = 5.0
_OWL_REACH = 0.08
# How far the first and the last block are from the target, and the layers of least and largest rank.
_DEPTH_REACH = 0.1
_RANK_REACH = 0.1
# Where the error of a layer is measured: at the target and this part of the way to 0 and to 1.
_CURVE_REACH = 0.25
_GRID = 256


def same_share(layers: Sequence[LayerData], _: Sequence[Any], target: Target) -> Array:
    """Return the target for every layer."""
    return np.full(len(layers), target.sparsity)


def by_depth(layers: Sequence[LayerData], _: Sequence[Any], target: Target) -> Array:
    """Return shares that rise from block to block by the same step (arXiv 2502.14770)."""
    return target.sparsity + _DEPTH_REACH * depths_of([layer.name for layer in layers])


def hill_of_half(layer: LayerData, _: float) -> float:
    """Measure the Hill exponent of the larger half of the squared singular values."""
    return given(layer.report).metrics["hill_alpha_half"]


def hill_of_windows(layer: LayerData, _: float) -> float:
    """Measure the Hill exponent of square submatrices."""
    return fixed_aspect_hill(given(layer.weights))


def by_hill_of_blocks(layers: Sequence[LayerData], exponents: Sequence[float], target: Target) -> Array:
    """Return shares that rise linearly with the mean Hill exponent of each block; a layer without one has the mean."""
    values = np.asarray(exponents, np.float64)
    known = np.isfinite(values)
    values[~known] = values[known].mean() if known.any() else 0.0
    sizes = [layer.size for layer in layers]
    return mapped_shares(_means_of_blocks(layers, values), sizes, target.sparsity, epsilon=_EPSILON)


def _means_of_blocks(layers: Sequence[LayerData], values: Array) -> Array:
    blocks: dict[str, list[float]] = {}
    for layer, value in zip(layers, values, strict=True):
        blocks.setdefault(block_of(layer.name), []).append(float(value))
    return np.array([math.fsum(found := blocks[block_of(layer.name)]) / len(found) for layer in layers])


def input_norm_scores(layer: LayerData, _: float) -> ScoreCounts:
    """Measure the magnitudes times the norms of the inputs."""
    return ScoreCounts.of(_input_norm_saliency(layer))


def _input_norm_saliency(layer: LayerData) -> Array:
    saliency: Array = np.abs(given(layer.weights)) * np.sqrt(np.diagonal(given(layer.factor).moment))
    return saliency


def by_outliers_of_blocks(layers: Sequence[LayerData], scores: Sequence[ScoreCounts], target: Target) -> Array:
    """Return shares that fall linearly with the share of outliers of each block (OWL)."""
    blocks: dict[str, ScoreCounts] = {}
    for layer, found in zip(layers, scores, strict=True):
        block = block_of(layer.name)
        blocks[block] = blocks[block] + found if block in blocks else found
    ratios = {name: found.share_above(_OUTLIER * found.total / found.size) for name, found in blocks.items()}
    return target.sparsity - spread([ratios[block_of(layer.name)] for layer in layers], _OWL_REACH)


def loss_scores(layer: LayerData, _: float) -> ScoreCounts:
    """Measure the roots of what the entries add to the loss, to second order (Gauss-Newton): ``w^2 C_jj G_i``."""
    rows = row_weights(layer.gradient, f"gradients[{layer.name!r}]", len(given(layer.weights)))
    return ScoreCounts.of(rows[:, None] * _input_norm_saliency(layer))


def cut_by_scores(_: Sequence[LayerData], scores: Sequence[ScoreCounts], target: Target) -> Array:
    """Return what goes of each layer if the smallest scores of all go together."""
    return cut_shares(scores, target.pruned, target.low, target.high)


def rank_share(layer: LayerData, _: float) -> float:
    """Measure the entropy rank of ``W H^(1/2)`` over the largest that it could be."""
    energies = output_energies(given(layer.weights), given(layer.factor))
    total = float(energies.sum())
    if not total > 0:
        return 0.0
    shares = energies[energies > 0] / total
    return math.exp(-float(shares @ np.log(shares))) / len(energies)


def spread_by_rank(_: Sequence[LayerData], ranks: Sequence[float], target: Target) -> Array:
    """Return shares that fall linearly with the rank."""
    return target.sparsity - spread(ranks, _RANK_REACH)


def error_curve(layer: LayerData, sparsity: float) -> tuple[Array, Array]:
    """Measure the output error that optimal brain surgeon leaves at three shares around the target."""
    weights, factor = given(layer.weights), given(layer.factor)
    shares = np.array([sparsity * (1 - _CURVE_REACH), sparsity, sparsity + (1 - sparsity) * _CURVE_REACH])
    shares = np.clip(shares, 0.02, 0.98)
    fits = (reconstruct.prune(weights, factor, sparsity=float(s), refit=0) for s in shares)
    return shares, np.array([fit.error for fit in fits])


def by_error_curves(layers: Sequence[LayerData], curves: Sequence[tuple[Array, Array]], target: Target) -> Array:
    """Return the shares at which one more entry costs every layer the same: the least sum of relative output errors.

    The logarithm of a layer's error is taken to be a parabola in the share.
    """
    grids, prices = [], []
    for layer, (shares, errors), low, high in zip(layers, curves, target.low, target.high, strict=True):
        grids.append(np.linspace(low, high, _GRID))
        cost = _marginal_cost(shares, errors, grids[-1]) / layer.size
        prices.append(np.log(np.maximum(cost, np.finfo(np.float64).tiny)))
    sizes = np.array([layer.size for layer in layers], np.float64)

    def shares_at(price: float) -> Array:
        return np.array([np.interp(price, costs, grid) for costs, grid in zip(prices, grids, strict=True)])

    below, above = float(np.min(prices)) - 1, float(np.max(prices)) + 1
    for _ in range(100):
        middle = 0.5 * (below + above)
        if float(sizes @ shares_at(middle)) < target.pruned:
            below = middle
        else:
            above = middle
    return shares_at(above)


def _marginal_cost(shares: Array, errors: Array, grid: Array) -> Array:
    """How fast the error rises with the share, never less than before; of a layer without outputs not at all."""
    if not errors.max() > 0 or len(np.unique(shares)) < 3:
        return np.zeros(len(grid))
    logs = np.log(np.maximum(errors, 1e-12 * errors.max()))
    curve = np.polynomial.Polynomial.fit(shares, logs, 2)
    with np.errstate(over="ignore"):
        slope = np.exp(np.minimum(curve(grid), 50.0)) * np.maximum(curve.deriv()(grid), 0.0)
    rising: Array = np.maximum.accumulate(slope)
    return rising
