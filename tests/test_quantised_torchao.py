"""Weights of torchao in safetensors, against their formula and the library, and what is refused of them."""

from __future__ import annotations

import json
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from mpfast.arrays import QuantisedArray
from mpfast.checkpoints.quantised import torchao
from mpfast.checkpoints.quantised.codes import FLOAT8, rounding_of
from mpfast.checkpoints.quantised.group import NotDecodedError
from tests.quantised_encoders import check, group

SAID = {"quant_method": "torchao"}


def described(parts, kind, said=SAID, **data):
    """A group with a header that says of which class its weight is."""
    names = data.pop("_names", ["qdata", "scale"])
    text = json.dumps({"_type": kind, "_data": data, "_tensor_data_names": names})
    return replace(group(parts, said), metadata={"m.weight": text, "tensor_names": '["m.weight"]'})


def grown(part, block):
    for axis, side in enumerate(block):
        part = part.repeat(side, axis=axis)
    return part


BLOCKS = [
    ((48, 96), (1, 96), "by row"),
    ((48, 96), (1, 32), "g32"),
    ((48, 96), (16, 32), "16x32"),
    ((48, 96), (48, 96), ""),
    ((3, 20, 32), (1, 1, 16), "g16"),
    ((3, 20, 32), (1, 20, 32), ""),
    ((3, 20, 32), (3, 20, 32), ""),
]


