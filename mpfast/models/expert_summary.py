"""Many experts as one line: what the matrices of one projection in one block have in common, and which stand out."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from mpfast.models.layer_report import LayerReport
from mpfast.support import InvalidValueError

__all__ = [
    "FENCE",
    "FEWEST_EXPERTS",
    "ExpertRows",
    "ExpertSummary",
    "OutlyingExpert",
    "Quartiles",
    "check_expert_rows",
    "expert_of",
    "split_experts",
]

#: How the rows of experts are reported: summed up, or every one.
ExpertRows = Literal["summary", "all"]

#: As many matrices have quartiles; fewer are reported one by one.
FEWEST_EXPERTS = 8
#: An expert stands out that lies beyond its quartile by more than so many interquartile ranges: Tukey's outer fences,
#: which two of a million normal values pass.
FENCE = 3.0

_OF_STACK = re.compile(r"(?P<head>.*\[)(?P<number>\d+)(?P<tail>(,[^\]]*)?\])")
_BY_ITSELF = re.compile(r"(?P<head>(.*[._/])?experts[._/])(?P<number>\d+)(?P<tail>[._/].+)")
_NUMBER = re.compile(r"\d+(\.\d+)?")


class Quartiles(NamedTuple):
    """How a measure is distributed: its range, its quartiles and its median; NaN where it is defined nowhere."""

    lowest: float
    first: float
    median: float
    third: float
    highest: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Quartiles:
        """Take them of those values that are numbers."""
        known = np.array([value for value in values if not math.isnan(value)], dtype=np.float64)
        if not known.size:
            return cls(*(math.nan,) * 5)
        return cls(*np.quantile(known, (0.0, 0.25, 0.5, 0.75, 1.0)).tolist())


class OutlyingExpert(NamedTuple):
    """An expert that stands out in a measure."""

    name: str
    expert: int
    measure: str
    value: float


@dataclass(frozen=True)
class ExpertSummary:
    """What is known of one projection of all experts of a block.

    Attributes
    ----------
    name : str
        Name of the matrices, with ``*`` for the expert's number: ``"layers.0.mlp.experts.*.up_proj.weight"``,
        ``"layers.0.mlp.experts.gate_up_proj[*,up]"``.
    kind, shape, dtype
        Of each matrix, as in `LayerReport`.
    experts : int
        Their number.
    sigma_plus, signals, ks : Quartiles
        Of these columns of `LayerReport`.
    verdicts : mapping of str to int
        How many have which.
    warnings : tuple of str
        Each once, whatever its numbers are, with how many it is of, and the numbers of the first.
    outliers : tuple of OutlyingExpert
        Experts more than 3 interquartile ranges beyond a quartile of ``sigma_plus``, ``signals`` or ``ks``. A range
        counts at least as one signal, 0.001 of KS, and the median error of ``sigma_plus`` or a millionth of its median.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    dtype: str
    experts: int
    sigma_plus: Quartiles
    signals: Quartiles
    ks: Quartiles
    verdicts: Mapping[str, int]
    warnings: tuple[str, ...]
    outliers: tuple[OutlyingExpert, ...]

    @classmethod
    def of(cls, name: str, rows: Sequence[LayerReport]) -> ExpertSummary:
        """Sum up the rows of the experts that are called `name`, one or more."""
        found, outliers = {}, []
        for measure, (value, least) in _MEASURES.items():
            quartiles = found[measure] = Quartiles.of(map(value, rows))
            reach = FENCE * max(quartiles.third - quartiles.first, least(rows))
            outliers += [
                OutlyingExpert(row.name, _number(row), measure, value(row))
                for row in rows
                if not quartiles.first - reach <= value(row) <= quartiles.third + reach and not math.isnan(value(row))
            ]
        first = rows[0]
        return cls(
            name,
            first.kind,
            first.shape,
            first.dtype,
            len(rows),
            **found,
            verdicts=dict(Counter(row.verdict for row in rows)),
            warnings=_counted_warnings(rows),
            outliers=tuple(sorted(outliers, key=lambda outlier: (outlier.expert, outlier.measure))),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return it as dictionaries and lists."""
        quartiles = {measure: getattr(self, measure)._asdict() for measure in _MEASURES}
        return {**asdict(self), **quartiles, "outliers": [outlier._asdict() for outlier in self.outliers]}


def check_expert_rows(value: Any) -> ExpertRows:
    """Return how the rows of experts are reported; InvalidValueError where `value` says nothing of the kind."""
    known: tuple[ExpertRows, ...] = get_args(ExpertRows)
    for word in known:
        if value == word:
            return word
    raise InvalidValueError("expert_rows", f"must be one of {', '.join(get_args(ExpertRows))}, not {value!r}")


def expert_of(name: str, kind: str) -> tuple[str, int] | None:
    """Return the name that a matrix shares with those of other experts, and the expert's number; None of any other.

    Examples
    --------
    >>> expert_of("layers.0.mlp.experts.17.up_proj.weight", "linear")
    ('layers.0.mlp.experts.*.up_proj.weight', 17)
    >>> expert_of("layers.0.mlp.experts.gate_up_proj[3,up]", "experts")
    ('layers.0.mlp.experts.gate_up_proj[*,up]', 3)
    """
    found = _OF_STACK.fullmatch(name) if kind == "experts" else _BY_ITSELF.fullmatch(name)
    return None if found is None else (f"{found['head']}*{found['tail']}", int(found["number"]))


def split_experts(
    rows: Sequence[LayerReport], expert_rows: ExpertRows = "summary"
) -> tuple[list[LayerReport], list[ExpertSummary]]:
    """Sum up the experts among these rows, where there are at least 8 of one name, shape and type.

    Returns
    -------
    others : list of LayerReport
        The rows to be reported one by one, in their order: with ``expert_rows="all"`` all of them.
    summaries : list of ExpertSummary
        In the order of their first rows.
    """
    groups: dict[tuple[str, tuple[int, int], str], list[LayerReport]] = defaultdict(list)
    for row in rows:
        expert = expert_of(row.name, row.kind)
        if expert is not None:
            groups[expert[0], row.shape, row.dtype].append(row)
    summed = {key: found for key, found in groups.items() if len(found) >= FEWEST_EXPERTS}
    summaries = [ExpertSummary.of(name, found) for (name, _, _), found in summed.items()]
    if expert_rows == "all":
        return list(rows), summaries
    gone = {row.name for found in summed.values() for row in found}
    return [row for row in rows if row.name not in gone], summaries


def _number(row: LayerReport) -> int:
    expert = expert_of(row.name, row.kind)
    assert expert is not None, "only experts are summed up"
    return expert[1]


def _least_of_edges(rows: Sequence[LayerReport]) -> float:
    """How far edges of equal experts may lie apart: by their errors, and by rounding."""
    edge, error = (
        Quartiles.of(values).median
        for values in ((row.sigma_plus for row in rows), (row.sigma_plus_error for row in rows))
    )
    return max(error, 1e-6 * edge)


# Of each measure: its value, and the interquartile range that it has at least.
_MEASURES: Mapping[str, tuple[Callable[[LayerReport], float], Callable[[Sequence[LayerReport]], float]]] = {
    "sigma_plus": (lambda row: row.sigma_plus, _least_of_edges),
    "signals": (lambda row: float(row.signals), lambda rows: 1.0),
    "ks": (lambda row: row.ks, lambda rows: 0.001),
}


def _counted_warnings(rows: Sequence[LayerReport]) -> tuple[str, ...]:
    texts: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for row in rows:
        for text in row.warnings:
            kind = _NUMBER.sub("#", text)
            texts.setdefault(kind, text)
            counts[kind] += 1
    return tuple(f"{counts[kind]} of {len(rows)} experts: {text}" for kind, text in texts.items())
