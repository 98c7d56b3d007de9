"""A model without weights, and a checkpoint that has them: blocks are loaded one by one."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from mpfast.checkpoints import Checkpoint
from mpfast.integrations.torch.stored_names import StoredNames
from mpfast.support import InvalidValueError, package_missing

__all__ = ["Skeleton", "skeleton_of"]

_building = threading.Lock()


class Skeleton:
    """A model on the meta device, whose parts get their weights from a checkpoint and give them back.

    Parameters
    ----------
    model : Module
        Its parameters are on the meta device; buffers that no checkpoint holds have their values.
    checkpoint : Checkpoint
        Has the weights.
    """

    def __init__(self, model: torch.nn.Module, checkpoint: Checkpoint) -> None:
        self.model = model
        self.checkpoint = checkpoint
        self._infos = {info.name: info for info in checkpoint.tensors}
        self.names = StoredNames(model, self._infos)
        self._wanted = {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()}

    def check(self, prefixes: Iterable[str], live: Mapping[str, Iterable[str]]) -> None:
        """Raise InvalidValueError where a module cannot get its weights, before any is read.

        Parameters
        ----------
        prefixes
            Names of modules.
        live
            Of each, the tensors that are to be written back.
        """

        def shaped(name: str) -> torch.Tensor:
            info = self._infos[name]
            return torch.empty(info.shape, dtype=_type(name, info.dtype), device="meta")

        for prefix in prefixes:
            found = self.names.complete(prefix, self.names.read(self.names.inside(prefix), shaped), shaped)
            for name, tensor in found.items():
                self._check_shape(name, tensor)
            for name, tensor in self.stored_masks(live[prefix], found).items():
                if tuple(tensor.shape) != self._infos[name].shape:
                    raise InvalidValueError("model", f"{name}: would get the shape {tuple(tensor.shape)}")

    @contextlib.contextmanager
    def outside(self, prefixes: Sequence[str]) -> Iterator[None]:
        """Have the weights of everything but these modules, as views of the mapped files."""
        names = self.names.outside(prefixes)
        found = self.names.read(names, self._mapped)
        held = [self._put(each, tensor) for name, tensor in found.items() for each in self.names.called(name)]
        try:
            yield
        finally:
            for give_back in held:
                give_back()
            for info in self.checkpoint.tensors:
                self.checkpoint.release(info.name)

    @contextlib.contextmanager
    def loaded(
        self, prefix: str, instead: Mapping[str, tuple[str, Any]] | None = None
    ) -> Iterator[dict[str, torch.Tensor]]:
        """Have the weights of one module, in memory of their own.

        Those of `instead`, arrays with the names of their types, go before the checkpoint's.

        Yields
        ------
        dict of str to Tensor
            By their names in the model.
        """
        replaced = instead or {}
        views: set[int] = set()
        taken: list[str] = []

        def read(name: str) -> torch.Tensor:
            if name not in replaced:
                taken.append(name)
            tensor = _view(name, *replaced[name]) if name in replaced else self._mapped(name)
            views.add(tensor.untyped_storage().data_ptr())
            return tensor

        names = self.names.inside(prefix)
        held: list[Callable[[], None]] = []
        tensors: dict[str, torch.Tensor] = {}
        try:
            found = self.names.complete(prefix, self.names.read(names, read), read)
            for name in list(found):
                tensor = found.pop(name)
                tensors[name] = self._own(name, tensor, tensor.untyped_storage().data_ptr() in views)
                held.append(self._put(name, tensors[name]))
            for name in taken:
                self.checkpoint.release(name)
            yield tensors
        finally:
            for give_back in held:
                give_back()

    def unload(self, names: Iterable[str], tensors: dict[str, torch.Tensor]) -> None:
        """Let go of tensors of a module that is loaded, which is not to run any more, by their live names."""
        for name in names:
            self._put(name, torch.empty_like(tensors.pop(name), device="meta"))

    def _own(self, name: str, tensor: torch.Tensor, is_view: bool) -> torch.Tensor:
        """A tensor that can be written to, in the model's type; a copy where it is a view of a file."""
        self._check_shape(name, tensor)
        return tensor.to(self._dtype(name, tensor), copy=is_view).contiguous()

    def _check_shape(self, name: str, tensor: torch.Tensor) -> None:
        shape, _ = self._wanted[name]
        if tensor.shape != shape:
            raise InvalidValueError("model", f"{name}: is of shape {tuple(tensor.shape)}, not {tuple(shape)}")

    def _dtype(self, name: str, tensor: torch.Tensor) -> torch.dtype:
        wanted = self._wanted[name][1] if name in self._wanted else tensor.dtype
        return wanted if tensor.is_floating_point() and wanted.is_floating_point else tensor.dtype

    def _mapped(self, name: str) -> torch.Tensor:
        """A tensor of the checkpoint, in its type: a view of the file, which is never written to."""
        return _view(name, self._infos[name].dtype, self.checkpoint.read(name))

    def stored_type(self, name: str) -> str:
        """The type of a tensor of the checkpoint."""
        return self._infos[name].dtype

    def stored(self, live: Iterable[str], tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Turn live tensors of a block, and what is stored together with them, into those of the checkpoint.

        Parameters
        ----------
        live
            Their names.
        tensors
            All tensors of the block.
        """
        found = self.stored_masks(live, tensors)
        for name, tensor in found.items():
            found[name] = tensor.to(getattr(torch, self._infos[name].dtype)).contiguous()
        return found

    def stored_masks(self, live: Iterable[str], masks: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """As `stored`, without a change of type."""
        found: dict[str, torch.Tensor] = {}
        for first in dict.fromkeys(map(self.names.first_of, live)):
            found |= self.names.write(first, {name: masks[name] for name in self.names.made_with(first)})
        return found

    def alone(self, live: str) -> str | None:
        """Return the tensor of the checkpoint that a live one is, whole and alone; None where there is none."""
        return self.names.same_as(live)

    def check_way_back(self, live: Iterable[str], tensors: Mapping[str, torch.Tensor]) -> None:
        """Raise InvalidValueError unless live tensors, turned back, are those of the checkpoint, bit by bit."""
        for name, tensor in self.stored_masks(live, tensors).items():
            before = self._mapped(name)
            if not torch.equal(_bits(tensor.to(before.dtype)), _bits(before)):
                raise InvalidValueError(
                    "model",
                    f"{name}: is not what transformers makes of it and turns back again",
                    "leave it out: exclude=",
                )
            self.checkpoint.release(name)

    def _put(self, name: str, tensor: torch.Tensor) -> Callable[[], None]:
        """Put a tensor into its place in the model, and return what takes it out again."""
        path, _, key = name.rpartition(".")
        module = self.model.get_submodule(path)
        place: dict[str, Any] = module._parameters if key in module._parameters else module._buffers
        before = place[key]
        fitting = tensor.to(self._dtype(name, tensor))
        place[key] = torch.nn.Parameter(fitting, requires_grad=False) if place is module._parameters else fitting

        def give_back() -> None:
            place[key] = before

        return give_back


def _view(name: str, dtype: str, array: Any) -> torch.Tensor:
    """An array, bits of types that NumPy lacks among them, as PyTorch has it; never written to."""
    wanted = _type(name, dtype)
    bits = np.ascontiguousarray(array).view(f"i{array.itemsize}")
    return torch.from_numpy(np.asarray(_Writable(bits))).view(wanted).reshape(array.shape)


def _type(name: str, dtype: str) -> torch.dtype:
    wanted = getattr(torch, dtype, None)
    if not isinstance(wanted, torch.dtype):
        raise InvalidValueError("model", f"{name}: is of type {dtype}, which PyTorch lacks")
    return wanted


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


class _Writable:
    """An array that says that it can be written to, which PyTorch wants of all that it views.

    Nothing does write to it: what is changed is copied first. The system would not let it, either.
    """

    def __init__(self, array: Any) -> None:
        self._array = array  # whose memory it is
        said = dict(array.__array_interface__)
        self.__array_interface__ = {**said, "data": (said["data"][0], False)}


def skeleton_of(folder: Path, checkpoint: Checkpoint) -> Skeleton:
    """Build the model that the configuration in a directory names, without weights.

    Its type is the configuration's or, where it names none, that of the first floating-point tensor.

    Raises
    ------
    ImportError
        There is no transformers.
    InvalidValueError
        There is no configuration, or it names a class that transformers lacks.
    """
    if not (folder / "config.json").is_file():
        raise InvalidValueError("", f"{folder}: is no directory with a config.json of transformers")
    try:
        import transformers  # late: it takes seconds, and is optional
    except ImportError:
        raise package_missing("reconstructing a checkpoint", "transformers", extra="transformers") from None
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    named = (config.architectures or ["none"])[0]
    builder = getattr(transformers, named, None)
    if builder is None:
        raise InvalidValueError(
            "model", f"{folder}: its configuration names the class {named}, which transformers lacks"
        )
    wanted = getattr(config, "dtype", None) or getattr(config, "torch_dtype", None)
    if not isinstance(wanted, torch.dtype):
        floats = [getattr(torch, info.dtype, None) for info in checkpoint.tensors if "float" in info.dtype]
        wanted = next((dtype for dtype in floats if isinstance(dtype, torch.dtype)), torch.float32)
    with _building, _parameters_on_meta(), _default_dtype(wanted):
        model = _built(builder, config)
    return Skeleton(model.eval(), checkpoint)


def _built(builder: Callable[[Any], torch.nn.Module], config: Any) -> torch.nn.Module:
    """Build a model without memory for its parameters; should a buffer be lost by that, with memory for one each."""
    try:
        with _EmptyOnMeta():
            model = builder(config)
        if not any(buffer.is_meta for buffer in model.buffers()):
            return model
    except (RuntimeError, NotImplementedError):  # something was computed with what has no numbers
        pass
    return builder(config)


class _EmptyOnMeta(TorchFunctionMode):
    """Tensors that are made without values, as those of most parameters are, get no memory."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if func is torch.empty and named.get("device") is None:
            named["device"] = "meta"
        return func(*args, **named)


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Have modules that are built put their parameters on the meta device; buffers get their values as ever."""
    register = torch.nn.Module.register_parameter

    def on_meta(self: torch.nn.Module, name: str, param: torch.nn.Parameter | None) -> None:
        if param is not None and param.device.type != "meta":
            param = torch.nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)
        register(self, name, param)

    torch.nn.Module.register_parameter = on_meta
    try:
        yield
    finally:
        torch.nn.Module.register_parameter = register


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
