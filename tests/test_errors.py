"""Bad input: the right exception, with a message that says what to do; the input untouched."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest

import mpfast
from mpfast import CheckpointError, ConvergenceWarning, _core, lowrank

GOOD = np.random.default_rng(0).standard_normal((80, 100))
FUNCTIONS = {
    "spectrum": mpfast.spectrum,
    "svd": lambda W: mpfast.svd(W, 2),
    "gram_product": lambda W: mpfast.gram_product(W, np.ones(1)),
    "factor": lambda W: lowrank.factor(W, 2),
}


@pytest.mark.parametrize("name", FUNCTIONS)
class TestEveryFunction:
    def rejects(self, name, W, error, message):
        with pytest.raises(error, match=message) as caught:
            FUNCTIONS[name](W)
        assert f"{name}()" in str(caught.value) or "svd()" in str(caught.value)

    @pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0)])
    def test_empty(self, name, shape):
        self.rejects(name, np.empty(shape), ValueError, r"W is empty: its shape is \(")

    @pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4)])
    def test_dimensions(self, name, shape):
        self.rejects(name, np.ones(shape), ValueError, "W must be 2-D, but has shape")

    @pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_])
    def test_integers(self, name, dtype):
        self.rejects(name, np.ones((9, 9), dtype), TypeError, r"cast it, e\.g\. W\.astype\('float32'\)")

    def test_complex(self, name):
        self.rejects(name, np.ones((9, 9), complex), TypeError, r"complex entries.*W\.real")

    def test_objects(self, name):
        self.rejects(name, np.full((9, 9), None), TypeError, "dtype object")

    def test_longdouble(self, name):
        if np.dtype(np.longdouble).itemsize == 8:
            pytest.skip("long double is double here")
        self.rejects(name, np.ones((9, 9), np.longdouble), TypeError, "cast it")

    def test_foreign_byte_order(self, name):
        self.rejects(name, np.ones((9, 9), np.dtype("f8").newbyteorder()), TypeError, "foreign byte order")

    def test_misaligned(self, name):
        buffer = np.zeros(9 * 9 * 8 + 1, np.uint8)
        W = np.frombuffer(buffer.data, np.float64, count=81, offset=1).reshape(9, 9)
        self.rejects(name, W, ValueError, r"not aligned.*W\.copy\(\)")

    @pytest.mark.parametrize("W", [[[1.0, 2.0], [3.0, 4.0]], "W", None, 3.0, {"a": 1}, object()])
    def test_not_arrays(self, name, W):
        self.rejects(name, W, TypeError, "must be an array, not ")


@pytest.mark.parametrize("method", ["exact", "lanczos"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_entries_are_counted_and_located(method, dtype, bad):
    W = GOOD.astype(dtype)
    W[70, 3] = W[12, 99] = W[12, 7] = bad
    with pytest.raises(ValueError, match=r"W has 3 non-finite entries.*\(12, 7\)"):
        mpfast.spectrum(W, method=method)
    with pytest.raises(ValueError, match=r"3 non-finite.*\(12, 7\)"):
        mpfast.svd(W, 3)
    with pytest.raises(ValueError, match=r"3 non-finite.*\(12, 7\)"):
        mpfast.gram_product(W, np.ones(80))
    with pytest.raises(ValueError, match=r"3 non-finite.*\(3, 70\)"):
        mpfast.spectrum(W.T, method=method)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "qr"}, "method must be 'auto', 'exact' or 'lanczos', not 'qr'"),
        ({"tol": 0}, "tol must be between 0 and 1"),
        ({"tol": -1e-3}, "tol must be between 0 and 1"),
        ({"tol": math.nan}, "tol must be between 0 and 1"),
        ({"tol": "small"}, "tol must be between 0 and 1"),
        ({"probes": 0}, "probes must be a positive integer"),
        ({"probes": 2.5}, "probes must be a positive integer"),
        ({"steps": -3}, "steps must be a positive integer"),
        ({"threads": 0}, "threads must be a positive integer"),
        ({"threads": True}, "threads must be a positive integer"),
        ({"seed": -1}, r"seed must be an integer in \[0, 2\*\*64\)"),
        ({"seed": 2**64}, "seed must be an integer"),
        ({"seed": 0.5}, "seed must be an integer"),
        ({"seed": None}, "seed must be an integer"),
    ],
)
def test_options_of_spectrum(options, message):
    with pytest.raises(ValueError, match=message):
        mpfast.spectrum(GOOD, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either k"),
        ({"k": 3, "until": "mp_edge"}, "give either k"),
        ({"until": "edge"}, "until must be 'mp_edge'"),
        ({"k": 0}, "k must be between 1 and"),
        ({"k": 81}, "k must be between 1 and"),
        ({"k": 2.0}, "k must be between 1 and"),
        ({"k": 3, "tol": 0}, "tol must be between"),
        ({"k": 3, "block": 33}, "block must be between 1 and 32"),
        ({"k": 3, "block": 2.5}, "block must be between 1 and 32"),
        ({"k": 3, "block": "a"}, "block must be between 1 and 32"),
        ({"k": 3, "seed": -1}, r"svd\(\): seed"),
        ({"k": 3, "threads": 0}, r"svd\(\): threads"),
    ],
)
def test_options_of_svd(options, message):
    with pytest.raises(ValueError, match=message):
        mpfast.svd(GOOD, **options)


@pytest.mark.parametrize(
    ("X", "options", "error", "message"),
    [
        (np.ones(81), {}, ValueError, r"X must have shape \(80, b\) for side='left'"),
        (np.ones((80, 0)), {}, ValueError, "X must have shape"),
        (np.ones((80, 2, 2)), {}, ValueError, "X must have shape"),
        (np.ones(80), {"side": "right"}, ValueError, r"X must have shape \(100, b\) for side='right'"),
        (np.ones(80), {"side": "top"}, ValueError, "side must be"),
        (np.ones(80, int), {}, TypeError, "X has dtype int64"),
        (np.full(80, math.nan), {}, ValueError, "X has 80 non-finite"),
        (np.ones(80), {"threads": -2}, ValueError, "threads must be a positive integer"),
    ],
)
def test_options_of_gram_product(X, options, error, message):
    with pytest.raises(error, match=message):
        mpfast.gram_product(GOOD, X, **options)


@pytest.mark.parametrize("rank", [0, 81, 1.5, "edge", None])
def test_options_of_factor(rank):
    with pytest.raises(ValueError, match=r"factor\(\): rank must be"):
        lowrank.factor(GOOD, rank)


def test_too_small_for_lanczos():
    with pytest.raises(ValueError, match="method='lanczos' needs"):
        mpfast.spectrum(GOOD[:20], method="lanczos")


def test_memory_error_says_how_much():
    """A Gram matrix of 8 TB: refused with its size, not by the machine's killer."""
    vector = np.zeros(1, np.float32)
    W = np.lib.stride_tricks.as_strided(vector, (1_000_000, 1_000_000), (0, 0))
    with pytest.raises(MemoryError, match="8000000000000 bytes"):
        mpfast.spectrum(W, method="exact")


