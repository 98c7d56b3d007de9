"""Uneven noise: which signals are found, how many that are none, how long it takes.

    python benchmarks/noise.py [--shape 300x450] [--seeds 3] [--out FILE.md]

One table for noise alone and one for ten dense signals at twice the critical size, a row per family of
`mpfast.spectra.synthetic_noise`. Contenders: mpfast with even noise and with scales measured; the exact Dyson equaliser
(Landa and Kluger, arXiv 2306.11263); parallel analysis by sign flips, three of them (Hong, Sheng, Dobriban, arXiv
2012.02985); ScreeNOT with at most p / 10 signals (Donoho, Gavish, Romanov, arXiv 2009.12297); WeightWatcher, where it
is installed. The rivals but for WeightWatcher are written here from their descriptions, with all singular values.

Of the singular vectors that a method keeps, those that lie in the planted ones by more than a quarter (noise does by
ten in the number of columns) are found signals, the others false; of families that have signals of their own only the
number is told.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from printed import machine_line, print_or_write

import mpfast
from mpfast.spectra import fit_values, uneven_family
from mpfast.spectra.synthetic_noise import UNEVEN_FAMILIES

Array = NDArray[np.float64]

PLANTED, STRENGTH = 10, 2.0
OWN_SIGNALS = ("spikes40", "power", "partly", "localcol")
FLIPS = 3


class Kept(NamedTuple):
    """How many singular values of ``W / (rows x columns)`` a method takes for signals."""

    count: int
    rows: Array | None = None
    columns: Array | None = None

    def signals(self, W: Array, signal: Array) -> int:
        """How many of the right singular vectors lie in those of the signal by more than a quarter."""
        rows = np.ones(len(W)) if self.rows is None else self.rows
        columns = np.ones(W.shape[1]) if self.columns is None else self.columns
        mine, planted = (np.linalg.svd(matrix / rows[:, None] / columns)[2] for matrix in (W, signal))
        return int(np.count_nonzero(((mine[: self.count] @ planted[:PLANTED].T) ** 2).sum(axis=1) > 0.25))


def even(W: Array) -> Kept:
    return Kept(mpfast.spectrum(W).edge.spikes)


def measured(W: Array) -> Kept:
    found = mpfast.spectrum(W, noise="auto")
    return Kept(found.edge.spikes, found.noise.row_scale, found.noise.col_scale)


def strict(W: Array) -> Kept:
    found = mpfast.spectrum(W, noise="auto")
    return Kept(found.edge.strict, found.noise.row_scale, found.noise.col_scale)


def dyson(W: Array) -> Kept:
    """Variances from the diagonals of both resolvents at the median singular value."""
    U, s, Vh = np.linalg.svd(W, full_matrices=False)
    eta = float(np.median(s))
    kernel = eta / (s**2 + eta**2)
    rows = (U**2) @ kernel + (1 - (U**2).sum(axis=1)) / eta
    columns = kernel @ (Vh**2) + (1 - (Vh**2).sum(axis=0)) / eta
    x, y = np.maximum(1 / rows - eta, 1e-12), np.maximum(1 / columns - eta, 1e-12)
    scaled = W / np.sqrt(x)[:, None] / np.sqrt(y)
    return Kept(fit_values(np.linalg.svd(scaled, compute_uv=False), W.shape).spikes, np.sqrt(x), np.sqrt(y))


def flips(W: Array) -> Kept:
    rng = np.random.default_rng(0)
    tops = [np.linalg.norm(W * rng.choice([-1.0, 1.0], W.shape), 2) for _ in range(FLIPS)]
    return Kept(int(np.count_nonzero(np.linalg.svd(W, compute_uv=False) > max(tops))))


def screenot(W: Array) -> Kept:
    """Threshold of least asymptotic loss, the noise values being those below the p / 10 largest, imputed at the top."""
    p, q = min(W.shape), max(W.shape)
    k = p // 10
    s = np.linalg.svd(W, compute_uv=False)[::-1]
    first, second = s[p - k - 1], s[p - 2 * k - 1]
    ranks = np.arange(k)[::-1] / k
    noise = s.copy()
    noise[p - k :] = first + (1 - ranks ** (2 / 3)) / (2 ** (2 / 3) - 1) * (first - second)
    ratio = p / q

    def loss(level: float) -> float:
        gap = level**2 - noise**2
        phi, slope = np.mean(level / gap), -np.mean((level**2 + noise**2) / gap**2)
        other = ratio * phi + (1 - ratio) / level
        other_slope = ratio * slope - (1 - ratio) / level**2
        return float(level * (slope / phi + other_slope / other))

    low = float(noise.max()) * (1 + 1e-9)
    high = 2 * low
    while loss(high) < -4:
        high *= 2
    for _ in range(80):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if loss(middle) < -4 else (low, middle)
    return Kept(int(np.count_nonzero(s > low)))


def weightwatcher(W: Array) -> Kept:
    import logging

    import torch
    import weightwatcher as ww

    logging.getLogger("weightwatcher").setLevel(logging.ERROR)
    layer = torch.nn.Linear(W.shape[1], W.shape[0], bias=False)
    layer.weight.data = torch.from_numpy(W.astype(np.float32))
    details = ww.WeightWatcher(model=torch.nn.Sequential(layer)).analyze(mp_fit=True, plot=False)
    return Kept(int(details.num_spikes[0]))


CONTENDERS: dict[str, Callable[[Array], Kept]] = {
    "mpfast, even": even,
    "mpfast, auto": measured,
    "mpfast, strict": strict,
    "exact Dyson": dyson,
    "sign flips": flips,
    "ScreeNOT": screenot,
}
if importlib.util.find_spec("weightwatcher") is not None:
    CONTENDERS["WeightWatcher"] = weightwatcher


def table(shape: tuple[int, int], strength: float | None, seeds: int) -> list[str]:
    """Mean numbers of found and of false signals, and the mean time of a call."""
    lines = [
        f"## {shape[0]} x {shape[1]}, {'noise alone' if strength is None else f'{PLANTED} signals at {strength:g} x'}",
        "",
        f"| family | {' | '.join(CONTENDERS)} |",
        "|---|" + "---|" * len(CONTENDERS),
    ]
    seconds = dict.fromkeys(CONTENDERS, 0.0)
    for family in UNEVEN_FAMILIES:
        cells = []
        alone = [uneven_family(family, shape, seed) for seed in range(seeds)]
        matrices = alone if strength is None else [uneven_family(family, shape, k, strength) for k in range(seeds)]
        for name, contender in CONTENDERS.items():
            started = time.perf_counter()
            kept = [contender(W) for W in matrices]
            seconds[name] += time.perf_counter() - started
            count = float(np.mean([each.count for each in kept]))
            if family in OWN_SIGNALS or strength is None:
                cells.append(f"{count:.1f}")
                continue
            pairs = zip(kept, matrices, alone, strict=True)
            found = float(np.mean([each.signals(W, W - noise) for each, W, noise in pairs]))
            cells.append(f"{found:.1f} + {count - found:.1f}")
        lines.append(f"| {family} | {' | '.join(cells)} |")
        print(lines[-1], file=sys.stderr)
    calls = len(UNEVEN_FAMILIES) * seeds
    lines.append(f"| milliseconds a call | {' | '.join(f'{1e3 * spent / calls:.0f}' for spent in seconds.values())} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="300x450", help="rows x columns")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=None, help="Markdown file; default standard output")
    options = parser.parse_args()
    rows, columns = map(int, options.shape.split("x"))
    lines = [
        machine_line(),
        "",
        f"Means over {options.seeds} matrices of each family: the number of values taken for signals; with planted "
        "ones found + false, but for families that have signals of their own.",
        "",
    ]
    for strength in (None, STRENGTH):
        lines += [*table((rows, columns), strength, options.seeds), ""]
    text = "\n".join(lines)
    print_or_write(text, options.out)


if __name__ == "__main__":
    main()
