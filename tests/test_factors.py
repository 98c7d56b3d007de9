"""Products with a matrix whose rows and columns have factors, and the energies that a pass sees.

The reference is always the matrix that the factors make, formed by NumPy.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import mpfast
from mpfast import _core
from mpfast.operators import energies, open_source, scaled, start_run
from mpfast.spectra.request import Request
from mpfast.spectra.session import Session

from .device_arrays import DTYPES, stored
from .references import run_python

Array = NDArray[np.float64]

# One pass with several panels and chunks, by rows and by columns; few very long rows, whose two halves are two passes;
# more columns than a block of a pass in storage order takes; and what is smaller than a register.
SHAPES = ((310, 70), (70, 310), (1300, 41), (40, 70000), (3, 5), (1, 9))
# Unit roundoff of the products, for sums of positive and negative terms compared with the sum of their magnitudes.
ROUNDING = {"float64": 1e-14, "float32": 8e-6}


def layouts(entries: NDArray[Any]) -> dict[str, NDArray[Any]]:
    wide = np.zeros((2 * entries.shape[0], 2 * entries.shape[1]), entries.dtype)
    wide[::2, 1::2] = entries
    return {
        "rows": np.ascontiguousarray(entries),
        "columns": np.asfortranarray(entries),
        "strided": wide[::2, 1::2],
        "reversed": np.ascontiguousarray(entries[::-1, ::-1])[::-1, ::-1],
    }


def factors(shape: tuple[int, int], seed: int = 0) -> tuple[Array, Array]:
    """Log-normal, with a zero where there is room."""
    rng = np.random.default_rng(seed)
    rows, columns = (np.exp(rng.standard_normal(length)) for length in shape)
    for each in (rows, columns):
        if len(each) > 2:
            each[len(each) // 3] = 0
    return rows, columns


def gram(matrix: _core.Matrix, x: NDArray[Any], side: str, threads: int = 1, **options: Any) -> tuple[Any, ...]:
    """As `_core.gram_product`, with the energies at the end."""
    rows, columns = matrix.shape
    found = np.full(rows, np.nan), np.full(columns, np.nan)
    return *_core.gram_product(matrix, x, side, threads, energies=found, **options), *found


def precisions(dtype: str) -> tuple[str, ...]:
    return ("float64",) if dtype == "float64" else ("float32", "float64")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_product_is_that_of_the_matrix_that_the_factors_make(shape: tuple[int, int], dtype: str) -> None:
    rng = np.random.default_rng(1)
    entries, W = stored(rng.standard_normal(shape), dtype)
    row, column = factors(shape)
    S = row[:, None] * W * column
    few = max(shape) > 10000
    for (name, layout), side in itertools.product(layouts(entries).items(), ("right", "left")):
        if few and (side == "left") != (shape[0] < shape[1]):
            continue
        B = S if side == "right" else S.T
        for real, width in itertools.product(precisions(dtype), (1, 5) if few else (1, 3, 4, 8, 13)):
            x = rng.standard_normal((width, B.shape[1])).astype(real)
            matrix = _core.Matrix(layout, dtype)
            z, squares, nonfinite, *_, of_rows, of_columns = gram(matrix, x, side, factors=(row, column))
            size = np.abs(x.astype(float)) @ np.abs(B).T @ np.abs(B)
            assert (np.abs(z - x.astype(float) @ B.T @ B) <= ROUNDING[real] * size).all(), (name, side, real, width)
            assert z.dtype == real
            assert nonfinite == 0
            # The energies are summed in double whatever the vectors are.
            np.testing.assert_allclose(of_rows, (S**2).sum(axis=1), rtol=1e-13)
            np.testing.assert_allclose(of_columns, (S**2).sum(axis=0), rtol=1e-13)
            assert squares == pytest.approx((S**2).sum(), rel=1e-13)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_energies_change_no_bit_of_a_product(shape: tuple[int, int], dtype: str) -> None:
    """Beside float32 vectors, squares are added in short runs of float32; the norm is the sum of them all."""
    rng = np.random.default_rng(2)
    entries, W = stored(rng.standard_normal(shape), dtype)
    side = "right" if shape[0] >= shape[1] else "left"
    for name, layout in layouts(entries).items():
        matrix = _core.Matrix(layout, dtype)
        alone = _core.energies(matrix, 0, 1)
        assert alone[2:] == (0, -1, -1)
        for real, width in itertools.product(precisions(dtype), (1, 4, 5)):
            x = rng.standard_normal((width, min(shape))).astype(real)
            z, squares, *others, of_rows, of_columns = gram(matrix, x, side)
            plain = _core.gram_product(matrix, x, side, 1)
            np.testing.assert_array_equal(z, plain[0])
            assert tuple(others) == plain[2:], name
            rounding = 1e-13 if real == "float64" else 1e-6
            np.testing.assert_allclose(of_rows, (W**2).sum(axis=1), rtol=rounding)
            np.testing.assert_allclose(of_columns, (W**2).sum(axis=0), rtol=rounding)
            assert squares == pytest.approx((W**2).sum(), rel=rounding)
        np.testing.assert_allclose(alone[0], (W**2).sum(axis=1), rtol=1e-13)
        np.testing.assert_allclose(alone[1], (W**2).sum(axis=0), rtol=1e-13)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_powers_of_two_give_the_bits_of_the_matrix_that_they_make(shape: tuple[int, int], dtype: str) -> None:
    rng = np.random.default_rng(3)
    # Of the size of one, so that half precision holds their multiples, too.
    entries, W = stored(rng.uniform(0.5, 2, shape) * rng.choice([-1.0, 1.0], shape), dtype)
    row, column = (2.0 ** rng.integers(-3, 4, length) for length in shape)
    made, _ = stored(row[:, None] * W * column, dtype)
    side = "right" if shape[0] >= shape[1] else "left"
    for name, real, width in itertools.product(("rows", "columns", "strided"), precisions(dtype), (1, 4, 5)):
        x = rng.standard_normal((width, min(shape))).astype(real)
        with_factors = gram(_core.Matrix(layouts(entries)[name], dtype), x, side, factors=(row, column))
        of_made = gram(_core.Matrix(layouts(made)[name], dtype), x, side)
        np.testing.assert_array_equal(with_factors[0], of_made[0], err_msg=f"{name} {real} {width}")
        # Squares are added in float32 at most where there are no factors.
        for found, expected in zip(with_factors[-2:], of_made[-2:], strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-13 if real == "float64" else 1e-6)


def test_factors_of_one_change_no_bit() -> None:
    W = np.random.default_rng(4).standard_normal((200, 90)).astype(np.float32)
    matrix = _core.Matrix(W, "float32")
    ones = np.ones(200), np.ones(90)
    for width in (2, 6):
        x = np.random.default_rng(width).standard_normal((width, 90)).astype(np.float32)
        np.testing.assert_array_equal(gram(matrix, x, "right", factors=ones)[0], gram(matrix, x, "right")[0])
    assert (_core.gram_matrix(matrix, 0, 1, ones)[0] == _core.gram_matrix(matrix, 0, 1)[0]).all()
    assert (_core.exact_values(matrix, 1, ones)[0] == _core.exact_values(matrix, 1)[0]).all()


@pytest.mark.parametrize("shape", [(900, 300), (300, 900), (60, 70000)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_same_bits_for_any_number_of_threads(shape: tuple[int, int], order: str) -> None:
    W = np.asarray(np.random.default_rng(5).standard_normal(shape).astype(np.float32), order=order)  # type: ignore[call-overload]
    x = np.random.default_rng(6).standard_normal((3, min(shape))).astype(np.float32)
    side = "right" if shape[0] >= shape[1] else "left"
    matrix = _core.Matrix(W, "float32")
    for options in ({}, {"factors": factors(shape)}):
        for wide in (False, True):
            block = np.concatenate([x, x, x]) if wide else x
            one, *more = (gram(matrix, block, side, threads, **options) for threads in (1, 2, 5))
            for other in more:
                assert [np.asarray(part).tobytes() for part in one] == [np.asarray(part).tobytes() for part in other]
    alone = [_core.energies(matrix, 0, threads) for threads in (1, 3)]
    assert all((a == b).all() for a, b in zip(alone[0][:2], alone[1][:2], strict=True))


INSTRUCTION_SETS = """
import sys
import numpy as np
from mpfast import _core
rng = np.random.default_rng(0)
W = rng.standard_normal((130, 77))
row, column = np.exp(rng.standard_normal(130)), np.exp(rng.standard_normal(77))
row[3] = column[4] = 0
x = rng.standard_normal((3, 77)), rng.standard_normal((9, 77))
found = []
for dtype, real in (("float64", "f8"), ("float32", "f4"), ("float16", "f4")):
    for order in "CF":
        matrix = _core.Matrix(np.asarray(W.astype(dtype), order=order), dtype)
        for block in x:
            sums = np.empty(130), np.empty(77)
            z = _core.gram_product(matrix, block.astype(real), "right", 1, 0, (row, column), sums)[0]
            found += [z.ravel().astype(float), *sums]
