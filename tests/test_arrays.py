"""Arrays of every framework: the same numbers, no copy, results in the caller's framework."""

from __future__ import annotations

import gc
import sys
import textwrap
import weakref

import numpy as np
import pytest

import mpfast
from mpfast import lowrank, masks
from mpfast.spectra.synthetic import low_rank

from .references import bfloat16_bits, from_bfloat16_bits, run_python


def matrix(dtype=np.float32, shape=(160, 240), seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) + low_rank(shape, np.array([90.0, 70.0]), rng)).astype(dtype)


def values(W):
    return mpfast.spectrum(W).values


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def jax():
    return pytest.importorskip("jax")


class TestNumpy:
    @pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
    def test_types(self, dtype):
        W = matrix(dtype)
        np.testing.assert_allclose(values(W), np.linalg.svd(W.astype(float), compute_uv=False), rtol=1e-9)
        assert mpfast.spectrum(W).dtype == np.dtype(dtype).name

    @pytest.mark.parametrize(
        "view",
        [
            lambda a: np.asfortranarray(a),
            lambda a: np.ascontiguousarray(a.T).T,
            lambda a: np.repeat(np.repeat(a, 2, 0), 3, 1)[::2, ::3],
            lambda a: np.ascontiguousarray(a[::-1, ::-1])[::-1, ::-1],
            lambda a: np.lib.stride_tricks.as_strided(a, a.shape, a.strides, writeable=False),
        ],
    )
    def test_strides(self, view):
        W = matrix()
        np.testing.assert_allclose(values(view(W)), values(W), rtol=1e-12)

    def test_broadcast_rows(self):
        row = np.random.default_rng(0).standard_normal(300)
        spectrum = mpfast.spectrum(np.broadcast_to(row, (100, 300)))
        assert spectrum.values[0] == pytest.approx(10 * np.linalg.norm(row))
        assert spectrum.values[1] < 1e-6 * spectrum.values[0]

    def test_read_only_and_unchanged(self):
        W = matrix()
        before = W.copy()
        W.flags.writeable = False
        for call in (
            values,
            lambda w: mpfast.svd(w, 3),
            lambda w: masks.n_m(w, 2, 4),
            lambda w: masks.magnitude(w, 0.5),
        ):
            call(W)
        np.testing.assert_array_equal(W, before)

    def test_subclasses_and_protocols(self):
        W = matrix(np.float64)

        class Interface:
            __array_interface__ = W.__array_interface__

        class Converts:
            def __array__(self, dtype=None, copy=None):
                return W

        class Packet:
            def __dlpack__(self, **_):
                return W.__dlpack__()

            def __dlpack_device__(self):
                return (1, 0)

        class Sub(np.ndarray):
            pass

        for given in (Interface(), Converts(), Packet(), memoryview(W), W.view(Sub)):
            np.testing.assert_array_equal(values(given), values(W))

    def test_ml_dtypes_bfloat16(self):
        ml_dtypes = pytest.importorskip("ml_dtypes")
        bits = bfloat16_bits(matrix())
        W = bits.view(ml_dtypes.bfloat16)
        np.testing.assert_allclose(values(W), values(from_bfloat16_bits(bits)), rtol=1e-12)
        assert mpfast.spectrum(W).dtype == "bfloat16"

    def test_results_are_numpy(self):
        W = matrix()
        U, s, Vh = mpfast.svd(W, 4)
        assert (U.dtype, s.dtype, Vh.dtype) == (np.float32, np.float64, np.float32)
        assert mpfast.gram_product(W, np.ones(160)).dtype == np.float32
        assert mpfast.gram_product(W.astype(np.float64), np.ones(160)).dtype == np.float64


