"""Which tensors of a checkpoint are weight matrices, and how each is seen as a 2-D matrix."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpfast import _core
from mpfast.checkpoints.base import Checkpoint, TensorInfo

__all__ = ["MIN_SIDE", "Layer", "NameFilter", "as_layer", "as_matrix", "select_layers"]

NameFilter = str | Iterable[str] | Callable[[str], bool] | None

#: Fewer singular values than this cannot be told from any law: the fit's central window would be empty.
MIN_SIDE = 8

SUPPORTED_DTYPES = frozenset({"float64", "float32", "float16", "bfloat16"})
_EMBEDDING = re.compile(r"embed|wte|wpe|(^|[._])tok_", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Layer:
    """A tensor that is analysed.

    Attributes
    ----------
    name : str
        Name in the checkpoint.
    kind : {"linear", "conv", "embedding"}
        What the name and the number of dimensions say it is; all three are treated as matrices.
    tensor_shape : tuple of int
        Shape as stored.
    shape : (int, int)
        Shape of the matrix: convolutions (Co, Ci, kh, kw) unfold to Co x (Ci kh kw), without a copy.
    dtype : str
        Element type.
    """

    name: str
    kind: str
    tensor_shape: tuple[int, ...]
    shape: tuple[int, int]
    dtype: str

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


def as_layer(tensor: TensorInfo) -> Layer | str:
    """Decide from name, shape and type whether a tensor is a weight matrix: the layer, or why it is none.

    Examples
    --------
    >>> as_layer(TensorInfo("conv1.weight", (64, 3, 7, 7), "float32")).shape
    (64, 147)
    >>> as_layer(TensorInfo("conv1.bias", (64,), "float32"))
    'vector or scalar (bias, normalisation)'
    """
    if len(tensor.shape) < 2:
        return "vector or scalar (bias, normalisation)"
    if 0 in tensor.shape:
        return "empty"
    reason = _unsupported_dtype(tensor.dtype)
    if reason:
        return reason
    found = _matrix_shape(tensor)
    if found is None:
        return f"{len(tensor.shape)}-D tensor, neither a matrix nor a convolution: pass its slices"
    kind, shape = found
    if min(shape) < MIN_SIDE:
        return f"too small: fewer than {MIN_SIDE} rows or columns"
    return Layer(tensor.name, kind, tensor.shape, shape, tensor.dtype)


def select_layers(
    checkpoint: Checkpoint, include: NameFilter, exclude: NameFilter, function: str
) -> tuple[list[Layer], dict[str, str]]:
    """Split the tensors of a checkpoint into layers and (name -> reason) for the rest.

    Raises
    ------
    ValueError
        A pattern of `include` matches no tensor: a misspelt one would otherwise pass as an empty result.
    TypeError
        A pattern is no string.
    """
    wanted, unwanted = _name_filter(include, function), _name_filter(exclude, function)
    layers: list[Layer] = []
    skipped: dict[str, str] = {}
    for tensor in checkpoint.tensors:
        if (wanted and not wanted(tensor.name)) or (unwanted and unwanted(tensor.name)):
            skipped[tensor.name] = "left out by include or exclude"
            continue
        layer = as_layer(tensor)
        if isinstance(layer, Layer):
            layers.append(layer)
        else:
            skipped[tensor.name] = layer
    names = [tensor.name for tensor in checkpoint.tensors]
    for pattern in [] if include is None or callable(include) else _patterns(include, function):
        if not fnmatch.filter(names, pattern):
            example = f", for example {names[0]!r}" if names else ""
            raise ValueError(
                f"{function}(): include={pattern!r} matches none of the {len(names)} tensors{example}; "
                "patterns are matched against the whole name, * stands for anything"
            )
    return layers, skipped


def _name_filter(chosen: NameFilter, function: str) -> Callable[[str], bool] | None:
    if chosen is None or callable(chosen):
        return chosen
    patterns = _patterns(chosen, function)
    return lambda name: any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _patterns(chosen: str | Iterable[str], function: str) -> list[str]:
    patterns = [chosen] if isinstance(chosen, str) else list(chosen)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"{function}(): include and exclude take glob patterns, not {type(pattern).__name__}")
    return patterns


def as_matrix(tensor: Any, layer: Layer) -> Any:
    """View a tensor as the matrix of `layer`, in a form that `mpfast.spectrum` takes."""
    matrix = tensor if tuple(tensor.shape) == layer.shape else tensor.reshape(layer.shape)
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


def _matrix_shape(tensor: TensorInfo) -> tuple[str, tuple[int, int]] | None:
    """Kind and matrix shape of a tensor of two or more dimensions; None if it is no matrix."""
    shape, convolution = tensor.shape, "conv" in tensor.name.lower()
    if len(shape) == 3 and shape[0] == 1 and not convolution:  # position embeddings (1, positions, width)
        shape = shape[1:]
    if len(shape) == 2:
        return "embedding" if _EMBEDDING.search(tensor.name) else "linear", (shape[0], shape[1])
    # Three dimensions are a 1-D convolution or a stack of experts; only the name can tell.
    if len(shape) in (4, 5) or (len(shape) == 3 and convolution):
        if tensor.name.endswith("kernel"):  # Flax and Keras store (kh, kw, Ci, Co): the transposed matrix
            return "conv", (math.prod(shape[:-1]), shape[-1])
        return "conv", (shape[0], math.prod(shape[1:]))
    return None
