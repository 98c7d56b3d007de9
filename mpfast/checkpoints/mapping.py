"""Tensors that are in memory already: mappings of arrays and live modules, recognised by what they offer."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from mpfast.arrays import native, refuse_masked
from mpfast.checkpoints.base import NoTensor, Role, TensorInfo
from mpfast.checkpoints.memory import SharedMemory, shared_memory
from mpfast.checkpoints.parameter_roles import LAYERS, role_of
from mpfast.support import InvalidTypeError, InvalidValueError, UnreadableArrayError

__all__ = ["ArrayMapping"]


class ArrayMapping:
    """A mapping from names to arrays of any framework, nested mappings joined by dots; or a module's state.

    Parameters
    ----------
    model : mapping or live model
        The arrays are neither copied nor moved.
    gather : function, optional
        Makes the whole of a DTensor of which this process holds a part, whenever it is read.

    Raises
    ------
    TypeError
        `model` is neither, or a value is no array, or a part of one and `gather` is None.
    ValueError
        Two arrays come out with the same name.

    Attributes
    ----------
    config : mapping or None
        As of `Checkpoint`.
    adapters : mapping of str to mapping
        The configurations of PEFT's adapters in a live model, by their names.
    """

    def __init__(self, model: Any, gather: Callable[[Any], Any] | None = None) -> None:
        self._source = type(model).__name__
        self._gather = gather
        self.config: Mapping[str, Any] | None = None
        self.adapters: Mapping[str, Mapping[str, Any]] = {}
        self._computed: dict[str, Callable[[], Any]] = {}
        known: dict[str, Role] = {}
        live = not isinstance(model, Mapping) and _is_torch_module(model)
        if live:
            from mpfast.checkpoints.torch_modules import TorchModules

            modules = TorchModules(model)
            known, self._computed, self.config = modules.roles, modules.computed, modules.config
            self.adapters = modules.adapters
        arrays = model if isinstance(model, Mapping) else _state(model)
        self._arrays: dict[str, Any] = {}
        others: list[NoTensor] = []
        for name, value in _flatten(arrays, ""):
            if name in self._arrays or any(other.name == name for other in others):
                raise InvalidValueError("model", f"has two arrays that are called {name!r}")
            found = _entry(name, value, live, gather is not None)
            if isinstance(found, NoTensor):
                others.append(found)
            else:
                self._arrays[name] = found
        self.others = tuple(others)
        memory = shared_memory(self._arrays, lambda name: _rank(name, known.get(name)))
        known = {**known, **_known_by_memory(memory)}
        self._infos = [
            TensorInfo(
                name,
                tuple(int(extent) for extent in array.shape),
                _dtype_name(array),
                _role(array, known.get(name)),
                memory.overlaps.get(name, ()),
            )
            for name, array in self._arrays.items()
        ]

    @property
    def source(self) -> str:
        """The type's name."""
        return self._source

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """All arrays in the order of the mapping."""
        return tuple(self._infos)

    def read(self, name: str) -> Any:
        """Return one array as it is, NumPy's in the byte order of this machine.

        A weight that a parametrisation computes has its name in the model.
        """
        compute = self._computed.get(name)
        array = self._arrays[name] if compute is None else _local(name, compute(), self._gather is not None)
        if self._gather is not None and type(array).__name__ == "DTensor":
            return self._gather(array)
        return native(array) if isinstance(array, np.ndarray) else array

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


def _is_torch_module(model: Any) -> bool:
    torch = sys.modules.get("torch")
    # Those of TorchScript no longer have their classes.
    return torch is not None and isinstance(model, torch.nn.Module) and not isinstance(model, torch.jit.ScriptModule)


def _keras_value(variable: Any) -> Any:
    """The array of the backend where mpfast can view it, else NumPy's."""
    value = getattr(variable, "value", None)
    return value if hasattr(value, "__dlpack__") else variable.numpy()


