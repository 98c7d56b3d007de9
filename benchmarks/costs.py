"""What a product and an edge cost: by width, by shape, by seed.

    python benchmarks/costs.py [--threads 2] [--out FILE.md] [--plot FILE.svg]

Products: ``Z = W^T (W X)`` for 1 to 32 vectors beside two limits of the machine: the time of a pass that only reads
W, measured in the same rounds, and that of the flops at the rate of the faster of NumPy's and PyTorch's matrix
products in the precision of the vectors, measured before. The larger one binds; the share is what of the binding
limit is reached, above 1 where products with W are faster than those of the libraries. First passes, which also sum
the squares of every row and column, stand as ratios to the plain product, and the further steps of a block Lanczos
run with factors as ratios to those of a run without.

Shapes: the default call of `mpfast.spectrum` on noise with six signals, for square, wide and expert-like matrices.

Seeds: the same call for many seeds; the 95th percentile of the times over their median, and the work behind it.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from printed import machine_line, print_or_write

import mpfast
from mpfast import _core
from mpfast.spectra import critical_signal, low_rank

WIDTHS = (1, 4, 8, 16, 32)
PRODUCT_SIDE = {"float32": 6144, "bfloat16": 6144, "float16": 6144, "float64": 4096}
SHAPES = (
    *((side, side, "float32") for side in (384, 512, 640, 768, 1024, 1100, 1536, 2048, 3072, 4096)),
    *((p, 4 * p, "bfloat16") for p in (384, 576, 768, 1024, 2048, 4096)),
    *((768, 3072, "float32"), (2048, 768, "bfloat16"), (1408, 2048, "bfloat16"), (4096, 4096, "bfloat16")),
)
SEEDED = ((4096, 4096, "float32"), (8192, 8192, "bfloat16"))
SIGNALS = 6
STEPS = 20


def matrix(shape: tuple[int, int], dtype: str, seed: int = 0) -> Any:
    """Noise with six signals beyond the critical size; bfloat16 as the truncated halves of float32."""
    rng = np.random.default_rng(seed)
    W = rng.standard_normal(shape, dtype=np.float32)
    W += low_rank(shape, critical_signal(shape) * np.linspace(1.5, 4, SIGNALS), rng).astype(np.float32)
    return (W.view(np.uint32) >> 16).astype(np.uint16) if dtype == "bfloat16" else W.astype(dtype)


def medians(functions: list[Callable[[], object]], rounds: int) -> list[float]:
    """Median seconds of each, in interleaved rounds."""
    taken: list[list[float]] = [[] for _ in functions]
    for function in functions:
        function()
    for _ in range(rounds):
        for times, function in zip(taken, functions, strict=True):
            started = time.perf_counter()
            function()
            times.append(time.perf_counter() - started)
    return [statistics.median(times) for times in taken]


def product_lines(threads: int, rounds: int) -> list[str]:
    lines = [
        "## Products, by width",
        "",
        "| storage | vectors | limit, ms | binds | product, ms | share | with energies | with factors |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for dtype, side in PRODUCT_SIDE.items():
        W = _core.Matrix(matrix((side, side), dtype), dtype)
        real = "float64" if dtype == "float64" else "float32"
        rate = flop_rate(real)
        sums = np.empty(side), np.empty(side)
        for width in WIDTHS:
            X = np.random.default_rng(2).standard_normal((width, side)).astype(real)
            plain, first, reading, *steps = medians(
                [
                    lambda W=W, X=X: _core.gram_product(W, X, "right", threads, norm=False),
                    lambda W=W, X=X, sums=sums: _core.gram_product(W, X, "right", threads, energies=sums),
                    lambda W=W: _core.read_pass(W, threads),
                    further_steps(W, width, threads, None),
                    further_steps(W, width, threads, (np.full(side, 0.5), np.full(side, 2.0))),
                ],
                rounds,
            )
            flops = 4.0 * side * side * width / rate
            limit, binds = max((reading, "read"), (flops, "flops"))
            lines.append(
                f"| {dtype} | {width} | {1e3 * limit:.2f} | {binds} | {1e3 * plain:.2f} | {limit / plain:.2f} | "
                f"{first / plain:.2f} | {steps[1] / steps[0]:.2f} |"
            )
            print(lines[-1], file=sys.stderr)
    return [*lines, ""]


def flop_rate(real: str) -> float:
    """Flops a second of the fastest dense product at hand; then a pause, in which its threads come to rest."""
    square = np.random.default_rng(1).standard_normal((2048, 2048)).astype(real)
    products: list[Callable[[], object]] = [lambda: square @ square]
    if importlib.util.find_spec("torch") is not None:
        import torch

        tensor = torch.from_numpy(square)
        products.append(lambda: tensor @ tensor)
    rate = 2.0 * len(square) ** 3 / min(medians(products, 7))
    time.sleep(1)
    return rate


def further_steps(
    W: _core.Matrix, width: int, threads: int, factors: tuple[NDArray[np.float64], NDArray[np.float64]] | None
) -> Callable[[], object]:
    """Return a call that takes two further steps of a run, and begins a new one after `STEPS`."""
    runs: list[_core.LanczosRun] = []

    def advance() -> None:
        if not runs or runs[-1].steps > STEPS:
            runs[:] = [_core.lanczos_run(W, width, 0, 0, 0, False, threads, factors)]
            runs[-1].advance(1)
        runs[-1].advance(2)

    return advance


def shape_lines(threads: int, rounds: int) -> tuple[list[str], list[tuple[str, float, float]]]:
    """A table of costs, and what a plot needs: the kind of shape, megabytes, milliseconds."""
    lines = [
        "## Edges, by shape",
        "",
        "| shape | storage | method | probes | passes | ms | s/GB | standard error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    points = []
    for rows, columns, dtype in SHAPES:
        W = typed(matrix((rows, columns), dtype), dtype)
        spectrum = mpfast.spectrum(W, threads=threads)
        (seconds,) = medians([lambda W=W: mpfast.spectrum(W, threads=threads).edge], rounds)
        error = spectrum.edge.sigma_plus_error / spectrum.edge.sigma_plus
        lines.append(
            f"| {rows} x {columns} | {dtype} | {spectrum.method} | {spectrum.probes or ''} | {spectrum.passes} | "
            f"{1e3 * seconds:.1f} | {seconds / W.nbytes * 1e9:.2f} | {100 * error:.2f} % |"
        )
        kind = "square" if rows == columns else "wide"
        points.append((f"{kind}, {dtype}", W.nbytes / 1e6, 1e3 * seconds))
        print(lines[-1], file=sys.stderr)
    return [*lines, ""], points


def typed(W: NDArray[Any], dtype: str) -> Any:
    """The array as its users have it: bfloat16 as that of ml_dtypes."""
    if dtype != "bfloat16":
        return W
    import ml_dtypes

    return W.view(ml_dtypes.bfloat16)


def seed_lines(threads: int, seeds: int) -> list[str]:
    lines = [
        "## Edges, by seed",
        "",
        f"One matrix each, {seeds} seeds. *Work* is probes times steps, which no other load on the machine disturbs.",
        "",
        "| shape | storage | median ms | 95th percentile over it | the same of work | scatter | reported |",
        "|---|---|---|---|---|---|---|",
    ]
    for rows, columns, dtype in SEEDED:
        W = typed(matrix((rows, columns), dtype), dtype)
        taken, work, edges, errors = [], [], [], []
        for seed in range(seeds):
            started = time.perf_counter()
            spectrum = mpfast.spectrum(W, seed=seed, threads=threads)
            edge = spectrum.edge
            taken.append(time.perf_counter() - started)
            work.append(spectrum.probes * spectrum.steps)
            edges.append(edge.sigma_plus)
            errors.append(edge.sigma_plus_error / edge.sigma_plus)
        late, more = (np.percentile(each, 95) / np.median(each) for each in (taken, work))
        lines.append(
            f"| {rows} x {columns} | {dtype} | {1e3 * np.median(taken):.0f} | {late:.2f} | {more:.2f} | "
            f"{100 * np.std(edges) / np.mean(edges):.2f} % | {100 * np.sqrt(np.mean(np.square(errors))):.2f} % |"
        )
        print(lines[-1], file=sys.stderr)
    return [*lines, ""]


def draw(points: list[tuple[str, float, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for kind in dict.fromkeys(kind for kind, _, _ in points):
        sizes, times = zip(*sorted((size, ms) for each, size, ms in points if each == kind), strict=True)
        axes[0].loglog(sizes, times, "o-", label=kind)
        axes[1].loglog(sizes, [ms / size for size, ms in zip(sizes, times, strict=True)], "o-", label=kind)
    axes[0].set(xlabel="MB of weights", ylabel="ms")
    axes[1].set(xlabel="MB of weights", ylabel="s/GB")
    axes[0].legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=_core.default_threads())
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--out", type=Path, default=None, help="Markdown file; default standard output")
    parser.add_argument("--plot", type=Path, default=None, help="SVG file of milliseconds and s/GB over sizes")
    options = parser.parse_args()
    lines = [machine_line(), ""]
    lines += product_lines(options.threads, options.rounds)
    shapes, points = shape_lines(options.threads, options.rounds)
    lines += [*shapes, *seed_lines(options.threads, options.seeds)]
    if options.plot is not None:
        draw(points, options.plot)
    text = "\n".join(lines).rstrip() + "\n"
    print_or_write(text, options.out)


if __name__ == "__main__":
    main()
