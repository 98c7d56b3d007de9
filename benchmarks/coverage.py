"""Are the error bars right, and which spikes are found?

    python benchmarks/coverage.py [--matrices 16] [--runs 25] [--draws 200] [--seen FILE.jsonl] [--out FILE.md]
        [--plot FILE.svg]

Coverage: for every family of `mpfast.spectra.synthetic`, how often the edge from all singular values lies within
one and two reported standard errors of the measured one; nominal are 68.3 % and 95.4 %. The same for the families of
uneven noise, with ten signals at twice the critical size in each, where both edges are those of ``noise="auto"``:
scales are found anew from all singular values and from passes. Each matrix is measured with several seeds of the
probes, whose errors are independent of each other; beside a share stands the standard error of so many runs.

Detection: one spike of growing size in Gaussian noise, and how often it is counted. Below the critical size (m n)^(1/4)
no method can see it in the singular values; above it, it stands out more and more.

Measurements are kept in ``--seen``, a line for each, and not repeated by the next call.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from printed import machine_line, print_or_write

import mpfast
from mpfast.spectra import NoiseModel, critical_signal, family, low_rank, uneven_family
from mpfast.spectra.synthetic import FAMILIES

Draw = Callable[[str, tuple[int, int], int], NDArray[np.float64]]

FIRST_SEED = 90000
SHAPES = ((1100, 1400), (1100, 4400))  # estimated by default, and small enough for the truth
DETECTION_SHAPE = (400, 600)
STRENGTHS = (0.0, 0.6, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.6, 1.8, 2.0)


UNEVEN = ("gauss", "cols", "rows", "both", "blocks", "spread15", "t3", "outliers", "spikes40", "partly")
UNEVEN_STRENGTH = 2.0


def uneven_draw(name: str, shape: tuple[int, int], seed: int) -> NDArray[np.float64]:
    return uneven_family(name, shape, seed, UNEVEN_STRENGTH)


def seed_of(name: str, matrix: int, run: int) -> int:
    """Of the probes: no two families have the same, so that their shares are independent."""
    return int(np.random.SeedSequence([*name.encode(), matrix, run]).generate_state(1)[0])


class Runs:
    """Measurements of edges, kept in a file: {family, shape, noise, matrix, run, truth, edge, error} each."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        lines = path.read_text().splitlines() if path is not None and path.exists() else []
        self.seen = {self.key(record): record for record in map(json.loads, lines)}

    @staticmethod
    def key(record: dict[str, Any]) -> tuple[Any, ...]:
        return (*(record[name] for name in ("family", "noise", "matrix", "run")), *record["shape"])

    def of_matrix(
        self, draw_one: Draw, name: str, shape: tuple[int, int], noise: NoiseModel, matrix: int, runs: int
    ) -> list[dict[str, Any]]:
        """Those of one matrix; what is missing is measured."""
        start = {"family": name, "shape": list(shape), "noise": noise, "matrix": matrix}
        wanted = [{**start, "run": run} for run in range(runs)]
        missing = [record for record in wanted if self.key(record) not in self.seen]
        if missing:
            W = draw_one(name, shape, FIRST_SEED + matrix).astype(np.float32)
            truth = mpfast.spectrum(W, method="exact", noise=noise).edge.sigma_plus
        for record in missing:
            seed = seed_of(name, matrix, record["run"])
            edge = mpfast.spectrum(W, method="lanczos", seed=seed, noise=noise).edge
            record.update(truth=truth, edge=edge.sigma_plus, error=edge.sigma_plus_error)
            self.seen[self.key(record)] = record
        if self.path is not None:
            with self.path.open("a") as file:
                file.writelines(json.dumps(record) + "\n" for record in missing)
        return [self.seen[self.key(record)] for record in wanted]


def coverage_line(name: str, records: list[dict[str, Any]]) -> str:
    """One row of a table."""
    truth, edge, error = (np.array([run[key] for run in records]) for key in ("truth", "edge", "error"))
    cells = []
    for limit in (1, 2):
        share = float((abs(edge - truth) <= limit * error).mean())
        cells.append(f"{100 * share:.1f} % ± {100 * math.sqrt(share * (1 - share) / truth.size):.1f}")
    rms, bar = (100 * math.sqrt(np.square(values / truth).mean()) for values in (edge - truth, error))
    return f"| {name} | {' | '.join(cells)} | {rms:.2f} % | {bar:.2f} % |"


