"""Benchmarks on one NVIDIA GPU: needs mpfast with its CUDA backend, PyTorch, and under 8 minutes.

    python benchmarks/gpu.py            # writes benchmarks/results/NAME.json and .md, NAME being the GPU's
    python benchmarks/gpu.py --quick    # a first contact of under 6 minutes: NAME-quick.json and .md

The first contact needs pytest too, and compute-sanitizer where it is to look for races. Each of its checks has a limit
of time, and what fails or is missing is written down like what passes; then come the cases that have a bar.

Times are medians after a warm-up, by CUDA events for single products and by the clock, synchronised, for everything
that a user calls. Errors are relative to fp64 references. A bar is the figure
that a case is meant to reach on an H200; nothing here says that it does.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gpu_codes import coded_rows
from gpu_timing import Row, clock, copy_rate, device_time, gaussian, gram_product_fp64

from mpfast.arrays import address_of, cuda_backend, cuda_status, device_matrix

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).parents[1]
# (rows, columns) of the matrices of one layer of a LLaMA of 70 billion parameters, and the number of layers.
LLAMA_LAYER = ((8192, 8192), (1024, 8192), (1024, 8192), (8192, 8192), (28672, 8192), (28672, 8192), (8192, 28672))
LLAMA_LAYERS = 80


def gram_rows(rate: float) -> Iterator[Row]:
    """Single products, both orientations, against PyTorch's pair of products."""
    import torch

    for shape in ((8192, 28672), (28672, 8192)):
        for dtype in (torch.float32, torch.bfloat16):
            W = gaussian(shape, dtype)
            for width in (1, 4, 8, 16, 32):
                yield from product_rows(W, width, rate)
            del W
            torch.cuda.empty_cache()


def product_rows(W: Any, width: int, rate: float) -> Iterator[Row]:
    """The Gram product of the short side of W with `width` vectors."""
    import torch

    rows, cols = W.shape
    right = rows >= cols
    side = W if right else W.T
    matrix = device_matrix(W, cuda_backend())
    x = gaussian((width, min(rows, cols)), torch.float32, seed=1)
    z = torch.empty_like(x)
    exact = gram_product_fp64(side, x)

    def error(found: Any) -> float:
        return float((found.double() - exact).abs().max() / exact.abs().max())

    def ours() -> Any:
        return cuda_backend().gram_product_at(
            matrix, address_of(x), address_of(z), width, "float32", right, with_stats=False
        )

    seconds = device_time(ours)
    share = W.nbytes / seconds / rate
    barred = width == 4 and (rows, cols) == (8192, 28672)
    case = f"Gram product {rows} x {cols} {str(W.dtype)[6:]}, b={width}"
    yield Row(
        case,
        "mpfast",
        seconds,
        f"{share:.2f} of copy bandwidth",
        error(z),
        "0.6 of copy bandwidth" if barred else "",
        share >= 0.6 if barred else None,
    )
    stored = x.T.to(W.dtype)
    pair = device_time(lambda: side.T @ (side @ stored))
    yield Row(case, "torch pair", pair, f"{pair / seconds:.2f} x mpfast", error((side.T @ (side @ stored)).T))


def large_edge_rows() -> Iterator[Row]:
    """The fit of a matrix of 1.7 GB."""
    import torch

    import mpfast

    shape = (16384, 53248)
    W = gaussian(shape, torch.bfloat16)
    seconds, edge = clock(lambda: mpfast.spectrum(W).edge, 5)
    error = abs(edge.sigma_plus / (shape[0] ** 0.5 + shape[1] ** 0.5) - 1)
    yield Row(f"edge of {shape[0]} x {shape[1]} bfloat16", "mpfast", seconds, "", error, "40 ms", seconds < 0.04)


def edge_rows() -> Iterator[Row]:
    """A whole fit, against every singular value by PyTorch."""
    import torch

    import mpfast

    p = 8192
    W = gaussian((p, p), torch.float32)
    case = f"edge of {p} x {p} float32"
    full, values = clock(lambda: torch.linalg.svdvals(W), 1)
    exact = mpfast.Spectrum.from_values(values.double().cpu().numpy(), (p, p)).edge.sigma_plus
    seconds, edge = clock(lambda: mpfast.spectrum(W).edge, 5)
    error = abs(edge.sigma_plus / exact - 1)
    met = full / seconds >= 100 and error <= 5e-3
    yield Row(case, "mpfast", seconds, f"{full / seconds:.0f} x faster than svdvals", error, "100 x, 0.5 %", met)
    yield Row(case, "torch.linalg.svdvals", full, f"{full / seconds:.1f} x mpfast")
    gram, _ = clock(lambda: torch.linalg.eigvalsh(W.T.double() @ W.double()), 1)
    yield Row(case, "torch fp64 Gram + eigvalsh", gram, f"{gram / seconds:.1f} x mpfast", 0.0)


