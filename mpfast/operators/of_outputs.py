"""Outputs of a layer as a matrix: W times a root of the second moment of its inputs, never formed.

With ``C = F F^T`` the mean of ``x x^T`` over inputs x, ``W F`` has the singular values of ``W C^(1/2)``, and
``||(W - V) F||_F^2`` is the mean square by which outputs change where V takes the place of W. A product with ``W F`` is
one with F and one with W, by whoever multiplies with that.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast import _core
from mpfast.arrays import SecondMoment
from mpfast.operators.factors import Energies, Factors
from mpfast.operators.linear_operator import OperatorSource, ScaledOperator
from mpfast.operators.protocol import Source, start_run
from mpfast.support import InvalidValueError

__all__ = ["InputRoot", "OutputSource"]

Array = NDArray[np.float64]

# What a root may miss of an entry of the correlations. Sums in single precision over a few hundred inputs leave some
# 1e-6; a negative eigenvalue that is none of rounding leaves as much as itself.
_ROUNDING = 1e-4


class InputRoot:
    """F with ``F F^T = C``, by Cholesky's factorisation of the correlations with complete pivoting.

    Inputs that are combinations of others, but for the rounding of C, add no column. To be made once for layers that
    share their inputs.

    Parameters
    ----------
    C
        Second moment of the inputs, (in, in), of any framework.
    name
        Of the argument that it is.
    threads
        For the core. F does not depend on it.

    Attributes
    ----------
    inputs, rank : int
        F is of shape (inputs, rank).
    scale_exponent : int
        What is kept is ``2**-scale_exponent`` times F.

    Raises
    ------
    InvalidValueError
        C is not square, not symmetric, has non-finite entries or, beyond rounding, negative eigenvalues.
    InvalidTypeError
        C is no array of real numbers.
    """

    def __init__(self, C: Any, name: str, threads: int) -> None:
        moment = SecondMoment.of(C, name, threads)
        roots = np.sqrt(moment.diagonal)
        largest = float(roots.max())
        self.scale_exponent = math.frexp(largest)[1]
        self.inputs = len(roots)
        relative = np.divide(1, roots, out=np.full(len(roots), 1 / (largest or 1.0)), where=roots > 0)
        correlations = moment.symmetric()
        correlations *= relative
        correlations *= relative[:, None]
        root, rest = _core.semidefinite_root(correlations, threads)
        if not rest <= _ROUNDING:
            raise InvalidValueError(
                name,
                "is no second moment: it has a negative eigenvalue",
                "pass the mean of x x^T over all inputs, uncentred, as it is",
            )
        self.rank = root.shape[1]
        root *= np.ldexp(roots, -self.scale_exponent)[:, None]
        self._root = root
        self._matrix = _core.Matrix(root, "float64") if self.rank else None

    def multiply(self, X: NDArray[Any], *, transpose: bool, threads: int) -> Array:
        """Rows of X (count, rank) by ``F^T``: (count, inputs); with ``transpose`` (count, inputs) by F."""
        assert self._matrix is not None, "a root without columns is multiplied with nothing"
        product: Array = _core.multiply(self._matrix, np.ascontiguousarray(X, np.float64), transpose, threads)
        return product


class _Outputs:
    """``W F`` of shape (m, rank), in fp64; methods as in `mpfast.operators.protocol.Multiplier`."""

    dtype = "float64"

    def __init__(self, source: Source, root: InputRoot, threads: int) -> None:
        self._source, self._root, self._threads = source, root, threads
        self.shape: tuple[int, int] = (source.shape[0], root.rank)

    def frobenius_squared(self, factors: Factors | None = None) -> float | None:
        """Return None: it takes as long as all of the spectrum."""
        return None

    def energies(self, factors: Factors | None = None) -> Energies | None:
        """Return None: nobody sees the entries."""
        return None

    def scaled(self, factors: Factors) -> ScaledOperator:
        """The same with factors of its rows and columns, but for their power of two."""
        return ScaledOperator(self, factors)

    def singular_values(self) -> Array | None:
        """Return None: nothing is known in advance."""
        return None

    def apply(self, X: Array) -> Array:
        wide = self.shape[0] < self.shape[1]
        return self.multiply(self.multiply(X, transpose=wide), transpose=not wide)

    def multiply(self, X: NDArray[Any], *, transpose: bool) -> Array:
        if transpose:
            return self._root.multiply(self._by_source(X, transpose=True), transpose=True, threads=self._threads)
        return self._by_source(self._root.multiply(X, transpose=False, threads=self._threads), transpose=False)

    def _by_source(self, X: NDArray[Any], *, transpose: bool) -> Array:
        product = self._source.multiply(np.ascontiguousarray(X, np.float64), transpose=transpose)
        return np.asarray(product, np.float64)


class OutputSource(OperatorSource):
    """A layer's outputs, (m, rank of F); methods as in `mpfast.operators.protocol.Source`.

    Parameters
    ----------
    source
        W, (m, inputs). It is read once, to see that its entries are finite.
    root
        Of the second moment of its inputs.
    threads
        For products with the root.

    Raises
    ------
    InvalidValueError
        W has non-finite entries.
    """

    def __init__(self, source: Source, root: InputRoot, threads: int) -> None:
        _, source = start_run(source, 1, 0, 0, 1, precise=False)
        super().__init__(_Outputs(source, root, threads), threads)
        self.device = source.device
        self.scale_exponent = source.scale_exponent + root.scale_exponent
