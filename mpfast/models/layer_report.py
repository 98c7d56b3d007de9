"""One row of an analysis: what the spectrum of a layer says, and its form in JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from mpfast.models.column_values import column_error, converted, count, integers, number, text, texts
from mpfast.models.noise_verdict import noise_sentence, noise_verdict
from mpfast.models.ordering import in_order
from mpfast.spectra import METRICS, Histogram, Picture, current_axes, draw_picture, quantization_noise
from mpfast.support import (
    InvalidValueError,
    facts_as_html,
    front_door,
    notebook_cell,
    percent,
    printable,
    with_error,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mpfast.checkpoints import Layer
    from mpfast.spectra import BothModels, Spectrum


__all__ = [
    "COLUMNS",
    "NUMBER_COLUMNS",
    "SORT_COLUMNS",
    "WORD_COLUMNS",
    "LayerReport",
    "distances",
    "row_figures",
    "signals_range",
    "sorted_rows",
]


@dataclass(frozen=True, repr=False, slots=True)
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
        Element type as stored; of a quantised tensor as it is read.
    stored : str
        How a quantised tensor is stored, "fp8 128x128"; empty of any other.
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
    below_edge : int
        Number of singular values below the lower edge of the law: small ones carry information, too.
    unevenness : float
        By what share of it the edge would move if all that energies of rows and columns differ in were noise; NaN where
        nobody sees the entries.
    row_spread, col_spread : float
        Standard deviation of the logarithms of the scales of rows and of columns; 0 where none are taken out.
    ks_scaled : float
        Kolmogorov distance once scales are taken out.
    share : float
        Share of the energy ``fro_norm^2`` that is fitted noise.
    quantization_noise : float
        Share of ``variance`` that the rounding of the stored format explains, see
        `mpfast.spectra.quantization_noise`; NaN where that is not known, and of what is not quantised.
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
    stored: str
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
    below_edge: int
    unevenness: float
    row_spread: float
    col_spread: float
    ks_scaled: float
    share: float
    quantization_noise: float
    verdict: str
    sentence: str
    metrics: Mapping[str, float] = field(hash=False)
    seconds: float
    unmet_tolerance: str
    warnings: tuple[str, ...]
    histogram: Histogram | None = None

    @classmethod
    def from_spectra(
        cls, layer: Layer, both: BothModels, *, seconds: float, rounding: float | None = None
    ) -> LayerReport:
        """Summarise what even noise, and what noise as the energies tell it, makes of the spectrum of `layer`.

        ``rounding`` is the variance of the rounding of an entry to the grid of the stored format, where that is known.
        """
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
            stored=layer.packed,
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
            below_edge=int(told.edge.below_edge),
            unevenness=math.nan if edge.unevenness is None else float(edge.unevenness),
            row_spread=0.0 if noise is None else noise.row_spread,
            col_spread=0.0 if noise is None else noise.col_spread,
            ks_scaled=float(told.edge.ks),
            share=float(told.edge.share),
            quantization_noise=_rounding_share(spectrum, rounding),
            verdict=noise_verdict(told),
            sentence=noise_sentence(told, int(edge.spikes)),
            metrics=metrics,
            seconds=seconds,
            unmet_tolerance=unmet,
            warnings=tuple(dict.fromkeys(filter(None, (*told.edge.warnings, unmet)))),
            histogram=Histogram.of(spectrum),
        )

    def __repr__(self) -> str:
        return f"LayerReport({self.name!r}: {_size(self)}, {_standing(self)}, noise {self.verdict})"

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        figures = row_figures([self])
        facts = {heading: cell(self) for heading, cell in figures.items() if heading != "layer"}
        return notebook_cell(facts_as_html(self.name, facts, [self.sentence], self.warnings))

    @property
    def picture(self) -> Picture | None:
        """What pictures of the layer show; None where no distribution is known."""
        return Picture.of(self.histogram, self.shape, self)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the spectrum as `mpfast.Spectrum.plot` does, with what the row knows of it.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Axes to draw on; default the current ones. ``show()`` is never called.

        Returns
        -------
        matplotlib.axes.Axes

        Raises
        ------
        ImportError
            matplotlib is not installed.
        """
        ax = current_axes(ax)
        draw_picture(ax, self.picture)
        # Two lines, for names of layers are long, and a title that is wider than its picture is cut.
        title = f"{printable(self.name)}\n{self.spikes} spikes, noise {self.verdict}"
        ax.set_title(title, fontsize="medium")
        return ax

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
        values = {name: converted(name, row[name], convert) for name, convert in COLUMNS.items()}
        if len(values["shape"]) != 2:
            raise column_error("shape", row["shape"])
        metrics = {key: converted(key, value, number) for key, value in row.items() if key not in COLUMNS}
        return cls(**values, metrics=metrics)


