"""Kept weights refitted to what the layers see, on the masks of another plan or on masks that the same data chooses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast import _core, reconstruct
from mpfast.arrays import in_storage, raise_if_nonfinite, widened
from mpfast.checkpoints import Layer
from mpfast.models.budget_fit import Piece
from mpfast.models.budget_row import along_inputs, from_inputs
from mpfast.models.layer_moments import LayerMoments
from mpfast.models.mask_plans import MaskPlan, Refit, matrix_of
from mpfast.models.moment_parts import Part
from mpfast.support import argument_called, power_near

__all__ = ["DEFAULT_FIT", "DEFAULT_STEPS", "FITTED_METHODS", "FittedMethod", "Refitting", "damping_for"]

#: Steps of the refit in the end, see `mpfast.reconstruct.refit`.
DEFAULT_STEPS = 4
# Rows for each input dimension from which on less damping is enough without a refit, and little with one.
_ENOUGH_ROWS = 4
_MANY_ROWS = 12


@dataclass(frozen=True)
class FittedMethod:
    """A way to choose by the inputs of a layer what goes, and to refit the rest.

    Attributes
    ----------
    name : str
        What the user calls it, as in `mpfast.reconstruct.prune`.
    description : str
        Which entries go, in one sentence.
    """

    name: str
    description: str


_METHODS = (
    FittedMethod(
        "obs", "by optimal brain surgeon, the same share of every layer; needs moments, and is the default then"
    ),
    FittedMethod("gradual", "as obs, a little at a time by magnitude times the input's norm; needs moments"),
    FittedMethod("admm", "as obs, mask and weights together: the least error, and the slowest; needs moments"),
)
#: The methods that need the moments of the inputs, by their names.
FITTED_METHODS: Mapping[str, FittedMethod] = MappingProxyType({method.name: method for method in _METHODS})
#: What chooses where there are moments and nothing else is asked for.
DEFAULT_FIT = "obs"


def damping_for(
    method: str, steps: int, damping: float | None, rows_per_input: float | None = None
) -> tuple[float, float]:
    """Return the share of the mean diagonal and that of each diagonal entry by which moments are damped.

    The fewer rows a moment is the mean of, the more of it is noise that a fit would follow: 1 % of the mean is enough
    from 12 rows for each input dimension on; below, it is 15 % of each entry for optimal brain surgeon alone, down to 4
    rows, else 30 %. Chosen on the choosing halves of ``benchmarks/quality/reconstruction.py``: all-MiniLM-L6-v2 with 15
    to 62 rows per input, SmolLM2-135M with 0.7 to 11. For the latter, optimal brain surgeon alone by 15 % and by 1 %
    are even there: by 15 % better at 2:4, worse at 60 %.

    Parameters
    ----------
    method
        Name of what chooses, of `FITTED_METHODS`; anything else: masks are given.
    steps
        Of the refit.
    damping
        What the caller wants: a share of the mean. None: by the rule.
    rows_per_input
        How many rows the moment is the mean of, over its size. None: not known, and taken as 4 or more, below 12.
    """
    if damping is not None:
        return damping, 0.0
    if rows_per_input is not None and rows_per_input >= _MANY_ROWS:
        return 0.01, 0.0
    alone = method == DEFAULT_FIT and steps == 0
    enough = rows_per_input is None or rows_per_input >= _ENOUGH_ROWS
    return 0.0, 0.15 if alone and enough else 0.3


@dataclass
class Refitting:
    """Gives out masks and refitted weights.

    Attributes
    ----------
    masking
        Gives out the masks of layers without a moment and, where `chooser` is none, of all.
    moments
        Of the layers' inputs.
    chooser
        Name of the method of `FITTED_METHODS` that chooses what goes; empty: the masks are those of `masking`.
    pruned
        By layer how many entries go, where `chooser` chooses.
    groups
        n and m of a pattern that `chooser` keeps to, in the place of `pruned`.
    steps
        Of the refit.
    damping
        What `damping_for` gives for so many rows per input.
    threads
        Number of threads.
    pieces
        By layer that is a stack, what goes of each of its matrices, where that is known.
    """

    masking: MaskPlan
    moments: LayerMoments
    chooser: str
    pruned: Mapping[str, int]
    groups: tuple[int, int] | None
    steps: int
    damping: Callable[[float | None], tuple[float, float]]
    threads: int
    pieces: Mapping[str, Sequence[Piece]] = field(default_factory=dict)

    def mask(self, layer: Layer, rows: NDArray[Any], keep: NDArray[np.bool_]) -> Refit:
        """Write the mask of the next layer, and return what its weights become; see `MaskPlan`."""
        if layer not in self.moments:
            self.masking.mask(layer, rows, keep)
            return Refit(None, reason=self.moments.reasons[layer.name])
        if not self.chooser:
            self.masking.mask(layer, rows, keep)
        tensor, kept = rows.reshape(layer.tensor_shape), keep.reshape(layer.tensor_shape)
        weights = widened(rows) if layer.dtype == "bfloat16" else rows
        if not np.isfinite(weights).all():
            bad = np.argwhere(~np.isfinite(weights.reshape(layer.tensor_shape)))
            raise_if_nonfinite(layer.name, len(bad), tuple(int(i) for i in bad[0]))
        updated = tensor.copy()
        changes = []
        gone = seen = 0
        for part in self.moments.parts(layer):
            # So many of all so far that they add up to what is to go.
            seen += tensor[part.index].size
            pruned = 0
            if self.chooser and not self.groups:
                pruned = self.pruned[layer.name] * seen // layer.size - gone
                if layer.name in self.pieces:
                    pruned = sum(piece.row.pruned for piece in self.pieces[layer.name] if _is_in(piece, part))
                gone += pruned
            changes.append(self._refit(layer, part, tensor, updated, kept, pruned))
        # A zero of either sign, where the mask is.
        new = np.where(keep, updated.reshape(rows.shape), np.zeros((), rows.dtype))
        return Refit(new, *_errors(changes))

    def _refit(
        self,
        layer: Layer,
        part: Part,
        tensor: NDArray[Any],
        updated: NDArray[Any],
        keep: NDArray[np.bool_],
        pruned: int,
    ) -> _Changes:
        """Write mask and weights of a part of a layer, `pruned` of its entries to go, and return what they change."""
        shape = tensor[part.index].shape
        axes = tuple(axis - (tensor.ndim - len(shape)) for axis in layer.input_axes)
        stored = along_inputs(tensor[part.index], axes)
        given = None if self.chooser else along_inputs(keep[part.index], axes)
        whole, partial, kept_back = self.moments.factors(layer, part, self.damping)
        with argument_called(f"the moment of {layer.name}{part.label}", within="C"):
            fit = self._fit(layer, stored, whole, given, pruned)
            other = None if partial is None else self._fit(layer, stored, partial, given, pruned)
        new = in_storage(np.asarray(fit.weights), layer.dtype)
        masked = np.where(fit.mask, stored, np.zeros((), stored.dtype))
        numbers = widened(stored) if layer.dtype == "bfloat16" else stored
        unit = power_near(max(float(numbers.max()), -float(numbers.min()))), whole.root_unit
        heldout = None
        if other is not None:
            tried = in_storage(np.asarray(other.weights), layer.dtype)
            heldout = self._changes(stored, tried, layer, kept_back, unit)
        keep[part.index] = from_inputs(fit.mask, shape, axes)
        updated[part.index] = from_inputs(new, shape, axes)
        square, change = self._changes(stored, new, layer, whole, unit)
        _, by_mask = self._changes(stored, masked, layer, whole, unit)
        return _Changes(round(math.log2(unit[0]) + math.log2(unit[1])), square, change, by_mask, heldout)

    def _fit(
        self, layer: Layer, stored: NDArray[Any], factor: Any, given: NDArray[np.bool_] | None, pruned: int
    ) -> Any:
        weights = widened(stored) if layer.dtype == "bfloat16" else stored
        if given is not None:
            return reconstruct.refit(weights, factor, given, steps=self.steps, threads=self.threads)
        # Half an entry more than is asked for, so that no rounding of the share makes it one less.
        share = None if self.groups else min(1.0, (pruned + 0.5) / stored.size)
        return reconstruct.prune(
            weights,
            factor,
            sparsity=share,
            pattern=self.groups,
            method=self.chooser,
            refit=self.steps,
            threads=self.threads,
        )

    def _changes(
        self, before: NDArray[Any], after: NDArray[Any], layer: Layer, factor: Any, unit: tuple[float, float]
    ) -> tuple[float, float]:
        """``tr W C W^T`` and ``tr (W - V) C (W - V)^T`` of weights as they are stored, over the square of a unit."""
        target = matrix_of(before, layer)
        total = _core.quadratic_error(target, None, factor.moment, unit, self.threads)
        change = _core.quadratic_error(target, matrix_of(after, layer), factor.moment, unit, self.threads)
        # Rounding may leave a change of nothing below zero.
        return total, max(change, 0.0)


def _is_in(piece: Piece, part: Part) -> bool:
    """Whether a matrix of a stack is in a part of it: all of it, or one expert's."""
    return not part.index or part.index[0] == piece.index[0]


