"""Which moments are those of a layer's inputs: by the names of weights, whole or part by part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mpfast.checkpoints import Layer, stacked_expert
from mpfast.support import InvalidValueError

__all__ = ["Part", "experts_of_stacks", "gradients_of_layers", "parts_of"]

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
    label : str
        Its number or name in brackets; empty for all of the layer.
    pieces : tuple of Part
        What it is made up of, where that is watched piece by piece and has one input.
    stack : str
        Of an expert, what it is one of: the name of the tensor in the model that was watched.
    rows : tuple of str
        Of an expert that is stored by itself, the tensors that were watched as one matrix, from above.
    """

    index: tuple[int | slice, ...]
    module: str | None
    label: str = ""
    pieces: tuple[Part, ...] = ()
    stack: str = ""
    rows: tuple[str, ...] = ()


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
    modules = _watched(layers, weights, given)
    labelled: dict[str, dict[str, str]] = {}
    for weight, module in modules.items():
        if weight.endswith("]"):
            tensor, _, label = weight[:-1].rpartition("[")
            labelled.setdefault(tensor, {})[label] = module
    names = _names(layers, modules)
    found, reasons = {}, {}
    for layer in layers:
        name = names[layer.name]
        if name in modules:
            parts: tuple[Part, ...] = (Part(layer.index, modules[name]),)
        else:
            parts = _labelled(layer, name, labelled) or _expert(layer, name, labelled)
        if len({input_of(part.module) if part.module is not None else part for part in parts}) == 1:
            pieces = parts if len(parts) > 1 else ()
            only = parts[0]  # one input for all of it
            stack = "" if pieces else only.stack
            parts = (Part(layer.index, only.module, pieces=pieces, stack=stack, rows=only.rows),)
        if parts:
            found[layer.name] = parts
        else:
            reasons[layer.name] = "the moments hold none of its inputs"
    if not found:
        raise _of_no_layer("moments", layers, given)
    return found, reasons


def experts_of_stacks(weights: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the modules that stand for the experts of each stack, in the order of these; see `parts_of`."""
    found: dict[str, dict[int, str]] = {}
    for module, weight in weights.items():
        tensor, _, label = weight.removesuffix("]").rpartition("[")
        if weight.endswith("]") and label.isdecimal():
            found.setdefault(tensor, {})[int(label)] = module
    return {tensor: [modules[number] for number in sorted(modules)] for tensor, modules in found.items()}


def gradients_of_layers(
    layers: Sequence[Layer], weights: Mapping[str, str], given: Mapping[str, Any]
) -> tuple[dict[str, str], dict[str, str]]:
    """Return by layer the key of the gradients of its outputs, and why other layers have none; see `parts_of`."""
    modules = _watched(layers, weights, given)
    names = _names(layers, modules)
    found = {layer.name: modules[names[layer.name]] for layer in layers if names[layer.name] in modules}
    if not found:
        raise _of_no_layer("gradients", layers, given)
    missing = {layer.name for layer in layers} - found.keys()
    return found, dict.fromkeys(sorted(missing), "the gradients hold none of its outputs")


def _watched(layers: Sequence[Layer], weights: Mapping[str, str], given: Mapping[str, Any]) -> dict[str, str]:
    """The keys of what was measured, by names of weights."""
    names = {layer.name for layer in layers}
    modules = {weight: module for module, weight in weights.items()}
    return modules | {name: name for name in given if name in names}


def _names(layers: Sequence[Layer], modules: Mapping[str, str]) -> dict[str, str]:
    """What whoever watched the model called each layer, by its name here; empty where that cannot be said."""
    added, removed = _prefix({_tensor_of(layer.name) for layer in layers}, {_tensor_of(weight) for weight in modules})
    return {
        layer.name: f"{added}{layer.name.removeprefix(removed)}" if layer.name.startswith(removed) else ""
        for layer in layers
    }


def _of_no_layer(what: str, layers: Sequence[Layer], given: Mapping[str, Any]) -> InvalidValueError:
    return InvalidValueError(
        what, f"are of no layer of this model: they have {next(iter(given))!r}, the model {layers[0].name!r}"
    )


def _tensor_of(name: str) -> str:
    return name[:-1].rpartition("[")[0] if name.endswith("]") else name


def _labelled(layer: Layer, name: str, stacks: Mapping[str, Mapping[str, str]]) -> tuple[Part, ...]:
    """The parts of a layer that have moments by their labels: experts, or projections."""
    shape, modules = layer.tensor_shape, stacks.get(name, {})
    if not modules or layer.index:
        return ()
    if layer.kind == "experts" and len(shape) == 3:
        return tuple(Part((e,), modules.get(str(e)), f"[{e}]", stack=name) for e in range(shape[0]))
    if len(shape) == 2 and layer.input_axes == (1,) and modules.keys() == set(_PROJECTIONS) and shape[0] % 3 == 0:
        third = shape[0] // 3
        return tuple(
            Part((slice(at * third, (at + 1) * third),), modules[label], f"[{label}]")
            for at, label in enumerate(_PROJECTIONS)
        )
    return ()


def _expert(layer: Layer, name: str, stacks: Mapping[str, Mapping[str, str]]) -> tuple[Part, ...]:
    """An expert that is stored by itself, and was watched as one of a stack."""
    found = None if layer.index or layer.input_axes != (1,) else stacked_expert(name, stacks)
    if found is None:
        return ()
    start = len(name) - len(layer.name)  # what the names differ by is a prefix
    rows = tuple(each[start:] if start >= 0 else layer.name[:-start] + each for each in found.rows)
    return (Part((), stacks[found.stack].get(str(found.number)), stack=found.stack, rows=rows),)


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
