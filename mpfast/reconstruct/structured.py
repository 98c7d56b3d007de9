"""Whole inputs dropped: neurons of the layer before, or heads."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast import _core
from mpfast.reconstruct.factor import Factor
from mpfast.reconstruct.fit import Fit
from mpfast.reconstruct.layer import Layer
from mpfast.support import InvalidValueError, front_door, positive_integer, thread_count

__all__ = ["drop_inputs"]

Array = NDArray[np.float64]
# Beyond, what double precision leaves of an inverse is off; over 500 moments nothing was below 1e9.
_MOST_EXPLAINED = 1e8


@front_door
def drop_inputs(W: Any, C: Any, count: int, *, group: int = 1, threads: int | None = None) -> Fit:
    """Drop whole inputs of a layer, one after the other, each time those whose loss the others make up for best.

    The columns of W that stay hold the least-squares solution, so that the layer before, without these outputs, and
    this one, without these columns, are a smaller dense model: ``kept = fit.mask.any(axis=0)``.

    Parameters
    ----------
    W
        Weights, (out, in), of any framework; float64, float32, float16 or bfloat16.
    C
        Mean of ``x x^T`` over the inputs, (in, in), or a `Factor` of it.
    count
        How many groups of inputs go, 0 or more; at least one stays.
    group
        How many consecutive inputs go together: 1 for neurons, the size of a head for heads. It divides the number of
        inputs.
    threads
        Number of threads; the result does not depend on it.

    Returns
    -------
    Fit
        Its mask drops whole columns.

    Raises
    ------
    ValueError
        An option is out of range, shapes do not fit, an entry is not finite, or as `Factor`.
    TypeError
        W or C is no array of real numbers.

    Examples
    --------
    >>> import numpy as np
    >>> from mpfast import reconstruct
    >>> rng = np.random.default_rng(0)
    >>> W, X = rng.standard_normal((16, 8)), rng.standard_normal((500, 8))
    >>> X[:, 5] = X[:, 1] + X[:, 2]
    >>> fit = reconstruct.drop_inputs(W, X.T @ X / 500, 1)
    >>> int(fit.mask.all(axis=0).sum()), fit.error < 0.01
    (7, True)
    """
    layer = Layer(W, C, thread_count(threads))
    inputs = layer.shape[1]
    size = positive_integer(group, "group", optional=False)
    if inputs % size:
        raise InvalidValueError("group", f"must divide the {inputs} inputs, not {group!r}")
    groups = inputs // size
    if not isinstance(count, (int, np.integer)) or isinstance(count, bool) or not 0 <= count < groups:
        raise InvalidValueError("count", f"must be an integer between 0 and {groups - 1}, not {count!r}")
    weights = np.ascontiguousarray(layer.wide() / layer.unit)
    surgeon = _Surgeon(weights, layer.factor, size, int(count), layer.threads)
    for _ in range(int(count)):
        surgeon.drop_one()
    keep = np.broadcast_to(np.repeat(surgeon.alive, size), layer.shape).copy()
    return layer.fit(np.where(keep, surgeon.weights(weights), 0.0), keep)


class _Surgeon:
    """Greedy removal of groups of inputs.

    With P the inverse of H, and J the group that goes, all weights become ``V - V_J c`` with ``c = P_JJ^-1 P_J``, and P
    becomes ``P - P_J^T c``. What that costs is ``tr V_J P_JJ^-1 V_J^T``, for which ``G = V^T V`` is enough. Neither P
    nor G is updated as a whole: the rows of a group are made when it goes, and the blocks on the diagonal, which decide
    what goes next, after each removal.
    """

    def __init__(self, weights: Array, factor: Factor, size: int, most: int, threads: int) -> None:
        self.size = size
        self._threads = threads
        damped = factor.damped()
        damped /= float(damped.diagonal().mean())
        inverse = self._inverted(damped)
        # The variance of each input over what the others leave of it.
        if not (inverse.diagonal() * damped.diagonal() < _MOST_EXPLAINED).all():
            raise _singular()
        self.alive = np.ones(len(inverse) // size, np.bool_)
        self._inverse, self._gram = inverse, self._product(weights.T, weights)
        self._blocks, self._gram_blocks = self._diagonal_blocks(inverse), self._diagonal_blocks(self._gram)
        self._gone: list[int] = []
        # A row for every input that is gone: P_J and c as they were then, and what changed G.
        self._rows, self._shares, self._changes = np.empty((3, most * size, len(inverse)))

    def drop_one(self) -> None:
        """Remove the group whose loss costs least, of equal ones the first."""
        costs = _core.removal_costs(self._blocks[self.alive], self._gram_blocks[self.alive], self._threads)
        if np.isnan(costs).any():
            raise _singular()
        chosen = int(np.flatnonzero(self.alive)[int(costs.argmin())])
        here = slice(chosen * self.size, (chosen + 1) * self.size)
        done = len(self._gone) * self.size
        earlier_rows, earlier_shares, earlier_changes = (
            part[:done] for part in (self._rows, self._shares, self._changes)
        )
        rows = self._inverse[here] - self._product(earlier_rows[:, here].T, earlier_shares)
        share = self._product(self._inverted(rows[:, here]), rows)
        gram = self._gram[here] - self._product(earlier_shares[:, here].T, earlier_changes)
        gram -= self._product(earlier_changes[:, here].T, earlier_shares)
        change: Array = gram - 0.5 * self._product(gram[:, here], share)
        self._blocks -= self._products(rows, share)
        both = self._products(share, change)
        self._gram_blocks -= both + both.transpose(0, 2, 1)
        new = slice(done, done + self.size)
        self._rows[new], self._shares[new], self._changes[new] = rows, share, change
        self._gone.append(chosen)
        self.alive[chosen] = False

    def weights(self, weights: Array) -> Array:
        """Return the least-squares weights on what is left."""
        count = len(self._gone) * self.size
        lost = np.empty((len(weights), count))
        for number, chosen in enumerate(self._gone):
            here = slice(chosen * self.size, (chosen + 1) * self.size)
            done = number * self.size
            lost[:, done : done + self.size] = weights[:, here] - self._product(
                lost[:, :done], self._shares[:done, here]
            )
        return weights - self._product(lost, self._shares[:count])

    def _product(self, a: Array, b: Array) -> Array:
        return _core.dense_product(np.ascontiguousarray(a), np.ascontiguousarray(b), self._threads)

    def _inverted(self, matrix: Array) -> Array:
        inverse, pivot = _core.positive_inverse(np.ascontiguousarray(matrix), self._threads)
        if pivot >= 0:
            raise _singular()
        return inverse

    def _diagonal_blocks(self, matrix: Array) -> Array:
        groups = np.arange(len(matrix)).reshape(-1, self.size)
        return matrix[groups[:, :, None], groups[:, None, :]]

    def _products(self, a: Array, b: Array) -> Array:
        """The diagonal blocks of ``a^T b``."""
        shape = len(a), len(self.alive), self.size
        products: Array = np.einsum("aki,akj->kij", a.reshape(shape), b.reshape(shape))
        return products


def _singular() -> InvalidValueError:
    return InvalidValueError("C", "is singular with this damping", "raise the damping")
