"""`analyze`: the spectrum of every weight matrix of a model, layers side by side."""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import Any

from mpfast.checkpoints import Checkpoint, TensorInfo, open_checkpoint
from mpfast.checkpoints.derived import Difference, LoraProducts, LowRankProduct, has_lora_pairs
from mpfast.devices import device_names
from mpfast.errors import CheckpointError, ConvergenceWarning
from mpfast.layer_cache import LayerCache
from mpfast.layer_reports import LayerReport, SkippedTensor, skipped_tensors
from mpfast.layers import Layer, NameFilter, Views, layer_matrix, select_layers
from mpfast.options import check_seed, check_tolerance, worker_count
from mpfast.results import Analysis
from mpfast.spectrum import spectrum

__all__ = ["Analysis", "LayerReport", "SkippedTensor", "analyze"]

# A matrix of more entries than this (16 MB in float32, beyond the cache of one core) gets all threads to
# itself: the fused product then scales with the memory bandwidth. Smaller ones keep one thread each and run
# side by side.
LARGE_LAYER = 4_000_000
# Layers that share a GPU.
LAYERS_PER_GPU = 2


def analyze(
    model: Any,
    *,
    include: NameFilter = None,
    exclude: NameFilter = None,
    base: Any = None,
    views: Views | None = None,
    method: str = "auto",
    tol: float = 5e-3,
    seed: int = 0,
    device: str | None = None,
    workers: int | None = None,
    cache: str | os.PathLike[str] | None = None,
    client: Any = None,
    progress: bool = True,
) -> Analysis:
    """Fit the Marchenko-Pastur edge of every weight matrix of a model.

    Linear weights, embeddings and convolutions (unfolded to Co x (Ci kh kw)) are analysed; everything else is
    listed in `Analysis.skipped` with the reason. Tensors are read one at a time per thread, files are
    memory-mapped. The result does not depend on `workers`.

    Parameters
    ----------
    model : path, mapping of arrays or module
        A safetensors, NumPy, PyTorch or ONNX file, a model directory or its index, a mapping from names to arrays of
        any framework, or a live model: see `mpfast.checkpoints.open_checkpoint`.
    include, exclude : str, iterable of str or callable, optional
        Glob patterns on the tensor's whole name (``"encoder.*.query.weight"``; case matters), or a function
        of the name. A tensor is analysed if it matches `include` (default: all) and not `exclude`.
    base : path, mapping of arrays or module, optional
        The checkpoint that `model` was tuned from: the differences are analysed, each formed when its turn comes.
    views : Views, optional
        How tensors are seen as matrices, see `mpfast.layers.Views`: convolutions unfolded or position by position,
        projections to query, key and value split in three or not, stacks of experts matrix by matrix or as one. LoRA
        pairs are analysed as their product B A, which is never formed.
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
    workers : int, optional
        Number of threads in all; default as `mpfast.spectrum`.
    cache : path, optional
        Directory that keeps the report of every layer under a hash of its content and the options: an analysis that
        was stopped resumes there, and a layer that did not change is not analysed again.
    client : distributed.Client, optional
        Spread the layers over this Dask cluster. Its workers open `model` and `base` themselves when they are paths,
        which must be good there too; arrays in memory are sent to them. `workers` is then the threads of one layer.
    progress : bool
        Show a progress bar on standard error, if that is a terminal and rich is installed.

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
        A bad option, or a pattern of `include` that matches no tensor.

    Warns
    -----
    ConvergenceWarning
        Once, if any layer did not meet `tol`; each layer says so in its `warnings`.

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
    settings = _checked_settings(method, tol, seed, device, workers, cache)
    checkpoint, unmatched = open_derived(model, base)
    layers, skipped = select_layers(checkpoint, include, exclude, "analyze", views or Views())
    reports: dict[str, LayerReport] = {}
    with collected_warnings() as collected, _progress_bar(layers, progress) as advance:
        if client is None:
            outcomes = _outcomes(checkpoint, layers, settings, collected)
        else:
            from mpfast.cluster import outcomes_on_cluster

            outcomes = outcomes_on_cluster(client, (model, base), checkpoint, layers, settings, collected)
        for layer, outcome in outcomes:
            if isinstance(outcome, str):
                skipped[layer.name] = outcome
            else:
                reports[layer.name] = outcome
            advance(layer)
    collected.reissue()
    return Analysis(
        layers=tuple(reports[layer.name] for layer in layers if layer.name in reports),
        skipped=(
            *skipped_tensors(checkpoint, layers, skipped),
            *(SkippedTensor(info.name, info.shape, info.dtype, reason) for info, reason in unmatched),
        ),
        source=checkpoint.source,
        tol=settings.tol,
        seed=settings.seed,
        seconds=time.perf_counter() - started,
    )


def open_derived(model: Any, base: Any) -> tuple[Checkpoint, list[tuple[TensorInfo, str]]]:
    """Open a model, or its difference to a base; LoRA pairs become products. Also the tensors that have no partner."""
    checkpoint = open_checkpoint(model, "analyze")
    unmatched: list[tuple[TensorInfo, str]] = []
    if base is not None:
        checkpoint = Difference(checkpoint, open_checkpoint(base, "analyze"))
        unmatched = checkpoint.unmatched
    if has_lora_pairs(checkpoint):
        checkpoint = LoraProducts(checkpoint)
    return checkpoint, unmatched


@dataclass(frozen=True)
class Settings:
    """Options of an analysis, checked.

    Attributes
    ----------
    method, tol, seed, workers, device
        As in `analyze`.
    gpus
        Names of the GPUs to use.
    cache
        Where reports are kept, if anywhere.
    """

    method: str
    tol: float
    seed: int
    workers: int
    device: str | None = None
    gpus: tuple[str, ...] = ()
    cache: LayerCache | None = None


def _checked_settings(
    method: str,
    tol: float,
    seed: int,
    device: str | None,
    workers: int | None,
    cache: str | os.PathLike[str] | None,
) -> Settings:
    if method not in ("auto", "exact", "lanczos"):
        raise ValueError(f"analyze(): method must be 'auto', 'exact' or 'lanczos', not {method!r}")
    tol, seed = check_tolerance(tol, "analyze"), check_seed(seed, "analyze")
    gpus = device_names(device, "analyze")
    threads = worker_count(workers, "analyze")
    kept = None if cache is None else LayerCache(cache, [method, tol, seed])
    return Settings(method, tol, seed, threads, device, gpus, kept)


def _outcomes(
    checkpoint: Checkpoint, layers: Sequence[Layer], settings: Settings, collected: CollectedWarnings
) -> Iterator[tuple[Layer, LayerReport | str]]:
    """Yield (layer, report or reason why there is none), in the order they are done: the largest first."""
    by_size = sorted(layers, key=lambda layer: -layer.size)
    if settings.gpus:
        yield from _outcomes_on_gpus(checkpoint, by_size, settings, collected)
        return
    large = [layer for layer in by_size if layer.size > LARGE_LAYER]
    small = by_size[len(large) :]
    for layer, following in zip_longest(large, large[1:]):
        if following is not None:
            checkpoint.prefetch(following.tensor)
        yield layer, layer_outcome(checkpoint, layer, settings, settings.workers, collected, settings.device)
    if settings.workers == 1 or len(small) < 2:
        for layer in small:
            yield layer, layer_outcome(checkpoint, layer, settings, 1, collected, settings.device)
        return

    def on_the_host(layer: Layer) -> LayerReport | str:
        return layer_outcome(checkpoint, layer, settings, 1, collected, settings.device)

    yield from _in_threads(on_the_host, small, min(settings.workers, len(small)))


def _outcomes_on_gpus(
    checkpoint: Checkpoint, layers: Sequence[Layer], settings: Settings, collected: CollectedWarnings
) -> Iterator[tuple[Layer, LayerReport | str]]:
    """As `_outcomes`, each layer on whichever GPU is free; the host's part of one overlaps the device's of another."""
    free: queue.SimpleQueue[str] = queue.SimpleQueue()
    for gpu in settings.gpus * LAYERS_PER_GPU:
        free.put(gpu)

    def on_a_gpu(layer: Layer) -> LayerReport | str:
        gpu = free.get()
        try:
            return layer_outcome(checkpoint, layer, settings, 1, collected, gpu)
        finally:
            free.put(gpu)

    yield from _in_threads(on_a_gpu, layers, LAYERS_PER_GPU * len(settings.gpus))


def _in_threads(
    outcome: Callable[[Layer], LayerReport | str], layers: Sequence[Layer], workers: int
) -> Iterator[tuple[Layer, LayerReport | str]]:
    """Yield (layer, outcome) in the order they are done."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="mpfast")
    try:
        futures = {pool.submit(outcome, layer): layer for layer in layers}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        # After an interrupt or an error: what has not begun never will, what has is small: no need to wait.
        pool.shutdown(wait=False, cancel_futures=True)


