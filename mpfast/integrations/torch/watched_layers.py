"""The layers of a model whose inputs are counted, under their names, and why others are not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

import torch

from mpfast.checkpoints import NameFilter, Role, as_stored, name_filter, open_checkpoint, roles_of
from mpfast.integrations.torch.layers import is_transposed, takes, watch_input, watchable_modules
from mpfast.integrations.torch.unnamed_layers import UnnamedLayer, unnamed_layers, watching

__all__ = ["WatchedLayers"]


@dataclass
class WatchedLayers:
    """Modules, and matrices that are no module's weight, by name.

    Attributes
    ----------
    model : Module
        The whole model.
    modules : dict of str to Module
        Linear, Conv2d and Conv1D.
    unnamed : dict of str to UnnamedLayer
        Experts of stacks and fused projections.
    skipped : dict of str to str
        What is not watched, and why.
    """

    model: torch.nn.Module
    modules: dict[str, torch.nn.Module] = field(default_factory=dict)
    unnamed: dict[str, UnnamedLayer] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        model: torch.nn.Module,
        block: int | None,
        layout: str,
        include: NameFilter | None,
        exclude: NameFilter | None,
    ) -> WatchedLayers:
        """Find what can be watched in blocks of this size and order, see `SecondMoments`."""
        found = cls(model)
        for name, module in watchable_modules(model, include, exclude).items():
            reason = _why_not(module, block, layout)
            if reason is None:
                found.modules[name] = module
            else:
                found.skipped[name] = reason
        roles = roles_of(as_stored(open_checkpoint(model)))
        for name, layer in unnamed_layers(model, roles).items():
            if not _is_wanted(layer.owner, include, exclude):
                continue
            if block is not None and layer.inputs % block:
                found.skipped[name] = f"{layer.inputs} inputs cannot be cut into blocks of {block}"
            else:
                found.unnamed[name] = layer
        seen = set(found.modules) | {layer.owner for layer in found.unnamed.values()}
        for name in _owners(roles):
            if name not in seen and _is_wanted(name, include, exclude):
                found.skipped.setdefault(name, "no Linear or Conv2d of its own: its inputs are not watched")
        return found

    def __contains__(self, name: object) -> bool:
        return name in self.modules or name in self.unnamed

    def __bool__(self) -> bool:
        return bool(self.modules or self.unnamed)

    def watch(self, see: Callable[[str, torch.nn.Module, torch.Tensor], None]) -> ExitStack:
        """Call ``see(name, module, x)`` with every input, until the stack that is returned is closed."""
        with ExitStack() as stack:
            for name, module in self.modules.items():
                stack.callback(watch_input(module, partial(see, name, module)).remove)
            if self.unnamed:
                stack.enter_context(watching(self.model, self.unnamed, see))
            return stack.pop_all()

    def takes(self, name: str, module: torch.nn.Module, x: torch.Tensor) -> bool:
        """Whether a tensor is what the layer multiplies with."""
        unnamed = self.unnamed.get(name)
        return takes(module, x) if unnamed is None else x.shape[-1:] == (unnamed.inputs,)

    def inputs(self, name: str) -> int:
        """Number of inputs of each output."""
        return self.unnamed[name].inputs if name in self.unnamed else _row_length(self.modules[name])

    def weight(self, name: str) -> torch.Tensor:
        """The matrix as it is stored."""
        if name in self.unnamed:
            return self.unnamed[name].stored
        weight: torch.Tensor = self.modules[name].weight
        return weight.detach()


def _why_not(module: torch.nn.Module, block: int | None, layout: str) -> str | None:
    length = _row_length(module)
    if isinstance(module, torch.nn.Conv2d):
        if module.groups != 1:
            return "a grouped convolution: every group has inputs of its own"
        if layout == "channel":
            length = module.in_channels
    if block is not None and length % block:
        return f"{length} inputs cannot be cut into blocks of {block}"
    return None


def _row_length(module: torch.nn.Module) -> int:
    weight: torch.Tensor = module.weight
    return len(weight) if is_transposed(module) else weight[0].numel()


def _owners(roles: Mapping[str, Role]) -> list[str]:
    """Modules that have a weight matrix, of whatever class; embeddings have no inputs to multiply with."""
    kinds = ("linear", "conv", "conv_transposed", "experts", "head")
    return [(role.called or name).rpartition(".")[0] for name, role in roles.items() if role.kind in kinds]


def _is_wanted(name: str, include: NameFilter | None, exclude: NameFilter | None) -> bool:
    wanted, unwanted = name_filter(include, "include"), name_filter(exclude, "exclude")
    return (wanted is None or wanted(name)) and not (unwanted is not None and unwanted(name))