class TestTorch:
    @pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
    def test_types(self, torch, dtype):
        W = torch.from_numpy(matrix(np.float64)).to(getattr(torch, dtype))
        np.testing.assert_allclose(values(W), values(W.double().numpy()), rtol=1e-9)
        assert mpfast.spectrum(W).dtype == dtype

    def test_a_subclass_of_another_module(self, torch):
        class Tracked(torch.Tensor):
            pass

        assert not Tracked.__module__.startswith("torch")
        W = torch.from_numpy(matrix(np.float64)).bfloat16()
        np.testing.assert_array_equal(values(W.as_subclass(Tracked)), values(W))

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_views_and_gradients(self, torch, dtype):
        W = torch.from_numpy(matrix(np.float64)).to(getattr(torch, dtype))
        wanted = values(W)
        wide = torch.stack([W, W], dim=2).reshape(160, 480)[:, ::2]
        assert not wide.is_contiguous()
        np.testing.assert_allclose(values(wide), wanted, rtol=1e-12)
        np.testing.assert_allclose(values(W.t()), wanted, rtol=1e-12)
        parameter = torch.nn.Parameter(W)
        np.testing.assert_array_equal(values(parameter), wanted)
        assert parameter.grad is None

    def test_results_are_tensors(self, torch):
        # Four spikes: vectors are as accurate as the tolerance of the values only where there is a gap below them.
        noise = np.random.default_rng(1).standard_normal((160, 240))
        spikes = low_rank(noise.shape, np.array([120.0, 90.0, 70.0, 50.0]), np.random.default_rng(2))
        W = torch.from_numpy((noise + spikes).astype(np.float32)).requires_grad_()
        U, s, Vh = mpfast.svd(W, 4)
        assert isinstance(U, torch.Tensor)
        assert isinstance(s, np.ndarray)
        torch.testing.assert_close(
            U @ torch.diag(torch.from_numpy(s).float()) @ Vh, self.truncated(torch, W, 4), atol=1e-3, rtol=1e-3
        )
        A, B = lowrank.factor(W, 4)
        torch.testing.assert_close(A @ B, self.truncated(torch, W, 4), atol=1e-3, rtol=1e-3)
        for mask in (masks.magnitude(W, 0.5), masks.n_m(W, 2, 4)):
            assert mask.dtype == torch.bool
            assert mask.shape == W.shape
        Z = mpfast.gram_product(W, torch.ones(240, 3), side="right")
        torch.testing.assert_close(Z, W.detach().t() @ (W.detach() @ torch.ones(240, 3)), rtol=1e-4, atol=1e-2)

    @staticmethod
    def truncated(torch, W, k):
        U, s, Vh = torch.linalg.svd(W.detach(), full_matrices=False)
        return (U[:, :k] * s[:k]) @ Vh[:k]

    def test_what_cannot_be_read(self, torch):
        W = torch.from_numpy(matrix())
        for tensor, error, message in (
            (W.to("meta"), ValueError, "meta device"),
            (W.to_sparse(), TypeError, "sparse torch tensor"),
            (W.to(torch.complex64), TypeError, "complex entries"),
            (W.to(torch.int64), TypeError, r"int64.*W\.float\(\)"),
            (W.to(torch.float8_e4m3fn), TypeError, "float8"),
            (torch.conj(W.to(torch.complex64)).imag, ValueError, "resolve_neg"),
        ):
            with pytest.raises(error, match=message):
                mpfast.spectrum(tensor)


class TestJax:
    @pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
    def test_types(self, jax, dtype):
        W = jax.numpy.asarray(matrix()).astype(dtype)
        np.testing.assert_allclose(values(W), values(np.asarray(W.astype("float32"))), rtol=1e-9)

    def test_results_are_jax_arrays(self, jax):
        W = jax.numpy.asarray(matrix())
        U, _, Vh = mpfast.svd(W, 3)
        assert isinstance(U, jax.Array)
        assert isinstance(Vh, jax.Array)
        assert isinstance(masks.magnitude(W, 0.5), jax.Array)
        assert isinstance(mpfast.gram_product(W, jax.numpy.ones(240), side="right"), jax.Array)