def layer_outcome(
    checkpoint: Checkpoint,
    layer: Layer,
    settings: Settings,
    threads: int,
    collected: CollectedWarnings,
    device: str | None,
) -> LayerReport | str:
    """Analyse one layer: its report, or why there is none."""
    started = time.perf_counter()
    with collected.of_layer(layer.name):
        try:
            matrix = layer_matrix(checkpoint.read(layer.tensor), layer)
            key = None if settings.cache is None else settings.cache.key(layer, matrix)
            kept = None if settings.cache is None or key is None else settings.cache.get(key, layer)
            if kept is not None:
                return kept
            product = isinstance(matrix, LowRankProduct)
            result = spectrum(
                matrix,
                method="exact" if product else settings.method,
                tol=settings.tol,
                seed=_layer_seed(settings.seed, layer.name),
                threads=threads,
                device=None if product else device,
            )
            report = LayerReport.from_spectrum(layer, result, seconds=time.perf_counter() - started)
        except CheckpointError:
            raise  # the file is damaged: no number from it can be trusted
        except (ValueError, TypeError) as error:
            return str(error).removeprefix("spectrum(): W ")  # NaNs, say: this layer has no spectrum, the others do
        finally:
            checkpoint.release(layer.tensor)
    report = replace(report, warnings=(*report.warnings, *collected.messages(layer.name)))
    if settings.cache is not None and key is not None:
        settings.cache.put(key, report)
    return report


