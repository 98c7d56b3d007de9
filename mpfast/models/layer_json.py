"""Rows of analyses in JSON, and what of Python JSON can hold."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from mpfast.models.column_values import converted, number
from mpfast.models.layer_report import LayerReport
from mpfast.spectra import Histogram
from mpfast.support import InvalidValueError, Record, parse_json, short

__all__ = ["jsonable", "layer_from_json", "layer_to_json", "with_histogram"]


def with_histogram(row: LayerReport) -> dict[str, Any]:
    """Return the row as `to_dict`, and its histogram."""
    return {**row.to_dict(), "histogram": None if row.histogram is None else row.histogram.to_dict()}


def layer_to_json(row: LayerReport) -> str:
    """Return one row as JSON text."""
    return json.dumps(jsonable(with_histogram(row)), allow_nan=False)


def layer_from_json(document: str | dict[str, Any]) -> LayerReport:
    """Rebuild a row from `layer_to_json`, or from what JSON made of it; errors as `LayerReport.from_dict`."""
    record = parse_json(document) if isinstance(document, str) else document
    if not isinstance(record, dict):
        raise InvalidValueError("", f"a row must be an object, not {short(record)}")
    row = dict(record)
    found = row.pop("histogram", None)
    report = LayerReport.from_dict(_from_jsonable(row))
    return report if found is None else replace(report, histogram=converted("histogram", found, _histogram))


def _histogram(found: Any) -> Histogram:
    record = Record(found, "the histogram")
    shares, spikes = record.get("shares"), record.get("spikes")
    if not isinstance(shares, list) or not isinstance(spikes, list):
        raise TypeError("expected lists")
    numbers = tuple(map(number, shares)), tuple(map(number, spikes))
    return Histogram(number(record.get("low")), number(record.get("high")), *numbers)


def jsonable(value: Any) -> Any:
    """`value` as JSON can hold it: NumPy's types as Python's, NaN as None, infinities as "inf" and "-inf"."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        return jsonable(value.tolist())
    if isinstance(value, list | tuple):
        return [jsonable(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def _from_jsonable(row: dict[str, Any]) -> dict[str, Any]:
    return {key: math.nan if value is None else value for key, value in row.items()}
