"""Masks of the CUDA backend on the emulated device, against those of the CPU: the same, entry by entry."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import mpfast
from mpfast import _core

from .device_arrays import DTYPES, device_matrix, on_device, stored

pytestmark = pytest.mark.usefixtures("cuda")


def quantised(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Few values, so that there are many ties, and zeros of either sign."""
    values = np.round(rng.standard_normal(shape) * 4) / 4
    return np.where(rng.random(shape) < 0.1, -0.0, values)


def layouts(W: NDArray[Any]) -> list[NDArray[Any]]:
    padded = np.zeros((W.shape[0], W.shape[1] + 1), dtype=W.dtype)
    padded[:, 1:] = W
    return [np.ascontiguousarray(W), np.asfortranarray(W), padded[:, 1:], np.ascontiguousarray(W[::-1])[::-1]]


def addresses(masks: list[NDArray[np.bool_]]) -> list[int]:
    return [mask.ctypes.data for mask in masks]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (4, 8), (3, 5), (64, 64)])
def test_groups_as_on_the_cpu(cuda: Any, dtype: str, n: int, m: int) -> None:
    entries, _ = stored(quantised(np.random.default_rng(m), (7, 3 * m)), dtype)
    for layout in layouts(entries):
        here, there = np.empty((2, *entries.shape), dtype=np.bool_)
        assert _core.keep_largest_of_groups([_core.Matrix(layout, dtype)], [here], n, m, 1) is None
        found = cuda.keep_largest_of_groups([device_matrix(cuda, layout, dtype)], addresses([there]), n, m)
        assert found is None
        assert (there == here).all()


