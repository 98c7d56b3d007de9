"""The second moment of a layer's inputs, regularised, and what is derived from it once for all layers that share it."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast import _core
from mpfast.arrays import SecondMoment, wide
from mpfast.support import (
    InvalidValueError,
    KeptProperty,
    front_door,
    give_back_freed_memory,
    power_near,
    thread_count,
)

__all__ = ["Factor", "as_factor"]

Array = NDArray[np.float64]
Single = NDArray[np.float32]

# What an input that is always zero has on the diagonal, in units of the mean, where no damping gives it more.
_LEAST_DIAGONAL = 2.0**-20
_LARGEST_DAMPING = 1e6
# How much of an input the others may explain, as its variance over what is left, for single precision to hold a fit.
# Over 500 ill-conditioned moments no fit was off below 1e5, and some were by any amount above.
_DELICATE = 2.0**16


class Factor:
    """The second moment C of a layer's inputs, damped, and its factors: to be made once for layers with the same input.

    What is refitted uses ``H = C + damping * mean(diag C) * I + diagonal * diag(C)``, errors are those of C itself.
    Damping is what keeps a fit from following the noise of a C that was measured with few inputs. For optimal brain
    surgeon alone, 1 % of the mean diagonal is enough from four tokens per input on. With fewer tokens, and before a
    refit of a language model, 30 % of each diagonal entry (``damping=0, diagonal=0.3``) holds better on text that was
    not seen; before one of MiniLM, an encoder, 1 % was the better.

    The factors are computed when they are first needed, on the host, and kept; they take 8 bytes for each entry of C,
    and 4 more for ``method="admm"``. For weights on a GPU they are copied there once, where they take the same.

    Parameters
    ----------
    C
        Mean of ``x x^T`` over the layer's inputs x, uncentred, (in, in), float64 or float32, of any framework. Kept,
        not copied: leave it as it is.
    damping
        Share of the mean of C's diagonal that is added to all of it.
    diagonal
        Share of each diagonal entry that is added to it.
    threads
        Number of threads; the result does not depend on it.

    Attributes
    ----------
    inputs : int
        Number of inputs.
    damping, diagonal : float
        As given.

    Raises
    ------
    ValueError
        C is not square, has non-finite entries or is no second moment: symmetric, with a diagonal that is not negative
        and no ``C_ij**2`` above ``C_ii C_jj``; or, when the factor is needed, it is not positive definite with this
        damping.
    TypeError
        C is no array of real numbers.

    Examples
    --------
    >>> import numpy as np
    >>> from mpfast import reconstruct
    >>> X = np.random.default_rng(0).standard_normal((200, 8)) @ np.triu(np.ones((8, 8)))
    >>> factor = reconstruct.Factor(X.T @ X / len(X), damping=0.01)
    >>> factor.inputs
    8
    """

    @front_door
    def __init__(self, C: Any, damping: float = 0.01, *, diagonal: float = 0.0, threads: int | None = None) -> None:
        self.damping = _share(damping, "damping")
        self.diagonal = _share(diagonal, "diagonal")
        self._threads = thread_count(threads)
        given = SecondMoment.of(C, "C", self._threads)
        self._array, self._dtype, self._matrix = given.array, given.dtype, given.matrix
        self._diagonal = given.diagonal
        self.inputs = len(given.array)
        largest = float(given.diagonal.max())
        if largest > sys.float_info.max / (self.inputs * (1 + self.damping + self.diagonal)):
            raise InvalidValueError("C", f"has entries whose sum no number holds, the largest {largest:g}", "scale it")
        self._is_ending = False
        # By the number of a GPU, what is kept there: see mpfast.reconstruct.cuda.
        self.on_devices: dict[int, Any] = {}

    def __repr__(self) -> str:
        return f"Factor({self.inputs} inputs, damping={self.damping:g}, diagonal={self.diagonal:g})"

    def __getstate__(self) -> dict[str, Any]:
        """What a copy, or another process, makes the factor of; the rest it computes when it needs it."""
        names = ("damping", "diagonal", "_threads", "_array", "_dtype", "_diagonal", "inputs", "_is_ending")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, on_devices={}, _matrix=_core.Matrix(state["_array"], state["_dtype"]))

    @KeptProperty
    def _unit(self) -> float:
        """A power of two near the mean of the diagonal: H is factored in its units."""
        return power_near(float(self._diagonal.mean()))

    @KeptProperty
    def root_unit(self) -> float:
        """A power of two near the root of the mean of the diagonal: what single inputs are in units of."""
        return power_near(math.sqrt(float(self._diagonal.mean())))

    @KeptProperty
    def damped_diagonal(self) -> Array:
        """The diagonal of H, (in,), all positive: an input that is always zero has at least a little."""
        scaled = self._diagonal / self._unit
        mean = float(scaled.mean()) or 1.0
        damped = scaled * (1 + self.diagonal) + self.damping * mean
        return np.where(scaled > 0, damped, max(self.damping, _LEAST_DIAGONAL) * mean) * self._unit

    @KeptProperty
    def upper(self) -> Single:
        """U, (in, in), upper triangular, with ``U^T U = (H / unit)^-1``.

        The unit is a power of two near C's diagonal: the scale is of no importance to what is chosen and refitted.
        """
        factor, pivot = _core.inverse_factor(self._matrix, self._unit, self.damped_diagonal / self._unit, self._threads)
        if pivot < 0:
            entries = np.diagonal(factor)
            # What single precision cannot hold of inputs in units too far apart.
            lost = ~(np.isfinite(entries) & (entries > 0))
            pivot = int(lost.argmax()) if lost.any() else -1
        if pivot >= 0:
            raise InvalidValueError(
                "C",
                f"is not positive definite with damping={self.damping:g} and diagonal={self.diagonal:g}: input {pivot} "
                "is a combination of others",
                "raise the damping",
            )
        return factor

    @KeptProperty
    def is_delicate(self) -> bool:
        """Whether some input is so nearly a combination of others that single precision may not hold a fit."""
        # Of the damped variance of an input the others explain none of what damping has added.
        if float(self.damping_shares.min()) >= 1 / _DELICATE:
            return False
        try:
            explained = np.square(np.diagonal(self.upper), dtype=np.float64) * (self.damped_diagonal / self._unit)
        except InvalidValueError:
            return True
        return not float(explained.max()) <= _DELICATE

    def begin_last_fit(self) -> None:
        """Say that nothing is fitted with this any more after the next fit: what that is done with can go on the way.

        Should it be needed after all, it is computed again.
        """
        self._is_ending = True

    def end_columns(self) -> None:
        """Let go of `upper`, in the last fit: what comes after the columns does not need it."""
        if self._is_ending and self.is_delicate is not None:
            vars(self).pop("upper", None)
            give_back_freed_memory()

    @KeptProperty
    def roots(self) -> Array:
        """Square roots of the diagonal of H, (in,)."""
        roots: Array = np.sqrt(self.damped_diagonal)
        return roots

    @KeptProperty
    def relative_roots(self) -> Single:
        """The same over the largest: what weights are multiplied with where H has a unit diagonal."""
        # No further below than what single precision has of a product with weights near 1.
        relative: Single = np.maximum(self.roots / self.roots.max(), 2.0**-120).astype(np.float32)
        return relative

    @KeptProperty
    def correlations(self) -> Single:
        """H with its rows and columns divided by `roots`: ones on the diagonal; (in, in)."""
        return _core.correlations(self._matrix, 1 / self.roots, self._threads)

    @KeptProperty
    def damping_shares(self) -> Single:
        """What damping has of each diagonal entry of H, (in,), 0 to 1: of an input that is always zero, all."""
        shares: Single = (1 - self._diagonal / self.damped_diagonal).astype(np.float32)
        return shares

    @KeptProperty
    def leading_part(self) -> tuple[Single, float]:
        """B, (in, width), and a number: `correlations` is close to ``B B^T`` and that number times the identity."""
        n = self.inputs
        width = _leading_directions(n)
        if width == 0:
            return np.zeros((n, 0), np.float32), 1.0
        probes = np.ascontiguousarray(_core.probe_block(n, width, 0, 0).reshape(width, n).T)
        basis = _core.leading_part(self.correlations, probes, self._threads)
        # What an input that is always zero has of the others is rounding, and would move its weights.
        basis[self._diagonal == 0] = 0
        rest = 1 - np.square(basis, dtype=np.float64).sum(axis=1)
        # What a rounding has left of it would make the preconditioner blow up.
        return basis, max(float(rest.mean()), 1e-4)

    @KeptProperty
    def eigenvectors(self) -> tuple[Single, Single]:
        """Eigenvalues of `correlations`, (in,), ascending, and the eigenvectors, (in, in), one per column."""
        values, vectors = _core.symmetric_eigenvectors(self.correlations.astype(np.float64), self._threads)
        return np.maximum(values, 0.0).astype(np.float32), np.ascontiguousarray(vectors.T, np.float32)

    @KeptProperty
    def moment(self) -> Array:
        """C in float64 and C order: itself where it is that already."""
        return np.ascontiguousarray(wide(self._array, self._dtype))

    def damped(self) -> Array:
        """H, in float64."""
        damped: Array = (self.moment + self.moment.T) / 2
        np.fill_diagonal(damped, self.damped_diagonal)
        return damped

    def damped_in_units(self) -> Array:
        """H over the power of two in whose units `upper` is, in float64."""
        return self.damped() / self._unit

    def check_inputs(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError unless weights of this shape take as many inputs."""
        if shape[1] != self.inputs:
            raise InvalidValueError("C", f"is of {self.inputs} inputs, but W has {shape[1]}: its shape is {shape}")


def as_factor(C: Any, shape: tuple[int, ...], threads: int) -> Factor:
    """Return C as a `Factor` that fits weights of this shape: itself, or one with the usual damping."""
    factor = C if isinstance(C, Factor) else Factor(C, threads=threads or None)
    factor.check_inputs(shape)
    return factor


def _share(value: Any, name: str) -> float:
    real = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not real or not 0 <= value <= _LARGEST_DAMPING:
        raise InvalidValueError(name, f"must be a number between 0 and {_LARGEST_DAMPING:g}, not {value!r}")
    return float(value)


def _leading_directions(inputs: int) -> int:
    """How many leading directions the preconditioner of a refit knows.

    With 48, four steps get as far as ten with the diagonal, on layers of 384 and 1536 inputs; what they cost grows with
    their square, and is a tenth of the refit for 4096 inputs and 96.
    """
    return min(max(min(inputs // 4, 48), inputs // 32), 96)
