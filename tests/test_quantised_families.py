"""Checkpoints of every family on disk: which format a weight is in, that its numbers are analysed, what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

import mpfast
from mpfast.arrays import widened
from mpfast.checkpoints import open_checkpoint, roles_of
from tests import test_quantised_bitsandbytes as bitsandbytes
from tests import test_quantised_compressed_tensors as compressed_tensors
from tests import test_quantised_gptq_awq as gptq_awq
from tests import test_quantised_mlx as mlx

save_file = pytest.importorskip("safetensors.numpy").save_file

SHAPE = (192, 256)


def of_gptq(rng):
    parts, numbers, _ = gptq_awq.gptq_parts(rng, 4, *SHAPE, 64, act_order=True)
    return parts, {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 64}}, numbers


def of_awq(rng):
    parts, numbers = gptq_awq.awq_parts(rng, *SHAPE, 64)
    return parts, {"quantization_config": {"quant_method": "awq", "version": "GEMM"}}, numbers


def of_auto_round(rng):
    parts, numbers, _ = gptq_awq.gptq_parts(rng, 4, *SHAPE, 64)
    said = {"quant_method": "auto-round", "bits": 4, "group_size": 64, "packing_format": "auto_round:auto_gptq"}
    return parts, {"quantization_config": said}, numbers


def of_compressed_tensors(rng):
    parts, numbers, _ = compressed_tensors.parts_of(rng, SHAPE, 64, 3, zeros=True)
    return parts, {"quantization_config": compressed_tensors.said(num_bits=3, symmetric=False)}, numbers


def of_bytes_of_compressed_tensors(rng):
    codes, scale = rng.integers(-128, 128, SHAPE).astype(np.int8), rng.uniform(0.1, 1, (192, 1)).astype(np.float32)
    return (
        {"l.weight": codes, "l.weight_scale": scale},
        {"quantization_config": compressed_tensors.said(num_bits=8)},
        codes * scale,
    )


def of_four_bits(rng):
    parts, numbers, _ = bitsandbytes.parts_of(rng, SHAPE, nested=True)
    return parts, {"quantization_config": bitsandbytes.SAID}, numbers


def of_int8(rng):
    parts, numbers, _ = bitsandbytes.int8_parts(rng, SHAPE)
    return parts, {"quantization_config": {"quant_method": "bitsandbytes"}}, numbers


def of_mlx(rng):
    parts, numbers, _ = mlx.affine_parts(rng, SHAPE, 6, 64)
    said = {"bits": 6, "group_size": 64}
    return {name.removeprefix("m."): part for name, part in parts.items()}, {"quantization": said}, numbers


FAMILIES = [
    of_gptq,
    of_awq,
    of_auto_round,
    of_compressed_tensors,
    of_bytes_of_compressed_tensors,
    of_four_bits,
    of_int8,
    of_mlx,
]


def write(directory, parts, config):
    """Codes and what belongs to them in two files, with an index."""
    directory.mkdir()
    names = sorted(parts)
    shards = {"model-00001-of-00002.safetensors": names[:1], "model-00002-of-00002.safetensors": names[1:]}
    for file, held in shards.items():
        save_file({name: np.ascontiguousarray(parts[name]) for name in held}, directory / file)
    where = {name: file for file, held in shards.items() for name in held}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__[3:])
def test_a_checkpoint_in_two_files_is_analysed_as_its_numbers_are(family, tmp_path):
    parts, config, numbers = family(np.random.default_rng(1))
    checkpoint = open_checkpoint(write(tmp_path / "model", parts, config))
    (info,) = (info for info in checkpoint.tensors if info.name == "l.weight")
    assert info.shape == SHAPE
    assert info.stored
    np.testing.assert_array_equal(np.asarray(checkpoint.read("l.weight")), numbers)
    roles = roles_of(checkpoint)
    assert roles["l.weight"].kind == "linear"
    assert {role.kind for name, role in roles.items() if name != "l.weight"} == {"companion"}
    (row,) = mpfast.analyze(tmp_path / "model").layers
    assert row.stored == info.stored
    assert row.sigma_plus == pytest.approx(mpfast.spectrum(numbers).edge.sigma_plus, rel=1e-6)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__[3:])
def test_what_is_not_known_beside_a_weight_leaves_it_as_it_is_stored(family, tmp_path):
    parts, config, _ = family(np.random.default_rng(2))
    parts["l.lora_up"] = np.ones((192, 2), np.float32)
    checkpoint = open_checkpoint(write(tmp_path / "model", parts, config))
    reasons = [role.reason for role in roles_of(checkpoint).values() if role.kind == "quantised"]
    assert len(reasons) == 1
    assert "l.lora_up belongs to it, and what it does is not known" in reasons[0]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__[3:])
def test_no_part_but_indices_can_be_left_out(family, tmp_path):
    parts, config, _ = family(np.random.default_rng(3))
    for number, left_out in enumerate(sorted(parts)):
        if left_out.endswith(("g_idx", "weight_format", "l.qweight", "l.weight", "weight_packed")):
            continue
        fewer = {name: part for name, part in parts.items() if name != left_out}
        checkpoint = open_checkpoint(write(tmp_path / str(number), fewer, config))
        assert all(not info.stored for info in checkpoint.tensors), left_out
        (reason,) = (role.reason for role in roles_of(checkpoint).values() if role.kind == "quantised")
        assert "never cast" in reason or "not symmetric" in reason, reason


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__[3:])
def test_the_dense_model_is_what_is_written(family, tmp_path):
    parts, config, numbers = family(np.random.default_rng(4))
    source = write(tmp_path / "model", {**parts, "norm.weight": np.ones(7, np.float32)}, {**config, "vocab_size": 7})
    mpfast.prune(source, tmp_path / "dense", sparsity=0.5, dequantize="bfloat16")
    written = open_checkpoint(tmp_path / "dense")
    assert {info.name for info in written.tensors} == {"l.weight", "norm.weight"}
    assert written.config == {"vocab_size": 7}
    (row,) = mpfast.analyze(tmp_path / "dense").layers
    assert (row.shape, row.stored) == (SHAPE, "")
    found = widened(written.read("l.weight"))
    kept = found != 0
    # Half of each row is left, to the eight digits of bfloat16.
    assert (kept.sum(axis=1) == SHAPE[1] // 2).all()
    np.testing.assert_allclose(found[kept], numbers[kept], rtol=2**-8)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (None, "is int8 with 'scale' beside it, in a format that is not known: no configuration names one"),
        ({"quantization_config": {"quant_method": "quanto"}}, "(quanto): is int8 in a format that is not read"),
    ],
)
def test_a_format_that_is_not_known_is_said_to_be(config, reason, tmp_path):
    save_file(
        {"l.weight": np.ones((8, 64), np.int8), "l.scale": np.ones((8, 1), np.float32)}, tmp_path / "a.safetensors"
    )
    (tmp_path / "config.json").write_text(json.dumps(config or {}))
    assert reason in roles_of(open_checkpoint(tmp_path / "a.safetensors"))["l.weight"].reason
