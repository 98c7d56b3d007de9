"""The table that `mpfast.analyze` returns, and its forms on disk."""

from __future__ import annotations

import importlib
import math
import os
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, overload

from mpfast.models.budgeting import budget_from_reports
from mpfast.models.csv_text import columns_of, csv_of
from mpfast.models.expert_summary import ExpertRows, ExpertSummary, check_expert_rows, split_experts
from mpfast.models.html_report.analysed import analysis_page
from mpfast.models.layer_json import jsonable, layer_from_json, with_histogram
from mpfast.models.layer_report import LayerReport
from mpfast.models.layer_rows import LayerRows
from mpfast.models.methods import DEFAULT_METHOD
from mpfast.models.model_diff import ModelDiff, diff_of_rows
from mpfast.models.provenance import Provenance, provenance_of
from mpfast.models.rows import json_text
from mpfast.models.skipped import SkippedTensor, is_non_finite
from mpfast.support import (
    InputError,
    InvalidTypeError,
    InvalidValueError,
    front_door,
    package_missing,
    read_document,
)

if TYPE_CHECKING:
    from mpfast.models.budget import Budget


__all__ = ["ANALYSES_SCHEMA", "SCHEMA", "Analysis"]

SCHEMA = "mpfast.analysis/1"
#: Of what `mpfast analyze` writes of several models.
ANALYSES_SCHEMA = "mpfast.analyses/1"


