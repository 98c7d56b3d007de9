"""`ranks`: to which rank each layer of a model can be cut for a relative error of its weights, and of its outputs."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from mpfast import _core
from mpfast.arrays import QuantisedArray, parse_device
from mpfast.checkpoints import (
    Checkpoint,
    Difference,
    Layer,
    NameFilter,
    Views,
    layer_part,
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
from mpfast.models.progress import progress_bar
from mpfast.models.provenance import provenance_of
from mpfast.models.rank_rows import LayerRank, ModelRanks, RankRow
from mpfast.models.skipped import skipped_tensors
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

__all__ = ["ranks"]

# Matrices as factors take their place: fused projections whole, experts one by one.
_VIEWS = Views(qkv="fused", experts="split")


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
        Show a progress bar, as `mpfast.analyze`.

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
        whole = read_layer(self.checkpoint, layer)
        # Of a quantised stack only the part is decoded.
        whole = whole if isinstance(whole, QuantisedArray) else stored(whole, layer.name)
        part: NDArray[Any] = stored(layer_part(whole, layer), layer.name)
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
