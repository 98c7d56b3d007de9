"""What more threads could do: tasks of every pass, the serial share, and what coordination costs.

    python benchmarks/scaling.py [--size 4096] [--instructions] [--out FILE.md]

Tasks and serial share: each job runs on one thread while the core notes its loops, how many tasks each has and the
processor time it takes. A loop of t tasks takes n threads ``ceil(t / n) / t`` of that; what is in no loop stays. The
model knows no memory bandwidth and no waiting: it says what the cutting of the work allows, not what a machine reaches.

Coordination: the same jobs on 2, 4, 8 and 16 threads, however few the processors are, in instructions over those of
one thread, counted by `perf stat` where the processor counts them and by Valgrind (``--instructions``; with AVX2 at
most, on small jobs) elsewhere, and in processor seconds, in which other processes' use of the caches shows, too.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # NumPy's own threads are no part of this

import numpy as np
from printed import machine_line, print_or_write

import mpfast
from mpfast import _core, masks, reconstruct

THREADS = (2, 4, 8, 16)
MODELLED = (8, 16, 64)
SMALL = 512  # side of the jobs whose instructions Valgrind counts

Job = Callable[[int], object]


def jobs(side: int) -> dict[str, Job]:
    """Calls that take the number of threads, on matrices of about this side."""
    rng = np.random.default_rng(0)
    W = rng.standard_normal((side, side), dtype=np.float32)
    matrix, X = _core.Matrix(W, "float32"), rng.standard_normal((8, side), dtype=np.float32)
    small, inputs = W[: side // 4, : side // 4], rng.standard_normal((side, side // 4), dtype=np.float32)
    second_moment = (inputs.T @ inputs).astype(np.float64) / side

    def refit(threads: int) -> object:
        factor = reconstruct.Factor(second_moment, threads=threads)
        return reconstruct.prune(small, factor, sparsity=0.5, threads=threads)

    return {
        "product of 8 vectors": lambda threads: _core.gram_product(matrix, X, "right", threads),
        "edge": lambda threads: mpfast.spectrum(W, method="lanczos", probes=8, steps=12, threads=threads).edge,
        f"all values of {side // 4}": lambda threads: mpfast.spectrum(small, method="exact", threads=threads),
        "32 triplets": lambda threads: mpfast.svd(W, min(32, side // 8), threads=threads),
        "2:4 mask": lambda threads: masks.n_m(W, 2, 4, threads=threads),
        "magnitude mask": lambda threads: masks.magnitude(W, 0.5, threads=threads),
        f"refit of {side // 4}": refit,
    }


def model_line(name: str, job: Job) -> str:
    """Loops and tasks of a job on one thread, and what they allow with more."""
    job(1)
    _core.begin_loop_log()
    started = time.process_time()
    job(1)
    whole = time.process_time() - started
    loops = [(tasks, seconds) for tasks, seconds in _core.end_loop_log() if tasks > 0]
    inside = sum(seconds for _, seconds in loops)
    heavy = sorted(tasks for tasks, seconds in loops if seconds >= 0.02 * whole)
    serial = max(whole - inside, 0.0) + sum(seconds for tasks, seconds in loops if tasks == 1)
    cells = [name, f"{1e3 * whole:.1f}", str(len(loops)), f"{statistics.median_low(heavy)}" if heavy else ""]
    cells.append(f"{100 * serial / whole:.1f} %")
    for threads in MODELLED:
        left = sum(seconds * math.ceil(tasks / threads) / tasks for tasks, seconds in loops)
        cells.append(f"{whole / (max(whole - inside, 0.0) + left):.1f}")
    return f"| {' | '.join(cells)} |"


def seconds_line(name: str, job: Job, rounds: int) -> str:
    """Processor seconds with more threads over those with one, medians of interleaved rounds."""
    taken: dict[int, list[float]] = {threads: [] for threads in (1, *THREADS)}
    for _ in range(rounds):
        for threads, times in taken.items():
            started = time.process_time()
            job(threads)
            times.append(time.process_time() - started)
    medians = {threads: statistics.median(times) for threads, times in taken.items()}
    return f"| {name} | {' | '.join(f'{medians[threads] / medians[1]:.2f}' for threads in THREADS)} |"


def instructions_line(name: str) -> str:
    """Instructions of a call with more threads over those with one."""
    counts = {threads: instructions(name, threads, 3) - instructions(name, threads, 1) for threads in (1, *THREADS)}
    return f"| {name} | {' | '.join(f'{counts[threads] / counts[1]:.3f}' for threads in THREADS)} |"


def instructions(name: str, threads: int, calls: int) -> int:
    """Instructions in user space of a process that makes so many calls."""
    own = [sys.executable, __file__, "--size", str(SMALL), "--run", name, str(threads), str(calls)]
    counter, pattern = counting()
    told = subprocess.run([*counter, *own], capture_output=True, text=True, check=True).stderr
    found = re.search(pattern, told)
    if found is None:
        sys.exit(f"{counter[0]} says nothing of instructions:\n{told}")
    return int(re.sub(r"\D", "", found[1]))


def counting() -> tuple[list[str], str]:
    """A command that counts instructions, and where it says how many."""
    perf = ["perf", "stat", "-e", "instructions:u"]
    if shutil.which("perf") is not None:
        told = subprocess.run([*perf, "true"], capture_output=True, text=True, check=False)
        if re.search(r"[\d,]+\s+instructions", told.stderr):
            return perf, r"([\d,]+)\s+instructions"
    if shutil.which("valgrind") is None:
        sys.exit("neither perf nor valgrind is there to count instructions")
    valgrind = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
    return valgrind, r"I\s+refs:\s+([\d,]+)"


def report(options: argparse.Namespace) -> list[str]:
    lines = [
        machine_line(),
        "",
        f"## Tasks and serial share, matrices of {options.size} x {options.size} float32",
        "",
        "*Tasks*: of the median loop among those of 2 % of the time and more. The last columns: the speed-up that the",
        "cutting of the work allows.",
        "",
        f"| job | ms on one | loops | tasks | serial | {' | '.join(f'{n} threads' for n in MODELLED)} |",
        "|---|---|---|---|---|" + "---|" * len(MODELLED),
    ]
    known = jobs(options.size)
    lines += [model_line(name, job) for name, job in known.items()]
    head = f"| job | {' | '.join(f'{n} threads' for n in THREADS)} |"
    rule = "|---|" + "---|" * len(THREADS)
    lines += ["", "## Processor seconds over those of one thread", "", head, rule]
    lines += [seconds_line(name, job, options.rounds) for name, job in known.items()]
    if options.instructions:
        lines += ["", f"## Instructions over those of one thread, {SMALL} x {SMALL}", "", head, rule]
        lines += [instructions_line(name) for name in jobs(SMALL)]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=4096, help="side of the matrices")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--instructions", action="store_true", help="count instructions, too: minutes a job")
    parser.add_argument("--run", nargs=3, metavar=("JOB", "THREADS", "CALLS"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=None, help="Markdown file; default standard output")
    options = parser.parse_args()
    if options.run is not None:
        name, threads, calls = options.run
        job = jobs(options.size)[name]
        for _ in range(int(calls)):
            job(int(threads))
        return
    text = "\n".join(report(options)) + "\n"
    print_or_write(text, options.out)


if __name__ == "__main__":
    main()
