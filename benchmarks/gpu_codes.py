"""Cases of `gpu.py`: matrices of codes as they are stored, beside the same numbers in bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
from gpu_timing import Row, clock, device_time, gaussian, gram_product_fp64

from mpfast import _core
from mpfast.arrays import CodedRows, address_of, cuda_backend, device_matrix
from mpfast.checkpoints.quantised.codes import VALUES

# Type of the codes, entries that share a scale, and the bar: how many times as long as in bfloat16 a fit may take.
FORMATS = (("float8_e4m3fn", 128, 1.05), ("float4_e2m1", 32, 1.5), ("float4_e2m1", 16, 1.5))
SHAPES = ((4096, 14336), (14336, 4096))
WIDTH = 4


def coded_matrix(shape: tuple[int, int], code: str, width: int) -> _core.Matrix:
    """Random finite codes under random scales, in host memory."""
    rng = np.random.default_rng(7)
    values = VALUES[code].reshape(256, -1)
    known = np.flatnonzero(np.isfinite(values).all(axis=1)).astype(np.uint8)
    codes = known[rng.integers(0, len(known), (shape[0], shape[1] // values.shape[1]))]
    scales = rng.uniform(0.5, 1, (shape[0], -(-shape[1] // width))).astype(np.float32)
    return CodedRows(code, codes, scales, width).matrix("bfloat16")


def coded_rows(rate: float, *, quick: bool = False) -> Iterator[Row]:
    """Single products, and fits of what is in host memory, copied to the device and streamed through it."""
    import torch

    for shape in SHAPES[:1] if quick else SHAPES:
        for code, width, most in FORMATS[:2] if quick else FORMATS:
            matrix = coded_matrix(shape, code, width)
            name = f"{shape[0]} x {shape[1]} {code} by {width}"
            numbers = torch.from_numpy(matrix.decoded())
            yield from _products(name, matrix, numbers, rate)
            yield from _edges(name, matrix, numbers.to(torch.bfloat16), most)
            torch.cuda.empty_cache()


def _products(name: str, matrix: _core.Matrix, numbers: Any, rate: float) -> Iterator[Row]:
    """The Gram product of the short side; errors are against the decoded numbers, or their rounding, in fp64."""
    import torch

    rows, cols = numbers.shape
    _, codes, scales, _ = matrix.owner
    dense = numbers.cuda().to(torch.bfloat16)
    cases = (
        ("codes", cuda_backend().Matrix.upload(matrix.owner, matrix.dtype, 0), codes.nbytes + scales.nbytes, numbers),
        ("bfloat16", device_matrix(dense, cuda_backend()), dense.nbytes, dense),
    )
    x = gaussian((WIDTH, min(rows, cols)), torch.float32, seed=1)
    z = torch.empty_like(x)
    for contender, there, size, entries in cases:

        def product(there: Any = there) -> Any:
            return cuda_backend().gram_product_at(
                there, address_of(x), address_of(z), WIDTH, "float32", rows >= cols, with_stats=False
            )

        seconds = device_time(product)
        wide = entries.cuda()
        exact = gram_product_fp64(wide if rows >= cols else wide.T, x)
        error = float((z.double() - exact).abs().max() / exact.abs().max())
        figure = f"{size / 2**20:.0f} MiB at {size / seconds / rate:.2f} of copy bandwidth"
        yield Row(f"Gram product {name}, b={WIDTH}", f"mpfast, {contender}", seconds, figure, error)


def _edges(name: str, matrix: _core.Matrix, dense: Any, most: float) -> Iterator[Row]:
    """Errors are distances from what the CPU finds."""
    import mpfast
    from mpfast.operators import cuda as device_sources

    exact = mpfast.spectrum(matrix).edge.sigma_plus
    for way, share in (("copied", device_sources.RESIDENT_SHARE), ("streamed", 0.0)):
        with mock.patch.object(device_sources, "RESIDENT_SHARE", share):
            other, _ = clock(lambda: mpfast.spectrum(dense, device="cuda").edge, 5)
            seconds, edge = clock(lambda: mpfast.spectrum(matrix, device="cuda").edge, 5)
        error = abs(edge.sigma_plus / exact - 1)
        figure = f"{seconds / other:.2f} times bfloat16"
        bar = f"{most} times bfloat16" if way == "copied" else ""
        case = f"edge of {name} in host memory, {way}"
        yield Row(case, "mpfast, codes", seconds, figure, error, bar, seconds <= most * other if bar else None)
        yield Row(case, "mpfast, bfloat16", other)
