"""One row of an analysis: what the spectrum of a layer says, and its form in JSON."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from mpfast.models.histogram import Histogram
from mpfast.models.noise_verdict import noise_sentence, noise_verdict
from mpfast.spectra import METRICS
from mpfast.support import InvalidValueError, Record, front_door, is_shape, is_text, parse_json, short

if TYPE_CHECKING:
    from mpfast.checkpoints import Checkpoint, Layer
    from mpfast.spectra import BothModels


__all__ = [
    "COLUMNS",
    "NUMBER_COLUMNS",
    "SORT_COLUMNS",
    "LayerReport",
    "SkippedTensor",
    "integers",
    "is_non_finite",
    "jsonable",
    "layer_from_json",
    "layer_to_json",
    "skipped_tensors",
    "sorted_rows",
    "with_histogram",
]

# As `mpfast.arrays.raise_if_nonfinite` says it.
_NON_FINITE = re.compile(r"\bnon-finite\b")


class SkippedTensor(NamedTuple):
    """A tensor that was not analysed, and why."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    reason: str


def is_non_finite(tensor: SkippedTensor) -> bool:
    """Whether a tensor was left out because of NaN or infinities in it."""
    return _NON_FINITE.search(tensor.reason) is not None


def skipped_tensors(
    checkpoint: Checkpoint, layers: Iterable[Layer], reasons: Mapping[str, str]
) -> tuple[SkippedTensor, ...]:
    """List what has a reason: tensors in the order of the checkpoint, parts of tensors, and what is no tensor."""
    tensors = [(info.name, info.shape, info.dtype) for info in checkpoint.tensors]
    known = {name for name, _, _ in tensors}
    parts = [(layer.name, layer.shape, layer.dtype) for layer in layers if layer.name not in known]
    others = [SkippedTensor(other.name, (), other.type, other.reason) for other in getattr(checkpoint, "others", ())]
    found = [SkippedTensor(*entry, reasons[entry[0]]) for entry in (*tensors, *parts) if entry[0] in reasons]
    return (*found, *others)