@dataclass(frozen=True)
class _Changes:
    """Mean squares of the outputs of a part of a layer, and of what has changed them.

    Attributes
    ----------
    unit : int
        Power of two in whose square the others are.
    square, change, masked
        Of the outputs; of the change by the new weights, and by the mask alone.
    heldout
        The first two on data held out, where there is any.
    """

    unit: int
    square: float
    change: float
    masked: float
    heldout: tuple[float, float] | None


def _errors(parts: Sequence[_Changes]) -> tuple[float, float, float | None]:
    """The shares of all parts' mean squares that the changes are: of the fit, of the mask alone, and held out."""
    largest = max((part.unit for part in parts if part.square > 0), default=0)

    def share(pairs: Iterable[tuple[_Changes, float, float]]) -> float:
        square = change = 0.0
        for part, before, changed in pairs:
            # What vanishes here is nothing beside the others.
            shift = min(0, 2 * (part.unit - largest))
            square += math.ldexp(before, shift)
            change += math.ldexp(changed, shift)
        return change / square if square > 0 else 0.0

    heldout = [(part, *part.heldout) for part in parts if part.heldout is not None]
    return (
        share((part, part.square, part.change) for part in parts),
        share((part, part.square, part.masked) for part in parts),
        share(heldout) if heldout else None,
    )