def _rounding_share(spectrum: Spectrum, rounding: float | None) -> float:
    if rounding is None or not math.isfinite(rounding) or not spectrum.edge.variance > 0:
        return math.nan
    return quantization_noise(spectrum, rounding).share


# How each column comes back from JSON, by its annotation, which is a string in this module.
_CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "str": text,
    "float": number,
    "int": count,
    "tuple[int, ...]": integers,
    "tuple[int, int]": integers,
    "tuple[str, ...]": texts,
}
COLUMNS: dict[str, Any] = {
    column.name: _CONVERTERS[str(column.type)]
    for column in fields(LayerReport)
    if column.name not in ("metrics", "histogram")
}
#: The columns of one number each.
NUMBER_COLUMNS = (*(name for name, convert in COLUMNS.items() if convert in (number, count)), *METRICS)
# Texts of many words.
_SENTENCES = ("unmet_tolerance", "sentence")
#: The columns of one word each, or of a name.
WORD_COLUMNS = tuple(name for name, convert in COLUMNS.items() if convert is text and name not in _SENTENCES)
#: The columns that rows can be put in order by: those of a word, of one number each, the shape, and the measures.
SORT_COLUMNS = (
    *(name for name in COLUMNS if name in WORD_COLUMNS or name in NUMBER_COLUMNS),
    "shape",
    *METRICS,
)


def _size(row: LayerReport) -> str:
    return "x".join(map(str, row.shape))


def _standing(row: LayerReport) -> str:
    return f"sigma+ {with_error(row.sigma_plus, row.sigma_plus_error)}, {row.spikes} spikes, {row.signals} signals"


def signals_range(row: LayerReport) -> str:
    """What stands out of independent entries, and what stands out of the bulk."""
    low = min(row.strict, row.signals)
    return str(row.signals) if low == row.signals else f"{low}-{row.signals}"


def distances(row: LayerReport, digits: int) -> str:
    """Kolmogorov distance to even noise, and once scales are taken out."""
    before, after = (f"{ks:.{digits}f}" for ks in (row.ks, row.ks_scaled))
    return before if row.ks == row.ks_scaled else f"{before}→{after}"


# What a table shows of any row, by heading.
_ROW_FIGURES: dict[str, Callable[[LayerReport], str]] = {
    "layer": lambda row: row.name,
    "shape": _size,
    "sigma+": lambda row: with_error(row.sigma_plus, row.sigma_plus_error),
    "spikes": lambda row: str(row.spikes),
    "signals": signals_range,
    "uneven": lambda row: percent(row.unevenness),
    "KS": lambda row: distances(row, 3),
    "noise": lambda row: row.verdict,
    "share": lambda row: percent(row.share),
    "eff.rank": lambda row: f"{row.metrics.get('entropy_rank', math.nan):.0f}",
    "hill_alpha": lambda row: f"{row.metrics.get('hill_alpha', math.nan):.2f}",
    "stable": lambda row: f"{row.metrics.get('stable_rank', math.nan):.1f}",
}
# How a quantised matrix is stored, and what share of its noise that explains.
_STORED_FIGURES: dict[str, Callable[[LayerReport], str]] = {
    "stored": lambda row: row.stored,
    "rounding": lambda row: percent(row.quantization_noise) if row.stored else "",
}


def row_figures(rows: Iterable[LayerReport]) -> dict[str, Callable[[LayerReport], str]]:
    """Return by heading what a table shows of these rows; how they are stored, where any is quantised."""
    return _ROW_FIGURES | (_STORED_FIGURES if any(row.stored for row in rows) else {})


def sorted_rows(rows: Iterable[LayerReport], column: str, *, reverse: bool = False) -> list[LayerReport]:
    """Put rows in order by one of `SORT_COLUMNS`; equal ones keep their order.

    Texts go upwards, numbers downwards, shapes downwards by their entries; `reverse` turns that round. What is
    undefined is at the end either way.
    """
    if column not in SORT_COLUMNS:
        raise InvalidValueError("column", f"must be one of {', '.join(SORT_COLUMNS)}, not {column!r}")
    if column in METRICS:
        return in_order(rows, lambda row: row.metrics.get(column), reverse=reverse)
    return in_order(rows, lambda row: getattr(row, column), reverse=reverse)
