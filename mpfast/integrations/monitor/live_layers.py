"""The matrices of a live model that a monitor measures: those that train, whole even where ranks share them."""

from __future__ import annotations

import sys
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

__all__ = ["LiveLayers", "broadcast", "process_count", "process_rank"]

_FROZEN = "frozen: does not train"
_FLAT = "FSDP1 keeps shares of flat parameters: use fully_shard (FSDP2), whose parameters are gathered one by one"
_ZERO3 = "DeepSpeed ZeRO-3 keeps shares of the parameters"


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
        self._checkpoint: Checkpoint = open_checkpoint(model)
        if has_updates(self._checkpoint):
            self._checkpoint = AdapterProducts(self._checkpoint)
        parameters = getattr(model, "named_parameters", None)
        self._parameters = dict(parameters(remove_duplicate=False)) if callable(parameters) else {}
        layers, skipped, _ = select_layers(self._checkpoint, include, exclude, Views())
        matrices = {info.name for info in self._checkpoint.tensors if len(info.shape) > 1}
        self.skipped = {name: why for name, why in skipped.items() if name in matrices}
        flat = (
            {type(module).__name__ for module in model.modules()} if callable(getattr(model, "modules", None)) else ()
        )
        self.layers: list[Layer] = []
        for layer in layers:
            parameter = self._parameters.get(layer.file_name)
            if "FullyShardedDataParallel" in flat:
                self.skipped[layer.name] = _FLAT
            elif parameter is not None and hasattr(parameter, "ds_id"):
                self.skipped[layer.name] = _ZERO3
            elif parameter is not None and not parameter.requires_grad:
                self.skipped[layer.name] = _FROZEN
            else:
                self.layers.append(layer)
        self.gathers = any(hasattr(one, "full_tensor") for one in self._parameters.values())

    def matrix(self, layer: Layer) -> Any:
        """Return the matrix of a layer as it is now."""
        parameter = self._parameters.get(layer.file_name)
        if parameter is not None and hasattr(parameter, "full_tensor"):
            return layer_matrix(parameter.detach().full_tensor(), layer)
        return layer_matrix(read_layer(self._checkpoint, layer), layer)


def process_rank() -> int:
    """Rank of this process in ``torch.distributed``; 0 where there is one process."""
    distributed = _distributed()
    return 0 if distributed is None else int(distributed.get_rank())


def process_count() -> int:
    """Number of processes in ``torch.distributed``."""
    distributed = _distributed()
    return 1 if distributed is None else int(distributed.get_world_size())


def broadcast(value: bool) -> bool:
    """Return what rank 0 says; all ranks must call."""
    distributed = _distributed()
    if distributed is None or distributed.get_world_size() == 1:
        return value
    box = [value]
    distributed.broadcast_object_list(box, src=0)
    return bool(box[0])


def _distributed() -> Any:
    # Who trains on several processes has imported it.
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return distributed
