"""Reader for PyTorch state dictionaries: tensors only, memory-mapped; no other pickled object is ever loaded."""

from __future__ import annotations

import importlib
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mpfast.checkpoints.base import NoTensor, TensorInfo
from mpfast.checkpoints.config_json import read_config
from mpfast.checkpoints.mapping import ArrayMapping
from mpfast.checkpoints.shard_index import weight_map_of
from mpfast.support import CheckpointError, is_text, package_missing, short

__all__ = ["TorchState", "open_torch_file", "open_torch_index"]

# Where training scripts keep the weights among other things; the first that holds tensors is it.
_STATE_KEYS = ("state_dict", "model_state_dict", "model", "module")
# What else a run keeps tensors in.
_NO_WEIGHTS = re.compile(
    r"optim|scheduler|scaler|(^|_)(amp|loss|losses|grads?|metrics?|history|sampler|buffers?|args|config|"
    r"hyper_parameters|callbacks|loops|queue)(_|s?$)|(^|_)(rng|random|seed)(_?states?(_\w+)?|_tracker\w*|s?)$",
    re.IGNORECASE,
)
# Deeper than any training script nests them, and no deeper than Python's stack.
_DEEPEST = 8


class TorchState:
    """One or more files that ``torch.save`` wrote, as one checkpoint. Needs PyTorch.

    Parameters
    ----------
    source : path
        The file or the index, for messages.
    files : list of path
        The files.

    Raises
    ------
    ImportError
        PyTorch is not installed.
    CheckpointError
        A file is damaged, holds something else than tensors in dictionaries, or repeats a name of another file.
    """

    def __init__(self, source: Path, files: list[Path]) -> None:
        self._source = source
        self._directory = files[0].parent
        tensors: dict[str, Any] = {}
        others: list[NoTensor] = []
        for path in files:
            found, passed_over = _flat(_load(path), path)
            others += passed_over
            for name, tensor in found.items():
                if name in tensors:
                    raise CheckpointError(f"{source}: tensor {name!r} is in several files", tensor=name)
                tensors[name] = tensor
        self._arrays = ArrayMapping(tensors)
        self.others = (*self._arrays.others, *others)

    @property
    def config(self) -> Mapping[str, Any] | None:
        """What the ``config.json`` beside the file says; None where there is none."""
        return read_config(self._directory)

    @property
    def source(self) -> str:
        """The path of the file or the index."""
        return str(self._source)

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """All tensors in the order of the dictionary."""
        return self._arrays.tensors

    def read(self, name: str) -> Any:
        """Return one tensor, a PyTorch tensor over the mapped file."""
        return self._arrays.read(name)

    def prefetch(self, name: str) -> None:
        """Do nothing: PyTorch owns the map."""

    def release(self, name: str) -> None:
        """Do nothing: PyTorch owns the map."""


def open_torch_file(path: Path) -> TorchState:
    """Open one file; errors as `TorchState`."""
    return TorchState(path, [path])


def open_torch_index(index: Path) -> TorchState:
    """Open the files that a ``*.bin.index.json`` lists under ``weight_map``.

    Raises
    ------
    CheckpointError
        The index is malformed or a file is missing.
    """
    files = [index.parent / file for file in weight_map_of(index).values()]
    return TorchState(index, list(dict.fromkeys(files)))


def _load(path: Path) -> Any:
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        raise package_missing(f"{path}: reading a file of PyTorch", "torch", extra="torch") from None
    with path.open("rb"):
        pass  # a file that cannot be opened is not damaged
    # What PyTorch raises for a damaged file depends on where the damage is: RuntimeError, KeyError, struct.error...
    try:
        return _loaded(torch, path, mapped=True)
    except pickle.UnpicklingError as error:
        raise _refused(path, error) from None
    except Exception:  # the old format, from before PyTorch 1.6, cannot be mapped
        pass
    try:
        return _loaded(torch, path, mapped=False)
    except Exception as error:
        raise _refused(path, error) from None


def _loaded(torch: Any, path: Path, *, mapped: bool) -> Any:
    if path.suffix != ".safetensors":
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    # By this suffix PyTorch would go, whatever is in the file; a stream has no name, and cannot be mapped.
    with path.open("rb") as stream:
        return torch.load(stream, map_location="cpu", weights_only=True)


def _refused(path: Path, error: Exception) -> CheckpointError:
    # PyTorch's own text advises to load it all the same.
    text = str(error).strip().partition(chr(10))[0] or type(error).__name__
    reason = "" if isinstance(error, pickle.UnpicklingError) else f": {text}"
    return CheckpointError(
        f"{path}: is damaged, or holds other Python objects than tensors, which are never loaded{reason}"
    )


