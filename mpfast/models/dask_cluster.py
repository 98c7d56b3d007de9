"""The layers of a model on the workers of a Dask cluster."""

from __future__ import annotations

import functools
import importlib
import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from mpfast.arrays import QuantisedArray
from mpfast.checkpoints import ArrayMapping, Checkpoint, Layer, read_layer
from mpfast.models.layer_job import Settings, layer_outcome, open_derived
from mpfast.models.layer_report import LayerReport
from mpfast.operators import aligned

__all__ = ["outcomes_on_cluster"]

# A worker that dies takes its layers with it; they are tried again elsewhere so many times.
RETRIES = 3


def outcomes_on_cluster(
    client: Any,
    origin: tuple[Any, Any],
    checkpoint: Checkpoint,
    layers: Sequence[Layer],
    settings: Settings,
) -> Iterator[tuple[Layer, LayerReport | str]]:
    """Yield (layer, report or reason why there is none), in the order they are done.

    Parameters
    ----------
    client : distributed.Client
        The cluster.
    origin : (model, base)
        Paths are opened by the workers; what is in memory is read here and sent.
    checkpoint, layers, settings
        As in `mpfast.models.analysis`.
    """
    distributed = importlib.import_module("distributed")
    run = uuid.uuid4().hex
    paths = all(part is None or isinstance(part, str | os.PathLike) for part in origin)
    shared = (run, *(None if part is None else os.fspath(part) for part in origin)) if paths else None
    futures: dict[Any, Layer] = {}
    for layer in sorted(layers, key=lambda layer: -layer.size):
        # GPUs are named by the worker's own numbers: it is to use the device that was asked for, not ours.
        # What is sent is the weight as the model computes with it; what opens the file itself finds it there.
        sent = layer if paths else replace(layer, stored="", masked_by="", scaled_by="")
        task = (shared, replace(settings, gpus=()), sent)
        tensor = None if paths else client.scatter(_sent(read_layer(checkpoint, layer)))
        key = f"mpfast-{run}-{layer.name}"
        futures[client.submit(_remote_outcome, *task, tensor, pure=False, retries=RETRIES, key=key)] = layer
    try:
        for future in distributed.as_completed(futures):
            yield futures[future], future.result()
    finally:
        client.cancel(list(futures))


def _sent(tensor: Any) -> Any:
    """Return what is sent of a tensor: of a quantised one its numbers, for what is stored stays where it is."""
    return tensor.decoded()[0] if isinstance(tensor, QuantisedArray) else tensor


@functools.lru_cache(maxsize=4)
def _opened(run: str, model: str, base: str | None) -> Checkpoint:
    """Open what the tasks of one run share."""
    return open_derived(model, base)[0]


def _remote_outcome(
    shared: tuple[str, str, str | None] | None, settings: Settings, layer: Layer, tensor: Any
) -> LayerReport | str:
    """Analyse one layer, on a worker."""
    checkpoint = _opened(*shared) if shared is not None else ArrayMapping({layer.tensor: aligned(tensor)})
    return layer_outcome(checkpoint, layer, settings, settings.threads, settings.device)
