"""A budget of a model in one form, laid out over its tensors in another: in files, or loaded.

transformers stacks the experts of mixtures when it loads them, and calls some tensors otherwise. What goes of a stack
goes of its experts, the same entries of the same matrices in either form.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.checkpoints import Checkpoint, Layer, other_names, stacked_expert
from mpfast.masks import row_counts
from mpfast.models.budget import Budget
from mpfast.models.budget_row import LayerBudget
from mpfast.models.mask_plans import LayerCuts, MaskPlan, RowCuts, cut_counts
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
        self.own: dict[str, LayerBudget] = {}
        self.pieces: dict[str, list[Piece]] = {}
        self.members: dict[str, list[Layer]] = {}
        self._stack_of: dict[str, str] = {}
        there = {layer.name: layer for layer in layers}
        for layer in layers:
            name = next((name for name in (layer.name, *other_names(layer.name)) if name in self.rows), None)
            if name is not None:
                self._take(layer, self.rows[name])
        self._take_experts_of_files(there)
        self._take_stacks_of_files(layers)

    def answers(self, layer: Layer) -> tuple[LayerBudget, ...]:
        """Return the rows that a layer answers to; none where it is not in the budget."""
        if layer.name in self.own:
            return (self.own[layer.name],)
        if layer.name in self._stack_of:
            return (self.rows[self._stack_of[layer.name]],)
        return tuple(piece.row for piece in self.pieces.get(layer.name, ()))

    def unanswered(self, layers: Sequence[Layer]) -> set[str]:
        """Return the names of the rows that these layers do not answer to in full."""
        chosen = {layer.name for layer in layers}
        found = {row.name for layer in layers for row in self.answers(layer)}
        lacking = {name for name, members in self.members.items() if not chosen.issuperset(m.name for m in members)}
        return (set(self.rows) - found) | lacking

    def layer_of(self, row: str) -> str:
        """Return the name of a layer that answers to a row: its own one's where there is none."""
        owners = [name for name, own in self.own.items() if own.name == row]
        owners += [name for name, pieces in self.pieces.items() if any(piece.row.name == row for piece in pieces)]
        owners += [member.name for member in self.members.get(row, ())]
        return owners[0] if owners else row

    def _take(self, layer: Layer, row: LayerBudget) -> None:
        shape = layer.tensor_shape
        turned = (*shape[:-2], shape[-1], shape[-2]) if layer.kind == "experts" and len(shape) == 3 else shape
        if row.shape not in (shape, turned):
            raise InvalidValueError("", f"the budget has shape {row.shape} for {layer.name}, not {shape}")
        self.own[layer.name] = row

    def _take_experts_of_files(self, there: Mapping[str, Layer]) -> None:
        """Rows of experts one by one, where they are stacked here."""
        known = {row.name for row in self.own.values()}
        for row in self.rows.values():
            expert = None if row.name in known else stacked_expert(row.name, there)
            if expert is None or expert.stack in self.own:
                continue
            layer = there[expert.stack]
            self.pieces.setdefault(layer.name, []).append(
                Piece(_place(expert.number, expert.rows.index(row.name), len(expert.rows), layer, row), row)
            )

    def _take_stacks_of_files(self, layers: Sequence[Layer]) -> None:
        """Rows of stacks, whose experts are one by one here."""
        found: dict[str, list[tuple[int, int, Layer]]] = {}
        stacks = {name for name, row in self.rows.items() if len(row.shape) == 3}
        for layer in layers:
            expert = None if layer.name in self.own or not stacks else stacked_expert(layer.name, stacks)
            if expert is not None:
                place = expert.rows.index(layer.name)
                said = f"{layer.name} is in the budget's {expert.stack}"
                _check_member(expert.number, len(expert.rows), layer.tensor_shape, self.rows[expert.stack].shape, said)
                found.setdefault(expert.stack, []).append((expert.number, place, layer))
        for stack, members in found.items():
            ordered = [layer for *_, layer in sorted(members, key=lambda member: member[:2])]
            entries = sum(layer.size for layer in ordered)
            if entries != self.rows[stack].size:
                fact = f"the budget's {stack} has {self.rows[stack].size:,} entries, its experts here {entries:,}"
                raise InvalidValueError("", fact)
            self.members[stack] = ordered
            self._stack_of |= {layer.name: stack for layer in ordered}


def _place(number: int, place: int, count: int, layer: Layer, row: LayerBudget) -> tuple[int | slice, ...]:
    """Where in a stack the matrix of an expert is, one of so many in its matrix."""
    _check_member(number, count, row.shape, layer.tensor_shape, f"the budget's {row.name} is in {layer.name}")
    return (number, slice(place * row.shape[0], (place + 1) * row.shape[0]))


def _check_member(number: int, count: int, shape: tuple[int, ...], stack: tuple[int, ...], what: str) -> None:
    """Refuse a matrix of this shape as one of `count` in that of the expert of this number of a stack."""
    if len(stack) != 3 or number >= stack[0]:
        raise InvalidValueError("", f"{what}, whose shape {stack} has no expert {number}")
    if shape != (stack[1] // count, stack[2]):
        raise InvalidValueError("", f"{what}, but the shapes {shape} and {stack} do not agree")


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
