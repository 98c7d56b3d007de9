"""`prune`: masks for a whole checkpoint, and the pruned checkpoint, which other tools load like the dense one."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.arrays import like
from mpfast.checkpoints import (
    MASKS_FILE,
    WHOLE,
    Checkpoint,
    CheckpointOutput,
    Layer,
    NameFilter,
    SafetensorsWriter,
    fingerprint,
    first_reason,
    is_embedding_or_head,
    mask_writer,
    open_checkpoint,
    packed,
    prefetched,
    select_layers,
)
from mpfast.masks import BERLYAND2026, default_layer_type, layer_weights, regime_for
from mpfast.models.analysis import analyze
from mpfast.models.budget import Budget
from mpfast.models.budget_row import LayerBudget, parsed_pattern
from mpfast.models.layer_report import LayerReport, SkippedTensor, skipped_tensors
from mpfast.models.mask_plans import GlobalCut, LayerCuts, MaskPlan, Pattern, stored_rows
from mpfast.support import (
    check_directory,
    check_seed,
    check_sparsity,
    check_tolerance,
    floor_count,
    front_door,
    staged_directory,
    team_size,
    warn_caller,
)

__all__ = ["BUDGET_FILE", "METHODS", "PruneResult", "prune"]

#: Name of the budget that is written beside the weights.
BUDGET_FILE = "budget.json"
METHODS = ("spectral_budget", "sigma_plus", "hill", "magnitude", "uniform")
# Entries masked and written at a time.
CHUNK_ENTRIES = 4 << 20


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
    """

    budget: Budget
    skipped: tuple[SkippedTensor, ...]
    out: Path | None
    masks: dict[str, Any] | None
    seconds: float

    @property
    def sparsity(self) -> float:
        """Share of the entries of the pruned layers that is gone."""
        return self.budget.pruned / self.budget.entries if self.budget.entries else 0.0


