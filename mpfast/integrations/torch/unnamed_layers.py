"""Matrices that inputs are multiplied with and that are no module's weight: experts of a stack, fused projections.

Each has a name of its own: the tensor's, with the part in brackets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from mpfast.checkpoints import Role
from mpfast.integrations.torch.sites import Site, experts_one_by_one, sites_of, watched

__all__ = ["UnnamedLayer", "unnamed_layers", "watching"]

_PROJECTIONS = ("query", "key", "value")


@dataclass(frozen=True)
class UnnamedLayer:
    """A part of a parameter that is a matrix by itself.

    Attributes
    ----------
    owner : str
        Name of the module that has the parameter.
    module : Module
        That module.
    inputs : int
        Number of inputs.
    site : Site or None
        Of an expert.
    projection : int or None
        Of `torch.nn.MultiheadAttention`: 0 to 2, for queries, keys and values.
    """

    owner: str
    module: torch.nn.Module
    inputs: int
    site: Site | None = None
    projection: int | None = None

    @property
    def stored(self) -> torch.Tensor:
        """The matrix as it is stored, a view."""
        if self.site is not None:
            return self.site.stored
        whole: torch.Tensor = self.module.in_proj_weight
        assert self.projection is not None
        return whole.detach().chunk(3)[self.projection]


def unnamed_layers(model: torch.nn.Module, roles: Mapping[str, Role]) -> dict[str, UnnamedLayer]:
    """Return experts of stacks, and the projections of `torch.nn.MultiheadAttention` that are fused, by name.

    Parameters
    ----------
    model
        The model.
    roles
        Of its tensors.
    """
    modules = dict(model.named_modules())
    found: dict[str, UnnamedLayer] = {}
    for site in sites_of(model, "", roles)[0]:
        if site.expert is not None:
            owner = site.tensor.rpartition(".")[0]
            found[site.name] = UnnamedLayer(owner, modules[owner], site.inputs, site)
    for name, module in modules.items():
        if isinstance(module, torch.nn.MultiheadAttention) and module.in_proj_weight is not None:
            tensor = f"{name}.in_proj_weight" if name else "in_proj_weight"
            found |= {
                f"{tensor}[{label}]": UnnamedLayer(name, module, module.embed_dim, projection=number)
                for number, label in enumerate(_PROJECTIONS)
            }
    return found


@contextmanager
def watching(
    model: torch.nn.Module,
    layers: Mapping[str, UnnamedLayer],
    see: Callable[[str, torch.nn.Module, torch.Tensor], None],
) -> Iterator[None]:
    """Have ``see(name, module, x)`` called with the inputs of these layers of a model, before they are used."""
    experts = {layer.site.name: layer for layer in layers.values() if layer.site is not None}
    attentions: dict[str, dict[int, str]] = {}
    for name, layer in layers.items():
        if layer.projection is not None:
            attentions.setdefault(layer.owner, {})[layer.projection] = name

    def see_expert(site: Site, x: torch.Tensor) -> None:
        see(site.name, experts[site.name].module, x)

    def see_attention(names: Mapping[int, str], module: torch.nn.Module, args: Any, keywords: dict[str, Any]) -> None:
        given = dict(zip(_PROJECTIONS, args, strict=False)) | keywords
        if all(isinstance(given.get(label), torch.Tensor) for label in _PROJECTIONS):  # else the module will complain
            for number, name in names.items():
                see(name, module, given[_PROJECTIONS[number]])

    with ExitStack() as stack:
        for names in attentions.values():
            module = layers[next(iter(names.values()))].module
            hook = module.register_forward_pre_hook(partial(see_attention, names), with_kwargs=True)
            stack.callback(hook.remove)
        if experts:
            sites = [layer.site for layer in experts.values() if layer.site is not None]
            stack.enter_context(experts_one_by_one(model))
            stack.enter_context(watched(sites, see_expert))
        yield
