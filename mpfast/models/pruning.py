"""`prune`: masks for a whole checkpoint, and the pruned checkpoint, which other tools load like the dense one."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mpfast.checkpoints import (
    WHOLE,
    Checkpoint,
    Layer,
    NameFilter,
    check_writable,
    files_behind,
    open_checkpoint,
    select_layers,
    unseen_quantisation,
)
from mpfast.models.analysis import analyze
from mpfast.models.budget import Budget
from mpfast.models.extent import dense_tensors, model_entries, warn_of_emptied
from mpfast.models.layer_report import LayerReport, SkippedTensor, skipped_tensors
from mpfast.models.mask_plans import LayerCuts, MaskPlan, Pattern
from mpfast.models.methods import DEFAULT_METHOD, METHODS
from mpfast.models.provenance import provenance_of
from mpfast.models.prune_options import PruneOptions, check_that_it_can_be_changed, layers_to_prune
from mpfast.models.pruned_output import MaskingPass, write_pruned
from mpfast.support import InvalidValueError, check_flag, check_path, claimed_directory, front_door, logger, warn_caller

__all__ = ["PruneResult", "prune"]


@dataclass(frozen=True)
class PruneResult:
    """What `mpfast.prune` did.

    Attributes
    ----------
    budget : Budget
        Entries pruned per layer, with the content hash of each dense tensor.
    skipped : tuple of SkippedTensor
        Every tensor that stays dense, and why.
    out : Path or None
        The directory written; None for a dry run.
    masks : dict or None
        For a model in memory: boolean arrays in its framework, True = kept, by name. None for a path: they are in
        ``masks.safetensors``.
    seconds : float
        Wall time.
    not_copied : tuple of str
        Files beside the weights that `out` lacks, and why: weights in other forms, links that leave the directory.
    """

    budget: Budget
    skipped: tuple[SkippedTensor, ...]
    out: Path | None
    masks: dict[str, Any] | None
    seconds: float
    not_copied: tuple[str, ...] = ()

    @property
    def sparsity(self) -> float:
        """Share of the entries of the pruned layers that is gone."""
        return self.budget.pruned / self.budget.entries if self.budget.entries else 0.0

    @property
    def model_share(self) -> float | None:
        """Share of the whole model's entries that is gone."""
        return self.budget.model_share

    def to_document(self) -> dict[str, Any]:
        """Return what ``mpfast prune --json`` writes, as dictionaries and lists."""
        return {
            "schema": "mpfast.prune/1",
            "out": None if self.out is None else str(self.out),
            "sparsity": self.sparsity,
            "model_share": self.model_share,
            "seconds": self.seconds,
            "provenance": None if self.budget.provenance is None else self.budget.provenance.to_dict(),
            "budget": self.budget.to_document(),
            "skipped": [tensor._asdict() for tensor in self.skipped],
        }


