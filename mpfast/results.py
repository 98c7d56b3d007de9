"""The table that `mpfast.analyze` returns, and its forms on disk."""

from __future__ import annotations

import csv
import importlib
import io
import json
import math
import os
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np

from mpfast.files import write_text_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mpfast.budget import Budget
    from mpfast.checkpoints import Checkpoint
    from mpfast.layers import Layer
    from mpfast.spectrum import Spectrum

__all__ = ["Analysis", "Histogram", "LayerReport", "SkippedTensor", "jsonable", "skipped_tensors"]

SCHEMA = "mpfast.analysis/1"
HISTOGRAM_BINS = 48
SPIKES_KEPT = 32


class SkippedTensor(NamedTuple):
    """A tensor that was not analysed, and why."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    reason: str


class Histogram(NamedTuple):
    """The distribution of a layer's singular values, as much of it as a chart shows.

    Attributes
    ----------
    low, high : float
        Where the bins begin and end, singular-value scale; they are equally wide.
    shares : tuple of float
        Share of the singular values in each bin.
    spikes : tuple of float
        The largest singular values that are known one by one, descending.
    """

    low: float
    high: float
    shares: tuple[float, ...]
    spikes: tuple[float, ...]

    @classmethod
    def of(cls, spectrum: Spectrum) -> Histogram | None:
        """Summarise a spectrum; None where it is all zero."""
        top = max(spectrum.edge.threshold, spectrum.edge.sigma_plus, float(spectrum.quantile(0.98)))
        if not 0 < top < math.inf:
            return None
        edges = np.linspace(0.0, 1.1 * top, HISTOGRAM_BINS + 1)
        cdf = np.asarray(spectrum.cdf(edges), dtype=np.float64)
        shares = np.diff(np.concatenate([[0.0], cdf[1:]]))
        known = spectrum.values if spectrum.values is not None else spectrum.outliers
        return cls(0.0, float(edges[-1]), tuple(shares.round(7).tolist()), tuple(known[:SPIKES_KEPT].tolist()))


def skipped_tensors(
    checkpoint: Checkpoint, layers: Iterable[Layer], reasons: Mapping[str, str]
) -> tuple[SkippedTensor, ...]:
    """List what has a reason: tensors in the order of the checkpoint, then parts of tensors."""
    tensors = [(info.name, info.shape, info.dtype) for info in checkpoint.tensors]
    known = {name for name, _, _ in tensors}
    parts = [(layer.name, layer.shape, layer.dtype) for layer in layers if layer.name not in known]
    return tuple(SkippedTensor(*entry, reasons[entry[0]]) for entry in (*tensors, *parts) if entry[0] in reasons)


@dataclass(frozen=True)
class LayerReport:
    """One row: what the spectrum of one layer says. Singular-value scale throughout.

    Attributes
    ----------
    name, kind : str
        Name of the matrix, the tensor's with the part in brackets; "linear", "conv" or "embedding".
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
        Number of singular values above `threshold`, above `sigma_plus`.
    bulk_fraction : float
        Share of the singular values that are no spikes.
    ks : float
        Kolmogorov distance of the fit on its window.
    verdict : str
        "good", "fair" or "poor" fit.
    metrics : dict
        `Spectrum.metrics()` without what stands above: ``hill_alpha``, ``stable_rank`` and so on.
    seconds : float
        Time spent on this layer.
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
    verdict: str
    metrics: Mapping[str, float] = field(hash=False)
    seconds: float
    warnings: tuple[str, ...]
    histogram: Histogram | None = None

    @classmethod
    def from_spectrum(cls, layer: Layer, spectrum: Spectrum, *, seconds: float) -> LayerReport:
        """Summarise the spectrum of `layer`."""
        edge = spectrum.edge
        metrics = {key: float(value) for key, value in spectrum.metrics().items() if key not in _COLUMNS}
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
            verdict=str(edge.verdict),
            metrics=metrics,
            seconds=seconds,
            warnings=tuple(edge.warnings),
            histogram=Histogram.of(spectrum),
        )

    @property
    def hill_alpha(self) -> float:
        """Hill estimate of the tail exponent, ``metrics["hill_alpha"]``."""
        return self.metrics["hill_alpha"]

    @property
    def stable_rank(self) -> float:
        """Squared Frobenius norm over squared largest singular value, ``metrics["stable_rank"]``."""
        return self.metrics["stable_rank"]

    def to_dict(self) -> dict[str, Any]:
        """Return the row as a flat dictionary, the metrics among the other columns."""
        row = {name: getattr(self, name) for name in _COLUMNS}
        closing = {name: row.pop(name) for name in ("seconds", "warnings")}
        return {**row, **self.metrics, **closing}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> LayerReport:
        """Rebuild a row from `to_dict`; columns it does not know become metrics.

        Raises
        ------
        ValueError
            A column is missing.
        """
        missing = _COLUMNS.keys() - row.keys()
        if missing:
            raise ValueError(f"LayerReport.from_dict(): the row lacks {', '.join(sorted(missing))}")
        values = {name: convert(row[name]) for name, convert in _COLUMNS.items()}
        metrics = {key: float(value) for key, value in row.items() if key not in _COLUMNS}
        return cls(**values, metrics=metrics)