def svd_rows() -> Iterator[Row]:
    """Leading triplets of noise with 40 spikes."""
    import torch

    import mpfast

    p = 4096
    generator = torch.Generator("cuda").manual_seed(3)
    u, v = (torch.linalg.qr(torch.randn(p, 40, generator=generator, device="cuda"))[0] for _ in range(2))
    spikes = torch.linspace(1.2, 4.0, 40, device="cuda") * 2 * p**0.5
    W = gaussian((p, p), torch.float32) + (u * spikes) @ v.T
    exact = torch.linalg.svdvals(W.double())[:64]

    def error(s: Any) -> float:
        return float(((torch.as_tensor(s, device="cuda").double() - exact).abs() / exact).max())

    case = f"64 triplets of {p} x {p} float32"
    seconds, found = clock(lambda: mpfast.svd(W, 64), 3)
    yield Row(case, "mpfast.svd", seconds, "", error(found.s))
    for name, run in (
        ("torch.svd_lowrank niter=6", lambda: torch.svd_lowrank(W, 64, niter=6)[1]),
        ("torch.linalg.svdvals", lambda: torch.linalg.svdvals(W)[:64]),
    ):
        other, s = clock(run, 3)
        yield Row(case, name, other, f"{other / seconds:.1f} x mpfast", error(s))