class TestSparseAndOperators:
    @pytest.mark.parametrize("layout", ["csr_array", "csc_array", "coo_array", "csr_matrix", "bsr_array", "lil_array"])
    def test_sparse(self, layout):
        sparse = pytest.importorskip("scipy.sparse")
        dense = np.where(np.random.default_rng(0).random((400, 500)) < 0.2, matrix(np.float64, (400, 500)), 0)
        W = getattr(sparse, layout)(dense)
        spectrum, wanted = mpfast.spectrum(W), mpfast.spectrum(dense)
        assert spectrum.edge.sigma_plus == pytest.approx(wanted.edge.sigma_plus, rel=0.02)
        assert spectrum.fro_norm == pytest.approx(np.linalg.norm(dense))
        np.testing.assert_allclose(mpfast.svd(W, 3).s, wanted.values[:3], rtol=1e-5)
        x = np.random.default_rng(1).standard_normal((500, 2))
        np.testing.assert_allclose(mpfast.gram_product(W, x, side="right"), dense.T @ (dense @ x), rtol=1e-9, atol=1e-9)

    def test_repeated_entries_are_added(self):
        sparse = pytest.importorskip("scipy.sparse")
        W = sparse.coo_array(([1.0, 2.0, 4.0], ([0, 0, 2], [1, 1, 3])), shape=(70, 80))
        assert mpfast.spectrum(W).fro_norm == 5
        assert W.nnz == 3
        # Where nobody forms W^T W the norm is that of the stored entries.
        ends = np.concatenate([[0, 2, 2], np.full(1498, 3)])
        W = sparse.csr_array((np.array([1.0, 2.0, 4.0]), np.array([1, 1, 3]), ends), shape=(1500, 1400))
        assert mpfast.spectrum(W, method="lanczos").fro_norm == 5
        assert W.nnz == 3

    def test_linear_operator(self):
        linalg = pytest.importorskip("scipy.sparse.linalg")
        dense = matrix(np.float64, (1300, 1100))
        spectrum = mpfast.spectrum(linalg.aslinearoperator(dense))
        wanted = mpfast.spectrum(dense, method="exact")
        assert spectrum.method == "lanczos"
        assert spectrum.edge.sigma_plus == pytest.approx(wanted.edge.sigma_plus, rel=0.02)
        assert not spectrum.fro_norm_exact
        assert spectrum.fro_norm == pytest.approx(wanted.fro_norm, rel=0.02)
        np.testing.assert_allclose(mpfast.svd(linalg.aslinearoperator(dense), 2).s, wanted.values[:2], rtol=1e-5)

    def test_operator_without_adjoint(self):
        linalg = pytest.importorskip("scipy.sparse.linalg")
        W = linalg.LinearOperator((80, 90), matvec=lambda x: np.zeros(80), dtype=float)
        with pytest.raises(TypeError, match="adjoint"):
            mpfast.spectrum(W)

    @pytest.mark.parametrize("shape", [(80, 90), (90, 80), (80, 80)])
    @pytest.mark.parametrize("wrong", ["twice", "itself", "one entry", "sign"])
    def test_operator_whose_rmatvec_is_not_its_adjoint(self, shape, wrong):
        linalg = pytest.importorskip("scipy.sparse.linalg")
        dense = np.random.default_rng(2).standard_normal(shape)
        other = {"twice": 2 * dense, "sign": -dense, "one entry": dense.copy(), "itself": dense.copy()}[wrong]
        if wrong == "one entry":
            other[3, 5] += 1e-6
        if wrong == "itself":
            other = dense.T.reshape(shape)  # a transpose that was one too many, or a reshape in its place
        calls = []

        def back(y):
            calls.append(y)
            return other.T @ y

        W = linalg.LinearOperator(shape, matvec=lambda x: dense @ x, rmatvec=back, dtype=float)
        for call in (mpfast.spectrum, lambda W: mpfast.svd(W, 2)):
            with pytest.raises(ValueError, match=r"W has an rmatvec that is not the adjoint of its matvec"):
                call(W)
        right = linalg.LinearOperator(shape, matvec=lambda x: dense @ x, rmatvec=lambda y: dense.T @ y, dtype=float)
        s = np.linalg.svd(dense, compute_uv=False)
        np.testing.assert_allclose(mpfast.spectrum(right).values, s, atol=1e-7 * s[0])

    def test_operator_that_rounds_more_than_its_type_says(self):
        """fp32 inside, or a small difference of large products: its own adjoint but for that rounding."""
        linalg = pytest.importorskip("scipy.sparse.linalg")
        rng = np.random.default_rng(3)
        dense = rng.standard_normal((80, 90))
        single = dense.astype(np.float32)
        base, tuned = 1e6 * dense, 1e6 * dense + rng.standard_normal((80, 90))
        for matvec, rmatvec in (
            (lambda x: single @ x.astype(np.float32), lambda y: single.T @ y.astype(np.float32)),
            (lambda x: tuned @ x - base @ x, lambda y: tuned.T @ y - base.T @ y),
        ):
            W = linalg.LinearOperator((80, 90), matvec=matvec, rmatvec=rmatvec, dtype=float)
            assert mpfast.spectrum(W).edge.sigma_plus > 0

    def test_operator_with_bad_products(self):
        linalg = pytest.importorskip("scipy.sparse.linalg")
        W = linalg.LinearOperator(
            (80, 90), matvec=lambda x: np.full(80, np.nan), rmatvec=lambda x: np.zeros(90), dtype=float
        )
        with pytest.raises(ValueError, match="not finite"):
            mpfast.spectrum(W)

    def test_non_finite_sparse_entries_are_located(self):
        sparse = pytest.importorskip("scipy.sparse")
        dense = np.eye(70)
        dense[60, 3] = dense[8, 9] = np.inf
        with pytest.raises(ValueError, match=r"2 non-finite.*\(8, 9\)"):
            mpfast.spectrum(sparse.csc_array(dense))


