"""Which tensors of a checkpoint are weight matrices, and how each is seen as a 2-D matrix."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpfast import _core
from mpfast.checkpoints.base import Checkpoint, Role, TensorInfo
from mpfast.checkpoints.effective import read_as_used
from mpfast.checkpoints.matrices import MIN_SIDE, SPLIT, WHOLE, Views, matrices_of
from mpfast.checkpoints.parameter_roles import LAYERS, role_of
from mpfast.checkpoints.roles import roles_of
from mpfast.support import InvalidValueError, check_patterns

__all__ = [
    "Layer",
    "NameFilter",
    "as_layer",
    "as_layers",
    "layer_matrix",
    "layer_part",
    "name_filter",
    "read_layer",
    "select_layers",
    "telling_reason",
    "unmatched_patterns",
]

NameFilter = str | Iterable[str] | Callable[[str], bool] | None

_LEFT_OUT = "left out by include or exclude"


@dataclass(frozen=True, slots=True)
class Layer:
    """A matrix that is analysed: a tensor or a part of one.

    Attributes
    ----------
    name : str
        Name of the tensor, with the part in brackets: ``"h.0.attn.qkv.weight[key]"``, ``"experts.up[3]"``.
    kind : str
        "linear", "conv", "conv_transposed", "embedding", "head", "experts" or "lora", see `Role`; all are matrices.
    tensor_shape : tuple of int
        Shape of the tensor, as the model computes with it.
    shape : (int, int)
        Shape of the matrix; convolutions (Co, Ci, kh, kw) unfold to Co x (Ci kh kw) without a copy.
    dtype : str
        Element type.
    tensor : str
        Name of the tensor, to who uses the model.
    index : tuple of int and slice
        The part of the tensor; empty for all of it.
    input_axes : tuple of int
        Axes of the tensor that run along the inputs; empty where that is not known.
    source : str
        Where the kind and the axes are known from.
    stored : str
        Name of the tensor in the checkpoint, where that is another than `tensor`.
    masked_by, scaled_by, fixed : str
        As in `Role`.
    aliases : tuple of str
        Other names of the same memory: what is written for the tensor is written for them.
    shared : tuple of str
        Tensors that have entries in common with it in memory, and are no aliases.
    folded : tuple of int
        Shape in which the tensor is seen when the part is taken, where its outputs lie in runs; empty where it is its
        own.
    unsplit : str
        Why a fused projection is one matrix, where it should be several.
    packed : str
        The format of a quantised tensor, as `TensorInfo.stored`.
    """

    name: str
    kind: str
    tensor_shape: tuple[int, ...]
    shape: tuple[int, int]
    dtype: str
    tensor: str
    index: tuple[int | slice, ...] = ()
    input_axes: tuple[int, ...] = ()
    source: str = "name"
    stored: str = ""
    masked_by: str = ""
    scaled_by: str = ""
    fixed: str = ""
    aliases: tuple[str, ...] = ()
    shared: tuple[str, ...] = ()
    folded: tuple[int, ...] = ()
    unsplit: str = ""
    packed: str = ""

    @property
    def file_name(self) -> str:
        """Name of the tensor in the checkpoint."""
        return self.stored or self.tensor

    @property
    def stored_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes that the tensor has in files and loaded: a stack of experts may hold transposes of its matrices."""
        shape = self.tensor_shape
        turned = (*shape[:-2], shape[-1], shape[-2]) if self.kind == "experts" and len(shape) == 3 else shape
        return shape, turned

    @property
    def inputs(self) -> int:
        """Number of entries along the inputs; 0 where the axes are not known."""
        return math.prod(self.tensor_shape[axis] for axis in self.input_axes) if self.input_axes else 0

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


def as_layer(tensor: TensorInfo) -> Layer | str:
    """Decide for a tensor by itself whether it is a weight matrix: the layer, or why it is none; see `roles_of`.

    Examples
    --------
    >>> as_layer(TensorInfo("conv1.weight", (64, 3, 7, 7), "float32")).shape
    (64, 147)
    >>> as_layer(TensorInfo("conv1.bias", (64,), "float32"))
    'vector or scalar (bias, normalisation)'
    """
    found = as_layers(tensor, WHOLE)
    return found if isinstance(found, str) else found[0]


def as_layers(
    tensor: TensorInfo, views: Views = SPLIT, role: Role | None = None, aliases: tuple[str, ...] = ()
) -> list[Layer] | str:
    """Return the matrices that a tensor holds, or why it holds none; without a role, it is decided by itself.

    Examples
    --------
    >>> [layer.name for layer in as_layers(TensorInfo("h.0.qkv.weight", (192, 64), "float32"))]
    ['h.0.qkv.weight[query]', 'h.0.qkv.weight[key]', 'h.0.qkv.weight[value]']
    """
    role = role_of(tensor) if role is None else role
    if role.kind not in LAYERS:
        return role.reason
    shape = tensor.shape if role.shape is None else role.shape
    parts = matrices_of(shape, role, views)
    if min(min(part.shape) for part in parts) < MIN_SIDE:
        parts = matrices_of(shape, role, WHOLE) if role.parts and len(shape) == 2 else parts
    if min(min(part.shape) for part in parts) < MIN_SIDE:
        return f"too small: fewer than {MIN_SIDE} rows or columns"
    name = role.called or tensor.name
    return [
        Layer(
            f"{name}[{part.label}]" if part.label else name,
            role.kind,
            shape,
            part.shape,
            tensor.dtype,
            name,
            part.index,
            role.input_axes,
            role.source,
            tensor.name if role.called else "",
            role.masked_by,
            role.scaled_by,
            role.fixed,
            aliases,
            tensor.shared,
            part.folded,
            role.unsplit if views.qkv == "split" else "",
            tensor.stored,
        )
        for part in parts
    ]


