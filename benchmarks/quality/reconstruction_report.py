"""The tables of reconstruction.py: what was asked of each method, what the choosing half says, and every row."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
from compressions import POOLED, REFIT
from regularisations import DIAGONAL, HALF, MEAN
from subjects import MiniLM, Task
from tables import processor, table

Row = dict[str, object]


@dataclass(frozen=True)
class Bar:
    """What the means over the seeds of a row should reach: perplexity at most, other scores at least, and seconds."""

    goal: str
    method: str
    damping: str
    scores: dict[str, float]
    seconds: float | None = None
    few: bool = False


BARS: dict[str, tuple[Bar, ...]] = {
    "minilm": (
        Bar("2:4", REFIT, MEAN, {"MRR": 0.705, "cosine": 0.92}, 5),
        Bar("60 %", "gradual + 4 steps", MEAN, {"MRR": 0.705, "cosine": 0.91}, 10),
        Bar("60 %", "ADMM + 4 steps", MEAN, {"MRR": 0.710, "cosine": 0.93}, 30),
        Bar("70 %", "ADMM + 4 steps", MEAN, {"MRR": 0.675, "cosine": 0.85}),
        Bar("40 % fewer parameters", POOLED, MEAN, {"MRR": 0.675, "cosine": 0.87}),
        Bar("25 % of the neurons", "drop_inputs", MEAN, {"MRR": 0.730, "cosine": 0.98}),
        Bar("3 bits in groups of 64", "quantize", MEAN, {"MRR": 0.725, "cosine": 0.945}),
    ),
    "smollm2": (
        Bar("2:4", "OBS", HALF, {"prose": 37, "code": 21.5}, 5),
        Bar("2:4", REFIT, DIAGONAL, {"prose": 30.5, "code": 17}, 30),
        Bar("60 %", "OBS", HALF, {"prose": 38, "code": 21.5}),
        Bar("60 %", REFIT, DIAGONAL, {"prose": 31.2, "code": 19.5}),
        Bar("60 %", REFIT, DIAGONAL, {"prose": 43, "code": 27}, few=True),
        Bar("60 %", "ADMM + 4 steps", DIAGONAL, {"prose": 43, "code": 27}, few=True),
    ),
}


def value(task: Task, row: Row, part: str) -> float:
    """A score as it is reported: losses as perplexities."""
    found = float(row[part])
    return found if isinstance(task, MiniLM) else float(np.exp(found))


def shown(task: Task, score: float) -> str:
    return f"{score:.3f}" if isinstance(task, MiniLM) else f"{score:.1f}"


def spread(task: Task, rows: list[Row], part: str) -> str:
    """The mean over seeds, and from where to where."""
    values = [value(task, row, part) for row in rows]
    mean = shown(task, float(np.mean(values)))
    return mean if len(values) == 1 else f"{mean} ({shown(task, min(values))} to {shown(task, max(values))})"


def against_bars(task: Task, rows: list[Row], quick: bool) -> list[str]:
    """The bars, and what was reached."""
    if quick:
        return []
    lines = []
    for bar in BARS[task.name]:
        same = of(rows, bar.goal, bar.few, bar.method, bar.damping)
        if task.name == "minilm":
            same = [row for row in same if row["seed"] == 0]  # all of the calibration texts
        if not same:
            continue
        better: Callable[[float, float], bool] = np.greater_equal if isinstance(task, MiniLM) else np.less_equal
        met = [better(np.mean([value(task, row, part) for row in same]), asked) for part, asked in bar.scores.items()]
        seconds = float(np.mean([row["seconds"] for row in same]))
        met += [] if bar.seconds is None else [seconds <= bar.seconds]
        asked = ", ".join(shown(task, score) for score in bar.scores.values())
        lines.append(
            [
                f"{bar.goal}{task.tokens[bar.few]}",
                bar.method,
                ", ".join(spread(task, same, part) for part in bar.scores),
                asked,
                f"{seconds:.1f}" + ("" if bar.seconds is None else f" of {bar.seconds:g}"),
                str(len(same)),
                "yes" if all(met) else "no",
            ]
        )
    parts = ", ".join(BARS[task.name][0].scores)
    words = "at least" if isinstance(task, MiniLM) else "at most"
    heads = ["", "method", parts, f"asked for, {words}", "CPU s", "seeds", "met"]
    return ["## What was asked for", "", *table(heads, lines)]


def of(rows: list[Row], goal: str, few: bool, method: str, damping: str | None) -> list[Row]:
    wanted = {"goal": goal, "few": few, "method": method, "damping": damping}
    return [row for row in rows if all(row[key] == word for key, word in wanted.items())]


def chosen(task: Task, rows: list[Row]) -> list[str]:
    """For each goal what is best on the choosing half, in the mean of the seeds that all its methods have."""
    lines = []
    for goal, few in goals_of(rows):
        found = methods_of(rows, goal, few)
        if len(found) < 2:
            continue
        common = set.intersection(*({row["seed"] for row in same} for same in found.values()))
        means = {
            key: np.mean([row["choosing"] for row in same if row["seed"] in common]) for key, same in found.items()
        }
        method, damping = (max if isinstance(task, MiniLM) else min)(means, key=means.__getitem__)
        lines.append([f"{goal}{task.tokens[few]}", method, damping, *summary(task, found[method, damping])])
    heads = ["", "best of the choosing half", "damping", *summary_heads(task)]
    return ["## Chosen on one half, reported on the other", "", *table(heads, lines)]


def summary_heads(task: Task) -> list[str]:
    return ["choosing", *task.parts, *(["cosine"] if isinstance(task, MiniLM) else []), "seeds"]


def summary(task: Task, same: list[Row]) -> list[str]:
    """The means over seeds of what was asked in the same way, and how many seeds there are."""
    return [*(spread(task, same, part) for part in summary_heads(task)[:-1]), str(len(same))]


def goals_of(rows: list[Row]) -> list[tuple[str, bool]]:
    return list(dict.fromkeys((str(row["goal"]), bool(row["few"])) for row in rows))


def methods_of(rows: list[Row], goal: str, few: bool) -> dict[tuple[str, str], list[Row]]:
    """The rows of a goal by method and damping."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if (row["goal"], row["few"]) == (goal, few):
            found.setdefault((str(row["method"]), str(row["damping"] or "-")), []).append(row)
    return found