@front_door
def prune(
    model: Any,
    out: str | os.PathLike[str] | None = None,
    *,
    sparsity: float | None = None,
    method: str = DEFAULT_METHOD,
    pattern: str | None = None,
    budget: Budget | None = None,
    include: NameFilter = None,
    exclude: NameFilter = None,
    embeddings: bool = False,
    ceiling: float | None = None,
    tol: float = 5e-3,
    seed: int = 0,
    device: str | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> PruneResult:
    """Prune a model: set the weights that matter least to zero.

    Parameters
    ----------
    model : path, mapping of arrays or module
        As `mpfast.analyze`. It is never changed.
    out : path, optional
        Directory to write: files of the same names, header, order and layout as the source's, ``masks.safetensors``
        (one bit per weight, see `mpfast.checkpoints.MaskFile`), ``budget.json``, copies of the files beside the
        weights (configuration, tokenizer), and the mark ``.mpfast.json`` with the hashes of the source's tensors.
        Default: nothing is written.
    sparsity : float
        Share of the entries of the pruned layers to set to zero; met exactly, rounded down. Not with `pattern`, which
        fixes it, or `budget`.
    method : str
        Name of one of `mpfast.models.METHODS`, where each says what goes.
    pattern : str, optional
        ``"2:4"``: of every 4 consecutive weights along the inputs, the 2 largest stay; any ``n:m`` with n < m and m up
        to 64. A layer of which it is not known whether it is stored as (out, in) or (in, out) is left out.
    budget : Budget, optional
        Prune these layers, these numbers of entries each, by ``|w|``, and in its pattern if it has one; see
        `mpfast.Analysis.budget`.
    include, exclude
        As `mpfast.analyze`.
    embeddings : bool
        Prune embeddings and the output heads of language models (``lm_head``), too.
    ceiling : float, optional
        Largest sparsity of a layer where all layers are cut together. Default 0.9, or half way from `sparsity` to 1
        where that is more; 1 lifts it.
    tol, seed, device
        Of the spectra, as in `mpfast.analyze`.
    threads : int, optional
        Number of threads.
    overwrite : bool
        Replace `out` if mpfast wrote it (it has the mark), with all that it holds. Any other directory, and one that
        holds the source or the working directory, is refused.
    progress : bool
        Show a progress bar of the spectra on a terminal.

    Returns
    -------
    PruneResult

    Raises
    ------
    FileNotFoundError, FileExistsError, OSError
        `model` does not exist, `out` does, or it cannot be written, or somebody else is writing it. Nothing is left of
        what was begun.
    CheckpointError
        The checkpoint is malformed.
    ValueError, TypeError
        A bad option, no layer to prune, a layer with NaN or infinities, a quantised checkpoint, or with `out` one with
        entries that are no tensors and would be lost.

    Warns
    -----
    UserWarning
        Nothing is left of a layer; or the configuration says that the model is quantised, and no tensor looks so.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> model = {"fc1.weight": rng.standard_normal((64, 48)), "fc2.weight": rng.standard_normal((32, 64))}
    >>> result = prune(model, sparsity=0.5, method="magnitude")
    >>> result.budget.pruned, result.sparsity
    (2560, 0.5)
    >>> int((~result.masks["fc1.weight"]).sum()) == result.budget[0].pruned
    True
    """
    started = time.perf_counter()
    options = PruneOptions(sparsity, method, pattern, budget, embeddings, tol, seed, device, threads, progress, ceiling)
    check_flag(overwrite, "overwrite")
    if out is not None:
        check_path(out, "out")
    checkpoint = open_checkpoint(model)
    check_that_it_can_be_changed(checkpoint, written=out is not None)
    if out is not None:
        check_writable(checkpoint)
    candidates, skipped, without_effect = select_layers(checkpoint, include, exclude)
    warn_caller("", unseen_quantisation(checkpoint))
    for text in without_effect:
        warn_caller("prune", text)
    layers = layers_to_prune(candidates, skipped, options)
    logger.info("prune: %s: %d layers by %s", checkpoint.source, len(layers), options.label)
    # Of a path, the masks are in a file beside the weights.
    masks: dict[str, Any] | None = None if isinstance(model, str | os.PathLike) else {}
    stays = skipped_tensors(checkpoint, candidates, skipped)
    empty = Budget(
        (),
        options.label,
        options.target,
        options.wanted_pattern,
        checkpoint.source,
        dense=dense_tensors(stays),
        model_entries=model_entries(((layer.name, layer.tensor_shape, layer.dtype) for layer in layers), stays),
        provenance=provenance_of(
            model,
            sparsity=sparsity,
            method=method,
            pattern=pattern,
            budget=None if budget is None else "given",
            include=include,
            exclude=exclude,
            embeddings=embeddings,
            ceiling=None if sparsity is None else options.highest,
            tol=tol,
            seed=seed,
            device=device,
        ),
    )
    left: tuple[str, ...] = ()
    with contextlib.ExitStack() as stack:
        place = None
        if out is not None:  # from here on nobody else writes there
            sources = files_behind(model, checkpoint)
            place = stack.enter_context(claimed_directory(out, overwrite=overwrite, sources=sources))
        plan, reports = _plan(checkpoint, layers, options)
        masking = MaskingPass(checkpoint, layers, plan, reports, masks, options.groups is not None)
        if place is None:
            pruned = replace(empty, layers=masking.run())
        else:
            pruned, left = write_pruned(masking, place, empty)
    warn_of_emptied(((row.name, row.pruned, row.size) for row in pruned), options.target, "prune")
    return PruneResult(
        budget=pruned,
        skipped=stays,
        out=None if out is None else Path(out),
        masks=masks,
        seconds=time.perf_counter() - started,
        not_copied=left,
    )


def _plan(
    checkpoint: Checkpoint, layers: Sequence[Layer], options: PruneOptions
) -> tuple[MaskPlan, Mapping[str, LayerReport]]:
    """Decide what goes: by a pattern, by a budget, or by the method; with the spectra, where that takes them."""
    if options.groups is not None:
        return Pattern(*options.groups, options.team), {}
    if options.budget is not None:
        return LayerCuts({row.name: row.pruned for row in options.budget}, options.team), {}
    method = METHODS[options.method]
    reports = _spectra(checkpoint, layers, options) if method.needs_spectra else {}
    return method.plan(checkpoint, layers, reports, options.target, options.highest, options.team), reports


def _spectra(checkpoint: Checkpoint, layers: Sequence[Layer], options: PruneOptions) -> dict[str, LayerReport]:
    names = {layer.name for layer in layers}
    analysis = analyze(
        checkpoint,
        include=names.__contains__,
        views=WHOLE,
        tol=options.tol,
        seed=options.seed,
        device=options.device,
        threads=options.threads,
        progress=options.progress,
    )
    for tensor in analysis.skipped:
        if tensor.name in names:
            raise InvalidValueError("", f"{tensor.name}: {tensor.reason}")
    return {row.name: row for row in analysis}
