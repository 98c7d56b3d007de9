"""The table of an analysis: layers, experts summed up, what the verdicts mean, warnings, totals."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mpfast.cli.arrangement import Arrangement
from mpfast.cli.tables import (
    Line,
    listed_names,
    plain,
    printable,
    skipped_lines,
    some_names,
    table_lines,
)
from mpfast.models import (
    FENCE,
    VERDICTS,
    WHAT_IS_NORMAL,
    Analysis,
    ExpertRows,
    ExpertSummary,
    LayerReport,
    Quartiles,
    row_figures,
    split_experts,
)
from mpfast.spectra import METRICS
from mpfast.support import counted

__all__ = ["analysis_lines"]

_STYLES = {"layer": "cyan", "sigma+": "bold"}
_EXPERT_HEADERS = ("experts", "of", "shape", "sigma+", "signals", "KS", "noise")
_MEASURES = {"sigma_plus": "sigma+", "signals": "signals", "ks": "KS"}
_OUTLIERS_SHOWN = 8
_NUMBER = re.compile(r"\d+(\.\d+)?")


def analysis_lines(
    analysis: Analysis,
    arrangement: Arrangement,
    expert_rows: ExpertRows = "all",
    *,
    width: int | None,
    verbose: bool,
) -> list[Line]:
    """Lay out an analysis: the table, experts summed up, what verdicts mean, warnings, skipped tensors, totals.

    Parameters
    ----------
    analysis : Analysis
        What was found.
    arrangement : Arrangement
        Which of its rows are shown, and in which order.
    expert_rows : {"all", "summary"}
        Whether the rows of experts stand in the table, or their summaries do below it.
    width : int or None
        Columns of the terminal. Where rows do not fit, the layers' names, never cut, get lines of their own.
        None: no limit.
    verbose : bool
        List every skipped tensor and every warning by name.
    """
    rows = arrangement.ordered(analysis.layers, _value)
    shown, experts = split_experts(rows) if expert_rows == "summary" else (rows, [])
    return [
        *_layer_lines(shown, experts, arrangement, width),
        *_expert_lines(experts, width, verbose),
        *_verdict_lines(shown if verbose else rows, verbose),
        *_warning_lines([*shown, *experts], verbose),
        *skipped_lines(analysis.skipped, verbose),
        *_total_lines(analysis),
    ]


def _value(row: LayerReport, column: str) -> Any:
    return row.metrics.get(column) if column in METRICS else getattr(row, column)


def _layer_lines(
    rows: Sequence[LayerReport], experts: Sequence[ExpertSummary], arrangement: Arrangement, width: int | None
) -> list[Line]:
    if rows:
        figures, left_out = row_figures(rows), arrangement.left_out(rows)
        body = [_row_cells(row, figures) for row in rows[: arrangement.top]]
        return [*table_lines(list(figures), body, width), *([plain(left_out)] if left_out else []), plain()]
    return [] if experts else [plain("no weight matrices found"), plain()]


def _row_cells(row: LayerReport, figures: Mapping[str, Callable[[LayerReport], str]]) -> Line:
    (name, style), *others = ((printable(cell(row)), _STYLES.get(head, "")) for head, cell in figures.items())
    return [(name + (" !" if row.warnings else ""), style), *others]


def _expert_lines(experts: Sequence[ExpertSummary], width: int | None, verbose: bool) -> list[Line]:
    """Lay out the summaries of experts, and name those that stand out."""
    if not experts:
        return []
    lines = table_lines(_EXPERT_HEADERS, [_expert_cells(summary) for summary in experts], width)
    lines.append(plain("of each: median (quartiles; range); --expert-rows all lists every expert"))
    outlying = [summary for summary in experts if summary.outliers]
    if outlying:
        lines.append(plain(f"outlying, by more than {FENCE:g} interquartile ranges beyond a quartile:"))
        lines += [plain(f"  {printable(summary.name)}: {_outliers(summary, verbose)}") for summary in outlying]
    return [*lines, plain()]


def _expert_cells(summary: ExpertSummary) -> Line:
    verdicts = ", ".join(f"{summary.verdicts[level]} {level}" for level in VERDICTS if level in summary.verdicts)
    return [
        (printable(summary.name) + (" !" if summary.warnings else ""), "cyan"),
        (str(summary.experts), ""),
        ("x".join(map(str, summary.shape)), ""),
        (_quartiles(summary.sigma_plus, ".4g"), "bold"),
        (_quartiles(summary.signals, ".4g"), ""),
        (_quartiles(summary.ks, ".3f"), ""),
        (verdicts, ""),
    ]


def _quartiles(found: Quartiles, form: str) -> str:
    lowest, first, median, third, highest = (format(value, form) for value in found)
    return f"{median} ({first}-{third}; {lowest}-{highest})"


def _outliers(summary: ExpertSummary, verbose: bool) -> str:
    shown = summary.outliers if verbose else summary.outliers[:_OUTLIERS_SHOWN]
    more = len(summary.outliers) - len(shown)
    found = [f"{outlier.expert} ({_MEASURES[outlier.measure]} {outlier.value:.4g})" for outlier in shown]
    return ", ".join(found) + (f" and {more} more" if more else "")


def _verdict_lines(rows: Sequence[LayerReport], verbose: bool) -> list[Line]:
    """Say what each verdict of the table means: of every layer if verbose, else in the numbers of its first."""
    lines: list[Line] = []
    for level in VERDICTS:
        found = [row for row in rows if row.verdict == level]
        for row in found if verbose else found[:1]:
            others = f" and {len(found) - 1} more (numbers of the first)" if not verbose and len(found) > 1 else ""
            lines.append([(f"{level}: ", "dim"), (f"{printable(row.name)}{others}: {row.sentence}", "")])
    return [*lines, plain(WHAT_IS_NORMAL), plain()] if lines else []


def _warning_lines(rows: Sequence[LayerReport | ExpertSummary], verbose: bool) -> list[Line]:
    """Each warning once: by its exact text if verbose, else whatever its numbers are, with those of the first layer."""
    texts: dict[str, list[str]] = defaultdict(list)
    names: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        for warning in row.warnings:
            key = warning if verbose else _NUMBER.sub("#", warning)
            texts[key].append(printable(warning))
            names[key].append(printable(row.name))
    lines: list[Line] = []
    for key, layers in names.items():
        differ = " (numbers of the first; --verbose lists all)" if len(set(texts[key])) > 1 else ""
        lines.append([("! ", "yellow"), (f"{some_names(layers, verbose)}: {texts[key][0]}{differ}", "")])
        lines += listed_names(layers, verbose)
    return [*lines, plain()] if lines else []


def _total_lines(analysis: Analysis) -> list[Line]:
    totals = analysis.summary()
    counts = totals["verdicts"]
    verdicts = ", ".join(f"{counts[level]:,} {level}" for level in VERDICTS if level in counts)
    fits = f" (noise: {verdicts})" if verdicts else ""
    return [
        plain(
            f"{counted(totals['layers'], 'matrix', 'matrices')}{fits}, {totals['entries'] / 1e6:.1f} M entries, "
            f"{counted(totals['spikes'], 'spike')}, {counted(totals['signals'], 'signal')}, "
            f"{counted(totals['skipped'], 'tensor')} skipped"
        ),
        plain(f"{printable(analysis.source)} in {analysis.seconds:.2f} s"),
    ]
