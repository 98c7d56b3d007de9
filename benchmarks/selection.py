"""Choosing weights: n:m masks against NumPy's enumeration of all patterns, global magnitude against PyTorch's.

    python benchmarks/selection.py [--out FILE]

The enumerations run on a slice of the rows, and their time is multiplied accordingly: they are linear in the rows.

Masks that need no data stand beside what they move through memory, taken in the same rounds: 2:4 beside one pass that
only reads the weights, magnitude beside two of these and one that writes a mask.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from printed import machine_line, print_or_write

from mpfast import _core, masks
from mpfast.masks import project

SHAPE = (3072, 768)
PATTERNS = ((2, 4), (4, 8), (8, 16))
SLICE = {(2, 4): 3072, (4, 8): 768, (8, 16): 32}
PARAMETERS = 100_000_000
MEMORY_SIDE = 8192


def seconds(run: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def one_by_one(W: np.ndarray, C: np.ndarray, n: int, m: int) -> np.ndarray:
    """Every pattern's cost for all rows and groups at once, keeping the best so far."""
    U = W.reshape(len(W), -1, m).transpose(1, 0, 2).astype(np.float64)
    best = np.full(U.shape[:2], np.inf)
    chosen = np.zeros(U.shape[:2], np.int64)
    patterns = [list(dropped) for dropped in itertools.combinations(range(m), m - n)]
    for number, D in enumerate(patterns):
        r = U[:, :, D]
        cost = np.einsum("grd,grd->gr", r @ C[:, D][:, :, D], r)
        better = cost < best
        best[better] = cost[better]
        chosen[better] = number
    return masks_of(chosen, patterns, m)


def by_product(W: np.ndarray, C: np.ndarray, n: int, m: int) -> np.ndarray:
    """All costs as one matrix product: the entries of A with the indicators of the pairs of each pattern."""
    U = W.reshape(len(W), -1, m).transpose(1, 0, 2).astype(np.float64)
    patterns = [list(dropped) for dropped in itertools.combinations(range(m), m - n)]
    first, second = np.triu_indices(m)
    weight = np.where(first == second, 1.0, 2.0)
    A = U[:, :, first] * U[:, :, second] * (C[:, first, second] * weight)[:, None, :]
    dropped = np.zeros((len(patterns), m), np.bool_)
    for number, D in enumerate(patterns):
        dropped[number, D] = True
    pairs = (dropped[:, first] & dropped[:, second]).astype(np.float64)
    chosen = np.stack([(group @ pairs.T).argmin(axis=1) for group in A])
    return masks_of(chosen, patterns, m)


def masks_of(chosen: np.ndarray, patterns: list[list[int]], m: int) -> np.ndarray:
    keep = np.ones((len(patterns), m), np.bool_)
    for number, D in enumerate(patterns):
        keep[number, D] = False
    return keep[chosen].transpose(1, 0, 2).reshape(chosen.shape[1], -1)


def second_moments(rng: np.random.Generator, groups: int, m: int) -> np.ndarray:
    X = rng.standard_normal((groups, 4 * m, m)) @ (np.eye(m) + 0.4 * rng.standard_normal((groups, m, m)))
    return np.einsum("gsi,gsj->gij", X, X) / (4 * m)


