"""The analysis of one layer: what `analyze` does in a thread, on a GPU or on the worker of a cluster."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from mpfast.arrays import QuantisedArray, as_matrix
from mpfast.checkpoints import (
    AdapterProducts,
    Checkpoint,
    Difference,
    KroneckerProduct,
    Layer,
    LowRankProduct,
    TensorInfo,
    Views,
    has_updates,
    layer_matrix,
    open_checkpoint,
    read_layer,
    shares_memory,
)
from mpfast.models.layer_report import LayerReport
from mpfast.models.noise_verdict import EQUAL, EQUAL_SENTENCE
from mpfast.models.report_cache import LayerCache
from mpfast.spectra import PERHAPS_FUSED, SpectrumMethod, measured_both
from mpfast.support import (
    InputError,
    InvalidTypeError,
    InvalidValueError,
    OutOfMemoryError,
    UnreadableArrayError,
    argument_called,
)

__all__ = ["Settings", "checked_views", "layer_outcome", "layer_seed", "open_derived"]


def checked_views(views: Any) -> Views:
    """Return the views asked for, or the default for None; InvalidTypeError for anything else."""
    if views is None:
        return Views()
    if not isinstance(views, Views):
        raise InvalidTypeError("views", f"must be mpfast.checkpoints.Views, not {type(views).__name__}")
    return views


def open_derived(model: Any, base: Any) -> tuple[Checkpoint, list[tuple[TensorInfo, str]]]:
    """Open a model, or its difference to a base, and see factors of updates as products.

    Returns
    -------
    checkpoint : Checkpoint
    unmatched : list of (TensorInfo, str)
        The tensors that have no partner in the base, and why.

    Raises
    ------
    InvalidValueError
        Both are adapters: products of differences of factors are no differences of updates.
    """
    checkpoint = open_checkpoint(model)
    unmatched: list[tuple[TensorInfo, str]] = []
    if base is not None:
        with argument_called("base"):
            reference = open_checkpoint(base)
        checkpoint = Difference(checkpoint, reference)
        unmatched = checkpoint.unmatched
        if has_updates(checkpoint):
            raise InvalidValueError(
                "base", "is an adapter, too: factors cannot be subtracted", "merge both into their model first"
            )
    elif has_updates(checkpoint):
        checkpoint = AdapterProducts(checkpoint)
    return checkpoint, unmatched


@dataclass(frozen=True)
class Settings:
    """Options of an analysis, checked.

    Attributes
    ----------
    method, tol, seed, threads, device
        As in `analyze`.
    gpus
        Names of the GPUs to use.
    cache
        Where reports are kept, if anywhere.
    """

    method: SpectrumMethod
    tol: float
    seed: int
    threads: int
    device: str | None = None
    gpus: tuple[str, ...] = ()
    cache: LayerCache | None = None


def layer_outcome(
    checkpoint: Checkpoint, layer: Layer, settings: Settings, threads: int, device: str | None
) -> LayerReport | str:
    """Analyse one layer: its report, or why there is none."""
    started = time.perf_counter()
    try:
        matrix = layer_matrix(read_layer(checkpoint, layer), layer)
        rounding = _rounding(checkpoint, layer, matrix)
        if isinstance(matrix, QuantisedArray):
            matrix = as_matrix(matrix)  # as it is stored, or decoded once
        key = None if settings.cache is None else settings.cache.key(layer, matrix)
        kept = None if settings.cache is None or key is None else settings.cache.get(key, layer)
        if kept is not None:
            return _completed(kept, layer, checkpoint)
        product = isinstance(matrix, LowRankProduct | KroneckerProduct)
        found = measured_both(
            matrix,
            method="exact" if product else settings.method,
            tol=settings.tol,
            seed=layer_seed(settings.seed, layer.name),
            threads=threads,
            device=None if product else device,
        )
        seconds = time.perf_counter() - started
        report = LayerReport.from_spectra(layer, found, seconds=seconds, rounding=rounding)
    except OutOfMemoryError:
        raise  # of the machine, not of the layer
    except UnreadableArrayError as error:  # of the object, which other layers may have, too
        raise UnreadableArrayError(layer.name, error.reason) from error.__cause__
    except InputError as error:
        return error.reason  # NaNs, say: this layer has no spectrum, the others do
    finally:
        checkpoint.release(layer.file_name)
    if settings.cache is not None and key is not None:
        settings.cache.put(key, report)
    return _completed(report, layer, checkpoint)


def _rounding(checkpoint: Checkpoint, layer: Layer, matrix: Any) -> float | None:
    """The variance of the rounding to the grid of the stored format; None where it is not known."""
    if isinstance(matrix, QuantisedArray):
        return matrix.rounding()
    of_tensor: Callable[[str], float | None] | None = getattr(checkpoint, "rounding_variance", None)
    return of_tensor(layer.file_name) if of_tensor is not None and layer.packed and not layer.index else None


def _completed(report: LayerReport, layer: Layer, checkpoint: Checkpoint) -> LayerReport:
    """Add to the report of a matrix what is known of its layer.

    Where there is no difference to the base, nothing was fitted and nothing is warned of.
    """
    if layer.input_axes:  # known for what it is, whatever its shape suggests
        report = replace(report, warnings=tuple(text for text in report.warnings if text != PERHAPS_FUSED))
    if layer.unsplit:
        report = replace(report, warnings=(*report.warnings, f"several matrices are seen as one: {layer.unsplit}"))
    if layer.kind == "lora" and isinstance(checkpoint, AdapterProducts):
        report = replace(report, warnings=(*report.warnings, *checkpoint.remarks(layer.tensor)))
    if layer.shared:
        report = replace(report, warnings=(*report.warnings, shares_memory(layer.shared)))
    if report.fro_norm == 0 and isinstance(checkpoint, Difference):
        return replace(report, verdict=EQUAL, sentence=EQUAL_SENTENCE, warnings=())
    return report


def layer_seed(seed: int, name: str) -> int:
    """63 bits from the seed and the name by a hash that is the same in every process (`hash` is salted)."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