@pytest.mark.parametrize("dtypes", [("float32",), ("bfloat16", "float16"), ("float32", "float64", "bfloat16")])
def test_selection_as_on_the_cpu(cuda: Any, dtypes: tuple[str, ...]) -> None:
    rng = np.random.default_rng(len(dtypes))
    shapes = [(33, 57), (120, 90), (5, 1)][: len(dtypes)]
    scales = [1.0, 0.37, 2.5][: len(dtypes)]
    arrays = [stored(quantised(rng, shape), dtype)[0] for shape, dtype in zip(shapes, dtypes, strict=True)]
    total = sum(array.size for array in arrays)
    for pruned in (0, 1, total // 3, total // 2, total - 1, total):
        for layout in (0, 1):
            laid = [layouts(array)[layout] for array in arrays]
            here = [np.empty(a.shape, dtype=np.bool_) for a in arrays]
            there = [np.empty(a.shape, dtype=np.bool_) for a in arrays]
            host = [_core.Matrix(a, d) for a, d in zip(laid, dtypes, strict=True)]
            device = [device_matrix(cuda, a, d) for a, d in zip(laid, dtypes, strict=True)]
            assert _core.prune_smallest(host, scales, here, pruned, 1) is None
            assert cuda.prune_smallest(device, scales, addresses(there), pruned) is None
            assert sum(int(mask.sum()) for mask in there) == total - pruned
            assert all((a == b).all() for a, b in zip(here, there, strict=True))


def test_selection_of_distinct_values_over_several_chunks(cuda: Any) -> None:
    W = np.random.default_rng(3).standard_normal((150, 160)).astype(np.float32)
    keep = np.empty(W.shape, dtype=np.bool_)
    assert cuda.prune_smallest([device_matrix(cuda, W, "float32")], [1.0], addresses([keep]), 12345) is None
    order = np.argsort(np.abs(W).ravel(), kind="stable")
    expected = np.ones(W.size, dtype=np.bool_)
    expected[order[:12345]] = False
    assert (keep.ravel() == expected).all()


def test_ties_are_pruned_in_row_major_order_across_chunks(cuda: Any) -> None:
    W = np.ones((200, 100), dtype=np.float32)
    keep = np.empty(W.shape, dtype=np.bool_)
    assert cuda.prune_smallest([device_matrix(cuda, W, "float32")], [1.0], addresses([keep]), 9001) is None
    assert not keep.ravel()[:9001].any()
    assert keep.ravel()[9001:].all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_nonfinite_entries_are_reported_as_on_the_cpu(cuda: Any, dtype: str) -> None:
    clean, _ = stored(np.ones((12, 16)), dtype)
    W = np.ones((90, 128))
    W[88, 3] = np.inf
    W[70, 101] = W[89, 1] = np.nan
    entries, _ = stored(W, dtype)
    keep = [np.empty(clean.shape, dtype=np.bool_), np.empty(W.shape, dtype=np.bool_)]
    device = [device_matrix(cuda, clean, dtype), device_matrix(cuda, entries, dtype)]
    host = [_core.Matrix(clean, dtype), _core.Matrix(entries, dtype)]
    expected = (1, 3, 70 * 128 + 101)
    assert _core.prune_smallest(host, [1.0, 1.0], keep, 100, 1) == expected
    assert cuda.prune_smallest(device, [1.0, 1.0], addresses(keep), 100) == expected
    assert cuda.keep_largest_of_groups(device, addresses(keep), 2, 4) == expected
    assert cuda.keep_largest_of_groups(device, addresses(keep), 3, 16) == expected


def test_bad_requests_are_refused(cuda: Any) -> None:
    W = np.ones((4, 6), dtype=np.float32)
    matrix = device_matrix(cuda, W, "float32")
    keep = np.empty(W.shape, dtype=np.bool_)
    with pytest.raises(ValueError, match="m must divide"):
        cuda.keep_largest_of_groups([matrix], addresses([keep]), 2, 4)
    with pytest.raises(ValueError, match="between 0"):
        cuda.prune_smallest([matrix], [1.0], addresses([keep]), 25)
    with pytest.raises(ValueError, match="positive"):
        cuda.prune_smallest([matrix], [0.0], addresses([keep]), 2)


def test_masks_of_device_arrays_are_those_of_host_arrays() -> None:
    rng = np.random.default_rng(5)
    weights = {
        "attn.q": rng.standard_normal((40, 48)).astype(np.float32),
        "conv": rng.standard_normal((6, 5, 3, 3)).astype(np.float32),
        "bias": rng.standard_normal(33).astype(np.float32),
    }
    there = {name: on_device(W) for name, W in weights.items()}
    for scope in ("global", "layer", "row"):
        expected = mpfast.masks.magnitude(weights, 0.37, scope=scope)
        found = mpfast.masks.magnitude(there, 0.37, scope=scope)
        assert all((found[name] == expected[name]).all() for name in weights)
    matrices = {name: W for name, W in weights.items() if W.ndim > 1}
    expected = mpfast.masks.spectral_budget(matrices, 0.5, signal="entry_std")
    found = mpfast.masks.spectral_budget({name: on_device(W) for name, W in matrices.items()}, 0.5, signal="entry_std")
    assert all((found[name] == expected[name]).all() for name in matrices)
    assert (mpfast.masks.n_m(there["conv"], 1, 5) == mpfast.masks.n_m(weights["conv"], 1, 5)).all()


def test_masks_are_written_into_arrays_of_the_caller() -> None:
    W = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
    for find in (lambda w, **to: mpfast.masks.n_m(w, 2, 4, **to), lambda w, **to: mpfast.masks.magnitude(w, 0.4, **to)):
        out = on_device(np.zeros(W.shape, np.bool_))
        assert find(on_device(W), out=out) is out
        assert (np.asarray(out) == find(W)).all()
        with pytest.raises(TypeError, match="on their GPU"):
            find(on_device(W), out=np.zeros(W.shape, np.bool_))
        with pytest.raises(ValueError, match="must be boolean of shape"):
            find(on_device(W), out=on_device(np.zeros(W.shape, np.uint8)))


def test_mask_errors_of_device_arrays() -> None:
    W = np.ones((6, 8), dtype=np.float32)
    with pytest.raises(ValueError, match="is on a GPU"):
        mpfast.masks.magnitude({"a": on_device(W), "b": W}, 0.5)
    with pytest.raises(ValueError, match="groups of 5"):
        mpfast.masks.n_m(on_device(W), 2, 5)
    with pytest.raises(TypeError, match="dtype int64"):
        mpfast.masks.magnitude(on_device(np.ones((4, 4), dtype=np.int64)), 0.5)
    W[2, 3] = np.nan
    with pytest.raises(ValueError, match=r"first at \(2, 3\)"):
        mpfast.masks.magnitude(on_device(W), 0.5)
    with pytest.raises(ValueError, match=r"first at \(2, 3\)"):
        mpfast.masks.n_m(on_device(W), 2, 4)


def second_moments(rng: np.random.Generator, groups: int, m: int) -> NDArray[np.float64]:
    X = rng.standard_normal((groups, 4 * m, m)) @ (np.eye(m) + 0.4 * rng.standard_normal((groups, m, m)))
    return np.einsum("gsi,gsj->gij", X, X)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 2), (2, 4), (2, 5), (4, 8), (8, 9), (7, 12), (8, 16), (16, 16)])
