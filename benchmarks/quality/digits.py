"""Accuracy against sparsity on scikit-learn's digits, for the budgets and for prune and restore, with error bars.

    pip install '.[test]' torch scikit-learn
    python benchmarks/quality/digits.py --out benchmarks/results/quality/digits

Trains an MLP, a CNN and a small vision transformer with five seeds each, on 1200 images of 1797; prunes them to rising
sparsities by each method, once without and once with fine-tuning after every step; and measures the accuracy on the
other 597, which nothing was tuned on. Every method gets the same fine-tuning; prune and restore has its selection phase
on top of it, and that many batches more.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits

from mpfast import masks
from mpfast.integrations.torch import FineTuning, PruneAndRestore, Selection
from mpfast.masks import linear_map

SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
SEEDS = 5
BATCH = 50
EPOCHS = 40
TUNING = FineTuning(lr=0.02, min_lr_ratio=0.1, epochs=3)
SELECTION = Selection(lr=4e-4, batches=24)

Masks = dict[str, torch.Tensor]


class Block(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.attn_qkv = torch.nn.Linear(width, 3 * width)
        self.attn_out = torch.nn.Linear(width, width)
        self.mlp_up = torch.nn.Linear(width, 2 * width)
        self.mlp_down = torch.nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.unflatten(-1, (4, -1)).transpose(1, 2) for part in self.attn_qkv(self.norm1(x)).chunk(3, -1))
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.attn_out(mixed)
        return x + self.mlp_down(torch.nn.functional.gelu(self.mlp_up(self.norm2(x))))


class Vit(torch.nn.Module):
    """Patches of 2 x 2 pixels, width 64, two blocks."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.patches = torch.nn.Conv2d(1, width, 2, stride=2)
        self.places = torch.nn.Parameter(0.1 * torch.randn(16, width))
        self.blocks = torch.nn.Sequential(Block(width), Block(width))
        self.norm = torch.nn.LayerNorm(width)
        self.head = torch.nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.places
        return self.head(self.norm(self.blocks(tokens)).mean(dim=1))


def mlp() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Linear(64, 256),
        torch.nn.ReLU(),
        torch.nn.Linear(256, 256),
        torch.nn.ReLU(),
        torch.nn.Linear(256, 10),
    )


def cnn() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 32, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(32, 32, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(32, 64, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(1024, 10),
    )


MODELS: dict[str, Callable[[], torch.nn.Module]] = {"MLP": mlp, "CNN": cnn, "ViT": Vit}


def loss(model: torch.nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])


class Loader:
    """Shuffled batches, another order each epoch, the same for the same seed."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor, seed: int) -> None:
        self.x, self.y = x, y
        self.generator = torch.Generator().manual_seed(seed)

    def __iter__(self):
        order = torch.randperm(len(self.x), generator=self.generator)
        for rows in order.split(BATCH):
            yield self.x[rows], self.y[rows]


def alpha_budget(weights: Masks, sparsity: float, within: Masks) -> Masks:
    """AlphaPruning's rule, with Hill exponents of the weights as they are."""
    exponents = masks.spectral_signals(weights, "hill")
    sizes = [w.numel() for w in weights.values()]
    gone = [int((~within[name]).sum()) / within[name].numel() for name in weights]
    shares = linear_map(list(exponents.values()), sizes, sparsity, floors=gone)
    return masks.magnitude(weights, dict(zip(weights, shares, strict=True)), within=within)


METHODS: dict[str, Callable[[Masks, float, Masks], Masks]] = {
    "global magnitude": lambda w, s, within: masks.magnitude(w, s, within=within),
    "layer-uniform magnitude": lambda w, s, within: masks.magnitude(w, s, scope="layer", within=within),
    "alpha budget": alpha_budget,
    "spectral budget (SEB)": lambda w, s, within: masks.spectral_budget(w, s, within=within),
}
HYBRID = "hybrid magnitude-SER"


def accuracy(x: torch.Tensor, y: torch.Tensor) -> Callable[[torch.nn.Module], float]:
    def evaluate(model: torch.nn.Module) -> float:
        model.eval()
        with torch.no_grad():
            return float((model(x).argmax(dim=1) == y).float().mean())

    return evaluate


