"""Sharing a sparsity out over layers that were analysed."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from mpfast.checkpoints import stays_dense
from mpfast.models.bounds import Bound, Bounds, counts_within
from mpfast.models.budget import Budget
from mpfast.models.budget_row import row_of
from mpfast.models.extent import dense_tensors, model_entries, warn_of_emptied
from mpfast.models.layer_data import LayerData
from mpfast.models.methods import DEFAULT_METHOD, method_named
from mpfast.support import InvalidValueError, check_flag, check_patterns, check_sparsity, front_door

if TYPE_CHECKING:
    from mpfast.models.layer_report import LayerReport
    from mpfast.models.provenance import Provenance
    from mpfast.models.skipped import SkippedTensor

__all__ = ["budget_from_reports"]


@front_door
def budget_from_reports(
    reports: Iterable[LayerReport],
    sparsity: float,
    *,
    source: str,
    method: str | Callable[[LayerReport], float] = DEFAULT_METHOD,
    floor: Bound = 0.0,
    ceiling: Bound | None = None,
    exclude: str | Iterable[str] = (),
    groups: Mapping[str, str | Iterable[str]] | None = None,
    embeddings: bool = False,
    skipped: Iterable[SkippedTensor] = (),
    provenance: Provenance | None = None,
) -> Budget:
    """Share ``sparsity`` out over analysed layers; options and errors as `mpfast.Analysis.budget`.

    `skipped` are the tensors of the checkpoint that were not analysed, `provenance` is what made the reports.
    """
    sparsity = check_sparsity(sparsity)
    check_flag(embeddings, "embeddings")
    left_out = check_patterns(exclude, "exclude")
    bounds = Bounds.checked(sparsity, floor, ceiling, groups)
    tensors = _by_tensor(reports)
    bounds.warn_of_unmatched([row.name for row in tensors], left_out, "budget")
    rows = [
        row
        for row in tensors
        if (embeddings or not stays_dense(row.kind))
        and row.kind != "lora"  # the product of two tensors, neither of which is pruned
        and not any(fnmatch.fnmatchcase(row.name, pattern) for pattern in left_out)
    ]
    if not rows:
        raise InvalidValueError("", "no layer is left to prune")
    layers = [LayerData(row.name, math.prod(row.tensor_shape), row) for row in rows]
    counts = _counts(layers, sparsity, method, bounds)
    budgeted = tuple(row_of(row, count, row) for row, count in zip(rows, counts, strict=True))
    settings = {
        "sparsity": sparsity,
        "floor": bounds.floor,
        "ceiling": bounds.ceiling,
        "exclude": left_out,
        "groups": bounds.groups,
        "embeddings": embeddings,
    }
    label = method if isinstance(method, str) else getattr(method, "__name__", "callable")
    warn_of_emptied(((row.name, row.pruned, row.size) for row in budgeted), sparsity, "budget")
    names = {row.name for row in rows}
    others = [(row.name, row.tensor_shape) for row in tensors if row.name not in names]
    return Budget(
        budgeted,
        label,
        sparsity,
        None,
        source,
        dense=(*others, *dense_tensors(skipped, {row.name for row in tensors})),
        model_entries=model_entries(((row.name, row.tensor_shape, row.dtype) for row in tensors), skipped),
        provenance=None if provenance is None else provenance.now(budget=settings),
    )


def _counts(
    layers: Sequence[LayerData], sparsity: float, method: str | Callable[[LayerReport], float], bounds: Bounds
) -> list[int]:
    """How many entries of each layer go, from the reports alone."""
    reports = [layer.report for layer in layers if layer.report is not None]
    if callable(method):
        wishes = [float(method(row)) for row in reports]
        return counts_within(lambda *_: np.array(wishes), layers, wishes, sparsity, bounds)
    found = method_named(method, " or a function of a layer")
    unknown = [need for need in found.needs if need != "spectra"]
    if unknown:
        raise InvalidValueError(
            "method", f"{method} needs {' and '.join(unknown)}", "pass the model to mpfast.models.share_out"
        )
    if found.cuts_globally:
        shares = found.foretold_cut(reports, [layer.size for layer in layers], sparsity)
        return counts_within(lambda *_: shares, layers, [], sparsity, bounds)
    values = [None if found.measure is None else found.measure(layer, sparsity) for layer in layers]
    return counts_within(found.rule, layers, values, sparsity, bounds, found.reach)


def _by_tensor(reports: Iterable[LayerReport]) -> list[LayerReport]:
    """One row per tensor: norms and spikes of its parts are added up, edges and exponents averaged.

    Parts that were not analysed are taken to be as large, entry by entry, as those that were.
    """
    parts: dict[str, list[LayerReport]] = {}
    for row in reports:
        parts.setdefault(row.tensor, []).append(row)
    merged = []
    for tensor, rows in parts.items():
        if len(rows) == 1:
            merged.append(replace(rows[0], name=tensor))
            continue
        errors = [row.sigma_plus_error for row in rows]
        known = sum(math.prod(row.shape) for row in rows) / math.prod(rows[0].tensor_shape)
        merged.append(
            replace(
                rows[0],
                name=tensor,
                shape=(rows[0].tensor_shape[0], math.prod(rows[0].tensor_shape[1:])),
                fro_norm=math.hypot(*(row.fro_norm for row in rows)) / math.sqrt(known),
                sigma_plus=float(np.mean([row.sigma_plus for row in rows])),
                sigma_plus_error=math.hypot(*errors) / len(rows),
                spikes=sum(row.spikes for row in rows),
                metrics={**rows[0].metrics, **_mean_exponents(rows)},
            )
        )
    return merged


def _mean_exponents(rows: Sequence[LayerReport]) -> dict[str, float]:
    keys = ("hill_alpha", "hill_alpha_half")
    return {key: float(np.mean([row.metrics[key] for row in rows])) for key in keys if key in rows[0].metrics}
