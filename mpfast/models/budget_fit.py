"""A budget of a model in one form, laid out over its tensors in another: in files, or loaded.

What goes of a stack goes of its experts, the same entries of the same matrices in either form.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.checkpoints import Checkpoint, Layer
from mpfast.masks import row_counts
from mpfast.models.budget import Budget
from mpfast.models.budget_row import LayerBudget
from mpfast.models.mask_plans import LayerCuts, MaskPlan, RowCuts, cut_counts
from mpfast.models.name_fit import FittedNames
from mpfast.support import InvalidValueError

__all__ = ["FittedBudget", "Piece", "plan_of_budget"]


@dataclass(frozen=True)
class Piece:
    """A matrix of a stack that the budget has by itself.

    Attributes
    ----------
    index : tuple of int and slice
        Where it is in the stack.
    row : LayerBudget
        What goes of it.
    """

    index: tuple[int | slice, ...]
    row: LayerBudget


class FittedBudget:
    """Which rows of a budget each layer of a checkpoint answers to.

    Parameters
    ----------
    budget
        Of the same model, in files or loaded.
    layers
        Whole tensors of the checkpoint.

    Attributes
    ----------
    rows : mapping of str to LayerBudget
        Those of the budget, by name.
    own : dict of str to LayerBudget
        By layer, the row that is of it alone.
    pieces : dict of str to list of Piece
        By layer that is a stack, the rows of its experts.
    members : dict of str to list of Layer
        By row that is of a stack, the layers that are its experts, in their order in it.

    Raises
    ------
    InvalidValueError
        A shape of the budget is not the layer's.
    """

    def __init__(self, budget: Budget, layers: Sequence[Layer]) -> None:
        self.rows: Mapping[str, LayerBudget] = {row.name: row for row in budget}
        names = FittedNames({row.name: row.shape for row in budget}, layers, "the budget's")
        self._names = names
        self.own = {name: self.rows[key] for name, key in names.own.items()}
        self.pieces = {
            name: [Piece(place.index, self.rows[place.key]) for place in places]
            for name, places in names.pieces.items()
        }
        self.members = names.members
        for layer in layers:
            row = self.own.get(layer.name)
            if row is not None and row.shape not in layer.stored_shapes:
                fact = f"the budget has shape {row.shape} for {layer.name}, not {layer.tensor_shape}"
                raise InvalidValueError("", fact)

    def answers(self, layer: Layer) -> tuple[LayerBudget, ...]:
        """Return the rows that a layer answers to; none where it is not in the budget."""
        return tuple(self.rows[key] for key in self._names.answers(layer))

    def unanswered(self, layers: Sequence[Layer]) -> set[str]:
        """Return the names of the rows that these layers do not answer to in full."""
        return self._names.unanswered(layers)

    def layer_of(self, row: str) -> str:
        """Return the name of a layer that answers to a row: its own one's where there is none."""
        return self._names.layer_of(row)


def plan_of_budget(
    fitted: FittedBudget, checkpoint: Checkpoint, layers: Sequence[Layer], *, per_row: bool, threads: int
) -> tuple[MaskPlan, dict[str, int]]:
    """Plan the masks by which these layers lose what a budget says; may read their weights.

    Returns
    -------
    plan : MaskPlan
    counts : dict of str to int
        Entries that go, by layer.
    """
    counts: dict[str, int] = {}
    shares: dict[str, NDArray[np.int64]] = {}
    for layer in layers:
        rows = fitted.answers(layer)
        if layer.name in fitted.own or layer.name in fitted.pieces:
            counts[layer.name] = sum(row.pruned for row in rows)
    for stack, members in fitted.members.items():
        pruned = fitted.rows[stack].pruned
        if per_row:
            outputs = np.cumsum([0, *(member.tensor_shape[0] for member in members)])
            whole = row_counts(pruned, int(outputs[-1]))
            shares |= {
                member.name: whole[start:stop]
                for member, start, stop in zip(members, outputs[:-1], outputs[1:], strict=True)
            }
            counts |= {member.name: int(shares[member.name].sum()) for member in members}
        else:
            counts |= cut_counts(checkpoint, members, [1.0] * len(members), pruned, 1.0, threads)
    inner: dict[str, Any] = counts | {
        piece.row.name: piece.row.pruned for found in fitted.pieces.values() for piece in found
    }
    plan: MaskPlan = RowCuts(inner, threads, shares) if per_row else LayerCuts(inner, threads)
    return (PieceCuts(plan, fitted.pieces) if fitted.pieces else plan), counts


class PieceCuts:
    """Gives out the masks of stacks matrix by matrix, those of other layers as they come."""

    def __init__(self, plan: MaskPlan, pieces: Mapping[str, Sequence[Piece]]) -> None:
        self._plan = plan
        self._pieces = pieces

    def mask(self, layer: Layer, rows: NDArray[Any], keep: NDArray[np.bool_]) -> None:
        if layer.name not in self._pieces:
            self._plan.mask(layer, rows, keep)
            return
        keep[...] = True
        tensor, kept = rows.reshape(layer.tensor_shape), keep.reshape(layer.tensor_shape)
        for piece in self._pieces[layer.name]:
            shape = piece.row.shape
            matrix = replace(
                layer, name=piece.row.name, tensor_shape=shape, shape=(shape[0], math.prod(shape[1:])), input_axes=(1,)
            )
            self._plan.mask(matrix, tensor[piece.index], kept[piece.index])