@pytest.mark.slow
def test_missed_tolerance_warns_with_what_was_reached():
    W = np.random.default_rng(0).standard_normal((1100, 1300)).astype(np.float32)
    with pytest.warns(ConvergenceWarning, match=r"tol=1e-06 was not met.*\d"):
        spectrum = mpfast.spectrum(W, method="lanczos", tol=1e-6)
    assert spectrum.edge.sigma_plus_error > 1e-6 * spectrum.edge.sigma_plus


def test_exceptions_are_what_they_promise():
    error = CheckpointError("m.safetensors: broken", tensor="w", offset=8)
    assert isinstance(error, ValueError)
    assert (error.tensor, error.offset) == ("w", 8)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert issubclass(ConvergenceWarning, UserWarning)


def test_the_core_refuses_arguments_of_wrong_types():
    matrix = _core.Matrix(np.ones((8, 8)), "float64")
    with pytest.raises(TypeError, match="incompatible function arguments"):
        _core.lanczos_run(matrix, 2.5, 0, 0, 0, False, 1)


def test_options_out_of_range():
    with pytest.raises(ValueError, match=r"factor\(\): rank must be at most min\(W.shape\) = 80"):
        lowrank.factor(GOOD, 100)
    with pytest.raises(ValueError, match="threads must be at most"):
        mpfast.spectrum(GOOD, threads=2**40)
    with pytest.raises(ValueError, match="tol must be"):
        mpfast.prune({"w": GOOD}, sparsity=0.5, method="magnitude", tol=99)
    with pytest.raises(ValueError, match="needs at least 40 rows"):
        mpfast.spectra.synthetic.family("spikes40", (20, 30), 0)
