"""Weights of torchao in safetensors, against their formula and the library, and what is refused of them."""

from __future__ import annotations

import json
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from mpfast.checkpoints.quantised import torchao
from mpfast.checkpoints.quantised.codes import FLOAT8, rounding_of
from mpfast.checkpoints.quantised.group import NotDecodedError
from tests.quantised_encoders import check, group

SAID = {"quant_method": "torchao"}


def described(parts, kind, said=SAID, **data):
    """A group with a header that says of which class its weight is."""
    text = json.dumps({"_type": kind, "_data": data, "_tensor_data_names": ["qdata", "scale"]})
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


def parts_of(**more):
    rng = np.random.default_rng(3)
    codes = rng.integers(-8, 8, (48, 96)).astype(np.int8)
    parts = {"weight_qdata": codes, "weight_scale": np.ones((48, 3), np.float32), **more}
    return {f"m._{word}": part for word, part in parts.items() if part is not None}


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
    ({}, "Int4Tensor", {}, "is a 'Int4Tensor' of torchao"),
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