class TestPandas:
    def test_frames(self):
        pandas = pytest.importorskip("pandas")
        W = matrix(np.float64)
        np.testing.assert_allclose(values(pandas.DataFrame(W)), values(W), rtol=1e-12)
        mixed = pandas.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"]})
        with pytest.raises(TypeError, match="mixed types"):
            mpfast.spectrum(mixed)


MEMORY = """
    import resource, numpy as np, mpfast
    from mpfast import _core
    mpfast.spectrum(np.random.default_rng(1).standard_normal((1200, 1500), dtype=np.float32), method="lanczos")
    W = np.random.default_rng(0).standard_normal(({n}, {n}), dtype=np.float32)
    W = {layout}
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    with open("/proc/self/clear_refs", "w") as f:
        f.write("5")
    def high_water():
        for line in open("/proc/self/status"):
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    before = high_water()
    {call}
    print((high_water() - before) / W.nbytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("call", "limit"),
    [
        ("mpfast.spectrum(W).edge", 0.05),
        ("mpfast.gram_product(W, np.ones((W.shape[1], 4), np.float32))", 0.05),
        # A mask has a byte per entry: a quarter of the input.
        ("mpfast.masks.n_m(W, 2, 4)", 0.30),
    ],
)
@pytest.mark.parametrize("layout", ["W", "W.T", "W[:, ::-1]"])
def test_peak_memory_above_the_input(call, limit, layout):
    script = textwrap.dedent(MEMORY.format(n=8192, layout=layout, call=call))
    run = run_python("-c", script)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < limit


def test_nothing_keeps_the_input_alive():
    class Array(np.ndarray):
        pass

    W = matrix().view(Array)
    alive = weakref.ref(W)
    results = mpfast.spectrum(W), mpfast.svd(W, 2), masks.magnitude(W, 0.5)
    del W
    gc.collect()
    assert alive() is None
    assert results


def test_frameworks_are_not_imported_for_numpy_arrays():
    optional = {"torch", "jax", "scipy", "pandas", "cupy", "rich", "typer", "matplotlib"}
    script = f"import sys, numpy, mpfast; mpfast.spectrum(numpy.eye(70)); print(set(sys.modules) & {optional})"
    run = run_python("-c", script)
    assert run.stdout == "set()\n"
