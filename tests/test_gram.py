"""The fused Gram products and plain products of the native core, against NumPy in float64.

Tolerances. A dot product of n terms computed in precision eps, in any order, differs from the exact one by at most
``n eps sum |a_k x_k|`` to first order; blocked summation with rounding errors of random sign stays below
``sqrt(n) eps`` times that sum. ``bound`` therefore is ``4 eps sqrt(rows + cols) |W|^T |W| |x|``, entry by entry: both
phases, the conversions and a factor of safety, yet three orders below the effect of one wrong entry at these sizes.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mpfast import _core

from .references import gaussian, run_python, vectors

STORAGES = ["float64", "float32", "float16", "bfloat16"]
CASES = [(storage, real) for storage in STORAGES for real in ("float32", "float64")][1:]


def store(values, storage):
    """The array in its storage, and the float64 values it really holds."""
    if storage == "bfloat16":
        bits = (np.asarray(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)
        return bits, widen(bits)
    array = np.asarray(values).astype(storage)
    return array, array.astype(np.float64)


def widen(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def check_gram(array, exact, storage, real, width, side, threads=2):
    x = vectors(width, array.shape[1 if side == "right" else 0], real)
    z, fro2, nonfinite, row, col = _core.gram_product(_core.Matrix(array, storage), x, side, threads)
    w = exact if side == "right" else exact.T
    wanted = (w.T @ (w @ x.T.astype(np.float64))).T
    magnitude = (np.abs(w).T @ (np.abs(w) @ np.abs(x.T.astype(np.float64)))).T
    bound = 4 * np.finfo(real).eps * np.sqrt(sum(array.shape)) * magnitude
    assert z.dtype == x.dtype
    assert z.shape == x.shape
    assert np.all(np.abs(z - wanted) <= bound)
    # float: squares are added in short runs in single precision, then in double; equal entries are the worst case.
    assert fro2 == pytest.approx(np.sum(exact**2), rel=1e-6 if real == "float32" else 1e-13)
    assert (nonfinite, row, col) == (0, -1, -1)


def check_multiply(array, exact, storage, real, width, transpose, threads=2):
    w = exact.T if transpose else exact
    x = vectors(width, w.shape[1], real)
    y = _core.multiply(_core.Matrix(array, storage), x, transpose, threads)
    wanted = (w @ x.T.astype(np.float64)).T
    bound = 4 * np.finfo(real).eps * np.sqrt(sum(array.shape)) * (np.abs(w) @ np.abs(x.T.astype(np.float64))).T
    assert y.dtype == x.dtype
    assert np.all(np.abs(y - wanted) <= bound)


@pytest.mark.parametrize(("storage", "real"), CASES)
@pytest.mark.parametrize("side", ["right", "left"])
def test_every_width_on_odd_sizes(storage, real, side):
    array, exact = store(gaussian(203, 157), storage)
    for width in range(1, 33):
        check_gram(array, exact, storage, real, width, side)
        check_multiply(array, exact, storage, real, width, side == "left")


@pytest.mark.parametrize(("storage", "real"), CASES)
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1),
        (1, 5),
        (5, 1),
        (1, 4099),
        (4099, 1),
        (2, 3),
        (3, 1031),
        (17, 16),
        (64, 64),
        (700, 33),
        (33, 700),
    ],
)
def test_shapes(storage, real, shape):
    array, exact = store(gaussian(*shape), storage)
    for width in (1, 2, 3, 5, 8):
        for side in ("right", "left"):
            check_gram(array, exact, storage, real, width, side)
            check_multiply(array, exact, storage, real, width, side == "left")


LAYOUTS = {
    "fortran": lambda a: np.asfortranarray(a),
    "transposed view": lambda a: a.T,
    "padded": lambda a: np.pad(a, ((0, 0), (3, 10)))[:, 3:-10],
    "padded fortran": lambda a: np.pad(a.T, ((0, 0), (3, 10)))[:, 3:-10].T,
    "every third column": lambda a: a[:, ::3],
    "every second row": lambda a: a[::2],
    "steps in both": lambda a: a[::2, ::3],
    "rows reversed": lambda a: a[::-1],
    "columns reversed": lambda a: a[:, ::-1],
    "both reversed with steps": lambda a: a[::-3, ::-2],
    "one row for all": lambda a: np.broadcast_to(a[:1], a.shape),
    "one column for all": lambda a: np.broadcast_to(a[:, :1], a.shape),
    "one entry for all": lambda a: np.broadcast_to(a[:1, :1], a.shape),
    "unaligned start": lambda a: a.reshape(-1)[1:-2].reshape(-1)[: 150 * 100].reshape(150, 100),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("storage", "real"), CASES)
def test_layouts(layout, storage, real):
    array, _ = store(gaussian(311, 190), storage)
    array = LAYOUTS[layout](array)
    exact = widen(array) if storage == "bfloat16" else array.astype(np.float64)
    for width in (1, 4, 7):
        for side in ("right", "left"):
            check_gram(array, exact, storage, real, width, side)
            check_multiply(array, exact, storage, real, width, side == "left")


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["C", "F", "stepped"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("shape", [(2500, 700), (700, 2500), (3, 700_001), (700_001, 3), (40, 300_000), (300_000, 40)])
def test_every_blocking(shape, side, layout):
    """Several chunks, panels that fill a cache, and the shapes that take two passes."""
    if layout == "stepped":
        array = np.random.default_rng(3).standard_normal((shape[0], 2 * shape[1]), dtype=np.float32)[:, ::2]
    else:
        array = np.asarray(np.random.default_rng(3).standard_normal(shape, dtype=np.float32), order=layout)
    x = vectors(3, shape[1 if side == "right" else 0], "float32")
    w = (array if side == "right" else array.T).astype(np.float64)
    z, fro2, nonfinite, _, _ = _core.gram_product(_core.Matrix(array, "float32"), x, side, 2)
    wanted = (w.T @ (w @ x.T)).T
    # Norm-wise here: the error of a random sum of n terms is about eps sqrt(n) |w| |x| / sqrt(n) = eps |w| |x|.
    eps = float(np.finfo(np.float32).eps)
    assert np.linalg.norm(z - wanted) <= 16 * eps * np.linalg.norm(
        w, 2 if min(shape) < 100 else "fro"
    ) * np.linalg.norm(w @ x.T)
    assert fro2 == pytest.approx(np.sum(w**2), rel=1e-6)
    assert nonfinite == 0
    y = _core.multiply(_core.Matrix(array, "float32"), x, side == "left", 2)
    assert np.linalg.norm(y - (w @ x.T).T) <= 16 * eps * np.linalg.norm(w) * np.linalg.norm(x)


# Rows longer than this are multiplied in pieces (kColumnBlock in products.cpp).
COLUMN_BLOCK = 1 << 15


@pytest.mark.parametrize(("storage", "real"), CASES)
@pytest.mark.parametrize("over", [1, 2, 17])
def test_multiply_by_rows_with_a_narrow_piece_at_the_end(storage, real, over):
    """A piece one column wide has contiguous rows where the matrix has none, and is packed like the others."""
    values, _ = store(gaussian(7, 2 * (COLUMN_BLOCK + over)), storage)
    array = values[:, ::2]
    exact = widen(array) if storage == "bfloat16" else array.astype(np.float64)
    for width in (1, 5):
        check_multiply(array, exact, storage, real, width, False, threads=1)
        check_multiply(array.T, exact.T, storage, real, width, True, threads=1)


NARROW_PIECE_FIRST = """
import sys
import numpy as np
from mpfast import _core
cols = int(sys.argv[1])
row = np.ones(2 * cols, np.float32)[::2]
matrix = _core.Matrix(np.broadcast_to(row, (1200, cols)), "float32")
for _ in range(10):
    assert np.all(_core.multiply(matrix, np.ones((1, cols), np.float32), False, 8) == cols)
