"""Matrices of floating-point codes under scales in the native core, against their numbers.

Decoded entries are exact: the value of a code, which the tables of the readers have, times its scale in float32.
Products with them are those with the numbers, to the bounds of `test_gram`.
"""

import os

import numpy as np
import pytest

import mpfast
from mpfast import _core
from mpfast.arrays import CORE_CODES, QuantisedArray, as_matrix
from mpfast.checkpoints.quantised import ScaledCodes
from mpfast.checkpoints.quantised.codes import VALUES

from .quantised_encoders import Part
from .references import gaussian, run_python, vectors

CODES = sorted(CORE_CODES)


def values_of(code):
    """(256, 1) or (256, 2)."""
    return VALUES[code].reshape(256, -1)


def coded(code, rows, cols, width, seed=0, *, finite=True):
    """Codes, scales of both signs, and the numbers, each by a table."""
    rng = np.random.default_rng([seed, rows, cols])
    values = values_of(code)
    known = np.flatnonzero(np.isfinite(values).all(axis=1)) if finite else np.arange(256)
    codes = rng.choice(known, (rows, -(-cols // values.shape[1]))).astype(np.uint8)
    cols = codes.shape[1] * values.shape[1]
    scales = rng.standard_normal((rows, -(-cols // width))).astype(np.float32)
    return codes, scales, numbers_of(code, codes, scales, width)


def numbers_of(code, codes, scales, width):
    numbers = values_of(code)[codes].reshape(len(codes), -1)
    with np.errstate(all="ignore"):
        return numbers * np.repeat(scales, width, axis=1)[:, : numbers.shape[1]]


def matrix_of(code, codes, scales, width):
    return _core.Matrix.of_codes(code, codes, scales, width, "float32")


def same_bits(found, wanted):
    """NaN has no bits that count."""
    np.testing.assert_array_equal(found, wanted)
    there = ~np.isnan(wanted)
    np.testing.assert_array_equal(found[there].view(np.uint32), wanted[there].view(np.uint32))


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("width", [1, 7, 16, 32, 128, 500])
def test_every_code_is_its_value_times_its_scale(code, width):
    codes = np.tile(np.arange(256, dtype=np.uint8), (9, 1))[:, : 256 - width % 5]  # ends within registers, too
    cols = codes.shape[1] * values_of(code).shape[1]
    scales = np.random.default_rng(width).standard_normal((9, -(-cols // width))).astype(np.float32)
    # So large that values overflow, so small that they end below the normal numbers; and what is no scale.
    scales[:7, 0] = [2.0**127, -(2.0**120), 2.0**-126, 2.0**-149, 0, np.inf, np.nan]
    matrix = matrix_of(code, codes, scales, width)
    assert matrix.shape == (9, cols)
    same_bits(matrix.decoded(), numbers_of(code, codes, scales, width))
    by_table = _core.scaled_codes(np.ascontiguousarray(codes), values_of(code), scales, width)
    same_bits(matrix.decoded(), by_table)


@pytest.mark.parametrize("code", CODES)
def test_rows_may_lie_anywhere(code):
    codes, scales, numbers = coded(code, 40, 66, 32)
    for rows in (slice(None, None, 3), slice(None, None, -1), slice(5, 6)):
        same_bits(matrix_of(code, codes[rows], scales[rows], 32).decoded(), numbers[rows])
    one = np.broadcast_to(scales[:1], scales.shape)
    same_bits(matrix_of(code, codes, one, 32).decoded(), numbers_of(code, codes, one, 32))


SHAPES = [
    *((203, 158, 32), (158, 203, 128), (1, 300, 16), (300, 2, 2), (9, 70_000, 128), (700, 90, 90), (40, 1400, 100)),
    # Blocks of a register with AVX-512 and with AVX2, of neither, and of several; rows behind the last whole tile.
    *((130, 96, 16), (131, 100, 8), (129, 64, 4), (263, 1100, 48)),
]


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_are_those_with_the_numbers(code, shape):
    codes, scales, numbers = coded(code, *shape)
    matrix, exact = matrix_of(code, codes, scales, shape[-1]), numbers.astype(np.float64)
    for real in ("float32", "float64"):
        for side, w in (("right", exact), ("left", exact.T)):
            for width in (1, 4, 7, 32):
                x = vectors(width, w.shape[1], real)
                z, fro2, *bad = _core.gram_product(matrix, x, side, 2)
                wide = x.T.astype(np.float64)
                bound = 4 * np.finfo(real).eps * np.sqrt(sum(exact.shape))
                assert np.all(np.abs(z.T - w.T @ (w @ wide)) <= bound * (np.abs(w).T @ (np.abs(w) @ np.abs(wide))))
                assert fro2 == pytest.approx(np.sum(exact**2), rel=1e-6 if real == "float32" else 1e-13)
                assert bad == [0, -1, -1]
                y = _core.multiply(matrix, x, side == "left", 2)
                assert np.all(np.abs(y.T - w @ wide) <= bound * (np.abs(w) @ np.abs(wide)))


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_energies_and_factors_are_those_of_the_numbers(code, shape):
    codes, scales, numbers = coded(code, *shape)
    matrix, exact = matrix_of(code, codes, scales, shape[-1]), numbers.astype(np.float64)
    rng = np.random.default_rng(5)
    pair = tuple(np.exp(rng.standard_normal(side)) for side in exact.shape)
    for factors in (None, pair):
        w = exact if factors is None else pair[0][:, None] * exact * pair[1]
        rows, columns, *_ = _core.energies(matrix, 0, 2, factors)
        np.testing.assert_allclose(rows, np.square(w).sum(axis=1), rtol=1e-12)
        np.testing.assert_allclose(columns, np.square(w).sum(axis=0), rtol=1e-12)
        for side in ("right", "left"):
            w = w if side == "right" else w.T
            x = vectors(3, w.shape[1], "float32")
            found = np.empty(exact.shape[0]), np.empty(exact.shape[1])
            z = _core.gram_product(matrix, x, side, 2, 0, factors, found)[0]
            wide = x.T.astype(np.float64)
            bound = 1e-6 * np.sqrt(sum(exact.shape)) * (np.abs(w).T @ (np.abs(w) @ np.abs(wide)))
            assert np.all(np.abs(z.T - w.T @ (w @ wide)) <= bound)
            np.testing.assert_allclose(found[0], rows, rtol=1e-6)
            np.testing.assert_allclose(found[1], columns, rtol=1e-6)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("row", [0, 13, 39])
def test_rows_under_huge_scales_are_those_of_the_numbers(code, row):
    """A scale so large that it is not finite with the unit of a format in it ends a sweep at its row."""
    codes, scales, _ = coded(code, 40, 96, 32)
    small = np.flatnonzero((np.abs(values_of(code)) <= 1).all(axis=1))  # NaN is not
    codes[row, : codes.shape[1] // 3] = np.random.default_rng(row).choice(small, codes.shape[1] // 3)
    scales[row, 0] = 2.0**127
    numbers = numbers_of(code, codes, scales, 32)
    assert np.all(np.isfinite(numbers))
    exact = np.ldexp(numbers.astype(np.float64), -127)
    matrix = matrix_of(code, codes, scales, 32)
    for width in (1, 4):
        x = vectors(width, 96, "float32")
        found = _core.gram_product(matrix, x, "right", 2, 127)[0].T
        bound = 4 * np.finfo(np.float32).eps * np.sqrt(sum(exact.shape))
        wide = x.T.astype(np.float64)
        size = np.abs(exact).T @ (np.abs(exact) @ np.abs(wide))
        # What is 2^-127 of the largest is lost.
        assert np.all(np.abs(found - exact.T @ (exact @ wide)) <= bound * size + np.finfo(np.float32).tiny)


def test_tiny_and_huge_numbers_keep_their_squares():
    """Where single precision loses the squared norm it is formed again, and scaled."""
    codes, scales, _ = coded("float8_e4m3fn", 60, 80, 16)
    for factor in (np.float32(1e-25), np.float32(1e25)):
        own = scales * factor
        numbers = numbers_of("float8_e4m3fn", codes, own, 16)
        matrix, dense = matrix_of("float8_e4m3fn", codes, own, 16), _core.Matrix(numbers, "float32")
        exponent = _core.scale_exponent(matrix)
        assert exponent == _core.scale_exponent(dense) != 0
        for side in ("right", "left"):
            x = vectors(2, 80 if side == "right" else 60, "float32")
            fro2 = _core.gram_product(matrix, x, side, 1, exponent)[1]
            assert fro2 == pytest.approx(np.sum(np.square(np.ldexp(numbers.astype(float), -exponent))), rel=1e-12)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("shape", [(203, 158, 32), (158, 203, 128), (300, 2, 2)], ids=str)
def test_exact_spectra_are_those_of_the_numbers_to_the_bit(code, shape):
    codes, scales, numbers = coded(code, *shape)
    matrix, dense = matrix_of(code, codes, scales, shape[-1]), _core.Matrix(numbers, "float32")
    values, norm, *_ = _core.exact_values(matrix, 2)
    np.testing.assert_array_equal(values, _core.exact_values(dense, 2)[0])
    assert norm == _core.exact_values(dense, 2)[1]
    np.testing.assert_array_equal(_core.gram_matrix(matrix, 0, 2)[0], _core.gram_matrix(dense, 0, 2)[0])


def test_a_spectrum_too_wide_for_squares():
    """By the bidiagonal route, which reads the longest rows and columns again."""
    rng = np.random.default_rng(2)
    codes = rng.integers(0, 0x7F, (60, 64)).astype(np.uint8)
    scales = np.exp2(-np.arange(60.0)).astype(np.float32)[:, None]
    numbers = numbers_of("float8_e4m3fn", codes, scales, 64)
    found = _core.exact_values(matrix_of("float8_e4m3fn", codes, scales, 64), 1)
    wanted = _core.exact_values(_core.Matrix(numbers, "float32"), 1)
    assert found[-1] == wanted[-1] == "bidiagonal"
    np.testing.assert_array_equal(found[0], wanted[0])


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("shape", [(5000, 64, 32), (64, 5000, 128)], ids=str)
def test_threads_do_not_change_a_bit(code, shape):
    codes, scales, _ = coded(code, *shape)
    matrix = matrix_of(code, codes, scales, shape[-1])
    for side, dim in (("right", shape[1]), ("left", shape[0])):
        x = vectors(5, dim, "float32")
        energies = [(np.empty(shape[0]), np.empty(shape[1])) for _ in range(3)]
        found = [_core.gram_product(matrix, x, side, k + 1, 0, None, energies[k]) for k in range(3)]
        for k in (1, 2):
            np.testing.assert_array_equal(found[k][0], found[0][0])
            assert found[k][1] == found[0][1]
            for one, other in zip(energies[k], energies[0], strict=True):
                np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("shape", [(60, 90), (90, 60)], ids=str)
@pytest.mark.parametrize("kind", ["NaN", "infinity", "scale"])
def test_what_is_no_number_is_counted_and_found(shape, kind):
    """A code that is none, one that is infinite, and a scale that makes such of numbers."""
    code = "float8_e5m2" if kind == "infinity" else "float8_e4m3fn"
    codes, scales, _ = coded(code, *shape, 16)
    if kind == "scale":
        scales[20, 1] = np.nan
    else:
        codes[[20, 50], [17, 3]] = 0x7F if kind == "NaN" else 0xFC
    at = np.argwhere(~np.isfinite(numbers_of(code, codes, scales, 16)))
    wanted = (len(at), *at[0])
    matrix = matrix_of(code, codes, scales, 16)
    for side in ("right", "left"):
        x = vectors(2, shape[side == "right"], "float32")
        assert _core.gram_product(matrix, x, side, 2)[2:] == wanted
        energies = np.empty(shape[0]), np.empty(shape[1])
        assert _core.gram_product(matrix, x, side, 2, 0, None, energies)[2:] == wanted
    assert _core.energies(matrix, 0, 2)[2:] == wanted
    assert _core.gram_matrix(matrix, 0, 2)[1:] == wanted
    assert _core.exact_values(matrix, 2)[2:5] == wanted


def array_of(code, codes, scales, block, stored="fp8"):
    """A quantised array of a stack (E, N, bytes), by scales (E, R, C)."""
    shape = (*codes.shape[:-1], codes.shape[-1] * values_of(code).shape[1])
    return QuantisedArray(ScaledCodes(shape, stored, "float32", code, Part(codes), Part(scales, block)))


FORMATS = {
    "fp8 128x128": ("float8_e4m3fn", (128, 128)),
    "fp8 e5m2 128x128": ("float8_e5m2", (128, 128)),
    "fp8 e4m3fnuz 128x128": ("float8_e4m3fnuz", (128, 128)),
    "fp8 by row": ("float8_e4m3fn", (1, 1 << 20)),
    "fp8": ("float8_e4m3fn", (1 << 20, 1 << 20)),
    "mxfp8": ("float8_e4m3fn", (1, 32)),
    "mxfp4": ("float4_e2m1", (1, 32)),
    "nvfp4": ("float4_e2m1", (1, 16)),
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("shape", [(700, 300), (300, 700)], ids=str)
def test_the_edge_is_that_of_the_numbers(kind, shape):
    """By the same probes. Sizes are no multiples of 128."""
    code, block = FORMATS[kind]
    values = values_of(code)
    normal = gaussian(*shape)
    grid = tuple(-(-side // size) for side, size in zip(shape, block, strict=True))
    scales = (0.5 + np.random.default_rng(1).random(grid)).astype(np.float32)
    # The nearest values, each in its own order of codes.
    singles = values[:, 0] if values.shape[1] == 1 else values[:16, 0]
    known = np.flatnonzero(np.isfinite(singles))
    order = known[np.argsort(singles[known], kind="stable")]
    codes = order[np.clip(np.searchsorted(singles[order], normal), 0, len(order) - 1)].astype(np.uint8)
    if values.shape[1] == 2:
        codes = codes[:, ::2] | codes[:, 1::2] << 4
    array = array_of(code, codes[None], scales[None], block)[0]
    numbers = np.asarray(array)
    assert as_matrix(array).is_coded
    for method in ("exact", "lanczos"):
        found = mpfast.spectrum(array, method=method, seed=3, probes=8)
        wanted = mpfast.spectrum(numbers, method=method, seed=3, probes=8)
        assert found.edge.sigma_plus == pytest.approx(wanted.edge.sigma_plus, rel=1e-6)
        assert found.fro_norm == pytest.approx(wanted.fro_norm, rel=1e-6)
    s, t = (mpfast.svd(matrix, 3, seed=1).s for matrix in (array, numbers))
    np.testing.assert_allclose(s, t, rtol=1e-5)


def test_parts_of_a_stack_are_multiplied_as_they_are_stored():
    rng = np.random.default_rng(4)
    codes = rng.integers(0, 256, (3, 80, 48)).astype(np.uint8)
    array = array_of("float4_e2m1", codes, np.exp2(rng.integers(-3, 3, (3, 80, 3))).astype(np.float32), (1, 32))
    for part in (array[1], array[1][::2], array[2, 10:31], array[0][1::3]):
        matrix = as_matrix(part)
        _, held, _, _ = matrix.owner
        assert np.shares_memory(held, codes)
        np.testing.assert_array_equal(matrix.decoded(), np.asarray(part))
    assert array.coded() is None
    assert array.reshape(240, 96).coded() is None
    np.testing.assert_array_equal(as_matrix(array.reshape(240, 96)).owner, np.asarray(array).reshape(240, 96))


def test_codes_that_the_core_has_not_are_decoded():
    codes = np.random.default_rng(1).integers(0, 0x7F, (1, 20, 30)).astype(np.uint8)
    array = array_of("float8_e5m2fnuz", codes, np.ones((1, 1, 1), np.float32), (20, 30))[0]
    assert array.coded() is None
    assert not as_matrix(array).is_coded
    np.testing.assert_array_equal(np.asarray(array), VALUES["float8_e5m2fnuz"][codes[0]])


def test_what_needs_entries_in_memory_refuses_codes():
    codes, scales, _ = coded("float8_e4m3fn", 12, 16, 4)
    matrix = matrix_of("float8_e4m3fn", codes, scales, 4)
    for call in (
        lambda: _core.add_gram(matrix, np.zeros((16, 16)), 1),
        lambda: _core.read_pass(matrix, 1),
        lambda: _core.prune_smallest([matrix], [1.0], [np.empty((12, 16), bool)], 7, 1),
        lambda: _core.quadratic_error(matrix, None, np.eye(16), (1.0, 1.0), 1),
    ):
        with pytest.raises(ValueError, match="decode it first"):
            call()
    with pytest.raises(ValueError, match="not one of codes"):
        _core.Matrix(np.eye(3), "float64").decoded()


GOOD = {
    "code": "float8_e4m3fn",
    "codes": np.zeros((3, 8), np.uint8),
    "scales": np.ones((3, 2), np.float32),
    "width": 5,
    "dtype": "float32",
}
BAD = {
    "another code": ({"code": "float8_e3m4"}, "no codes called float8_e3m4"),
    "double precision": ({"dtype": "float64"}, "single precision"),
    "no width": ({"width": 0}, "at least 1"),
    "too few scales": ({"scales": np.ones((3, 1), np.float32)}, "a column for each block"),
    "scales of other rows": ({"scales": np.ones((2, 2), np.float32)}, "a row for each of codes"),
    "columns apart": ({"codes": np.zeros((3, 16), np.uint8)[:, ::2]}, "follow one another"),
    "scales apart": ({"scales": np.ones((3, 4), np.float32)[:, ::2]}, "follow one another"),
    "three dimensions": ({"codes": np.zeros((1, 3, 8), np.uint8)}, "2-D"),
}


@pytest.mark.parametrize("case", BAD)
def test_codes_that_do_not_fit_are_refused(case):
    change, message = BAD[case]
    _core.Matrix.of_codes(*GOOD.values())
    with pytest.raises(ValueError, match=message):
        _core.Matrix.of_codes(*(GOOD | change).values())


SCRIPT = """
import sys
import numpy as np
from mpfast import _core
assert _core.isa() == sys.argv[2]
given = dict(np.load(sys.argv[1]))
out = {}
for code in _core.code_names():
    matrix = _core.Matrix.of_codes(code, given["codes " + code], given["scales " + code], 48, "float32")
    out["numbers " + code] = matrix.decoded()
    for side in ("right", "left"):
        for real in ("float64", "float32"):
            z, fro2, *_ = _core.gram_product(matrix, given["x" + side].astype(real), side, 2)
            out[f"{code} {side} {real}"] = np.append(z.ravel().astype(np.float64), fro2)
np.savez(sys.argv[3], **out)
"""


def test_instruction_sets_agree(tmp_path):
    """Numbers to the bit, products up to rounding, as in `test_gram`."""
    given = {"xright": vectors(5, 334, "float64"), "xleft": vectors(5, 420, "float64")}
    numbers = {}
    for code in CODES:
        codes, scales, numbers[code] = coded(code, 420, 334, 48)
        given |= {f"codes {code}": codes, f"scales {code}": scales}
    np.savez(tmp_path / "given.npz", **given)
    levels = ["baseline", "avx2", "avx512"]
    results = {}
    for isa in levels[: levels.index(_core.isa()) + 1]:
        out = tmp_path / f"{isa}.npz"
        run_python(
            *("-c", SCRIPT, str(tmp_path / "given.npz"), isa, str(out)),
            env={**os.environ, "MPFAST_ISA": isa},
            check=True,
        )
        results[isa] = dict(np.load(out))
        for code in CODES:
            same_bits(results[isa].pop(f"numbers {code}"), numbers[code])
        for key, wanted in results["baseline"].items():
            eps = float(np.finfo(key.split()[-1]).eps)
            *z, fro2 = np.abs(results[isa][key] - wanted)
            assert max(z) <= 30 * eps * np.abs(wanted[:-1]).max()
            assert fro2 <= max(4 * eps, 1e-6 if eps > 1e-10 else 0) * wanted[-1]
