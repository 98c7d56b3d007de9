"""No kernel touches a byte beyond the caller's array: arrays that begin or end at a page without access."""

from __future__ import annotations

import os
import sys

import pytest

from .references import run_python

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="pages are protected through Linux's C library"),
]

SCRIPT = """
import ctypes, mmap, sys, warnings
import ml_dtypes
import numpy as np
import mpfast
from mpfast import _core
from mpfast.arrays import as_matrix

warnings.simplefilter("ignore", mpfast.ConvergenceWarning)
PAGE = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class Fenced:
    # `size` bytes between two pages without access, at the lower one or at the upper one.
    def __init__(self, size, at_end):
        inner = -(-size // PAGE) * PAGE
        self.length = inner + 2 * PAGE
        self.address = libc.mmap(None, self.length, mmap.PROT_READ | mmap.PROT_WRITE, 0x22, -1, 0)
        for fence in (self.address, self.address + PAGE + inner):
            assert libc.mprotect(fence, PAGE, 0) == 0
        start = self.address + PAGE + (inner - size if at_end else 0)
        self.bytes = np.frombuffer((ctypes.c_char * size).from_address(start), np.uint8)

    def close(self):
        assert libc.munmap(self.address, self.length) == 0


def fenced(values, at_end):
    fence = Fenced(values.nbytes, at_end)
    array = fence.bytes.view(values.dtype).reshape(values.shape)
    array[...] = values
    return fence, array


rng = np.random.default_rng(0)
checked = 0
for shape in [(1, 1), (1, 7), (7, 1), (5, 33), (33, 5), (31, 127), (66, 130), (67, 129), (130, 66), (129, 300)]:
    noise = rng.standard_normal(shape)
    for dtype in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16):
        for at_end in (False, True):
            fence, W = fenced(noise.astype(dtype), at_end)
            for A in (W, W.T, W[::-1, ::-1]):
                for width in (1, 3, 4, 8, 13):
                    vectors = rng.standard_normal((A.shape[1], width))
                    guard, X = fenced(vectors.astype(np.float64 if dtype == np.float64 else np.float32), at_end)
                    Z = mpfast.gram_product(A, X, threads=1, side="right")
                    exact = A.astype(float)
                    wanted = exact.T @ (exact @ vectors)
                    slack = (1e-4 if dtype != np.float64 else 1e-12) * max(np.abs(wanted).max(), 1e-30)
                    assert np.abs(Z - wanted).max() <= slack, (shape, dtype, width)
                    del X
                    guard.close()
                guard, sums = fenced(np.zeros((A.shape[1], A.shape[1])), at_end)
                _core.add_gram(as_matrix(A), sums, 2)
                del sums
                guard.close()
                factors = np.exp(rng.standard_normal(A.shape[0])), np.exp(rng.standard_normal(A.shape[1]))
                for pair in (None, factors):
                    rows, columns, *_ = _core.energies(as_matrix(A), 0, 2, pair)
                    B = A.astype(float) if pair is None else factors[0][:, None] * A.astype(float) * factors[1]
                    assert np.allclose(rows, (B**2).sum(axis=1), rtol=1e-12)
                    assert np.allclose(columns, (B**2).sum(axis=0), rtol=1e-12)
                mpfast.spectrum(A, method="exact", threads=2)
                mpfast.masks.magnitude(A, 0.5, threads=2)
                if A.shape[1] % 4 == 0:
                    mpfast.masks.n_m(A, 2, 4, threads=2)
                if min(shape) >= 66:
                    mpfast.spectrum(A, method="lanczos", probes=4, steps=6, threads=2)
                    mpfast.svd(A, 2, threads=2)
                checked += 1
            del W, A
            fence.close()
for code in _core.code_names():
    for shape in [(1, 1), (1, 7), (7, 1), (5, 33), (33, 5), (31, 127), (66, 130), (129, 300)]:
        for at_end in (False, True):
            fence, codes = fenced(rng.integers(1, 100, shape).astype(np.uint8), at_end)
            width = 16 if shape[1] % 2 else 64
            columns = shape[1] * (2 if code == "float4_e2m1" else 1)
            guard, scales = fenced(rng.random((shape[0], -(-columns // width))).astype(np.float32), at_end)
            matrix = _core.Matrix.of_codes(code, codes, scales, width, "float32")
            W = matrix.decoded().astype(float)
            for side, A in (("right", W), ("left", W.T)):
                for count in (1, 4, 13):
                    vectors = rng.standard_normal((count, A.shape[1]))
                    found = _core.gram_product(matrix, vectors.astype(np.float32), side, 2)[0]
                    wanted = (A.T @ (A @ vectors.T)).T
                    assert np.abs(found - wanted).max() <= 1e-4 * max(np.abs(wanted).max(), 1e-30)
            _core.exact_values(matrix, 2)
            checked += 1
            del matrix, codes, scales
            fence.close()
            guard.close()
print(checked)
"""


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_nothing_beyond_the_array_is_touched(isa):
    # In a process of its own: what touches such a page ends it.
    done = run_python("-c", SCRIPT, timeout=300, env={**os.environ, "MPFAST_ISA": isa})
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    assert int(done.stdout) == 10 * 4 * 2 * 3 + 4 * 8 * 2


def test_the_fence_ends_a_process_that_touches_it():
    body = SCRIPT[: SCRIPT.index("rng = ")]
    body += "fence, W = fenced(np.ones(10), True)\nctypes.string_at(W.ctypes.data, 81)\n"
    assert run_python("-c", body).returncode < 0