"""


def test_multiply_where_a_worker_takes_the_narrow_piece_first():
    """Every second task is two columns wide and done at once, so that most workers come upon one of those first.

    A buffer made for that piece alone would be overrun by the next one; hence a process of its own.
    """
    run = run_python("-c", NARROW_PIECE_FIRST, str(COLUMN_BLOCK + 2))
    assert run.returncode == 0, run.stderr


def test_multiply_any_width():
    array, exact = store(gaussian(90, 70), "float32")
    for width in (33, 64, 101):
        check_multiply(array, exact, "float32", "float32", width, False)
        check_multiply(array, exact, "float32", "float32", width, True)


@pytest.mark.parametrize("storage", ["float16", "bfloat16"])
@pytest.mark.parametrize("real", ["float32", "float64"])
def test_every_16_bit_pattern_is_widened_exactly(storage, real):
    """W has one entry per row and X is 1, so that Y shows what each entry was taken for."""
    bits = np.arange(65536, dtype=np.uint16).reshape(-1, 16)
    array = bits.view(np.float16) if storage == "float16" else bits
    exact = array.astype(np.float64) if storage == "float16" else widen(bits)
    finite = np.isfinite(exact).all(axis=1)
    assert finite.sum() > 3000
    y = _core.multiply(_core.Matrix(array[finite], storage), np.eye(16, dtype=real), False, 1)
    np.testing.assert_array_equal(y.T, exact[finite].astype(real))
    packed = np.ascontiguousarray(array[:, ::-1])[:, ::-1]
    y = _core.multiply(_core.Matrix(packed[finite], storage), np.eye(16, dtype=real), False, 1)
    np.testing.assert_array_equal(y.T, exact[finite].astype(real))
    column = np.ascontiguousarray(array.reshape(-1, 1))
    y = _core.multiply(_core.Matrix(column, storage), np.ones((1, 1), real), False, 1)
    np.testing.assert_array_equal(y[0], exact.reshape(-1).astype(real))  # inf and nan too


@pytest.mark.parametrize(
    ("storage", "real", "size", "exponent"),
    [
        ("float64", "float64", 1e200, 664),
        ("float64", "float64", 1e-200, -664),
        ("float64", "float64", 1e-300, -1000),
        ("float32", "float32", 1e30, 100),
        ("float32", "float32", 1e37, 123),
        ("float32", "float32", 1e-30, -100),
        ("float32", "float32", 1e-37, -123),
        ("float32", "float64", 1e30, 100),
        ("bfloat16", "float32", 1e36, 120),
        ("float16", "float32", 1e4, 13),
        ("float32", "float32", 1.0, 7),
    ],
)
def test_scale_exponent(storage, real, size, exponent):
    """Scaling by a power of two is exact: the scaled product is the product of the scaled matrix."""
    array, exact = store(gaussian(120, 90) * size, storage)
    scaled = np.ldexp(exact, -exponent)
    for side in ("right", "left"):
        w = scaled if side == "right" else scaled.T
        x = vectors(3, w.shape[1], real)
        z, fro2, nonfinite, _, _ = _core.gram_product(_core.Matrix(array, storage), x, side, 2, exponent)
        magnitude = (np.abs(w).T @ (np.abs(w) @ np.abs(x.T))).T
        assert np.all(np.abs(z - (w.T @ (w @ x.T)).T) <= 4 * np.finfo(real).eps * np.sqrt(210) * magnitude)
        assert fro2 == pytest.approx(np.sum(scaled**2), rel=5e-7 if real == "float32" else 1e-13)
        assert nonfinite == 0
        y = _core.multiply(_core.Matrix(array, storage), x, side == "left", 2, exponent)
        assert np.all(np.abs(y - (w @ x.T).T) <= 4 * np.finfo(real).eps * np.sqrt(210) * (np.abs(w) @ np.abs(x.T)).T)


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_frobenius_norm_does_not_under_or_overflow_in_single_precision(size):
    array, exact = store(gaussian(50, 70) * size, "float32")
    _, fro2, nonfinite, _, _ = _core.gram_product(
        _core.Matrix(array, "float32"), np.zeros((1, 70), np.float32), "right", 1
    )
    assert fro2 == pytest.approx(np.sum(exact**2), rel=1e-13)
    assert nonfinite == 0


def test_frobenius_norm_of_equal_entries():
    """Rounding errors that all have the same sign are the worst case of the short single-precision runs."""
    array = np.full((500, 400), 0.1, np.float32)
    _, fro2, _, _, _ = _core.gram_product(_core.Matrix(array, "float32"), vectors(2, 400, "float32"), "right", 2)
    assert fro2 == pytest.approx(200_000 * float(np.float32(0.1)) ** 2, rel=1e-6)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("order", ["C", "F", "stepped", "reversed"])
def test_nonfinite_entries_are_counted_and_located(storage, order):
    values = gaussian(600, 500)
    spots = [(599, 2), (7, 480), (7, 481), (300, 0), (599, 499)]
    for k, spot in enumerate(spots):
        values[spot] = [np.nan, np.inf, -np.inf][k % 3]
    with np.errstate(invalid="ignore"):
        array, _ = store(values, storage)
    if order == "F":
        array = np.asfortranarray(array)
    elif order == "stepped":
        wide = np.zeros((600, 1000), array.dtype)
        wide[:, ::2] = array
        array = wide[:, ::2]
    elif order == "reversed":
        array = np.ascontiguousarray(array[::-1, ::-1])[::-1, ::-1]
    for side, length in (("right", 500), ("left", 600)):
        x = vectors(2, length, "float64")
        _, fro2, count, row, col = _core.gram_product(_core.Matrix(array, storage), x, side, 2)
        assert not np.isfinite(fro2)
        assert (count, row, col) == (5, 7, 480)


def test_nonfinite_entries_in_a_matrix_that_takes_two_passes():
    array = np.ones((2, 5_000_000), np.float32)
    array[1, 77] = np.nan
    array[0, 4_999_999] = np.inf
    for view, where in ((array, (0, 4_999_999)), (array.T, (77, 1))):
        for side in ("right", "left"):
            x = np.zeros((1, view.shape[1 if side == "right" else 0]), np.float32)
            assert _core.gram_product(_core.Matrix(view, "float32"), x, side, 2)[2:] == (2, *where)


@pytest.mark.parametrize(("storage", "real"), CASES)
@pytest.mark.parametrize("order", ["C", "F"])
def test_bitwise_equal_for_any_number_of_threads(storage, real, order):
    array, _ = store(gaussian(1500, 900), storage)
    matrix = _core.Matrix(np.asarray(array, order=order), storage)
    for side, length in (("right", 900), ("left", 1500)):
        x = vectors(3, length, real)
        first = _core.gram_product(matrix, x, side, 1)
        product = _core.multiply(matrix, x, side == "left", 1)
        for threads in (2, 3, 7):
            again = _core.gram_product(matrix, x, side, threads)
            assert again[0].tobytes() == first[0].tobytes()
            assert again[1:] == first[1:]
            assert _core.multiply(matrix, x, side == "left", threads).tobytes() == product.tobytes()


def test_bitwise_equal_for_any_number_of_threads_in_two_passes():
    matrix = _core.Matrix(np.random.default_rng(0).standard_normal((20, 600_000), dtype=np.float32), "float32")
    for side, length in (("right", 600_000), ("left", 20)):
        x = vectors(2, length, "float32")
        first = _core.gram_product(matrix, x, side, 1)
        for threads in (2, 3, 7):
            again = _core.gram_product(matrix, x, side, threads)
            assert again[0].tobytes() == first[0].tobytes()
            assert again[1:] == first[1:]


SCRIPT = """
import sys
import numpy as np
from mpfast import _core
assert _core.isa() == sys.argv[2]
given = np.load(sys.argv[1])
out = {}
for name in ("float64", "float32", "float16", "bfloat16"):
    for side in ("right", "left"):
        for real in ("float64", "float32")[name == "float64" and 0 : 1 if name == "float64" else 2]:
            x = given["x" + side].astype(real)
            z, fro2, *_ = _core.gram_product(_core.Matrix(given[name], name), x, side, 2)
            out[f"{name} {side} {real}"] = np.append(z.ravel().astype(np.float64), fro2)
