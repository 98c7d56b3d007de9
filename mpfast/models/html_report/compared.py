"""The page of a comparison, of two checkpoints or of two analyses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mpfast.models.diff_rows import DiffRow, diff_figures
from mpfast.models.html_report.columns import COMPARISON_COLUMNS
from mpfast.models.html_report.heat_map import Measure, heat_map, place_of
from mpfast.models.html_report.page import filled_page
from mpfast.models.html_report.pictures import whole_picture_of
from mpfast.models.html_report.table import document_text, row_table
from mpfast.models.layer_report import LayerReport

__all__ = ["comparison_page"]

# Of so many rows the page has the spectra: of 46,848 matrices, of which a mixture may consist, they would be 100 MB.
_SPECTRA = 2000


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


_OF_WEIGHTS = (
    Measure[DiffRow]("change, relative to A", lambda row: row.change),
    Measure[DiffRow]("largest change of an entry", lambda row: _or_nan(row.largest)),
)
_OF_ANALYSES = (
    Measure[DiffRow]("sigma+, relative", lambda row: _or_nan(row.sigma_plus), signed=True),
    Measure[DiffRow]("signals", lambda row: _or_nan(row.signals), signed=True),
    Measure[DiffRow]("share", lambda row: _or_nan(row.share), signed=True),
    Measure[DiffRow]("effective rank, relative", lambda row: _or_nan(row.effective_rank), signed=True),
    Measure[DiffRow]("stable rank, relative", lambda row: _or_nan(row.stable_rank), signed=True),
    Measure[DiffRow]("spikes", lambda row: _or_nan(row.spikes), signed=True),
    Measure[DiffRow]("KS", lambda row: _or_nan(row.ks), signed=True),
    Measure[DiffRow]("norm, relative", lambda row: row.change),
)


def comparison_page(
    document: Mapping[str, Any],
    nouns: tuple[str, str],
    rows: Sequence[DiffRow],
    pairs: Sequence[tuple[LayerReport, LayerReport]],
) -> str:
    """Lay a comparison out as a page: totals, a map of all changes, a table, charts of both where spectra are known.

    Parameters
    ----------
    document
        As `mpfast.ModelDiff.to_document` returns it.
    nouns
        What a row is of, one and several.
    rows
        As in `mpfast.ModelDiff`.
    pairs
        The layers of A and of B that the rows compare; empty of checkpoints.
    """
    analyses = document["of"] == "analyses"
    figures = {nouns[0]: lambda row: row.name, "shape": lambda row: "x".join(map(str, row.shape))}
    table = row_table(rows, document["layers"], figures | diff_figures(analyses), COMPARISON_COLUMNS)
    heat = heat_map(rows, _OF_ANALYSES if analyses else _OF_WEIGHTS)
    for entry, row in zip(table["rows"], rows, strict=True):
        entry["place"] = place_of(row.name, heat)
    for at in _most_changed(rows) if analyses else ():
        table["rows"][at]["pair"] = [
            {"sentence": layer.sentence, "picture": whole_picture_of(layer)} for layer in pairs[at]
        ]
    content = {
        "of": document["of"],
        "sources": {"A": document["a"], "B": document["b"]},
        "facts": {
            f"{nouns[1]} in both": f"{len(rows):,}",
            "changed": f"{document['changed']:,}",
            "only in one": f"{len(document['unmatched']):,}",
        },
        "document": document_text(document),
        "table": table,
        "heat": heat,
        "budget": None,
        "spectra": _SPECTRA,
        "levels": [],
        "normal": "",
    }
    return filled_page(f"mpfast: {document['a']} and {document['b']}", content)


def _most_changed(rows: Sequence[DiffRow]) -> list[int]:
    """Return the positions of the rows that changed most, those that did not change left out."""
    changed = [at for at, row in enumerate(rows) if not row.equal]
    return sorted(changed, key=lambda at: math.inf if math.isnan(rows[at].change) else rows[at].change)[-_SPECTRA:]
