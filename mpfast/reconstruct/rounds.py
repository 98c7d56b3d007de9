"""Masks and weights that find each other in rounds: slower than one sweep over the columns, and closer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mpfast import _core
from mpfast.reconstruct.conjugate_gradients import settle
from mpfast.reconstruct.layer import Layer
from mpfast.reconstruct.selection import Selection

__all__ = ["alternating", "gradual"]

Single = NDArray[np.float32]
Mask = NDArray[np.bool_]

_ROUNDS = 4
_STEPS_OF_A_ROUND = 3
_LAST_STEPS = 4

# Of the alternating directions, in units where the inputs have variance one: the penalty to begin with, and how it
# grows by the share of the mask that changed in the last three steps (ALPS).
_PENALTY = 0.1
_MOST_STEPS = 60
_GROWTH = ((0.05, 1.3), (0.005, 1.2), (0.0, 1.1))


def gradual(layer: Layer, selection: Selection) -> tuple[Single, Mask]:
    """Prune a little by |v| sqrt(H_jj), refit what is left, prune more: quickly at first, slowly at last."""
    roots = layer.factor.relative_roots
    values = layer.weights.copy()
    keep = np.ones(layer.shape, np.bool_)
    for number in range(1, _ROUNDS + 1):
        keep = selection.part(1 - (1 - number / _ROUNDS) ** 2).largest(values * roots, layer.threads)
        values *= keep
        settle(layer, values, keep, _STEPS_OF_A_ROUND if number < _ROUNDS else _LAST_STEPS)
    return values, keep


def alternating(layer: Layer, selection: Selection) -> tuple[Single, Mask]:
    """Alternating directions (ADMM) between the weights of least error A and the nearest pruned ones D.

    In coordinates where H has a unit diagonal, with the multipliers Y and the penalty rho:

        A = (W H + rho D - Y) (H + rho)^-1,   D = the largest of A + Y / rho,   Y += rho (A - D).
    """
    roots = layer.factor.relative_roots
    target = layer.weights * roots
    correlations, threads = layer.factor.correlations, layer.threads
    values, into = layer.factor.eigenvectors
    back = np.ascontiguousarray(into.T)
    image = _core.product(target, correlations, threads)
    pruned, multipliers = target.copy(), np.zeros_like(target)
    keep, before, rho = np.ones(layer.shape, np.bool_), None, _PENALTY
    for step in range(_MOST_STEPS):
        turned = _core.product(image + rho * pruned - multipliers, into, threads)
        nearest = _core.product(turned / (values + rho), back, threads)
        moved = (nearest + multipliers / rho).astype(np.float32)
        keep = selection.largest(moved, threads)
        pruned = moved * keep
        multipliers += rho * (nearest - pruned)
        if step % 3 == 2:
            if before is not None:
                changed = int(np.count_nonzero(keep != before)) / max(int(np.count_nonzero(keep)), 1)
                if changed == 0:
                    break
                rho *= next(growth for share, growth in _GROWTH if changed > share)
            before = keep
    result: Single = pruned / roots
    settle(layer, result, keep, _LAST_STEPS)
    return result, keep
