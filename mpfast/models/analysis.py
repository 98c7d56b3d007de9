"""`analyze`: the spectrum of every weight matrix of a model, layers side by side."""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict
from itertools import islice, zip_longest
from typing import Any, get_args

from mpfast.arrays import device_names
from mpfast.checkpoints import (
    Checkpoint,
    Layer,
    NameFilter,
    Views,
    open_checkpoint,
    select_layers,
    unseen_quantisation,
)
from mpfast.models.layer_job import Settings, checked_views, layer_outcome, open_derived
from mpfast.models.layer_report import LayerReport
from mpfast.models.progress import progress_bar
from mpfast.models.provenance import provenance_of
from mpfast.models.report_cache import LayerCache
from mpfast.models.result import Analysis
from mpfast.models.skipped import SkippedTensor, skipped_tensors
from mpfast.spectra import SIDE_BY_SIDE_UP_TO, SpectrumMethod
from mpfast.support import (
    ConvergenceWarning,
    InvalidTypeError,
    InvalidValueError,
    Workers,
    check_flag,
    check_path,
    check_seed,
    check_tolerance,
    front_door,
    logger,
    summary_of_unmet,
    team_size,
    warn_caller,
)

__all__ = ["analyze"]

# Threads of one large layer, where there are so many that several are analysed side by side: a pass over 4096 rows has
# some thirty tasks, and between passes most of the threads wait.
TEAM = 8
# Layers that share a GPU.
LAYERS_PER_GPU = 2
# Layers that wait for each thread.
_AHEAD = 4


@front_door
def analyze(
    model: Any,
    *,
    include: NameFilter = None,
    exclude: NameFilter = None,
    base: Any = None,
    views: Views | None = None,
    method: SpectrumMethod = "auto",
    tol: float = 5e-3,
    seed: int = 0,
    device: str | None = None,
    threads: int | None = None,
    cache: str | os.PathLike[str] | None = None,
    client: Any = None,
    progress: bool = True,
) -> Analysis:
    """Fit the Marchenko-Pastur edge of every weight matrix of a model.

    Linear weights, embeddings, stacks of experts and convolutions (unfolded to Co x (Ci kh kw)) are analysed;
    everything else is listed in `Analysis.skipped` with the reason; `mpfast.checkpoints.roles_of` decides. Tensors are
    read one at a time per thread, files are memory-mapped. The result does not depend on `threads`.

    Parameters
    ----------
    model : path, mapping of arrays or module
        A checkpoint file of any format that is read, a model directory, a mapping from names to arrays of any
        framework, or a live model: see `mpfast.checkpoints.open_checkpoint`.
    include, exclude : str, iterable of str or callable, optional
        Glob patterns on the tensor's whole name (``"encoder.*.query.weight"``; case matters), or a function
        of the name. A tensor is analysed if it matches `include` (default: all) and not `exclude`.
    base : path, mapping of arrays or module, optional
        The checkpoint that `model` was tuned from: the differences are analysed, each formed when its turn comes.
    views : Views, optional
        How tensors are seen as matrices, see `mpfast.checkpoints.Views`: convolutions unfolded or position by position,
        projections to query, key and value split in three or not, stacks of experts matrix by matrix or as one. The
        factors of an adapter's update are analysed as its product, at its scale, which is never formed.
    method : {"auto", "exact", "lanczos"}
        See `mpfast.spectrum`.
    tol : float
        Wanted relative standard error of each ``sigma_plus``.
    seed : int
        Each layer's seed is derived from this one and the layer's name, so that the errors of different
        layers are independent and a layer's numbers do not depend on which others are analysed.
    device : str, optional
        Where to compute: None, where the tensors are; ``"cuda"``, on every GPU there is, layer by layer; ``"cuda:1"``,
        on that one; ``"cpu"``, on the host.
    threads : int, optional
        Number of threads in all; default as `mpfast.spectrum`.
    cache : path, optional
        Directory that keeps the report of every layer under a hash of its content and the options: an analysis that
        was stopped resumes there, and a layer that did not change is not analysed again.
    client : distributed.Client, optional
        Spread the layers over this Dask cluster. Its workers open `model` and `base` themselves when they are paths,
        which must be good there too; arrays in memory are sent to them. `threads` is then the threads of one layer.
    progress : bool
        Show a progress bar, where rich is installed: on standard error if that is a terminal, or in a notebook with
        ipywidgets.

    Returns
    -------
    Analysis
        One `LayerReport` per matrix, in the order of the checkpoint.

    Raises
    ------
    FileNotFoundError
        The path does not exist.
    CheckpointError
        The file is malformed.
    TypeError
        `model` is nothing that holds tensors.
    ValueError
        A bad option, a pattern of `include` that matches no tensor, or no tensor at all.

    Warns
    -----
    ConvergenceWarning
        Once, if any layer did not meet `tol`; each layer says so in its `warnings`.
    UserWarning
        The configuration says that the model is quantised, and no tensor looks so; a pattern matches nothing.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> model = {"fc.weight": rng.standard_normal((96, 128)), "fc.bias": np.zeros(96)}
    >>> analysis = analyze(model)
    >>> analysis[0].name, analysis[0].shape, analysis[0].spikes
    ('fc.weight', (96, 128), 0)
    >>> analysis.skipped[0].reason
    'vector or scalar (bias, normalisation)'
    """
    started = time.perf_counter()
    settings = _checked_settings(method, tol, seed, device, threads, cache)
    views = checked_views(views)
    check_flag(progress, "progress")
    if client is not None and not callable(getattr(client, "scatter", None)):
        raise InvalidTypeError("client", f"must be a distributed.Client, not {type(client).__name__}")
    opened = open_checkpoint(model)
    warn_caller("", unseen_quantisation(opened))
    checkpoint, unmatched = open_derived(opened, base)
    layers, skipped, without_effect = select_layers(checkpoint, include, exclude, views)
    for text in without_effect:
        warn_caller("analyze", text)
    logger.info("analyze: %s: %d matrices, %d tensors skipped", checkpoint.source, len(layers), len(skipped))
    if not checkpoint.tensors and not getattr(checkpoint, "others", ()) and not unmatched:
        raise InvalidValueError("model", f"holds no tensors: {checkpoint.source}")
    reports: dict[str, LayerReport] = {}
    with progress_bar(layers, progress) as advance:
        if client is None:
            outcomes = _outcomes(checkpoint, layers, settings)
        else:
            from mpfast.models.dask_cluster import outcomes_on_cluster

            outcomes = outcomes_on_cluster(client, (model, base), checkpoint, layers, settings)
        for layer, outcome in outcomes:
            logger.debug("analyze: %s: %s", layer.name, outcome if isinstance(outcome, str) else outcome.verdict)
            if isinstance(outcome, str):
                skipped[layer.name] = outcome
            else:
                reports[layer.name] = outcome
            advance(layer)
    rows = tuple(reports[layer.name] for layer in layers if layer.name in reports)
    unmet = {row.name: row.unmet_tolerance for row in rows}
    warn_caller("analyze", summary_of_unmet(unmet), ConvergenceWarning)
    return Analysis(
        layers=rows,
        skipped=(
            *skipped_tensors(checkpoint, layers, skipped),
            *(SkippedTensor(info.name, info.shape, info.dtype, reason) for info, reason in unmatched),
        ),
        source=checkpoint.source,
        tol=settings.tol,
        seed=settings.seed,
        seconds=time.perf_counter() - started,
        provenance=provenance_of(
            model,
            base,
            include=include,
            exclude=exclude,
            views=asdict(views),
            method=method,
            tol=settings.tol,
            seed=settings.seed,
            device=device,
        ),
    )