print(_core.isa())
np.save(sys.argv[1], np.concatenate(found))
"""


def test_instruction_sets_agree(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    results = {}
    for wanted in ("baseline", "avx2", "avx512"):
        monkeypatch.setenv("MPFAST_ISA", wanted)
        run = run_python("-c", INSTRUCTION_SETS, str(tmp_path / f"{wanted}.npy"))
        if run.returncode == 0:  # a machine need not have all of them
            results[run.stdout.strip()] = np.load(tmp_path / f"{wanted}.npy")
    assert results
    first, *others = results.values()
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("side", ["right", "left"])
def test_a_dead_row_or_column_may_hold_anything_finite(dtype: str, side: str) -> None:
    """Its products may overflow: zero times that is zero all the same."""
    W = np.random.default_rng(7).standard_normal((40, 33)).astype(dtype)
    row, column = np.ones(40), np.ones(33)
    huge = np.finfo(dtype).max
    W[5], W[:, 7] = huge, -huge
    row[5] = column[7] = 0
    S = (row[:, None] * W.astype(float)) * column
    B = S if side == "right" else S.T
    for width in (2, 6):
        x = np.random.default_rng(8).standard_normal((width, B.shape[1])).astype(dtype)
        z, squares, nonfinite, *_, of_rows, of_columns = gram(_core.Matrix(W, dtype), x, side, factors=(row, column))
        assert np.abs(z - x.astype(float) @ B.T @ B).max() < 1e-4
        assert (of_rows[5], of_columns[7], nonfinite) == (0, 0, 0)
        assert (z[:, 7 if side == "right" else 5] == 0).all()
        assert squares == pytest.approx((S**2).sum(), rel=1e-13)
    values = _core.exact_values(_core.Matrix(W, dtype), 1, (row, column))[0]
    np.testing.assert_allclose(values, np.linalg.svd(S, compute_uv=False), atol=1e-7)


def test_a_dead_row_with_a_nan_is_still_reported() -> None:
    W = np.ones((40, 33), np.float32)
    W[5, 6] = np.nan
    row, column = np.ones(40), np.ones(33)
    row[5] = 0
    x = np.ones((5, 33), np.float32)
    assert gram(_core.Matrix(W, "float32"), x, "right", factors=(row, column))[2:5] == (1, 5, 6)
    assert _core.energies(_core.Matrix(W, "float32"), 0, 1, (row, column))[2:] == (1, 5, 6)
    with pytest.raises(ValueError, match=r"1 non-finite entry .* first at \(5, 6\)"):
        energies(scaled(open_source(W, threads=1), row, column))


@pytest.mark.parametrize("width", [1, 5, 8])
@pytest.mark.parametrize("of", ["rows", "columns"])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-15, 1e25])
def test_squares_that_float32_loses_are_formed_again(size: float, of: str, width: int) -> None:
    W = np.random.default_rng(9).standard_normal((130, 90))
    tiny = W[::2] if of == "rows" else W[:, ::2]
    tiny *= size
    W = W.astype(np.float32)
    x = np.random.default_rng(10).standard_normal((width, 90)).astype(np.float32)
    _, squares, *_, of_rows, of_columns = gram(_core.Matrix(W, "float32"), x, "right")
    np.testing.assert_allclose(of_rows, (W.astype(float) ** 2).sum(axis=1), rtol=1e-6)
    np.testing.assert_allclose(of_columns, (W.astype(float) ** 2).sum(axis=0), rtol=1e-6)
    assert squares == pytest.approx((W.astype(float) ** 2).sum(), rel=1e-6)


def test_a_pass_with_energies_finds_the_first_entry_that_is_not_finite() -> None:
    W = np.random.default_rng(9).standard_normal((130, 90)).astype(np.float32)
    W[100, 3] = W[7, 80] = np.inf
    x = np.random.default_rng(10).standard_normal((4, 90)).astype(np.float32)
    assert gram(_core.Matrix(W, "float32"), x, "right")[2:5] == (2, 7, 80)
    assert gram(_core.Matrix(np.asfortranarray(W), "float32"), x, "right")[2:5] == (2, 7, 80)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_fp32_energies_neither_overflow_nor_underflow(size: float) -> None:
    """Rows of both sizes at once: their squares are beyond float32, and within the range of what they are summed in."""
    W = np.random.default_rng(9).standard_normal((50, 40))
    W[::2] *= size
    W = W.astype(np.float32)
    found = energies(open_source(W, threads=1))
    assert found is not None
    unit = 4.0 ** open_source(W, threads=1).scale_exponent
    np.testing.assert_allclose(found[0] * unit, (W.astype(float) ** 2).sum(axis=1), rtol=1e-13)
    np.testing.assert_allclose(found[1] * unit, (W.astype(float) ** 2).sum(axis=0), rtol=1e-13)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("lines", [[3], [0, 1, 2, 70], list(range(0, 100, 3))])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_rows_and_columns_too_small_for_squares_in_the_precision_of_the_product(
    dtype: str, lines: list[int], side: str
) -> None:
    """A few are read again by themselves, and so is all of W where there are many."""
    tiny = 1e-170 if dtype == "float64" else 1e-25
    W = np.random.default_rng(12).standard_normal((100, 100))
    W[lines] *= tiny
    W[lines[0]] = 0
    W[:, lines] *= tiny if len(lines) < 5 else 1
    W[:, lines[-1]] = 0
    entries, W = stored(W, dtype)
    x = np.random.default_rng(13).standard_normal((4, 100)).astype("float64" if dtype == "float64" else "float32")
    *_, rows, columns = gram(_core.Matrix(entries, dtype), x, side)
    # Where rows and columns of tiny entries meet, the squares of doubles are beyond what doubles hold.
    np.testing.assert_allclose(rows, (W**2).sum(axis=1), rtol=1e-6)
    np.testing.assert_allclose(columns, (W**2).sum(axis=0), rtol=1e-6)
    assert rows[lines[0]] == columns[lines[-1]] == 0


def sources(W: NDArray[Any]) -> dict[str, Callable[[], Any]]:
    sparse = pytest.importorskip("scipy.sparse")
    linalg = pytest.importorskip("scipy.sparse.linalg")
    return {
        "host": lambda: W,
        "fortran": lambda: np.asfortranarray(W),
        "sparse": lambda: sparse.csr_array(W),
        "operator": lambda: linalg.aslinearoperator(W),
    }


@pytest.mark.parametrize("name", ["host", "fortran", "sparse", "operator"])
@pytest.mark.parametrize("shape", [(150, 90), (90, 150)])
@pytest.mark.parametrize("spread", [1.0, 60.0])
def test_a_scaled_source_is_that_of_the_matrix_that_the_factors_make(
    name: str, shape: tuple[int, int], spread: float
) -> None:
    """Factors over 52 decades undo those that the matrix was made with: the result has the size of ordinary weights."""
    rng = np.random.default_rng(10)
    S = rng.standard_normal(shape)
    row, column = np.exp(spread * rng.uniform(-1, 1, shape[0])), np.exp(rng.standard_normal(shape[1]))
    W = S / row[:, None] / column
    row[3] = column[5] = column[6] = 0
    S = row[:, None] * W * column
    # Scales in two parts are their product.
    first = scaled(open_source(sources(W)[name](), threads=1), np.full(shape[0], 1024.0), column)
    source = scaled(first, row, np.full(shape[1], 1 / 1024))
    run, source = start_run(source, 6, 0, 0, 4, precise=False, energies=True)
    unit = 2.0**source.scale_exponent
    exact = np.linalg.svd(S, compute_uv=False)
    values, norm, _ = source.singular_values()
    np.testing.assert_allclose(values, exact, atol=1e-7 * exact[0])
    assert norm == pytest.approx(np.linalg.norm(S), rel=1e-12)
    short = np.flatnonzero([row, column][0 if shape[0] < shape[1] else 1] == 0)
    assert run.zero_coordinates == len(short)
    assert np.sqrt(run.ritz()[0][0]) * unit <= exact[0] * (1 + 1e-12)
    G = S.T @ S if shape[0] > shape[1] else S @ S.T
    assert np.abs(source.gram() * unit**2 - G).max() < 1e-11 * np.abs(G).max()
    for transpose, M in ((False, S.T), (True, S)):
        x = rng.standard_normal((3, len(M)))
        np.testing.assert_allclose(source.multiply(x, transpose=transpose) * unit, x @ M, atol=1e-11)
    found = energies(source, run)
    if name == "operator":
        assert found is None
        assert source.squared_norm(run.stats[0]) is None
        return
    assert found is not None
    np.testing.assert_allclose(found[0] * unit**2, (S**2).sum(axis=1), rtol=1e-12)
    np.testing.assert_allclose(found[1] * unit**2, (S**2).sum(axis=0), rtol=1e-12)
    again = energies(source)
    assert again is not None
    np.testing.assert_allclose(again[0], found[0], rtol=1e-13)
    squared = source.squared_norm(run.stats[0])
    assert squared is not None
    assert squared * unit**2 == pytest.approx((S**2).sum(), rel=1e-12)


def test_fp32_matrix_of_rows_from_1e_minus_30_to_1e30() -> None:
    rng = np.random.default_rng(11)
    S = rng.standard_normal((300, 120))
    row = 10.0 ** rng.uniform(-30, 30, 300)
    W = (S / row[:, None]).astype(np.float32)
    source = scaled(open_source(W, threads=1), row, np.ones(120))
    run, source = start_run(source, 8, 0, 0, 8, precise=False, energies=True)
    exact = np.linalg.svd(row[:, None] * W.astype(float), compute_uv=False)
    unit = 2.0**source.scale_exponent
    assert run.stats[0] * unit**2 == pytest.approx((exact**2).sum(), rel=1e-12)
    assert np.sqrt(run.ritz()[0][0]) * unit == pytest.approx(exact[0], rel=1e-3)
    product = source.multiply(np.eye(3, 120, dtype=np.float32), transpose=False)
    np.testing.assert_allclose(product * unit, (row[:, None] * W.astype(float))[:, :3].T, rtol=1e-12)


def test_a_run_with_factors_is_that_of_the_matrix_that_they_make() -> None:
    """Powers of two make no rounding of their own: the Ritz values are the same to the bit."""
    rng = np.random.default_rng(12)
    W = rng.standard_normal((260, 140)).astype(np.float32)
    row, column = 2.0 ** rng.integers(-4, 5, 260), 2.0 ** rng.integers(-4, 5, 140)
    made = (row[:, None] * W * column).astype(np.float32)
    for precise in (False, True):
        mine, here = start_run(scaled(open_source(W, threads=2), row, column), 6, 3, 0, 5, precise=precise)
        other, there = start_run(open_source(made, threads=2), 6, 3, 0, 5, precise=precise)
        assert mine.stats[0] * 4.0**here.scale_exponent == pytest.approx(other.stats[0], rel=1e-6)
        for found, expected, power in zip(mine.ritz(), other.ritz(), (1, 1, 0), strict=True):
            unit = 4.0 ** (power * (here.scale_exponent - there.scale_exponent))
            np.testing.assert_array_equal(found * unit, expected)


def test_a_spectrum_of_a_scaled_source_counts_what_stands_out_of_even_noise() -> None:
    rng = np.random.default_rng(13)
    even = rng.standard_normal((700, 400)).astype(np.float32)
    column = np.exp(rng.standard_normal(400))
    column[7] = 0
    W = even * np.where(column > 0, column, 1).astype(np.float32)
    request = Request(method="lanczos", tol=5e-3, seed=0)
    scale = np.where(column > 0, 1 / np.where(column > 0, column, 1), 0)
    session = Session(scaled(open_source(W, threads=1), np.ones(700), scale), request, precise=False)
    session.add_probes(16)
    session.settle()
    found = session.spectrum()
    alive = even.copy()
    alive[:, 7] = 0
    there = mpfast.spectrum(alive, method="lanczos", probes=16)
    assert found.edge.sigma_plus == pytest.approx(there.edge.sigma_plus, rel=1e-3)
    assert found.edge.spikes == there.edge.spikes == 0
    assert found.zero_fraction == 1 / 400
    assert found.fro_norm == pytest.approx(np.linalg.norm(alive.astype(float)), rel=1e-5)


@pytest.mark.parametrize(
    ("row", "column", "says"),
    [
        (np.ones(4), np.ones(4), r"row_scale must have shape \(5,\)"),
        (np.ones(5), np.ones((4, 1)), r"column_scale must have shape \(4,\)"),
        (np.array([1, 2, np.nan, 1, 1]), np.ones(4), "row_scale has factors that are negative or not finite"),
        (np.ones(5), np.array([1.0, -1.0, 1.0, 1.0]), "column_scale has factors that are negative"),
        (np.ones(5), np.array([1.0, 1e-150, 1.0, 1.0]), "column_scale goes from 1e-150 to 1: products would leave"),
    ],
)
def test_factors_that_do_not_fit_are_refused(row: Array, column: Array, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        scaled(open_source(np.ones((5, 4)), threads=1), row, column)


def test_energies_that_are_no_float64_are_refused() -> None:
    W = np.ones((700, 80))
    W[5, 3] = 1e200  # where no sample of the entries looks
    with pytest.raises(ValueError, match="squares of the entries of W leave the range of float64"):
        energies(open_source(W, threads=1))


def test_all_factors_zero() -> None:
    source = scaled(open_source(np.ones((70, 80)), threads=1), np.zeros(70), np.ones(80))
    assert (source.singular_values()[0] == 0).all()
    found = energies(source)
    assert found is not None
    assert not found[0].any()
    assert not found[1].any()
