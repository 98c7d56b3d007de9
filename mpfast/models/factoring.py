"""Low-rank factors of the layers of a checkpoint, one layer at a time."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast import _core
from mpfast.arrays import wide
from mpfast.checkpoints import Checkpoint, Difference, Layer, read_layer, stays_dense, stored
from mpfast.models.skipped import LEFT_DENSE
from mpfast.spectra import lowrank, spectrum
from mpfast.support import InputError, InvalidValueError

__all__ = ["FactoredLayer", "Factoring", "Factors", "Wanted"]

# Of the singular values. Where the rank cuts through the noise, neighbours are close together, and a looser tolerance
# mixes them: at 1e-5 the product is off by up to 8e-4 of its norm, at this one by 1e-5, in the same time.
TOLERANCE = 1e-9


@dataclass(frozen=True)
class FactoredLayer:
    """A matrix that became two.

    Attributes
    ----------
    name : str
        The tensor in the source.
    shape : (int, int)
        Of the matrix.
    rank : int
        Of the factors.
    energy : float
        Share of the squared Frobenius norm that the factors hold.
    """

    name: str
    shape: tuple[int, int]
    rank: int
    energy: float

    @property
    def entries(self) -> int:
        """Number of entries of both factors."""
        return self.rank * sum(self.shape)


@dataclass(frozen=True)
class Wanted:
    """How many singular values of a matrix are kept: one of the three is given.

    Attributes
    ----------
    rank : int, "mp_edge" or None
        So many at most, or those above the edge.
    energy : float or None
        As few as hold this share of the squared Frobenius norm.
    error : float or None
        As few as leave this relative error, Frobenius norm over Frobenius norm, at most.
    """

    rank: int | str | None = None
    energy: float | None = None
    error: float | None = None

    @classmethod
    def of(cls, rank: Any, energy: Any, error: Any, *, has_base: bool) -> Wanted:
        """Check what the caller of `compress` or `resize` asked for; InvalidValueError says what cannot be asked."""
        given = [name for name, value in (("rank", rank), ("energy", energy), ("error", error)) if value is not None]
        if len(given) > 1:
            raise InvalidValueError("", f"{' and '.join(given)} do not go together", "pass one of them")
        if not given and has_base:
            return cls(rank="mp_edge")
        if not given:
            raise InvalidValueError(
                "",
                "nothing says how much of the matrices is to stay",
                "pass one of rank, energy (share of the squared norm) and error (relative)",
            )
        if energy is not None:
            return cls(energy=_share("energy", energy, lowest_allowed=False))
        if error is not None:
            return cls(error=_share("error", error, lowest_allowed=True))
        checked = lowrank.check_options(rank, None)
        if isinstance(checked, str) and not has_base:
            raise InvalidValueError(
                "rank",
                "'mp_edge' is for the difference to a base: below the edge of a whole matrix all looks like noise,"
                " but the model computes with it and does not work without it",
                "pass an integer, or energy= or error= instead",
            )
        return cls(rank=checked)

    def count(self, values: NDArray[np.float64]) -> int:
        """Return how many of all singular values, descending, are kept by energy or error; 1 at least."""
        squares = np.square(values)
        total = float(squares.sum())
        lost = np.square(self.error) if self.error is not None else 1 - (1.0 if self.energy is None else self.energy)
        beyond = np.append(np.cumsum(squares[::-1])[::-1], 0.0)  # what is lost when so many are kept
        # Beyond rounding of the sums, all singular values are zero: nothing is gained by keeping them.
        allowed = max(float(lost), len(values) * np.finfo(np.float64).eps) * total
        return max(1, int(np.count_nonzero(beyond > allowed)))


def _share(name: str, value: Any, *, lowest_allowed: bool) -> float:
    fits = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    if not fits or not (0 <= value < 1 if lowest_allowed else 0 < value <= 1):
        interval = "[0, 1)" if lowest_allowed else "(0, 1]"
        raise InvalidValueError(name, f"must be a number in {interval}, not {value!r}")
    return float(value)


Factors = tuple[FactoredLayer, NDArray[Any], NDArray[Any]]


@dataclass
class Factoring:
    """Factors layers one by one.

    Attributes
    ----------
    checkpoint : Checkpoint
        The model.
    difference : Difference or None
        What it is to the checkpoint that it was tuned from, if that is what is factored.
    wanted : Wanted
        How many singular values are kept.
    seed, device : optional
        As in `compress`.
    threads : int
    skipped : dict of str to str
        Why a tensor stayed as it was; filled as layers are looked at.
    unmet : dict of str to str
        By layer, what was reached where a tolerance was not met; filled as layers are factored.
    """

    checkpoint: Checkpoint
    difference: Difference | None
    wanted: Wanted
    seed: int
    device: str | None
    threads: int
    skipped: dict[str, str]
    unmet: dict[str, str] = field(default_factory=dict)

    def is_wanted(self, layer: Layer, embeddings: bool) -> bool:
        """Decide by name, kind and shape; say why not in `skipped`."""
        reason: str | None = None
        if layer.fixed or layer.masked_by:
            reason = layer.fixed or "below a mask: make it permanent first"
        elif layer.aliases and self.difference is None:
            reason = f"the same tensor as {layer.aliases[0]}: it stays whole"
        elif self.difference is None and not embeddings and stays_dense(layer.kind):
            reason = LEFT_DENSE
        elif layer.kind == "experts" or (len(layer.tensor_shape) == 3 and layer.kind == "linear"):
            reason = "a stack of matrices: pass them one by one"
        elif self.difference is not None:
            reason = _reason_for_no_adapter(layer, self.difference)
        if reason is not None:
            self.skipped[layer.name] = reason
        return reason is None

    def factored(self, layer: Layer) -> Factors | None:
        """Return the factors A (m, r) and B (r, n); None, with the reason in `skipped`, where they do not pay."""
        tensors = self.checkpoint if self.difference is None else self.difference
        try:
            dense = stored(read_layer(tensors, layer), layer.name)
            return self._factored(layer, dense, layer.dtype if self.difference is None else dense.dtype.name)
        finally:
            tensors.release(layer.tensor)

    def _factored(self, layer: Layer, dense: NDArray[Any], dtype: str) -> Factors | None:
        if self.difference is not None and not dense.any():
            self.skipped[layer.name] = "equal in both checkpoints"
            return None
        matrix = _core.Matrix(dense.reshape(layer.shape), dtype)
        try:
            rank = self._rank(matrix, layer)
            left, right, self.unmet[layer.name] = lowrank.factors(
                matrix, rank, tol=TOLERANCE, seed=self.seed, threads=self.threads, device=self.device
            )
        except lowrank.NothingAboveEdgeError:
            self.skipped[layer.name] = "no singular value above the Marchenko-Pastur edge"
            return None
        except InputError as error:
            raise InvalidValueError(layer.name, error.reason) from None
        found = np.square(left.astype(np.float64)).sum(axis=0) * np.square(right.astype(np.float64)).sum(axis=1)
        total = _squared_norm(dense, dtype)
        energy = float(found.sum() / total) if total > 0 else 1.0
        if self.difference is None and left.shape[1] * sum(layer.shape) >= layer.size:
            self.skipped[layer.name] = f"rank {left.shape[1]} would take more entries than the matrix"
            return None
        return FactoredLayer(layer.name, layer.shape, left.shape[1], energy), left, right

    def _rank(self, matrix: _core.Matrix, layer: Layer) -> int | str:
        wanted = self.wanted.rank
        if isinstance(wanted, str):
            return wanted
        if wanted is not None:
            return min(wanted, *layer.shape)
        found = spectrum(matrix, method="exact", seed=self.seed, threads=self.threads, device=self.device)
        assert found.values is not None, "an exact spectrum has all singular values"
        return self.wanted.count(found.values)


def _reason_for_no_adapter(layer: Layer, difference: Difference) -> str | None:
    """Say why a layer's update can be no LoRA layer; None where it can."""
    if layer.kind == "embedding":
        return "embedding: no LoRA layer"
    if len(layer.tensor_shape) != 2 or layer.kind not in ("linear", "head"):
        return "not a linear layer"
    if not layer.name.endswith(".weight"):
        return "not called <module>.weight"
    return difference.why_not(layer.name)


def _squared_norm(array: NDArray[Any], dtype: str) -> float:
    """Sum of squares in fp64, a few rows at a time; bfloat16 by its bits."""
    rows = array.reshape(array.shape[0], -1)
    step = max(1, (1 << 22) // rows.shape[1])
    pieces = (wide(rows[i : i + step], dtype) for i in range(0, len(rows), step))
    return sum(float(np.square(piece).sum()) for piece in pieces)