def _flatten(arrays: Mapping[Any, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in arrays.items():
        name = f"{prefix}{key}"
        # The extra state of a PyTorch module may be a dictionary; it is no module.
        if isinstance(value, Mapping) and str(key) != "_extra_state" and not name.endswith("._extra_state"):
            yield from _flatten(value, name + ".")
        else:
            yield name, value


def _entry(name: str, value: Any, live: bool, parts: bool) -> Any:
    """Return the array that an entry is, or what it is instead; TypeError where nothing of that kind may be there."""
    kind = type(value).__name__
    extra = name.rpartition(".")[2] == "_extra_state"
    if kind in ("UninitializedParameter", "UninitializedBuffer"):
        return NoTensor(name, kind, "of a lazy module that has seen no input yet: it has no entries")
    refuse_masked(value, f"model[{name!r}]")
    try:
        is_array = hasattr(value, "shape") and hasattr(value, "dtype")
    except Exception as error:  # whatever a foreign property raises
        fact = f"is a {kind} whose shape or type cannot be read: {type(error).__name__}: {error}"
        raise UnreadableArrayError(f"model[{name!r}]", fact) from error
    if is_array:
        return _local(name, value, parts)
    if isinstance(value, str | bytes | type(None)):
        return NoTensor(name, kind, "extra state, no tensor" if extra else f"a value of type {kind}, no tensor")
    if isinstance(value, bool | int | float):
        return np.asarray(value)  # a version, a step
    if extra or live or name.rpartition(".")[2].startswith("_packed_params"):
        return NoTensor(name, kind, "extra state, no tensor" if extra else f"packed as {kind}, no tensor", lost=True)
    raise InvalidTypeError(f"model[{name!r}]", f"is {kind}, not an array")


def _local(name: str, array: Any, parts: bool) -> Any:
    """The part of a distributed tensor that this process holds, where that is all of it; any other array as it is.

    A part of a DTensor is refused, or stays what it is where `parts` are taken.
    """
    kind = type(array).__name__
    if kind not in ("DTensor", "ShardedTensor", "LocalTensor") or not type(array).__module__.startswith("torch."):
        return array
    if kind == "DTensor":
        # By the layout and not by shapes: of few rows one process may hold all, and others none.
        layout = zip(array.placements, array.device_mesh.shape, strict=True)
        if all(place.is_replicate() or count == 1 for place, count in layout):
            return array.to_local()
    if kind != "DTensor" or not parts:
        raise InvalidTypeError(
            f"model[{name!r}]",
            f"is a {kind}, of which this process holds a part",
            "gather the state first, e.g. by torch.distributed.checkpoint.state_dict.get_model_state_dict with "
            "full_state_dict=True",
        )
    return array


def _known_by_memory(memory: SharedMemory) -> dict[str, Role]:
    """Arrays that are the memory of others: aliases of these, or views."""
    found = {}
    for name, owner in memory.aliases.items():
        found[name] = Role("alias", reason=f"the same tensor as {owner}", source="storage", of=owner)
    for name, (owner, seen) in memory.views.items():
        found[name] = Role("view", reason=f"the same tensor as {owner}, {seen}", source="storage", of=owner)
    return found


def _rank(name: str, role: Role | None) -> int:
    """Which of several names of one tensor it is analysed under, lowest first: stable among equals."""
    kind = (role or role_of(TensorInfo(name, (64, 64), "float32"))).kind
    return 0 if kind == "embedding" else 1 if kind == "head" else 2 if kind in LAYERS else 3


def _role(array: Any, known: Role | None) -> Role | None:
    """What an array is that keeps its numbers elsewhere than in a plain memory."""
    layout = getattr(array, "layout", None)
    if layout is not None and str(layout).startswith("torch.") and str(layout) != "torch.strided":
        return Role("unknown", reason=f"a sparse tensor ({layout}): pass its dense form", source="storage")
    if getattr(array, "is_meta", False) is True:
        return Role("unknown", reason="on the meta device, without entries: load the weights first", source="storage")
    return known


def _dtype_name(array: Any) -> str:
    """Name of the element type in NumPy's spelling, ``float32`` for ``torch.float32`` too."""
    dtype = array.dtype
    name = getattr(dtype, "name", None)
    return name if isinstance(name, str) else str(dtype).rpartition(".")[2]
