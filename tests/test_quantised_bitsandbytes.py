"""NF4, FP4 and int8 of bitsandbytes against the formula and the library, and what is refused of them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mpfast.checkpoints.quantised import bitsandbytes
from mpfast.checkpoints.quantised.codes import rounding_of
from mpfast.checkpoints.quantised.group import NotDecodedError
from tests.quantised_encoders import check, group

from .quantised_encoders import with_part, without

SAID = {"quant_method": "bitsandbytes", "load_in_4bit": True}


def parts_of(rng, shape, *, nested=False, block=64, kind="nf4", stem="l.weight"):
    """Random parts of a weight, the numbers that they stand for, and the variance of rounding to them."""
    count = int(np.prod(shape))
    codes = rng.integers(0, 16, count + count % 2)
    table = np.sort(rng.uniform(-1, 1, 16)).astype(np.float32)
    blocks = -(-count // block)
    state = {"quant_type": kind, "blocksize": block, "dtype": "bfloat16", "shape": list(shape)}
    parts = {stem: (codes[0::2] * 16 + codes[1::2]).astype(np.uint8)[:, None], f"{stem}.quant_map": table}
    if nested:
        inner = rng.integers(0, 256, blocks).astype(np.uint8)
        inner_table = np.sort(rng.uniform(-1, 1, 256)).astype(np.float32)
        inner_maxima = rng.uniform(0.1, 1, -(-blocks // 256)).astype(np.float32)
        state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.5}
        parts |= {
            f"{stem}.absmax": inner,
            f"{stem}.nested_absmax": inner_maxima,
            f"{stem}.nested_quant_map": inner_table,
        }
        maxima = inner_table[inner] * inner_maxima[np.arange(blocks) // 256] + np.float32(0.5)
    else:
        maxima = rng.uniform(0.1, 1, blocks).astype(np.float32)
        parts[f"{stem}.absmax"] = maxima
    parts[f"{stem}.quant_state.bitsandbytes__{kind}"] = np.frombuffer(json.dumps(state).encode(), np.uint8)
    spread = maxima.repeat(block)[:count]
    numbers = (table[codes[:count]] * spread).reshape(shape)
    variances = rounding_of(table)[codes[:count]] * spread.astype(np.float64) ** 2
    # One entry of every block that has the outermost code is the block's largest, and exact.
    outermost = np.where(codes[:count] == np.argmax(np.abs(table)), variances, 0)
    exact = sum(part.max() for part in np.split(outermost, range(block, count, block)))
    return parts, numbers, (variances.sum() - exact) / count


@pytest.mark.parametrize("shape", [(40, 96), (33, 35), (3, 21), (3, 10, 50), (260, 512)])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_four_bits(shape, nested, kind):
    parts, numbers, rounding = parts_of(np.random.default_rng(1), shape, nested=nested, kind=kind)
    for said in (SAID, None):
        found = group(parts, said)
        assert bitsandbytes.is_four_bits(found)
        assert not bitsandbytes.is_int8(found)
        decoder = bitsandbytes.four_bits(found)
        assert decoder.stored == f"{kind} 64"
        assert found.name == "l.weight"
        check(decoder, numbers, rounding, rtol=1e-3)  # a block that two matrices have parts of counts in both


def test_a_stack_that_is_no_weight_of_a_module():
    parts, numbers, rounding = parts_of(np.random.default_rng(1), (3, 10, 50), stem="experts.gate_up_proj")
    found = group(parts, SAID)
    assert found.name == "experts.gate_up_proj"
    check(bitsandbytes.four_bits(found), numbers, rounding, rtol=1e-3)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("shape", [(64, 128), (100, 33)])  # its kernel for CPUs wants even rows of whole blocks
def test_four_bits_of_the_library(kind, nested, shape):
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("bitsandbytes.functional")
    weights = torch.from_numpy(np.random.default_rng(2).standard_normal(shape).astype(np.float32))
    codes, state = functional.quantize_4bit(weights, blocksize=64, compress_statistics=nested, quant_type=kind)
    parts = {"l.weight": codes.numpy()}
    parts |= {f"l.weight.{word}": part.numpy() for word, part in state.as_dict(packed=True).items()}
    decoder = bitsandbytes.four_bits(group(parts, SAID))
    expected = functional.dequantize_4bit(codes, state).numpy()
    # A product of two float32 and the sum before it, rounded in whichever order.
    np.testing.assert_allclose(decoder.rows(0, slice(0, shape[0], 1)), expected, rtol=4e-7)


def int8_parts(rng, shape=(40, 33)):
    codes = rng.integers(-127, 128, shape).astype(np.int8)
    maxima = rng.uniform(0.1, 1, shape[0]).astype(np.float32)
    parts = {"l.weight": codes, "l.SCB": maxima, "l.weight_format": np.zeros((), np.uint8)}
    scale = maxima / np.float32(127)
    return parts, codes * scale[:, None], np.mean(scale.astype(np.float64) ** 2) / 12


def test_int8():
    parts, numbers, rounding = int8_parts(np.random.default_rng(3))
    for said in (SAID, None):
        found = group(parts, said)
        assert bitsandbytes.is_int8(found)
        assert not bitsandbytes.is_four_bits(found)
        check(bitsandbytes.int8(found), numbers, rounding)


def test_int8_of_the_library():
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("bitsandbytes.functional")
    weights = torch.from_numpy(np.random.default_rng(4).standard_normal((64, 96)).astype(np.float16))
    codes, maxima, _ = functional.int8_vectorwise_quant(weights)
    expected = functional.int8_vectorwise_dequant(codes, maxima).numpy()
    decoder = bitsandbytes.int8(group({"l.weight": codes.numpy(), "l.SCB": maxima.numpy()}, SAID))
    np.testing.assert_allclose(decoder.rows(0, slice(0, 64, 1)), expected, rtol=4e-7)


def with_state(**more):
    def change(parts):
        state = json.loads(parts["l.weight.quant_state.bitsandbytes__nf4"].tobytes())
        content = json.dumps({**state, **more}).encode()
        parts["l.weight.quant_state.bitsandbytes__nf4"] = np.frombuffer(content, np.uint8)

    return change


REFUSED = [
    (without("weight.absmax"), "no weight.absmax"),
    (without("weight.quant_map"), "no weight.quant_map"),
    (without("weight.nested_absmax"), "no weight.nested_absmax"),
    (without("weight.nested_quant_map"), "no weight.nested_quant_map"),
    (without("weight.quant_state.bitsandbytes__nf4"), "no quant_state"),
    (with_part("weight.quant_map", np.ones(15, np.float32)), r"shape \(15,\)"),
    (with_part("weight.absmax", np.ones(60, np.float32)), "is float32, where uint8"),
    (with_part("weight.nested_absmax", np.ones(2, np.float32)), r"shape \(2,\)"),
    (with_part("weight.scale", np.ones(1, np.float32)), "scale belongs to it"),
    (with_part("weight.quant_state.bitsandbytes__nf4", np.zeros(5000, np.uint8)), "no text of at most"),
    (with_part("weight.quant_state.bitsandbytes__nf4", np.full(5, 200, np.uint8)), "no valid JSON"),
    (with_part("weight.quant_state.bitsandbytes__nf4", np.frombuffer(b"[1]", np.uint8)), "no object"),
    (with_state(shape=[40, 97]), "bytes, where"),
    (with_state(shape=[40, -96]), "2 or 3 numbers"),
    (with_state(shape=[1 << 40, 1 << 40]), "bytes, where"),
    (with_state(shape=None), "2 or 3 numbers"),
    (with_state(blocksize=0), "blocksize 0"),
    (with_state(blocksize=32), r"shape \(60,\)"),
    (with_state(quant_type="fp4"), "says the type .fp4"),
    (with_state(nested_offset="x"), "nested_offset .x"),
    (with_state(nested_offset=True), "nested_offset True"),
    (with_state(nested_blocksize=None), "nested_blocksize None"),
]


@pytest.mark.parametrize(("change", "reason"), REFUSED)
def test_four_bits_are_refused(change, reason):
    parts, _, _ = parts_of(np.random.default_rng(5), (40, 96), nested=True)
    change(parts)
    with pytest.raises(NotDecodedError, match=reason):
        bitsandbytes.four_bits(group(parts, SAID))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without("SCB"), "no SCB"),
        (with_part("SCB", np.ones(41, np.float32)), r"shape \(41,\)"),
        (with_part("SCB", np.ones(40, np.float16)), "is float16"),
        (with_part("weight_format", np.array(1, np.uint8)), "not stored by rows"),
    ],
)
def test_int8_is_refused(change, reason):
    parts, _, _ = int8_parts(np.random.default_rng(6))
    change(parts)
    with pytest.raises(NotDecodedError, match=reason):
        bitsandbytes.int8(group(parts, SAID))
