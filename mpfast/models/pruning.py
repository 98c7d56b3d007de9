"""`prune`: masks for a whole checkpoint, and the pruned checkpoint, which other tools load like the dense one."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mpfast.checkpoints import (
    MaskFile,
    NameFilter,
    check_writable,
    files_behind,
    open_checkpoint,
    select_layers,
    unseen_quantisation,
)
from mpfast.models.budget import Budget
from mpfast.models.budget_fit import FittedBudget
from mpfast.models.extent import dense_tensors, model_entries, warn_of_emptied
from mpfast.models.layer_moments import LayerMoments
from mpfast.models.mask_fit import FittedMasks
from mpfast.models.provenance import called, provenance_of
from mpfast.models.prune_options import PruneOptions, changeable, layers_to_prune
from mpfast.models.prune_plan import dropped_share, layers_with_moments, plan_masks
from mpfast.models.pruned_output import MaskingPass, write_pruned
from mpfast.models.refitting import Refitting
from mpfast.models.shared_counts import gradients_of
from mpfast.models.skipped import SkippedTensor, skipped_tensors
from mpfast.support import (
    InvalidTypeError,
    check_flag,
    check_path,
    claimed_directory,
    facts_as_html,
    front_door,
    logger,
    notebook_cell,
    percent,
    warn_caller,
)

__all__ = ["PruneResult", "prune"]


@dataclass(frozen=True, repr=False)
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
    weights : dict or None
        For a model in memory that was pruned with `moments`: the tensors whose kept weights were refitted, with zeros
        where they are pruned, by name, in its framework and types.
    seconds : float
        Wall time.
    not_copied : tuple of str
        Files beside the weights that `out` lacks, and why: weights in other forms, links that leave the directory.
    notes : tuple of str
        What else is otherwise than in the source: of a quantised one.
    """

    budget: Budget
    skipped: tuple[SkippedTensor, ...]
    out: Path | None
    masks: dict[str, Any] | None
    seconds: float
    not_copied: tuple[str, ...] = ()
    weights: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        where = "in memory" if self.masks is not None else "dry run" if self.out is None else f"in {str(self.out)!r}"
        return f"PruneResult({percent(self.sparsity, 2)} of {len(self.budget)} layers, {where}, {self.seconds:.2f} s)"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the budget as it was met."""
        return notebook_cell(facts_as_html(repr(self), {}), self.budget._as_html())

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
            "notes": list(self.notes),
        }


@front_door
def prune(
    model: Any,
    out: str | os.PathLike[str] | None = None,
    *,
    sparsity: float | None = None,
    method: str | None = None,
    pattern: str | None = None,
    budget: Budget | str | None = None,
    masks: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    moments: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    gradients: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    refit: int | None = None,
    damping: float | None = None,
    include: NameFilter = None,
    exclude: NameFilter = None,
    embeddings: bool = False,
    ceiling: float | None = None,
    dequantize: str | None = None,
    repack: bool = False,
    tol: float = 5e-3,
    seed: int = 0,
    device: str | None = None,
    threads: int | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> PruneResult:
    """Prune a model: set the weights that matter least to zero, and refit the others to what the layers see.

    Parameters
    ----------
    model : path, mapping of arrays or module
        As `mpfast.analyze`. It is never changed.
    out : path, optional
        Directory to write: files of the same names, header, order and layout as the source's, ``masks.safetensors``
        (one bit per weight, see `mpfast.checkpoints.MaskFile`), ``budget.json``, copies of the files beside the
        weights (configuration, tokenizer), and the mark ``.mpfast.json`` with the hashes of the source's tensors
        and the sizes of the files.
        Default: nothing is written.
    sparsity : float
        Share of the entries of the pruned layers to set to zero; met exactly, rounded down. Not with `pattern`, which
        fixes it, `budget` or `masks`.
    method : str, optional
        Name of one of `mpfast.models.METHODS`, where each says what goes and what it needs, or with `moments` of one of
        `mpfast.models.FITTED_METHODS`. Default ``"obs"`` with moments, ``"row"`` without: the best that were measured.
        Budgets from spectra are there to reproduce papers, and were worse.
    pattern : str, optional
        ``"2:4"``: of every 4 consecutive weights along the inputs, the 2 largest stay; any ``n:m`` with n < m and m up
        to 64. A layer of which it is not known whether it is stored as (out, in) or (in, out) is left out.
    budget : Budget or str, optional
        Prune these layers, these numbers of entries each, by ``|w|``, and in its pattern if it has one; see
        `mpfast.models.share_out`. One of a mixture's files fits the loaded mixture, whose experts transformers stacks,
        and the other way round: the same entries go. With `moments`, the method chooses which entries. Or with
        `sparsity` the name of one of `mpfast.models.METHODS`, which shares it out. Default ``"uniform"`` where moments
        choose.
    masks : path or mapping, optional
        Prune what these drop: a file as `out` has one, or a mapping from name of tensor to boolean array of its shape,
        True = kept. Other layers stay dense. As of a budget, those of a mixture's files fit the loaded mixture, and the
        other way round.
    moments : path or mapping, optional
        Second moments of the layers' inputs: a file of ``mpfast moments`` or `SecondMoments.save`, a `SecondMoments`,
        or a mapping from name of module or weight to array (in, in); an expert of a stack is called by the stack's name
        with its number in brackets. With them, the weights that are kept get the values with which the layers' outputs
        change least. A layer without a moment stays dense where `sparsity` or `pattern` leave it to the moments what
        goes; else it is pruned as without them, its kept weights as they were. The result says which, and why.
    gradients : path or mapping, optional
        Of the loss in the layers' outputs, see `mpfast.models.share_out`: with `moments`, they share `sparsity` out by
        ``"gauss_newton"`` unless `budget` says otherwise.
    refit : int, optional
        With `moments`: steps of conjugate gradients of the refit. Default 4; 0 with ``"obs"`` is SparseGPT.
    damping : float, optional
        With `moments`: the share of the mean of a moment's diagonal that is added to all of it. Default 0.01
        where the moment is of many rows, else 30 or 15 % of each diagonal entry, see `mpfast.models.damping_for`.
    include, exclude
        As `mpfast.analyze`.
    embeddings : bool
        Prune embeddings and the output heads of language models (``lm_head``), too.
    ceiling : float, optional
        Largest sparsity of a layer where they differ. Default 0.9, or half way from `sparsity` to 1
        where that is more; 1 lifts it.
    dequantize : {"bfloat16"}, optional
        Prune a quantised model as the dense one that its numbers are, rounded to this type, and write that:
        scales and the like are gone, and ``config.json`` does not speak of them. Default: a quantised model is refused.
    repack : bool
        Write a quantised model in its own format: codes of what is pruned become those of zero, and all else stays byte
        for byte. Of formats in which zero has a code under every scale: float8, MXFP4, NVFP4. Weights in others stay
        as they are. Not with `moments`, which give new values to what is kept.
    tol, seed, device
        Of the spectra, as in `mpfast.analyze`.
    threads : int, optional
        Number of threads.
    overwrite : bool
        Replace `out` if mpfast wrote all that it holds, as its mark lists it. Any other directory, a link, and one that
        holds the source, `masks`, `moments` or the working directory, is refused.
    progress : bool
        Show a progress bar of the spectra, as `mpfast.analyze`.

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
        A bad option, no layer to prune, a layer with NaN or infinities, a quantised checkpoint, moments of another
        model, or with `out` a checkpoint with entries that are no tensors and would be lost.

    Warns
    -----
    UserWarning
        Nothing is left of a layer; the configuration says that the model is quantised, and no tensor looks so; or the
        moments are of fewer than 4 inputs per dimension.

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
    given = _opened_masks(masks)
    options = PruneOptions(
        sparsity,
        method,
        pattern,
        budget,
        embeddings,
        tol,
        seed,
        device,
        threads,
        progress,
        ceiling,
        masks=given,
        has_moments=moments is not None,
        has_gradients=gradients is not None,
        refit=refit,
        damping=damping,
        repack=repack,
    )
    check_flag(overwrite, "overwrite")
    if out is not None:
        check_path(out, "out")
    checkpoint = changeable(open_checkpoint(model), dequantize=dequantize, repack=repack, written=out is not None)
    if out is not None:
        check_writable(checkpoint)
    candidates, skipped, without_effect = select_layers(checkpoint, include, exclude)
    warn_caller("", unseen_quantisation(checkpoint))
    for text in without_effect:
        warn_caller("prune", text)
    fitted = None if options.given_budget is None else FittedBudget(options.given_budget, candidates)
    laid_out = None if given is None else FittedMasks(given, candidates)
    layers = layers_to_prune(checkpoint, candidates, skipped, options, fitted or laid_out)
    known = None if moments is None else LayerMoments(moments, model, checkpoint, layers)
    if known is not None:
        warn_caller("prune", known.warning)
        layers = layers_with_moments(layers, skipped, known, options)
    slopes = {} if gradients is None else gradients_of(gradients, layers)
    logger.info("prune: %s: %d layers by %s", checkpoint.source, len(layers), options.label)
    # Of a path, the masks are in a file beside the weights.
    in_memory = not isinstance(model, str | os.PathLike)
    kept: dict[str, Any] | None = {} if in_memory else None
    weights: dict[str, Any] | None = {} if in_memory and known is not None else None
    stays = skipped_tensors(checkpoint, candidates, skipped)
    empty = Budget(
        (),
        options.label,
        options.target if laid_out is None else dropped_share(laid_out, layers),
        options.wanted_pattern,
        checkpoint.source,
        dense=dense_tensors(stays),
        model_entries=model_entries(((layer.name, layer.tensor_shape, layer.dtype) for layer in layers), stays),
        provenance=provenance_of(
            model,
            sparsity=sparsity,
            method=options.label,
            pattern=pattern,
            budget=budget if budget is None or isinstance(budget, str) else "given",
            masks=called(masks),
            moments=called(moments),
            gradients=called(gradients),
            moments_hash=None if known is None else known.hash,
            refit=None if known is None else options.steps,
            damping=None if known is None else options.damping,
            include=include,
            exclude=exclude,
            embeddings=embeddings,
            ceiling=None if sparsity is None else options.highest,
            dequantize=dequantize,
            repack=repack,
            tol=tol,
            seed=seed,
            device=device,
        ),
    )
    left: tuple[str, ...] = ()
    with contextlib.ExitStack() as stack:
        place = None
        if out is not None:  # from here on nobody else writes there
            read = [file for file in (masks, moments) if isinstance(file, str | os.PathLike)]
            sources = files_behind(model, checkpoint, *read)
            place = stack.enter_context(claimed_directory(out, overwrite=overwrite, sources=sources))
        plan, counts, reports = plan_masks(checkpoint, layers, options, fitted, laid_out, known, slopes)
        if known is not None:
            plan = Refitting(
                plan,
                known,
                options.chooser,
                counts,
                options.groups,
                options.steps,
                options.factor_damping,
                options.team,
                {} if fitted is None else fitted.pieces,
            )
        masking = MaskingPass(checkpoint, layers, plan, reports, kept, options.groups is not None, weights)
        if place is None:
            pruned = replace(empty, layers=masking.run())
        else:
            pruned, left = write_pruned(masking, place, empty)
    warn_of_emptied(((row.name, row.pruned, row.size) for row in pruned), pruned.sparsity, "prune")
    return PruneResult(
        budget=pruned,
        skipped=stays,
        out=None if out is None else Path(out),
        masks=kept,
        weights=weights,
        seconds=time.perf_counter() - started,
        not_copied=left,
        notes=getattr(checkpoint, "notes", ()),
    )


def _opened_masks(masks: Any) -> Mapping[str, Any] | None:
    if masks is None or isinstance(masks, Mapping):
        return masks
    if isinstance(masks, str | os.PathLike):
        return MaskFile(check_path(masks, "masks"))
    raise InvalidTypeError("masks", f"must be a file or a mapping, not {type(masks).__name__}")
