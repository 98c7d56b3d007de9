"""The rows of the tables of reconstruction.py: what is to go, how, and with which damping."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from regularisations import DIAGONAL, HALF, MEAN, REGULARISATIONS, Moments
from subjects import Task

from mpfast import masks, reconstruct
from mpfast.masks import input_norm_saliency

Weights = dict[str, torch.Tensor]
# Of all layers: weights and moments in, new weights out.
Compress = Callable[[Weights, Moments, dict[str, reconstruct.Factor]], Weights]

MAGNITUDE = "magnitude, mask only"
BY_LAYER = "magnitude times input norm, mask only"
BY_ROW = "magnitude times input norm, row by row (Wanda), mask only"
REFIT = "OBS + 4 steps"
POOLED = "low rank, pooled, with gradients"


@dataclass(frozen=True)
class Case:
    """One row: what is to go, how, and with which damping."""

    goal: str
    method: str
    damping: str | None
    compress: Compress
    few: bool = False
    # What is made before the clock runs.
    eigenvectors: bool = False
    gradients: bool = False


def options_of(goal: str) -> dict[str, object]:
    return {"pattern": goal} if ":" in goal else {"sparsity": float(goal.rstrip(" %")) / 100}


def largest(scores: torch.Tensor, goal: str, by_row: bool) -> torch.Tensor:
    """The mask of the largest scores of a layer, or of each of its rows."""
    if ":" in goal:
        return masks.n_m(scores, *map(int, goal.split(":")))
    share = options_of(goal)["sparsity"]
    if not by_row:
        return masks.magnitude(scores, share)
    keep = torch.ones_like(scores, dtype=torch.bool)
    gone = scores.abs().topk(int(share * scores.shape[1]), dim=1, largest=False).indices
    return keep.scatter_(1, gone, False)


def masked(goal: str, method: str) -> Case:
    """Weights that stay as they are where they are largest, by themselves or times the norm of their inputs."""

    def compress(weights: Weights, moments: Moments, _: object) -> Weights:
        found = {}
        for name, w in weights.items():
            score = w if method == MAGNITUDE else torch.from_numpy(input_norm_saliency(w, moments[name]))
            found[name] = w * largest(score, goal, method == BY_ROW)
        return found

    return Case(goal, method, None, compress)


def fitted(fit: Callable[[torch.Tensor, reconstruct.Factor], reconstruct.Fit]) -> Compress:
    def compress(weights: Weights, _: object, factors: dict[str, reconstruct.Factor]) -> Weights:
        return {name: fit(w, factors[name]).weights for name, w in weights.items()}

    return compress


def pruned(goal: str, method: str, damping: str, *, few: bool = False) -> Case:
    kind, _, refit = method.partition(" + ")
    steps = 4 if refit else 0
    name = {"OBS": "obs", "gradual": "gradual", "ADMM": "admm"}[kind]
    options = {**options_of(goal), "method": name, "refit": steps, "threads": 1}
    compress = fitted(lambda w, factor: reconstruct.prune(w, factor, **options))
    return Case(goal, method, damping, compress, few, eigenvectors=name == "admm")


def pooled(share: float, task: Task | None) -> Compress:
    """Products of two factors, their ranks from one budget, by the gradients of a task where there is one."""

    def compress(weights: Weights, _: object, factors: dict[str, reconstruct.Factor]) -> Weights:
        layers = {name: (w, factors[name]) for name, w in weights.items()}
        found = reconstruct.lowrank_pooled(layers, share, gradients=task.gradients if task else None)
        return {name: w if found[name] is None else found[name][0] @ found[name][1] for name, w in weights.items()}

    return compress


def of_rank(share: float, of_outputs: bool) -> Compress:
    """Every layer with this share of its parameters, in two factors: the best ones for its outputs, or for itself."""

    def compress(weights: Weights, _: object, factors: dict[str, reconstruct.Factor]) -> Weights:
        found = {}
        for name, w in weights.items():
            rank = int(share * w.numel() / sum(w.shape))
            left, right = reconstruct.lowrank(w, factors[name] if of_outputs else np.eye(w.shape[1]), rank)
            found[name] = left @ right
        return found

    return compress


def low_rank(task: Task, goal: str) -> Iterable[Case]:
    share = 1 - float(goal.partition(" %")[0]) / 100
    yield Case(goal, POOLED, MEAN, pooled(share, task), gradients=True)
    yield Case(goal, "low rank, pooled", MEAN, pooled(share, None))
    yield Case(goal, "low rank, the same share of each layer", MEAN, of_rank(share, of_outputs=True))
    yield Case(goal, "low rank, SVD of the weights", None, of_rank(share, of_outputs=False))


def rounded(bits: int) -> Case:
    fit = fitted(lambda w, f: reconstruct.quantize(w, f, bits, threads=1))
    return Case(f"{bits} bits in groups of 64", "quantize", MEAN, fit)


def without_neurons(percent: int) -> Case:
    """Without this share of the inputs of the layers that neurons feed: those of the most inputs."""

    def compress(weights: Weights, _: object, factors: dict[str, reconstruct.Factor]) -> Weights:
        most = max(w.shape[1] for w in weights.values())
        fed = {name: w for name, w in weights.items() if w.shape[1] == most}
        count = percent * most // 100
        fits = {name: reconstruct.drop_inputs(w, factors[name], count, threads=1) for name, w in fed.items()}
        return weights | {name: fit.weights for name, fit in fits.items()}

    return Case(f"{percent} % of the neurons", "drop_inputs", MEAN, compress)


def minilm_cases(task: Task) -> Iterable[Case]:
    """MiniLM has seen 15 to 62 rows for each input: 1 % of the mean, with a refit as without."""
    for goal in ("2:4", "60 %", "70 %", "50 %", "30 %", "4:8"):
        yield pruned(goal, REFIT, MEAN)
        yield pruned(goal, "OBS", MEAN)
        yield pruned(goal, "gradual + 4 steps", MEAN)
        yield pruned(goal, "ADMM + 4 steps", MEAN)
        for method in (BY_LAYER, MAGNITUDE) if ":" in goal else (BY_ROW, BY_LAYER, MAGNITUDE):
            yield masked(goal, method)
    yield from (pruned(goal, REFIT, DIAGONAL) for goal in ("2:4", "60 %"))
    for goal in ("40 % fewer parameters", "20 % fewer parameters", "60 % fewer parameters"):
        yield from low_rank(task, goal)
    yield from (rounded(bits) for bits in (3, 4))
    yield from (without_neurons(percent) for percent in (25, 50))


def smollm2_cases(task: Task) -> Iterable[Case]:
    """SmolLM2 has seen 4 to 11 rows for each input: 15 % of each entry for OBS alone, 30 % with a refit."""
    for goal in ("2:4", "60 %"):
        yield pruned(goal, REFIT, DIAGONAL)
        yield pruned(goal, "OBS", HALF)
    yield pruned("60 %", REFIT, DIAGONAL, few=True)
    for goal in ("2:4", "60 %"):
        yield masked(goal, BY_LAYER)
        yield pruned(goal, REFIT, MEAN)
    yield pruned("60 %", REFIT, MEAN, few=True)
    yield replace(masked("60 %", BY_LAYER), few=True)
    yield masked("2:4", MAGNITUDE)
    yield from (rounded(bits) for bits in (3, 4))
    yield from (without_neurons(percent) for percent in (25, 50))
    yield from (pruned(goal, "OBS", name) for goal in ("2:4", "60 %") for name in (MEAN, DIAGONAL))
    yield masked("60 %", BY_ROW)
    for goal in ("50 %", "70 %", "4:8", "30 %"):
        yield pruned(goal, REFIT, DIAGONAL)
        yield pruned(goal, "OBS", HALF)
        yield masked(goal, BY_LAYER if ":" in goal else BY_ROW)
    for goal in ("20 % fewer parameters", "40 % fewer parameters", "60 % fewer parameters"):
        yield from low_rank(task, goal)
    yield from (pruned("60 %", REFIT, name, few=True) for name in REGULARISATIONS if name not in (MEAN, DIAGONAL))
    yield from (pruned("60 %", f"{kind} + 4 steps", DIAGONAL, few=True) for kind in ("gradual", "ADMM"))
    yield pruned("60 %", "gradual + 4 steps", DIAGONAL)
    yield pruned("60 %", "ADMM + 4 steps", DIAGONAL)


CASES: dict[str, Callable[[Task], Iterable[Case]]] = {"minilm": minilm_cases, "smollm2": smollm2_cases}
