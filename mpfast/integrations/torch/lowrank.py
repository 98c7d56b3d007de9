"""Linear and Conv2d modules split into two of lower rank."""

from __future__ import annotations

import copy

import torch
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear as _NonDynamicallyQuantizableLinear

from mpfast.checkpoints import NameFilter
from mpfast.integrations.torch.layers import prunable_modules
from mpfast.spectra import lowrank
from mpfast.support import (
    ConvergenceWarning,
    InvalidTypeError,
    InvalidValueError,
    front_door,
    summary_of_unmet,
    warn_caller,
)

__all__ = ["LowRank", "split", "split_modules"]


class LowRank(torch.nn.Sequential):
    """Two modules in the place of one, with its `weight` and `bias` for whoever reads these from outside.

    Attention and feed-forward layers do: PyTorch's encoder layer on its fast path, T5 for the element type. The product
    is formed when `weight` is read.
    """

    @property
    def weight(self) -> torch.Tensor:
        """The product of the two weights, in the shape of the one that they stand for."""
        first, second = self[0].weight, self[1].weight
        product = second.reshape(len(second), -1) @ first.reshape(len(first), -1)
        return product.reshape(len(second), *first.shape[1:])

    @property
    def bias(self) -> torch.Tensor | None:
        """The bias of the second module."""
        bias: torch.Tensor | None = self[1].bias
        return bias

    @property
    def in_features(self) -> int:
        """Of two Linear modules."""
        return int(self[0].in_features)

    @property
    def out_features(self) -> int:
        """Of two Linear modules."""
        return int(self[1].out_features)


@front_door
def split(module: torch.nn.Module, rank: int | str = "mp_edge", *, shrinkage: str | None = None) -> LowRank:
    """Return two modules that together do nearly what this one does.

    A Linear becomes ``in -> r`` without bias and ``r -> out`` with the bias; a Conv2d a convolution to r channels with
    the same kernel, stride, padding and dilation, and one of 1 x 1.

    Parameters
    ----------
    module : Linear or Conv2d
        Left as it is.
    rank, shrinkage
        As in `mpfast.lowrank.factor`, for the weight as ``reshape(out, -1)``.

    Raises
    ------
    TypeError
        The module is neither.
    ValueError
        It is a grouped convolution, or as `mpfast.lowrank.factor`.

    Warns
    -----
    ConvergenceWarning
        As `mpfast.svd`.
    """
    pair, unmet = _pair(module, rank, shrinkage)
    warn_caller("split", unmet, ConvergenceWarning)
    return pair


def _pair(module: torch.nn.Module, rank: int | str, shrinkage: str | None) -> tuple[LowRank, str]:
    """Return what `split` does, and in place of a warning what was not met; empty if all was."""
    if not isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
        raise InvalidTypeError("", f"a Linear or Conv2d is needed, not {type(module).__name__}")
    weight = module.weight.detach()
    left, right, unmet = lowrank.factors(weight.reshape(len(weight), -1), rank, shrinkage=shrinkage)
    r = left.shape[1]
    common = {"device": weight.device, "dtype": weight.dtype}
    first: torch.nn.Module
    second: torch.nn.Module
    if isinstance(module, torch.nn.Linear):
        first = torch.nn.Linear(module.in_features, r, bias=False, **common)
        second = torch.nn.Linear(r, module.out_features, bias=module.bias is not None, **common)
    else:
        if module.groups != 1:
            raise InvalidValueError("", "the groups of a convolution have weights of their own")
        first = torch.nn.Conv2d(
            module.in_channels,
            r,
            module.kernel_size,
            stride=module.stride,
            padding=module.padding,
            dilation=module.dilation,
            bias=False,
            padding_mode=module.padding_mode,
            **common,
        )
        second = torch.nn.Conv2d(r, module.out_channels, 1, bias=module.bias is not None, **common)
    with torch.no_grad():
        first.weight.copy_(right.reshape(first.weight.shape))
        second.weight.copy_(left.reshape(second.weight.shape))
        if module.bias is not None:
            second.bias.copy_(module.bias)
    return LowRank(first, second).train(module.training), unmet


@front_door
def split_modules(
    model: torch.nn.Module,
    rank: int | str = "mp_edge",
    *,
    shrinkage: str | None = None,
    include: NameFilter | None = None,
    exclude: NameFilter | None = None,
) -> tuple[torch.nn.Module, dict[str, str]]:
    """Return a copy of a model with its modules split wherever that saves parameters.

    Parameters
    ----------
    model : Module
        Left as it is.
    rank, shrinkage
        As in `split`.
    include, exclude : optional
        As in `prunable_modules`.

    Returns
    -------
    model : Module
    report : dict of str to str
        For every module what became of it: its rank, or why it is as it was.

    Raises
    ------
    ValueError
        An option is out of range.

    Warns
    -----
    ConvergenceWarning
        As `mpfast.svd`, once for all modules.
    """
    wanted = lowrank.check_options(rank, shrinkage)
    result = copy.deepcopy(model)
    report, unmet = {}, {}
    for name, module in prunable_modules(result, include, exclude).items():
        if isinstance(module, _NonDynamicallyQuantizableLinear):
            report[name] = (
                "MultiheadAttention multiplies with this weight itself: its factors would be multiplied at every call"
            )
            continue
        weight = module.weight
        out, length = len(weight), weight[0].numel()
        try:
            pair, unmet[name] = _pair(
                module, wanted if isinstance(wanted, str) else min(wanted, out, length), shrinkage
            )
        except InvalidValueError as error:
            report[name] = error.reason
            continue
        r = pair[0].weight.shape[0]
        if r * (out + length) >= out * length:
            report[name] = f"rank {r} would take more parameters"
            continue
        result = _replaced(result, module, pair)
        report[name] = f"rank {r} of {min(out, length)}"
    warn_caller("split_modules", summary_of_unmet(unmet), ConvergenceWarning)
    return result, report


def _replaced(model: torch.nn.Module, module: torch.nn.Module, by: torch.nn.Module) -> torch.nn.Module:
    """The model with a module replaced in all the places that it has in it."""
    if model is module:
        return by
    for place, here in list(model.named_modules(remove_duplicate=False)):
        if here is module:
            parent, _, attribute = place.rpartition(".")
            setattr(model.get_submodule(parent), attribute, by)
    return model