def _flat(state: Any, path: Path) -> tuple[dict[str, Any], list[NoTensor]]:
    """The tensors of a state dictionary, at whatever depth a training run keeps it, and what is passed over."""
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{path}: holds {type(state).__name__}, not a state dictionary")
    chosen, beside = _state_in(state)
    passed_over = list(beside)
    flat: dict[str, Any] = {}
    for key, value in _entries(chosen, path, ""):
        if key in flat:
            raise CheckpointError(f"{path}: tensor {short(key)} occurs twice", tensor=key)
        if _is_tensor(value):
            flat[key] = value
        elif not isinstance(value, str | bytes | int | float | bool | type(None)):
            kind = type(value).__name__
            passed_over.append(NoTensor(key, kind, f"an entry of type {kind}, no tensor", lost=True))
    if not flat and beside:
        names = ", ".join(short(other.name) for other in beside[:8])
        raise CheckpointError(f"{path}: holds tensors of a training run alone, under {names}, and no weights")
    if not flat:
        keys = ", ".join(short(key) for key in list(state)[:8])
        raise CheckpointError(f"{path}: holds no tensors in dictionaries; its keys are {keys or 'none'}")
    return flat, passed_over


def _state_in(state: Mapping[Any, Any], prefix: str = "") -> tuple[Mapping[Any, Any], list[NoTensor]]:
    """The dictionary that holds the weights, and the keys beside it that hold tensors, too."""
    holders = {key: value for key, value in state.items() if not _is_tensor(value) and _tensors_in(value)}
    direct = [key for key, value in state.items() if _is_tensor(value)]
    preferred = next((key for key in _STATE_KEYS if isinstance(holders.get(key), Mapping)), None)
    weights = [key for key in holders if not _NO_WEIGHTS.search(str(key))]
    if not weights and not direct:  # whatever it is called
        weights = [key for key, value in holders.items() if _is_state(value)]
    if preferred is None and not direct and len(weights) == 1:
        preferred = weights[0]
    if preferred is not None and isinstance(holders[preferred], Mapping):
        left = [key for key in (*direct, *holders) if key != preferred]
        inner, passed_over = _state_in(holders[preferred], f"{prefix}{preferred}.")
        return inner, [*_named(left, state, prefix), *passed_over]
    if direct or not weights:
        kept = {key: value for key, value in state.items() if key in direct or key in weights or key not in holders}
    else:
        kept = {key: holders[key] for key in weights}
    return kept, _named([key for key in holders if key not in kept], state, prefix)


def _named(keys: list[Any], state: Mapping[Any, Any], prefix: str) -> list[NoTensor]:
    found = []
    for key in keys:
        count = _tensors_in(state[key]) or 1
        what = f"{count} tensors beside the weights, of the training run: not read"
        found.append(NoTensor(f"{prefix}{key}", type(state[key]).__name__, what))
    return found


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _is_state(value: Any) -> bool:
    """Whether a value has the form of a module's state: tensors by names with dots, matrices among them."""
    if not isinstance(value, Mapping):
        return False
    tensors = {key: inner for key, inner in value.items() if _is_tensor(inner)}
    named = all(isinstance(key, str) for key in value) and any("." in str(key) for key in tensors)
    return named and any(len(tensor.shape) >= 2 for tensor in tensors.values())


def _tensors_in(value: Any, depth: int = 0) -> int:
    """How many tensors are below a value."""
    if _is_tensor(value):
        return 1
    if depth > _DEEPEST or not isinstance(value, Mapping | list | tuple):
        return 0
    return sum(_tensors_in(inner, depth + 1) for inner in (value.values() if isinstance(value, Mapping) else value))


def _entries(state: Any, path: Path, prefix: str, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Everything below a dictionary by its joined names; what holds no tensor is one entry."""
    pairs = state.items() if isinstance(state, Mapping) else enumerate(state)
    for key, value in pairs:
        nested = not _is_tensor(value) and depth <= _DEEPEST and _tensors_in(value) > 0
        if not isinstance(key, str | int) or not is_text(str(key)):
            if nested or _is_tensor(value):
                raise CheckpointError(f"{path}: a tensor is called {short(key)}, which is no name")
            continue
        if nested and not str(key).endswith("_extra_state"):
            yield from _entries(value, path, f"{prefix}{key}.", depth + 1)
        else:
            yield f"{prefix}{key}", value
