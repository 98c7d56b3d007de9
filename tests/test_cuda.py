"""The CUDA backend on the emulated device, against the CPU backend and NumPy; see tests/emulation/README.md."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import mpfast
from mpfast import _core
from mpfast.arrays.devices import is_on_gpu
from mpfast.operators.cuda import has_contiguous_rows

from .device_arrays import DTYPES, device_matrix, on_device, stored
from .references import run_python

pytestmark = pytest.mark.usefixtures("cuda")

# More than a panel and a slice of every type, not a multiple of anything, and smaller than one tile.
SHAPES = ((131, 70), (37, 301), (5, 3), (1, 40))
# Unit roundoff of the products, times sqrt of the longest sum (301), times a few.
TOLERANCE = {"float64": 1e-14, "float32": 4e-6}


def layouts(W: NDArray[Any]) -> dict[str, NDArray[Any]]:
    rows, cols = W.shape
    wide = np.zeros((rows, 2 * cols + 1), dtype=W.dtype)
    wide[:, 1::2] = W
    odd = np.zeros((rows, cols + 1 + cols % 2), dtype=W.dtype)
    odd[:, :cols] = W
    return {
        "rows": np.ascontiguousarray(W),
        "columns": np.asfortranarray(W),
        "strided": wide[:, 1::2],
        "reversed": np.ascontiguousarray(W[::-1, ::-1])[::-1, ::-1],
        "odd pitch": odd[:, :cols],
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_gram_product_equals_numpy(cuda: Any, shape: tuple[int, int], dtype: str) -> None:
    rng = np.random.default_rng(shape[0])
    entries, W = stored(rng.standard_normal(shape), dtype)
    for name, layout in layouts(entries).items():
        for real in ("float64",) if dtype == "float64" else ("float32", "float64"):
            for width, right in ((1, True), (5, False), (9, True), (32, False)) if name == "rows" else ((3, True),):
                B = W if right else W.T
                x = rng.standard_normal((width, B.shape[1])).astype(real)
                z, squares, nonfinite, row, col = cuda.gram_product(device_matrix(cuda, layout, dtype), x, right)
                expected = (B.T @ (B @ x.T.astype(np.float64))).T
                # Against the size of the terms, since their sum may cancel.
                size = (np.abs(B.T) @ (np.abs(B) @ np.abs(x.T))).T
                assert (np.abs(z - expected) <= TOLERANCE[real] * size).all(), (name, real, width)
                assert squares == pytest.approx((W**2).sum(), rel=1e-13)
                assert (nonfinite, row, col) == (0, -1, -1)


@pytest.mark.parametrize("cluster", ["1", "2"])
def test_gram_product_in_two_passes(cuda: Any, cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More coordinates than a cluster of the device holds."""
    monkeypatch.setenv("MPFAST_EMULATED_CLUSTER", cluster)
    rng = np.random.default_rng(3)
    W = rng.standard_normal((70, 1100)).astype(np.float32)
    x = rng.standard_normal((32, 1100)).astype(np.float32)
    z, squares, *_ = cuda.gram_product(device_matrix(cuda, W, "float32"), x, True)
    expected = (W.T.astype(float) @ (W.astype(float) @ x.T.astype(float))).T
    assert np.abs(z - expected).max() < 1e-5 * np.abs(expected).max()
    assert squares == pytest.approx(np.sum(W.astype(float) ** 2), rel=1e-13)


