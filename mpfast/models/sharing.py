"""Sharing a sparsity out over the layers of a model by its weights and by what they see."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mpfast.checkpoints import (
    Checkpoint,
    Layer,
    NameFilter,
    open_checkpoint,
    select_layers,
    stays_dense,
    telling_reason,
)
from mpfast.models.bounds import Bound, Bounds
from mpfast.models.budget import Budget
from mpfast.models.budget_row import row_of
from mpfast.models.extent import dense_tensors, model_entries, warn_of_emptied
from mpfast.models.layer_moments import LayerMoments
from mpfast.models.methods import DEFAULT_METHOD, method_named
from mpfast.models.provenance import called, provenance_of
from mpfast.models.shared_counts import Knowledge, check_needs, check_no_more, gradients_of, shared_counts, spectra_of
from mpfast.models.skipped import LEFT_DENSE, skipped_tensors
from mpfast.support import InvalidValueError, check_flag, check_sparsity, front_door, team_size, warn_caller

__all__ = ["share_out"]


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
        A bad option, a method that needs what is not given or would not look at what is, no layer left, bounds that
        leave no room, or a layer with NaN or infinities.
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
    check_no_more(found, moments=moments is not None, gradients=gradients is not None)
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
        reasons = {layer.name: known.reason_against_one(layer) for layer in layers}
        skipped |= {name: f"no second moment: {reason}" for name, reason in reasons.items() if reason}
        layers = [layer for layer in layers if not reasons[layer.name]]
    options = {"tol": tol, "seed": seed, "device": device, "threads": threads, "progress": progress}
    reports = spectra_of(checkpoint, layers, **options) if found.needs_spectra else {}
    slopes = gradients_of(gradients, layers) if "gradients" in found.needs else {}
    bounds.warn_of_unmatched([layer.name for layer in layers], (), "share_out")
    counts = shared_counts(found, checkpoint, layers, Knowledge(reports, known, slopes), sparsity, bounds, team)
    stays = skipped_tensors(checkpoint, candidates, skipped)
    budget = Budget(
        tuple(row_of(layer, counts[layer.name], reports.get(layer.name)) for layer in layers),
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
            moments=called(moments),
            gradients=called(gradients),
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


def _budgeted_layers(
    checkpoint: Checkpoint, candidates: Sequence[Layer], skipped: dict[str, str], embeddings: bool
) -> list[Layer]:
    """Leave out what stays dense, and say why."""
    chosen = []
    for layer in candidates:
        if layer.fixed:
            skipped[layer.name] = layer.fixed
        elif stays_dense(layer.kind) and not embeddings:
            skipped[layer.name] = LEFT_DENSE
        else:
            chosen.append(layer)
    if not chosen:
        sizes = {info.name: info.size for info in checkpoint.tensors}
        raise InvalidValueError("", f"no layer is left to prune{telling_reason(skipped, sizes)}")
    return chosen