def every_goal(task: Task, rows: list[Row]) -> list[str]:
    """The means over seeds, where there are several, and every row."""
    unit = "" if isinstance(task, MiniLM) else ", nats"
    heads = ["", "damping", "choosing", *(f"{part} (to dense{unit})" for part in task.parts)]
    heads += [*(["cosine"] if isinstance(task, MiniLM) else []), "seed", "CPU s"]
    lines: list[str] = []
    for goal, few in goals_of(rows):
        found = methods_of(rows, goal, few)
        several = {key: same for key, same in found.items() if len(same) > 1}
        means = [[*key, *summary(task, same)] for key, same in several.items()]
        cells = []
        for (method, damping), same in found.items():
            for row in same:
                line = [method, damping, shown(task, value(task, row, "choosing"))]
                for part in task.parts:
                    change = f"{row[f'{part} change']:+.3f} ± {row[f'{part} error']:.3f}"
                    line.append(f"{shown(task, value(task, row, part))} ({change})")
                line += [f"{row['cosine']:.3f}"] if isinstance(task, MiniLM) else []
                cells.append([*line, str(row["seed"]), f"{row['seconds']:.1f}"])
        lines += [f"## {goal}{task.tokens[few]}", ""]
        if several:
            lines += [
                "Means over seeds:",
                "",
                *table(["", "damping", *summary_heads(task)], means),
                "Seed by seed:",
                "",
            ]
        lines += table(heads, cells)
    return lines


def versions_of(task: Task) -> str:
    packages = ["numpy", "torch", "transformers", *task.packages, "mpfast"]
    return f"Python {platform.python_version()}, {', '.join(f'{name} {version(name)}' for name in packages)}."


def report(task: Task, rows: list[Row], quick: bool) -> list[str]:
    score = "MRR" if isinstance(task, MiniLM) else "perplexity"
    parts = ("choosing", *task.parts)
    return [
        f"# {task.title}",
        "",
        f"Made by `python benchmarks/quality/reconstruction.py --model {task.name}{' --quick' if quick else ''}` on "
        f"{datetime.date.today()}: {task.describe()}. Forward passes in bfloat16 autocast.",
        "",
        f"{processor()}, one thread, on a machine with a load of {os.getloadavg()[0]:.0f} for {os.cpu_count()} "
        "processors: seconds are processor time for all layers, without moments, gradients and factors. "
        + versions_of(task),
        "",
        "Damping: 1 % of the mean diagonal entry of the second moment, added to all of them, or a share of each. "
        "Several seeds: the mean, and from where to where.",
        "",
        f"Dense, {score}: " + ", ".join(f"{part} {shown(task, value(task, rows[0], part))}" for part in parts) + ".",
        "",
        *against_bars(task, rows[1:], quick),
        *chosen(task, rows[1:]),
        *every_goal(task, rows[1:]),
    ]
