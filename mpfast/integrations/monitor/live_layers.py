"""The matrices of a live model that a monitor measures: those that train, whole even where ranks share them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mpfast.checkpoints import (
    AdapterProducts,
    Checkpoint,
    Layer,
    NameFilter,
    Views,
    has_updates,
    layer_matrix,
    open_checkpoint,
    read_layer,
    select_layers,
)
from mpfast.integrations.monitor.processes import process_count

__all__ = ["LiveLayers"]

# What is put around a model for several processes or for speed, and where it has the model: its names stay the same.
_WRAPPERS = {
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "DeepSpeedEngine": "module",
    "OptimizedModule": "_orig_mod",
}
_FROZEN = "frozen: does not train"
_FLAT = "FSDP1 keeps shares of flat parameters: use fully_shard (FSDP2), whose parameters are gathered one by one"
_ZERO3 = "DeepSpeed ZeRO-3 keeps shares of the parameters"
_ELSEWHERE = "shared among some of the processes only, so that they cannot all gather it"


class LiveLayers:
    """The layers of a live model, by name, and why others are left out.

    Weights are read anew at every call, where they are. Of a parameter that ranks hold shares of (FSDP2), the whole is
    gathered when its turn comes: all ranks must then ask for the same layers in the same order.

    Attributes
    ----------
    layers : list of Layer
        What is measured, in the order of the model.
    skipped : dict of str to str
        The other tensors, and why; biases and the like are not listed.
    gathered : set of str
        The layers of which all ranks hold shares.
    """

    def __init__(self, model: Any, include: NameFilter, exclude: NameFilter) -> None:
        model = _unwrapped(model)
        self.layers: list[Layer] = []
        self.gathered: set[str] = set()
        self.skipped = dict.fromkeys(_flat_matrices(model), _FLAT)
        if self.skipped:  # to ask for their state would gather all of it
            return
        parameters = _parameters(model)
        self._checkpoint: Checkpoint = open_checkpoint(model, gather=_whole)
        factors: Mapping[str, tuple[str, ...]] = {}
        if has_updates(self._checkpoint):
            self._checkpoint = products = AdapterProducts(self._checkpoint)
            factors = products.factors
        layers, skipped, _ = select_layers(self._checkpoint, include, exclude, Views())
        matrices = {info.name for info in self._checkpoint.tensors if len(info.shape) > 1}
        self.skipped = {name: why for name, why in skipped.items() if name in matrices}
        self.skipped |= {name: _ZERO3 for name, one in parameters.items() if len(getattr(one, "ds_shape", ())) > 1}
        holders = {name: _holders(one) for name, one in parameters.items()}
        for layer in layers:
            parameter = parameters.get(layer.file_name)
            behind = factors.get(layer.tensor, (layer.file_name,))
            # Of what is computed it is not known from which parameters.
            counts = {holders[name] for name in behind if name in holders} or set(holders.values())
            if parameter is not None and not parameter.requires_grad:
                self.skipped[layer.name] = _FROZEN
            elif counts - {1, process_count()}:  # the stages of a pipeline have their own
                self.skipped[layer.name] = _ELSEWHERE
            else:
                self.layers.append(layer)
                self.gathered |= {layer.name} if counts - {1} else set()

    def matrix(self, layer: Layer) -> Any:
        """Return the matrix of a layer as it is now."""
        return layer_matrix(read_layer(self._checkpoint, layer), layer)


def _unwrapped(model: Any) -> Any:
    while (inner := getattr(model, _WRAPPERS.get(type(model).__name__, ""), None)) is not None:
        model = inner
    return model


def _parameters(model: Any) -> dict[str, Any]:
    parameters = getattr(model, "named_parameters", None)
    return dict(parameters(remove_duplicate=False)) if callable(parameters) else {}


def _whole(tensor: Any) -> Any:
    return tensor.full_tensor()


def _holders(parameter: Any) -> int:
    """How many processes hold a parameter together."""
    mesh = getattr(parameter, "device_mesh", None)
    return 1 if mesh is None else int(mesh.size())


def _flat_matrices(model: Any) -> list[str]:
    """Names of the matrices that FSDP1 keeps in flat parameters."""
    modules = getattr(model, "named_modules", None)
    found = []
    for name, module in modules() if callable(modules) else ():
        if type(module).__name__ == "FullyShardedDataParallel":
            handle = getattr(module, "_handle", None)  # None: all its parameters are in others inside
            flat = getattr(handle, "flat_param", None)
            inside = zip(getattr(flat, "_fqns", ()), getattr(flat, "_shapes", ()), strict=True)
            place = f"{name}.".replace("_fsdp_wrapped_module.", "").lstrip(".")
            found += [f"{place}{inner}" for inner, shape in inside if len(shape) > 1]
    return found
