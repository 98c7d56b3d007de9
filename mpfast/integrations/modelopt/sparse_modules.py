"""Masks of any origin on ModelOpt's sparse modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import modelopt.torch.opt as mto
import torch
from modelopt.torch.sparsity.weight_sparsity.mode import SparsityModeRegistry
from modelopt.torch.sparsity.weight_sparsity.module import SparseModule

from mpfast.support import InvalidValueError, MissingKeyError, front_door

__all__ = ["apply_masks"]

# ModelOpt's own mode: what it saves is restored without mpfast.
_MODE = "sparse_magnitude"


@front_door
def apply_masks(model: torch.nn.Module, masks: Mapping[str, Any]) -> torch.nn.Module:
    """Make sparse modules of ModelOpt of the layers that masks are given of, with these masks.

    As after ``modelopt.torch.sparsity.weight_sparsity.sparsify``: the masks hold while the model is trained, go with
    ``modelopt.torch.opt.save`` and ``restore``, which do not need mpfast, may be followed by quantisation, and are made
    permanent by ``export``. ModelOpt itself finds 2:4 masks only; these may be any.

    Parameters
    ----------
    model : Module
        Changed in place. It may have sparse modules already; then these alone can be given masks.
    masks : mapping of str to array
        From the name of a parameter (``"encoder.0.weight"``) or of its module to a boolean array of the weight's shape,
        True = kept: what `mpfast.masks` and `mpfast.integrations.torch.reconstruct_model` return. Of Linear and Conv2d
        modules; layers that are not named keep what they have.

    Returns
    -------
    model

    Raises
    ------
    KeyError
        The model has no such module.
    ValueError
        There are no masks; a module is no Linear or Conv2d, or ModelOpt's rules have left it out; or a mask is not
        boolean, or of another shape. The model is unchanged then.
    """
    if not masks:
        raise InvalidValueError("masks", "are empty")
    found = {name.removesuffix(".weight"): torch.as_tensor(mask) for name, mask in masks.items()}
    converted = any(isinstance(module, SparseModule) for module in model.modules())
    for name, mask in found.items():
        _check(model, name, mask, converted)
    if not converted:
        chosen: dict[str, dict[str, Any] | None] = {"*": None, **{name: {} for name in found}}
        rules = {"nn.Linear": chosen, "nn.Conv2d": chosen}
        model = mto.apply_mode(model, [(_MODE, rules)], registry=SparsityModeRegistry)
    for name, mask in found.items():
        model.get_submodule(name).set_mask(mask)
    return model


def _check(model: torch.nn.Module, name: str, mask: torch.Tensor, converted: bool) -> None:
    try:
        module: Any = model.get_submodule(name)
    except AttributeError:
        raise MissingKeyError("model", f"has no module {name!r}") from None
    if not isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
        fact = f"{name} is a {type(module).__name__}, and ModelOpt has masks of Linear and Conv2d"
        raise InvalidValueError("masks", fact)
    if converted and not (isinstance(module, SparseModule) and module.is_sparse):
        raise InvalidValueError("model", f"ModelOpt's rules have left out {name}", "take them off, or convert it anew")
    if mask.shape != module.weight.shape or mask.dtype != torch.bool:
        raise InvalidValueError(
            f"the mask of {name}",
            f"is {mask.dtype} of shape {tuple(mask.shape)}, but a boolean of shape {tuple(module.weight.shape)} is "
            "needed",
        )