def _integers(values: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _texts(values: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(value) for value in values)


# How each column comes back from JSON, by its annotation, which is a string in this module.
_CONVERTERS = {
    "str": str,
    "float": float,
    "int": int,
    "tuple[int, ...]": _integers,
    "tuple[int, int]": _integers,
    "tuple[str, ...]": _texts,
}
_COLUMNS: dict[str, Any] = {
    column.name: _CONVERTERS[str(column.type)]
    for column in fields(LayerReport)
    if column.name not in ("metrics", "histogram")
}


@dataclass(frozen=True, repr=False)
class Analysis(Sequence[LayerReport]):
    """What `mpfast.analyze` found: an immutable sequence of `LayerReport`, in the order of the checkpoint.

    Attributes
    ----------
    layers : tuple of LayerReport
        The rows.
    skipped : tuple of SkippedTensor
        Every other tensor as (name, shape, dtype, reason).
    source : str
        The path analysed, or the type of the model.
    tol : float
        Relative standard error of the edge that was asked for.
    seed : int
        The seed that the layers' seeds derive from.
    seconds : float
        Wall time.
    """

    layers: tuple[LayerReport, ...]
    skipped: tuple[SkippedTensor, ...]
    source: str
    tol: float
    seed: int
    seconds: float

    @overload
    def __getitem__(self, index: int) -> LayerReport: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[LayerReport, ...]: ...
    def __getitem__(self, index: int | slice) -> LayerReport | tuple[LayerReport, ...]:
        return self.layers[index]

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[LayerReport]:
        return iter(self.layers)

    def __repr__(self) -> str:
        return (
            f"Analysis({self.source!r}: {len(self.layers)} layers, {len(self.skipped)} tensors skipped, "
            f"{self.seconds:.2f} s)"
        )

    def summary(self) -> dict[str, Any]:
        """Totals over the layers.

        Returns
        -------
        dict
            ``layers``, ``entries`` (of the matrices analysed), ``skipped``, ``spikes``,
            ``spikes_above_edge``, ``verdicts`` (verdict -> layers), ``with_warnings``, the medians over the
            layers ``median_bulk_fraction``, ``median_hill_alpha`` and ``median_stable_rank`` (NaN without layers;
            layers where a measure is undefined are left out of its median), and ``seconds``.
        """
        return {
            "layers": len(self.layers),
            "entries": sum(math.prod(row.shape) for row in self.layers),
            "skipped": len(self.skipped),
            "spikes": sum(row.spikes for row in self.layers),
            "spikes_above_edge": sum(row.spikes_above_edge for row in self.layers),
            "verdicts": dict(Counter(row.verdict for row in self.layers)),
            "with_warnings": sum(bool(row.warnings) for row in self.layers),
            "median_bulk_fraction": _median(row.bulk_fraction for row in self.layers),
            "median_hill_alpha": _median(row.metrics.get("hill_alpha", math.nan) for row in self.layers),
            "median_stable_rank": _median(row.metrics.get("stable_rank", math.nan) for row in self.layers),
            "seconds": self.seconds,
        }

    def budget(
        self,
        sparsity: float,
        *,
        method: str | Callable[[LayerReport], float] = "spectral_budget",
        floor: float | Mapping[str, float] = 0.0,
        ceiling: float | Mapping[str, float] = 1.0,
        exclude: str | Iterable[str] = (),
        groups: Mapping[str, str | Iterable[str]] | None = None,
        embeddings: bool = False,
    ) -> Budget:
        """Share a sparsity out over the layers, without reading a weight again.

        Parameters
        ----------
        sparsity : float
            Share of all entries of the budgeted layers to prune; met to the entry, rounded down.
        method : str or callable
            ``"spectral_budget"``: what a global cut of ``|w| / w_l`` would prune in each layer if its entries were
            normal, with the layer weights w_l of arXiv 2606.02608; ``"magnitude"``: the same of ``|w|``;
            ``"uniform"``; or a function from a `LayerReport` to the sparsity wanted: one number is then added to all.
        floor, ceiling : float or mapping
            Smallest and largest sparsity of a layer: one number, or by glob pattern of the name.
        exclude : str or iterable of str
            Glob patterns of layers that stay dense; they do not count towards the target.
        groups : mapping of str to patterns, optional
            Layers whose names match the glob patterns of one group get one sparsity.
        embeddings : bool
            Whether embeddings are pruned, too.

        Returns
        -------
        Budget

        Raises
        ------
        ValueError
            A bad option, no layer left, or bounds that leave no room for the target.

        Examples
        --------
        >>> import numpy as np, mpfast
        >>> rng = np.random.default_rng(0)
        >>> model = {f"{i}.weight": (i + 1) * rng.standard_normal((64, 96)) for i in range(3)}
        >>> budget = mpfast.analyze(model).budget(0.5, method="magnitude", ceiling=0.7)
        >>> budget.pruned, [round(row.sparsity, 2) for row in budget]
        (9216, [0.7, 0.47, 0.33])
        """
        from mpfast.budget import budget_from_reports

        return budget_from_reports(
            self.layers,
            sparsity,
            source=self.source,
            method=method,
            floor=floor,
            ceiling=ceiling,
            exclude=exclude,
            groups=groups,
            embeddings=embeddings,
        )

    def to_pandas(self) -> Any:
        """Return the rows as a pandas ``DataFrame``, one column per key of `LayerReport.to_dict`.

        Raises
        ------
        ImportError
            pandas is not installed.
        """
        try:
            pandas = importlib.import_module("pandas")
        except ImportError:
            raise ImportError("Analysis.to_pandas() needs pandas: pip install 'mpfast[pandas]'") from None
        return pandas.DataFrame([row.to_dict() for row in self.layers], columns=self._columns())

    @overload
    def to_json(self, path: None = None) -> str: ...
    @overload
    def to_json(self, path: str | os.PathLike[str]) -> None: ...
    def to_json(self, path: str | os.PathLike[str] | None = None) -> str | None:
        """Return the analysis as JSON text, or write it to `path`, whole or not at all.

        NaN becomes ``null`` and an infinity the string ``"inf"`` or ``"-inf"``: JSON has neither.

        Raises
        ------
        OSError
            `path` cannot be written; an older file of that name is left as it was.
        """
        document = {
            "schema": SCHEMA,
            "source": self.source,
            "tol": self.tol,
            "seed": self.seed,
            "seconds": self.seconds,
            "layers": [jsonable(_with_histogram(row)) for row in self.layers],
            "skipped": [tensor._asdict() for tensor in self.skipped],
        }
        return _return_or_write(json.dumps(document, indent=1, allow_nan=False) + "\n", path)

    @overload
    def to_csv(self, path: None = None) -> str: ...
    @overload
    def to_csv(self, path: str | os.PathLike[str]) -> None: ...
    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str | None:
        """Return the rows as CSV text with a header, or write them to `path`, whole or not at all.

        Shapes are written as ``384x1536``, warnings joined by ``; ``, numbers so that they read back exactly.

        Raises
        ------
        OSError
            `path` cannot be written; an older file of that name is left as it was.
        """
        stream = io.StringIO()
        writer = csv.DictWriter(stream, self._columns(), lineterminator="\n")
        writer.writeheader()
        for row in self.layers:
            cells = row.to_dict()
            cells["tensor_shape"] = "x".join(map(str, row.tensor_shape))
            cells["shape"] = "x".join(map(str, row.shape))
            cells["warnings"] = "; ".join(row.warnings)
            writer.writerow(cells)
        return _return_or_write(stream.getvalue(), path)

    @overload
    def to_html(self, path: None = None) -> str: ...
    @overload
    def to_html(self, path: str | os.PathLike[str]) -> None: ...
    def to_html(self, path: str | os.PathLike[str] | None = None) -> str | None:
        """Return the analysis as a page of its own, or write it to `path`, whole or not at all.

        The page needs no network: a sortable table with the spectrum of every layer, a heat map over depth and layer
        type, and a preview of budgets.

        Raises
        ------
        OSError
            `path` cannot be written; an older file of that name is left as it was.
        """
        from mpfast.report import html_report

        return _return_or_write(html_report(self), path)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the share of noise and of spikes layer by layer; needs matplotlib. ``show()`` is never called.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Axes to draw on; default the current ones.

        Returns
        -------
        matplotlib.axes.Axes

        Raises
        ------
        ImportError
            matplotlib is not installed.
        """
        from mpfast.plotting import plot_analysis

        return plot_analysis(self, ax)

    @classmethod
    def from_json(cls, source: str | os.PathLike[str]) -> Analysis:
        """Rebuild an analysis from the text of `to_json` (a string that starts with ``{``) or from a file.

        Raises
        ------
        ValueError
            The text is no JSON, or not of this schema.
        OSError
            The file cannot be read.
        """
        if isinstance(source, str) and source.lstrip().startswith("{"):
            text = source
        else:
            text = Path(source).read_text(encoding="utf-8")
        document = json.loads(text)
        if not isinstance(document, dict) or document.get("schema") != SCHEMA:
            raise ValueError(f"Analysis.from_json(): this is not JSON of the schema {SCHEMA}")
        return cls(
            layers=tuple(layer_from_json(row) for row in document["layers"]),
            skipped=tuple(
                SkippedTensor(entry["name"], _integers(entry["shape"]), entry["dtype"], entry["reason"])
                for entry in document["skipped"]
            ),
            source=document["source"],
            tol=float(document["tol"]),
            seed=int(document["seed"]),
            seconds=float(document["seconds"]),
        )

    def _columns(self) -> list[str]:
        """All columns in the order of the first row that has them."""
        if not self.layers:
            return list(_COLUMNS)
        return list(dict.fromkeys(key for row in self.layers for key in row.to_dict()))


def _with_histogram(row: LayerReport) -> dict[str, Any]:
    return {**row.to_dict(), "histogram": None if row.histogram is None else row.histogram._asdict()}


def layer_to_json(row: LayerReport) -> str:
    """Return one row as JSON text."""
    return json.dumps(jsonable(_with_histogram(row)), allow_nan=False)


def layer_from_json(document: str | dict[str, Any]) -> LayerReport:
    """Rebuild a row from `layer_to_json`, or from what JSON made of it; errors as `LayerReport.from_dict`."""
    row = dict(json.loads(document)) if isinstance(document, str) else dict(document)
    found = row.pop("histogram", None)
    report = LayerReport.from_dict(_from_jsonable(row))
    if found is None:
        return report
    histogram = Histogram(found["low"], found["high"], tuple(found["shares"]), tuple(found["spikes"]))
    return replace(report, histogram=histogram)


def _median(values: Iterator[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return statistics.median(defined) if defined else math.nan


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


@overload
def _return_or_write(text: str, path: None) -> str: ...
@overload
def _return_or_write(text: str, path: str | os.PathLike[str] | None) -> str | None: ...
def _return_or_write(text: str, path: str | os.PathLike[str] | None) -> str | None:
    if path is None:
        return text
    write_text_atomically(path, text)
    return None