def _layer_seed(seed: int, name: str) -> int:
    """63 bits from the seed and the name by a hash that is the same in every process (`hash` is salted)."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@dataclass
class CollectedWarnings:
    """`ConvergenceWarning` texts by layer.

    The warnings machinery is global to the process; the thread that warns tells which layer it is about.
    """

    by_layer: dict[str, list[str]] = field(default_factory=dict)
    current: threading.local = field(default_factory=threading.local)

    @contextlib.contextmanager
    def of_layer(self, name: str) -> Iterator[None]:
        self.current.layer = name
        try:
            yield
        finally:
            self.current.layer = None

    def take(self, message: Warning | str) -> bool:
        """Keep the message if it is about a layer of this run; tell whether it was."""
        name = getattr(self.current, "layer", None)
        if name is None:
            return False
        self.by_layer.setdefault(name, []).append(str(message))
        return True

    def messages(self, name: str) -> tuple[str, ...]:
        return tuple(self.by_layer.get(name, ()))

    def reissue(self) -> None:
        """Warn once for all layers."""
        if self.by_layer:
            name, messages = next(iter(self.by_layer.items()))
            warnings.warn(
                f"analyze(): {len(self.by_layer)} layers did not meet tol, among them {name}: {messages[0]}",
                ConvergenceWarning,
                stacklevel=3,
            )


@contextlib.contextmanager
def collected_warnings() -> Iterator[CollectedWarnings]:
    """Keep the warnings about layers instead of showing them one by one."""
    collected = CollectedWarnings()
    with warnings.catch_warnings():
        warnings.simplefilter("always", ConvergenceWarning)
        show = warnings.showwarning

        def showwarning(message: Warning | str, category: type[Warning], *details: Any, **named: Any) -> None:
            if not (issubclass(category, ConvergenceWarning) and collected.take(message)):
                show(message, category, *details, **named)

        warnings.showwarning = showwarning
        yield collected


@contextlib.contextmanager
def _progress_bar(layers: Sequence[Layer], wanted: bool) -> Iterator[Callable[[Layer], None]]:
    """Yield a function to call after each layer; it counts entries, since the time goes with them."""
    if not wanted or sys.stderr is None or not sys.stderr.isatty():
        yield lambda _: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        yield lambda _: None
        return
    columns = (
        BarColumn(),
        TextColumn("{task.fields[done]}/{task.fields[layers]} layers"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=sum(layer.size for layer in layers), done=0, layers=len(layers))
        done = 0

        def advance(layer: Layer) -> None:
            nonlocal done
            done += 1
            description = layer.name.replace("[", "\\[")  # else rich takes "blocks[0]" for markup
            bar.update(task, advance=layer.size, done=done, description=description)

        yield advance
