"""The page of an analysis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mpfast.models.expert_summary import FENCE, ExpertRows, split_experts
from mpfast.models.html_report.budget_preview import budget_preview
from mpfast.models.html_report.columns import LAYER_COLUMNS
from mpfast.models.html_report.heat_map import Measure, heat_map, place_of
from mpfast.models.html_report.page import filled_page
from mpfast.models.html_report.pictures import picture_of
from mpfast.models.html_report.table import document_text, row_table
from mpfast.models.layer_report import LayerReport, row_figures
from mpfast.models.noise_verdict import VERDICTS, WHAT_IS_NORMAL

__all__ = ["analysis_page"]


def _over_rank(value: float, row: LayerReport) -> float:
    return value / min(row.shape)


_MEASURES = (
    Measure[LayerReport]("signals over rank", lambda row: _over_rank(row.signals, row)),
    Measure[LayerReport]("share of energy in the fitted noise", lambda row: row.share),
    Measure[LayerReport](
        "effective rank over rank", lambda row: _over_rank(row.metrics.get("entropy_rank", math.nan), row)
    ),
    Measure[LayerReport](
        "stable rank over rank", lambda row: _over_rank(row.metrics.get("stable_rank", math.nan), row)
    ),
    Measure[LayerReport]("unevenness", lambda row: row.unevenness),
    Measure[LayerReport]("sigma+", lambda row: row.sigma_plus),
    Measure[LayerReport]("hill_alpha", lambda row: row.metrics.get("hill_alpha", math.nan)),
    Measure[LayerReport]("KS, scales taken out", lambda row: row.ks_scaled),
)


def analysis_page(
    document: Mapping[str, Any], summary: Mapping[str, Any], layers: Sequence[LayerReport], expert_rows: ExpertRows
) -> str:
    """Lay an analysis out as a page: totals, a map of all layers, tables, charts, a budget.

    Parameters
    ----------
    document
        As `mpfast.Analysis.to_document` returns it, with these `expert_rows`.
    summary
        As `mpfast.Analysis.summary` returns it.
    layers
        As in `mpfast.Analysis`.
    expert_rows
        Whether the table has the rows of experts that are summed up.
    """
    shown, experts = split_experts(layers, expert_rows)
    table = row_table(shown, document["layers"], row_figures(shown), LAYER_COLUMNS)
    heat = heat_map(layers, _MEASURES)
    for entry, layer in zip(table["rows"], shown, strict=True):
        entry |= {"place": place_of(layer.name, heat), "picture": picture_of(layer)}
    content = {
        "of": "analysis",
        "sources": {"model": document["source"]},
        "facts": _facts(summary),
        "document": document_text(document),
        "table": table,
        "heat": heat,
        "budget": budget_preview(document["source"], layers, {found.name for found in experts}),
        "levels": VERDICTS,
        "fence": FENCE,
        "normal": WHAT_IS_NORMAL,
    }
    return filled_page(f"mpfast: {document['source']}", content)


def _facts(summary: Mapping[str, Any]) -> dict[str, str]:
    """Name the totals, what they are of first."""
    verdicts = summary["verdicts"]
    return {
        "matrices": f"{summary['layers']:,}",
        "million entries": f"{summary['entries'] / 1e6:,.1f}",
        "spikes": f"{summary['spikes']:,}",
        "signals": f"{summary['signals']:,}",
        "noise": ", ".join(f"{verdicts[level]:,} {level}" for level in VERDICTS if level in verdicts) or "none fitted",
        "with warnings": f"{summary['with_warnings']:,}",
        "seconds": f"{summary['seconds']:.2f}",
    }