@dataclass(frozen=True, slots=True)
class LayerReport:
    """One row: what the spectrum of one layer says. Singular-value scale throughout.

    Attributes
    ----------
    name, kind : str
        Name of the matrix, the tensor's with the part in brackets; its kind, see `mpfast.checkpoints.Role`.
    tensor : str
        Name of the tensor in the checkpoint.
    tensor_shape, shape : tuple of int
        Shape as stored, and of the matrix analysed.
    dtype : str
        Element type as stored.
    method : str
        "exact" (all singular values) or "lanczos" (quadrature).
    fro_norm : float
        Frobenius norm.
    variance : float
        Fitted variance of one noise entry.
    sigma_plus, sigma_plus_error : float
        Marchenko-Pastur edge and its standard error (0 for "exact").
    threshold : float
        Tracy-Widom corrected edge; a singular value above it is a spike.
    spikes, spikes_above_edge : int
        Number of singular values above ``threshold``, above ``sigma_plus``.
    bulk_fraction : float
        Share of the singular values that are no spikes; not the share of noise, and nothing that can go.
    ks : float
        Kolmogorov distance of the fit on its window. Up to here all is that of even noise, of one scale for all
        entries; the following allows for rows and columns of different scales, where these differ.
    signals, strict : int
        Number of singular values that stand out of the bulk, and of those that could not come from independent entries,
        whatever the bulk. A lower bound both: signals confined to a few rows or columns are read as scale.
    unevenness : float
        By what share of it the edge would move if all that energies of rows and columns differ in were noise; NaN where
        nobody sees the entries.
    row_spread, col_spread : float
        Standard deviation of the logarithms of the scales of rows and of columns; 0 where none are taken out.
    ks_scaled : float
        Kolmogorov distance once scales are taken out.
    share : float
        Share of the energy ``fro_norm^2`` that is fitted noise.
    verdict : str
        What the bulk is: "even" noise, "uneven" noise, "nearly" noise, or "none"; "equal" of a difference to a base
        that is all zero: there is no fit. No judgement of the layer: most trained ones have "none".
    sentence : str
        What the verdict means here.
    metrics : dict
        `Spectrum.metrics()` without what stands above: ``hill_alpha``, ``stable_rank`` and so on.
    seconds : float
        Time spent on this layer.
    unmet_tolerance : str
        What was reached where `tol` was not met within the budget; empty where it was.
    warnings : tuple of str
        What to know before believing the numbers.
    histogram : Histogram or None
        The distribution of the singular values, for charts; not among the columns of tables.
    """

    name: str
    kind: str
    tensor: str
    tensor_shape: tuple[int, ...]
    shape: tuple[int, int]
    dtype: str
    method: str
    fro_norm: float
    variance: float
    sigma_plus: float
    sigma_plus_error: float
    threshold: float
    spikes: int
    spikes_above_edge: int
    bulk_fraction: float
    ks: float
    signals: int
    strict: int
    unevenness: float
    row_spread: float
    col_spread: float
    ks_scaled: float
    share: float
    verdict: str
    sentence: str
    metrics: Mapping[str, float] = field(hash=False)
    seconds: float
    unmet_tolerance: str
    warnings: tuple[str, ...]
    histogram: Histogram | None = None

    @classmethod
    def from_spectra(cls, layer: Layer, both: BothModels, *, seconds: float) -> LayerReport:
        """Summarise what even noise, and what noise as the energies tell it, makes of the spectrum of `layer`."""
        spectrum, told = both
        edge, noise = spectrum.edge, told.noise
        unmet = spectrum.unmet_tolerance or told.unmet_tolerance
        metrics = {key: float(value) for key, value in spectrum.metrics().items() if key not in COLUMNS}
        return cls(
            name=layer.name,
            kind=layer.kind,
            tensor=layer.tensor,
            tensor_shape=layer.tensor_shape,
            shape=layer.shape,
            dtype=layer.dtype,
            method=str(spectrum.method),
            fro_norm=float(spectrum.fro_norm),
            variance=float(edge.variance),
            sigma_plus=float(edge.sigma_plus),
            sigma_plus_error=float(edge.sigma_plus_error),
            threshold=float(edge.threshold),
            spikes=int(edge.spikes),
            spikes_above_edge=int(edge.spikes_above_edge),
            bulk_fraction=float(edge.bulk_fraction),
            ks=float(edge.ks),
            signals=int(told.edge.spikes),
            strict=int(told.edge.strict),
            unevenness=math.nan if edge.unevenness is None else float(edge.unevenness),
            row_spread=0.0 if noise is None else noise.row_spread,
            col_spread=0.0 if noise is None else noise.col_spread,
            ks_scaled=float(told.edge.ks),
            share=float(told.edge.share),
            verdict=noise_verdict(told),
            sentence=noise_sentence(told, int(edge.spikes)),
            metrics=metrics,
            seconds=seconds,
            unmet_tolerance=unmet,
            warnings=tuple(dict.fromkeys(filter(None, (*told.edge.warnings, unmet)))),
            histogram=Histogram.of(spectrum),
        )

    @property
    def hill_alpha(self) -> float:
        """Hill estimate of the tail exponent, ``metrics["hill_alpha"]``."""
        return self.metrics["hill_alpha"]

    @property
    def effective_rank(self) -> float:
        """Exponential of the entropy of the energies of the directions, ``metrics["entropy_rank"]``."""
        return self.metrics["entropy_rank"]

    @property
    def stable_rank(self) -> float:
        """Squared Frobenius norm over squared largest singular value, ``metrics["stable_rank"]``."""
        return self.metrics["stable_rank"]

    def to_dict(self) -> dict[str, Any]:
        """Return the row as a flat dictionary, the metrics among the other columns."""
        row = {name: getattr(self, name) for name in COLUMNS}
        closing = {name: row.pop(name) for name in ("seconds", "unmet_tolerance", "warnings")}
        return {**row, **self.metrics, **closing}

    @classmethod
    @front_door
    def from_dict(cls, row: Mapping[str, Any]) -> LayerReport:
        """Rebuild a row from `to_dict`; columns it does not know become metrics.

        Raises
        ------
        ValueError
            A column is missing or of a wrong kind: the message names it.
        """
        missing = COLUMNS.keys() - row.keys()
        if missing:
            raise InvalidValueError("", f"the row lacks {', '.join(sorted(missing))}")
        values = {name: _converted(name, row[name], convert) for name, convert in COLUMNS.items()}
        if len(values["shape"]) != 2:
            raise _column_error("shape", row["shape"])
        metrics = {key: _converted(key, value, _number) for key, value in row.items() if key not in COLUMNS}
        return cls(**values, metrics=metrics)


