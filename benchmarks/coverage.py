"""Are the error bars right, and which spikes are found?

    python benchmarks/coverage.py [--draws 200] [--out FILE]

Coverage: for every family of `mpfast.synthetic`, how often the edge from all singular values lies within one and two
reported standard errors of the measured one; nominal are 68.3 % and 95.4 %.

Detection: one spike of growing size in Gaussian noise, and how often it is counted. Below the critical size (m n)^(1/4)
no method can see it in the singular values; above it, it stands out more and more.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

import mpfast
from mpfast.benchmarking import machine
from mpfast.synthetic import FAMILIES, critical_signal, family, low_rank

FIRST_SEED = 90000
SHAPE = (1100, 1400)  # just beyond where all singular values are computed
STRENGTHS = (0.0, 0.6, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.6, 2.0)


def coverage_rows(draws: int) -> list[str]:
    lines = [
        f"## Coverage of sigma_plus, {SHAPE[0]} x {SHAPE[1]} fp32, {draws} matrices of each family",
        "",
        "| family | within one standard error | within two | RMS error | reported |",
        "|---|---|---|---|---|",
    ]
    for name in FAMILIES:
        scores, errors, reported = [], [], []
        for draw in range(draws):
            W = family(name, SHAPE, FIRST_SEED + draw).astype(np.float32)
            truth = mpfast.spectrum(W, method="exact").edge.sigma_plus
            edge = mpfast.spectrum(W, method="lanczos", seed=draw).edge
            scores.append(abs(edge.sigma_plus - truth) / edge.sigma_plus_error)
            errors.append(edge.sigma_plus / truth - 1)
            reported.append(edge.sigma_plus_error / truth)
        one, two = (100 * np.mean(np.array(scores) <= limit) for limit in (1, 2))
        rms, bar = (100 * np.sqrt(np.mean(np.square(values))) for values in (errors, reported))
        lines.append(f"| {name} | {one:.1f} % | {two:.1f} % | {rms:.2f} % | {bar:.2f} % |")
        print(lines[-1], file=sys.stderr)
    return lines


def detection_rows(draws: int) -> list[str]:
    shape = (400, 600)
    lines = [
        f"## Detection of one spike, {shape[0]} x {shape[1]}, {draws} matrices of each strength",
        "",
        "Strength in units of the critical size. `threshold` is the Tracy-Widom corrected edge at its default, which "
        "noise alone exceeds in one matrix of ten; `edge` the plain one; `optimal` Gavish and Donoho's hard threshold.",
        "",
        "| strength | above threshold | above edge | above optimal |",
        "|---|---|---|---|",
    ]
    for strength in STRENGTHS:
        counts = np.zeros(3)
        for draw in range(draws):
            rng = np.random.default_rng([FIRST_SEED, draw, int(100 * strength)])
            W = rng.standard_normal(shape)
            if strength > 0:
                W = W + low_rank(shape, [strength * critical_signal(shape)], rng)
            spectrum = mpfast.spectrum(W, method="exact")
            edge, values = spectrum.edge, spectrum.values
            levels = (edge.threshold, edge.sigma_plus, mpfast.optimal_threshold(shape, variance=edge.variance))
            counts += [values[0] > level for level in levels]
        cells = " | ".join(f"{100 * count / draws:.1f} %" for count in counts)
        lines.append(f"| {strength:g} | {cells} |")
        print(lines[-1], file=sys.stderr)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--out", type=Path, default=None, help="Markdown file; default standard output")
    options = parser.parse_args()
    lines = [", ".join(f"{key} {value}" for key, value in machine().items()), ""]
    lines += [*coverage_rows(options.draws), "", *detection_rows(options.draws)]
    text = "\n".join(lines) + "\n"
    if options.out is None:
        sys.stdout.write(text)
    else:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