def coverage_lines(matrices: int, runs: int, seen: Runs) -> list[str]:
    """Tables of all families; one matrix of every family is measured before the next one."""
    tables: list[tuple[tuple[int, int], Sequence[str], Draw, NoiseModel]] = [
        (shape, *each) for shape in SHAPES for each in ((FAMILIES, family, "even"), (UNEVEN, uneven_draw, "auto"))
    ]
    for matrix in range(matrices):
        for shape, names, draw_one, noise in tables:
            for name in names:
                seen.of_matrix(draw_one, name, shape, noise, matrix, runs)
        print(f"{matrix + 1} of {matrices} matrices of each family", file=sys.stderr)
    lines = []
    for shape, names, draw_one, noise in tables:
        lines += [
            f"## Coverage of sigma_plus, noise={noise!r}, {shape[0]} x {shape[1]} fp32, {matrices} matrices of each "
            f"family, each with {runs} seeds",
            "",
            "| family | within one standard error | within two | RMS error | reported |",
            "|---|---|---|---|---|",
        ]
        for name in names:
            found = (seen.of_matrix(draw_one, name, shape, noise, matrix, runs) for matrix in range(matrices))
            lines.append(coverage_line(name, list(chain.from_iterable(found))))
        lines.append("")
    return lines


def detection_rates(draws: int) -> dict[str, list[float]]:
    """Share of matrices whose leading value lies above each level, for every strength."""
    rates: dict[str, list[float]] = {"threshold": [], "edge": [], "optimal": []}
    for strength in STRENGTHS:
        counts = dict.fromkeys(rates, 0)
        for draw in range(draws):
            rng = np.random.default_rng([FIRST_SEED, draw, int(100 * strength)])
            W = rng.standard_normal(DETECTION_SHAPE)
            if strength > 0:
                W = W + low_rank(DETECTION_SHAPE, [strength * critical_signal(DETECTION_SHAPE)], rng)
            spectrum = mpfast.spectrum(W, method="exact")
            edge, values = spectrum.edge, spectrum.values
            levels = {
                "threshold": edge.threshold,
                "edge": edge.sigma_plus,
                "optimal": mpfast.optimal_threshold(DETECTION_SHAPE, variance=edge.variance),
            }
            for name, level in levels.items():
                counts[name] += int(values[0] > level)
        for name, count in counts.items():
            rates[name].append(count / draws)
        print(strength, {name: rate[-1] for name, rate in rates.items()}, file=sys.stderr)
    return rates


def detection_lines(rates: dict[str, list[float]], draws: int) -> list[str]:
    lines = [
        f"## Detection of one spike, {DETECTION_SHAPE[0]} x {DETECTION_SHAPE[1]}, {draws} matrices of each strength",
        "",
        "Strength in units of the critical size. `threshold` is the Tracy-Widom corrected edge at its default, which "
        "noise alone exceeds in one matrix of ten; `edge` the plain one; `optimal` Gavish and Donoho's hard threshold.",
        "",
        "| strength | above threshold | above edge | above optimal |",
        "|---|---|---|---|",
    ]
    for i, strength in enumerate(STRENGTHS):
        cells = " | ".join(f"{100 * rate[i]:.1f} %" for rate in rates.values())
        lines.append(f"| {strength:g} | {cells} |")
    return lines


def plot_detection(rates: dict[str, list[float]], draws: int, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "mpfast"  # the same file every time
    from matplotlib import pyplot as plt

    figure, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
    labels = {
        "threshold": "Tracy-Widom threshold",
        "edge": "Marchenko-Pastur edge",
        "optimal": "optimal hard threshold",
    }
    for name, rate in rates.items():
        error = np.sqrt(np.multiply(rate, np.subtract(1, rate)) / draws)
        ax.errorbar(STRENGTHS, rate, yerr=error, marker="o", markersize=4, capsize=2, label=labels[name])
    ax.axvline(1, color="0.6", linestyle="--", linewidth=1)
    ax.annotate("critical size ", (1, 0.5), ha="right", va="center", color="0.4", fontsize=8)
    ax.set(
        xlabel="size of the planted spike, in units of the critical one",
        ylabel="share of matrices in which it is counted",
        title=f"One spike in noise, {DETECTION_SHAPE[0]} x {DETECTION_SHAPE[1]}",
    )
    ax.legend(frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--matrices", type=int, default=16, help="of each family")
    parser.add_argument("--runs", type=int, default=25, help="with other probes, of each matrix")
    parser.add_argument("--draws", type=int, default=200, help="for the detection of a spike, of each strength")
    parser.add_argument("--seen", type=Path, default=None, help="file of what has been measured, which is added to")
    parser.add_argument("--out", type=Path, default=None, help="Markdown file; default standard output")
    parser.add_argument("--plot", type=Path, default=None, help="SVG file of the detection curve; needs matplotlib")
    options = parser.parse_args()
    if options.plot is not None:
        importlib.import_module("matplotlib")  # where it is missing, say so now, not after an hour
    lines = [machine_line(), ""]
    lines += coverage_lines(options.matrices, options.runs, Runs(options.seen))
    rates = detection_rates(options.draws)
    text = "\n".join([*lines, *detection_lines(rates, options.draws)]) + "\n"
    print_or_write(text, options.out)
    if options.plot is not None:
        plot_detection(rates, options.draws, options.plot)


if __name__ == "__main__":
    main()
