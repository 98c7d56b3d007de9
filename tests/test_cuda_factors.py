"""Factors and energies of rows and columns on the emulated device, against NumPy; see tests/emulation/README.md."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mpfast.operators import energies, open_source, scaled, start_run

from .device_arrays import DTYPES, device_matrix, on_device, stored

pytestmark = pytest.mark.usefixtures("cuda")

# More than a panel and a slice of every type, not a multiple of anything, and smaller than one tile.
SHAPES = ((131, 70), (37, 301), (5, 3))


def factors(shape: tuple[int, int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Log-normal, with a zero on each side."""
    rng = np.random.default_rng(20)
    row, column = (np.exp(rng.standard_normal(length)) for length in shape)
    row[1] = column[2] = 0
    return row, column


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_energies_equal_numpy_s(cuda: Any, shape: tuple[int, int], dtype: str) -> None:
    entries, W = stored(np.random.default_rng(shape[0]).standard_normal(shape), dtype)
    pair = factors(shape)
    for layout in (np.ascontiguousarray(entries), np.asfortranarray(entries), entries[::-1, ::-1].copy()[::-1, ::-1]):
        for given, S in ((None, W), (pair, pair[0][:, None] * W * pair[1])):
            rows, columns, *nonfinite = cuda.energies(device_matrix(cuda, layout, dtype), 1, given)
            np.testing.assert_allclose(rows * 4, (S**2).sum(axis=1), rtol=1e-13)
            np.testing.assert_allclose(columns * 4, (S**2).sum(axis=0), rtol=1e-13)
            assert nonfinite == [0, -1, -1]


@pytest.mark.parametrize("cluster", ["1", "8"])
@pytest.mark.parametrize("precise", [False, True])
def test_energies_over_several_slices_and_chunks(
    cuda: Any, precise: bool, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one pass and in two; a run's first pass gives the same."""
    monkeypatch.setenv("MPFAST_EMULATED_CLUSTER", cluster)
    W = np.random.default_rng(21).standard_normal((1100, 1300)).astype(np.float32)[:150]
    run = cuda.lanczos_run(device_matrix(cuda, W.T, "float32"), 3, 0, 0, 0, precise, None, True)
    assert run.energies is None
    run.advance(1)
    squares = W.astype(np.float64) ** 2
    np.testing.assert_allclose(run.energies[0], squares.sum(axis=0), rtol=1e-13)
    np.testing.assert_allclose(run.energies[1], squares.sum(axis=1), rtol=1e-13)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(180, 130), (70, 300)])
@pytest.mark.parametrize("cluster", ["1", "8"])
@pytest.mark.parametrize("way", ["resident", "streamed"])
def test_runs_are_those_of_the_matrix_that_the_factors_make(
    cuda: Any, way: str, cluster: str, shape: tuple[int, int], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPFAST_EMULATED_CLUSTER", cluster)
    rng = np.random.default_rng(22)
    entries, W = stored(rng.uniform(0.5, 2, shape) * rng.choice([-1.0, 1.0], shape), dtype)
    row, column = (2.0 ** rng.integers(-3, 4, length) for length in shape)
    row[3] = column[5] = column[6] = 0
    made, S = stored(row[:, None] * W * column, dtype)

    def begun(array: NDArray[Any], pair: Any) -> Any:
        if way == "resident":
            return cuda.lanczos_run(device_matrix(cuda, array, dtype), 6, 11, 2, 0, False, pair, True)
        return cuda.lanczos_run_streamed(array, dtype, 0, 6, 11, 2, 0, False, 1 << 14, pair, True)

    mine, other = begun(entries, (row, column)), begun(made, None)
    for run in (mine, other):
        run.advance(3)
    # Powers of two make no rounding of their own.
    for found, expected in zip(mine.ritz(), other.ritz(), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert mine.zero_coordinates == other.zero_coordinates == (2 if shape[0] > shape[1] else 1)
    assert mine.stats[0] == pytest.approx((S**2).sum(), rel=1e-13)
    for run in (mine, other):
        np.testing.assert_allclose(run.energies[0], (S**2).sum(axis=1), rtol=1e-13)
        np.testing.assert_allclose(run.energies[1], (S**2).sum(axis=0), rtol=1e-13)


def test_a_run_without_them_is_as_before(cuda: Any) -> None:
    W = np.random.default_rng(23).standard_normal((90, 60)).astype(np.float32)
    plain = cuda.lanczos_run(device_matrix(cuda, W, "float32"), 4, 0, 0, 0, False)
    asked = cuda.lanczos_run(device_matrix(cuda, W, "float32"), 4, 0, 0, 0, False, None, True)
    for run in (plain, asked):
        run.advance(3)
    assert plain.energies is None
    assert plain.stats == asked.stats
    for a, b in zip(plain.ritz(), asked.ritz(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("way", ["resident", "streamed"])
@pytest.mark.parametrize("spread", [1.0, 60.0])
def test_a_scaled_source_on_the_device(way: str, spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    from mpfast.operators import cuda as device_sources

    rng = np.random.default_rng(24)
    S = rng.standard_normal((100, 70))
    row, column = np.exp(spread * rng.uniform(-1, 1, 100)), np.exp(rng.standard_normal(70))
    W = (S / row[:, None] / column).astype(np.float32)
    row[3] = column[5] = 0
    S = row[:, None] * W.astype(np.float64) * column
    if way == "streamed":
        monkeypatch.setattr(device_sources, "RESIDENT_SHARE", 0)
        monkeypatch.setattr(device_sources, "PANEL_BYTES", 1 << 13)
        opened = open_source(W, threads=1, device="cuda")
    else:
        opened = open_source(on_device(W), threads=1)
    run, source = start_run(scaled(opened, row, column), 5, 0, 0, 4, precise=False, energies=True)
    assert source.device == "cuda:0"
    unit = 2.0**source.scale_exponent
    exact = np.linalg.svd(S, compute_uv=False)
    np.testing.assert_allclose(source.singular_values()[0], exact, atol=1e-7 * exact[0])
    assert np.abs(source.gram() * unit**2 - S.T @ S).max() < 1e-11 * np.abs(S.T @ S).max()
    x = rng.standard_normal((3, 70))
    np.testing.assert_allclose(source.multiply(x, transpose=False) * unit, x @ S.T, atol=1e-11)
    for found in (energies(source, run), energies(source)):
        assert found is not None
        np.testing.assert_allclose(found[0] * unit**2, (S**2).sum(axis=1), rtol=1e-12)
        np.testing.assert_allclose(found[1] * unit**2, (S**2).sum(axis=0), rtol=1e-12)
    assert np.sqrt(run.ritz()[0][0]) * unit <= exact[0] * (1 + 1e-5)
    assert run.zero_coordinates == 1