def trained(make: Callable[[], torch.nn.Module], loader: Loader, seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    model = make().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    for _ in range(EPOCHS):
        for batch in loader:
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()
        schedule.step()
    return model.eval()


def one_run(name: str, seed: int) -> list[dict[str, object]]:
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(1000 + seed).permutation(len(images))
    x = torch.tensor(images[order] / 8 - 1, dtype=torch.float32).reshape(-1, 1, 8, 8)
    y = torch.tensor(labels[order])
    loader = Loader(x[:1200], y[:1200], seed)
    evaluate = accuracy(x[1200:], y[1200:])
    dense = trained(MODELS[name], loader, seed)
    rows: list[dict[str, object]] = [{"model": name, "seed": seed, "method": "dense", "score": evaluate(dense)}]

    def job(tuning: FineTuning) -> PruneAndRestore:
        fresh = Loader(x[:1200], y[:1200], 100 + seed)
        return PruneAndRestore(
            copy.deepcopy(dense), fresh, loss, selection=SELECTION, fine_tuning=tuning, evaluate=evaluate
        )

    def record(method: str, tuned: bool, sparsity: float, score: float | None) -> None:
        row = {"model": name, "seed": seed, "method": method, "tuned": tuned, "sparsity": sparsity, "score": score}
        rows.append(row)

    for tuned, tuning in ((False, FineTuning(epochs=0)), (True, TUNING)):
        for method, choose in METHODS.items():
            running = job(tuning)
            for sparsity in SPARSITIES:
                found = choose(running.weights, sparsity, running.masks)
                record(method, tuned, sparsity, running.prune_to(found).score)
        for sparsity, report in zip(SPARSITIES, job(tuning).run(SPARSITIES), strict=True):
            record(HYBRID, tuned, sparsity, report.score)
    return rows


def table(rows: list[dict[str, object]], name: str, tuned: bool) -> list[str]:
    methods = [*METHODS, HYBRID]
    lines = ["| sparsity | " + " | ".join(methods) + " |", "|---" * (len(methods) + 1) + "|"]
    for sparsity in SPARSITIES:
        cells = []
        for method in methods:
            scores = scores_of(rows, name, method, tuned, sparsity)
            error = np.std(scores, ddof=1) / np.sqrt(len(scores))
            cells.append(f"{100 * np.mean(scores):.1f} ± {100 * error:.1f}")
        lines.append(f"| {sparsity:g} | " + " | ".join(cells) + " |")
    return lines


def scores_of(rows: list[dict[str, object]], name: str, method: str, tuned: bool, sparsity: float) -> np.ndarray:
    return np.array(
        [
            row["score"]
            for row in rows
            if row["model"] == name
            and row["method"] == method
            and row.get("tuned") == tuned
            and row.get("sparsity") == sparsity
        ],
        float,
    )


def plot(rows: list[dict[str, object]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, len(MODELS), figsize=(4 * len(MODELS), 6.5), sharex=True, constrained_layout=True)
    for column, name in enumerate(MODELS):
        for row, tuned in enumerate((False, True)):
            ax = axes[row][column]
            for method in [*METHODS, HYBRID]:
                scores = [scores_of(rows, name, method, tuned, sparsity) for sparsity in SPARSITIES]
                mean = [100 * s.mean() for s in scores]
                error = [100 * s.std(ddof=1) / np.sqrt(len(s)) for s in scores]
                ax.errorbar(SPARSITIES, mean, error, marker=".", capsize=2, linewidth=1, label=method)
            ax.set_title(f"{name}, {'with' if tuned else 'without'} fine-tuning", fontsize=10)
            ax.set_ylabel("accuracy, %")
            ax.grid(alpha=0.3)
    for ax in axes[1]:
        ax.set_xlabel("sparsity")
    axes[0][0].legend(fontsize=7)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="writes OUT.md, OUT.json and OUT.png")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    rows = []
    for name in MODELS:
        for seed in range(options.seeds):
            rows += one_run(name, seed)
            print(f"{name}, seed {seed}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    lines = [
        "# Accuracy against sparsity on digits",
        "",
        f"Made by `python benchmarks/quality/digits.py --out benchmarks/results/quality/digits`"
        f", {options.seeds} seeds: mean accuracy in percent on 597 images "
        "and its standard error. Sparsity is that of all Linear and Conv2d weights. Each method prunes step by step, "
        "what is pruned staying so; prune and restore may bring weights back. See the docstring for the protocol.",
        "",
    ]
    for name in MODELS:
        dense = [float(str(row["score"])) for row in rows if row["model"] == name and row["method"] == "dense"]
        lines += [f"## {name}: {100 * np.mean(dense):.1f} dense", ""]
        for tuned in (False, True):
            lines += [f"{'With' if tuned else 'Without'} fine-tuning:", "", *table(rows, name, tuned), ""]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".md").write_text("\n".join(lines))
    options.out.with_suffix(".json").write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    plot(rows, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
