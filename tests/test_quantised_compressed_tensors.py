"""Integers of compressed-tensors against their formula and the library, and what is refused of them."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from mpfast.checkpoints.quantised import compressed_tensors
from mpfast.checkpoints.quantised.group import NotDecodedError, groups_of
from tests.quantised_encoders import check, group, model, packed

from .quantised_encoders import with_part, without


def said(**weights):
    """A configuration with one group of layers."""
    scheme = {"targets": ["Linear"], "weights": {"type": "int", **weights}}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": scheme}}


def parts_of(rng, shape, width, bits, *, zeros=False, order=False, dtype=np.float32):
    """Random parts of a weight, (N, K) or (E, N, K), and the numbers that they stand for."""
    *stack, rows, columns = shape
    groups = columns // width
    half = 2 ** (bits - 1)
    codes = rng.integers(-half, half, shape)
    zero = rng.integers(-half, half, (*stack, rows, groups)) if zeros else np.zeros((*stack, rows, groups), int)
    scales = rng.uniform(0.01, 1, (*stack, rows, groups)).astype(dtype)
    index = np.arange(columns) // width
    parts = {
        "l.weight_packed": packed(codes + half, bits),
        "l.weight_scale": scales,
        "l.weight_shape": np.array(shape),
    }
    if order:
        index = rng.permutation(index)
        parts["l.weight_g_idx"] = index.astype(np.int32)
    if zeros:
        down = packed(np.swapaxes(zero + half, -1, -2), bits)
        parts["l.weight_zero_point"] = np.ascontiguousarray(np.swapaxes(down, -1, -2))
    spread = scales.astype(np.float32)[..., index]
    numbers = ((codes - zero[..., index]) * spread).astype(np.float32)
    return parts, numbers, np.mean(np.square(spread, dtype=np.float64)) / 12


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("order", [False, True])
def test_packs(bits, zeros, order):
    rng = np.random.default_rng(bits)
    for shape, width in (((33, 96), 32), ((40, 75), 25), ((3, 20, 64), 16), ((2, 9, 35), 35)):
        order = order and width != shape[-1]
        parts, numbers, rounding = parts_of(rng, shape, width, bits, zeros=zeros, order=order, dtype=np.float16)
        found = group(parts, said(num_bits=bits, symmetric=not zeros, group_size=width))
        assert compressed_tensors.is_packed(found)
        decoder = compressed_tensors.decoder_of_packs(found)
        assert decoder.stored == (f"int{bits} by row" if width == shape[-1] else f"int{bits} g{width}")
        check(decoder, numbers, rounding)


def test_packs_of_bfloat16_scales_and_without_a_configuration():
    rng = np.random.default_rng(0)
    parts, numbers, rounding = parts_of(rng, (32, 128), 32, 4, dtype=ml_dtypes.bfloat16)
    check(compressed_tensors.decoder_of_packs(group(parts)), numbers, rounding)


def test_an_index_of_minus_ones_is_none():
    parts, numbers, rounding = parts_of(np.random.default_rng(0), (32, 128), 32, 4)
    parts["l.weight_g_idx"] = np.full(128, -1, np.int32)
    check(compressed_tensors.decoder_of_packs(group(parts)), numbers, rounding)


def test_observers_that_cut_entries_off_leave_the_rounding_open():
    parts, numbers, _ = parts_of(np.random.default_rng(0), (32, 128), 32, 4)
    check(compressed_tensors.decoder_of_packs(group(parts, said(num_bits=4, observer="mse"))), numbers)


def stored(scales, codes, **more):
    return {"l.weight": codes, "l.weight_scale": scales, **{f"l.{word}": part for word, part in more.items()}}


@pytest.mark.parametrize(
    ("scales", "block", "label"),
    [
        ((), (40, 96), "int8"),
        ((1,), (40, 96), "int8"),
        ((40,), (1, 96), "int8 by row"),
        ((40, 1), (1, 96), "int8 by row"),
        ((40, 3), (1, 32), "int8 g32"),
        ((3, 6), (16, 16), "int8 16x16"),
    ],
)
@pytest.mark.parametrize("zeros", [False, True])
def test_one_code_in_a_byte(scales, block, label, zeros):
    rng = np.random.default_rng(1)
    codes = rng.integers(-128, 128, (40, 96)).astype(np.int8)
    scale = rng.uniform(0.01, 1, scales).astype(np.float32)
    zero = rng.integers(-128, 128, scales).astype(np.int8)
    grid = (-(-40 // block[0]), -(-96 // block[1]))
    spread, points = (
        np.broadcast_to(part.reshape(grid), grid).repeat(block[0], 0).repeat(block[1], 1)[:40, :96]
        for part in (scale, zero)
    )
    more = {"weight_zero_point": zero} if zeros else {}
    numbers = ((codes - (points.astype(int) if zeros else 0)) * spread).astype(np.float32)
    found = group(stored(scale, codes, **more), said(num_bits=8, block_structure=[16, 16]))
    assert compressed_tensors.is_stored(found)
    decoder = compressed_tensors.decoder_of_stored(found)
    assert decoder.stored == label
    check(decoder, numbers, np.mean(np.square(spread, dtype=np.float64)) / 12)


def test_layers_of_one_model_in_several_formats():
    rng = np.random.default_rng(2)
    four, numbers_of_four, rounding_of_four = parts_of(rng, (32, 128), 32, 4)
    six, numbers_of_six, rounding_of_six = parts_of(rng, (32, 128), 64, 6, zeros=True)
    codes = rng.integers(-128, 128, (16, 64)).astype(np.int8)
    scale = np.float32(rng.uniform(0.1, 1, (16, 1)))
    config = {
        "quant_method": "compressed-tensors",
        "format": "mixed-precision",
        "config_groups": {
            "a": {"targets": ["re:.*four"], "weights": {"num_bits": 4, "type": "int", "symmetric": True}},
            "b": {"targets": ["re:.*six"], "weights": {"num_bits": 6, "type": "int", "symmetric": False}},
            "c": {"targets": ["eight"], "weights": {"num_bits": 8, "type": "int", "symmetric": True}},
            "d": {"targets": ["other"], "weights": {"num_bits": 8, "type": "float", "symmetric": True}},
        },
    }
    arrays = {
        **{name.replace("l.", "four."): part for name, part in four.items()},
        **{name.replace("l.", "six."): part for name, part in six.items()},
        "eight.weight": codes,
        "eight.weight_scale": scale,
    }
    first, second, third = groups_of(model(arrays, config))
    check(compressed_tensors.decoder_of_packs(first), numbers_of_four, rounding_of_four)
    check(compressed_tensors.decoder_of_packs(second), numbers_of_six, rounding_of_six)
    assert compressed_tensors.is_stored(third)
    check(compressed_tensors.decoder_of_stored(third), codes * scale, np.mean(scale.astype(np.float64) ** 2) / 12)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("shape", [(64, 96), (2, 32, 64)])
def test_packs_of_the_library(bits, symmetric, shape):
    torch = pytest.importorskip("torch")
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    rng = np.random.default_rng(3)
    scheme = QuantizationScheme(
        targets=["Linear"],
        weights=QuantizationArgs(num_bits=bits, strategy="group", group_size=32, symmetric=symmetric),
    )
    half = 2 ** (bits - 1)
    grid = (*shape[:-1], shape[-1] // 32)
    state = {
        "weight": torch.from_numpy(rng.standard_normal(shape).astype(np.float32)),
        "weight_scale": torch.from_numpy(rng.uniform(0.5, 1.5, grid).astype(np.float32) * 2 / half),
        "weight_zero_point": torch.from_numpy(rng.integers(-half // 2, half // 2 + 1, grid).astype(np.int8)),
    }
    compressed = PackedQuantizationCompressor.compress(state, scheme)
    expected = PackedQuantizationCompressor.decompress(compressed, scheme)["weight"].numpy()
    parts = {f"l.{word}": part.numpy() for word, part in compressed.items()}
    assert ("l.weight_zero_point" in parts) is not symmetric
    found = group(parts, said(num_bits=bits, group_size=32, symmetric=symmetric))
    numbers = compressed_tensors.decoder_of_packs(found)
    check(numbers, expected, np.mean(np.square(parts["l.weight_scale"], dtype=np.float64)) / 12)


REFUSED = [
    (without("weight_scale"), {}, "no weight_scale"),
    (without("weight_shape"), {}, "no weight_shape"),
    (lambda parts: None, {"symmetric": False}, "not symmetric"),
    (lambda parts: None, {"num_bits": 3}, "16 words for 128 inputs"),
    (with_part("weight_shape", np.array([32, 120])), {}, "where the configuration says"),
    (with_part("weight_shape", np.array([32, 1 << 40])), {}, "words for"),
    (with_part("weight_shape", np.array([31, 128])), {}, "says that it has"),
    (with_part("weight_shape", np.array([32, -128])), {}, "says that it has"),
    (with_part("weight_shape", np.array([32, 128, 1])), {}, "weight_shape has the shape"),
    (with_part("weight_scale", np.ones((31, 4), np.float32)), {}, "scales of the shape"),
    (with_part("weight_scale", np.ones((32, 7), np.float32)), {}, "nothing says of which blocks"),
    (with_part("weight_scale", np.ones((32, 4), np.int8)), {}, "is int8, where"),
    (with_part("weight_zero_point", np.zeros((4, 3), np.int32)), {}, "weight_zero_point has the shape"),
    (with_part("weight_zero_point", np.zeros((32, 4), np.int8)), {}, "zero points of int8"),
    (
        lambda parts: parts.update(
            {"l.weight_scale": np.float32(1), "l.weight_zero_point": np.zeros((4, 1), np.int32)}
        ),
        {},
        "scales that are not of rows",
    ),
    (with_part("weight_g_idx", np.zeros(127, np.int32)), {}, "weight_g_idx has the shape"),
    (with_part("weight_global_scale", np.ones(1, np.float32)), {}, "weight_global_scale belongs to it"),
    (lambda parts: None, {"actorder": "group"}, "no weight_g_idx, and the configuration"),
    (lambda parts: None, {"group_size": 48}, "nothing says of which blocks"),
]


@pytest.mark.parametrize(("change", "more", "reason"), REFUSED)
def test_packs_are_refused(change, more, reason):
    parts, _, _ = parts_of(np.random.default_rng(4), (32, 128), 32, 4)
    change(parts)
    with pytest.raises(NotDecodedError, match=reason):
        compressed_tensors.decoder_of_packs(group(parts, said(**{"num_bits": 4, **more})))


def test_codes_without_a_scale_are_refused():
    found = group({"l.weight": np.ones((16, 32), np.int8)}, said(num_bits=8))
    assert compressed_tensors.is_stored(found)
    with pytest.raises(NotDecodedError, match="no weight_scale"):
        compressed_tensors.decoder_of_stored(found)
