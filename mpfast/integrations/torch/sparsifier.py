"""mpfast's masks in the terms of PyTorch's sparsifiers, which not every PyTorch need have: loaded when asked for."""

from __future__ import annotations

from typing import Any

import torch
from torch.ao.pruning import BaseSparsifier

from mpfast.integrations.torch.pruning import masking_function
from mpfast.support import check_sparsity, front_door

__all__ = ["SpectralSparsifier"]


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
        masking_function(method)
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
            found = masking_function(self.method)(weights, self.sparsity)
            for config in self.groups:
                self.update_mask(config["module"], config["tensor_name"], mask=found[config["tensor_fqn"]])

    def update_mask(self, module: torch.nn.Module, tensor_name: str, mask: torch.Tensor, **_: Any) -> None:
        """Set the mask of one weight."""
        held = getattr(module.parametrizations, tensor_name)[0]
        held.mask = mask.to(held.mask)
