"""Tensors that are in memory already: mappings of arrays and live modules, recognised by what they offer."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mpfast.checkpoints.base import TensorInfo
from mpfast.support import InvalidTypeError, InvalidValueError

__all__ = ["ArrayMapping"]


class ArrayMapping:
    """A mapping from names to arrays of any framework, nested mappings joined by dots; or a module's state.

    Parameters
    ----------
    model : mapping or live model
        The arrays are neither copied nor moved.

    Raises
    ------
    TypeError
        `model` is neither, or a value is no array.
    ValueError
        Two arrays come out with the same name.
    """

    def __init__(self, model: Any) -> None:
        arrays = model if isinstance(model, Mapping) else _state(model)
        self._source = type(model).__name__
        kinds = _kinds(model)
        self._arrays: dict[str, Any] = {}
        self._infos: list[TensorInfo] = []
        for name, array in _flatten(arrays, ""):
            if name in self._arrays:
                raise InvalidValueError("model", f"has two arrays that are called {name!r}")
            self._arrays[name] = array
            shape = tuple(int(extent) for extent in array.shape)
            self._infos.append(TensorInfo(name, shape, _dtype_name(array), kinds.get(name)))

    @property
    def source(self) -> str:
        """The type's name."""
        return self._source

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """All arrays in the order of the mapping."""
        return tuple(self._infos)

    def read(self, name: str) -> Any:
        """Return one array as it is."""
        return self._arrays[name]

    def prefetch(self, name: str) -> None:
        """Do nothing: the arrays are in memory."""

    def release(self, name: str) -> None:
        """Do nothing: the arrays belong to the caller."""


def _state(model: Any) -> Mapping[Any, Any]:
    """The tensors of a live model: PyTorch's and Flax NNX's by their state, Keras's by their variables."""
    weights = getattr(model, "weights", None)
    if isinstance(weights, list) and weights and all(hasattr(weight, "path") for weight in weights):
        # Before the state: on PyTorch, a Keras model is a module too, whose state names every variable twice.
        return {weight.path: _keras_value(weight) for weight in weights}
    state_dict = getattr(model, "state_dict", None)
    state = state_dict() if callable(state_dict) else None
    if isinstance(state, Mapping):
        return state
    nnx = sys.modules.get("flax.nnx")
    if nnx is not None and isinstance(model, nnx.Module):
        found: Mapping[Any, Any] = nnx.to_pure_dict(nnx.state(model))
        return found
    raise InvalidTypeError(
        "model",
        "must be a path, a mapping from names to arrays, or a PyTorch, Keras or Flax model",
        f"got {type(model).__name__}",
    )


def _kinds(model: Any) -> dict[str, str]:
    """What the modules of a live PyTorch model say of their weights, whatever their names are."""
    named_modules = getattr(model, "named_modules", None)
    if isinstance(model, Mapping) or not callable(named_modules):
        return {}
    found = {}
    for name, module in named_modules(remove_duplicate=False):
        classes = {base.__name__ for base in type(module).__mro__}
        for kind, known in (("embedding", {"Embedding", "EmbeddingBag"}), ("conv", {"Conv1d", "Conv2d", "Conv3d"})):
            if classes & known:
                found[f"{name}.weight".lstrip(".")] = kind
    return found


def _keras_value(variable: Any) -> Any:
    """The array of the backend where mpfast can view it, else NumPy's."""
    value = getattr(variable, "value", None)
    return value if hasattr(value, "__dlpack__") else variable.numpy()


def _flatten(arrays: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in arrays.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flatten(value, name + ".")
        elif hasattr(value, "shape") and hasattr(value, "dtype"):
            yield name, value
        elif isinstance(value, int | float | bool | str | bytes | type(None)):
            # State dictionaries carry such values (a version, a step) beside the weights.
            yield name, np.asarray(value)
        else:
            raise InvalidTypeError(f"model[{name!r}]", f"is {type(value).__name__}, not an array")


def _dtype_name(array: Any) -> str:
    """Name of the element type in NumPy's spelling, ``float32`` for ``torch.float32`` too."""
    dtype = array.dtype
    name = getattr(dtype, "name", None)
    return name if isinstance(name, str) else str(dtype).rpartition(".")[2]
