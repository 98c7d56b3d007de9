"""How `gpu.py` takes times on a device, and what it writes down."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One measurement; ``ratio`` is what ``figure`` counts, and ``met`` whether the bar was."""

    case: str
    contender: str
    seconds: float
    figure: str = ""
    error: float | None = None
    bar: str = ""
    met: bool | None = None


def clock(run: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Median wall time of a synchronised call after one warm-up, and its result."""
    import torch

    result = run()
    times = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        result = run()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times), result


def device_time(launch: Callable[[], Any], repeats: int = 20) -> float:
    """Median time of one launch on the device, between events."""
    import torch

    for _ in range(3):
        launch()
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        launch()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)


def gaussian(shape: tuple[int, int], dtype: Any, seed: int = 0) -> Any:
    """Noise with entries of variance one, made on the device."""
    import torch

    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(shape, generator=generator, device="cuda", dtype=torch.float32).to(dtype)


def copy_rate() -> float:
    """Bytes read and written per second by a copy of 4 GB."""
    import torch

    source = torch.empty(1 << 30, dtype=torch.float32, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / device_time(lambda: target.copy_(source))


def gram_product_fp64(side: Any, x: Any) -> Any:
    """Reference, a few thousand rows of W at a time: fp64 takes four times the memory of bfloat16."""
    import torch

    total = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    for block in side.split(4096):
        wide = block.double()
        total += (wide.T @ (wide @ x.double().T)).T
    return total
