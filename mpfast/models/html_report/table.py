"""The rows of a page: what its table shows of them, and what is written to files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from mpfast.models.html_report.columns import Column
from mpfast.models.html_report.numbers import shortened

__all__ = ["document_text", "row_table"]

Row = TypeVar("Row")

# Of numbers in rows: more than float32 has, which weights come in at most. With all of them, the page of 2000 layers of
# SmolLM2 would be of 6 MB in place of 4.8.
DIGITS = 8


def row_table(
    rows: Sequence[Row],
    records: Sequence[Mapping[str, Any]],
    figures: Mapping[str, Callable[[Row], str]],
    columns: Mapping[str, Column],
) -> dict[str, Any]:
    """Lay rows out once for the table, for files and for sorting.

    Parameters
    ----------
    rows
        What the table shows.
    records
        The same as JSON has them.
    figures
        By heading what the table says of a row, the name first.
    columns
        By heading what that is.

    Returns
    -------
    dict
        ``fields``, the keys of the records; ``columns`` as {heading, field, meaning}; ``rows`` as {values, cells}, the
        values in the order of the fields, the cells texts in the order of the columns without the name.
    """
    fields = list(dict.fromkeys(key for record in records for key in record))
    name, *others = figures
    return {
        "fields": fields,
        "columns": [{"heading": heading, **columns[heading]._asdict()} for heading in (name, *others)],
        "rows": [
            {
                "values": [shortened(record.get(key), DIGITS) for key in fields],
                "cells": [figures[heading](row) for heading in others],
            }
            for row, record in zip(rows, records, strict=True)
        ],
    }


def document_text(document: Mapping[str, Any]) -> str:
    """Return a document as JSON text that ends with an empty list of layers, which the page fills.

    It is told as text since JavaScript would round a large seed.
    """
    head = {key: value for key, value in document.items() if key != "layers"}
    return json.dumps({**head, "layers": []}, allow_nan=False)
