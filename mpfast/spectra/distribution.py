"""A discrete probability measure on the singular-value scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpfast.support import KeptProperty, Record

Array = NDArray[np.float64]

__all__ = ["Measure"]


@dataclass(frozen=True, eq=False, repr=False)
class Measure:
    """Distribution of the singular values of one matrix.

    Attributes
    ----------
    nodes
        Singular values, or quadrature nodes in their place, shape (N,); the atoms first, each part descending.
    weights
        Mass of every node, shape (N,); they sum to 1.
    atoms
        The first ``atoms`` nodes are singular values known one by one.

    Notes
    -----
    The distribution function runs linearly through the mid-points of the weight steps. For a full spectrum that makes
    ``quantile((i + 1/2) / p)`` the i-th value in ascending order, exactly; for a quadrature it is what keeps the
    Kolmogorov error at the noise of the probes instead of 1 / (number of nodes).
    """

    nodes: Array
    weights: Array
    atoms: int = 0

    @classmethod
    def from_values(cls, values: ArrayLike) -> Measure:
        """Measure of a full spectrum: mass 1/p on every one of ``values``."""
        nodes = np.sort(np.asarray(values, dtype=np.float64))[::-1]
        return cls(nodes, np.full(len(nodes), 1 / len(nodes)), len(nodes))

    @classmethod
    def from_record(cls, read: Record) -> Measure:
        """Rebuild from `to_dict`; ValueError names the field that is wrong or missing."""
        nodes, weights, atoms = read.numbers("nodes", 0), read.numbers("weights", 0), read.integer("atoms")
        if not nodes or len(weights) != len(nodes):
            raise read.refuse("weights", f"as many as nodes, {len(nodes)}, and at least one")
        if abs(sum(weights) - 1) > 1e-6:
            raise read.refuse("weights", "numbers that sum to 1")
        if atoms > len(nodes):
            raise read.refuse("atoms", f"at most the number of nodes, {len(nodes)}")
        return cls(np.array(nodes), np.array(weights), atoms)

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types."""
        return {"nodes": self.nodes.tolist(), "weights": self.weights.tolist(), "atoms": self.atoms}

    def __repr__(self) -> str:
        return f"<Measure of {len(self.nodes)} nodes, {self.atoms} of them single values>"

    @KeptProperty
    def _curve(self) -> tuple[Array, Array]:
        order = np.argsort(self.nodes, kind="stable")
        w = self.weights[order]
        return self.nodes[order], np.cumsum(w) - 0.5 * w

    def cdf(self, s: ArrayLike) -> Array:
        """Share of the singular values at or below ``s``."""
        nodes, level = self._curve
        s = np.asarray(s, dtype=np.float64)
        # Several nodes may coincide (zeros, multiple values): step over all of them.
        right = np.searchsorted(nodes, s, side="right")
        at = np.clip(right, 1, len(nodes)) - 1
        following = np.minimum(at + 1, len(nodes) - 1)
        gap = nodes[following] - nodes[at]
        share = np.divide(s - nodes[at], gap, out=np.zeros(s.shape), where=gap > 0)
        inside = level[at] + np.clip(share, 0, 1) * (level[following] - level[at])
        share = np.where(right == 0, 0.0, np.where(s >= nodes[-1], 1.0, inside))
        return np.where(np.isnan(s), np.nan, share)

    def quantile(self, u: ArrayLike) -> Array:
        """Singular value below which a share ``u`` of the mass lies."""
        nodes, level = self._curve
        return np.interp(np.asarray(u, dtype=np.float64), level, nodes)

    def density(self, s: ArrayLike) -> Array:
        """Density at ``s``, per unit of s: slope of the distribution function.

        It is taken over 4 % of the range that the middle 98 % of the mass span.
        """
        s = np.asarray(s, dtype=np.float64)
        width = 0.02 * float(self.quantile(0.99) - self.quantile(0.01))
        if width <= 0:
            return np.zeros(s.shape)
        return (self.cdf(s + width) - self.cdf(s - width)) / (2 * width)

    def without_largest(self, share: float) -> Measure:
        """The distribution of the values that are left when the largest, a ``share`` of all, are taken away."""
        order = np.argsort(-self.nodes, kind="stable")
        beyond = np.cumsum(self.weights[order]) - share
        kept = np.clip(beyond, 0.0, self.weights[order])
        # Sums of weights round: what is left of a node that goes is no node.
        some = kept > 1e-9 * self.weights[order]
        return Measure(self.nodes[order][some], kept[some] / kept[some].sum())

    def moment(self, power: int) -> float:
        """Mean of ``s**power``."""
        return float(self.weights @ self.nodes**power)
