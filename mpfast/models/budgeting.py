"""Sharing a sparsity out over layers that were analysed."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mpfast.checkpoints import stays_dense, unmatched_patterns
from mpfast.masks import allocate
from mpfast.models.budget import Budget
from mpfast.models.budget_row import LayerBudget
from mpfast.models.extent import default_ceiling, dense_tensors, model_entries, warn_of_emptied
from mpfast.models.methods import DEFAULT_METHOD, method_named
from mpfast.support import (
    InvalidTypeError,
    InvalidValueError,
    check_flag,
    check_patterns,
    check_sparsity,
    floor_count,
    front_door,
    warn_caller,
)

if TYPE_CHECKING:
    from mpfast.models.layer_report import LayerReport, SkippedTensor
    from mpfast.models.provenance import Provenance

__all__ = ["budget_from_reports"]

Bound = float | Mapping[str, float]


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
    """Share ``sparsity`` out over analysed layers; see `mpfast.Analysis.budget`.

    `skipped` are the tensors of the checkpoint that were not analysed, `provenance` is what made the reports.
    """
    sparsity = check_sparsity(sparsity)
    check_flag(embeddings, "embeddings")
    left_out, together = check_patterns(exclude, "exclude"), _checked_groups(groups)
    _check_bound(floor, "floor")
    if ceiling is not None:
        _check_bound(ceiling, "ceiling")
    _check_that_bounds_leave_room(sparsity, floor, ceiling)
    tensors = _by_tensor(reports)
    highest = default_ceiling(sparsity)
    _warn_of_unmatched([row.name for row in tensors], left_out, floor, ceiling, together)
    rows = [
        row
        for row in tensors
        if (embeddings or not stays_dense(row.kind))
        and row.kind != "lora"  # the product of two tensors, neither of which is pruned
        and not any(fnmatch.fnmatchcase(row.name, pattern) for pattern in left_out)
    ]
    if not rows:
        raise InvalidValueError("", "no layer is left to prune")
    sizes = [math.prod(row.tensor_shape) for row in rows]
    names = [row.name for row in rows]
    counts = allocate(
        _wishes(rows, sizes, sparsity, method),
        sizes,
        floor_count(sparsity, sum(sizes)),
        floors=[_bound(floor, name, 0.0) for name in names],
        ceilings=[_bound(highest if ceiling is None else ceiling, name, highest) for name in names],
        groups=[_group(together, name) for name in names],
    )
    layers = tuple(_budgeted(row, count, size) for row, size, count in zip(rows, sizes, counts, strict=True))
    settings = {
        "sparsity": sparsity,
        "floor": _plain(floor),
        "ceiling": highest if ceiling is None else _plain(ceiling),
        "exclude": left_out,
        "groups": together,
        "embeddings": embeddings,
    }
    label = method if isinstance(method, str) else getattr(method, "__name__", "callable")
    warn_of_emptied(((row.name, row.pruned, row.size) for row in layers), sparsity, "budget")
    others = [(row.name, row.tensor_shape) for row in tensors if row.name not in names]
    return Budget(
        layers,
        label,
        sparsity,
        None,
        source,
        dense=(*others, *dense_tensors(skipped, {row.name for row in tensors})),
        model_entries=model_entries(((row.name, row.tensor_shape, row.dtype) for row in tensors), skipped),
        provenance=None if provenance is None else provenance.now(budget=settings),
    )


def _plain(bound: Bound) -> float | dict[str, float]:
    return dict(bound) if isinstance(bound, Mapping) else float(bound)


def _checked_groups(groups: Any) -> dict[str, list[str]]:
    if groups is None:
        return {}
    if not isinstance(groups, Mapping):
        raise InvalidTypeError("groups", f"must map names of groups to glob patterns, not {type(groups).__name__}")
    return {str(group): check_patterns(names, f"groups[{group!r}]") for group, names in groups.items()}


def _check_bound(bound: Any, name: str) -> None:
    if not isinstance(bound, Mapping):
        check_sparsity(bound, name)
        return
    for pattern in check_patterns(bound, name):
        check_sparsity(bound[pattern], f"{name}[{pattern!r}]")


def _check_that_bounds_leave_room(sparsity: float, floor: Bound, ceiling: Bound | None) -> None:
    """One number that all layers are bounded by; of others, `allocate` knows."""
    if not isinstance(floor, Mapping) and floor > sparsity:
        raise InvalidValueError("floor", f"must be at most the sparsity, {sparsity:g}, not {floor:g}")
    if ceiling is not None and not isinstance(ceiling, Mapping) and ceiling < sparsity:
        raise InvalidValueError("ceiling", f"must be at least the sparsity, {sparsity:g}, not {ceiling:g}")


def _warn_of_unmatched(
    names: Sequence[str],
    left_out: Sequence[str],
    floor: Bound,
    ceiling: Bound | None,
    groups: Mapping[str, Sequence[str]],
) -> None:
    """Point out every pattern that is without effect."""
    patterns = {"exclude": left_out, **{f"group {group!r}": members for group, members in groups.items()}}
    patterns |= {what: list(b) for what, b in (("floor", floor), ("ceiling", ceiling)) if isinstance(b, Mapping)}
    for what, given in patterns.items():
        for text in unmatched_patterns(what, given, names):
            warn_caller("budget", text)


def _budgeted(row: LayerReport, pruned: int, size: int) -> LayerBudget:
    return LayerBudget(
        row.name,
        row.kind,
        row.tensor_shape,
        row.dtype,
        pruned=pruned,
        sparsity=pruned / size,
        sigma_plus=row.sigma_plus,
        sigma_plus_error=row.sigma_plus_error,
        rank=row.spikes,
    )


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
                metrics={**rows[0].metrics, "hill_alpha": float(np.mean([row.hill_alpha for row in rows]))},
            )
        )
    return merged


def _wishes(
    rows: Sequence[LayerReport],
    sizes: Sequence[int],
    sparsity: float,
    method: str | Callable[[LayerReport], float],
) -> Any:
    """How large each layer's sparsity is to be; only the differences matter."""
    if callable(method):
        return [float(method(row)) for row in rows]
    return method_named(method, " or a function of a layer").shares(rows, sizes, sparsity)


def _bound(bound: Bound, name: str, default: float) -> float:
    if not isinstance(bound, Mapping):
        return float(bound)
    return next((float(value) for pattern, value in bound.items() if fnmatch.fnmatchcase(name, pattern)), default)


def _group(groups: Mapping[str, Sequence[str]], name: str) -> str:
    """The group that a layer belongs to; a layer of none is one by itself."""
    for group, patterns in groups.items():
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            return f"group {group}"
    return f"layer {name}"
