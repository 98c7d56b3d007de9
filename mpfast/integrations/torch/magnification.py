"""How much the parts of a PyTorch model magnify a difference of their inputs, at most."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn.utils import parametrize

from mpfast.support import InvalidValueError, front_door

__all__ = ["is_last", "magnification", "magnification_behind", "what_changes"]

# How much the largest entry of a difference grows at most.
_GROWTH = {
    torch.nn.ReLU: 1.0,
    torch.nn.ReLU6: 1.0,
    torch.nn.Tanh: 1.0,
    torch.nn.Sigmoid: 0.25,
    torch.nn.GELU: 1.13,
    torch.nn.SiLU: 1.1,
    torch.nn.Identity: 1.0,
    torch.nn.Dropout: 1.0,
    torch.nn.Flatten: 1.0,
    torch.nn.MaxPool2d: 1.0,
    torch.nn.AvgPool2d: 1.0,
    torch.nn.AdaptiveAvgPool2d: 1.0,
    torch.nn.AdaptiveMaxPool2d: 1.0,
}


# What has another forward pass in training.
_TRAINED = (torch.nn.Dropout, torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)


@front_door
def magnification(module: torch.nn.Module) -> float:
    """How much a module, in evaluation, magnifies the largest entry of a difference of its inputs, at most.

    Known for modules of PyTorch itself that compute what their class says: not for subclasses, which may have a forward
    pass of their own, nor for modules with hooks or parametrizations.

    Raises
    ------
    ValueError
        It is not known for this kind of module.
    """
    kind = type(module)
    changed = what_changes(module)
    if changed:
        raise InvalidValueError("module", f"is a {kind.__name__} {changed}: what it magnifies is not known")
    layer: Any = module  # its attributes are those of its class, which the types of PyTorch do not say
    if kind is torch.nn.Sequential:
        product = 1.0
        for part in layer._modules.values():  # children() shows one that is there twice only once
            product *= magnification(part)
        return product
    if kind in (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d):
        # Whatever the padding, the dilation and the groups: an output is a sum of weights times entries of the input.
        weight = layer.weight.detach().double()
        return float(weight.abs().reshape(len(weight), -1).sum(dim=1).max())
    if kind in _TRAINED and layer.training:
        raise InvalidValueError("module", f"is a {kind.__name__} in training", "call its eval() first")
    if kind is torch.nn.LeakyReLU:
        return max(1.0, abs(float(layer.negative_slope)))
    if kind in (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d) and layer.running_var is not None:
        scale = 1 / (layer.running_var.double() + layer.eps).sqrt()
        return float((scale if layer.weight is None else scale * layer.weight.detach().double().abs()).max())
    if kind is torch.nn.AvgPool2d and layer.divisor_override is not None:
        size = layer.kernel_size
        height, width = (size, size) if isinstance(size, int) else size
        return float(height * width / abs(layer.divisor_override))
    if kind in _GROWTH and not getattr(layer, "return_indices", False):
        return _GROWTH[kind]
    raise InvalidValueError("", f"not known for {kind.__name__}")


def what_changes(module: torch.nn.Module) -> str:
    """Say what makes a module compute something else than its class says; empty where nothing does."""
    everywhere = torch.nn.modules.module
    if module._forward_hooks or module._forward_pre_hooks:
        return "with forward hooks"
    if everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks:
        return "with forward hooks of all modules"
    if parametrize.is_parametrized(module):
        return "with parametrizations"
    return "with a forward of its own" if "forward" in vars(module) else ""


def _flat(model: torch.nn.Module, prefix: str = "") -> list[tuple[str, torch.nn.Module]]:
    """Modules of nested Sequentials, in order."""
    if not _is_plain_sequential(model):
        return [(prefix, model)]
    # named_children() shows a module that is there twice only once.
    parts = ((name, part) for name, part in model._modules.items() if part is not None)
    return [pair for name, part in parts for pair in _flat(part, f"{prefix}.{name}".lstrip("."))]


def _is_plain_sequential(model: torch.nn.Module) -> bool:
    return type(model) is torch.nn.Sequential and not what_changes(model)


def magnification_behind(model: torch.nn.Module, name: str) -> float:
    """How much what comes after a part of a plain Sequential model magnifies, at most.

    Raises
    ------
    ValueError
        The model or the part is another, or the magnification of what follows is not known.
    """
    parts = _flat(model)
    at = [part for part, _ in parts].index(name) if name in dict(parts) else None
    if at is None:
        raise InvalidValueError(
            "lipschitz='product'", f"is for plain Sequential models, and {name} is not a part of one"
        )
    return float(np.prod([magnification(part) for _, part in parts[at + 1 :]]))


def is_last(model: torch.nn.Module, name: str) -> bool:
    """Whether nothing comes after a layer that could magnify: its factor is 1, exactly."""
    parts = _flat(model)
    return _is_plain_sequential(model) and parts[-1][0] == name
