"""Which tensors of a checkpoint are weight matrices, and how each is seen as a 2-D matrix."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from mpfast import _core
from mpfast.arrays import native
from mpfast.checkpoints.base import Checkpoint, TensorInfo
from mpfast.support import InvalidTypeError, InvalidValueError, front_door

__all__ = [
    "MIN_SIDE",
    "WHOLE",
    "ConvView",
    "ExpertsView",
    "Layer",
    "NameFilter",
    "QkvView",
    "Views",
    "as_layer",
    "as_layers",
    "first_reason",
    "is_embedding_or_head",
    "layer_matrix",
    "name_filter",
    "select_layers",
    "unmatched_patterns",
]

NameFilter = str | Iterable[str] | Callable[[str], bool] | None
ConvView = Literal["im2col", "positions"]
QkvView = Literal["split", "fused"]
ExpertsView = Literal["split", "stack"]

#: Fewer singular values than this cannot be told from any law: the fit's central window would be empty.
MIN_SIDE = 8

SUPPORTED_DTYPES = frozenset({"float64", "float32", "float16", "bfloat16"})
# Projections that hold query, key and value one after the other. Not "query_key_value": those alternate head by head.
_FUSED_QKV = re.compile(r"(^|[._/])(c_attn|qkv|qkv_proj|Wqkv|in_proj|in_proj_weight|W_pack)([._/]|$)")
_HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output_projection)\.")
_EMBEDDING = re.compile(r"embed|wte|wpe|(^|[._])tok_", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Views:
    """How tensors are seen as matrices.

    Attributes
    ----------
    conv : {"im2col", "positions"}
        A convolution (Co, Ci, kh, kw) is one Co x (Ci kh kw) matrix, or kh kw matrices Co x Ci.
    qkv : {"split", "fused"}
        A projection to query, key and value is three matrices or one.
    experts : {"split", "stack"}
        A stack (E, a, b) is E matrices a x b, or one E a x b.
    """

    conv: ConvView = "im2col"
    qkv: QkvView = "split"
    experts: ExpertsView = "split"

    @front_door
    def __post_init__(self) -> None:
        for name, words in (("conv", ConvView), ("qkv", QkvView), ("experts", ExpertsView)):
            choices = get_args(words)
            if getattr(self, name) not in choices:
                raise InvalidValueError(name, f"must be one of {', '.join(choices)}, not {getattr(self, name)!r}")


#: One matrix per tensor.
WHOLE = Views(qkv="fused", experts="stack")


@dataclass(frozen=True, slots=True)
class Layer:
    """A matrix that is analysed: a tensor or a part of one.

    Attributes
    ----------
    name : str
        Name of the tensor, with the part in brackets: ``"h.0.attn.qkv.weight[key]"``, ``"experts.up[3]"``.
    kind : {"linear", "conv", "embedding"}
        What the model, or the name and the number of dimensions, say it is; all three are treated as matrices.
    tensor_shape : tuple of int
        Shape of the tensor as stored.
    shape : (int, int)
        Shape of the matrix; convolutions (Co, Ci, kh, kw) unfold to Co x (Ci kh kw) without a copy.
    dtype : str
        Element type.
    tensor : str
        Name of the tensor in the checkpoint.
    index : tuple of int and slice
        The part of the tensor; empty for all of it.
    """

    name: str
    kind: str
    tensor_shape: tuple[int, ...]
    shape: tuple[int, int]
    dtype: str
    tensor: str
    index: tuple[int | slice, ...] = ()

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


def as_layer(tensor: TensorInfo) -> Layer | str:
    """Decide from name, shape, type and kind whether a tensor is a weight matrix: the layer, or why it is none.

    Examples
    --------
    >>> as_layer(TensorInfo("conv1.weight", (64, 3, 7, 7), "float32")).shape
    (64, 147)
    >>> as_layer(TensorInfo("conv1.bias", (64,), "float32"))
    'vector or scalar (bias, normalisation)'
    """
    found = as_layers(tensor, WHOLE)
    return found if isinstance(found, str) else found[0]


def as_layers(tensor: TensorInfo, views: Views = Views()) -> list[Layer] | str:
    """Return the matrices that a tensor holds, or why it holds none.

    Examples
    --------
    >>> [layer.name for layer in as_layers(TensorInfo("h.0.qkv.weight", (192, 64), "float32"))]
    ['h.0.qkv.weight[query]', 'h.0.qkv.weight[key]', 'h.0.qkv.weight[value]']
    """
    if len(tensor.shape) < 2:
        return "vector or scalar (bias, normalisation)"
    if 0 in tensor.shape:
        return "empty"
    reason = _unsupported_dtype(tensor.dtype)
    if reason:
        return reason
    parts = _parts(tensor, views)
    if parts is None:
        return f"{len(tensor.shape)}-D tensor, neither a matrix, a convolution nor a stack of matrices: pass its slices"
    kind, matrices = parts
    if min(min(shape) for _, shape, _ in matrices) < MIN_SIDE:
        return f"too small: fewer than {MIN_SIDE} rows or columns"
    return [
        Layer(
            f"{tensor.name}[{label}]" if label else tensor.name,
            kind,
            tensor.shape,
            shape,
            tensor.dtype,
            tensor.name,
            index,
        )
        for label, shape, index in matrices
    ]


def select_layers(
    checkpoint: Checkpoint, include: NameFilter, exclude: NameFilter, views: Views = WHOLE
) -> tuple[list[Layer], dict[str, str], list[str]]:
    """Split the tensors of a checkpoint into layers and (name -> reason) for the rest.

    Also returns what to warn of: patterns of `exclude` that match no tensor.

    Raises
    ------
    ValueError
        A pattern of `include` matches no tensor: a misspelt one would otherwise pass as an empty result.
    TypeError
        A pattern is no string.
    """
    # An iterator of patterns is gone through once.
    given = include if include is None or callable(include) else _patterns(include)
    exclude = exclude if exclude is None or callable(exclude) else _patterns(exclude)
    wanted, unwanted = name_filter(given), name_filter(exclude)
    layers: list[Layer] = []
    skipped: dict[str, str] = {}
    for tensor in checkpoint.tensors:
        if (wanted and not wanted(tensor.name)) or (unwanted and unwanted(tensor.name)):
            skipped[tensor.name] = "left out by include or exclude"
            continue
        found = as_layers(tensor, views)
        if isinstance(found, str):
            skipped[tensor.name] = found
        else:
            layers += found
    names = [tensor.name for tensor in checkpoint.tensors]
    for pattern in given if isinstance(given, list) else []:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            example = f", for example {names[0]!r}" if names else ""
            raise InvalidValueError(
                f"include={pattern!r}",
                f"matches none of the {len(names)} tensors{example}",
                "patterns are matched against the whole name, * stands for anything",
            )
    return layers, skipped, unmatched_patterns("exclude", exclude, names) if isinstance(exclude, list) else []


def is_embedding_or_head(name: str, kind: str) -> bool:
    """Whether a layer is an embedding, or the output head of a language model: these stay dense unless asked for."""
    return kind == "embedding" or _HEAD.search(name) is not None


def first_reason(skipped: Mapping[str, str]) -> str:
    """Say for an error message why the first of the tensors was left out; nothing where none was."""
    return next((f"; {name}: {reason}" for name, reason in skipped.items()), "")


def unmatched_patterns(what: str, patterns: Iterable[str], names: Sequence[str]) -> list[str]:
    """Return what to warn of: patterns that match none of the names; a misspelt one would else be without effect."""
    return [
        f"{what}={pattern!r} matches none of the {len(names)} names; patterns are matched against the whole name, "
        "* stands for anything"
        for pattern in patterns
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names)
    ]


def name_filter(chosen: NameFilter) -> Callable[[str], bool] | None:
    """Return the function of a name that an include or exclude argument stands for; TypeError if for none."""
    if chosen is None or callable(chosen):
        return chosen
    patterns = _patterns(chosen)
    return lambda name: any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _patterns(chosen: str | Iterable[str]) -> list[str]:
    patterns = [chosen] if isinstance(chosen, str) else list(chosen)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise InvalidTypeError("", f"include and exclude take glob patterns, not {type(pattern).__name__}")
    return patterns


def layer_matrix(tensor: Any, layer: Layer) -> Any:
    """View a tensor as the matrix of `layer`, in a form that `mpfast.spectrum` takes."""
    part = tensor[layer.index] if layer.index else tensor
    if isinstance(part, np.ndarray) and part.dtype.isbuiltin != 2:  # NumPy's own types, in any byte order
        part = native(part)
    matrix = part if tuple(part.shape) == layer.shape else part.reshape(layer.shape)
    if layer.dtype == "bfloat16" and isinstance(matrix, np.ndarray) and matrix.dtype == np.uint16:
        return _core.Matrix(matrix, "bfloat16")  # a reader's raw bits: NumPy has no such type
    return matrix


def _unsupported_dtype(dtype: str) -> str | None:
    if dtype in SUPPORTED_DTYPES:
        return None
    if dtype.startswith("float8"):
        return "float8 is not supported yet: dequantise first"
    if dtype.startswith(("float4", "float6")):
        return "packed float4 and float6 are not supported: dequantise first"
    if dtype.startswith(("int", "uint", "bool")):
        return "integer or boolean dtype (an index, a mask, or quantised: dequantise first)"
    if dtype.startswith("complex"):
        return "complex dtype"
    return f"dtype {dtype} is not supported"


# Label, shape of the matrix, and index of a part of a tensor.
_Part = tuple[str, tuple[int, int], tuple[int | slice, ...]]


def _parts(tensor: TensorInfo, views: Views) -> tuple[str, list[_Part]] | None:
    """Kind and matrices of a tensor of two or more dimensions; None if it is no matrix."""
    shape, convolution = tensor.shape, tensor.kind == "conv" or "conv" in tensor.name.lower()
    if len(shape) == 3 and shape[0] == 1 and not convolution:  # position embeddings (1, positions, width)
        shape = shape[1:]
    if len(shape) == 2:
        kind = "embedding" if tensor.kind == "embedding" or _EMBEDDING.search(tensor.name) else "linear"
        split = _split_qkv(tensor.name, shape) if views.qkv == "split" and len(tensor.shape) == 2 else []
        return kind, split or [("", (shape[0], shape[1]), ())]
    # Three dimensions are a 1-D convolution or a stack of experts; only the name can tell.
    if len(shape) in (4, 5) or (len(shape) == 3 and convolution):
        # Flax and Keras store (kh, kw, Ci, Co): the transposed matrix.
        channels_last = tensor.name.endswith("kernel")
        if views.conv == "positions":
            return "conv", _positions(shape, channels_last)
        if channels_last:
            return "conv", [("", (math.prod(shape[:-1]), shape[-1]), ())]
        return "conv", [("", (shape[0], math.prod(shape[1:])), ())]
    if len(shape) == 3:
        if views.experts == "stack":
            return "linear", [("", (shape[0] * shape[1], shape[2]), ())]
        return "linear", [(str(e), (shape[1], shape[2]), (e,)) for e in range(shape[0])]
    return None


def _split_qkv(name: str, shape: tuple[int, ...]) -> list[_Part]:
    """Three parts along the output features, three times as many as the inputs; none if it is no such projection."""
    if not _FUSED_QKV.search(name):
        return []
    labels = ("query", "key", "value")
    if shape[0] == 3 * shape[1]:
        d = shape[1]
        return [(label, (d, d), (slice(k * d, (k + 1) * d),)) for k, label in enumerate(labels)]
    if shape[1] == 3 * shape[0]:  # GPT-2 stores (in, out)
        d = shape[0]
        return [(label, (d, d), (slice(None), slice(k * d, (k + 1) * d))) for k, label in enumerate(labels)]
    return []


def _positions(shape: tuple[int, ...], channels_last: bool) -> list[_Part]:
    """One matrix for every position of the kernel."""
    window = shape[:-2] if channels_last else shape[2:]
    sides = shape[-2:] if channels_last else shape[:2]
    both = (slice(None), slice(None))
    return [
        (",".join(map(str, at)), (sides[0], sides[1]), at if channels_last else (*both, *at))
        for at in np.ndindex(*window)
    ]
