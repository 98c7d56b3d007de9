"""`compress`: a checkpoint with matrices of lower rank, their factors, or a LoRA adapter of a difference."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mpfast.arrays import parse_device
from mpfast.checkpoints import (
    Checkpoint,
    Difference,
    Layer,
    NameFilter,
    SourceFiles,
    check_writable,
    files_behind,
    open_checkpoint,
    select_layers,
    telling_reason,
    unseen_quantisation,
)
from mpfast.models.adapter_output import (
    Orientation,
    changed_tensors,
    configuration_of,
    head_tensors,
    task_type,
    write_adapter,
)
from mpfast.models.compression_check import facts_of
from mpfast.models.factored_output import check_factor_names, write_dense, write_factors
from mpfast.models.factoring import FactoredLayer, Factoring, Wanted
from mpfast.models.layer_json import jsonable
from mpfast.models.output_mark import mark_output
from mpfast.models.provenance import Provenance
from mpfast.models.prune_options import changeable
from mpfast.models.skipped import SkippedTensor, skipped_tensors
from mpfast.support import (
    ConvergenceWarning,
    InvalidValueError,
    OutputDirectory,
    argument_called,
    check_flag,
    check_path,
    check_seed,
    claimed_directory,
    front_door,
    logger,
    percent,
    summary_of_unmet,
    team_size,
    warn_caller,
)

__all__ = ["COMPRESS_FORMATS", "CompressResult", "compress"]

#: What `compress` writes.
COMPRESS_FORMATS = ("dense", "factors", "lora")


@dataclass(frozen=True, repr=False)
class CompressResult:
    """What `mpfast.compress` did.

    Attributes
    ----------
    layers : tuple of FactoredLayer
        The matrices that were factored.
    skipped : tuple of SkippedTensor
        Every other tensor, and why it stayed.
    out : Path or None
        The directory written; None for a dry run.
    seconds : float
        Wall time.
    format : {"dense", "factors", "lora"}
        What was written, or would have been.
    not_in_adapter : tuple of SkippedTensor
        With a base: tensors that differ from the base's and that the adapter does not change (biases, norms,
        embeddings), and why. The base with the adapter is the model but for these, and for what the ranks leave out.
    not_copied : tuple of str
        Files beside the weights that `out` lacks, and why.
    notes : tuple of str
        What was taken for granted.
    """

    layers: tuple[FactoredLayer, ...]
    skipped: tuple[SkippedTensor, ...]
    out: Path | None
    seconds: float
    format: str = "dense"
    not_in_adapter: tuple[SkippedTensor, ...] = ()
    not_copied: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        where = "dry run" if self.out is None else f"in {str(self.out)!r}"
        return (
            f"CompressResult({len(self.layers)} matrices to {percent(self.ratio)} of their entries, {self.format}, "
            f"{where}, {self.seconds:.2f} s)"
        )

    @property
    def ratio(self) -> float:
        """Entries of the factors over entries of the matrices that they replace."""
        dense = sum(math.prod(layer.shape) for layer in self.layers)
        return sum(layer.entries for layer in self.layers) / dense if dense else 1.0

    def to_document(self, provenance: Provenance) -> dict[str, Any]:
        """Return what ``mpfast compress --json`` writes, as dictionaries and lists."""
        return {
            "schema": "mpfast.compress/1",
            "out": None if self.out is None else str(self.out),
            "format": self.format,
            "ratio": self.ratio,
            "seconds": self.seconds,
            "provenance": provenance.to_dict(),
            "layers": [jsonable(asdict(layer)) for layer in self.layers],
            "skipped": [tensor._asdict() for tensor in self.skipped],
            "not_in_adapter": [tensor._asdict() for tensor in self.not_in_adapter],
            "not_copied": list(self.not_copied),
            "notes": list(self.notes),
        }


@front_door
def compress(
    model: Any,
    out: str | os.PathLike[str] | None = None,
    *,
    rank: int | str | None = None,
    energy: float | None = None,
    error: float | None = None,
    base: Any = None,
    base_id: str | None = None,
    format: str | None = None,
    include: NameFilter = None,
    exclude: NameFilter = None,
    embeddings: bool = False,
    dequantize: str | None = None,
    seed: int = 0,
    device: str | None = None,
    threads: int | None = None,
    overwrite: bool = False,
) -> CompressResult:
    """Replace matrices by ones of lower rank, or write the difference to a base as a LoRA adapter.

    Parameters
    ----------
    model : path, mapping of arrays or module
        As `mpfast.analyze`. It is never changed.
    out : path, optional
        Directory to write. Default: nothing is written.
    rank : int or "mp_edge"
        Singular values kept: at most so many, or, with `base` only, those above the Marchenko-Pastur edge.
    energy : float
        Instead: as few as hold this share of the squared Frobenius norm of each matrix, in (0, 1].
    error : float
        Instead: as few as leave this relative error of each matrix (Frobenius norm over Frobenius norm), in [0, 1).
        One of the three must be given; with `base` the default is ``rank="mp_edge"``.
    base : path, mapping of arrays or module, optional
        The checkpoint that `model` was fine-tuned from: the difference is factored, layer by layer.
    base_id : str, optional
        What the base is called where users of the adapter get it (``"org/name"``); default: the adapter does not say.
    format : {"dense", "factors", "lora"}
        ``"dense"``, the default without `base`: the source's files with truncated matrices under the same names, which
        load wherever the source does and are as large. ``"factors"``: the source's files, in which ``<name>`` of shape
        (m, n) gives way to ``<name>_A`` (m, r) and ``<name>_B`` (r, n), whose product is the truncated matrix, and no
        ``config.json``: `mpfast.integrations.torch.load_factors` loads them. ``"lora"``, the default with `base`, and
        only then: an adapter that PEFT loads.
    include, exclude
        As `mpfast.analyze`.
    embeddings : bool
        Factor embeddings and the output heads of language models (``lm_head``), too. Not embeddings with `base`.
    dequantize
        As `mpfast.prune`.
    seed, device
        As `mpfast.svd`.
    threads : int, optional
        Number of threads.
    overwrite : bool
        Replace `out` if mpfast wrote all that it holds, as its mark lists it. Any other directory, a link, and one that
        holds a source or the working directory, is refused.

    Returns
    -------
    CompressResult
        A matrix whose factors would take more entries than it has is left as it is, in every format.

    Raises
    ------
    FileNotFoundError, FileExistsError, OSError
        `model` does not exist, `out` does, or it cannot be written, or somebody else is writing it. Nothing is left of
        what was begun.
    CheckpointError
        A checkpoint is malformed, or was changed meanwhile.
    ValueError, TypeError
        A bad option, nothing to factor, a tensor that the output cannot hold, a layer with NaN or infinities, a
        quantised checkpoint, or entries that are no tensors and would be lost.

    Warns
    -----
    ConvergenceWarning
        The singular values of a layer did not reach their tolerance.
    UserWarning
        The configuration says that the model is quantised, and no tensor looks so.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> noise, signal = rng.standard_normal((200, 300)), np.outer(np.ones(200), np.ones(300))
    >>> compress({"fc.weight": noise + signal}, rank=16).layers[0].rank
    16
    >>> compress({"fc.weight": noise + signal}, base={"fc.weight": np.zeros((200, 300))}).layers[0].rank
    1
    """
    started = time.perf_counter()
    format = _checked_format(format, base, base_id)
    wanted = Wanted.of(rank, energy, error, has_base=base is not None)
    threads, seed = team_size(threads), check_seed(seed)
    parse_device(device)
    check_flag(embeddings, "embeddings")
    check_flag(overwrite, "overwrite")
    if out is not None:
        check_path(out, "out")
    written = out is not None and base is None
    checkpoint = changeable(open_checkpoint(model), dequantize=dequantize, written=written)
    with argument_called("base"):
        reference = None if base is None else open_checkpoint(base)
    if reference is None:
        check_writable(checkpoint)
    layers, skipped, without_effect = select_layers(checkpoint, include, exclude)
    warn_caller("", unseen_quantisation(checkpoint))
    for text in without_effect:
        warn_caller("compress", text)
    difference = None if reference is None else Difference(checkpoint, reference)
    if difference is not None and difference.renamed is not None:
        mine, other = difference.renamed
        raise InvalidValueError(
            "base", f"calls {other!r} what the model calls {mine!r}", "an adapter needs the names of the base: rename"
        )
    factoring = Factoring(checkpoint, difference, wanted, seed, device, threads, skipped)
    chosen = [layer for layer in layers if factoring.is_wanted(layer, embeddings)]
    if not chosen:
        sizes = {info.name: info.size for info in checkpoint.tensors}
        raise InvalidValueError("", f"no layer is left to factor{telling_reason(skipped, sizes)}")
    logger.info("compress: %s: %d layers", checkpoint.source, len(chosen))
    if format == "factors":
        check_factor_names(checkpoint, chosen)
    with contextlib.ExitStack() as stack:
        place = None
        if out is not None:  # from here on nobody else writes there
            sources = files_behind(model, checkpoint, base, reference)
            place = stack.enter_context(claimed_directory(out, overwrite=overwrite, sources=sources))
        if reference is None:
            factored, left = _write_model(factoring, chosen, place, format)
            whole: tuple[str, ...] = ()
            notes: tuple[str, ...] = getattr(checkpoint, "notes", ())
        else:
            factored, notes, whole = _write_difference(factoring, chosen, place, (model, base), reference, base_id)
            left = ()
    warn_caller("compress", summary_of_unmet(factoring.unmet), ConvergenceWarning)
    missing: tuple[SkippedTensor, ...] = ()
    if reference is not None and difference is not None:
        held = {*whole, *(layer.name for layer in factored)}
        missing = changed_tensors(checkpoint, reference, difference, held, skipped)
    return CompressResult(
        layers=factored,
        skipped=skipped_tensors(checkpoint, layers, skipped),
        out=None if out is None else Path(out),
        seconds=time.perf_counter() - started,
        format=format,
        not_in_adapter=missing,
        not_copied=left,
        notes=notes,
    )


def _checked_format(format: Any, base: Any, base_id: Any) -> str:
    if base_id is not None and (base is None or not isinstance(base_id, str)):
        raise InvalidValueError("base_id", "is the name of the base of an adapter", "pass base, too")
    if format is None:
        return "dense" if base is None else "lora"
    if not isinstance(format, str) or format not in COMPRESS_FORMATS:
        raise InvalidValueError("format", f"must be one of {', '.join(COMPRESS_FORMATS)}, not {format!r}")
    if format == "lora" and base is None:
        raise InvalidValueError("format", "'lora' is the difference to a base", "pass base, too")
    if format != "lora" and base is not None:
        raise InvalidValueError("format", f"{format!r} is of a model by itself; the difference to a base is a 'lora'")
    return format


def _write_model(
    factoring: Factoring, chosen: Sequence[Layer], place: OutputDirectory | None, format: str
) -> tuple[tuple[FactoredLayer, ...], tuple[str, ...]]:
    """Factor the layers and write the model, if there is a place; return them, and what was not copied."""
    if place is None:
        done = (factoring.factored(layer) for layer in chosen)
        factored, left = tuple(found[0] for found in done if found is not None), ()
        _check_that_some(factored, chosen, factoring)
        return factored, left
    write = write_dense if format == "dense" else write_factors
    with place.staged() as staging:
        factored, found = write(factoring, chosen, staging)
        _check_that_some(factored, chosen, factoring)
        mark_output(staging, "compress", factoring.checkpoint, **facts_of(staging, format, factored))
    return factored, found


def _write_difference(
    factoring: Factoring,
    chosen: Sequence[Layer],
    place: OutputDirectory | None,
    models: tuple[Any, Any],
    base: Checkpoint,
    base_id: str | None,
) -> tuple[tuple[FactoredLayer, ...], tuple[str, ...], tuple[str, ...]]:
    """Factor the differences and write the adapter, if there is a place.

    Returns
    -------
    layers
    notes
        What was assumed.
    whole
        Names of tensors that the adapter holds as they are.
    """
    configurations = [configuration_of(models[0], factoring.checkpoint), configuration_of(models[1], base)]
    orientation = Orientation(models, configurations, factoring.checkpoint.tensors)
    task = next((task for found in configurations if (task := task_type(found)) is not None), None)
    with contextlib.ExitStack() as stack:
        staging = None if place is None else stack.enter_context(place.staged())
        source = SourceFiles(files_behind(*models))
        factored = write_adapter(factoring, chosen, orientation, staging, base_id=base_id, task=task)
        _check_that_some(factored, chosen, factoring)
        source.check()
        if staging is not None:
            mark_output(staging, "compress", factoring.checkpoint, format="lora", base={"path": base.source})
    assumed = [row.name for row in factored if row.shape[0] == row.shape[1] and not orientation.is_known(row.name)]
    whole = tuple(info.name for info in head_tensors(factoring.checkpoint, task))
    if not assumed:
        return factored, (), whole
    what = assumed[0] if len(assumed) == 1 else f"{len(assumed)} square matrices ({assumed[0]}, ...)"
    note = f"{what}: taken to be stored as (out, in), as PyTorch does; no config.json beside it says so"
    return factored, (note,), whole


def _check_that_some(factored: Sequence[FactoredLayer], chosen: Sequence[Layer], factoring: Factoring) -> None:
    if not factored:
        name = chosen[0].name
        raise InvalidValueError("", f"no layer is worth factoring: {name}: {factoring.skipped[name]}")
