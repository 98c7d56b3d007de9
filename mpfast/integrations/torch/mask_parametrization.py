"""Masks that stay on the weights of a PyTorch model while it is trained, compiled, saved and loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.utils import parametrize

from mpfast.support import InvalidValueError, MissingKeyError, front_door

__all__ = ["Mask", "hold", "masks_of", "release", "to_semi_structured"]


class Mask(torch.nn.Module):
    """A parametrisation that multiplies a weight by a mask.

    The mask is a buffer: it moves with the model, is part of its ``state_dict`` and of what ``torch.compile`` sees. The
    weight itself stays whole below it, as ``parametrizations.weight.original``: an optimiser step changes it (only
    where the mask lets gradients through, apart from weight decay), but what the model computes with is zero where the
    mask is.
    """

    mask: torch.Tensor

    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask.to(torch.bool))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return the weight with zeros where it is pruned."""
        return torch.where(self.mask, weight, torch.zeros((), dtype=weight.dtype, device=weight.device))


@front_door
def hold(model: torch.nn.Module, masks: Mapping[str, Any]) -> torch.nn.Module:
    """Put masks on weights; masks that are there already are replaced.

    Parameters
    ----------
    model : Module
        Changed in place.
    masks : mapping of str to array
        From parameter name (``"encoder.0.weight"``) to boolean array of its shape, as `mpfast.masks` returns them for
        ``dict(model.named_parameters())``, or from module name, which means its ``weight``.

    Returns
    -------
    model

    Raises
    ------
    KeyError
        The model has no such parameter.
    ValueError
        A mask has not the shape of its parameter. The model is unchanged then.
    """
    found = {}
    for name, mask in masks.items():
        module, attribute = _owner(model, name)
        weight = getattr(module, attribute)
        tensor = torch.as_tensor(mask, device=weight.device)
        if tensor.shape != weight.shape or tensor.dtype != torch.bool:
            raise InvalidValueError(
                f"the mask of {name}",
                f"is {tensor.dtype} of shape {tuple(tensor.shape)}, but a boolean of shape {tuple(weight.shape)} is "
                "needed",
            )
        found[name] = (module, attribute, tensor)
    for module, attribute, tensor in found.values():
        held = _mask_on(module, attribute)
        if held is None:
            parametrize.register_parametrization(module, attribute, Mask(tensor))
        else:
            held.mask.copy_(tensor)
    return model


def masks_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Masks that `hold` has put on a model, by the names that the parameters had before."""
    found = {}
    for name, module in model.named_modules():
        for attribute in getattr(module, "parametrizations", {}):
            held = _mask_on(module, attribute)
            if held is not None:
                found[f"{name}.{attribute}" if name else attribute] = held.mask
    return found


def release(model: torch.nn.Module, *, restore: bool = False) -> torch.nn.Module:
    """Take the masks off again: pruned weights become zeros, or with ``restore=True`` what lies below the masks."""
    for name in masks_of(model):
        module, attribute = _owner(model, name)
        parametrize.remove_parametrizations(module, attribute, leave_parametrized=not restore)
    return model


@front_door
def to_semi_structured(model: torch.nn.Module) -> torch.nn.Module:
    """Hand the weights of Linear modules with 2:4 masks over to PyTorch's semi-structured sparse kernels.

    Masks are made permanent first (`release`). Linear modules whose weight is not 2:4 along its inputs stay dense.

    Raises
    ------
    ValueError
        No Linear has a 2:4 weight.
    RuntimeError
        PyTorch cannot do it: these kernels need a GPU of compute capability 8.0 or later, float16 or bfloat16 and
        sizes that are multiples of 32 or 64. The message is PyTorch's.
    """
    release(model)
    converted = 0
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and _is_2_of_4(module.weight):
            sparse = torch.sparse.to_sparse_semi_structured(module.weight.detach())
            module.weight = torch.nn.Parameter(sparse, requires_grad=False)
            converted += 1
    if converted == 0:
        raise InvalidValueError("", "no Linear has at most 2 of every 4 weights of a row")
    return model


def _is_2_of_4(weight: torch.Tensor) -> bool:
    if weight.shape[1] % 4:
        return False
    return bool(((weight.detach() != 0).reshape(-1, 4).sum(dim=1) <= 2).all())


def _owner(model: torch.nn.Module, name: str) -> tuple[torch.nn.Module, str]:
    """Return the module that has this parameter, and the name it has there."""
    path, _, attribute = name.rpartition(".")
    for module_name, candidate in ((path, attribute), (name, "weight")):
        try:
            module = model.get_submodule(module_name)
        except AttributeError:
            continue
        if isinstance(getattr(module, candidate, None), torch.Tensor):
            return module, candidate
    raise MissingKeyError("model", f"has no parameter {name!r}")


def _mask_on(module: torch.nn.Module, attribute: str) -> Mask | None:
    if not parametrize.is_parametrized(module, attribute):
        return None
    steps = module.parametrizations[attribute]
    return next((step for step in steps if isinstance(step, Mask)), None)