np.savez(sys.argv[3], **out)
"""


def test_instruction_sets_agree(tmp_path):
    """Every kernel set this CPU can run gives the same product up to rounding."""
    given = {"xright": vectors(5, 333, "float64"), "xleft": vectors(5, 420, "float64")}
    for storage in STORAGES:
        given[storage] = store(gaussian(420, 333), storage)[0]
    np.savez(tmp_path / "given.npz", **given)
    results = {}
    levels = ["baseline", "avx2", "avx512"]
    available = levels[: levels.index(_core.isa()) + 1]
    for isa in available:
        out = tmp_path / f"{isa}.npz"
        arguments = ("-c", SCRIPT, str(tmp_path / "given.npz"), isa, str(out))
        run_python(*arguments, env={**os.environ, "MPFAST_ISA": isa}, check=True)
        results[isa] = dict(np.load(out))
    for isa in available[1:]:
        for key, wanted in results["baseline"].items():
            eps = float(np.finfo(key.split()[-1]).eps)
            # Entries of Z are near 420 |x| with terms of random sign: a few eps of the largest, times sqrt(n) growth.
            *z, fro2 = np.abs(results[isa][key] - wanted)
            assert max(z) <= 30 * eps * np.abs(wanted[:-1]).max()
            assert fro2 <= max(4 * eps, 1e-6 if eps > 1e-10 else 0) * wanted[-1]


def test_concurrent_calls():
    array, _ = store(gaussian(700, 600), "float32")
    matrix = _core.Matrix(array, "float32")
    blocks = [vectors(width, 600, "float32") for width in (1, 2, 4, 8)]
    wanted = [_core.gram_product(matrix, x, "right", 2)[0] for x in blocks]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            found = pool.map(lambda x: _core.gram_product(matrix, x, "right", 2)[0], blocks)
            for got, expected in zip(found, wanted, strict=True):
                np.testing.assert_array_equal(got, expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_in_a_forked_child():
    array, _ = store(gaussian(700, 600), "float32")
    x = vectors(2, 600, "float32")
    wanted = _core.gram_product(_core.Matrix(array, "float32"), x, "right", 2)[0]
    child = os.fork()
    if child == 0:
        status = 1
        try:
            again = _core.gram_product(_core.Matrix(array, "float32"), x, "right", 2)[0]
            status = 0 if again.tobytes() == wanted.tobytes() else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_read_pass_sums_the_bits():
    for storage, bits in (
        ("float64", np.uint64),
        ("float32", np.uint32),
        ("float16", np.uint16),
        ("bfloat16", np.uint16),
    ):
        array, _ = store(gaussian(77, 1031), storage)
        for view in (array, array.T, array[:, 3:-2], array[::-2]):
            wanted = int(np.sum(np.ascontiguousarray(view).view(bits), dtype=np.uint64)) % (1 << (8 * array.itemsize))
            assert _core.read_pass(_core.Matrix(view, storage), 2) == wanted


def test_arguments_are_checked():
    matrix = _core.Matrix(np.ones((3, 5), np.float32), "float32")
    with pytest.raises(ValueError, match=r"shape \(width, 5\)"):
        _core.gram_product(matrix, np.ones((2, 3), np.float32), "right", 1)
    with pytest.raises(ValueError, match=r"shape \(width, 3\)"):
        _core.gram_product(matrix, np.ones((2, 5), np.float32), "left", 1)
    with pytest.raises(ValueError, match="no vectors"):
        _core.gram_product(matrix, np.ones((0, 5), np.float32), "right", 1)
    with pytest.raises(ValueError, match="at most 32"):
        _core.gram_product(matrix, np.ones((33, 5), np.float32), "right", 1)
    with pytest.raises(ValueError, match="side must be"):
        _core.gram_product(matrix, np.ones((2, 5), np.float32), "up", 1)
    with pytest.raises(ValueError, match=r"shape \(width, 3\)"):
        _core.multiply(matrix, np.ones((2, 5), np.float32), True, 1)
    with pytest.raises(ValueError, match="scale_exponent"):
        _core.gram_product(matrix, np.ones((2, 5), np.float32), "right", 1, 300)
    with pytest.raises(ValueError, match="empty"):
        _core.gram_product(
            _core.Matrix(np.ones((0, 5), np.float32), "float32"), np.ones((1, 5), np.float32), "right", 1
        )
    with pytest.raises(ValueError, match="float64 storage"):
        _core.gram_product(_core.Matrix(np.ones((3, 5)), "float64"), np.ones((1, 5), np.float32), "right", 1)
    with pytest.raises(TypeError):
        _core.gram_product(matrix, np.ones((2, 5), np.int64), "right", 1)