def _checked_settings(
    method: SpectrumMethod,
    tol: float,
    seed: int,
    device: str | None,
    threads: int | None,
    cache: str | os.PathLike[str] | None,
) -> Settings:
    methods = get_args(SpectrumMethod)
    if method not in methods:
        raise InvalidValueError("method", f"must be one of {', '.join(map(repr, methods))}, not {method!r}")
    tol, seed = check_tolerance(tol), check_seed(seed)
    if cache is not None:
        check_path(cache, "cache")
    gpus = device_names(device)
    kept = None if cache is None else LayerCache(cache, [method, tol, seed])
    return Settings(method, tol, seed, team_size(threads), device, gpus, kept)


def _outcomes(
    checkpoint: Checkpoint, layers: Sequence[Layer], settings: Settings
) -> Iterator[tuple[Layer, LayerReport | str]]:
    """Yield (layer, report or reason why there is none), in the order they are done: the largest first."""
    by_size = sorted(layers, key=lambda layer: -layer.size)
    if settings.gpus:
        yield from _outcomes_on_gpus(checkpoint, by_size, settings)
        return
    large = [layer for layer in by_size if layer.size > SIDE_BY_SIDE_UP_TO]
    small = by_size[len(large) :]
    teams = min(settings.threads // TEAM, len(large))
    if teams > 1:
        yield from _in_threads(
            lambda layer: layer_outcome(checkpoint, layer, settings, settings.threads // teams, settings.device),
            large,
            teams,
        )
    else:
        for layer, following in zip_longest(large, large[1:]):
            if following is not None:
                checkpoint.prefetch(following.file_name)
            yield layer, layer_outcome(checkpoint, layer, settings, settings.threads, settings.device)
    if settings.threads == 1 or len(small) < 2:
        for layer in small:
            yield layer, layer_outcome(checkpoint, layer, settings, 1, settings.device)
        return

    def on_the_host(layer: Layer) -> LayerReport | str:
        return layer_outcome(checkpoint, layer, settings, 1, settings.device)

    yield from _in_threads(on_the_host, small, min(settings.threads, len(small)))


def _outcomes_on_gpus(
    checkpoint: Checkpoint, layers: Sequence[Layer], settings: Settings
) -> Iterator[tuple[Layer, LayerReport | str]]:
    """As `_outcomes`, each layer on whichever GPU is free; the host's part of one overlaps the device's of another."""
    free: queue.SimpleQueue[str] = queue.SimpleQueue()
    for gpu in settings.gpus * LAYERS_PER_GPU:
        free.put(gpu)

    def on_a_gpu(layer: Layer) -> LayerReport | str:
        gpu = free.get()
        try:
            return layer_outcome(checkpoint, layer, settings, 1, gpu)
        finally:
            free.put(gpu)

    yield from _in_threads(on_a_gpu, layers, LAYERS_PER_GPU * len(settings.gpus))


def _in_threads(
    outcome: Callable[[Layer], LayerReport | str], layers: Sequence[Layer], threads: int
) -> Iterator[tuple[Layer, LayerReport | str]]:
    """Yield (layer, outcome) in the order they are done."""
    pool = Workers(threads)
    remaining = iter(layers)
    running: dict[Future[LayerReport | str], Layer] = {}

    def begin(count: int) -> None:
        running.update((pool.submit(outcome, layer), layer) for layer in islice(remaining, count))

    try:
        # A mixture has tens of thousands of layers, and a future takes more memory than a report.
        begin(_AHEAD * threads)
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                layer = running.pop(future)
                begin(1)
                yield layer, future.result()
    finally:
        # After an interrupt or an error: what has not begun never will, what has is small: no need to wait.
        pool.abandon()