def pattern_rows(rng: np.random.Generator) -> list[str]:
    W = rng.standard_normal(SHAPE).astype(np.float32)
    lines = [
        f"## n:m by second moment, {SHAPE[0]} x {SHAPE[1]} fp32",
        "",
        "| pattern | masks | mpfast | enumeration, pattern by pattern | enumeration as a matrix product | same masks |",
        "|---|---|---|---|---|---|",
    ]
    for n, m in PATTERNS:
        C = second_moments(rng, SHAPE[1] // m, m)
        rows = SLICE[n, m]
        part = W[:rows]
        project(W, n, m, C)
        ours = seconds(lambda n=n, m=m, C=C: masks.n_m(W, n, m, second_moment=C), 5)
        loop = seconds(lambda n=n, m=m, C=C, part=part: one_by_one(part, C, n, m), 1) * len(W) / rows
        product = seconds(lambda n=n, m=m, C=C, part=part: by_product(part, C, n, m), 3) * len(W) / rows
        mask = masks.n_m(part, n, m, second_moment=C)
        same = all(np.array_equal(mask, method(part, C, n, m)) for method in (one_by_one, by_product))
        count = len(list(itertools.combinations(range(m), n)))
        lines.append(
            f"| {n}:{m} | {count} | {1e3 * ours:.1f} ms | {loop:.2f} s ({loop / ours:.0f}x) "
            f"| {product:.2f} s ({product / ours:.0f}x) | {'yes' if same else 'NO'} |"
        )
        print(lines[-1], file=sys.stderr)
    return lines


def memory_rows(rng: np.random.Generator) -> list[str]:
    """Masks beside passes over the memory that they have to move."""
    side = MEMORY_SIDE
    lines = [
        f"## Masks beside the memory that they move, {side} x {side}",
        "",
        "| storage | mask | into | time | share of the passes' rate |",
        "|---|---|---|---|---|",
    ]
    W = rng.standard_normal((side, side), dtype=np.float32)
    out = np.empty(W.shape, bool)
    for dtype in ("float32", "float16"):
        given = W.astype(dtype)
        matrix = _core.Matrix(given, dtype)
        calls: dict[tuple[str, str], Callable[[], object]] = {
            ("read", ""): lambda matrix=matrix: _core.read_pass(matrix, 0),
            ("write", ""): lambda: out.fill(True),
            ("2:4", "memory in use"): lambda given=given: masks.n_m(given, 2, 4, out=out),
            ("2:4", "new memory"): lambda given=given: masks.n_m(given, 2, 4),
            ("magnitude, half", "memory in use"): lambda given=given: masks.magnitude(given, 0.5, out=out),
            ("magnitude, half", "new memory"): lambda given=given: masks.magnitude(given, 0.5),
        }
        times: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
        for _ in range(9):
            for key, call in calls.items():
                times[key].append(seconds(call, 1))
        taken = {key: statistics.median(each) for key, each in times.items()}
        read, write = taken.pop(("read", "")), taken.pop(("write", ""))
        for (mask, into), time_of in taken.items():
            passes = read if mask == "2:4" else 2 * read + write
            lines.append(f"| {dtype} | {mask} | {into} | {1e3 * time_of:.1f} ms | {passes / time_of:.2f} |")
            print(lines[-1], file=sys.stderr)
    return lines


class PeakMemory:
    """Largest resident memory above that at the start, looked at every millisecond."""

    def __enter__(self) -> PeakMemory:
        self.start = self.peak = self._resident()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.megabytes = (self.peak - self.start) / 1e6

    def _watch(self) -> None:
        while not self._done.wait(0.001):
            self.peak = max(self.peak, self._resident())

    @staticmethod
    def _resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def selection_rows(rng: np.random.Generator) -> list[str]:
    side = 5000
    layers = {f"layer{k}": rng.standard_normal((side, side), dtype=np.float32) for k in range(PARAMETERS // side**2)}
    lines = [
        f"## Global magnitude, {PARAMETERS // 10**6} million fp32 weights in {len(layers)} layers, half of them pruned",
        "",
        "| | time | extra memory besides the masks |",
        "|---|---|---|",
    ]
    read = seconds(lambda: [float(np.add.reduce(w.reshape(-1))) for w in layers.values()], 5)
    masks.magnitude(layers, 0.5)
    ours = seconds(lambda: masks.magnitude(layers, 0.5), 5)
    with PeakMemory() as memory:
        masks.magnitude(layers, 0.5)
    extra = memory.megabytes - PARAMETERS / 1e6
    lines.append(f"| reading the weights once (NumPy's sum, one thread) | {1e3 * read:.0f} ms | |")
    lines.append(f"| mpfast.masks.magnitude | {1e3 * ours:.0f} ms ({read / ours:.2f} of that rate) | {extra:.0f} MB |")
    try:
        import torch
        from torch.nn.utils import prune
    except ImportError:
        return lines
    modules = []
    for w in layers.values():
        module = torch.nn.Linear(side, side, bias=False)
        module.weight = torch.nn.Parameter(torch.from_numpy(w))
        modules.append((module, "weight"))

    def theirs() -> None:
        prune.global_unstructured(modules, prune.L1Unstructured, amount=0.5)
        for module, name in modules:
            kept.append(module.weight_mask)
            # Back to the dense weight, as it was.
            original = getattr(module, f"{name}_orig")
            del module._parameters[f"{name}_orig"], module._buffers[f"{name}_mask"], module.__dict__[name]
            module._forward_pre_hooks.clear()
            module.register_parameter(name, original)

    kept: list[object] = []
    with PeakMemory() as memory:
        slow = seconds(theirs, 1)
    same = all(
        np.array_equal(mask, np.asarray(other) != 0)
        for mask, other in zip(masks.magnitude(layers, 0.5).values(), kept, strict=True)
    )
    lines.append(
        f"| torch.nn.utils.prune.global_unstructured | {1e3 * slow:.0f} ms ({slow / ours:.0f}x) "
        f"| {memory.megabytes - 4 * PARAMETERS / 1e6:.0f} MB; {'same masks' if same else 'masks differ in ties'} |"
    )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=None, help="Markdown file; default standard output")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    lines = [machine_line(), ""]
    lines += [*pattern_rows(rng), "", *selection_rows(rng), "", *memory_rows(rng)]
    text = "\n".join(lines) + "\n"
    print_or_write(text, options.out)


if __name__ == "__main__":
    main()
