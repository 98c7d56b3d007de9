"""Tables as CSV text that spreadsheets read as it is meant."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from mpfast.models.layer_report import COLUMNS, LayerReport

__all__ = ["columns_of", "csv_line", "csv_of"]

# How cells begin from which spreadsheets compute, and what marks one as text.
_COMPUTED = ("=", "+", "-", "@", "\t", "\r", "\n", "'")


def columns_of(tables: Iterable[Iterable[LayerReport]]) -> list[str]:
    """All columns in the order of the first row that has them."""
    return list(dict.fromkeys(key for rows in tables for row in rows for key in row.to_dict())) or list(COLUMNS)


def csv_of(tables: Sequence[tuple[str, Sequence[LayerReport]]], with_source: bool = False) -> str:
    """Return the rows of sources as `Analysis.to_csv` writes them, below one header; the source first if asked."""
    columns = (["source"] if with_source else []) + columns_of(rows for _, rows in tables)
    lines = [csv_line(columns)]
    for source, rows in tables:
        for row in rows:
            cells = row.to_dict()
            cells["tensor_shape"] = "x".join(map(str, row.tensor_shape))
            cells["shape"] = "x".join(map(str, row.shape))
            cells["warnings"] = "; ".join(row.warnings)
            cells |= {"source": source} if with_source else {}
            lines.append(csv_line([cells.get(column, "") for column in columns]))
    return "".join(lines)


def csv_line(cells: Sequence[Any]) -> str:
    """Return a line of CSV, texts so that spreadsheets take them for texts: names come from files."""
    stream = io.StringIO()
    # With this end of line, a cell with either of its characters is quoted.
    writer = csv.writer(stream, lineterminator="\r\n")
    writer.writerow([f"'{cell}" if isinstance(cell, str) and cell.startswith(_COMPUTED) else cell for cell in cells])
    return stream.getvalue().removesuffix("\r\n") + "\n"
