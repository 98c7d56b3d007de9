"""mpfast's masks in the terms of ``torch.nn.utils.prune``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.nn.utils import prune as torch_prune

from mpfast.masks import GroupLayout, magnitude, n_m, noise_floor, spectral_budget
from mpfast.support import InvalidValueError, front_door

__all__ = ["GivenMask", "NOfM", "NoiseFloor", "global_prune", "masking_function"]


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
    parameters: Iterable[tuple[torch.nn.Module, str]], amount: float, method: str = "magnitude", **options: Any
) -> None:
    """As ``torch.nn.utils.prune.global_unstructured``, with the masks of `mpfast.masks`.

    Parameters
    ----------
    parameters : iterable of (Module, str)
        Modules and names of their weights, in the order that breaks ties.
    amount : float
        Share of all their entries that is zero in the end; what is pruned already counts.
    method : str
        ``"magnitude"`` or ``"spectral_budget"``; `options` go there.

    Raises
    ------
    ValueError
        The method is unknown, or what it raises.
    """
    function = masking_function(method)
    listed = list(parameters)
    weights = {str(number): getattr(module, name).detach() for number, (module, name) in enumerate(listed)}
    found = function(weights, amount, **options)
    for (module, name), mask in zip(listed, found.values(), strict=True):
        GivenMask.apply(module, name, mask=mask)


def masking_function(method: str) -> Callable[..., Any]:
    """Return the function of `mpfast.masks` of this name, ``"spectral_budget"`` or ``"magnitude"``."""
    functions: dict[str, Callable[..., Any]] = {"spectral_budget": spectral_budget, "magnitude": magnitude}
    if method not in functions:
        raise InvalidValueError("method", f"must be one of {', '.join(functions)}, not {method!r}")
    return functions[method]
