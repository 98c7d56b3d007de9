"""Sharing a sparsity out over the layers of a model by its weights and by what they see."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.arrays import raise_if_nonfinite, widened
from mpfast.checkpoints import (
    WHOLE,
    Checkpoint,
    Layer,
    NameFilter,
    open_checkpoint,
    path_of,
    prefetched,
    read_layer,
    select_layers,
    stays_dense,
    telling_reason,
    weight_of,
)
from mpfast.models.analysis import analyze
from mpfast.models.bounds import Bound, Bounds, counts_within
from mpfast.models.budget import Budget
from mpfast.models.budget_row import LayerBudget, along_inputs
from mpfast.models.extent import dense_tensors, model_entries, warn_of_emptied
from mpfast.models.layer_data import LayerData
from mpfast.models.layer_moments import LayerMoments, modules_of
from mpfast.models.layer_report import LayerReport, skipped_tensors
from mpfast.models.mask_plans import cut_counts, stored_rows
from mpfast.models.methods import DEFAULT_METHOD, Method, method_named
from mpfast.models.provenance import provenance_of
from mpfast.models.refitting import DEFAULT_FIT, DEFAULT_STEPS, damping_for
from mpfast.support import (
    InvalidTypeError,
    InvalidValueError,
    check_flag,
    check_sparsity,
    floor_count,
    front_door,
    team_size,
    warn_caller,
)

__all__ = ["Knowledge", "check_needs", "gradients_of", "share_out", "shared_counts", "spectra_of"]


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


@front_door
def share_out(
    model: Any,
    sparsity: float,
    *,
    method: str = DEFAULT_METHOD,
    moments: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    gradients: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    floor: Bound = 0.0,
    ceiling: Bound | None = None,
    include: NameFilter = None,
    exclude: NameFilter = None,
    groups: Mapping[str, str | Iterable[str]] | None = None,
    embeddings: bool = False,
    tol: float = 5e-3,
    seed: int = 0,
    device: str | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> Budget:
    """Share a sparsity out over the layers of a model, by any of `mpfast.models.METHODS`.

    The budget can be handed to `mpfast.prune`, to `mpfast.integrations.torch.reconstruct_model` and, by
    `Budget.export`, to other tools. Weights are read one tensor at a time.

    Parameters
    ----------
    model : path, mapping of arrays or module
        As `mpfast.analyze`.
    sparsity : float
        Share of all entries of the budgeted layers to prune; met to the entry, rounded down.
    method : str
        Name of one of `mpfast.models.METHODS`, where each says what it needs.
    moments : path or mapping, optional
        As in `mpfast.prune`. A layer without a moment stays dense where the method needs one.
    gradients : path or mapping, optional
        Mean squares of the gradients of the loss in the layers' outputs, (out,), by name of module or weight, as
        `mpfast.integrations.torch.output_gradients` returns them; or a file that holds them.
    floor, ceiling, groups
        As in `mpfast.Analysis.budget`.
    include, exclude
        As in `mpfast.analyze`.
    embeddings : bool
        Whether embeddings and the output heads of language models (``lm_head``) are pruned, too.
    tol, seed, device, progress
        Of the spectra, as in `mpfast.analyze`.
    threads : int, optional
        Number of threads.

    Returns
    -------
    Budget

    Raises
    ------
    ValueError, TypeError
        A bad option, a method that needs what is not given, no layer left, bounds that leave no room, or a layer with
        NaN or infinities.
    FileNotFoundError, CheckpointError
        As `mpfast.analyze`.

    Warns
    -----
    UserWarning
        Nothing is left of a layer, or a pattern matches none.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> model = {f"blocks.{i}.fc.weight": rng.standard_normal((32, 48)) for i in range(3)}
    >>> budget = share_out(model, 0.5, method="by_depth")
    >>> budget.pruned, [round(row.sparsity, 2) for row in budget]
    (2304, [0.4, 0.5, 0.6])
    """
    sparsity = check_sparsity(sparsity)
    found = method_named(method)
    check_needs(found, moments=moments is not None, gradients=gradients is not None)
    check_flag(embeddings, "embeddings")
    bounds = Bounds.checked(sparsity, floor, ceiling, groups)
    team = team_size(threads)
    checkpoint = open_checkpoint(model)
    candidates, skipped, without_effect = select_layers(checkpoint, include, exclude)
    for text in without_effect:
        warn_caller("share_out", text)
    layers = _budgeted_layers(checkpoint, candidates, skipped, embeddings)
    known = None
    if "moments" in found.needs:
        known = LayerMoments(moments, model, checkpoint, layers)
        warn_caller("share_out", known.warning)
        skipped |= {
            layer.name: f"no second moment: {known.reasons[layer.name]}" for layer in layers if layer not in known
        }
        layers = [layer for layer in layers if layer in known]
    options = {"tol": tol, "seed": seed, "device": device, "threads": threads, "progress": progress}
    reports = spectra_of(checkpoint, layers, **options) if found.needs_spectra else {}
    slopes = gradients_of(gradients, layers) if "gradients" in found.needs else {}
    bounds.warn_of_unmatched([layer.name for layer in layers], (), "share_out")
    counts = shared_counts(found, checkpoint, layers, Knowledge(reports, known, slopes), sparsity, bounds, team)
    stays = skipped_tensors(checkpoint, candidates, skipped)
    budget = Budget(
        tuple(_row(layer, counts[layer.name], reports.get(layer.name)) for layer in layers),
        method,
        sparsity,
        None,
        checkpoint.source,
        dense=dense_tensors(stays),
        model_entries=model_entries(((layer.name, layer.tensor_shape, layer.dtype) for layer in layers), stays),
        provenance=provenance_of(
            model,
            sparsity=sparsity,
            method=method,
            moments=_named(moments),
            gradients=_named(gradients),
            floor=bounds.floor,
            ceiling=bounds.ceiling,
            groups=bounds.groups,
            include=include,
            exclude=exclude,
            embeddings=embeddings,
            tol=tol,
            seed=seed,
            device=device,
        ),
    )
    warn_of_emptied(((row.name, row.pruned, row.size) for row in budget), sparsity, "share_out")
    return budget


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
    names, missing = modules_of(layers, {name: weight_of(name) for name in values}, values, "gradients")
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


def _budgeted_layers(
    checkpoint: Checkpoint, candidates: Sequence[Layer], skipped: dict[str, str], embeddings: bool
) -> list[Layer]:
    """Leave out what stays dense, and say why."""
    chosen = []
    for layer in candidates:
        if layer.fixed:
            skipped[layer.name] = layer.fixed
        elif stays_dense(layer.kind) and not embeddings:
            skipped[layer.name] = "embedding or output head (embeddings=True prunes them)"
        else:
            chosen.append(layer)
    if not chosen:
        sizes = {info.name: info.size for info in checkpoint.tensors}
        raise InvalidValueError("", f"no layer is left to prune{telling_reason(skipped, sizes)}")
    return chosen


def _row(layer: Layer, pruned: int, report: LayerReport | None) -> LayerBudget:
    return LayerBudget(
        layer.name,
        layer.kind,
        layer.tensor_shape,
        layer.dtype,
        pruned=pruned,
        sparsity=pruned / layer.size,
        sigma_plus=None if report is None else report.sigma_plus,
        sigma_plus_error=None if report is None else report.sigma_plus_error,
        rank=None if report is None else report.spikes,
    )


def _named(given: Any) -> str | None:
    """A file by its path; what is in memory by its type."""
    if given is None:
        return None
    return str(given) if path_of(given) is not None else type(given).__name__