def _converted(column: str, value: Any, convert: Callable[[Any], Any]) -> Any:
    try:
        return convert(value)
    except (TypeError, ValueError, OverflowError):
        raise _column_error(column, value) from None


def _column_error(column: str, value: Any) -> InvalidValueError:
    return InvalidValueError("", f"the column {short(column)} cannot be {short(value)}")


def integers(values: Sequence[int]) -> tuple[int, ...]:
    """Return a shape as Python integers; TypeError or ValueError where it is none."""
    if isinstance(values, str | Mapping):
        raise TypeError("expected a sequence")
    shape = tuple(_count(value) for value in values)
    if not is_shape(shape):
        raise ValueError("expected the extents of an array")
    return shape


def _text(value: Any) -> str:
    if not is_text(value):
        raise TypeError("expected text")
    return str(value)


def _texts(values: Sequence[str]) -> tuple[str, ...]:
    if isinstance(values, str | Mapping):
        raise TypeError("expected a sequence")
    return tuple(_text(value) for value in values)


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 <= value < 2**63:
        raise ValueError("expected a count")
    return int(value)


def _number(value: Any) -> float:
    # Infinities are text in JSON, see `jsonable`.
    if isinstance(value, str) and value in ("inf", "-inf"):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError("expected a number")
    return float(value)


# How each column comes back from JSON, by its annotation, which is a string in this module.
_CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "str": _text,
    "float": _number,
    "int": _count,
    "tuple[int, ...]": integers,
    "tuple[int, int]": integers,
    "tuple[str, ...]": _texts,
}
COLUMNS: dict[str, Any] = {
    column.name: _CONVERTERS[str(column.type)]
    for column in fields(LayerReport)
    if column.name not in ("metrics", "histogram")
}
#: The columns of one number each.
NUMBER_COLUMNS = (*(name for name, convert in COLUMNS.items() if convert in (_number, _count)), *METRICS)
# Texts of many words.
NO_ORDER = ("unmet_tolerance", "sentence")
#: The columns that rows can be put in order by: those of text, of one number each, the shape, and the measures.
SORT_COLUMNS = (
    *(name for name, convert in COLUMNS.items() if convert in (_text, _number, _count) and name not in NO_ORDER),
    "shape",
    *METRICS,
)


def sorted_rows(rows: Iterable[LayerReport], column: str) -> list[LayerReport]:
    """Put rows in order by one of `SORT_COLUMNS`; equal ones keep their order.

    Texts go upwards, numbers downwards with what is undefined at the end, shapes downwards by their entries.
    """
    if column not in SORT_COLUMNS:
        raise InvalidValueError("column", f"must be one of {', '.join(SORT_COLUMNS)}, not {column!r}")
    if COLUMNS.get(column) is _text:
        return sorted(rows, key=lambda row: str(getattr(row, column)))

    def downwards(row: LayerReport) -> float:
        value = math.prod(row.shape) if column == "shape" else row.to_dict().get(column, math.nan)
        return math.inf if math.isnan(value) else -value

    return sorted(rows, key=downwards)


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
    return report if found is None else replace(report, histogram=_converted("histogram", found, _histogram))


def _histogram(found: Any) -> Histogram:
    record = Record(found, "the histogram")
    shares, spikes = record.get("shares"), record.get("spikes")
    if not isinstance(shares, list) or not isinstance(spikes, list):
        raise TypeError("expected lists")
    numbers = tuple(map(_number, shares)), tuple(map(_number, spikes))
    return Histogram.from_numbers(_number(record.get("low")), _number(record.get("high")), *numbers)


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