@front_door
def prune(
    model: Any,
    out: str | os.PathLike[str] | None = None,
    *,
    sparsity: float | None = None,
    method: str = "spectral_budget",
    pattern: str | None = None,
    budget: Budget | None = None,
    include: NameFilter = None,
    exclude: NameFilter = None,
    embeddings: bool = False,
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
        (one bit per weight, see `mpfast.checkpoints.MaskFile`), ``budget.json``, and copies of the files beside the
        weights (configuration, tokenizer). Default: nothing is written.
    sparsity : float
        Share of the entries of the pruned layers to set to zero; met exactly, rounded down. Not with `pattern`, which
        fixes it, or `budget`.
    method : str
        ``"spectral_budget"``: globally by ``|w| / w_l`` with layer weights from the spectra (arXiv 2606.02608);
        ``"sigma_plus"``, ``"hill"``: the same with this signal at every sparsity; ``"magnitude"``: globally by ``|w|``;
        ``"uniform"``: the same share of every layer, by ``|w|``.
    pattern : str, optional
        ``"2:4"``: of every 4 consecutive weights of a row, the 2 largest stay; any ``n:m`` with m up to 64.
    budget : Budget, optional
        Prune these layers, these numbers of entries each, by ``|w|``, and in its pattern if it has one; see
        `mpfast.Analysis.budget`.
    include, exclude
        As `mpfast.analyze`.
    embeddings : bool
        Prune embeddings and the output heads of language models (``lm_head``), too.
    tol, seed, device
        Of the spectra, as in `mpfast.analyze`.
    threads : int, optional
        Number of threads.
    overwrite : bool
        Replace `out` if it exists, with all that it holds. One that holds the source or the working directory is
        refused.
    progress : bool
        Show a progress bar of the spectra on a terminal.

    Returns
    -------
    PruneResult

    Raises
    ------
    FileNotFoundError, FileExistsError, OSError
        `model` does not exist, `out` does, or it cannot be written. Nothing half-written is left.
    CheckpointError
        The checkpoint is malformed.
    ValueError, TypeError
        A bad option, no layer to prune, or a layer with NaN or infinities.

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
    n_of_m = _checked_options(sparsity, method, pattern, budget)
    check_tolerance(tol)
    check_seed(seed)
    threads = team_size(threads)
    if out is not None:
        check_directory(out, overwrite=overwrite, sources=[model])
    checkpoint = open_checkpoint(model)
    layers, skipped, without_effect = select_layers(checkpoint, include, exclude)
    for text in without_effect:
        warn_caller("prune", text)
    layers = _prunable(layers, skipped, embeddings, n_of_m, budget)
    if not layers:
        raise ValueError(f"prune(): no layer is left to prune{first_reason(skipped)}")
    reports: Mapping[str, LayerReport] = {}
    if budget is not None:
        pattern, label, target = budget.pattern, budget.method, budget.sparsity
        cuts = {row.name: row.pruned for row in budget}
        plan: MaskPlan = LayerCuts(cuts, threads) if n_of_m is None else Pattern(*n_of_m, threads)
    elif n_of_m is not None:
        plan = Pattern(*n_of_m, threads)
        label, target = "magnitude", 1 - n_of_m[0] / n_of_m[1]
    else:
        label, target = method, float(sparsity or 0)
        if method == "uniform":
            plan = LayerCuts({layer.name: floor_count(target, layer.size) for layer in layers}, threads)
        else:
            scales = [1.0] * len(layers)
            if method != "magnitude":
                reports = _spectra(checkpoint, layers, tol, seed, device, threads, progress)
                scales = _scales(layers, reports, method, target)
            plan = GlobalCut(
                checkpoint, layers, scales, floor_count(target, sum(layer.size for layer in layers)), threads
            )
    job = _Job(checkpoint, layers, plan, reports, None if isinstance(model, str | os.PathLike) else {})
    template = Budget((), label, target, pattern, checkpoint.source)
    if out is None:
        written = replace(template, layers=job.run(None, None))
    else:
        options: list[Any] = [sparsity, method, pattern, [layer.name for layer in layers], tol, seed, device]
        if budget is not None:
            options.append([asdict(row) for row in budget])
        with staged_directory(out, overwrite=overwrite) as staging:
            shapes = {layer.name: layer.tensor_shape for layer in layers}
            with CheckpointOutput(checkpoint, staging, fingerprint(checkpoint, "prune", options)) as output:
                with mask_writer(staging / MASKS_FILE, shapes) as masks:
                    written = replace(template, layers=job.run(output, masks))
                output.finish()
            (staging / BUDGET_FILE).write_text(written.to_json(), encoding="utf-8")
    return PruneResult(
        budget=written,
        skipped=skipped_tensors(checkpoint, layers, skipped),
        out=None if out is None else Path(out),
        masks=job.masks,
        seconds=time.perf_counter() - started,
    )


def _checked_options(
    sparsity: float | None, method: str, pattern: str | None, budget: Budget | None
) -> tuple[int, int] | None:
    """Check that exactly one of the three says how much goes; return n and m of the pattern, the budget's too."""
    if sum(option is not None for option in (sparsity, pattern, budget)) != 1:
        raise ValueError("prune(): pass one of sparsity, pattern and budget")
    if method not in METHODS:
        raise ValueError(f"prune(): method must be one of {', '.join(METHODS)}, not {method!r}")
    if sparsity is not None:
        check_sparsity(sparsity)
    if budget is not None:
        if not isinstance(budget, Budget):
            raise TypeError(f"prune(): budget must be a Budget, as Budget.from_json reads, not {type(budget).__name__}")
        pattern = budget.pattern
    elif pattern is not None and method not in ("spectral_budget", "magnitude"):
        raise ValueError(f"prune(): a pattern is chosen by magnitude, not by method={method!r}")
    if pattern is None:
        return None
    n_of_m = parsed_pattern(pattern)
    if n_of_m is None:
        raise ValueError(f"prune(): pattern must be 'n:m' with 1 <= n <= m <= 64, not {pattern!r}")
    return n_of_m


def _prunable(
    layers: list[Layer],
    skipped: dict[str, str],
    embeddings: bool,
    n_of_m: tuple[int, int] | None,
    budget: Budget | None,
) -> list[Layer]:
    """Leave out what stays dense, with the reason."""
    budgeted = None if budget is None else {row.name: row for row in budget}
    chosen = []
    for layer in layers:
        reason = _reason_to_skip(layer, embeddings, n_of_m, budgeted)
        if reason is None:
            chosen.append(layer)
        else:
            skipped[layer.name] = reason
    if budgeted is not None:
        missing = budgeted.keys() - {layer.name for layer in chosen}
        if missing:
            name = min(missing)
            reason = skipped.get(name, "which is no layer of this checkpoint")
            raise ValueError(f"prune(): the budget names {name!r}, {reason}")
    return chosen


def _reason_to_skip(
    layer: Layer, embeddings: bool, n_of_m: tuple[int, int] | None, budgeted: Mapping[str, LayerBudget] | None
) -> str | None:
    if budgeted is not None:
        row = budgeted.get(layer.name)
        if row is None:
            return "not in the budget"
        if row.shape != layer.tensor_shape:
            raise ValueError(f"prune(): the budget has shape {row.shape} for {layer.name}, not {layer.tensor_shape}")
        if n_of_m is not None:
            n, m = n_of_m
            if layer.shape[1] % m or row.pruned * m != layer.size * (m - n):
                raise ValueError(
                    f"prune(): the budget's pattern {n}:{m} does not prune {row.pruned} entries of {layer.name}, whose "
                    f"shape is {layer.shape}"
                )
        return None
    if not embeddings and is_embedding_or_head(layer.name, layer.kind):
        return "embedding or output head (embeddings=True prunes them)"
    if n_of_m is not None:
        if layer.name.endswith("kernel"):
            return "stored as (in, out): a pattern runs along the input features"
        if layer.shape[1] % n_of_m[1]:
            return f"rows of {layer.shape[1]} entries cannot be cut into groups of {n_of_m[1]}"
    return None


def _spectra(
    checkpoint: Checkpoint,
    layers: list[Layer],
    tol: float,
    seed: int,
    device: str | None,
    threads: int | None,
    progress: bool,
) -> dict[str, LayerReport]:
    names = {layer.name for layer in layers}
    analysis = analyze(
        checkpoint,
        include=names.__contains__,
        views=WHOLE,
        tol=tol,
        seed=seed,
        device=device,
        threads=threads,
        progress=progress,
    )
    for tensor in analysis.skipped:
        if tensor.name in names:
            raise ValueError(f"prune(): {tensor.name}: {tensor.reason}")
    return {row.name: row for row in analysis}


def _scales(layers: list[Layer], reports: Mapping[str, LayerReport], method: str, sparsity: float) -> list[float]:
    """Factors of the magnitudes: one over the layer weights of the regime."""
    regime = regime_for(sparsity, BERLYAND2026)
    signal = regime.signal if method == "spectral_budget" else method
    values = [getattr(reports[layer.name], "hill_alpha" if signal == "hill" else signal) for layer in layers]
    weights = layer_weights(values, sparsity, regime, [default_layer_type(layer.name) for layer in layers])
    return [float(1 / weight) for weight in weights]


@dataclass
class _Job:
    """Goes through the layers once, in the order of the checkpoint."""

    checkpoint: Checkpoint
    layers: list[Layer]
    plan: MaskPlan
    reports: Mapping[str, LayerReport]
    masks: dict[str, Any] | None

    def run(self, output: CheckpointOutput | None, masks: SafetensorsWriter | None) -> tuple[LayerBudget, ...]:
        """Hash and write one layer in the background while the mask of the next is made."""
        rows: list[LayerBudget] = []
        # One mask is written while the next is made; fresh pages for every layer would cost more than the masks.
        spare = [np.empty(max(layer.size for layer in self.layers), np.bool_) for _ in range(2)]
        with ThreadPoolExecutor(1) as hasher, ThreadPoolExecutor(1) as writer:
            writing: Future[None] | None = None
            names = prefetched((layer.name for layer in self.layers), self.checkpoint)
            for layer, name in zip(self.layers, names, strict=True):
                tensor = self.checkpoint.read(name)
                entries = stored_rows(tensor, layer)
                content = hasher.submit(content_hash, entries)
                keep = spare[len(rows) % 2][: layer.size].reshape(entries.shape)
                self.plan.mask(layer, entries, keep)
                if self.masks is not None:
                    self.masks[layer.name] = like(keep.reshape(layer.tensor_shape).copy(), tensor)
                rows.append(self._row(layer, int(keep.size - np.count_nonzero(keep)), content.result()))
                if writing is not None:
                    writing.result()
                writing = writer.submit(self._write, layer, entries, keep, output, masks)
            if writing is not None:
                writing.result()
        return tuple(rows)

    def _write(
        self,
        layer: Layer,
        entries: NDArray[Any],
        keep: NDArray[np.bool_],
        output: CheckpointOutput | None,
        masks: SafetensorsWriter | None,
    ) -> None:
        if masks is not None:
            masks.write(layer.name, packed(keep))
        if output is not None:
            output.write(layer.name, masked_chunks(entries, keep))
        self.checkpoint.release(layer.name)

    def _row(self, layer: Layer, pruned: int, content: str) -> LayerBudget:
        report = self.reports.get(layer.name)
        return LayerBudget(
            layer.name,
            layer.kind,
            layer.tensor_shape,
            layer.dtype,
            pruned=pruned,
            sparsity=pruned / layer.size,
            sigma_plus=None if report is None else report.sigma_plus,
            sigma_plus_error=None if report is None else report.sigma_plus_error,
            rank=None if report is None else report.spikes,
            content=content,
        )


def content_hash(entries: NDArray[Any]) -> str:
    """Return the hash of a contiguous tensor's bytes, as a budget gives it."""
    return f"sha256:{hashlib.sha256(entries.reshape(-1).view(np.uint8).data).hexdigest()}"


def masked_chunks(entries: NDArray[Any], keep: NDArray[np.bool_]) -> Iterator[memoryview]:
    """Yield the bytes of the entries that are kept, zeros for the others."""
    bits = entries.reshape(-1).view(f"u{entries.itemsize}")
    flat = keep.reshape(-1)
    for at in range(0, bits.size, CHUNK_ENTRIES):
        dense = bits[at : at + CHUNK_ENTRIES]
        yield np.multiply(dense, flat[at : at + CHUNK_ENTRIES], dtype=dense.dtype).view(np.uint8).data
