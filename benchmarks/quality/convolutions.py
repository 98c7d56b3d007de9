"""A convolutional network on scikit-learn's digits, compressed without training: masks alone against refitted weights.

    pip install '.[test]' torch scikit-learn
    python benchmarks/quality/convolutions.py --out benchmarks/results/quality/convolutions

The network and its training are those of digits.py: 1200 images to train with, accuracy and loss on the other 597, five
seeds of images and weights. Convolutions are matrices over unfolded inputs, whose second moments come from the training
images. The first one, with nine weights for each filter, stays as it is. Every layer is compressed for itself with the
moments of the dense network, damped as `mpfast.models.damping_for` says.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from importlib.metadata import version
from pathlib import Path

import digits
import numpy as np
import torch
from compressions import BY_LAYER, MAGNITUDE, largest, options_of
from sklearn.datasets import load_digits
from tables import table

from mpfast import reconstruct
from mpfast.integrations.torch import SecondMoments
from mpfast.masks import input_norm_saliency
from mpfast.models import damping_for

GOALS = ("50 %", "70 %", "90 %", "2:4")
FITS = {
    "OBS": ("obs", 0),
    "OBS + 4 steps": ("obs", 4),
    "gradual + 4 steps": ("gradual", 4),
    "ADMM + 4 steps": ("admm", 4),
}
METHODS = (MAGNITUDE, BY_LAYER, *FITS)
LEAST_INPUTS = 16

Row = dict[str, object]


def compressed(w: torch.Tensor, moment: np.ndarray, rows_per_input: float, goal: str, method: str) -> torch.Tensor:
    """A layer's weights, (out, in)."""
    if method in FITS:
        name, steps = FITS[method]
        damping, diagonal = damping_for(name, steps, None, rows_per_input)
        factor = reconstruct.Factor(moment, damping, diagonal=diagonal, threads=1)
        return reconstruct.prune(w, factor, **options_of(goal), method=name, refit=steps, threads=1).weights
    score = w if method == MAGNITUDE else torch.from_numpy(input_norm_saliency(w, moment))
    return w * largest(score, goal, by_row=False)


@torch.no_grad()
def one_seed(seed: int) -> list[Row]:
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(1000 + seed).permutation(len(images))
    x = torch.tensor(images[order] / 8 - 1, dtype=torch.float32).reshape(-1, 1, 8, 8)
    y = torch.tensor(labels[order])
    with torch.enable_grad():
        model = digits.trained(digits.MODELS["CNN"], digits.Loader(x[:1200], y[:1200], seed), seed)
    with SecondMoments(model, folds=1, threads=1) as moments:
        model(x[:1200])
    layers = {name: model.get_submodule(name) for name in moments if len(moments[name]) >= LEAST_INPUTS}
    dense = {name: module.weight.clone() for name, module in layers.items()}

    def row(goal: str, method: str) -> Row:
        logits = model(x[1200:])
        accuracy = float((logits.argmax(1) == y[1200:]).float().mean())
        loss = float(torch.nn.functional.cross_entropy(logits, y[1200:]))
        return {"seed": seed, "goal": goal, "method": method, "accuracy": accuracy, "loss": loss}

    rows = [row("dense", "")]
    for goal in GOALS:
        for method in METHODS:
            for name, module in layers.items():
                w = dense[name].reshape(len(dense[name]), -1)
                new = compressed(w, moments[name].numpy(), moments.rows_per_input[name], goal, method)
                module.weight.copy_(new.reshape(module.weight.shape))
            rows.append(row(goal, method))
    return rows


def scores(rows: list[Row], goal: str, method: str, of: str) -> np.ndarray:
    return np.array([row[of] for row in rows if (row["goal"], row["method"]) == (goal, method)])


def with_error(values: np.ndarray, digits: int, sign: str = "") -> str:
    return f"{values.mean():{sign}.{digits}f} ± {values.std(ddof=1) / np.sqrt(len(values)):.{digits}f}"


def report(rows: list[Row]) -> list[str]:
    seeds = len({row["seed"] for row in rows})
    dense, loss = scores(rows, "dense", "", "accuracy"), scores(rows, "dense", "", "loss")
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "scikit-learn", "numpy", "mpfast"))
    lines = [
        "# A convolutional network on digits, compressed without training",
        "",
        f"Made by `python benchmarks/quality/convolutions.py` on {datetime.date.today()}: {seeds} seeds, accuracy in "
        "percent and loss on 597 images that were not trained with, ± one standard error over seeds, differences seed "
        f"by seed. {versions}.",
        "",
        f"Dense: {with_error(100 * dense, 1)}, loss {with_error(loss, 3)}.",
        "",
    ]
    for goal in GOALS:
        masked = scores(rows, goal, MAGNITUDE, "accuracy")
        cells = []
        for method in METHODS:
            here = scores(rows, goal, method, "accuracy")
            change = with_error(100 * (here - masked), 1, "+") if method != MAGNITUDE else ""
            losses = with_error(scores(rows, goal, method, "loss"), 3)
            cells.append([method, with_error(100 * here, 1), with_error(100 * (here - dense), 1, "+"), change, losses])
        lines += [f"## {goal}", "", *table(["", "accuracy", "to dense", "to magnitude", "loss"], cells)]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="writes OUT.md and OUT.json")
    parser.add_argument("--seeds", type=int, default=digits.SEEDS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    for seed in range(options.seeds):
        rows += one_seed(seed)
        print(f"seed {seed}", file=sys.stderr)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.with_suffix(".md").write_text("\n".join(report(rows)))
    options.out.with_suffix(".json").write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")


if __name__ == "__main__":
    main()
