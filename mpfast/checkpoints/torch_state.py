"""Reader for PyTorch state dictionaries: tensors only, memory-mapped; no other pickled object is ever loaded."""

from __future__ import annotations

import importlib
import pickle
from pathlib import Path
from typing import Any

from mpfast.checkpoints.base import TensorInfo
from mpfast.checkpoints.mapping import ArrayMapping
from mpfast.checkpoints.shard_index import weight_map_of
from mpfast.support import CheckpointError, is_text, short

__all__ = ["TorchState", "open_torch_file", "open_torch_index"]

# Where training scripts keep the weights among other things.
_STATE_KEYS = ("state_dict", "model_state_dict", "model", "module")


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
        tensors: dict[str, Any] = {}
        for path in files:
            for name, tensor in _flat(_load(path), path).items():
                if name in tensors:
                    raise CheckpointError(f"{source}: tensor {name!r} is in several files", tensor=name)
                tensors[name] = tensor
        self._arrays = ArrayMapping(tensors)

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
        raise ImportError(f"{path}: reading a PyTorch file needs PyTorch: pip install torch") from None
    with path.open("rb"):
        pass  # a file that cannot be opened is not damaged
    # What PyTorch raises for a damaged file depends on where the damage is: RuntimeError, KeyError, struct.error...
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise _refused(path, error) from None
    except Exception:  # the old format, from before PyTorch 1.6, cannot be mapped
        pass
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise _refused(path, error) from None


def _refused(path: Path, error: Exception) -> CheckpointError:
    # PyTorch's own text advises to load it all the same.
    reason = "" if isinstance(error, pickle.UnpicklingError) else f": {str(error).strip().partition(chr(10))[0]}"
    return CheckpointError(
        f"{path}: is damaged, or holds other Python objects than tensors, which are never loaded{reason}"
    )


def _flat(state: Any, path: Path) -> dict[str, Any]:
    """The dictionary of tensors, possibly one level down among the settings of a training run."""
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds {type(state).__name__}, not a state dictionary")
    for key in _STATE_KEYS:
        inner = state.get(key)
        if isinstance(inner, dict) and any(hasattr(value, "shape") for value in inner.values()):
            state = inner
            break
    flat: dict[str, Any] = {}
    for key, value in state.items():
        if not (hasattr(value, "shape") and hasattr(value, "dtype")):
            continue
        if not isinstance(key, str | int) or not is_text(str(key)):
            raise CheckpointError(f"{path}: a tensor is called {short(key)}, which is no name")
        if str(key) in flat:
            raise CheckpointError(f"{path}: tensor {short(str(key))} occurs twice", tensor=str(key))
        flat[str(key)] = value
    return flat