def select_layers(
    checkpoint: Checkpoint,
    include: NameFilter,
    exclude: NameFilter,
    views: Views = WHOLE,
    roles: Mapping[str, Role] | None = None,
) -> tuple[list[Layer], dict[str, str], list[str]]:
    """Split the tensors of a checkpoint into layers and (name -> reason) for the rest.

    Also returns what to warn of: patterns of `exclude` that match no tensor. Without `roles`, they are decided here.

    Raises
    ------
    ValueError
        A pattern of `include` matches no tensor: a misspelt one would otherwise pass as an empty result.
    TypeError
        A pattern is no string.
    """
    # An iterator of patterns is gone through once.
    given = include if include is None or callable(include) else check_patterns(include, "include")
    exclude = exclude if exclude is None or callable(exclude) else check_patterns(exclude, "exclude")
    wanted, unwanted = name_filter(given, "include"), name_filter(exclude, "exclude")
    layers: list[Layer] = []
    skipped: dict[str, str] = {}
    roles = roles_of(checkpoint) if roles is None else roles
    aliases: dict[str, tuple[str, ...]] = {}
    for name, role in roles.items():
        if role.kind == "alias":
            aliases[role.of] = (*aliases.get(role.of, ()), name)
    names: list[str] = []
    for tensor in checkpoint.tensors:
        role = roles[tensor.name]
        called = (tensor.name, role.called) if role.called else (tensor.name,)
        names += called
        if (wanted and not any(map(wanted, called))) or (unwanted and any(map(unwanted, called))):
            skipped[tensor.name] = _LEFT_OUT
            continue
        found = as_layers(tensor, views, role, aliases.get(tensor.name, ()))
        if isinstance(found, str):
            skipped[tensor.name] = found
        else:
            layers += found
    for pattern in given if isinstance(given, list) else []:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            example = f", for example {names[0]!r}" if names else ""
            raise InvalidValueError(
                f"include={pattern!r}",
                f"matches none of the {len(names)} tensors{example}",
                "patterns are matched against the whole name, * stands for anything",
            )
    return layers, skipped, unmatched_patterns("exclude", exclude, names) if isinstance(exclude, list) else []


def telling_reason(skipped: dict[str, str], sizes: Mapping[str, int]) -> str:
    """Say for an error message why the largest of the tensors was left out, the last of equals; nothing if none was.

    A name without a size is that of a weight as the model computes with it, which says more than any stored tensor.
    """
    if not skipped:
        return ""
    # What the caller left out is no news; of a matrix it is decided last that it stays.
    name = max(reversed(skipped), key=lambda name: (skipped[name] != _LEFT_OUT, sizes.get(name, math.inf)))
    return f"; {name}: {skipped[name]}"


def unmatched_patterns(what: str, patterns: Iterable[str], names: Sequence[str]) -> list[str]:
    """Return what to warn of: patterns that match none of the names; a misspelt one would else be without effect."""
    return [
        f"{what}={pattern!r} matches none of the {len(names)} names; patterns are matched against the whole name, "
        "* stands for anything"
        for pattern in patterns
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names)
    ]


def name_filter(chosen: NameFilter, argument: str) -> Callable[[str], bool] | None:
    """Return the function of a name that what a caller gave as `argument` stands for; TypeError if for none."""
    if chosen is None or callable(chosen):
        return chosen
    patterns = check_patterns(chosen, argument)
    return lambda name: any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def layer_part(tensor: Any, layer: Layer) -> Any:
    """Return the part of a tensor that `layer` is, its axes in their order; a view unless its outputs lie in runs."""
    if layer.folded:
        return tensor.reshape(layer.folded)[layer.index].reshape(layer.shape)
    return tensor[layer.index] if layer.index else tensor


def layer_matrix(tensor: Any, layer: Layer) -> Any:
    """View a tensor as the matrix of `layer`, in a form that `mpfast.spectrum` takes."""
    part = layer_part(tensor, layer)
    matrix = part if tuple(part.shape) == layer.shape else part.reshape(layer.shape)
    if layer.dtype == "bfloat16" and isinstance(matrix, np.ndarray) and matrix.dtype == np.uint16:
        return _core.Matrix(matrix, "bfloat16")  # a reader's raw bits: NumPy has no such type
    return matrix


def read_layer(checkpoint: Checkpoint, layer: Layer) -> Any:
    """Read the tensor of a layer as the model computes with it: multiplied by its mask, brought to its lengths."""
    return read_as_used(checkpoint, layer.tensor, layer.file_name, layer.masked_by, layer.scaled_by)
