"""What a refit returns: weights, and what they change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast import _core
from mpfast.reconstruct.factor import Factor, as_factor
from mpfast.support import KeptProperty, front_door

__all__ = ["Fit", "Grid"]


@dataclass(frozen=True, eq=False)
class Grid:
    """The numbers that rounded weights may be: ``(q - zero) * scale`` for whole q from 0 to ``2**bits - 1``.

    Attributes
    ----------
    bits : int
        1 to 8.
    group : int
        How many consecutive weights of a row share a scale and a zero.
    scale : array of float32
        Shape (out, ceil(in / group)).
    zero : array of float32
        As `scale`, whole numbers: the q that stands for 0.
    """

    bits: int
    group: int
    scale: NDArray[np.float32]
    zero: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Fit:
    """New weights of a layer, which of them are kept, and by how much its outputs change.

    Errors are computed when they are asked for, in float64, on the host, for the weights as they are stored.

    Attributes
    ----------
    weights : array
        Of the caller's framework, type and shape, (out, in); what is pruned is exactly zero.
    mask : array of bool
        True where a weight is kept, of the caller's framework.
    damping, diagonal : float
        Of the `Factor` that was used.
    grid : Grid or None
        Of `quantize`.
    """

    weights: Any
    mask: Any
    damping: float
    diagonal: float
    grid: Grid | None = None
    _target: Callable[[], _core.Matrix] = field(repr=False, kw_only=True)
    _values: Callable[[], _core.Matrix] = field(repr=False, kw_only=True)
    _masked: Callable[[], _core.Matrix] = field(repr=False, kw_only=True)
    _factor: Factor = field(repr=False, kw_only=True)
    _unit: float = field(repr=False, kw_only=True, default=1.0)
    _threads: int = field(repr=False, kw_only=True, default=0)

    @KeptProperty
    def error(self) -> float:
        """``tr (W - V) C (W - V)^T / tr W C W^T``, C undamped: the mean squared change of the outputs."""
        return self._relative(self._values(), self._factor, self._square)

    @KeptProperty
    def masked_error(self) -> float:
        """The same for ``W * mask``: what the mask would change if the kept weights stayed as they were."""
        return self._relative(self._masked(), self._factor, self._square)

    @front_door
    def heldout(self, C: Any) -> float:
        """Return the error on other inputs, given their second moment, (in, in) of any framework, or a `Factor`.

        Raises
        ------
        ValueError, TypeError
            As `Factor`, or the moment is of another number of inputs.
        """
        factor = as_factor(C, tuple(self.mask.shape), self._threads)
        return self._relative(self._values(), factor, self._square_with(factor))

    @KeptProperty
    def _square(self) -> float:
        return self._square_with(self._factor)

    def _square_with(self, factor: Factor) -> float:
        return self._quadratic(None, factor)

    def _relative(self, values: _core.Matrix, factor: Factor, whole: float) -> float:
        change = self._quadratic(values, factor)
        # Rounding may leave a change of nothing below zero.
        return max(change, 0.0) / whole if whole > 0 else 0.0

    def _quadratic(self, values: _core.Matrix | None, factor: Factor) -> float:
        """``tr (W - V) C (W - V)^T``, or ``tr W C W^T``, in units in which W and C are near 1."""
        unit = self._unit, factor.root_unit
        return _core.quadratic_error(self._target(), values, factor.moment, unit, self._threads)
