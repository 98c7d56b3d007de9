"""`compress`: a checkpoint with low-rank factors in the place of matrices, or a LoRA adapter of a difference."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpfast.checkpoints import Difference, NameFilter, first_reason, open_checkpoint, select_layers
from mpfast.models.factored_output import write_adapter, write_factors
from mpfast.models.factoring import FactoredLayer, Factoring
from mpfast.models.layer_report import SkippedTensor, skipped_tensors
from mpfast.models.prune_options import check_that_it_can_be_changed
from mpfast.spectra import lowrank
from mpfast.support import (
    ConvergenceWarning,
    InvalidValueError,
    check_directory,
    front_door,
    staged_directory,
    summary_of_unmet,
    team_size,
    warn_caller,
)

__all__ = ["CompressResult", "compress"]


@dataclass(frozen=True)
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
    """

    layers: tuple[FactoredLayer, ...]
    skipped: tuple[SkippedTensor, ...]
    out: Path | None
    seconds: float

    @property
    def ratio(self) -> float:
        """Entries of the factors over entries of the matrices that they replace."""
        dense = sum(math.prod(layer.shape) for layer in self.layers)
        return sum(layer.entries for layer in self.layers) / dense if dense else 1.0


@front_door
def compress(
    model: Any,
    out: str | os.PathLike[str] | None = None,
    *,
    rank: int | str = "mp_edge",
    base: Any = None,
    include: NameFilter = None,
    exclude: NameFilter = None,
    embeddings: bool = False,
    seed: int = 0,
    device: str | None = None,
    threads: int | None = None,
    overwrite: bool = False,
) -> CompressResult:
    """Replace matrices by low-rank factors.

    Parameters
    ----------
    model : path, mapping of arrays or module
        As `mpfast.analyze`. It is never changed.
    out : path, optional
        Directory to write. Without `base`: the source's files, in which ``<module>.weight`` of shape (m, n) gives way
        to ``<module>.weight_A`` (m, r) and ``<module>.weight_B`` (r, n), whose product is the truncated matrix; all
        other tensors are as they were. With `base`: a LoRA adapter that PEFT loads. Default: nothing is written.
    rank : int or "mp_edge"
        Singular values kept: at most so many, or those above the Marchenko-Pastur edge.
    base : path, mapping of arrays or module, optional
        The checkpoint that `model` was fine-tuned from: the difference is factored, layer by layer.
    include, exclude
        As `mpfast.analyze`.
    embeddings : bool
        Factor embeddings and the output heads of language models (``lm_head``), too. Not embeddings with `base`.
    seed, device
        As `mpfast.svd`.
    threads : int, optional
        Number of threads.
    overwrite : bool
        Replace `out` if it exists, with all that it holds. One that holds the source or the working directory is
        refused.

    Returns
    -------
    CompressResult

    Raises
    ------
    FileNotFoundError, FileExistsError, OSError
        `model` does not exist, `out` does, or it cannot be written. Nothing half-written is left.
    CheckpointError
        A checkpoint is malformed.
    ValueError, TypeError
        A bad option, nothing to factor, a layer with NaN or infinities, a quantised checkpoint, or entries that are no
        tensors and would be lost.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> noise, signal = rng.standard_normal((200, 300)), np.outer(np.ones(200), np.ones(300))
    >>> result = compress({"fc.weight": noise + signal})
    >>> result.layers[0].rank
    1
    """
    started = time.perf_counter()
    wanted = lowrank.check_options(rank, None)
    threads = team_size(threads)
    if out is not None:
        check_directory(out, overwrite=overwrite, sources=[model, base])
    checkpoint = open_checkpoint(model)
    reference = None if base is None else open_checkpoint(base)
    check_that_it_can_be_changed(checkpoint, written=out is not None and base is None)
    layers, skipped, without_effect = select_layers(checkpoint, include, exclude)
    for text in without_effect:
        warn_caller("compress", text)
    difference = None if reference is None else Difference(checkpoint, reference)
    factoring = Factoring(checkpoint, difference, wanted, seed, device, threads, skipped)
    chosen = [layer for layer in layers if factoring.is_wanted(layer, embeddings)]
    if not chosen:
        raise InvalidValueError("", f"no layer is left to factor{first_reason(skipped)}")
    if out is None:
        done = (factoring.factored(layer) for layer in chosen)
        factored = tuple(found[0] for found in done if found is not None)
    else:
        with staged_directory(out, overwrite=overwrite) as staging:
            if reference is None:
                factored = write_factors(factoring, chosen, staging)
            else:
                factored = write_adapter(factoring, reference, chosen, staging)
    warn_caller("compress", summary_of_unmet(factoring.unmet), ConvergenceWarning)
    if not factored:
        name = chosen[0].name
        raise InvalidValueError("", f"no layer is worth factoring: {name}: {skipped[name]}")
    return CompressResult(
        layers=factored,
        skipped=skipped_tensors(checkpoint, layers, skipped),
        out=None if out is None else Path(out),
        seconds=time.perf_counter() - started,
    )
