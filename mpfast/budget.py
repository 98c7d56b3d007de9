"""A pruning budget: how many entries of each layer go, with the spectra that say so; and its forms on disk."""

from __future__ import annotations

import fnmatch
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from mpfast.allocation import allocate, floor_count, gaussian_shares
from mpfast.documents import Record, read_document
from mpfast.files import return_or_write
from mpfast.layers import is_embedding_or_head, warn_of_unmatched
from mpfast.options import LARGEST_GROUP, check_sparsity
from mpfast.regimes import default_layer_type, layer_weights, regime_for

if TYPE_CHECKING:
    from mpfast.layer_reports import LayerReport

__all__ = ["Budget", "LayerBudget", "budget_from_reports"]

SCHEMA = "mpfast.budget/1"
Bound = float | Mapping[str, float]


@dataclass(frozen=True)
class LayerBudget:
    """One row of a budget.

    Attributes
    ----------
    name : str
        Tensor in the checkpoint.
    kind : str
        "linear", "conv" or "embedding".
    shape : tuple of int
        Shape as stored.
    dtype : str
        Element type as stored.
    pruned : int
        Entries to prune, those that are zero already among them.
    sparsity : float
        ``pruned`` over the number of entries.
    sigma_plus, sigma_plus_error : float or None
        Marchenko-Pastur edge and its standard error, singular-value scale; None where no spectrum was taken.
    rank : int or None
        Number of singular values above the noise.
    content : str or None
        Hash of the dense tensor's bytes, ``"sha256:<hex>"``.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    pruned: int
    sparsity: float
    sigma_plus: float | None = None
    sigma_plus_error: float | None = None
    rank: int | None = None
    content: str | None = None

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    @property
    def module(self) -> str:
        """Name of the module that owns the tensor."""
        return self.name.removesuffix(".weight").removesuffix(".kernel")


@dataclass(frozen=True, repr=False)
class Budget(Sequence[LayerBudget]):
    """Sparsity per layer, an immutable sequence of `LayerBudget` in the order of the checkpoint.

    Attributes
    ----------
    layers : tuple of LayerBudget
        The rows; layers that stay dense on purpose are not among them.
    method : str
        How it was made.
    sparsity : float
        Share of the entries of all rows that was asked for.
    pattern : str or None
        ``"2:4"`` and the like; None where any entry may go.
    source : str
        The checkpoint.
    """

    layers: tuple[LayerBudget, ...]
    method: str
    sparsity: float
    pattern: str | None
    source: str

    granularity = "layer"

    @overload
    def __getitem__(self, index: int) -> LayerBudget: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[LayerBudget, ...]: ...
    def __getitem__(self, index: int | slice) -> LayerBudget | tuple[LayerBudget, ...]:
        return self.layers[index]

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[LayerBudget]:
        return iter(self.layers)

    def __repr__(self) -> str:
        return f"Budget({self.method}: {self.pruned} of {self.entries} entries in {len(self.layers)} layers)"

    @property
    def entries(self) -> int:
        """Number of entries of all rows."""
        return sum(row.size for row in self.layers)

    @property
    def pruned(self) -> int:
        """Number of entries pruned in all rows."""
        return sum(row.pruned for row in self.layers)

    @overload
    def to_json(self, path: None = None) -> str: ...
    @overload
    def to_json(self, path: str | os.PathLike[str]) -> None: ...
    def to_json(self, path: str | os.PathLike[str] | None = None) -> str | None:
        """Return the budget as JSON text, or write it to `path`, whole or not at all.

        Raises
        ------
        OSError
            `path` cannot be written.
        """
        document = {
            "schema": SCHEMA,
            "granularity": self.granularity,
            "method": self.method,
            "pattern": self.pattern,
            "sparsity": self.sparsity,
            "entries": self.entries,
            "pruned": self.pruned,
            "source": self.source,
            "layers": [asdict(row) for row in self.layers],
        }
        return return_or_write(json.dumps(document, indent=1, allow_nan=False) + "\n", path)

    @classmethod
    def from_json(cls, source: str | os.PathLike[str]) -> Budget:
        """Rebuild a budget from the text of `to_json` (a string that starts with ``{``) or from a file.

        Raises
        ------
        ValueError
            The text is no JSON, not of this schema, or a field is wrong: the message names it.
        OSError
            The file cannot be read.
        """
        try:
            record = read_document(source, SCHEMA)
            layers = tuple(_row(entry) for entry in record.records("layers"))
            names = [row.name for row in layers]
            if len(set(names)) != len(names):
                raise ValueError("the budget has two rows of the same name")
            pattern = record.optional_text("pattern")
            if pattern is not None and parsed_pattern(pattern) is None:
                raise record.refuse("pattern", "null or of the form 2:4")
            return cls(layers, record.text("method"), record.number("sparsity", 0, 1), pattern, record.text("source"))
        except ValueError as error:
            raise ValueError(f"Budget.from_json(): {error}") from None

    def export(self, format: str) -> str:
        """Return the budget as another tool reads it.

        Parameters
        ----------
        format : {"json", "torchao", "llm-compressor", "peft", "axolotl"}
            See `mpfast.exporters`, which also has AlphaPruning's binary file.

        Raises
        ------
        ValueError
            An unknown format, or one that needs what this budget lacks.
        """
        from mpfast.exporters import TEXT_FORMATS

        if format == "json":
            return self.to_json()
        if format not in TEXT_FORMATS:
            raise ValueError(f"Budget.export(): format must be one of json, {', '.join(TEXT_FORMATS)}, not {format!r}")
        return TEXT_FORMATS[format](self)


def parsed_pattern(text: str) -> tuple[int, int] | None:
    """Return n and m of a pattern ``n:m`` that keeps n of every m entries; None unless ``1 <= n <= m <= 64``."""
    found = re.fullmatch("([0-9]{1,2}):([0-9]{1,2})", text) if isinstance(text, str) else None
    if found is None or not 1 <= int(found[1]) <= int(found[2]) <= LARGEST_GROUP:
        return None
    return int(found[1]), int(found[2])


def _row(record: Record) -> LayerBudget:
    """Read one row of a budget's JSON; ValueError names the field that is wrong."""
    record.allow({column.name for column in fields(LayerBudget)})
    shape = record.shape("shape", least=1)
    if 0 in shape:
        raise record.refuse("shape", "that of a tensor with entries")
    pruned = record.integer("pruned")
    if pruned > math.prod(shape):
        raise record.refuse("pruned", f"at most the {math.prod(shape)} entries of the shape")
    return LayerBudget(
        record.text("name"),
        record.text("kind"),
        shape,
        record.text("dtype"),
        pruned,
        record.number("sparsity", 0, 1),
        record.optional_number("sigma_plus", 0),
        record.optional_number("sigma_plus_error", 0),
        record.integer("rank") if record.has("rank") else None,
        record.optional_text("content"),
    )


def budget_from_reports(
    reports: Iterable[LayerReport],
    sparsity: float,
    *,
    source: str,
    method: str | Callable[[LayerReport], float] = "spectral_budget",
    floor: Bound = 0.0,
    ceiling: Bound = 1.0,
    exclude: str | Iterable[str] = (),
    groups: Mapping[str, str | Iterable[str]] | None = None,
    embeddings: bool = False,
) -> Budget:
    """Share ``sparsity`` out over analysed layers; see `mpfast.Analysis.budget`."""
    sparsity = check_sparsity(sparsity, "budget")
    left_out = [exclude] if isinstance(exclude, str) else list(exclude)
    tensors = _by_tensor(reports)
    known = [row.name for row in tensors]
    warn_of_unmatched(left_out, known, "budget(): exclude")
    for what, bound in (("floor", floor), ("ceiling", ceiling)):
        if isinstance(bound, Mapping):
            warn_of_unmatched(bound, known, f"budget(): {what}")
    for group, members in (groups or {}).items():
        warn_of_unmatched([members] if isinstance(members, str) else members, known, f"budget(): group {group!r}")
    rows = [
        row
        for row in tensors
        if (embeddings or not is_embedding_or_head(row.name, row.kind))
        and not any(fnmatch.fnmatchcase(row.name, pattern) for pattern in left_out)
    ]
    if not rows:
        raise ValueError("budget(): no layer is left to prune")
    sizes = [math.prod(row.tensor_shape) for row in rows]
    names = [row.name for row in rows]
    counts = allocate(
        _wishes(rows, sizes, sparsity, method),
        sizes,
        floor_count(sparsity, sum(sizes)),
        floors=[_bound(floor, name, 0.0) for name in names],
        ceilings=[_bound(ceiling, name, 1.0) for name in names],
        groups=[_group(groups or {}, name) for name in names],
    )
    layers = tuple(
        LayerBudget(
            row.name,
            row.kind,
            row.tensor_shape,
            row.dtype,
            pruned=count,
            sparsity=count / size,
            sigma_plus=row.sigma_plus,
            sigma_plus_error=row.sigma_plus_error,
            rank=row.spikes,
        )
        for row, size, count in zip(rows, sizes, counts, strict=True)
    )
    label = method if isinstance(method, str) else getattr(method, "__name__", "callable")
    return Budget(layers, label, sparsity, None, source)


def _by_tensor(reports: Iterable[LayerReport]) -> list[LayerReport]:
    """One row per tensor: norms and spikes of its parts are added up, edges and exponents averaged.

    Parts that were not analysed are taken to be as large, entry by entry, as those that were.
    """
    parts: dict[str, list[LayerReport]] = {}
    for row in reports:
        parts.setdefault(row.tensor, []).append(row)
    merged = []
    for tensor, rows in parts.items():
        if len(rows) == 1:
            merged.append(replace(rows[0], name=tensor))
            continue
        errors = [row.sigma_plus_error for row in rows]
        known = sum(math.prod(row.shape) for row in rows) / math.prod(rows[0].tensor_shape)
        merged.append(
            replace(
                rows[0],
                name=tensor,
                shape=(rows[0].tensor_shape[0], math.prod(rows[0].tensor_shape[1:])),
                fro_norm=math.hypot(*(row.fro_norm for row in rows)) / math.sqrt(known),
                sigma_plus=float(np.mean([row.sigma_plus for row in rows])),
                sigma_plus_error=math.hypot(*errors) / len(rows),
                spikes=sum(row.spikes for row in rows),
                metrics={**rows[0].metrics, "hill_alpha": float(np.mean([row.hill_alpha for row in rows]))},
            )
        )
    return merged


def _wishes(
    rows: Sequence[LayerReport],
    sizes: Sequence[int],
    sparsity: float,
    method: str | Callable[[LayerReport], float],
) -> Any:
    if callable(method):
        return [float(method(row)) for row in rows]
    if method == "uniform":
        return [sparsity] * len(rows)
    deviations = [row.fro_norm / math.sqrt(math.prod(row.shape)) for row in rows]
    if method == "magnitude":
        return gaussian_shares(deviations, sizes, sparsity)
    if method == "spectral_budget":
        regime = regime_for(sparsity)
        signals = {
            "hill": [row.hill_alpha for row in rows],
            "sigma_plus": [row.sigma_plus for row in rows],
            "entry_std": deviations,
        }
        weights = layer_weights(
            signals[regime.signal], sparsity, regime, [default_layer_type(row.name) for row in rows]
        )
        return gaussian_shares(np.asarray(deviations) / weights, sizes, sparsity)
    raise ValueError(
        f"budget(): method must be 'spectral_budget', 'magnitude', 'uniform' or a function of a layer, not {method!r}"
    )


def _bound(bound: Bound, name: str, default: float) -> float:
    if not isinstance(bound, Mapping):
        return float(bound)
    return next((float(value) for pattern, value in bound.items() if fnmatch.fnmatchcase(name, pattern)), default)


def _group(groups: Mapping[str, str | Iterable[str]], name: str) -> str:
    """The group that a layer belongs to; a layer of none is one by itself."""
    for group, patterns in groups.items():
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            if fnmatch.fnmatchcase(name, pattern):
                return f"group {group}"
    return f"layer {name}"