def test_projection_as_on_the_cpu(cuda: Any, dtype: str, n: int, m: int) -> None:
    rng = np.random.default_rng(100 * n + m)
    entries, _ = stored(rng.standard_normal((3, 2 * m)), dtype)
    moments = second_moments(rng, 2, m)
    source = rng.random(entries.shape) < 0.5
    for layout in layouts(entries):
        for prior in (0.0, 0.3):
            here, there = np.empty((2, *entries.shape), dtype=np.bool_)
            assert _core.project_groups(_core.Matrix(layout, dtype), moments, source, prior, here, n, m, 1) is None
            device = device_matrix(cuda, layout, dtype)
            found = cuda.project_groups(device, moments, source.ctypes.data, prior, there.ctypes.data, n, m)
            assert found is None
            assert (there == here).all()


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (5, 10)])
def test_projection_of_ties_and_zeros_as_on_the_cpu(cuda: Any, n: int, m: int) -> None:
    rng = np.random.default_rng(m)
    rows = np.stack([np.zeros(2 * m), np.ones(2 * m), quantised(rng, (1, 2 * m))[0], 1 + 1e-9 * np.arange(2 * m)])
    for moments in (np.broadcast_to(np.eye(m), (2, m, m)), np.zeros((2, m, m)), second_moments(rng, 2, m)):
        here, there = np.empty((2, *rows.shape), dtype=np.bool_)
        _core.project_groups(_core.Matrix(rows, "float64"), moments, None, 0.0, here, n, m, 1)
        cuda.project_groups(device_matrix(cuda, rows, "float64"), moments, 0, 0.0, there.ctypes.data, n, m)
        assert (there == here).all()


def test_projection_reports_what_is_not_finite(cuda: Any) -> None:
    W = np.ones((3, 8))
    W[1, 5] = np.nan
    W[2, 0] = np.inf
    keep = np.empty(W.shape, dtype=np.bool_)
    moments = np.broadcast_to(np.eye(4), (2, 4, 4))
    found = cuda.project_groups(device_matrix(cuda, W, "float64"), moments, 0, 0.0, keep.ctypes.data, 2, 4)
    assert found == (0, 2, 13)
    with pytest.raises(ValueError, match="16"):
        cuda.project_groups(
            device_matrix(cuda, np.ones((2, 17)), "float64"), np.eye(17), 0, 0.0, keep.ctypes.data, 3, 17
        )


def test_a_selection_ends_while_a_thread_writes(cuda: Any) -> None:
    """Digits are counted pass by pass; the next pass may find fewer keys than the last one promised."""
    original = np.random.default_rng(0).standard_normal((120, 150)).astype(np.float32)
    W = original.copy()
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            np.multiply(original, np.float32(1e3), out=W)
            W[:] = original

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(10):
            keep = np.empty(W.shape, dtype=np.bool_)
            with contextlib.suppress(RuntimeError):  # it noticed
                cuda.prune_smallest([device_matrix(cuda, W, "float32")], [1.0], addresses([keep]), W.size // 2)
    finally:
        stop.set()
        writer.join()


def test_what_makes_no_sense_is_refused(cuda: Any) -> None:
    """Null pointers and empty matrices would end the process."""
    W = np.ones((4, 8), dtype=np.float32)
    matrix = device_matrix(cuda, W, "float32")
    empty = device_matrix(cuda, W[:0], "float32")
    keep = addresses([np.empty(W.shape, dtype=np.bool_)])
    moments = np.tile(np.eye(4), (2, 1, 1))
    for matrices in ([None], [matrix, None], None, matrix):
        with pytest.raises(TypeError):
            cuda.prune_smallest(matrices, [1.0], keep, 3)
        with pytest.raises(TypeError):
            cuda.keep_largest_of_groups(matrices, keep, 2, 4)
    for there, scale, to in ((empty, 1.0, keep), (matrix, np.nan, keep), (matrix, np.inf, keep), (matrix, 1.0, [0])):
        with pytest.raises(ValueError, match=r"empty|positive and finite|no address"):
            cuda.prune_smallest([there], [scale], to, 3)
    for bad in (None, moments[:1], moments * np.nan):
        with pytest.raises((TypeError, ValueError)):
            cuda.project_groups(matrix, bad, 0, 0.0, keep[0], 2, 4)
    for call in (
        lambda w: cuda.gram_product(w, np.ones((1, 8), np.float32), True),
        lambda w: cuda.multiply(w, np.ones((1, 8), np.float32), False),
        lambda w: cuda.gram_matrix(w, 0),
        lambda w: cuda.lanczos_run(w, 1, 0, 0, 0, False),
        lambda w: cuda.gram_product_at(w, 0, 0, 1, "float32", True),
        lambda w: cuda.scale_exponent(w),
    ):
        for there in (None, empty):
            with pytest.raises((TypeError, ValueError)):
                call(there)
    for array in (None, W[:0], W.astype(">f4"), W.astype(object)):
        with pytest.raises((TypeError, ValueError)):
            cuda.lanczos_run_streamed(array, "float32", 0, 1, 0, 0, 0, False, 1 << 20)
        with pytest.raises((TypeError, ValueError)):
            cuda.Matrix.upload(array, "float32", 0)
    for rows, cols, width in ((0, 4, 1), (4, 0, 1), (4, 4, 0), (4, 4, 33)):
        with pytest.raises(ValueError, match=r"empty|width"):
            cuda.plan_product("gram", "float32", rows, cols, 4, width, 1 << 16, 8)
