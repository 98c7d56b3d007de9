"""mpfast's masks in the terms of ``torch.nn.utils.prune``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.nn.utils import prune as torch_prune

from mpfast.masks import GroupLayout, magnitude, n_m, noise_floor, spectral_budget
from mpfast.support import InvalidValueError, front_door

__all__ = ["GivenMask", "NOfM", "NoiseFloor", "global_prune", "layer_by_layer", "masking_function"]


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


@front_door
def layer_by_layer(
    parameters: Iterable[tuple[torch.nn.Module, str]], method: str = "magnitude", **options: Any
) -> type[torch_prune.BasePruningMethod]:
    """Make a class of pruning method that goes by layers, for what takes a class and shows it no layers.

    ``torch.nn.utils.prune.global_unstructured`` and Lightning's ``ModelPruning`` hand one vector of all entries that
    are left over to a method of the type "unstructured". This one knows where the layers are in it, so it can cut row
    by row or share out by spectra, within the masks that are there.

    Parameters
    ----------
    parameters : iterable of (Module, str)
        The same modules and names, in the same order, that are handed to ``global_unstructured``, or to
        ``ModelPruning`` as ``parameters_to_prune``.
    method : str
        As in `global_prune`, with its options: ``scope="row"`` is among those of ``"magnitude"``.

    Returns
    -------
    class
        Of ``BasePruningMethod``, to be given with ``amount=``: the share, or the number, of the entries left that go,
        as PyTorch's own methods take it. Of all layers it is met to the entry; where each is cut by itself
        (``scope=``), in each rounded down.

    Raises
    ------
    ValueError
        The method is unknown. When it prunes: it is handed other parameters, or scores in their place, the amount is
        out of range, or what the method raises.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.Linear(6, 4))
    >>> parameters = [(model[0], "weight"), (model[1], "weight")]
    >>> torch_prune.global_unstructured(parameters, layer_by_layer(parameters, scope="row"), amount=0.5)
    >>> model[0].weight_mask.sum(dim=1).tolist(), model[1].weight_mask.sum(dim=1).tolist()
    ([4.0, 4.0, 4.0, 4.0, 4.0, 4.0], [3.0, 3.0, 3.0, 3.0])
    """
    function, listed = masking_function(method), list(parameters)

    class LayerByLayer(torch_prune.BasePruningMethod):
        PRUNING_TYPE = "unstructured"

        def __init__(self, amount: float) -> None:
            self.amount = amount

        def compute_mask(self, t: torch.Tensor, default_mask: torch.Tensor) -> torch.Tensor:
            before = {str(number): _mask_of(module, name) for number, (module, name) in enumerate(listed)}
            # As the last forward pass has left them, which is what PyTorch hands over.
            weights = {
                str(number): getattr(module, name).detach().cpu() for number, (module, name) in enumerate(listed)
            }
            left = torch.cat([weights[number][mask] for number, mask in before.items()])
            if left.shape != t.shape or not torch.equal(left, t.detach().to(left)):
                raise InvalidValueError("parameters", "are not those that the class was made for, in their order")
            gone = sum(int((~mask).sum()) for mask in before.values())
            # Half an entry more than is asked for, so that no rounding of the share makes it one less.
            share = min(1.0, (gone + _number(self.amount, len(t)) + 0.5) / (gone + len(t)))
            found = function(weights, share, within=before, **options)
            return torch.cat([found[number][mask] for number, mask in before.items()]).to(default_mask)

    return LayerByLayer


def _mask_of(module: torch.nn.Module, name: str) -> torch.Tensor:
    """What of a parameter PyTorch's pruning has left so far, in host memory."""
    mask: torch.Tensor = getattr(module, f"{name}_mask", torch.ones_like(getattr(module, name)))
    return mask.bool().cpu()


def _number(amount: Any, size: int) -> int:
    """How many of so many entries go, by PyTorch's rule: a number of them, or a share."""
    if isinstance(amount, int) and not isinstance(amount, bool) and 0 <= amount <= size:
        return amount
    if not isinstance(amount, float) or not 0 <= amount <= 1:
        raise InvalidValueError("amount", f"must be a share from 0 to 1 or a number of the {size} entries left")
    return round(amount * size)


def masking_function(method: str) -> Callable[..., Any]:
    """Return the function of `mpfast.masks` of this name, ``"spectral_budget"`` or ``"magnitude"``."""
    functions: dict[str, Callable[..., Any]] = {"spectral_budget": spectral_budget, "magnitude": magnitude}
    if method not in functions:
        raise InvalidValueError("method", f"must be one of {', '.join(functions)}, not {method!r}")
    return functions[method]
