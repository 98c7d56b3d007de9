"""How many entries of each layer of a checkpoint go, by a method and by what it has asked to know."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.arrays import raise_if_nonfinite, widened
from mpfast.checkpoints import WHOLE, Checkpoint, Layer, open_checkpoint, prefetched, read_layer, weight_of
from mpfast.models.analysis import analyze
from mpfast.models.bounds import Bounds, counts_within
from mpfast.models.budget_row import along_inputs
from mpfast.models.layer_data import LayerData
from mpfast.models.layer_moments import LayerMoments
from mpfast.models.layer_report import LayerReport
from mpfast.models.mask_plans import cut_counts, stored_rows
from mpfast.models.methods import METHODS, Method
from mpfast.models.moment_parts import gradients_of_layers
from mpfast.models.refitting import DEFAULT_FIT, DEFAULT_STEPS, damping_for
from mpfast.support import InvalidTypeError, InvalidValueError, floor_count

__all__ = ["Knowledge", "check_needs", "check_no_more", "gradients_of", "shared_counts", "spectra_of"]


def _usual_damping(rows_per_input: float | None) -> tuple[float, float]:
    return damping_for(DEFAULT_FIT, DEFAULT_STEPS, None, rows_per_input)


@dataclass(frozen=True)
class Knowledge:
    """What is known of the layers of a checkpoint; a method has said what it needs.

    Attributes
    ----------
    reports
        Spectra, by the layers' names.
    moments
        Of their inputs.
    gradients
        Mean squares of the gradients of the loss in their outputs, by the layers' names.
    damping
        From rows per input to what `damping_for` gives.
    """

    reports: Mapping[str, LayerReport] = field(default_factory=dict)
    moments: LayerMoments | None = None
    gradients: Mapping[str, Any] = field(default_factory=dict)
    damping: Callable[[float | None], tuple[float, float]] = _usual_damping


def check_needs(method: Method, *, moments: bool, gradients: bool, argument: str = "method") -> None:
    """Raise InvalidValueError where a method needs what is not given."""
    if "moments" in method.needs and not moments:
        raise InvalidValueError(argument, f"{method.name} needs moments", "collect them by mpfast moments")
    if "gradients" in method.needs and not gradients:
        raise InvalidValueError(
            argument,
            f"{method.name} needs gradients",
            "mpfast.integrations.torch.output_gradients collects them",
        )


def check_no_more(method: Method, *, moments: bool, gradients: bool) -> None:
    """Raise InvalidValueError where a method is given what it would not look at."""
    for what, is_given in (("moments", moments), ("gradients", gradients)):
        if is_given and what not in method.needs:
            others = ", ".join(name for name, other in METHODS.items() if what in other.needs)
            fact = f"{method.name} does not look at {what}"
            raise InvalidValueError("method", fact, f"leave them out, or take one of {others}")


def shared_counts(
    method: Method,
    checkpoint: Checkpoint,
    layers: Sequence[Layer],
    known: Knowledge,
    sparsity: float,
    bounds: Bounds,
    threads: int,
) -> dict[str, int]:
    """Decide how many entries of each layer go; may read their weights.

    Parameters
    ----------
    method
        How.
    checkpoint, layers
        What is pruned; all have what the method needs.
    known
        Of the layers.
    sparsity
        Share of all entries, met exactly.
    bounds
        Of the shares.
    threads
        Number of threads.

    Raises
    ------
    InvalidValueError
        A layer that is read has NaN or infinities, or the bounds leave no room.
    """
    data = [LayerData(layer.name, layer.size, known.reports.get(layer.name)) for layer in layers]
    if method.cuts_globally:
        scales = method.scales([layer.report for layer in data], sparsity)
        total = floor_count(sparsity, sum(layer.size for layer in layers))
        # Ceilings by name are seen to by the allocation.
        ceiling = 1.0 if isinstance(bounds.ceiling, Mapping) else bounds.ceiling
        counts = cut_counts(checkpoint, layers, scales, total, ceiling, threads)
        shares = np.array([counts[layer.name] / layer.size for layer in layers])
        pruned = counts_within(lambda *_: shares, data, [], sparsity, bounds)
    else:
        values = _measured(method, checkpoint, layers, data, known, sparsity)
        pruned = counts_within(method.rule, data, values, sparsity, bounds, method.reach)
    return dict(zip((layer.name for layer in layers), pruned, strict=True))


def _measured(
    method: Method,
    checkpoint: Checkpoint,
    layers: Sequence[Layer],
    data: Sequence[LayerData],
    known: Knowledge,
    sparsity: float,
) -> list[Any]:
    """What the method wants to know of each layer, one tensor in memory at a time."""
    if method.measure is None:
        return [None] * len(layers)
    if "weights" not in method.needs:
        return [method.measure(layer, sparsity) for layer in data]
    values = []
    for layer, _ in zip(layers, prefetched((layer.file_name for layer in layers), checkpoint), strict=True):
        weights = _weights_of(checkpoint, layer)
        factor = None if known.moments is None else known.moments.factor(layer, known.damping)
        gradient = known.gradients.get(layer.name)
        report = known.reports.get(layer.name)
        values.append(method.measure(LayerData(layer.name, layer.size, report, weights, factor, gradient), sparsity))
        checkpoint.release(layer.file_name)
    return values


def _weights_of(checkpoint: Checkpoint, layer: Layer) -> NDArray[Any]:
    rows = stored_rows(read_layer(checkpoint, layer), layer)
    numbers = widened(rows) if layer.dtype == "bfloat16" else rows
    bad = np.flatnonzero(~np.isfinite(numbers))
    if len(bad):
        first = np.unravel_index(int(bad[0]), layer.tensor_shape)
        raise_if_nonfinite(layer.name, len(bad), tuple(int(i) for i in first))
    if layer.input_axes:
        numbers = along_inputs(numbers.reshape(layer.tensor_shape), layer.input_axes)
    return numbers if numbers.dtype in (np.float32, np.float64) else numbers.astype(np.float32)


def gradients_of(given: Any, layers: Sequence[Layer]) -> dict[str, Any]:
    """Return the gradients of each layer's outputs by its name.

    Parameters
    ----------
    given
        A file of vectors, or a mapping, by names of modules or weights.
    layers
        All of them must have one.

    Raises
    ------
    InvalidValueError, InvalidTypeError
        A layer has none, or `given` is nothing of the kind.
    """
    values = given
    if isinstance(given, str | os.PathLike):
        file = open_checkpoint(given)
        values = {info.name: file.read(info.name) for info in file.tensors}
    if not isinstance(values, Mapping):
        raise InvalidTypeError("gradients", f"must be a file or a mapping, not {type(given).__name__}")
    if not values:
        raise InvalidValueError("gradients", "are empty")
    names, missing = gradients_of_layers(layers, {name: weight_of(name) for name in values}, values)
    if missing:
        name, reason = next(iter(missing.items()))
        raise InvalidValueError("gradients", f"lack {name}: {reason}")
    return {layer: values[name] for layer, name in names.items()}


def spectra_of(checkpoint: Checkpoint, layers: Sequence[Layer], **options: Any) -> dict[str, LayerReport]:
    """Take the spectra of these layers, whole tensors; by name. The options are those of `analyze`."""
    names = {layer.name for layer in layers}
    analysis = analyze(checkpoint, include=names.__contains__, views=WHOLE, **options)
    for tensor in analysis.skipped:
        if tensor.name in names:
            raise InvalidValueError("", f"{tensor.name}: {tensor.reason}")
    return {row.name: row for row in analysis}
