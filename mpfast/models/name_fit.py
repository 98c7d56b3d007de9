"""What is said of the tensors of a model in one form, laid out over its tensors in another: in files, or loaded.

transformers stacks the experts of mixtures when it loads them, and calls some tensors otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mpfast.checkpoints import Layer, other_names, stacked_expert
from mpfast.support import InvalidValueError

__all__ = ["FittedNames", "Place"]


@dataclass(frozen=True)
class Place:
    """A matrix in a stack of experts.

    Attributes
    ----------
    key : str
        What something is said of.
    index : tuple of int and slice
        Where the matrix is in the stack.
    """

    key: str
    index: tuple[int | slice, ...]


class FittedNames:
    """Which names each layer of a checkpoint answers to.

    Parameters
    ----------
    shapes
        Of the tensors that something is said of, by name; of the same model, in files or loaded.
    layers
        Whole tensors of the checkpoint.
    whose
        What they are of, for messages: "the budget's".

    Attributes
    ----------
    own : dict of str to str
        By layer, the name that is of it alone.
    pieces : dict of str to list of Place
        By layer that is a stack, the names of its experts.
    members : dict of str to list of Layer
        By name that is of a stack, the layers that are its experts, in their order in it.
    places : dict of str to Place
        Where in their stacks these are, by layer.

    Raises
    ------
    InvalidValueError
        The shapes of a stack and of an expert in it do not agree.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], layers: Sequence[Layer], whose: str) -> None:
        self._shapes, self._whose = shapes, whose
        self.own: dict[str, str] = {}
        self.pieces: dict[str, list[Place]] = {}
        self.members: dict[str, list[Layer]] = {}
        self.places: dict[str, Place] = {}
        for layer in layers:
            names = (layer.name, *other_names(layer.name), layer.file_name)
            name = next((name for name in names if name in shapes), None)
            if name is not None:
                self.own[layer.name] = name
        self._take_experts_of_files({layer.name: layer for layer in layers})
        self._take_stacks_of_files(layers)

    def answers(self, layer: Layer) -> tuple[str, ...]:
        """Return the names that a layer answers to; none where nothing is said of it."""
        if layer.name in self.own:
            return (self.own[layer.name],)
        if layer.name in self.places:
            return (self.places[layer.name].key,)
        return tuple(place.key for place in self.pieces.get(layer.name, ()))

    def unanswered(self, layers: Sequence[Layer]) -> set[str]:
        """Return the names that these layers do not answer to in full."""
        chosen = {layer.name for layer in layers}
        found = {name for layer in layers for name in self.answers(layer)}
        lacking = {name for name, members in self.members.items() if not chosen.issuperset(m.name for m in members)}
        return (set(self._shapes) - found) | lacking

    def layer_of(self, key: str) -> str:
        """Return the name of a layer that answers to a name: this itself where there is none."""
        owners = [name for name, own in self.own.items() if own == key]
        owners += [name for name, pieces in self.pieces.items() if any(place.key == key for place in pieces)]
        owners += [member.name for member in self.members.get(key, ())]
        return owners[0] if owners else key

    def _take_experts_of_files(self, there: Mapping[str, Layer]) -> None:
        """Names of experts one by one, where they are stacked here."""
        known = set(self.own.values())
        for key, shape in self._shapes.items():
            expert = None if key in known else stacked_expert(key, there)
            if expert is None or expert.stack in self.own:
                continue
            layer = there[expert.stack]
            said = f"{self._whose} {key} is in {layer.name}"
            rows = (expert.rows.index(key), len(expert.rows))
            index = _index(expert.number, rows, shape, layer.tensor_shape, said)
            self.pieces.setdefault(layer.name, []).append(Place(key, index))

    def _take_stacks_of_files(self, layers: Sequence[Layer]) -> None:
        """Names of stacks, whose experts are one by one here."""
        found: dict[str, list[tuple[int, int, Layer]]] = {}
        stacks = {key for key, shape in self._shapes.items() if len(shape) == 3}
        for layer in layers:
            expert = None if layer.name in self.own or not stacks else stacked_expert(layer.name, stacks)
            if expert is None:
                continue
            rows = (expert.rows.index(layer.name), len(expert.rows))
            said = f"{layer.name} is in {self._whose} {expert.stack}"
            index = _index(expert.number, rows, layer.tensor_shape, self._shapes[expert.stack], said)
            found.setdefault(expert.stack, []).append((expert.number, rows[0], layer))
            self.places[layer.name] = Place(expert.stack, index)
        for stack, members in found.items():
            ordered = [layer for *_, layer in sorted(members, key=lambda member: member[:2])]
            count, experts = sum(layer.size for layer in ordered), self._shapes[stack]
            entries = experts[0] * experts[1] * experts[2]
            if count != entries:
                fact = f"{self._whose} {stack} has {entries:,} entries, its experts here {count:,}"
                raise InvalidValueError("", fact)
            self.members[stack] = ordered


def _index(
    number: int, rows: tuple[int, int], shape: tuple[int, ...], stack: tuple[int, ...], said: str
) -> tuple[int | slice, ...]:
    """Where in a stack of this shape the matrix of an expert is, the first of `rows` of so many in its matrix."""
    place, count = rows
    if len(stack) != 3 or number >= stack[0]:
        raise InvalidValueError("", f"{said}, whose shape {stack} has no expert {number}")
    if shape != (stack[1] // count, stack[2]):
        raise InvalidValueError("", f"{said}, but the shapes {shape} and {stack} do not agree")
    return number, slice(place * shape[0], (place + 1) * shape[0])