@pytest.mark.parametrize("room", ["1", "2", "8"])
def test_gram_product_where_clusters_find_no_place(cuda: Any, room: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device has clusters of eight blocks, but not for this kernel: two passes, as where it has none."""
    rng = np.random.default_rng(4)
    W = rng.standard_normal((70, 1100)).astype(np.float32)
    x = rng.standard_normal((32, 1100)).astype(np.float32)
    matrix = device_matrix(cuda, W, "float32")
    assert cuda.plan_product("gram", "float32", 70, 1100, 4, 32, 227 << 10, 8)["slices"] > 2
    monkeypatch.setenv("MPFAST_EMULATED_CLUSTER", "1")
    two_passes = cuda.gram_product(matrix, x, True)
    monkeypatch.delenv("MPFAST_EMULATED_CLUSTER")
    one_pass = cuda.gram_product(matrix, x, True)
    monkeypatch.setenv("MPFAST_EMULATED_ROOM", room)
    found = cuda.gram_product(matrix, x, True)
    expected = one_pass if room == "8" else two_passes
    np.testing.assert_array_equal(found[0], expected[0])
    assert found[1:] == expected[1:]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gram_product_by_wide_blocks(cuda: Any, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More coordinates than a block of 256 threads holds, fewer than one of 512."""
    monkeypatch.setenv("MPFAST_EMULATED_CLUSTER", "1")
    plan = cuda.plan_product("gram", dtype, 45, 1100, 4, 3, 227 << 10, 1)
    assert (plan["threads"], plan["slices"], plan["possible"]) == (512, 1, True)
    rng = np.random.default_rng(18)
    entries, W = stored(rng.standard_normal((45, 1100)), dtype)
    x = rng.standard_normal((3, 1100)).astype(np.float32)
    for layout in (entries, np.asfortranarray(entries)):
        z = cuda.gram_product(device_matrix(cuda, layout, dtype), x, True)[0]
        expected = (W.T @ (W @ x.T.astype(float))).T
        assert np.abs(z - expected).max() < 1e-5 * np.abs(expected).max()


def test_plans_fit_the_device(cuda: Any) -> None:
    """Every plan that claims to be possible keeps to the limits of its device, and covers the matrix."""
    for shared, cluster in ((227 << 10, 8), (163 << 10, 1), (99 << 10, 1)):
        for rows, cols in ((10, 3), (4096, 4096), (28672, 8192), (53248, 16384), (2_000_000, 100)):
            for dtype, real in (("float64", 8), ("float32", 8), ("float32", 4), ("bfloat16", 4)):
                for width in (1, 4, 7, 16, 32):
                    for kind in ("gram", "plain"):
                        plan = cuda.plan_product(kind, dtype, rows, cols, real, width, shared, cluster)
                        if not plan["possible"]:
                            assert kind == "gram" or plan["shared_bytes"] > shared
                            continue
                        assert plan["width"] >= width
                        assert plan["shared_bytes"] <= shared
                        assert plan["slice"] * plan["slices"] >= cols
                        assert plan["panel_rows"] * plan["chunk_panels"] * plan["chunks"] >= rows
                        assert plan["chunks"] <= 65535
                        assert kind == "plain" or plan["slices"] <= cluster
    largest = cuda.plan_product("gram", "bfloat16", 53248, 16384, 4, 4, 227 << 10, 8)
    assert largest["possible"], "16384 coordinates of four vectors are what one pass has to hold"


def test_gram_product_across_a_cluster_is_deterministic(cuda: Any) -> None:
    rng = np.random.default_rng(4)
    W = rng.standard_normal((40, 2100)).astype(np.float32)
    x = rng.standard_normal((16, 2100)).astype(np.float32)
    matrix = device_matrix(cuda, W, "float32")
    first = cuda.gram_product(matrix, x, True)[0]
    assert (first == cuda.gram_product(matrix, x, True)[0]).all()
    expected = (W.T.astype(float) @ (W.astype(float) @ x.T.astype(float))).T
    assert np.abs(first - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("right", [True, False])
def test_nonfinite_entries_are_counted_and_the_first_is_found(cuda: Any, dtype: str, right: bool) -> None:
    W = np.ones((45, 37))
    entries, _ = stored(W, dtype)
    bad = stored(np.array([np.nan, np.inf, -np.inf]), dtype)[0]
    entries[30, 2], entries[17, 36], entries[17, 5] = bad
    x = np.ones((2, 37 if right else 45), dtype=np.float64)
    _, _, nonfinite, row, col = cuda.gram_product(device_matrix(cuda, entries, dtype), x, right)
    assert (nonfinite, row, col) == (3, 17, 5)


@pytest.mark.parametrize("exponent", [-100, 100])
def test_scaled_products_neither_overflow_nor_underflow(cuda: Any, exponent: int) -> None:
    W = (np.random.default_rng(5).standard_normal((80, 40)) * 2.0**exponent).astype(np.float32)
    matrix = device_matrix(cuda, W, "float32")
    found = cuda.scale_exponent(matrix)
    assert found == _core.scale_exponent(_core.Matrix(W, "float32"))
    scaled = W.astype(np.float64) * 2.0**-found
    x = np.ones((1, 40), dtype=np.float32)
    z, squares, *_ = cuda.gram_product(matrix, x, True, found)
    assert np.allclose(z[0], scaled.T @ (scaled @ x[0]), rtol=1e-5, atol=1e-4)
    assert squares == pytest.approx((scaled**2).sum(), rel=1e-13)


@pytest.mark.parametrize("shape", [(180, 130), (70, 300)])
@pytest.mark.parametrize("precise", [False, True])
def test_lanczos_takes_the_cpu_s_course(cuda: Any, shape: tuple[int, int], precise: bool) -> None:
    """Same seed, same probes, same algorithm: the coefficients differ by rounding only."""
    W = np.random.default_rng(6).standard_normal(shape).astype(np.float32)
    W[:, 3] = 0
    W[7] = 0
    device = cuda.lanczos_run(device_matrix(cuda, W, "float32"), 6, 11, 2, 0, precise)
    host = _core.lanczos_run(_core.Matrix(W, "float32"), 6, 11, 2, 0, precise, 1)
    streamed = cuda.lanczos_run_streamed(W, "float32", 0, 6, 11, 2, 0, precise, 1 << 14)
    for run in (device, host, streamed):
        run.advance(4)
    theta, residual, weight = host.ritz()
    tolerance = 1e-10 if precise else 1e-4
    for run in (device, streamed):
        assert run.zero_coordinates == host.zero_coordinates == 1
        assert run.stats[0] == pytest.approx(host.stats[0], rel=1e-7)
        assert np.abs(run.ritz()[0] - theta).max() < tolerance * theta[0]
        assert np.abs(run.ritz()[1] - residual).max() < tolerance * theta[0]
        assert np.abs(run.ritz()[2] - weight).max() < 10 * tolerance * weight.max()
        alignment = np.sum(run.ritz_vectors(2) * host.ritz_vectors(2), axis=1)
        assert np.abs(np.abs(alignment) - 1).max() < tolerance


def test_lanczos_on_a_matrix_of_low_rank_closes_the_space(cuda: Any) -> None:
    rng = np.random.default_rng(7)
    W = (rng.standard_normal((90, 5)) @ rng.standard_normal((5, 80))).astype(np.float32)
    run = cuda.lanczos_run(device_matrix(cuda, W, "float32"), 4, 0, 0, 0, True)
    run.advance(12)
    s = np.linalg.svd(W.astype(np.float64), compute_uv=False)
    assert np.allclose(np.sqrt(run.ritz()[0][:5]), s[:5], rtol=1e-6)
    assert run.exhausted


def test_streamed_matrix_reports_nonfinite_entries_where_they_are(cuda: Any) -> None:
    for shape in ((300, 70), (70, 300)):
        W = np.ones(shape, dtype=np.float32)
        W[69, 65] = W[66, 69] = np.nan
        run = cuda.lanczos_run_streamed(W, "float32", 0, 4, 0, 0, 0, False, 1 << 13)
        run.advance(1)
        assert run.stats[1:] == (2, 66, 69)


@pytest.mark.parametrize("count", [3, 33])
def test_multiply_both_ways(cuda: Any, count: int) -> None:
    W = np.random.default_rng(8).standard_normal((60, 75))
    matrix = device_matrix(cuda, W, "float64")
    X = np.random.default_rng(9).standard_normal((count, 75))
    Y = np.random.default_rng(10).standard_normal((count, 60))
    assert np.allclose(cuda.multiply(matrix, X, False), X @ W.T, rtol=1e-12)
    assert np.allclose(cuda.multiply(matrix, Y, True), Y @ W, rtol=1e-12)


def test_spectrum_and_svd_of_a_device_array() -> None:
    W = np.random.default_rng(11).standard_normal((150, 96)).astype(np.float32)
    W[:, 0] *= 6
    there = on_device(W)
    assert is_on_gpu(there)
    assert not is_on_gpu(W)
    exact = mpfast.spectrum(there)
    assert exact.device == "cuda:0"
    assert np.allclose(exact.values, np.linalg.svd(W.astype(np.float64), compute_uv=False), rtol=1e-10)
    lanczos = mpfast.spectrum(there, method="lanczos", probes=8, steps=5)
    host = mpfast.spectrum(W, method="lanczos", probes=8, steps=5)
    assert lanczos.edge.sigma_plus == pytest.approx(host.edge.sigma_plus, rel=1e-5)
    assert lanczos.edge.spikes == host.edge.spikes
    U, s, Vh = mpfast.svd(there, 2)
    assert np.allclose(s, exact.values[:2], rtol=1e-6)
    assert np.abs(W @ Vh.T - U * s).max() < 1e-4


def test_spectrum_sends_a_host_array_to_the_device() -> None:
    W = np.random.default_rng(12).standard_normal((80, 120))
    assert mpfast.spectrum(W, device="cuda").device == "cuda:0"
    assert np.allclose(mpfast.spectrum(W, device="cuda:0").values, mpfast.spectrum(W).values, rtol=1e-12)
    with pytest.raises(ValueError, match="there are 1 GPUs"):
        mpfast.spectrum(W, device="cuda:5")
    with pytest.raises(ValueError, match="device must be"):
        mpfast.spectrum(W, device="tpu")


def test_large_host_array_streams_through_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    from mpfast.operators import cuda as device_sources

    monkeypatch.setattr(device_sources, "RESIDENT_SHARE", 0)
    monkeypatch.setattr(device_sources, "PANEL_BYTES", 1 << 14)
    W = np.random.default_rng(13).standard_normal((100, 70)).astype(np.float32)
    streamed = mpfast.spectrum(W, method="lanczos", probes=8, steps=4, device="cuda")
    host = mpfast.spectrum(W, method="lanczos", probes=8, steps=4)
    assert streamed.device == "cuda:0"
    assert streamed.edge.sigma_plus == pytest.approx(host.edge.sigma_plus, rel=1e-5)


def test_badly_conditioned_device_array_takes_the_host_s_exact_path() -> None:
    """Singular values over ten decades: squaring them would lose the lower half."""
    rng = np.random.default_rng(14)
    U = np.linalg.qr(rng.standard_normal((70, 40)))[0]
    V = np.linalg.qr(rng.standard_normal((40, 40)))[0]
    s = 10.0 ** -np.linspace(0, 10, 40)
    values = mpfast.spectrum(on_device((U * s) @ V.T)).values
    assert np.abs(values - s).max() < 1e-14
    assert np.allclose(values, s, rtol=1e-4)


def test_analyze_spreads_layers_over_the_devices() -> None:
    rng = np.random.default_rng(17)
    model = {f"layer.{i}.weight": rng.standard_normal((40 + i, 50)).astype(np.float32) for i in range(3)}
    there = mpfast.analyze(model, device="cuda", progress=False)
    here = mpfast.analyze(model, progress=False)
    assert [row.name for row in there] == [row.name for row in here]
    for mine, host in zip(there, here, strict=True):
        assert mine.sigma_plus == pytest.approx(host.sigma_plus, rel=1e-9)
        assert mine.spikes == host.spikes


def test_errors_name_what_is_wrong_with_a_device_array() -> None:
    W = np.ones((70, 80))
    W[3, 4] = np.nan
    with pytest.raises(ValueError, match=r"1 non-finite entry .* first at \(3, 4\)"):
        mpfast.spectrum(on_device(W))
    with pytest.raises(ValueError, match="must be 2-D"):
        mpfast.spectrum(on_device(np.ones((4, 5, 6))))
    with pytest.raises(TypeError, match="dtype int32"):
        mpfast.spectrum(on_device(np.ones((70, 80), dtype=np.int32)))
    with pytest.raises(ValueError, match="is on cuda:0"):
        mpfast.spectrum(on_device(np.ones((70, 80))), device="cpu")


def test_gram_product_of_a_device_array_with_host_vectors() -> None:
    W = np.random.default_rng(15).standard_normal((50, 40))
    X = np.random.default_rng(16).standard_normal((40, 3))
    assert np.allclose(mpfast.gram_product(on_device(W), X), W.T @ (W @ X), rtol=1e-12)


def test_a_kernel_that_leaves_its_memory_would_be_found(cuda: Any) -> None:
    """The emulation is only worth its name under AddressSanitizer: a matrix that lies about its size must abort."""
    program = (
        "import numpy as np, importlib.util\n"
        "import mpfast\n"
        f"spec = importlib.util.spec_from_file_location('_cuda', {cuda.__file__!r})\n"
        "cuda = importlib.util.module_from_spec(spec); spec.loader.exec_module(cuda)\n"
        "W = np.ones((40, 40))\n"
        "liar = cuda.Matrix(W.ctypes.data, 'float64', (4000, 40), (40, 1), 0, 0, W)\n"
        "cuda.gram_product(liar, np.ones((1, 40)), True)\n"
    )
    run = run_python("-c", program)
    assert run.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in run.stderr


def test_which_host_arrays_can_be_copied_line_by_line() -> None:
    W = np.zeros((6, 8), np.float32)
    for good in (W, W.T, W[:, 2:5], W[1:3].T):
        assert any(has_contiguous_rows(view) for view in (good, good.T))
    for bad in (W[::-1], W[:, ::2], np.broadcast_to(W[:1], (6, 8)), np.lib.stride_tricks.sliding_window_view(W[0], 3)):
        assert not any(has_contiguous_rows(view) for view in (bad, bad.T))
