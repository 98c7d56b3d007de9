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
    gathers : bool
        Whether ranks hold shares of the parameters.
    """

    def __init__(self, model: Any, include: NameFilter, exclude: NameFilter) -> None:
        model = _unwrapped(model)
        self.layers: list[Layer] = []
        self.gathers = False
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
        elsewhere = {name for name, one in parameters.items() if _partly_shared(one)}
        for layer in layers:
            behind = factors.get(layer.tensor, (layer.file_name,))
            parameter = parameters.get(layer.file_name)
            # Of what is computed it is not known from which parameters.
            if elsewhere and any(name in elsewhere or name not in parameters for name in behind):
                self.skipped[layer.name] = _ELSEWHERE
            elif parameter is not None and not parameter.requires_grad:
                self.skipped[layer.name] = _FROZEN
            else:
                self.layers.append(layer)
        self.gathers = any(hasattr(one, "full_tensor") for one in parameters.values())

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


def _partly_shared(parameter: Any) -> bool:
    """Whether several processes and not all hold the shares of a parameter: stages of a pipeline have their own."""
    mesh = getattr(parameter, "device_mesh", None)
    return mesh is not None and mesh.size() not in (1, process_count())


def _flat_matrices(model: Any) -> list[str]:
    """Names of the matrices that FSDP1 keeps in flat parameters."""
    modules = getattr(model, "named_modules", None)
    found = []
    for name, module in modules() if callable(modules) else ():
        if type(module).__name__ == "FullyShardedDataParallel":
            flat = getattr(
                getattr(module, "_handle", None), "flat_param", None
            )  # None: it has no parameters of its own
            inside = zip(getattr(flat, "_fqns", ()), getattr(flat, "_shapes", ()), strict=True)
            place = f"{name}.".replace("_fsdp_wrapped_module.", "").lstrip(".")
            found += [f"{place}{inner}" for inner, shape in inside if len(shape) > 1]
    return found
