"""Linear and Conv2d modules split into two of lower rank, and factors from a file put into a model."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear as _NonDynamicallyQuantizableLinear

from mpfast.checkpoints import Checkpoint, NameFilter, open_checkpoint, shards_of, stored
from mpfast.integrations.torch.layers import prunable_modules
from mpfast.models import FACTORS_FORMAT
from mpfast.spectra import lowrank
from mpfast.support import (
    CheckpointError,
    ConvergenceWarning,
    InvalidTypeError,
    InvalidValueError,
    front_door,
    parse_json,
    summary_of_unmet,
    warn_caller,
)

__all__ = ["LowRankPair", "load_factors", "split", "split_modules"]


class LowRankPair(torch.nn.Sequential):
    """Two modules in the place of one: what goes in passes the first, then the second.

    Its `weight` and `bias` are those of the module that it stands for, the weight formed when it is asked for: modules
    that read their children's weights, attention for one, compute with the product.

    Parameters
    ----------
    first, second : Module
        Their weights are the right and the left factor.
    transposed : bool
        Whether the module that they stand for stores its weight as (in, out).
    """

    def __init__(self, first: torch.nn.Module, second: torch.nn.Module, *, transposed: bool = False) -> None:
        super().__init__(first, second)
        self.transposed = transposed

    @property
    def weight(self) -> torch.Tensor:
        """The product of both weights, in the shape of the weight of the module that they stand for."""
        first, second = self[0].weight, self[1].weight
        if isinstance(self[0], torch.nn.Embedding):
            return first @ second.T
        product: torch.Tensor = second.flatten(1) @ first.flatten(1)
        if self.transposed:
            return product.T
        return product.reshape(len(second), *first.shape[1:])

    @property
    def bias(self) -> torch.Tensor | None:
        """The bias of the second module."""
        return getattr(self[1], "bias", None)

    @property
    def in_features(self) -> int:
        """Of two Linear modules."""
        return int(self[0].in_features)

    @property
    def out_features(self) -> int:
        """Of two Linear modules."""
        return int(self[1].out_features)


@front_door
def split(module: torch.nn.Module, rank: int | str = "mp_edge", *, shrinkage: str | None = None) -> LowRankPair:
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
    pair, unmet = _split(module, rank, shrinkage)
    warn_caller("split", unmet, ConvergenceWarning)
    return pair


def _split(module: torch.nn.Module, rank: int | str, shrinkage: str | None) -> tuple[LowRankPair, str]:
    """Return what `split` does, and in place of a warning what was not met; empty if all was."""
    if not isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
        raise InvalidTypeError("", f"a Linear or Conv2d is needed, not {type(module).__name__}")
    weight = module.weight.detach()
    left, right, unmet = lowrank.factors(weight.reshape(len(weight), -1), rank, shrinkage=shrinkage)
    if isinstance(module, torch.nn.Conv2d) and module.groups != 1:
        raise InvalidValueError("", "the groups of a convolution have weights of their own")
    return _pair(module, left, right), unmet


def _pair(module: torch.nn.Module, left: torch.Tensor, right: torch.Tensor) -> LowRankPair:
    """Two modules for one whose weight, as a matrix in the way that it is stored, is ``left @ right``."""
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    r = right.shape[0]
    common: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
    bias = getattr(module, "bias", None)
    first: torch.nn.Module
    second: torch.nn.Module
    transposed = _is_conv1d(module)
    if isinstance(module, torch.nn.Conv2d):
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
        second = torch.nn.Conv2d(r, module.out_channels, 1, bias=bias is not None, **common)
    elif isinstance(module, torch.nn.Embedding):
        first = torch.nn.Embedding(len(weight), r, padding_idx=module.padding_idx, **common)
        second = torch.nn.Linear(r, weight.shape[1], bias=False, **common)
        left, right = right.T, left
    else:
        if transposed:  # (in, out): y = (x left) right
            left, right = right.T, left.T
        first = torch.nn.Linear(right.shape[1], r, bias=False, **common)
        second = torch.nn.Linear(r, left.shape[0], bias=bias is not None, **common)
    with torch.no_grad():
        first.weight.copy_(right.reshape(first.weight.shape))
        second.weight.copy_(left.reshape(second.weight.shape))
        if bias is not None:
            second.bias.copy_(bias)
    pair = LowRankPair(first, second, transposed=transposed)
    pair.requires_grad_(weight.requires_grad)
    pair.train(module.training)
    return pair


def _is_conv1d(module: torch.nn.Module) -> bool:
    """Whether it is transformers' Conv1D, a linear layer whose weight is stored as (in, out)."""
    return "Conv1D" in {kind.__name__ for kind in type(module).__mro__}


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
            pair, unmet[name] = _split(
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


@front_door
def load_factors(model: torch.nn.Module, path: str | os.PathLike[str]) -> torch.nn.Module:
    """Load what ``mpfast.compress(..., format="factors")`` wrote into a model of the architecture that was compressed.

    Linear modules, Embeddings, Conv2d without groups and transformers' Conv1D whose weights were factored are replaced
    by a `LowRankPair`. In all other modules the product takes the place of the weight. Every other tensor is loaded as
    it is, and each of the model must be there, those tied to another one excepted.

    Parameters
    ----------
    model : Module
        Changed in place, on its device and in its element types; as it was if the files do not fit.
    path : path
        The directory that `mpfast.compress` wrote, or a file in it.

    Returns
    -------
    Module
        The model; a new one only if the model is itself a module that is replaced.

    Raises
    ------
    FileNotFoundError
        There is nothing.
    CheckpointError
        The files hold no factors, or are damaged.
    ValueError
        Tensors of the model are missing in the files, or files have more, or of another shape: the message names them.

    Examples
    --------
    >>> import tempfile, mpfast
    >>> model = torch.nn.Sequential(torch.nn.Linear(48, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     result = mpfast.compress(model, f"{folder}/small", rank=4, format="factors")
    ...     small = load_factors(model, f"{folder}/small")
    >>> small[0]
    LowRankPair(
      (0): Linear(in_features=48, out_features=4, bias=False)
      (1): Linear(in_features=4, out_features=64, bias=True)
    )
    """
    if not isinstance(model, torch.nn.Module):
        raise InvalidValueError("model", f"must be a torch.nn.Module, not {type(model).__name__}")
    checkpoint = open_checkpoint(path)
    factored = _factored_shapes(checkpoint, Path(path))
    own = model.state_dict(keep_vars=True)
    tensors = {info.name: info.shape for info in checkpoint.tensors}
    factor_names = {f"{name}_{factor}" for name in factored for factor in "AB"}
    plain = [name for name in tensors if name not in factor_names]
    _check_names(model, own, {**{name: tensors[name] for name in plain}, **factored})
    with torch.no_grad():
        for name in plain:
            if isinstance(own[name], torch.Tensor):
                own[name].copy_(_tensor(checkpoint, name))
        for name in factored:
            left, right = _tensor(checkpoint, f"{name}_A"), _tensor(checkpoint, f"{name}_B")
            module = _replaceable(model, name)
            if module is None:
                own[name].copy_((left.double() @ right.double()).reshape(own[name].shape))
            else:
                model = _replaced(model, module, _pair(module, left, right))
    return model


def _factored_shapes(checkpoint: Checkpoint, path: Path) -> dict[str, tuple[int, ...]]:
    """The tensors that were factored, and their shapes, as the files' metadata says."""
    found: dict[str, tuple[int, ...]] = {}
    names = {info.name: info.shape for info in checkpoint.tensors}
    for shard in shards_of(checkpoint):
        if shard.metadata.get("mpfast") != FACTORS_FORMAT:
            raise CheckpointError(f"{shard.path}: holds no factors that mpfast.compress(format='factors') wrote")
        try:
            listed = parse_json(shard.metadata["factors"])
            found |= {name: tuple(int(extent) for extent in entry["shape"]) for name, entry in listed.items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{shard.path}: the list of factors in its metadata is damaged: {error}") from None
    if not shards_of(checkpoint):
        raise CheckpointError(f"{path}: holds no factors that mpfast.compress(format='factors') wrote")
    for name, shape in found.items():
        left, right = names.get(f"{name}_A", ()), names.get(f"{name}_B", ())
        if len(left) != 2 or len(right) != 2 or left[1] != right[0] or left[0] * right[1] != int(np.prod(shape)):
            raise CheckpointError(f"{path}: the factors of {name} are missing or do not fit its shape", tensor=name)
    return found


def _check_names(model: torch.nn.Module, own: Mapping[str, Any], stored_shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise unless the files have every tensor of the model, and no other, in the same shape."""
    more = [name for name in stored_shapes if name not in own]
    there = {_place(own[name]) for name in stored_shapes if name in own}
    missing = [
        name
        for name, tensor in own.items()
        if isinstance(tensor, torch.Tensor) and name not in stored_shapes and _place(tensor) not in there
    ]
    other = [name for name, shape in stored_shapes.items() if name in own and tuple(own[name].shape) != shape]
    for names, what in ((more, "are not in the model"), (missing, "are missing"), (other, "have another shape")):
        if names:
            some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            raise InvalidValueError("path", f"does not fit the model: {len(names)} tensors {what}: {some}")


def _place(tensor: torch.Tensor) -> tuple[Any, ...]:
    """What tied tensors have in common."""
    return tensor.device, tensor.data_ptr() or id(tensor), tuple(tensor.shape), tensor.stride()


def _replaceable(model: torch.nn.Module, name: str) -> torch.nn.Module | None:
    """The module whose weight is called so, if two can take its place; None where the weight itself is changed."""
    if not name.endswith("weight") or name.removesuffix("weight")[-1:] not in ("", "."):
        return None
    module = model.get_submodule(name.removesuffix("weight").removesuffix("."))
    shared = sum(parameter is module.weight for _, parameter in model.named_parameters(remove_duplicate=False))
    users = sum(here is module for _, here in model.named_modules(remove_duplicate=False))
    if shared > users:  # tied to the weight of another module, which would keep the old one
        return None
    if type(module) in (torch.nn.Linear, torch.nn.Embedding) or _is_conv1d(module):
        plain = not isinstance(module, torch.nn.Embedding) or (module.max_norm is None and not module.sparse)
        return module if plain else None
    return module if type(module) is torch.nn.Conv2d and module.groups == 1 else None


def _tensor(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """One tensor of a safetensors file in PyTorch, of its own type."""
    dtype = next(info.dtype for info in checkpoint.tensors if info.name == name)
    bits = np.array(stored(checkpoint.read(name), name))  # a copy: the files are read-only
    tensor = torch.from_numpy(bits)
    wanted = getattr(torch, dtype)
    return tensor if tensor.dtype == wanted else tensor.view(wanted)
