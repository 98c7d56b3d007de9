"""Refitting one layer, in processor seconds of one thread: mpfast against the same steps written in PyTorch.

    python benchmarks/reconstruct.py [--size 4096] [--out FILE]

PyTorch's columns are SparseGPT's with the weights transposed, so that columns are contiguous; its factor is SparseGPT's
Cholesky, inverse, Cholesky; its refit is conjugate gradients preconditioned by the diagonal, ten steps of them.
Processor time is read, so that other processes count little; but one that shares the core's caches or its clock does.

The limit of a step is the larger of two: its flops at the rate of the faster of NumPy's and PyTorch's matrix products
in the precision of the step, and the bytes that it must read and write at the rate of a pass that only reads. Flops are
those of the method: 2 n^3 / 3 of the factor (Cholesky, the inverse of a triangle), m n^2 of the columns, of which each
changes those after it, 2 m n^2 of a product with H, of which a refit of k steps has k + 1, and w^2 of each kept entry
for the preconditioner of w directions. The share is what of the limit is reached.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"  # before NumPy starts its threads

import numpy as np  # noqa: E402
from printed import machine_line, print_or_write  # noqa: E402

from mpfast import _core, reconstruct  # noqa: E402

BLOCK = 128
STEPS = 4  # of a refit
ROWS_OF_ERRORS = 256


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    started = time.process_time()
    result = run()
    return time.process_time() - started, result


def layer(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights, and the second moment of inputs with a few strong directions and a decay."""
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((2 * size, size), dtype=np.float32)
    inputs[:, : size // 2] += inputs[:, size // 2 : 2 * (size // 2)] * 0.5
    inputs += rng.standard_normal((2 * size, 16), dtype=np.float32) @ rng.standard_normal((16, size), dtype=np.float32)
    inputs *= np.exp(0.5 * rng.standard_normal(size)).astype(np.float32)
    return rng.standard_normal((size, size), dtype=np.float32), (inputs.T @ inputs).astype(np.float64) / len(inputs)


def torch_steps(W: np.ndarray, H: np.ndarray) -> dict[str, tuple[float, Any]]:
    import torch

    torch.set_num_threads(1)
    weights, damped = torch.from_numpy(W), torch.from_numpy(H)

    def factor() -> Any:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        return torch.linalg.cholesky(inverse, upper=True).float()

    def columns(U: Any) -> Any:
        V = weights.T.contiguous()
        diagonal = U.diagonal()
        for begin in range(0, len(V), BLOCK):
            end = min(begin + BLOCK, len(V))
            part, square = V[begin:end].clone(), U[begin:end, begin:end]
            errors = torch.empty_like(part)
            score = (part / diagonal[begin:end, None]).square()
            drop = torch.zeros(score.numel(), dtype=torch.bool)
            drop[score.reshape(-1).topk(score.numel() // 2, largest=False, sorted=False).indices] = True
            drop = drop.reshape(score.shape)
            for j in range(end - begin):
                after = torch.where(drop[j], 0.0, part[j])
                errors[j] = (part[j] - after) / square[j, j]
                part[j + 1 :].addr_(square[j, j + 1 :], errors[j], alpha=-1.0)
                part[j] = after
            V[begin:end] = part
            V[end:].addmm_(U[begin:end, end:].T, errors, alpha=-1.0)
        return V.T.contiguous()

    def refit(start: Any) -> Any:
        single, keep = damped.float(), (start != 0).float()
        V = start.clone()
        inverse = 1 / single.diagonal()
        residual = ((weights - V) @ single) * keep
        image = residual * inverse
        direction, energy = image.clone(), (residual * image).sum(1, keepdim=True)
        for _ in range(10):
            product = (direction @ single) * keep
            length = energy / (direction * product).sum(1, keepdim=True)
            V += length * direction
            residual -= length * product
            image, before = residual * inverse, energy
            energy = (residual * image).sum(1, keepdim=True)
            direction = image + energy / before * direction
        return V

    steps = {"factor": seconds(factor)}
    steps["columns, 50 %"] = seconds(lambda: columns(steps["factor"][1]))
    steps["refit"] = seconds(lambda: refit(steps["columns, 50 %"][1]))
    return {name: (spent, result.numpy()) for name, (spent, result) in steps.items()}


def limits(size: int, width: int) -> dict[str, tuple[float, str]]:
    """Seconds that each step takes at least, and what binds; ``width`` directions in the preconditioner."""
    n = float(size)
    with_h = 2 * n**3
    flops: dict[str, tuple[str, float, float]] = {  # precision, flops, bytes
        "factor": ("float64", 2 * n**3 / 3, 12 * n**2),
        "what a refit needs of C": ("float32", 4 * n**2 * width, 20 * n**2),
        "columns, 50 %": ("float32", n**3, 13 * n**2),
        "columns, 2:4": ("float32", n**3, 13 * n**2),
        "refit": ("float32", (STEPS + 1) * with_h + n**2 / 2 * width**2 + 4 * STEPS * n**2 * width, 16 * n**2),
        "rounded to 4 bits": ("float32", n**3, 13 * n**2),
        "error": ("float64", with_h, 16 * n**2),
    }
    rates = {precision: flop_rate(precision) for precision in ("float32", "float64")}
    reading = np.ones((size, size), np.float32)
    read_rate = reading.nbytes / seconds(lambda: _core.read_pass(_core.Matrix(reading, "float32"), 1))[0]
    found = {}
    for name, (precision, count, moved) in flops.items():
        bounds = {f"{precision} flops": count / rates[precision], "bytes": moved / read_rate}
        binding = max(bounds, key=lambda bound: bounds[bound])
        found[name] = bounds[binding], binding
    return found


def flop_rate(precision: str) -> float:
    """Flops a second of the faster of the libraries' matrix products on one thread."""
    square = np.random.default_rng(1).standard_normal((2048, 2048)).astype(precision)
    products: list[Callable[[], Any]] = [lambda: square @ square]
    if importlib.util.find_spec("torch") is not None:
        import torch

        torch.set_num_threads(1)
        tensor = torch.from_numpy(square)
        products.append(lambda: tensor @ tensor)
    return 2.0 * len(square) ** 3 / min(seconds(product)[0] for product in products for _ in range(4))


def our_steps(W: np.ndarray, C: np.ndarray) -> tuple[dict[str, tuple[float, Any]], reconstruct.Factor]:
    factor = reconstruct.Factor(C, threads=1)
    steps: dict[str, tuple[float, Any]] = {"factor": seconds(lambda: factor.upper)}
    steps["what a refit needs of C"] = seconds(lambda: factor.leading_part)
    prune = reconstruct.prune
    steps["columns, 50 %"] = seconds(lambda: prune(W, factor, sparsity=0.5, refit=0, threads=1))
    steps["columns, 2:4"] = seconds(lambda: prune(W, factor, pattern="2:4", refit=0, threads=1))
    both = seconds(lambda: prune(W, factor, sparsity=0.5, refit=STEPS, threads=1))
    steps["refit"] = both[0] - steps["columns, 50 %"][0], both[1]
    steps["rounded to 4 bits"] = seconds(lambda: reconstruct.quantize(W, factor, 4, threads=1))
    steps["error"] = seconds(lambda: both[1].error)
    return steps, factor


def error(W: np.ndarray, V: np.ndarray, H: np.ndarray) -> float:
    """Of some rows, with the damped second moment that both fit to."""
    rows = slice(0, ROWS_OF_ERRORS)
    D, whole = (W - V)[rows].astype(np.float64), W[rows].astype(np.float64)
    return float(np.vdot(D @ H, D) / np.vdot(whole @ H, whole))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096, help="outputs and inputs of the layer")
    parser.add_argument("--out", type=Path, default=None, help="Markdown file; default standard output")
    options = parser.parse_args()
    load = os.getloadavg()[0]
    W, C = layer(options.size)
    ours, factor = our_steps(W, C)
    H, bounds = factor.damped(), limits(options.size, factor.leading_part[0].shape[1])
    try:
        theirs = torch_steps(W, H)
    except ImportError:
        theirs = {}
    lines = [
        machine_line(),
        "",
        f"{options.size} x {options.size} fp32, processor seconds of one thread; load before: {load:.1f}.",
        "Times of mpfast are those of the public functions, conversions and checks included.",
        "",
        "| step | mpfast | limit | binds | share | PyTorch |",
        "|---|---|---|---|---|---|",
    ]
    for name, (spent, result) in ours.items():
        other = theirs.get(name)
        cells = [f"{spent:.2f} s", "" if other is None else f"{other[0]:.2f} s ({other[0] / spent:.1f}x)"]
        if name in ("columns, 50 %", "refit"):
            cells[0] += f", error {error(W, result.weights, H):.4f}"
            cells[1] += "" if other is None else f", error {error(W, other[1], H):.4f}"
        limit, binds = bounds[name]
        lines.append(f"| {name} | {cells[0]} | {limit:.2f} s | {binds} | {limit / spent:.2f} | {cells[1]} |")
    text = "\n".join(lines) + "\n"
    print_or_write(text, options.out)


if __name__ == "__main__":
    main()
