"""Cases, contenders and the stopwatch: every ratio is taken within one run, against the contender named first."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from mpfast import _core

__all__ = ["Case", "Contender", "Row", "accuracy_markdown", "machine", "markdown", "measure", "to_json"]

# Seconds: threads of a BLAS go on looking for work after a call, and the next contender must not pay for them; and what
# counts as a call of milliseconds.
PAUSE = 0.1


QUICK = 0.1


@dataclass(frozen=True)
class Contender:
    """One way to do the job of a case.

    ``error`` turns the result of ``run`` into a relative error against an independent reference; None where there is
    nothing to be wrong. ``requires`` names the module it needs, if it is optional.
    """

    name: str
    run: Callable[[], Any]
    error: Callable[[Any], float] | None = None
    requires: str | None = None

    @property
    def available(self) -> bool:
        """Whether the module it needs is installed."""
        return self.requires is None or importlib.util.find_spec(self.requires) is not None


@dataclass(frozen=True)
class Case:
    """One job and its contenders; ours is the first."""

    name: str
    title: str
    contenders: tuple[Contender, ...]


@dataclass(frozen=True)
class Row:
    """One line of a result table: median seconds, times slower than ours, error."""

    case: str
    contender: str
    seconds: float
    ratio: float
    error: float | None


def measure(case: Case, *, repeats: int = 7, budget: float = 20.0) -> list[Row]:
    """Time the contenders of a case turn by turn, so that drift of the machine hits all alike.

    A contender has ``repeats`` turns, fewer when they take more than ``budget`` seconds. Each turn begins with a pause;
    one of milliseconds is several calls, of which the first, on cold caches and sleeping cores, does not count.
    """
    contenders = [c for c in case.contenders if c.available]
    times: dict[str, list[float]] = {c.name: [] for c in contenders}
    errors: dict[str, float | None] = {}
    quick: dict[str, bool] = {}
    for contender in contenders:
        seconds, result = _timed(contender)
        errors[contender.name] = None if contender.error is None else contender.error(result)
        quick[contender.name] = seconds < QUICK
        if seconds > budget / 2:
            times[contender.name].append(seconds)
    for _ in range(repeats):
        for contender in contenders:
            spent = times[contender.name]
            if sum(spent) > budget:
                continue
            time.sleep(PAUSE)
            if quick[contender.name]:
                spent += [_timed(contender)[0] for _ in range(6)][1:]
            else:
                spent.append(_timed(contender)[0])
    median = {name: statistics.median(t) for name, t in times.items()}
    ours = median[contenders[0].name]
    return [Row(case.name, c.name, median[c.name], median[c.name] / ours, errors[c.name]) for c in contenders]


def _timed(contender: Contender) -> tuple[float, Any]:
    start = time.perf_counter()
    result = contender.run()
    return time.perf_counter() - start, result


def machine() -> dict[str, str]:
    """Describe this machine and the libraries that take part."""
    record = {
        "cpu": _cpu_model(),
        "cores": str(_core.default_threads()),
        "isa": _core.isa(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "mpfast": metadata.version("mpfast"),
        "numpy": np.__version__,
        "blas": _core.blas(),
    }
    for name in ("scipy", "sklearn", "torch"):
        if importlib.util.find_spec(name) is not None:
            record[name] = str(__import__(name).__version__)
    return record


def markdown(rows: Sequence[Row]) -> str:
    """Result table: seconds, time over ours, relative error."""
    lines = ["| case | contender | time | x ours | error |", "|---|---|---|---|---|"]
    for row in rows:
        error = "" if row.error is None else f"{row.error:.1e}"
        lines.append(f"| {row.case} | {row.contender} | {row.seconds * 1e3:.1f} ms | {row.ratio:.2f} | {error} |")
    return "\n".join(lines)


def accuracy_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Table of the error of sigma_plus seen over many seeds, and of the one reported."""
    lines = ["| family | seeds | RMS error | reported | reported / seen | time |", "|---|---|---|---|---|---|"]
    for row in rows:
        m, n = row["shape"]
        seen, reported = row["rms_error"], row["reported_error"]
        lines.append(
            f"| {row['family']}, {m} x {n} | {row['seeds']} | {100 * seen:.2f} % | {100 * reported:.2f} % "
            f"| {reported / seen:.2f} | {1e3 * row['seconds']:.0f} ms |"
        )
    return "\n".join(lines)


def to_json(rows: Sequence[Row]) -> str:
    """Rows and machine as JSON text."""
    document = {"schema": "mpfast.benchmark/1", "machine": machine(), "rows": [asdict(row) for row in rows]}
    return json.dumps(document, indent=1) + "\n"


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return f"{line.split(':', 1)[1].strip()}, {os.cpu_count()} logical CPUs"
    return platform.processor() or platform.machine()
