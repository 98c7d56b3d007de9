"""Weights of MLX in all modes, and of transformers' metal, against their formulas and the libraries."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from mpfast.checkpoints.quantised import mlx
from mpfast.checkpoints.quantised.codes import E2M1, FLOAT8, rounding_of
from mpfast.checkpoints.quantised.group import NotDecodedError
from tests.quantised_encoders import check, group, packed


def affine_parts(rng, shape, bits, width, *, bias="biases", dtype=np.float16):
    """Random parts of a weight, and the numbers that they stand for."""
    codes = rng.integers(0, 2**bits, shape)
    grid = (*shape[:-1], shape[-1] // width)
    scales, biases = rng.uniform(-1, 1, grid).astype(dtype), rng.uniform(-1, 1, grid).astype(dtype)
    parts = {"m.l.weight": packed(codes, bits).view(np.uint32), "m.l.scales": scales, f"m.l.{bias}": biases}
    spread, added = (part.astype(np.float32).repeat(width, axis=-1) for part in (scales, biases))
    return parts, codes.astype(np.float32) * spread + added, np.mean(np.square(scales.astype(np.float64))) / 12


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("width", [32, 64])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, ml_dtypes.bfloat16])
def test_affine(bits, width, dtype):
    rng = np.random.default_rng(bits)
    for shape in ((33, 192), (3, 10, 128)):
        parts, numbers, _ = affine_parts(rng, shape, bits, width, dtype=dtype)
        for said in (
            {"quantization": {"bits": bits, "group_size": width}},
            {"quantization": {"bits": 1, "group_size": 16, "m.l": {"bits": bits, "group_size": width}, "m.k": False}},
            {"quantization_config": {"bits": bits, "group_size": width, "mode": "affine"}},
        ):
            found = group(parts, **said)
            assert mlx.is_mlx(found)
            assert found.method.lower() in mlx.METHODS
            decoder = mlx.decoder(found)
            assert decoder.stored == f"int{bits} g{width}"
            check(decoder, numbers)  # grids of MLX may stop short of an end


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_metal(bits):
    parts, numbers, rounding = affine_parts(np.random.default_rng(0), (24, 128), bits, 64, bias="qbiases")
    found = group(parts, {"quant_method": "metal", "bits": bits, "group_size": 64})
    check(mlx.decoder(found), numbers, rounding)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_metal_of_transformers(bits):
    torch = pytest.importorskip("torch")
    metal = pytest.importorskip("transformers.integrations.metal_quantization")
    weights = torch.from_numpy(np.random.default_rng(1).standard_normal((24, 128)).astype(np.float32))
    codes, scales, biases = metal._affine_quantize_tensor(weights, 64, bits)
    expected = metal._affine_dequantize_tensor(codes, scales, biases, 64, bits).numpy()
    parts = {"l.weight": codes.numpy(), "l.scales": scales.numpy(), "l.qbiases": biases.numpy()}
    decoder = mlx.decoder(group(parts, {"quant_method": "metal", "bits": bits, "group_size": 64}))
    # A sum of two rounded numbers: where they nearly cancel, to the precision of the larger.
    np.testing.assert_allclose(decoder.rows(0, slice(0, 24, 1)), expected, atol=1e-6)


TABLES = {"mxfp4": (4, 32, E2M1), "mxfp8": (8, 32, FLOAT8["float8_e4m3fn"]), "nvfp4": (4, 16, E2M1)}


@pytest.mark.parametrize("mode", sorted(TABLES))
@pytest.mark.parametrize("shape", [(33, 96), (3, 10, 64)])
def test_modes_of_tables(mode, shape):
    bits, width, table = TABLES[mode]
    rng = np.random.default_rng(2)
    codes = rng.integers(0, 2**bits - 1, shape)
    codes[codes == 0x7F] = 0
    scales = rng.integers(100, 126, (*shape[:-1], shape[-1] // width)).astype(np.uint8)
    values = FLOAT8["float8_e4m3fn"][scales] if mode == "nvfp4" else np.exp2(scales.astype(np.float32) - 127)
    parts = {"l.weight": packed(codes, bits).view(np.uint32), "l.scales": scales}
    spread = values.repeat(width, axis=-1)
    decoder = mlx.decoder(group(parts, quantization={"bits": bits, "group_size": width, "mode": mode}))
    assert decoder.stored == mode
    check(decoder, table[codes] * spread, np.mean(rounding_of(table)[codes] * spread.astype(np.float64) ** 2))


@pytest.mark.parametrize(
    ("mode", "bits", "width"),
    [*(("affine", bits, 64) for bits in (2, 3, 4, 5, 6, 8)), *((mode, *TABLES[mode][:2]) for mode in sorted(TABLES))],
)
def test_all_modes_of_the_library(mode, bits, width):
    mx = pytest.importorskip("mlx.core")
    weights = np.random.default_rng(3).standard_normal((24, 128)).astype(np.float32)
    quantised = mx.quantize(mx.array(weights), group_size=width, bits=bits, mode=mode)
    expected = np.array(mx.dequantize(*quantised, group_size=width, bits=bits, mode=mode, dtype=mx.float32))
    parts = {f"l.{word}": np.array(part) for word, part in zip(("weight", "scales", "biases"), quantised, strict=False)}
    decoder = mlx.decoder(group(parts, quantization={"bits": bits, "group_size": width, "mode": mode}))
    np.testing.assert_allclose(decoder.rows(0, slice(0, 24, 1)), expected, atol=1e-6)


def without(word):
    def change(parts):
        del parts[f"m.l.{word}"]

    return change


def with_part(word, value):
    def change(parts):
        parts[f"m.l.{word}"] = value

    return change


def nothing(parts):
    pass


REFUSED = [
    (without("scales"), {}, "no scales"),
    (without("biases"), {}, "no biases"),
    (with_part("biases", np.ones((33, 3), np.float16)), {}, r"biases has the shape \(33, 3\)"),
    (with_part("biases", np.ones((33, 2), np.int32)), {}, "is int32"),
    (with_part("scales", np.ones((32, 2), np.float16)), {}, "has words of the shape"),
    (with_part("scales", np.ones((33, 2), np.uint8)), {}, "is uint8"),
    (with_part("qscales", np.ones(2, np.float32)), {}, "qscales belongs to it"),
    (nothing, {"bits": 3}, "where 3 bits"),
    (nothing, {"group_size": 32}, "in groups of 32"),
    (nothing, {"bits": None}, "no configuration"),
    (nothing, {"group_size": 1 << 60}, "no configuration"),
    (nothing, {"mode": "mxfp4"}, "which mxfp4 does not have"),
    (nothing, {"mode": "int3"}, "the mode .int3"),
]


@pytest.mark.parametrize(("change", "more", "reason"), REFUSED)
def test_what_does_not_fit_is_refused(change, more, reason):
    parts, _, _ = affine_parts(np.random.default_rng(4), (33, 128), 4, 64)
    change(parts)
    with pytest.raises(NotDecodedError, match=reason):
        mlx.decoder(group(parts, quantization={"bits": 4, "group_size": 64, **more}))


def test_bits_are_not_guessed():
    parts, _, _ = affine_parts(np.random.default_rng(5), (33, 128), 4, 64)
    with pytest.raises(NotDecodedError, match="no configuration beside it"):
        mlx.decoder(group(parts))
