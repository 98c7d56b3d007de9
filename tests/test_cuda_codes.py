"""Matrices of codes on the emulated device, against their numbers and the CPU; see tests/emulation/README.md.

Decoded entries are exact, as in `test_coded_matrices`; products agree to the bounds of `test_cuda`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import mpfast
from mpfast import _core
from mpfast.operators import open_source, scaled, start_run

from .test_coded_matrices import CODES, array_of, coded, matrix_of, numbers_of, same_bits, values_of

pytestmark = pytest.mark.usefixtures("cuda")

# (rows, columns, entries that share a scale). More than a panel and a slice, not a multiple of anything; blocks that
# begin within a tile, a word or a panel; one row, one column of bytes.
SHAPES = ((131, 70, 32), (37, 302, 7), (70, 1100, 128), (40, 90, 90), (1, 40, 16), (5, 2, 1))
# Unit roundoff of the products, times sqrt of the longest sum, times a few; against the size of the terms.
TOLERANCE = {"float64": 1e-14, "float32": 4e-6}


def sent(cuda: Any, code: str, codes: NDArray[Any], scales: NDArray[Any], width: int) -> Any:
    return cuda.Matrix.upload((code, codes, scales, width), "bfloat16", 0)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("width", [1, 7, 32, 500])
def test_every_code_is_its_value_times_its_scale(cuda: Any, code: str, width: int) -> None:
    codes = np.tile(np.arange(256, dtype=np.uint8), (9, 1))[:, : 256 - width % 5]
    cols = codes.shape[1] * values_of(code).shape[1]
    scales = np.random.default_rng(width).standard_normal((9, -(-cols // width))).astype(np.float32)
    scales[:7, 0] = [2.0**127, -(2.0**120), 2.0**-126, 2.0**-149, 0, np.inf, np.nan]
    there = sent(cuda, code, codes, scales, width)
    assert there.is_coded
    assert there.shape == (9, cols)
    found, dtype = cuda.download(there)
    assert (there.dtype, dtype) == ("bfloat16", "float32")
    same_bits(found, numbers_of(code, codes, scales, width))
    same_bits(found, matrix_of(code, codes, scales, width).decoded())


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("shape", [(70, 302, 7), (37, 90, 32)])
@pytest.mark.parametrize("transpose", [False, True])
def test_tiles_hold_the_numbers_to_the_bit(cuda: Any, code: str, shape: tuple[int, int, int], transpose: bool) -> None:
    """A product with a column of the identity is a column of what was loaded: all other terms are zero."""
    codes, scales, numbers = coded(code, *shape)
    numbers = numbers.T if transpose else numbers
    there = sent(cuda, code, codes, scales, shape[-1])
    found = cuda.multiply(there, np.eye(numbers.shape[1], dtype=np.float32), transpose).T
    np.testing.assert_array_equal(found, numbers)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gram_products_are_those_with_the_numbers(cuda: Any, code: str, shape: tuple[int, int, int]) -> None:
    codes, scales, numbers = coded(code, *shape)
    W = numbers.astype(np.float64)
    there, here = sent(cuda, code, codes, scales, shape[-1]), matrix_of(code, codes, scales, shape[-1])
    rng = np.random.default_rng(shape[0])
    for real, width, right in (
        ("float32", 1, True),
        ("float32", 5, False),
        ("float64", 9, True),
        ("float32", 32, False),
    ):
        B = W if right else W.T
        x = rng.standard_normal((width, B.shape[1])).astype(real)
        z, squares, *nonfinite = cuda.gram_product(there, x, right)
        size = (np.abs(B.T) @ (np.abs(B) @ np.abs(x.T))).T
        assert (np.abs(z - (B.T @ (B @ x.T.astype(np.float64))).T) <= TOLERANCE[real] * size).all(), (real, width)
        on_host = _core.gram_product(here, x, "right" if right else "left", 1)[0]
        assert (np.abs(z - on_host) <= 2 * TOLERANCE[real] * size).all(), (real, width)
        assert squares == pytest.approx((W**2).sum(), rel=1e-13)
        assert nonfinite == [0, -1, -1]


@pytest.mark.parametrize("cluster", ["1", "2"])
@pytest.mark.parametrize("code", ["float8_e4m3fn", "float4_e2m1"])
def test_gram_products_in_two_passes(cuda: Any, code: str, cluster: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPFAST_EMULATED_CLUSTER", cluster)
    codes, scales, numbers = coded(code, 70, 1100, 32)
    x = np.random.default_rng(3).standard_normal((32, 1100)).astype(np.float32)
    z, squares, *_ = cuda.gram_product(sent(cuda, code, codes, scales, 32), x, True)
    W = numbers.astype(np.float64)
    expected = (W.T @ (W @ x.T.astype(np.float64))).T
    assert np.abs(z - expected).max() < 1e-5 * np.abs(expected).max()
    assert squares == pytest.approx(np.sum(W**2), rel=1e-13)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_energies_and_factors_are_those_of_the_numbers(cuda: Any, code: str, shape: tuple[int, int, int]) -> None:
    codes, scales, numbers = coded(code, *shape)
    there = sent(cuda, code, codes, scales, shape[-1])
    rng = np.random.default_rng(5)
    row, column = (np.exp(rng.standard_normal(side)) for side in shape[:2])
    row[1] = column[2] = 0
    for given, S in ((None, numbers.astype(np.float64)), ((row, column), row[:, None] * numbers * column)):
        rows, columns, *nonfinite = cuda.energies(there, 1, given)
        np.testing.assert_allclose(rows * 4, (S**2).sum(axis=1), rtol=1e-13)
        np.testing.assert_allclose(columns * 4, (S**2).sum(axis=0), rtol=1e-13)
        assert nonfinite == [0, -1, -1]
        gram = cuda.gram_matrix(there, 0, given)[0]
        short = S if shape[0] >= shape[1] else S.T
        assert np.abs(gram - short.T @ short).max() <= 1e-13 * np.abs(short.T @ short).max()
        assert cuda.scale_exponent(there, given) == _core.scale_exponent(
            matrix_of(code, codes, scales, shape[-1]), given
        )


@pytest.mark.parametrize("kind", ["NaN", "infinity", "scale"])
@pytest.mark.parametrize("way", ["resident", "streamed"])
@pytest.mark.parametrize("shape", [(60, 150), (150, 60)])
def test_what_is_no_number_is_counted_and_found(cuda: Any, kind: str, way: str, shape: tuple[int, int]) -> None:
    code = "float8_e5m2" if kind == "infinity" else "float8_e4m3fn"
    codes, scales, _ = coded(code, *shape, 16)
    if kind == "scale":
        scales[20, 2] = np.nan
    else:
        codes[[20, 50], [17, 3]] = 0x7F if kind == "NaN" else 0xFC
    at = np.argwhere(~np.isfinite(numbers_of(code, codes, scales, 16)))
    if way == "resident":
        run = cuda.lanczos_run(sent(cuda, code, codes, scales, 16), 2, 0, 0, 0, False)
    else:
        run = cuda.lanczos_run_streamed((code, codes, scales, 16), "float32", 0, 2, 0, 0, 0, False, 1)
    run.advance(1)
    assert run.stats[1:] == (len(at), *at[0])


@pytest.mark.parametrize("code", ["float8_e4m3fn", "float4_e2m1"])
@pytest.mark.parametrize("precise", [False, True])
# Panels of 64 rows or columns begin within blocks of 100 and of all columns; one scale for all rows is sent once.
@pytest.mark.parametrize("shape", [(180, 130, 16), (70, 302, 100), (70, 302, 302)], ids=str)
def test_runs_take_the_cpu_s_course(cuda: Any, code: str, precise: bool, shape: tuple[int, int, int]) -> None:
    codes, scales, numbers = coded(code, *shape)
    if shape[-1] == 302:
        scales = np.broadcast_to(scales[:1], scales.shape)
        numbers = numbers_of(code, codes, scales, 302)
    row, column = (np.exp(np.random.default_rng(5).standard_normal(side)) for side in shape[:2])
    stored = (code, codes, scales, shape[-1])
    begun = (6, 11, 2, 0, precise)
    runs = [
        _core.lanczos_run(matrix_of(*stored), *begun, 1, (row, column), True),
        cuda.lanczos_run(sent(cuda, *stored), *begun, (row, column), True),
        cuda.lanczos_run_streamed(stored, "bfloat16", 0, *begun, 1, (row, column), True),
    ]
    for run in runs:
        run.advance(3)
    host, *others = runs
    theta, residual, weight = host.ritz()
    tolerance = 1e-10 if precise else 1e-4
    S = row[:, None] * numbers.astype(np.float64) * column
    for run in others:
        assert run.stats[0] == pytest.approx((S**2).sum(), rel=1e-12)
        assert np.abs(run.ritz()[0] - theta).max() < tolerance * theta[0]
        assert np.abs(run.ritz()[1] - residual).max() < tolerance * theta[0]
        assert np.abs(run.ritz()[2] - weight).max() < 10 * tolerance * weight.max()
        np.testing.assert_allclose(run.energies[0], (S**2).sum(axis=1), rtol=1e-12)
        np.testing.assert_allclose(run.energies[1], (S**2).sum(axis=0), rtol=1e-12)


@pytest.mark.parametrize(
    "kind", [("float8_e4m3fn", (128, 128)), ("float8_e5m2", (1, 1 << 20)), ("float4_e2m1", (1, 16))]
)
@pytest.mark.parametrize("way", ["resident", "streamed"])
def test_quantised_arrays_go_to_the_device_as_they_are_stored(
    cuda: Any, kind: tuple[str, tuple[int, int]], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mpfast.operators import cuda as device_sources

    if way == "streamed":
        monkeypatch.setattr(device_sources, "RESIDENT_SHARE", 0)
        monkeypatch.setattr(device_sources, "PANEL_BYTES", 1 << 12)
    code, block = kind
    codes = coded(code, 170, 130, 130)[0]
    grid = tuple(-(-side // size) for side, size in zip((170, 130), block, strict=True))
    scales = (0.5 + np.random.default_rng(1).random(grid)).astype(np.float32)
    array = array_of(code, codes[None], scales[None], block)[0]
    source = open_source(array, threads=1, device="cuda")
    assert source.matrix.is_coded
    assert source.device == "cuda:0"
    numbers = np.asarray(array)
    for method in ("exact", "lanczos"):
        found = mpfast.spectrum(array, method=method, seed=3, probes=8, steps=4, device="cuda")
        wanted = mpfast.spectrum(numbers, method=method, seed=3, probes=8, steps=4)
        assert found.device == "cuda:0"
        assert found.edge.sigma_plus == pytest.approx(wanted.edge.sigma_plus, rel=1e-5)
        assert found.fro_norm == pytest.approx(wanted.fro_norm, rel=1e-7)
    row, column = np.exp(np.random.default_rng(2).standard_normal(170)), np.ones(130)
    run, made = start_run(scaled(source, row, column), 5, 0, 0, 3, precise=True, energies=True)
    exact = np.linalg.norm(row[:, None] * numbers.astype(np.float64), 2)
    assert np.sqrt(run.ritz()[0][0]) * 2.0**made.scale_exponent == pytest.approx(exact, rel=0.05)


def test_rows_in_any_order_go_to_the_device(cuda: Any) -> None:
    codes, scales, numbers = coded("float4_e2m1", 40, 66, 32)
    for rows in (slice(None, None, 3), slice(None, None, -1), slice(5, 6)):
        there = open_source(matrix_of("float4_e2m1", codes[rows], scales[rows], 32), threads=1, device="cuda")
        same_bits(cuda.download(there.matrix)[0], numbers[rows])


def test_what_needs_entries_or_order_refuses_codes(cuda: Any) -> None:
    codes, scales, _ = coded("float8_e4m3fn", 12, 16, 4)
    there = sent(cuda, "float8_e4m3fn", codes, scales, 4)
    for call in (
        lambda: cuda.prune_smallest([there], [1.0], [1], 7),
        lambda: cuda.LayerWeights(there, 1.0, None),
        lambda: cuda.gather(there, 1),
    ):
        with pytest.raises(ValueError, match="decode it first"):
            call()
    for wrong, message in (
        (("float8_e4m3fn", codes[::-1], scales, 4), "in order"),
        (("float8_e4m3fn", np.broadcast_to(codes[:1], codes.shape), scales, 4), "without overlap"),
        (("float8_e3m4", codes, scales, 4), "no codes called"),
        (("float8_e4m3fn", codes, scales[:3], 4), "a row for each of codes"),
    ):
        with pytest.raises(ValueError, match=message):
            cuda.Matrix.upload(wrong, "float32", 0)
    with pytest.raises(ValueError, match="single precision"):
        cuda.Matrix.upload(("float8_e4m3fn", codes, scales, 4), "float64", 0)
