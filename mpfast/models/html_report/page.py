"""Fills the template of the report with an analysis."""

from __future__ import annotations

import html
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

from mpfast.checkpoints import stays_dense
from mpfast.models.budgeting import budget_from_reports
from mpfast.models.depth import depth_and_type
from mpfast.models.expert_summary import FENCE, ExpertRows, ExpertSummary, expert_of, split_experts
from mpfast.models.layer_json import jsonable
from mpfast.models.methods import METHODS
from mpfast.models.noise_verdict import LEVELS, WHAT_IS_NORMAL

if TYPE_CHECKING:
    from mpfast.models.budget_row import LayerBudget
    from mpfast.models.layer_report import LayerReport
    from mpfast.models.skipped import SkippedTensor


__all__ = ["html_report"]

BUDGET_STEPS = tuple(round(0.05 * k, 2) for k in range(1, 20))


def html_report(
    source: str,
    summary: Mapping[str, Any],
    layers: Sequence[LayerReport],
    skipped: Sequence[SkippedTensor],
    expert_rows: ExpertRows = "all",
) -> str:
    """Lay an analysis out as a page: totals, a heat map over depth and layer type, a budget, tables, charts.

    Parameters
    ----------
    source, layers, skipped
        As in `mpfast.Analysis`.
    summary
        As `mpfast.Analysis.summary` returns it.
    expert_rows
        Whether the table has the rows of experts that are summed up.
    """
    shown, experts = split_experts(layers, expert_rows)
    files = resources.files(__package__)
    content = {
        "source": source,
        "summary": summary,
        "layers": [_layer(row) for row in shown],
        "experts": [_experts(found) for found in experts],
        "fence": FENCE,
        "skipped": [list(tensor) for tensor in skipped],
        "budget": _budgets(source, layers, {found.name for found in experts}),
        "levels": LEVELS,
        "normal": WHAT_IS_NORMAL,
    }
    data = json.dumps(jsonable(content), allow_nan=False, separators=(",", ":"))
    page = (files / "template.html").read_text(encoding="utf-8")
    pieces = {
        "TITLE": html.escape(f"mpfast: {source}"),
        "STYLE": (files / "report.css").read_text(encoding="utf-8"),
        "SCRIPT": (files / "report.js").read_text(encoding="utf-8"),
        # Names come from files: they must not end the script element.
        "DATA": data.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: pieces[found[1]], page)


def _placed(name: str) -> dict[str, Any]:
    """Where a layer stands in the heat map: its depth and its type, by the numbers in its name."""
    depth, kind = depth_and_type(name)
    return {"name": name, "depth": depth, "type": kind}


def _experts(found: ExpertSummary) -> dict[str, Any]:
    return {
        **_placed(found.name),
        "shape": found.shape,
        "sigma": found.sigma_plus.median,
        "signals": found.signals.median,
        "ks": found.ks.median,
        "experts": found.experts,
        "quartiles": {"sigma+": found.sigma_plus, "signals": found.signals, "KS": found.ks},
        "verdicts": found.verdicts,
        "warnings": found.warnings,
        "outliers": [[outlier.expert, outlier.measure, outlier.value] for outlier in found.outliers],
    }


def _layer(row: LayerReport) -> dict[str, Any]:
    picture = row.picture
    law = None if picture is None else picture.law
    return {
        **_placed(row.name),
        "kind": row.kind,
        "shape": row.shape,
        "dtype": row.dtype,
        "sigma": row.sigma_plus,
        "error": row.sigma_plus_error,
        "threshold": row.threshold,
        "spikes": row.spikes,
        "bulk": row.bulk_fraction,
        "signals": row.signals,
        "strict": min(row.strict, row.signals),
        "unevenness": row.unevenness,
        "ks": row.ks,
        "ks_scaled": row.ks_scaled,
        "share": row.share,
        "verdict": row.verdict,
        "sentence": row.sentence,
        "hill_alpha": row.metrics.get("hill_alpha"),
        "effective": row.metrics.get("entropy_rank"),
        "stable": row.metrics.get("stable_rank"),
        "warnings": row.warnings,
        "histogram": None if row.histogram is None else row.histogram.to_dict(),
        "law": None if law is None else [curve.tolist() for curve in law],
        "end": None if picture is None else picture.end,
        "beyond": None if picture is None else picture.beyond,
    }


def _budgets(source: str, layers: Sequence[LayerReport], summed: Collection[str]) -> dict[str, Any] | None:
    """Sparsity per layer at every step of the slider, of experts summed up together; None where nothing is to prune."""
    if all(stays_dense(row.kind) or row.kind == "lora" for row in layers):
        return None
    methods = {}
    names: list[str] = []
    for method in (name for name, entry in METHODS.items() if entry.previewed):
        budgets = (budget_from_reports(layers, sparsity, source=source, method=method) for sparsity in BUDGET_STEPS)
        shares = [_shares(budget, summed) for budget in budgets]  # one budget in memory at a time
        methods[method] = [list(found.values()) for found in shares]
        names = list(shares[0])
    return {"steps": BUDGET_STEPS, "names": names, "methods": methods}


def _shares(budget: Iterable[LayerBudget], summed: Collection[str]) -> dict[str, float]:
    """Sparsity by name, one for all experts whose matrices are summed up."""
    pruned: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for row in budget:
        expert = expert_of(row.name, row.kind)
        name = expert[0] if expert is not None and expert[0] in summed else row.name
        pruned[name] += row.pruned
        sizes[name] += row.size
    return {name: pruned[name] / size for name, size in sizes.items()}
