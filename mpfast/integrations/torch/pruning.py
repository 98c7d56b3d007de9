"""mpfast's masks in the terms of ``torch.nn.utils.prune`` and of PyTorch's sparsifiers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.ao.pruning import BaseSparsifier
from torch.nn.utils import prune as torch_prune

from mpfast.masks import GroupLayout, magnitude, n_m, noise_floor, spectral_budget
from mpfast.support import InvalidValueError, check_sparsity, front_door

__all__ = ["GivenMask", "NOfM", "NoiseFloor", "SpectralSparsifier", "global_prune"]


class GivenMask(torch_prune.BasePruningMethod):
    """Prune by a mask that is known already."""

    PRUNING_TYPE = "global"

    def __init__(self, mask: torch.Tensor) -> None:
        self.mask = mask

    def compute_mask(self, t: torch.Tensor, default_mask: torch.Tensor) -> torch.Tensor:
        """Return the mask, without what was pruned before."""
        return default_mask * self.mask.to(default_mask)


class NOfM(torch_prune.BasePruningMethod):
    """Keep the n largest of every m weights of a row, or with a second moment those that matter most to the output."""

    PRUNING_TYPE = "global"

    def __init__(self, n: int, m: int, second_moment: Any = None, layout: GroupLayout = "flat") -> None:
        self.n, self.m, self.second_moment, self.layout = n, m, second_moment, layout

    def compute_mask(self, t: torch.Tensor, default_mask: torch.Tensor) -> torch.Tensor:
        """Return the mask of the weight without what was pruned before."""
        weight = (t * default_mask).detach()
        mask = n_m(weight, self.n, self.m, second_moment=self.second_moment, layout=self.layout)
        return default_mask * mask.to(default_mask)


class NoiseFloor(torch_prune.BasePruningMethod):
    """Prune what is not larger than noise may be; see `mpfast.masks.noise_floor`."""

    PRUNING_TYPE = "global"

    def __init__(self, delta: float = 0.05) -> None:
        self.delta = delta

    def compute_mask(self, t: torch.Tensor, default_mask: torch.Tensor) -> torch.Tensor:
        """Return the mask of the weight, without what was pruned before."""
        return default_mask * noise_floor(t.detach(), self.delta).to(default_mask)


@front_door
def global_prune(
    parameters: Iterable[tuple[torch.nn.Module, str]], amount: float, method: str = "spectral_budget", **options: Any
) -> None:
    """As ``torch.nn.utils.prune.global_unstructured``, with the masks of `mpfast.masks`.

    Parameters
    ----------
    parameters : iterable of (Module, str)
        Modules and names of their weights, in the order that breaks ties.
    amount : float
        Share of all their entries that is zero in the end; what is pruned already counts.
    method : str
        ``"spectral_budget"`` or ``"magnitude"``; `options` go there.

    Raises
    ------
    ValueError
        The method is unknown, or what it raises.
    """
    function = _function(method)
    listed = list(parameters)
    weights = {str(number): getattr(module, name).detach() for number, (module, name) in enumerate(listed)}
    found = function(weights, amount, **options)
    for (module, name), mask in zip(listed, found.values(), strict=True):
        GivenMask.apply(module, name, mask=mask)


class SpectralSparsifier(BaseSparsifier):
    """A sparsifier (``prepare``, ``step``, ``squash_mask``) that prunes globally with a budget per layer.

    Parameters
    ----------
    sparsity : float
        Share of the entries of all prepared weights that is pruned at every `step`; change it between steps for a
        schedule.
    method : str
        ``"spectral_budget"`` or ``"magnitude"``.

    Raises
    ------
    ValueError
        An option is out of range.
    """

    @front_door
    def __init__(self, sparsity: float = 0.5, method: str = "spectral_budget") -> None:
        _function(method)
        super().__init__(defaults={})
        self.sparsity = check_sparsity(sparsity)
        self.method = method

    def step(self, use_path: bool = True) -> None:
        """Make the masks from the weights as they are now."""
        if not self.enable_mask_update:
            return
        with torch.no_grad():
            weights = {
                config["tensor_fqn"]: getattr(config["module"], config["tensor_name"]).detach()
                for config in self.groups
            }
            found = _function(self.method)(weights, self.sparsity)
            for config in self.groups:
                self.update_mask(config["module"], config["tensor_name"], mask=found[config["tensor_fqn"]])

    def update_mask(self, module: torch.nn.Module, tensor_name: str, mask: torch.Tensor, **_: Any) -> None:
        """Set the mask of one weight."""
        held = getattr(module.parametrizations, tensor_name)[0]
        held.mask = mask.to(held.mask)


def _function(method: str) -> Callable[..., Any]:
    functions: dict[str, Callable[..., Any]] = {"spectral_budget": spectral_budget, "magnitude": magnitude}
    if method not in functions:
        raise InvalidValueError("method", f"must be one of {', '.join(functions)}, not {method!r}")
    return functions[method]