@dataclass(frozen=True, repr=False)
class Analysis(LayerRows):
    """What `mpfast.analyze` found: an immutable sequence of `LayerReport`, in the order of the checkpoint.

    ``analysis["name"]`` is the row of a layer; a slice is an analysis itself, as what `filter` returns, with the other
    layers among its skipped tensors.

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
    provenance : Provenance or None
        What made it, from what; no part of equality.
    """

    layers: tuple[LayerReport, ...]
    skipped: tuple[SkippedTensor, ...]
    source: str
    tol: float
    seed: int
    seconds: float
    provenance: Provenance | None = field(default=None, compare=False)

    def _with(self, layers: tuple[LayerReport, ...], skipped: tuple[SkippedTensor, ...]) -> Analysis:
        return replace(self, layers=layers, skipped=skipped)

    def _sources(self) -> tuple[str, ...]:
        return (self.source,)

    def __repr__(self) -> str:
        return (
            f"Analysis({self.source!r}: {len(self.layers)} layers, {len(self.skipped)} tensors skipped, "
            f"{self.seconds:.2f} s)"
        )

    @property
    def non_finite(self) -> tuple[SkippedTensor, ...]:
        """The matrices that were to be analysed and hold NaN or infinities; their reasons say how many, and where."""
        return tuple(tensor for tensor in self.skipped if is_non_finite(tensor))

    def summary(self) -> dict[str, Any]:
        """Totals over the layers.

        Returns
        -------
        dict
            ``layers``, ``entries`` (of the matrices analysed), ``skipped``, ``spikes``,
            ``spikes_above_edge``, ``signals``, ``verdicts`` (verdict -> layers), ``with_warnings``, the medians over
            the layers ``median_bulk_fraction``, ``median_hill_alpha`` and ``median_stable_rank`` (NaN without layers;
            layers where a measure is undefined are left out of its median), and ``seconds``.
        """
        return {
            "layers": len(self.layers),
            "entries": sum(math.prod(row.shape) for row in self.layers),
            "skipped": len(self.skipped),
            "spikes": sum(row.spikes for row in self.layers),
            "spikes_above_edge": sum(row.spikes_above_edge for row in self.layers),
            "signals": sum(row.signals for row in self.layers),
            "verdicts": dict(Counter(row.verdict for row in self.layers)),
            "with_warnings": sum(bool(row.warnings) for row in self.layers),
            "median_bulk_fraction": _median(row.bulk_fraction for row in self.layers),
            "median_hill_alpha": _median(row.metrics.get("hill_alpha", math.nan) for row in self.layers),
            "median_stable_rank": _median(row.metrics.get("stable_rank", math.nan) for row in self.layers),
            "seconds": self.seconds,
        }

    def expert_summaries(self) -> tuple[ExpertSummary, ...]:
        """Sum up the experts of mixtures, one projection of one block at a time, where there are at least 8 of them."""
        return tuple(split_experts(self.layers)[1])

    @front_door
    def budget(
        self,
        sparsity: float,
        *,
        method: str | Callable[[LayerReport], float] = DEFAULT_METHOD,
        floor: float | Mapping[str, float] = 0.0,
        ceiling: float | Mapping[str, float] | None = None,
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
            Name of one of `mpfast.models.METHODS`, here foretold for layers whose entries are normal; or a function
            from a `LayerReport` to the sparsity wanted: one number is then added to all.
        floor, ceiling : float or mapping
            Smallest and largest sparsity of a layer: one number, or by glob pattern of the name. The default of
            `ceiling` is 0.9, or half way from the target to 1 where that is more; ``ceiling=1`` lifts it.
        exclude : str or iterable of str
            Glob patterns of layers that stay dense; they do not count towards the target.
        groups : mapping of str to patterns, optional
            Layers whose names match the glob patterns of one group get one sparsity.
        embeddings : bool
            Whether embeddings and the output heads of language models (``lm_head``) are pruned, too.

        Returns
        -------
        Budget

        Raises
        ------
        ValueError
            A bad option, no layer left, or bounds that leave no room for the target.

        Warns
        -----
        UserWarning
            Nothing is left of a layer, or a pattern matches none.

        Examples
        --------
        >>> import numpy as np, mpfast
        >>> rng = np.random.default_rng(0)
        >>> model = {f"{i}.weight": (i + 1) * rng.standard_normal((64, 96)) for i in range(3)}
        >>> budget = mpfast.analyze(model).budget(0.5, method="magnitude", ceiling=0.7)
        >>> budget.pruned, [round(row.sparsity, 2) for row in budget]
        (9216, [0.7, 0.47, 0.33])
        """
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
            skipped=self.skipped,
            provenance=self.provenance,
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
            raise package_missing("Analysis.to_pandas()", "pandas", extra="pandas") from None
        return pandas.DataFrame([row.to_dict() for row in self.layers], columns=columns_of([self.layers]))

    @front_door
    def to_document(self, *, expert_rows: ExpertRows = "all") -> dict[str, Any]:
        """Return what `to_json` writes, as dictionaries and lists."""
        rows, experts = split_experts(self.layers, check_expert_rows(expert_rows))
        return {
            "schema": SCHEMA,
            "source": self.source,
            "tol": self.tol,
            "seed": self.seed,
            "seconds": self.seconds,
            "provenance": None if self.provenance is None else self.provenance.to_dict(),
            "expert_rows": "all" if len(rows) == len(self.layers) else "summary",
            "layers": [jsonable(with_histogram(row)) for row in rows],
            "experts": [jsonable(summary.to_dict()) for summary in experts],
            "skipped": [tensor._asdict() for tensor in self.skipped],
        }

    @overload
    def to_json(self, path: None = None, *, expert_rows: ExpertRows = "all") -> str: ...
    @overload
    def to_json(self, path: str | os.PathLike[str], *, expert_rows: ExpertRows = "all") -> None: ...
    @front_door
    def to_json(self, path: str | os.PathLike[str] | None = None, *, expert_rows: ExpertRows = "all") -> str | None:
        """Return the analysis as JSON text, or write it to `path`, whole or not at all.

        NaN becomes ``null`` and an infinity the string ``"inf"`` or ``"-inf"``: JSON has neither.

        Parameters
        ----------
        path : path, optional
            File to write.
        expert_rows : {"all", "summary"}
            With ``"summary"``, the rows of the experts that `expert_summaries` sums up are left out. `from_json`
            reads nothing that lacks rows.

        Raises
        ------
        OSError
            `path` cannot be written, or is what was read, or holds no text; the file is left as it was.
        """
        return self._return_or_write(json_text(self.to_document(expert_rows=expert_rows)), path)

    @overload
    def to_csv(self, path: None = None) -> str: ...
    @overload
    def to_csv(self, path: str | os.PathLike[str]) -> None: ...
    @front_door
    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str | None:
        """Return the rows as CSV text with a header, or write them to `path`, whole or not at all.

        Shapes are written as ``384x1536``, warnings joined by semicolons, numbers so that they read back exactly. A
        text that begins with ``=``, ``+``, ``-``, ``@``, a tab or a line end, from which spreadsheets would compute, or
        with an apostrophe has one apostrophe more in front: a reader that takes one off has the text.

        Raises
        ------
        OSError
            `path` cannot be written, or is what was read, or holds no text; the file is left as it was.
        """
        return self._return_or_write(csv_of([(self.source, self.layers)]), path)

    @overload
    def to_html(self, path: None = None, *, expert_rows: ExpertRows = "summary") -> str: ...
    @overload
    def to_html(self, path: str | os.PathLike[str], *, expert_rows: ExpertRows = "summary") -> None: ...
    @front_door
    def to_html(self, path: str | os.PathLike[str] | None = None, *, expert_rows: ExpertRows = "summary") -> str | None:
        """Return the analysis as a page of its own, or write it to `path`, whole or not at all.

        The page needs no network: a heat map of all layers over block and layer type, a table by blocks with the
        spectrum of every layer, two layers side by side, a preview of budgets, what made it, and itself as CSV and as
        JSON that `from_json` reads, numbers to eight digits. Experts are summed up, see `expert_summaries`; with
        ``expert_rows="all"`` the table has every one, too.

        Raises
        ------
        OSError
            `path` cannot be written, or is what was read, or holds no text; the file is left as it was.
        """
        document = self.to_document(expert_rows=expert_rows)
        return self._return_or_write(analysis_page(document, self.summary(), self.layers, expert_rows), path)

    @front_door
    def compare(self, other: Analysis | str | os.PathLike[str]) -> ModelDiff:
        """Say, layer by layer, how the figures of another analysis differ from these; see `mpfast.diff`.

        Parameters
        ----------
        other : Analysis or path
            The later one, or its JSON.

        Returns
        -------
        ModelDiff
            One row per layer that both have, their names with or without what only one side puts in front of all of
            them; ``unmatched`` names the others.

        Raises
        ------
        TypeError
            The other is no analysis.
        ValueError
            The two have no name in common.
        """
        if isinstance(other, str | os.PathLike):
            other = Analysis.from_json(other)
        if not isinstance(other, Analysis):
            raise InvalidTypeError("other", "must be an analysis or its path", "mpfast.diff compares checkpoints")
        return diff_of_rows(self, other, (self.source, other.source), provenance_of(other, self))

    @classmethod
    @front_door
    def from_json(cls, source: str | os.PathLike[str]) -> Analysis:
        """Rebuild an analysis from the text of `to_json` (a string that starts with ``{``) or from a file.

        Raises
        ------
        ValueError
            The text is no JSON, not of this schema, or a field is wrong: the message names it.
        OSError
            The file cannot be read.
        """
        try:
            record = read_document(source, SCHEMA)
            if record.has("expert_rows") and record.text("expert_rows") != "all":
                fact = "the analysis has summaries of experts in place of their rows"
                raise InvalidValueError("", fact, "write it with expert_rows='all' (--expert-rows all)")
            rows = record.get("layers")
            if not isinstance(rows, list):
                raise record.refuse("layers", "a list")
            return cls(
                layers=tuple(layer_from_json(row) for row in rows),
                skipped=tuple(
                    SkippedTensor(entry.text("name"), entry.shape("shape"), entry.text("dtype"), entry.text("reason"))
                    for entry in record.records("skipped")
                ),
                source=record.text("source"),
                tol=record.number("tol", 0),
                seed=record.integer("seed"),
                seconds=record.number("seconds", 0),
                provenance=Provenance.from_record(record.record("provenance")) if record.has("provenance") else None,
            )
        except InputError:
            raise
        except ValueError as error:
            raise InvalidValueError("", str(error)) from None


def _median(values: Iterator[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return statistics.median(defined) if defined else math.nan
