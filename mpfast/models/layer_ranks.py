"""`ranks`: to which rank each layer of a model can be cut for a relative error of its weights, and of its outputs."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, get_args, overload

import numpy as np
from numpy.typing import NDArray

from mpfast import _core
from mpfast.arrays import parse_device
from mpfast.checkpoints import (
    Checkpoint,
    Difference,
    Layer,
    NameFilter,
    Views,
    open_checkpoint,
    read_layer,
    select_layers,
    stays_dense,
    stored,
    telling_reason,
    unseen_quantisation,
)
from mpfast.models.budget_row import along_inputs
from mpfast.models.layer_job import layer_seed
from mpfast.models.layer_moments import LayerMoments
from mpfast.models.layer_report import SkippedTensor, is_non_finite, jsonable, skipped_tensors
from mpfast.models.progress import progress_bar
from mpfast.models.provenance import Provenance, provenance_of
from mpfast.models.result import csv_line
from mpfast.models.rows import Rows
from mpfast.spectra import Spectrum, SpectrumMethod, checked_error, measured_spectrum
from mpfast.support import (
    ConvergenceWarning,
    InputError,
    InvalidValueError,
    argument_called,
    check_flag,
    check_seed,
    check_tolerance,
    front_door,
    summary_of_unmet,
    team_size,
    warn_caller,
)

__all__ = ["LayerRank", "ModelRanks", "RankRow", "ranks"]

SCHEMA = "mpfast.ranks/1"
# Matrices as factors take their place: fused projections whole, experts one by one.
_VIEWS = Views(qkv="fused", experts="split")


@dataclass(frozen=True)
class LayerRank:
    """What a relative error asks of a layer.

    Attributes
    ----------
    wanted : float
        The relative error.
    rank : int
        The least that leaves no more.
    rank_error : float
        One standard error of it; 0 where all singular values were computed.
    error : float
        What this rank leaves, as measured.
    entries : int
        Of both factors.
    """

    wanted: float
    rank: int
    rank_error: float
    error: float
    entries: int


@dataclass(frozen=True)
class RankRow:
    """The ranks of one matrix.

    Attributes
    ----------
    name, kind : str
        Of the matrix, see `LayerReport`.
    shape : (int, int)
        (out, in); as stored, where it is not known which side the inputs are on.
    entries : int
        Of the matrix.
    paying_rank : int
        The largest rank whose factors have fewer entries than the matrix, below ``m n / (m + n)``; 0 where there is
        none.
    weights : tuple of LayerRank
        For each error, ``||W - W_k|| / ||W||`` in the Frobenius norm.
    outputs : tuple of LayerRank
        For each error, of the outputs of inputs like those that the moments are of: the root of their mean square error
        over their mean square. Empty where there is no moment.
    reason : str or None
        Why there is no moment, where moments were given.
    unmet_tolerance : str
        What was reached where `tol` was not met; else empty.
    """

    name: str
    kind: str
    shape: tuple[int, int]
    entries: int
    paying_rank: int
    weights: tuple[LayerRank, ...]
    outputs: tuple[LayerRank, ...]
    reason: str | None
    unmet_tolerance: str

    @property
    def best(self) -> tuple[LayerRank, ...]:
        """The ranks of the outputs where there are any, else those of the weights."""
        return self.outputs or self.weights


@dataclass(frozen=True, repr=False)
class ModelRanks(Rows[RankRow]):
    """What `mpfast.models.ranks` found: an immutable sequence of `RankRow`, in the order of the checkpoint.

    Attributes
    ----------
    rows : tuple of RankRow
        All matrices.
    errors : tuple of float
        The relative errors that ranks were asked for.
    skipped : tuple of SkippedTensor
        What has no rank, and why.
    source : str
        The checkpoint.
    has_moments : bool
        Whether moments were given.
    provenance : Provenance
        What made it.
    """

    rows: tuple[RankRow, ...]
    errors: tuple[float, ...]
    skipped: tuple[SkippedTensor, ...]
    source: str
    has_moments: bool
    provenance: Provenance = field(compare=False)

    def _rows(self) -> tuple[RankRow, ...]:
        return self.rows

    def _sources(self) -> tuple[str, ...]:
        return (self.source,)

    def __repr__(self) -> str:
        listed = ", ".join(f"{error:g}" for error in self.errors)
        return f"ModelRanks({self.source!r}: {len(self)} matrices, for errors of {listed})"

    @property
    def non_finite(self) -> tuple[SkippedTensor, ...]:
        """The matrices that were to be looked at and hold NaN or infinities; their reasons say how many, and where."""
        return tuple(tensor for tensor in self.skipped if is_non_finite(tensor))

    @front_door
    def at(self, error: float) -> dict[str, int]:
        """Return the rank of every matrix for one of the errors: of its outputs where they are known, else of itself.

        Raises
        ------
        ValueError
            The error is none of those that ranks were asked for.
        """
        if error not in self.errors:
            raise InvalidValueError("error", f"must be one of {', '.join(map(str, self.errors))}, not {error!r}")
        number = self.errors.index(error)
        return {row.name: row.best[number].rank for row in self.rows}

    def share(self, number: int, *, outputs: bool) -> float:
        """Share of the entries that factors of the ranks for one of the errors have, by its place in `errors`.

        A matrix whose factors would have more than itself counts as it is, and so does, with `outputs`, one without
        ranks of its outputs.
        """
        total = sum(row.entries for row in self.rows)
        left = 0
        for row in self.rows:
            found = row.outputs if outputs else row.weights
            left += min(found[number].entries, row.entries) if found else row.entries
        return left / total

    def to_document(self) -> dict[str, Any]:
        """Return what `to_json` writes, as dictionaries and lists."""
        return {
            "schema": SCHEMA,
            "source": self.source,
            "errors": list(self.errors),
            "shares": {
                "weights": [self.share(number, outputs=False) for number in range(len(self.errors))],
                "outputs": [self.share(number, outputs=True) for number in range(len(self.errors))]
                if self.has_moments
                else None,
            },
            "provenance": self.provenance.to_dict(),
            "layers": [jsonable(asdict(row)) for row in self.rows],
            "skipped": [tensor._asdict() for tensor in self.skipped],
        }

    @overload
    def to_csv(self, path: None = None) -> str: ...
    @overload
    def to_csv(self, path: str | os.PathLike[str]) -> None: ...
    @front_door
    def to_csv(self, path: str | os.PathLike[str] | None = None) -> str | None:
        """Return a line for each matrix and error as CSV text, or write it to `path`, whole or not at all.

        Raises
        ------
        OSError
            As `to_json`.
        """
        names = ("name", "kind", "shape", "entries", "paying_rank", "of")
        figures = ("wanted", "rank", "rank_error", "error", "factor_entries")
        lines = [csv_line((*names, *figures))]
        for row in self.rows:
            of_row = (row.name, row.kind, "x".join(map(str, row.shape)), row.entries, row.paying_rank)
            for of, found in (("weights", row.weights), ("outputs", row.outputs)):
                lines += [csv_line((*of_row, of, *asdict(rank).values())) for rank in found]
        return self._return_or_write("".join(lines), path)


@front_door
def ranks(
    model: Any,
    moments: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    *,
    errors: Sequence[float] = (0.05, 0.1, 0.2),
    base: Any = None,
    include: NameFilter = None,
    exclude: NameFilter = None,
    embeddings: bool = False,
    method: SpectrumMethod = "auto",
    tol: float = 5e-3,
    seed: int = 0,
    device: str | None = None,
    threads: int | None = None,
    progress: bool = True,
) -> ModelRanks:
    """Say to which rank each layer can be cut for a relative error of its weights and, with moments, of its outputs.

    What the truncation of a matrix leaves out is the tail of its spectrum; that of the outputs is the tail of the
    spectrum of ``W C^(1/2)``, C being the second moment of the inputs. With it, `mpfast.reconstruct.lowrank` and
    `mpfast.lowrank.factor` find factors of that rank and error. An error of a layer is none of the model: what layers
    lose adds up.

    Parameters
    ----------
    model : path, mapping of arrays or module
        As `mpfast.analyze`.
    moments : path or mapping, optional
        Second moments of the layers' inputs, as `mpfast.prune` takes them; undamped. For other inputs the error is
        larger, the more so the fewer inputs the moments are of.
    errors : sequence of float
        Relative errors in [0, 1): norm over norm, and root mean square over root mean square.
    base : path, mapping of arrays or module, optional
        What `model` was tuned from: the ranks are those of the difference, which an adapter would have, and errors are
        relative to it.
    include, exclude
        As `mpfast.analyze`.
    embeddings : bool
        Embeddings and the output heads of language models, too.
    method, tol, seed, device
        Of the spectra, see `mpfast.spectrum`; `tol` is that of ``spectrum(W, inputs=C)``.
    threads : int, optional
        Number of threads; the result does not depend on it.
    progress : bool
        Show a progress bar on a terminal.

    Returns
    -------
    ModelRanks
        One `RankRow` per matrix: fused projections whole, experts one by one.

    Raises
    ------
    FileNotFoundError
        A path does not exist.
    CheckpointError
        A file is malformed.
    ValueError, TypeError
        A bad option, no matrix to look at, or moments of another model.

    Warns
    -----
    ConvergenceWarning
        Once, if any layer did not meet `tol`.
    UserWarning
        The moments are of fewer than 4 inputs per dimension; or as `mpfast.analyze`.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> model = {"fc.weight": rng.standard_normal((64, 48))}
    >>> x = rng.standard_normal((500, 6)) @ rng.standard_normal((6, 48))
    >>> row = ranks(model, {"fc": x.T @ x / 500}, errors=[0.1])[0]
    >>> row.paying_rank, row.weights[0].rank, row.outputs[0].rank
    (27, 42, 6)
    """
    wanted = _checked_errors(errors)
    methods = get_args(SpectrumMethod)
    if method not in methods:
        raise InvalidValueError("method", f"must be one of {', '.join(map(repr, methods))}, not {method!r}")
    parse_device(device)
    check_tolerance(tol)
    check_seed(seed)
    check_flag(progress, "progress")
    opened = checkpoint = open_checkpoint(model)
    warn_caller("", unseen_quantisation(opened))
    if base is not None:
        with argument_called("base"):
            checkpoint = Difference(opened, open_checkpoint(base))
    candidates, skipped, without_effect = select_layers(checkpoint, include, exclude, _VIEWS)
    for text in without_effect:
        warn_caller("ranks", text)
    layers = []
    for layer in candidates:
        if stays_dense(layer.kind) and not embeddings:
            skipped[layer.name] = "embedding or output head (embeddings=True looks at them)"
        else:
            layers.append(layer)
    if not layers:
        sizes = {info.name: info.size for info in checkpoint.tensors}
        raise InvalidValueError("model", f"has no matrix to look at{telling_reason(skipped, sizes)}")
    known = None if moments is None else LayerMoments(moments, model, opened, layers)
    if known is not None:
        warn_caller("ranks", known.warning)
    job = _Job(checkpoint, known, wanted, {"method": method, "tol": tol, "device": device}, seed, team_size(threads))
    rows = []
    with progress_bar(layers, progress) as advance:
        for layer in layers:
            outcome = job.row(layer)
            if isinstance(outcome, str):
                skipped[layer.name] = outcome
            else:
                rows.append(outcome)
            advance(layer)
    warn_caller("ranks", summary_of_unmet({row.name: row.unmet_tolerance for row in rows}), ConvergenceWarning)
    named = moments if moments is None or isinstance(moments, str | os.PathLike) else type(moments).__name__
    return ModelRanks(
        tuple(rows),
        wanted,
        skipped_tensors(checkpoint, candidates, skipped),
        checkpoint.source,
        known is not None,
        provenance_of(
            model,
            base,
            moments=None if named is None else str(named),
            moments_hash=None if known is None else known.hash,
            errors=wanted,
            include=include,
            exclude=exclude,
            embeddings=embeddings,
            method=method,
            tol=tol,
            seed=seed,
            device=device,
        ),
    )


def _checked_errors(errors: Any) -> tuple[float, ...]:
    if isinstance(errors, str) or not isinstance(errors, Sequence | np.ndarray) or not len(errors):
        raise InvalidValueError("errors", f"must be numbers in [0, 1), not {errors!r}")
    with argument_called("errors", "error"):
        return tuple(checked_error(error) for error in errors)


@dataclass(frozen=True)
class _Job:
    """What is done to every layer."""

    checkpoint: Checkpoint
    moments: LayerMoments | None
    errors: tuple[float, ...]
    options: Mapping[str, Any]
    seed: int
    threads: int

    def row(self, layer: Layer) -> RankRow | str:
        """Return the ranks of a layer, or why it has none."""
        reason = None if self.moments is None else self.moments.reason_against_one(layer) or None
        root = None if self.moments is None or reason is not None else self.moments.root(layer, self.threads)
        try:
            matrix = self._matrix(layer)
            by_weights = self._spectrum(layer, matrix, None)
            by_outputs = None if root is None else self._spectrum(layer, matrix, root)
        except InputError as error:
            return error.reason  # NaNs, say: this layer has no spectrum, the others do
        finally:
            self.checkpoint.release(layer.file_name)
        rows, cols = matrix.shape
        unmet = by_weights.unmet_tolerance or (by_outputs.unmet_tolerance if by_outputs is not None else "")
        return RankRow(
            layer.name,
            layer.kind,
            (rows, cols),
            rows * cols,
            math.ceil(rows * cols / (rows + cols)) - 1,
            self._ranks(by_weights),
            () if by_outputs is None else self._ranks(by_outputs),
            reason,
            unmet,
        )

    def _matrix(self, layer: Layer) -> _core.Matrix:
        """The matrix as (out, in), where it is known which axes the inputs are."""
        whole: NDArray[Any] = stored(read_layer(self.checkpoint, layer), layer.name)
        part = whole[layer.index] if layer.index else whole
        # What an index takes away lies before the axes of the matrix.
        axes = tuple(axis - (whole.ndim - part.ndim) for axis in layer.input_axes)
        turned = along_inputs(part, axes) if axes else part.reshape(layer.shape)
        return _core.Matrix(turned, layer.dtype if turned.dtype == np.uint16 else turned.dtype.name)

    def _spectrum(self, layer: Layer, matrix: _core.Matrix, root: Any) -> Spectrum:
        return measured_spectrum(
            matrix, inputs=root, seed=layer_seed(self.seed, layer.name), threads=self.threads, **self.options
        )

    def _ranks(self, spectrum: Spectrum) -> tuple[LayerRank, ...]:
        rows, cols = spectrum.shape
        found = [(error, spectrum.rank_for_error(error)) for error in self.errors]
        return tuple(LayerRank(error, at.rank, at.rank_error, at.error, at.rank * (rows + cols)) for error, at in found)
