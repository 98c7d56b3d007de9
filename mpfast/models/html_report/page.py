"""Fills the template of the report with an analysis."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

from mpfast.checkpoints import stays_dense
from mpfast.models.budgeting import budget_from_reports
from mpfast.models.depth import depth_and_type
from mpfast.models.layer_json import jsonable
from mpfast.models.methods import METHODS
from mpfast.models.noise_verdict import LEVELS, WHAT_IS_NORMAL

if TYPE_CHECKING:
    from mpfast.models.layer_report import LayerReport
    from mpfast.models.skipped import SkippedTensor


__all__ = ["html_report"]

BUDGET_STEPS = tuple(round(0.05 * k, 2) for k in range(1, 20))


def html_report(
    source: str, summary: Mapping[str, Any], layers: Sequence[LayerReport], skipped: Sequence[SkippedTensor]
) -> str:
    """Lay an analysis out as a page: totals, a heat map over depth and layer type, a budget, a table with charts.

    Parameters
    ----------
    source, layers, skipped
        As in `mpfast.Analysis`.
    summary
        As `mpfast.Analysis.summary` returns it.
    """
    files = resources.files(__package__)
    content = {
        "source": source,
        "summary": summary,
        "layers": [_layer(row) for row in layers],
        "skipped": [list(tensor) for tensor in skipped],
        "budget": _budgets(source, layers),
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


def _layer(row: LayerReport) -> dict[str, Any]:
    depth, kind = depth_and_type(row.name)
    picture = row.picture
    law = None if picture is None else picture.law
    return {
        "name": row.name,
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
        "depth": depth,
        "type": kind,
        "histogram": None if row.histogram is None else row.histogram._asdict(),
        "law": None if law is None else [curve.tolist() for curve in law],
        "end": None if picture is None else picture.end,
        "beyond": None if picture is None else picture.beyond,
    }


def _budgets(source: str, layers: Sequence[LayerReport]) -> dict[str, Any] | None:
    """Sparsity per layer at every step of the slider; None where there is nothing to prune."""
    if all(stays_dense(row.kind) or row.kind == "lora" for row in layers):
        return None
    methods = {}
    for method in (name for name, entry in METHODS.items() if entry.previewed):
        steps = [budget_from_reports(layers, sparsity, source=source, method=method) for sparsity in BUDGET_STEPS]
        methods[method] = [[row.sparsity for row in budget] for budget in steps]
        names = [row.name for row in steps[0]]
    return {"steps": BUDGET_STEPS, "names": names, "methods": methods}
