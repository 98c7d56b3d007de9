"""Singular values that repeat: what a block Krylov space shows of them, and what it cannot.

A block of b probes sees a singular value of any multiplicity at most b times. Where b Ritz values of a run are equal
the value may occur any number of times, and counting each Ritz value once, as for an ordinary spectrum, would be wrong
by all the others. What is right is the mass that the probes have on it: multiplicity over p, with the error of a
sample.

    theta_i      distinct eigenvalues of the Gram operator, scale s^2, i = 1 ... d
    w[c, i]      squared norm of the part of probe c in the eigenspace of theta_i;  E w[c, i] = multiplicity of theta_i
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.spectra.distribution import Measure

__all__ = ["EQUAL", "NEAR", "ZERO_FP64", "Atoms", "atoms_of", "closeness"]

Array = NDArray[np.float64]

# Relative distance (scale s^2) up to which Ritz values count as equal: rounding of fp32 products leaves about 1e-6. The
# values of a noise bulk are some 1 / p apart, and as many of them as the block is wide never fall so close together.
EQUAL = 1e-5
# Share of the largest (scale s^2) up to which a Ritz value may be zero, of fp64 products; of fp32 ones it is EQUAL.
ZERO_FP64 = 1e-12
# Distance up to which they are too close for a dozen steps to show how they are distributed.
NEAR = 1e-3
# Share of all mass below which a Ritz value is a ghost, made of rounding after the space had closed.
GHOST = 1e-6
# Residual (scale s^2, relative) up to which a Ritz value stands where an eigenvalue is.
SETTLED = 1e-3


@dataclass(frozen=True, eq=False)
class Atoms:
    """A spectrum of few distinct values.

    Attributes
    ----------
    theta
        The distinct eigenvalues of the scaled Gram operator, scale s^2, descending, shape (d,).
    weight
        Mass of every probe on each, shape (probes, d).
    """

    theta: Array
    weight: Array

    def measure(self, dim: int, unit: float, dropped: int = -1) -> Measure:
        """Return the distribution, without one probe where ``dropped`` is not -1; ``unit`` undoes the scale.

        A value has as many nodes as it has multiplicity, so that the distribution function jumps there.
        """
        kept = np.delete(self.weight, dropped, axis=0) if dropped >= 0 else self.weight
        mass = kept.sum(axis=0) / kept.sum()
        copies = np.maximum(np.rint(mass * dim), 1).astype(int)
        return Measure(np.repeat(np.sqrt(self.theta) * unit, copies), np.repeat(mass / copies, copies), 0)

    def all_values(self, dim: int, trace: float) -> Array | None:
        """Return all eigenvalues, scale s^2, descending, where their number and sum leave no choice; else None."""
        if len(self.theta) == 1:
            return np.full(dim, trace / dim)
        if len(self.theta) == 2:
            high, low = self.theta
            count = (trace - dim * low) / (high - low)
            if abs(count - round(count)) < 0.05 and 0 < round(count) < dim:
                return np.repeat([high, low], [round(count), dim - round(count)])
        return None


def closeness(blocks: Sequence[Any], zero: float = EQUAL) -> float:
    """Smallest relative distance (scale s^2) within which some run has as many Ritz values as its block is wide.

    Zeros do not count. Of a single vector nothing can be said: infinity.

    Parameters
    ----------
    blocks
        ``(theta, residual, weight, ...)`` of every run: Ritz values, descending, (size,), and the mass of its probes on
        each, (width, size).
    zero
        Up to which share of the largest a Ritz value may be zero and the rounding of the products.
    """
    closest = math.inf
    for theta, _, weight, *_ in blocks:
        width = len(weight)
        if width < 2 or len(theta) < width:
            continue
        first, last = theta[: len(theta) - width + 1], theta[width - 1 :]
        seen = last > zero * theta[0]
        spans = (first - last)[seen] / first[seen]
        closest = min(closest, float(spans.min(initial=math.inf)))
    return closest


def atoms_of(blocks: Sequence[Any], zero: float = EQUAL) -> Atoms | None:
    """Return the distinct values that hold all mass, of runs as in `closeness`; None where some have not settled."""
    theta = np.concatenate([block[0] for block in blocks])
    residual = np.concatenate([block[1] for block in blocks])
    weight = np.zeros((sum(len(block[2]) for block in blocks), len(theta)))
    row = column = 0
    for block in blocks:
        width, size = block[2].shape
        weight[row : row + width, column : column + size] = block[2]
        row, column = row + width, column + size
    share = weight.sum(axis=0) / weight.sum()
    real = share > GHOST
    if np.any(residual[real] > SETTLED * theta[real] + zero * theta.max()):
        return None
    order = np.flatnonzero(real)[np.argsort(-theta[real], kind="stable")]
    ordered = np.where(theta[order] > zero * theta.max(), theta[order], 0.0)
    starts = np.concatenate([[0], np.flatnonzero(ordered[:-1] - ordered[1:] > EQUAL * ordered[:-1]) + 1])
    mass = np.add.reduceat(weight[:, order], starts, axis=1)
    mean = np.add.reduceat(ordered * share[order], starts) / np.add.reduceat(share[order], starts)
    return Atoms(mean, mass)
