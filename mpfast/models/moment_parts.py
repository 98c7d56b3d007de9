"""Which moments are those of a layer's inputs: by the names of weights, whole or part by part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mpfast.checkpoints import Layer
from mpfast.support import InvalidValueError

__all__ = ["Part", "parts_of"]

#: Of a projection whose three parts lie one below the other.
_PROJECTIONS = ("query", "key", "value")


@dataclass(frozen=True)
class Part:
    """A matrix of a layer with inputs of its own.

    Attributes
    ----------
    index : tuple of int and slice
        Which part of the layer's tensor; empty for all of it.
    module : str or None
        Whose moment; None for an expert of a stack that has seen nothing.
    """

    index: tuple[int | slice, ...]
    module: str | None


def parts_of(
    layers: Sequence[Layer],
    weights: Mapping[str, str],
    given: Mapping[str, Any],
    input_of: Callable[[str], Any],
) -> tuple[dict[str, tuple[Part, ...]], dict[str, str]]:
    """Return by layer the parts that have moments, and why other layers have none.

    Parameters
    ----------
    layers
        Of a checkpoint.
    weights
        From module to the name of the weight, or of the part of one, whose inputs its moment is of.
    given
        The moments.
    input_of
        From module to what stands for its inputs: the same for modules that share them.

    Raises
    ------
    InvalidValueError
        No layer has a moment.
    """
    modules = {weight: module for module, weight in weights.items()}
    modules |= {name: name for name in given if any(layer.name == name for layer in layers)}
    labelled: dict[str, dict[str, str]] = {}
    for weight, module in modules.items():
        if weight.endswith("]"):
            tensor, _, label = weight[:-1].rpartition("[")
            labelled.setdefault(tensor, {})[label] = module
    added, removed = _prefix({_tensor_of(layer.name) for layer in layers}, {_tensor_of(weight) for weight in modules})
    found, reasons = {}, {}
    for layer in layers:
        name = f"{added}{layer.name.removeprefix(removed)}" if layer.name.startswith(removed) else ""
        parts = (Part(layer.index, modules[name]),) if name in modules else _labelled(layer, labelled.get(name, {}))
        if len({input_of(part.module) if part.module is not None else part for part in parts}) == 1:
            parts = (Part(layer.index, parts[0].module),)  # one input for all of it
        if parts:
            found[layer.name] = parts
        else:
            reasons[layer.name] = "the moments hold none of its inputs"
    if not found:
        raise InvalidValueError(
            "moments", f"are of no layer of this model: they have {next(iter(given))!r}, the model {layers[0].name!r}"
        )
    return found, reasons


def _tensor_of(name: str) -> str:
    return name[:-1].rpartition("[")[0] if name.endswith("]") else name


def _labelled(layer: Layer, modules: Mapping[str, str]) -> tuple[Part, ...]:
    """The parts of a layer that have moments by their labels: experts, or projections."""
    shape = layer.tensor_shape
    if not modules or layer.index:
        return ()
    if layer.kind == "experts" and len(shape) == 3:
        return tuple(Part((expert,), modules.get(str(expert))) for expert in range(shape[0]))
    if len(shape) == 2 and layer.input_axes == (1,) and modules.keys() == set(_PROJECTIONS) and shape[0] % 3 == 0:
        third = shape[0] // 3
        return tuple(
            Part((slice(at * third, (at + 1) * third),), modules[label]) for at, label in enumerate(_PROJECTIONS)
        )
    return ()


def _prefix(names: set[str], weights: set[str]) -> tuple[str, str]:
    """What is to be put before a layer's name, and what to be taken away, so that most of them are found."""
    if names & weights:
        return "", ""
    votes: Counter[tuple[str, str]] = Counter()
    for mine, others, is_added in ((weights, names, True), (names, weights, False)):
        for name in mine:
            parts = name.split(".")
            for at in range(1, len(parts)):
                if ".".join(parts[at:]) in others:
                    prefix = ".".join(parts[:at]) + "."
                    votes[(prefix, "") if is_added else ("", prefix)] += 1
    return votes.most_common(1)[0][0] if votes else ("", "")