def mask_rows(rate: float) -> Iterator[Row]:
    """2:4 and threshold masks."""
    import torch

    import mpfast

    W = gaussian((8192, 28672), torch.bfloat16)
    seconds, mask = clock(lambda: mpfast.masks.n_m(W, 2, 4), 5)
    moved = W.nbytes + mask.nbytes
    yield Row("2:4 mask, bfloat16", "mpfast.masks.n_m", seconds, f"{moved / seconds / rate:.2f} of copy bandwidth")
    seconds, mask = clock(lambda: mpfast.masks.magnitude(W, 0.5), 5)
    kept = int(mask.sum())
    yield Row(
        "half of all entries, bfloat16",
        "mpfast.masks.magnitude",
        seconds,
        "",
        float(kept != W.numel() - W.numel() // 2),
    )
    other, _ = clock(lambda: W.abs().float().flatten().kthvalue(W.numel() // 2), 3)
    yield Row(
        "half of all entries, bfloat16", "torch.kthvalue (threshold only)", other, f"{other / seconds:.1f} x mpfast"
    )
    W = W[:3072, :768].float().contiguous()
    for n, m in ((2, 4), (4, 8), (8, 16)):
        moments = np.broadcast_to(0.5 + 0.5 * np.eye(m), (768 // m, m, m))
        seconds, mask = clock(lambda n=n, m=m, C=moments: mpfast.masks.n_m(W, n, m, second_moment=C), 5)
        started = time.perf_counter()
        expected = mpfast.masks.n_m(W.cpu(), n, m, second_moment=moments)
        other = time.perf_counter() - started
        case = f"{n}:{m} by second moment, 3072 x 768 float32"
        yield Row(case, "mpfast.masks.n_m", seconds, "", float((mask.cpu() != expected).sum()))
        yield Row(case, "the same on the CPU", other, f"{other / seconds:.1f} x mpfast")


def torch_columns(W: Any, U: Any) -> Any:
    """Half of the entries of every 128 columns pruned as SparseGPT does it: three small kernels for each column."""
    import torch

    V = W.clone()
    for begin in range(0, V.shape[1], 128):
        end = min(begin + 128, V.shape[1])
        part, square = V[:, begin:end].clone(), U[begin:end, begin:end]
        errors = torch.empty_like(part)
        score = (part / square.diagonal()).square()
        keep = score > score.flatten().kthvalue(score.numel() // 2).values
        for j in range(end - begin):
            after = part[:, j] * keep[:, j]
            errors[:, j] = (part[:, j] - after) / square[j, j]
            part[:, j + 1 :].addr_(errors[:, j], square[j, j + 1 :], alpha=-1.0)
            part[:, j] = after
        V[:, begin:end] = part
        V[:, end:] -= errors @ U[begin:end, end:]
    return V


def column_rows() -> Iterator[Row]:
    """Optimal brain surgeon on one layer, its factor given: columns alone, and with a refit; errors are those of W."""
    import torch

    from mpfast import reconstruct
    from mpfast.reconstruct.device_factor import inverse_factor_by_torch

    size = 4096
    W, X = gaussian((size, size), torch.float32), gaussian((4 * size, size), torch.float32, seed=1)
    X += gaussian((4 * size, 16), torch.float32, seed=2) @ gaussian((16, size), torch.float32, seed=3)
    C = X.T.double() @ X.double() / len(X)
    del X
    factor = reconstruct.Factor(C)
    H = factor.damped_in_units()
    making, U = clock(lambda: inverse_factor_by_torch(torch, H, "cuda"), 3)
    yield Row(f"factor of {size} inputs", "cuSOLVER, by mpfast", making)

    def error(V: Any) -> float:
        D, whole = (W - V).double(), W.double()
        return float(((D @ C) * D).sum() / ((whole @ C) * whole).sum())

    for name, options in (
        ("columns, half", {"sparsity": 0.5, "refit": 0}),
        ("columns, 2:4", {"pattern": "2:4", "refit": 0}),
        ("columns, 8:16", {"pattern": "8:16", "refit": 0}),
        ("columns, half, and a refit", {"sparsity": 0.5}),
    ):
        seconds, fit = clock(lambda options=options: reconstruct.prune(W, factor, **options), 3)
        yield Row(f"{name}, {size} x {size} float32", "mpfast.reconstruct.prune", seconds, "", error(fit.weights))
        if name == "columns, half":
            other, V = clock(lambda: torch_columns(W, U), 3)
            case = f"{name}, {size} x {size} float32"
            yield Row(case, "torch, column by column", other, f"{other / seconds:.1f} x mpfast", error(V))
    seconds, fit = clock(lambda: reconstruct.quantize(W, factor, 4), 3)
    yield Row(
        f"columns rounded to 4 bits, {size} x {size} float32",
        "mpfast.reconstruct.quantize",
        seconds,
        "",
        error(fit.weights),
    )


def llama_rows() -> Iterator[Row]:
    """Every matrix of LLaMA-70B's shape, made on the device one after the other; their making is not counted."""
    import torch

    import mpfast

    total = 0.0
    worst = 0.0
    matrices = [gaussian(shape, torch.bfloat16, seed=i) for i, shape in enumerate(LLAMA_LAYER)]
    mpfast.spectrum(matrices[0])
    for _ in range(LLAMA_LAYERS):
        for W in matrices:
            start = time.perf_counter()
            edge = mpfast.spectrum(W).edge
            total += time.perf_counter() - start
            law = W.shape[0] ** 0.5 + W.shape[1] ** 0.5
            worst = max(worst, abs(edge.sigma_plus / law - 1))
    case = f"{LLAMA_LAYERS * len(matrices)} matrices of LLaMA-70B's shapes, bfloat16"
    yield Row(case, "mpfast.spectrum(W).edge, one by one", total, "", worst, "6 s", total < 6)


def barred_rows(rate: float) -> Iterator[Row]:
    """The cases that have a bar."""
    import torch

    for dtype in (torch.float32, torch.bfloat16):
        yield from product_rows(gaussian((8192, 28672), dtype), 4, rate)
    yield from coded_rows(rate, quick=True)
    yield from large_edge_rows()
    yield from edge_rows()
    yield from llama_rows()


@dataclass(frozen=True)
class Check:
    """A command of the first contact, and how it ended."""

    name: str
    outcome: str
    seconds: float
    output: str = ""


SANITIZED = """
import numpy as np, torch, mpfast
W = torch.randn(600, 5000, device="cuda")
mpfast.gram_product(W, W[:, :8])
for code, shape, blocks in (("float8_e4m3fn", (600, 5000), 50), ("float4_e2m1", (5000, 150), 3)):
    codes, scales = np.full(shape, 35, np.uint8), np.ones((shape[0], blocks), np.float32)
    matrix = mpfast.arrays.CodedRows(code, codes, scales, 100).matrix("float32")
    mpfast.spectrum(matrix, method="lanczos", probes=4, steps=2, device="cuda")
"""


def first_contact() -> Iterator[Check]:
    """What most likely breaks on a device that was never seen: loading, results, races."""
    python = sys.executable
    tests = ["-m", "pytest", "-q", "-x", "-m", "gpu", "-k", "not sanitizer", "-p", "no:cacheprovider"]
    yield checked("mpfast info", [python, "-m", "mpfast", "info"], 30)
    yield checked("tests of results", [python, *tests, str(ROOT / "tests" / "test_gpu.py")], 150)
    sanitizer = shutil.which("compute-sanitizer")
    for tool in ("racecheck", "synccheck"):
        name = f"compute-sanitizer, {tool}"
        if sanitizer is None:
            yield Check(name, "not there", 0.0)
            continue
        options = ["--tool", tool, "--error-exitcode", "9"]
        yield checked(name, [sanitizer, *options, python, "-c", SANITIZED], 60)


def checked(name: str, command: list[str], limit: float) -> Check:
    """Run a command for at most ``limit`` seconds; its last lines are kept where it does not pass."""
    started = time.perf_counter()
    try:
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return Check(name, f"not done after {limit:.0f} s", time.perf_counter() - started)
    seconds = time.perf_counter() - started
    if run.returncode == 0:
        return Check(name, "passed", seconds)
    return Check(name, f"failed with status {run.returncode}", seconds, (run.stdout + run.stderr)[-2000:])


def as_markdown(rows: list[Row], machine: dict[str, str], checks: list[Check]) -> str:
    lines = ["# Benchmarks on " + machine["gpu"], "", "Written by `benchmarks/gpu.py`; see there what is measured.", ""]
    lines += [f"- {key}: {value}" for key, value in machine.items()]
    if checks:
        lines += ["", "| check | outcome | time |", "|---|---|---|"]
        lines += [f"| {check.name} | {check.outcome} | {_duration(check.seconds)} |" for check in checks]
        for check in checks:
            if check.output:
                lines += ["", f"Last lines of {check.name}:", "", "```text", check.output.rstrip(), "```"]
    lines += ["", "| case | contender | time | figure | error | bar | met |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        error = "" if row.error is None else f"{row.error:.1e}"
        met = "" if row.met is None else "yes" if row.met else "**no**"
        cells = (row.case, row.contender, _duration(row.seconds), row.figure, error, row.bar, met)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _duration(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1e3:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--name", help="name of the files under benchmarks/results; default: the GPU's")
    parser.add_argument("--quick", action="store_true", help="a first contact: checks with limits, and the bars")
    arguments = parser.parse_args()
    status = cuda_status()
    if not status.startswith("cuda:"):
        print(f"no GPU to measure on: {status}", file=sys.stderr)
        return 1
    import torch

    import mpfast
    from mpfast.support import write_text_atomically

    machine = {"gpu": torch.cuda.get_device_name(), "mpfast": mpfast.__version__, "torch": torch.__version__}
    machine["found"] = status
    checks = []
    for check in first_contact() if arguments.quick else ():
        checks.append(check)
        print(f"{check.name}: {check.outcome} ({_duration(check.seconds)})\n{check.output}", flush=True)
    rate = copy_rate()
    machine["copy bandwidth"] = f"{rate / 1e12:.2f} TB/s, read and written"
    everything = (
        gram_rows(rate),
        coded_rows(rate),
        large_edge_rows(),
        edge_rows(),
        svd_rows(),
        mask_rows(rate),
        column_rows(),
        llama_rows(),
    )
    rows: list[Row] = []
    for group in (barred_rows(rate),) if arguments.quick else everything:
        for row in group:
            rows.append(row)
            print(f"{row.case}: {row.contender}: {_duration(row.seconds)} {row.figure}", flush=True)
        torch.cuda.empty_cache()
    slug = arguments.name or re.sub(r"[^a-z0-9]+", "-", machine["gpu"].lower()).strip("-")
    record = {
        "schema": "mpfast.gpu-benchmark/1",
        "machine": machine,
        "checks": [asdict(check) for check in checks],
        "rows": [asdict(row) for row in rows],
    }
    target = str(RESULTS / slug) + ("-quick" if arguments.quick else "")
    write_text_atomically(Path(f"{target}.json"), json.dumps(record, indent=1) + "\n")
    write_text_atomically(Path(f"{target}.md"), as_markdown(rows, machine, checks))
    print(f"written: {target}.md")
    return 0 if all(check.outcome in ("passed", "not there") for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main())
