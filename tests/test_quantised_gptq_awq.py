"""Weights of GPTQ and AWQ against their formula, on shapes that fill no words, and what is refused of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpfast.checkpoints.quantised import awq, compressed_tensors, gptq
from mpfast.checkpoints.quantised.bit_streams import unpacked
from mpfast.checkpoints.quantised.group import NotDecodedError
from mpfast.support import CheckpointError
from tests.quantised_encoders import check, group, packed

from .quantised_encoders import with_part, without


@settings(deadline=None)
@given(st.data(), st.integers(1, 8), st.integers(1, 70))
def test_codes_come_out_of_words_as_they_went_in(data, bits, count):
    codes = data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=count, max_size=count))
    start = data.draw(st.integers(0, count))
    chosen = slice(start, data.draw(st.integers(start, count)), data.draw(st.integers(1, 3)))
    codes = np.array([codes, codes[::-1]])
    np.testing.assert_array_equal(unpacked(packed(codes, bits), bits, chosen), codes[:, chosen])


def gptq_parts(rng, bits, outputs, inputs, width, *, less=1, act_order=False, dtype=np.float16):
    """Random parts of a weight, and the numbers that they stand for."""
    groups = -(-inputs // width)
    codes = rng.integers(0, 2**bits, (inputs, outputs))
    zeros = rng.integers(0, 2**bits, (groups, outputs))
    scales = rng.uniform(0.01, 1, (groups, outputs)).astype(dtype)
    index = np.arange(inputs) // width
    if act_order:
        index = rng.permutation(index)
    parts = {
        "l.qweight": np.ascontiguousarray(packed(codes.T, bits).T),
        "l.qzeros": packed(zeros - less & 2**bits - 1, bits),
        "l.scales": scales,
        "l.g_idx": index.astype(np.int32),
    }
    numbers = ((codes - zeros[index]) * scales.astype(np.float32)[index]).T.astype(np.float32)
    return parts, numbers, np.mean(np.square(scales.astype(np.float64)[index])) / 12


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(("version", "less"), [("gptq", 1), ("gptq_v2", 0)])
def test_gptq(bits, act_order, version, less):
    rng = np.random.default_rng(bits)
    said = {"quant_method": "gptq", "bits": bits, "group_size": 16, "checkpoint_format": version}
    for outputs, inputs in ((64, 128), (33, 40), (70, 33)):
        parts, numbers, rounding = gptq_parts(rng, bits, outputs, inputs, 16, less=less, act_order=act_order)
        found = group(parts, said)
        assert gptq.is_gptq(found)
        decoder = gptq.decoder(found)
        assert decoder.stored == f"int{bits} g16"
        check(decoder, numbers, rounding)


def test_gptq_without_groups_of_inputs_or_in_one_group():
    rng = np.random.default_rng(0)
    parts, numbers, rounding = gptq_parts(rng, 4, 40, 96, 32)
    del parts["l.g_idx"]
    check(gptq.decoder(group(parts, {"quant_method": "gptq", "bits": 4, "group_size": 32})), numbers, rounding)
    parts, numbers, rounding = gptq_parts(rng, 4, 40, 96, 96)
    decoder = gptq.decoder(group(parts, {"quant_method": "gptq", "bits": 4, "group_size": -1}))
    assert decoder.stored == "int4 by row"
    check(decoder, numbers, rounding)


def test_gptq_of_a_layer_with_its_own_bits_goes_by_the_shapes():
    parts, numbers, rounding = gptq_parts(np.random.default_rng(1), 8, 64, 64, 32)
    check(gptq.decoder(group(parts, {"quant_method": "gptq", "bits": 4, "group_size": 128})), numbers, rounding)


@pytest.mark.parametrize(
    ("said", "less"),
    [
        ({"packing_format": "auto_round:auto_gptq"}, 1),
        ({"packing_format": "auto_round:gptqmodel"}, 0),
        ({"packing_format": "auto_round"}, 0),
        ({"backend": "auto_round:gptq:exllamav2"}, 1),
        ({"backend": "auto_round:exllamav2"}, 0),
    ],
)
def test_auto_round_in_the_layout_of_gptq(said, less):
    parts, numbers, _ = gptq_parts(np.random.default_rng(2), 4, 64, 128, 32, less=less)
    check(gptq.decoder(group(parts, {"quant_method": "auto-round", "bits": 4, "group_size": 32, **said})), numbers)


REFUSED = [
    (without("scales"), {}, "no scales"),
    (without("qzeros"), {}, "no qzeros"),
    (with_part("scales", np.ones((4, 63), np.float16)), {}, r"shape \(16, 64\), where \(16, 63\)"),
    (with_part("scales", np.ones((5, 64), np.float16)), {}, "not of"),
    (with_part("scales", np.ones((0, 64), np.float16)), {}, "where .groups, outputs. is expected"),
    (with_part("scales", np.ones(64, np.float16)), {}, "where .groups, outputs. is expected"),
    (with_part("scales", np.ones((4, 64), np.float64)), {}, "float64, where"),
    (with_part("qzeros", np.zeros((4, 9), np.int32)), {}, "not of"),
    (with_part("qzeros", np.zeros((3, 8), np.int32)), {}, "zero points of the shape .3, 8."),
    (with_part("g_idx", np.zeros(120, np.int32)), {}, r"shape \(16, 64\), where \(15, 64\)"),
    (lambda parts: parts.pop("l.g_idx"), {"desc_act": True}, "has no g_idx"),
    (with_part("g_idx", np.zeros((2, 64), np.int32)), {}, "g_idx has the shape"),
    (with_part("perm", np.zeros(128, np.int32)), {}, "perm belongs to it"),
    (lambda parts: None, {"checkpoint_format": "marlin"}, "packed as .marlin"),
    (lambda parts: None, {"checkpoint_format": "gptq_p"}, "packed as .gptq_p"),
    (
        lambda parts: None,
        {"quant_method": "auto-round", "packing_format": "auto_round:llm_compressor"},
        "packed as .auto",
    ),
    (lambda parts: None, {"quant_method": "auto-round"}, "packed as .an unnamed"),
]


@pytest.mark.parametrize(("change", "said", "reason"), REFUSED, ids=[reason for _, _, reason in REFUSED])
def test_gptq_is_refused(change, said, reason):
    parts, _, _ = gptq_parts(np.random.default_rng(3), 4, 64, 128, 32)
    change(parts)
    with pytest.raises(NotDecodedError, match=reason):
        gptq.decoder(group(parts, {"quant_method": "gptq", "bits": 4, "group_size": 32, **said}))


def test_gptq_is_refused_where_nothing_says_how_zero_points_are_stored():
    parts, _, _ = gptq_parts(np.random.default_rng(4), 4, 64, 128, 32)
    with pytest.raises(NotDecodedError, match="less one"):
        gptq.decoder(group(parts))


@pytest.mark.parametrize("wrong", [-1, 4])
def test_inputs_of_groups_that_are_not_there_are_damage(wrong):
    parts, _, _ = gptq_parts(np.random.default_rng(5), 4, 64, 128, 32)
    parts["l.g_idx"][7] = wrong
    decoder = gptq.decoder(group(parts, {"quant_method": "gptq", "bits": 4, "group_size": 32}))
    with pytest.raises(CheckpointError, match=r"l\.g_idx has groups from"):
        decoder.rows(0, slice(0, 8, 1))


def awq_parts(rng, outputs, inputs, width):
    """Random parts of a weight, and the numbers that they stand for."""
    groups = -(-inputs // width)
    codes = rng.integers(0, 16, (inputs, outputs))
    zeros = rng.integers(0, 16, (groups, outputs))
    scales = rng.uniform(0.01, 1, (groups, outputs)).astype(np.float16)
    # From the lowest four bits of a word: the outputs 0, 2, 4, 6, 1, 3, 5, 7.
    order = (np.arange(outputs).reshape(-1, 8)[:, [0, 2, 4, 6, 1, 3, 5, 7]]).reshape(-1)
    parts = {"l.qweight": packed(codes[:, order], 4), "l.qzeros": packed(zeros[:, order], 4), "l.scales": scales}
    index = np.arange(inputs) // width
    return parts, ((codes - zeros[index]) * scales.astype(np.float32)[index]).T.astype(np.float32)


def step_of(parts):
    return np.mean(np.square(parts["l.scales"].astype(np.float64))) / 12


@pytest.mark.parametrize(("outputs", "inputs", "width"), [(64, 128, 32), (40, 100, 32), (8, 33, 33)])
@pytest.mark.parametrize(
    "said",
    [
        {"quant_method": "awq", "version": "gemm"},
        {"quant_method": "awq"},
        {"quant_method": "auto-round", "packing_format": "auto_round:auto_awq"},
    ],
)
def test_awq(outputs, inputs, width, said):
    parts, numbers = awq_parts(np.random.default_rng(inputs), outputs, inputs, width)
    found = group(parts, {"bits": 4, "group_size": width, **said})
    assert awq.is_awq(found)
    decoder = awq.decoder(found)
    assert decoder.stored == ("int4 by row" if width == inputs else f"int4 g{width}")
    check(decoder, numbers)  # the ends of its grids are searched for: what that cut off is not known


@pytest.mark.parametrize("version", ["gemv", "gemv_fast", "marlin", "exllama"])
def test_other_versions_of_awq_are_refused_by_name(version):
    parts, _ = awq_parts(np.random.default_rng(6), 64, 128, 32)
    with pytest.raises(NotDecodedError, match=f"version {version!r} of AWQ"):
        awq.decoder(group(parts, {"quant_method": "awq", "version": version}))


def test_awq_with_a_missing_or_misshapen_part_is_refused():
    parts, _ = awq_parts(np.random.default_rng(7), 64, 128, 32)
    said = {"quant_method": "awq", "backend": "llm-awq"}
    with pytest.raises(NotDecodedError, match="llm-awq"):
        awq.decoder(group(parts, said))
    for word in ("scales", "qzeros"):
        fewer = {name: part for name, part in parts.items() if name != f"l.{word}"}
        with pytest.raises(NotDecodedError, match=f"no {word}"):
            awq.decoder(group(fewer, {"quant_method": "awq"}))
        with pytest.raises(NotDecodedError, match="shape"):
            awq.decoder(group({**parts, f"l.{word}": parts[f"l.{word}"][:, :-1]}, {"quant_method": "awq"}))


def test_awq_may_leave_out_the_zero_points_of_symmetric_grids():
    parts, _ = awq_parts(np.random.default_rng(8), 64, 128, 32)
    zeros = parts.pop("l.qzeros")
    said = {"quant_method": "awq", "zero_point": False}
    symmetric = awq.decoder(group(parts, said)).rows(0, slice(0, 64, 1))
    parts["l.qzeros"] = np.full_like(zeros, packed(np.full(8, 8), 4)[0])
    np.testing.assert_array_equal(symmetric, awq.decoder(group(parts, said)).rows(0, slice(0, 64, 1)))


def test_awq_as_compressed_tensors_converts_it():
    torch = pytest.importorskip("torch")
    convert = pytest.importorskip("compressed_tensors.entrypoints.convert")
    parts, numbers = awq_parts(np.random.default_rng(9), 64, 128, 32)
    converted = convert.AutoAWQConverter(group_size=32).process(
        {name: torch.from_numpy(part) for name, part in parts.items()}
    )
    found = group({name: part.numpy() for name, part in converted.items()}, {"quant_method": "compressed-tensors"})
    check(compressed_tensors.decoder_of_packs(found), numbers, step_of(parts))
