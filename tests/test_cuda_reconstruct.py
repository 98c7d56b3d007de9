"""Refitting of the CUDA backend on the emulated device, against that of the CPU and against NumPy.

Within a leaf of 128 columns, both backends round the same numbers in the same order: the same bits. Beyond it, sums of
products are added in another order, and a sum over n columns may differ by some ``sqrt(n) 2^-24`` of the terms' size;
what is chosen, or rounded to a grid, between nearly equal alternatives may then be another.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mpfast import _core, reconstruct
from mpfast.arrays import widened

from .device_arrays import DTYPES, device_matrix, on_device, stored

pytestmark = pytest.mark.usefixtures("cuda")

Array = NDArray[Any]

# 32 rows and 128 columns are a tile, 64 x 64 and 16 deep one of a product.
SHAPES = [(1, 1), (5, 40), (1, 300), (40, 1), (33, 128), (70, 129), (65, 333)]


def problem(outputs: int, inputs: int, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((inputs, inputs)) / np.sqrt(np.arange(1, inputs + 1))[:, None]
    X = rng.standard_normal((2000, inputs)) @ mixing
    return rng.standard_normal((outputs, inputs)).astype(np.float32), X.T @ X / 2000


def close(found: Any, expected: Any) -> None:
    """The same to the precision of single precision sums, in which weights near 1 are computed."""
    size = np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=0, atol=2e-5 * size)


def floats(cuda: Any, array: Array) -> Any:
    return device_matrix(cuda, np.ascontiguousarray(array, np.float32), "float32")


class TestProduct:
    @pytest.mark.parametrize("shape", [(1, 1, 1), (3, 70, 5), (64, 16, 64), (65, 33, 130), (200, 300, 17)])
    def test_equals_numpy(self, cuda: Any, shape: tuple[int, int, int]) -> None:
        rows, depth, cols = shape
        rng = np.random.default_rng(rows)
        a, b = (rng.standard_normal(size).astype(np.float32) for size in ((rows, depth), (depth, cols)))
        product = cuda.dense_product(floats(cuda, a), floats(cuda, b))
        size = np.abs(a).astype(float) @ np.abs(b).astype(float)
        assert (np.abs(product - a.astype(float) @ b.astype(float)) <= depth * 2.0**-24 * size).all()

    def test_an_entry_does_not_depend_on_the_tiles(self, cuda: Any) -> None:
        """128 large tiles or more, or small ones: every entry is the same sum in the same order."""
        rng = np.random.default_rng(1)
        a, b = rng.standard_normal((1, 50)).astype(np.float32), rng.standard_normal((50, 128 * 128)).astype(np.float32)
        wide = cuda.dense_product(floats(cuda, a), floats(cuda, b))
        narrow = cuda.dense_product(floats(cuda, a), floats(cuda, b[:, 1000:1300]))
        np.testing.assert_array_equal(wide[:, 1000:1300], narrow)
        single = np.zeros(300, np.float64)
        for k in range(50):  # a product of two floats is exact in double, and so is what a fused addition rounds
            single = (single + a[0, k].astype(float) * b[k, 1000:1300]).astype(np.float32).astype(float)
        np.testing.assert_allclose(narrow[0], single, rtol=0, atol=2.0**-40)


class TestColumns:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.6, 1.0])
    def test_a_share_as_on_the_cpu(self, shape: tuple[int, int], sparsity: float) -> None:
        W, C = problem(*shape)
        factor = reconstruct.Factor(C)
        here = reconstruct.prune(W, factor, sparsity=sparsity, refit=0)
        there = reconstruct.prune(on_device(W), factor, sparsity=sparsity, refit=0)
        assert not there.mask.all() or sparsity * W.size < 1
        np.testing.assert_array_equal(there.mask, here.mask)
        close(there.weights, here.weights)
        assert (there.weights[~there.mask] == 0).all()
        assert (there.error, there.masked_error) == pytest.approx((here.error, here.masked_error), rel=1e-4, abs=1e-9)
        if shape[1] <= 128:
            np.testing.assert_array_equal(there.weights, here.weights)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_a_given_mask_as_on_the_cpu(self, shape: tuple[int, int]) -> None:
        W, C = problem(*shape)
        keep = np.random.default_rng(5).random(shape) < 0.5
        here, there = (reconstruct.refit(w, C, keep, steps=0) for w in (W, on_device(W)))
        np.testing.assert_array_equal(there.mask, keep)
        close(there.weights, here.weights)

    @pytest.mark.parametrize(
        ("pattern", "shape"),
        [
            ("1:2", (33, 130)),
            ("2:4", (35, 260)),
            ("3:5", (7, 135)),  # the leaves have 125 columns
            ("4:8", (34, 136)),
            ("8:9", (3, 135)),
            ("6:11", (3, 22)),
            ("8:16", (5, 144)),
            ("1:16", (2, 32)),
            ("16:32", (3, 64)),  # goes by the host
        ],
    )
    def test_groups_as_on_the_cpu(self, pattern: str, shape: tuple[int, int]) -> None:
        """The set that costs least in double precision; on the CPU, too."""
        W, C = problem(*shape)
        W[0] = 0  # all sets cost the same
        W[-1, :3] = 0
        factor = reconstruct.Factor(C)
        here, there = (reconstruct.prune(w, factor, pattern=pattern, refit=0) for w in (W, on_device(W)))
        np.testing.assert_array_equal(there.mask, here.mask)
        close(there.weights, here.weights)
        n, m = map(int, pattern.split(":"))
        assert (there.mask.reshape(len(W), -1, m).sum(axis=2) == n).all()

    @pytest.mark.parametrize("shape", [(1, 1), (5, 64), (33, 200), (40, 300)])
    @pytest.mark.parametrize(("bits", "group"), [(1, 8), (3, 64), (4, 50), (8, 200), (4, None)])
    @pytest.mark.parametrize("symmetric", [False, True])
    def test_rounding_as_on_the_cpu(
        self, shape: tuple[int, int], bits: int, group: int | None, symmetric: bool
    ) -> None:
        W, C = problem(*shape)
        factor = reconstruct.Factor(C)
        bits = max(bits, 2) if symmetric else bits
        here, there = (
            reconstruct.quantize(w, factor, bits, group=group, symmetric=symmetric) for w in (W, on_device(W))
        )
        assert there.grid is not None
        assert here.grid is not None
        # A weight on the verge of two grid points may fall to either, and its row then goes another way.
        same = np.isclose(there.weights, here.weights, rtol=0, atol=2e-5 * np.abs(W).max()).all(axis=1)
        assert same.mean() >= 0.9
        close(there.grid.scale[same], here.grid.scale[same])
        np.testing.assert_array_equal(there.grid.zero[same], here.grid.zero[same])
        assert there.error == pytest.approx(here.error, rel=0.02, abs=1e-12)
        places = there.weights / np.repeat(there.grid.scale, there.grid.group, axis=1)[:, : shape[1]]
        np.testing.assert_allclose(places, np.round(places), atol=1e-3)

    @pytest.mark.parametrize("options", [{"sparsity": 0.5}, {"pattern": "2:4"}, {"pattern": "8:16"}, {"mask": True}])
    def test_rounded_and_pruned_together(self, options: dict[str, Any]) -> None:
        W, C = problem(30, 192)
        if "mask" in options:
            options = {"mask": np.random.default_rng(0).random(W.shape) < 0.5}
        here, there = (reconstruct.quantize(w, C, 5, group=32, **options) for w in (W, on_device(W)))
        assert (there.weights[~there.mask] == 0).all()
        assert (there.mask == here.mask).mean() > 0.99
        assert there.error == pytest.approx(here.error, rel=0.02)

    def test_rows_that_matter_more_keep_more(self) -> None:
        W, C = problem(9, 140)
        gradients = 4.0 ** np.random.default_rng(0).integers(-2, 3, 9)
        here, there = (reconstruct.prune(w, C, sparsity=0.5, refit=1, gradients=gradients) for w in (W, on_device(W)))
        np.testing.assert_array_equal(there.mask, here.mask)
        close(there.weights, here.weights)


class TestLeastSquares:
    @pytest.mark.parametrize(("shape", "steps"), [((1, 1), 4), ((3, 5), 40), ((5, 150), 1), ((4, 70), 4)])
    def test_as_on_the_cpu(self, shape: tuple[int, int], steps: int) -> None:
        W, C = problem(*shape)
        keep = np.random.default_rng(3).random(shape) < 0.4
        factor = reconstruct.Factor(C, damping=0.01, diagonal=0.1)
        here, there = (reconstruct.refit(w, factor, keep, steps=steps) for w in (W, on_device(W)))
        assert (there.weights[~keep] == 0).all()
        # Errors are flat where the weights are those of least error: these may differ by more than the errors do.
        np.testing.assert_allclose(there.weights, here.weights, rtol=0, atol=2e-3 * np.abs(W).max())
        assert there.error == pytest.approx(here.error, rel=1e-3, abs=1e-9)

    @pytest.mark.parametrize("width", [0, 1, 47, 48, 49, 96])
    def test_preconditioners_as_on_the_cpu(self, cuda: Any, width: int) -> None:
        W, C = problem(3, 100)
        factor = reconstruct.Factor(C, damping=0.1)
        rng = np.random.default_rng(width)
        basis, keep = rng.standard_normal((100, width)).astype(np.float32), rng.random(W.shape) < 0.6
        roots = factor.relative_roots
        here = np.where(keep, W, np.float32(0))
        _core.refit(W, here, keep, factor.correlations, roots, basis, 0.5, 3, 1)
        there, mask = np.empty_like(W), np.empty_like(keep)
        weights = cuda.LayerWeights(floats(cuda, W), 1.0, None)
        weights.take_mask(keep.ctypes.data)
        weights.obs_columns(floats(cuda, np.eye(100)), None, None, None)  # drops, and nothing else
        sent = floats(cuda, basis) if width else None
        weights.refit(floats(cuda, factor.correlations), floats(cuda, roots[None]), sent, 0.5, 3)
        weights.store(there.ctypes.data, mask.ctypes.data, 1.0)
        np.testing.assert_array_equal(mask, keep)
        close(there, here)

    def test_many_steps_are_exact(self) -> None:
        W, C = problem(3, 40)
        keep = np.random.default_rng(3).random(W.shape) < 0.4
        H = C + 1e-3 * np.diag(C).mean() * np.eye(40)
        fit = reconstruct.refit(on_device(W), reconstruct.Factor(H, damping=0), keep, steps=25)
        residual = ((W - fit.weights) @ H) * keep
        assert np.abs(residual).max() < 1e-4 * np.abs(W @ H).max()

    def test_what_needs_taking_back_is_left_to_the_host(self) -> None:
        """Of a moment of few inputs with next to no damping single precision holds little."""
        X = np.cumsum(np.random.default_rng(4).standard_normal((30, 64)), axis=1)
        W = np.random.default_rng(5).standard_normal((20, 64)).astype(np.float32)
        factor = reconstruct.Factor(X.T @ X / 30, damping=1e-7)
        assert factor.is_delicate
        here, there = (reconstruct.prune(w, factor, sparsity=0.5) for w in (W, on_device(W)))
        np.testing.assert_array_equal(np.asarray(there.weights), here.weights)
        assert there.error <= 1.01 * there.masked_error

    def test_inputs_that_are_always_zero_and_rows_that_are_dropped(self) -> None:
        W, C = problem(6, 40)
        C[:, 7] = C[7] = 0
        keep = np.random.default_rng(3).random(W.shape) < 0.5
        keep[2] = False
        keep[3] = True
        here, there = (reconstruct.refit(w, C, keep, steps=3) for w in (W, on_device(W)))
        np.testing.assert_allclose(there.weights, here.weights, rtol=0, atol=2e-3 * np.abs(W).max())
        assert np.isfinite(there.weights).all()


class TestArrays:
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_storage_types(self, cuda: Any, dtype: str) -> None:
        """Rounded as NumPy rounds, from single precision; the largest and subnormal entries too."""
        rng = np.random.default_rng(2)
        entries, W = stored(rng.standard_normal((40, 140)) * 2.0 ** rng.integers(-18, 3, (40, 140)), dtype)
        for layout in (entries, np.asfortranarray(entries), np.ascontiguousarray(entries[::-1])[::-1]):
            matrix = device_matrix(cuda, layout, dtype)
            assert cuda.largest_magnitude(matrix) == np.abs(W).max()
            for scale in (1.0, 2.0**-13, 2.0**-20):
                weights = cuda.LayerWeights(matrix, 1.0, None)
                to, keep = np.empty(entries.shape, entries.dtype), np.empty(entries.shape, np.bool_)
                weights.store(to.ctypes.data, keep.ctypes.data, scale)
                assert keep.all()
                single = (W.astype(np.float32) * scale).astype(np.float32)
                expected, worth = stored(single, dtype) if dtype != "float64" else (single.astype(float), single)
                np.testing.assert_array_equal(to, expected)
                assert np.isfinite(worth).all()
            copied = np.empty(entries.shape, entries.dtype)
            cuda.gather(matrix, copied.ctypes.data)
            np.testing.assert_array_equal(copied, entries)

    def test_float16_ends_at_its_largest(self, cuda: Any) -> None:
        W = np.array([[65504, -65504, 60000, 1]], np.float16)
        weights = cuda.LayerWeights(device_matrix(cuda, W, "float16"), 1.0, None)
        to, keep = np.empty(W.shape, np.float16), np.empty(W.shape, np.bool_)
        weights.store(to.ctypes.data, keep.ctypes.data, 2.0)
        np.testing.assert_array_equal(to, np.array([[65504, -65504, 65504, 2]], np.float16))

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_short_types_as_on_the_cpu(self, cuda: Any, dtype: str) -> None:
        W, C = problem(33, 100)
        entries, numbers = stored(W, dtype)
        factor = reconstruct.Factor(C)
        weights = cuda.LayerWeights(device_matrix(cuda, entries, dtype), 0.25, None)
        weights.obs_columns(floats(cuda, factor.upper), 1650, None, None)
        assert weights.kept == 1650
        to, keep = np.empty(entries.shape, entries.dtype), np.empty(entries.shape, np.bool_)
        weights.store(to.ctypes.data, keep.ctypes.data, 4.0)
        values, mask = (numbers / 4).astype(np.float32), np.ones(W.shape, np.bool_)
        _core.obs_columns(values, mask, factor.upper, 1650, None, None, 1)
        np.testing.assert_array_equal(keep, mask)
        found = widened(to) if dtype == "bfloat16" else to
        np.testing.assert_allclose(found, 4 * values, rtol=2.0**-8, atol=2.0**-20)

    def test_results_are_of_the_caller_s_type_and_shape(self) -> None:
        W, C = problem(4, 16)
        for dtype in (np.float64, np.float16):
            for layout in (W.astype(dtype), np.asfortranarray(W.astype(dtype)), W.astype(dtype)[::-1]):
                there = reconstruct.prune(on_device(layout), C, pattern="2:4", refit=1)
                here = reconstruct.prune(np.ascontiguousarray(layout), C, pattern="2:4", refit=1)
                assert (there.weights.dtype, there.mask.dtype) == (np.dtype(dtype), np.dtype(np.bool_))
                np.testing.assert_array_equal(there.mask, here.mask)
                np.testing.assert_allclose(there.weights, here.weights, rtol=2e-3, atol=2e-3)

    def test_nothing_pruned_is_nothing_changed(self) -> None:
        W, C = problem(6, 50)
        fit = reconstruct.prune(on_device(W), C, sparsity=0)
        np.testing.assert_array_equal(fit.weights, W)
        assert fit.mask.all()
        assert fit.error == fit.masked_error == 0

    def test_weights_may_be_written_in_the_place_of_the_old_ones(self) -> None:
        W, C = problem(6, 50)
        fit = reconstruct.prune(on_device(W), C, sparsity=0.5, refit=0)
        expected = reconstruct.prune(W, C, sparsity=0.5, refit=0)
        W[:] = fit.weights
        assert fit.error == pytest.approx(expected.error, rel=1e-4)
        assert fit.heldout(C) == fit.error
        with pytest.raises(ValueError, match="C is of 3 inputs"):
            fit.heldout(np.eye(3))

    def test_same_bits_every_time_and_one_copy_of_the_factor(self) -> None:
        W, C = problem(9, 150)
        factor = reconstruct.Factor(C)
        first, second = (reconstruct.prune(on_device(W), factor, sparsity=0.5, refit=1) for _ in range(2))
        np.testing.assert_array_equal(first.weights, second.weights)
        there = factor.on_devices[0]
        upper = there.upper
        # Rows are their own problems where nothing is chosen over all of them.
        keep = first.mask
        whole, part = (reconstruct.refit(on_device(W[k:]), factor, keep[k:], steps=1) for k in (0, 5))
        np.testing.assert_array_equal(whole.weights[5:], part.weights)
        assert factor.on_devices[0].upper is upper

    def test_errors_of_input_are_those_of_the_host(self) -> None:
        W, C = problem(6, 50)
        for wrong, options in (
            (W[0], {"sparsity": 0.5}),
            (W[:, :40], {"sparsity": 0.5}),
            (W, {"sparsity": 2}),
            (W, {"pattern": "3:7"}),
            (W, {"pattern": "2:4", "sparsity": 0.5}),
            (np.where(np.arange(50) == 7, np.inf, W), {"sparsity": 0.5}),
            (W.astype(np.int64), {"sparsity": 0.5}),
        ):
            with pytest.raises((ValueError, TypeError)) as here:
                reconstruct.prune(wrong, C, **options)
            with pytest.raises((ValueError, TypeError)) as there:
                reconstruct.prune(on_device(np.ascontiguousarray(wrong)), C, **options)
            assert str(there.value) == str(here.value)
        with pytest.raises(ValueError, match="the mask of W must be boolean"):
            reconstruct.refit(on_device(W), C, np.ones((6, 49), np.bool_))

    def test_what_makes_no_sense_is_refused(self, cuda: Any) -> None:
        """Addresses and shapes that kernels would believe."""
        W = np.ones((4, 8), np.float32)
        matrix, square = device_matrix(cuda, W, "float32"), floats(cuda, np.eye(8))
        weights = cuda.LayerWeights(matrix, 1.0, None)
        row = floats(cuda, np.ones((1, 8)))
        for wrong in (
            matrix,
            device_matrix(cuda, np.eye(8), "float64"),
            device_matrix(cuda, np.eye(8)[::2], "float64"),
        ):
            with pytest.raises(ValueError, match="must be float32 without gaps"):
                weights.obs_columns(wrong, 3, None, None)
        for request in ((33, None, None), (-1, None, None), (3, (2, 4), None), (None, (2, 3), None)):
            with pytest.raises(ValueError, match=r"pruned|need 1 <= n"):
                weights.obs_columns(square, *request)
        for grid in ((0, 4, False), (9, 4, False), (4, 0, False), (4, 9, False), (1, 4, True)):
            with pytest.raises(ValueError, match=r"bits must lie|2 bits or more"):
                weights.obs_columns(square, None, None, grid)
        with pytest.raises(ValueError, match="m must divide"):
            weights.obs_columns(square, None, (2, 4), (4, 2, False))
        for options in ((0.0, 1), (np.nan, 1), (1.0, -1), (1.0, 10_001)):
            with pytest.raises(ValueError, match=r"base|steps"):
                weights.refit(square, row, None, *options)
        with pytest.raises(ValueError, match="96"):
            weights.refit(square, row, floats(cuda, np.ones((8, 97))), 1.0, 1)
        for scale in (0.0, np.nan, np.inf):
            with pytest.raises(ValueError, match="positive"):
                cuda.LayerWeights(matrix, scale, None)
        with pytest.raises(ValueError, match="each row"):
            cuda.LayerWeights(matrix, 1.0, np.ones(3, np.float32))
        for call in (lambda: weights.take_mask(0), lambda: weights.store(0, 0, 1.0), lambda: cuda.gather(matrix, 0)):
            with pytest.raises(ValueError, match="address"):
                call()