@pytest.mark.parametrize(("shape", "block", "label"), BLOCKS)
@pytest.mark.parametrize("zero", [None, np.int8, np.float32])
def test_integers(shape, block, label, zero):
    rng = np.random.default_rng(1)
    codes = rng.integers(-8, 8, shape).astype(np.int8)
    blocks = [side // part for side, part in zip(shape, block, strict=True)]
    scale = rng.uniform(0.1, 1, blocks).astype(np.float32)
    parts = {"m._weight_qdata": codes, "m._weight_scale": scale, "m.bias": np.ones(3, np.float32)}
    points = np.zeros(blocks, np.float32)
    if zero is not None:
        points = rng.integers(-8, 8, blocks).astype(zero)
        parts["m._weight_zero_point"] = points
    kind = "Int8Tensor" if zero is None else "IntxUnpackedToInt8Tensor"
    target = {"target_dtype": {"_type": "torch.dtype", "_data": "int4"}} if zero is not None else {}
    found = described(parts, kind, block_size=list(block), **target)
    assert torchao.is_torchao(found)
    assert found.name == "m.weight"
    decoder = torchao.decoder(found)
    assert decoder.stored == f"{'int4' if target else 'int8'} {label}".strip()
    numbers = (codes - grown(points.astype(np.float32), block)) * grown(scale, block)
    check(decoder, numbers.astype(np.float32), np.mean(np.square(scale, dtype=np.float64)) / 12)


@pytest.mark.parametrize(("shape", "block", "label"), BLOCKS)
@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_float8(shape, block, label, dtype):
    rng = np.random.default_rng(2)
    codes = rng.integers(0, 0x7B, shape).astype(np.uint8)
    scale = rng.uniform(0.1, 1, [side // part for side, part in zip(shape, block, strict=True)]).astype(np.float32)
    parts = {"m._weight_qdata": codes.view(getattr(ml_dtypes, dtype)), "m._weight_scale": scale}
    decoder = torchao.decoder(described(parts, "Float8Tensor", None, block_size=list(block)))
    assert decoder.stored == f"fp8 {label}".strip()
    table, spread = FLOAT8[dtype], grown(scale, block)
    rounding = np.mean(rounding_of(table)[codes] * spread.astype(np.float64) ** 2)
    check(decoder, table[codes] * spread, rounding, rtol=1e-5)


def test_weights_of_the_library():
    torch = pytest.importorskip("torch")
    quantization = pytest.importorskip("torchao.quantization")
    support = pytest.importorskip("torchao.prototype.safetensors.safetensors_support")
    configs = [
        quantization.Int8WeightOnlyConfig(),
        quantization.Float8WeightOnlyConfig(),
        quantization.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=quantization.PerGroup(32)),
        quantization.IntxWeightOnlyConfig(weight_dtype=torch.int3, granularity=quantization.PerAxis(0)),
    ]
    for config in configs:
        model = torch.nn.Sequential(torch.nn.Linear(64, 48))
        quantization.quantize_(model, config)
        tensors, metadata = support.flatten_tensor_state_dict(model.state_dict())
        parts = {
            name: tensor.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn)
            if tensor.dtype == torch.float8_e4m3fn
            else tensor.numpy()
            for name, tensor in tensors.items()
        }
        found = replace(group(parts, SAID), metadata=metadata)
        expected = model[0].weight.dequantize().detach().numpy()
        np.testing.assert_allclose(torchao.decoder(found).rows(0, slice(0, 48, 1)), expected, rtol=2e-7)


@pytest.mark.parametrize("shape", [(48, 96), (3, 20, 64)])
def test_four_bits_as_fbgemm_packs_them(shape):
    """Codes from -8, two in a byte with the first in the low nibble; scales, and the values of code 0, by groups."""
    rng = np.random.default_rng(4)
    codes = rng.integers(-8, 8, shape)
    nibbles = codes & 15
    scale, zero = (rng.uniform(0.1, 1, (*shape[:-1], shape[-1] // 32)).astype(np.float32) for _ in range(2))
    parts = {
        "m._weight_qdata": (nibbles[..., ::2] | nibbles[..., 1::2] << 4).astype(np.uint8).view(np.int8),
        "m._weight_scale": scale.swapaxes(-1, -2).copy(),
        "m._weight_zero_point": zero.swapaxes(-1, -2).copy(),
    }
    block = [1] * (len(shape) - 1) + [32]
    decoder = torchao.decoder(described(parts, "Int4Tensor", block_size=block))
    assert decoder.stored == "int4 g32"
    numbers = codes.astype(np.float32) * grown(scale, block) + grown(zero, block)
    check(decoder, numbers, np.mean(np.square(scale, dtype=np.float64)) / 12)


BLOCK_SCALED = [("mx", "float8_e4m3fn"), ("mx", "float8_e5m2"), ("mx", "float4_e2m1fn_x2"), ("nv", True), ("nv", False)]


@pytest.mark.parametrize(("kind", "how"), BLOCK_SCALED)
@pytest.mark.parametrize("swizzled", [False, True])
@pytest.mark.parametrize("shape", [(48, 96), (144, 320), (3, 128, 96)])
def test_block_scaled_weights_of_the_library(kind, how, swizzled, shape):
    torch = pytest.importorskip("torch")
    support = pytest.importorskip("torchao.prototype.safetensors.safetensors_support")
    W = torch.randn(shape, generator=torch.manual_seed(5)) / 32
    if kind == "mx":
        library = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")
        made = library.MXTensor.to_mx(W, getattr(torch, how), is_swizzled_scales=swizzled)
    else:
        library = pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor")
        last = library.per_tensor_amax_to_scale(W.abs().amax()) if how else None
        made = library.NVFP4Tensor.to_nvfp4(W, per_tensor_scale=last, is_swizzled_scales=swizzled)
    tensors, metadata = support.flatten_tensor_state_dict({"m.weight": made})
    kinds = {torch.float8_e4m3fn: "float8_e4m3fn", torch.float8_e5m2: "float8_e5m2"}
    kinds[torch.float8_e8m0fnu] = "float8_e8m0fnu"
    parts = {
        name: tensor.view(torch.uint8).numpy().view(getattr(ml_dtypes, kinds[tensor.dtype]))
        if tensor.dtype in kinds
        else tensor.numpy()
        for name, tensor in tensors.items()
    }
    decoder = torchao.decoder(replace(group(parts, SAID), metadata=metadata))
    wanted = {"float8_e4m3fn": "mxfp8", "float8_e5m2": "mxfp8 e5m2", "float4_e2m1fn_x2": "mxfp4"}.get(how, "nvfp4")
    assert decoder.stored == wanted
    numbers = np.asarray(QuantisedArray(decoder))
    # The library multiplies the two scales of NVFP4 first, as here.
    np.testing.assert_array_equal(numbers, made.dequantize(torch.float32).numpy())


def parts_of(**more):
    rng = np.random.default_rng(3)
    codes = rng.integers(-8, 8, (48, 96)).astype(np.int8)
    parts = {"weight_qdata": codes, "weight_scale": np.ones((48, 3), np.float32), **more}
    return {f"m._{word}": part for word, part in parts.items() if part is not None}


MX = {"block_size": 32, "elem_dtype": {"_data": "float4_e2m1fn_x2"}, "is_swizzled_scales": False}
FOUR = {"weight_qdata": np.ones((48, 48), np.uint8)}
NV = {"weight_scale": np.ones((48, 3), ml_dtypes.float8_e4m3fn)}
REFUSED = [
    ({"weight_scale": None}, "Int8Tensor", {}, "no weight_scale"),
    ({"weight_scale": np.ones((48, 2), np.float32)}, "Int8Tensor", {}, r"shape \(48, 2\), where \(48, 3\)"),
    ({"weight_scale": np.ones((48, 3), np.int8)}, "Int8Tensor", {}, "is int8"),
    ({"weight_zero_point": np.ones((48, 1), np.int8)}, "Int8Tensor", {}, r"shape \(48, 1\)"),
    ({"weight_zero_point": np.ones((48, 3), np.int32)}, "Int8Tensor", {}, "is int32"),
    ({"weight_act_pre_scale": np.ones(96, np.float32)}, "Int8Tensor", {}, "act_pre_scale belongs to it"),
    ({}, "IntxUnpackedToInt8Tensor", {}, "no weight_zero_point"),
    ({}, "Float8Tensor", {}, "is int8, where float8"),
    ({}, "Int4TilePackedTo4dTensor", {}, "is a 'Int4TilePackedTo4dTensor' of torchao"),
    ({}, "Int4Tensor", {}, r"shape \(48, 3\), where \(6, 48\) is expected"),
    ({"weight_scale": np.ones((6, 48), np.float32)}, "Int4Tensor", {}, "no weight_zero_point"),
    ({"weight_act_pre_scale": np.ones(96, np.float32)}, "Int4Tensor", {}, "act_pre_scale belongs to it"),
    ({}, "Int4Tensor", {"block_size": [2, 32]}, "groups of inputs are expected"),
    ({}, "MXTensor", MX | {"elem_dtype": {"_data": "float8_e4m3fn"}}, "is int8, where the header says 'float8_e4m3fn'"),
    (FOUR, "MXTensor", MX | {"block_size": [1, 32]}, "where a number is expected"),
    (FOUR, "MXTensor", MX | {"is_swizzled_scales": None}, "where true or false is expected"),
    (FOUR, "MXTensor", MX, "is float32, where float8_e8m0fnu or uint8"),
    (FOUR | {"weight_scale": None}, "MXTensor", MX, "no weight_scale"),
    (FOUR | {"weight_scale": None}, "MXTensor", MX | {"is_swizzled_scales": True}, "no weight_scale"),
    (FOUR, "MXTensor", MX | {"is_swizzled_scales": True}, "has 144 scales in tiles, where 512 are expected"),
    (
        {"weight_qdata": np.ones((2, 48, 48), np.uint8), "weight_scale": np.ones(512, np.uint8)},
        "MXTensor",
        MX | {"is_swizzled_scales": True},
        "48 rows, and how tiles of 128 are padded in a stack is not known",
    ),
    (FOUR, "NVFP4Tensor", MX | {"block_size": 7}, "where rows in blocks of 7"),
    (FOUR | NV, "NVFP4Tensor", MX | {"_names": ["qdata", "scale", "per_tensor_scale"]}, "no weight_per_tensor_scale"),
    (FOUR | NV, "NVFP4Tensor", MX | {"_names": None}, "without a list of its parts"),
    ({}, "Int8Tensor", {"block_size": None}, "2 numbers are expected"),
    ({}, "Int8Tensor", {"block_size": [1, 0]}, "does not consist of"),
    ({}, "Int8Tensor", {"block_size": [1, 36]}, "does not consist of"),
    ({}, 7, {}, "no class with attributes"),
]


@pytest.mark.parametrize(("more", "kind", "data", "reason"), REFUSED)
def test_what_does_not_fit_is_refused(more, kind, data, reason):
    with pytest.raises(NotDecodedError, match=reason):
        torchao.decoder(described(parts_of(**more), kind, **{"block_size": [1, 32], **data}))


@pytest.mark.parametrize(("header", "reason"), [({}, "in no header"), ({"m.weight": "{"}, "no valid JSON")])
def test_headers_that_do_not_describe_it_are_refused(header, reason):
    with pytest.raises(NotDecodedError, match=reason):
        torchao.decoder(replace(group(parts_of(), SAID), metadata=header))
