"""Are the error bars right, and which spikes are found?

    python benchmarks/coverage.py [--draws 200] [--out FILE.md] [--plot FILE.svg]

Coverage: for every family of `mpfast.spectra.synthetic`, how often the edge from all singular values lies within
one and two reported standard errors of the measured one; nominal are 68.3 % and 95.4 %. The same for the families of
uneven noise, with ten signals at twice the critical size in each, where both edges are those of ``noise="auto"``:
scales are found anew from all singular values and from passes. The error holds what the scales leave uneven, too, which
both edges share: where that is more than the passes add, nearly all edges lie within it.

Detection: one spike of growing size in Gaussian noise, and how often it is counted. Below the critical size (m n)^(1/4)
no method can see it in the singular values; above it, it stands out more and more.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

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


def coverage_lines(
    shape: tuple[int, int], draws: int, names: Sequence[str], draw_one: Draw, noise: NoiseModel
) -> list[str]:
    lines = [
        f"## Coverage of sigma_plus, noise={noise!r}, {shape[0]} x {shape[1]} fp32, {draws} matrices of each family",
        "",
        "| family | within one standard error | within two | RMS error | reported |",
        "|---|---|---|---|---|",
    ]
    for name in names:
        scores, errors, reported = [], [], []
        for draw in range(draws):
            W = draw_one(name, shape, FIRST_SEED + draw).astype(np.float32)
            truth = mpfast.spectrum(W, method="exact", noise=noise).edge.sigma_plus
            edge = mpfast.spectrum(W, method="lanczos", seed=draw, noise=noise).edge
            scores.append(abs(edge.sigma_plus - truth) / edge.sigma_plus_error)
            errors.append(edge.sigma_plus / truth - 1)
            reported.append(edge.sigma_plus_error / truth)
        one, two = (100 * np.mean(np.array(scores) <= limit) for limit in (1, 2))
        rms, bar = (100 * np.sqrt(np.mean(np.square(values))) for values in (errors, reported))
        lines.append(f"| {name} | {one:.1f} % | {two:.1f} % | {rms:.2f} % | {bar:.2f} % |")
        print(lines[-1], file=sys.stderr)
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
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--out", type=Path, default=None, help="Markdown file; default standard output")
    parser.add_argument("--plot", type=Path, default=None, help="SVG file of the detection curve; needs matplotlib")
    options = parser.parse_args()
    if options.plot is not None:
        importlib.import_module("matplotlib")  # where it is missing, say so now, not after an hour
    lines = [machine_line(), ""]
    for shape in SHAPES:
        lines += [*coverage_lines(shape, options.draws, FAMILIES, family, "even"), ""]
        lines += [*coverage_lines(shape, options.draws, UNEVEN, uneven_draw, "auto"), ""]
    rates = detection_rates(options.draws)
    text = "\n".join([*lines, *detection_lines(rates, options.draws)]) + "\n"
    print_or_write(text, options.out)
    if options.plot is not None:
        plot_detection(rates, options.draws, options.plot)


if __name__ == "__main__":
    main()
