"""Codes of eight bits and fewer against other libraries, quantised arrays against NumPy, and what belongs together."""

from __future__ import annotations

import numpy as np
import pytest

from mpfast.arrays import QuantisedArray, as_numpy, widened
from mpfast.checkpoints.mapping import ArrayMapping
from mpfast.checkpoints.quantised.codes import E2M1, FLOAT8, exponents, pairs, rounding_of
from mpfast.checkpoints.quantised.group import NotDecodedError, as_float32, check_shape, groups_of
from mpfast.checkpoints.quantised.scaled_codes import ScaledCodes

from .quantised_encoders import Part

BYTES = np.arange(256, dtype=np.uint8)


@pytest.mark.parametrize("name", sorted(FLOAT8))
def test_every_code_of_eight_bits_is_the_number_of_the_library(name):
    types = pytest.importorskip("ml_dtypes")
    np.testing.assert_array_equal(FLOAT8[name], BYTES.view(getattr(types, name)).astype(np.float32))


def test_every_exponent_and_every_pair_of_nibbles():
    types = pytest.importorskip("ml_dtypes")
    np.testing.assert_array_equal(exponents(BYTES), BYTES.view(types.float8_e8m0fnu).astype(np.float32))
    nibbles = np.arange(16, dtype=np.uint8).view(types.float4_e2m1fn).astype(np.float32)
    np.testing.assert_array_equal(E2M1, nibbles)
    np.testing.assert_array_equal(pairs(E2M1)[0x52], [1, 3])  # the low nibble first
    np.testing.assert_array_equal(pairs(E2M1, high_first=True)[0x52], [3, 1])


def test_rounding_to_a_uniform_grid_has_a_twelfth_of_the_square_of_its_step():
    np.testing.assert_allclose(rounding_of(np.arange(-8, 8, dtype=np.float32) / 4), 1 / (16 * 12), rtol=1e-6)
    for alone in ([0.5] * 16, [np.nan, 2.0], [np.inf, np.nan], []):
        assert not rounding_of(np.array(alone, np.float32)).any()


def stack(dtype="float32"):
    """Three matrices 300 x 260 of float8 in ragged blocks of 128 x 128, and their numbers."""
    rng = np.random.default_rng(25)
    codes = rng.integers(0, 0x7F, (3, 300, 260)).astype(np.uint8)
    scales = np.exp2(rng.integers(-3, 4, (3, 3, 3))).astype(np.float32)
    grown = scales.repeat(128, axis=1).repeat(128, axis=2)[:, :300, :260]
    table = FLOAT8["float8_e4m3fn"]
    made = ScaledCodes((3, 300, 260), "fp8 128x128", dtype, "float8_e4m3fn", Part(codes), Part(scales, (128, 128)))
    return QuantisedArray(made), table[codes] * grown, rounding_of(table)[codes] * grown**2


INDICES = [
    (),
    1,
    -1,
    slice(1, 3),
    (2, slice(129, 257)),
    (0, slice(1, None, 2)),
    (slice(None), slice(0, 200)),
    (1, slice(None), slice(5, 9)),
    (1, slice(1, None, 7)),
    (slice(0, 2), slice(10, 20), slice(3, 4)),
    (2, 7),
]


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_a_part_is_that_of_the_numbers(index):
    array, numbers, _ = stack()
    part = array[index]
    assert part.shape == numbers[index].shape
    np.testing.assert_array_equal(np.asarray(part), numbers[index])


def test_whole_joined_and_as_bfloat16():
    array, numbers, variances = stack()
    joined = array.reshape(900, 260)
    assert isinstance(joined, QuantisedArray)
    assert joined.shape == (900, 260)
    np.testing.assert_array_equal(np.asarray(joined), numbers.reshape(900, 260))
    np.testing.assert_array_equal(np.asarray(joined[100:700]), numbers.reshape(900, 260)[100:700])
    np.testing.assert_array_equal(np.asarray(array.reshape(300, 780)), numbers.reshape(300, 780))
    assert array.rounding() == pytest.approx(variances.mean(dtype=np.float64), rel=1e-5)
    assert array[1, 3:250:2].rounding() == pytest.approx(variances[1, 3:250:2].mean(dtype=np.float64), rel=1e-5)
    # Four digits times a power of two: bfloat16 has eight.
    narrow, dtype = as_numpy(stack("bfloat16")[0])
    assert dtype == "bfloat16"
    np.testing.assert_array_equal(widened(narrow), numbers)


def test_what_is_stored_of_a_weight_is_one_group():
    types = pytest.importorskip("ml_dtypes")
    model = {
        "a.weight": np.ones((16, 16), types.float8_e4m3fn),
        "a.weight_scale_inv": np.ones((1, 1), types.bfloat16),
        "a.bias": np.ones(16, np.float32),
        "mlp.experts.up_proj_blocks": np.zeros((2, 16, 1, 16), np.uint8),
        "mlp.experts.up_proj_scales": np.zeros((2, 16, 1), np.uint8),
        "plain.weight": np.ones((16, 16), np.float32),
    }
    first, second = groups_of(ArrayMapping(model))
    assert (first.name, first.codes, set(first.parts)) == ("a.weight", "weight", {"weight", "weight_scale_inv"})
    assert (second.name, set(second.parts)) == ("mlp.experts.up_proj", {"blocks", "scales"})
    assert as_float32(first, "weight_scale_inv").tolist() == [[1.0]]
    assert check_shape(second, "scales", (2, 16, 1)).name == "mlp.experts.up_proj_scales"
    with pytest.raises(NotDecodedError, match=r"has no weight_scale, and is never cast"):
        check_shape(first, "weight_scale", (1,))
    with pytest.raises(NotDecodedError, match=r"shape \(1, 1\), where \(16, 1\)"):
        check_shape(first, "weight_scale_inv", (16, 1))
    with pytest.raises(NotDecodedError, match=r"a\.weight_scale_inv belongs to it"):
        first.only("weight")
