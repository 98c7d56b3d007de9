"""Masks written in the formats of quantised weights: codes of zero, and all else byte for byte."""

from __future__ import annotations

import json

import numpy as np
import pytest

import mpfast
from mpfast.checkpoints import open_checkpoint, stored_bits
from mpfast.cli.arrangement import Arrangement
from mpfast.cli.tables import prune_lines

from .quantised_encoders import packed
from .quantised_models import layers, numbers_in, saved, sharded, tiny_gpt_oss
from .quantised_weights import CASES, as_float4, as_float8, exponents, ml_dtypes, powers_for, weights, write


def written(folder, case):
    tensors, config, *_, numbers = CASES[case]()
    folder.mkdir()
    config = dict(config or {})
    write(folder / "model.safetensors", tensors, config.pop("metadata", None))
    (folder / "config.json").write_text(json.dumps(config))
    return tensors, numbers


@pytest.mark.parametrize("case", list(CASES))
def test_of_every_format_codes_are_masked_and_nothing_else_changes(case, tmp_path):
    _, numbers = written(tmp_path / "model", case)
    out = tmp_path / "out"
    result = mpfast.prune(tmp_path / "model", out, sparsity=0.4, method="magnitude", repack=True)
    (row,) = result.budget
    assert row.pruned == int(0.4 * numbers.size)
    source, found = open_checkpoint(tmp_path / "model"), open_checkpoint(out)
    keep = mpfast.checkpoints.MaskFile(out / "masks.safetensors")[row.name]
    np.testing.assert_array_equal(np.asarray(found.read(row.name)), np.where(keep, numbers, 0))
    assert found.tensors == source.tensors
    before, after = (tmp_path / "model/model.safetensors").read_bytes(), (out / "model.safetensors").read_bytes()
    codes = source.weights[row.name].group.info.name
    first, last = source.stored.spans[codes]
    assert (before[:first], before[last:]) == (after[:first], after[last:])
    assert (out / "config.json").read_bytes() == (tmp_path / "model/config.json").read_bytes()
    assert mpfast.verify(out).problems == ()
    # As many codes are other ones as bytes have an entry that was not zero and is.
    gone = (~keep & (numbers != 0)).reshape(-1, numbers.size // (last - first)).any(axis=1)
    changed = np.frombuffer(before[first:last], np.uint8) != np.frombuffer(after[first:last], np.uint8)
    np.testing.assert_array_equal(changed | ~gone, np.ones(gone.shape, bool))


@pytest.mark.parametrize("case", list(CASES))
def test_what_nothing_is_pruned_of_is_the_source(case, tmp_path):
    written(tmp_path / "model", case)
    mpfast.prune(tmp_path / "model", tmp_path / "out", sparsity=0.0, method="magnitude", repack=True)
    names = ("model.safetensors", "config.json")
    assert all((tmp_path / "out" / name).read_bytes() == (tmp_path / "model" / name).read_bytes() for name in names)


def test_shards_and_their_index_stay(tmp_path):
    tensors, numbers = layers()
    sharded(tmp_path / "model", tensors)
    out = tmp_path / "out"
    result = mpfast.prune(tmp_path / "model", out, sparsity=0.5, method="magnitude", repack=True)
    expected = mpfast.prune(numbers, sparsity=0.5, method="magnitude")
    found = open_checkpoint(out)
    for name, keep in expected.masks.items():
        np.testing.assert_array_equal(np.asarray(found.read(name)), np.where(keep, numbers[name], 0))
    assert [row.content for row in result.budget] == [row.content for row in expected.budget]
    for name in ("model.safetensors.index.json", "config.json", "hf_quant_config.json"):
        assert (out / name).read_bytes() == (tmp_path / "model" / name).read_bytes()
    scales = "model-00003-of-00003.safetensors"
    assert (out / scales).read_bytes() == (tmp_path / "model" / scales).read_bytes()
    check = mpfast.verify(out)
    assert (check.problems, check.layers, check.untouched) == ((), 3, 4)
    (out / scales).write_bytes((out / scales).read_bytes()[:-1] + b"\x55")
    assert any("differ" in problem for problem in mpfast.verify(out).problems)


def test_what_is_in_memory_gets_one_file_with_its_codes(tmp_path):
    tensors, numbers = layers()
    result = mpfast.prune(tensors, tmp_path / "out", sparsity=0.5, method="magnitude", repack=True)
    found = open_checkpoint(tmp_path / "out")
    assert {info.name for info in found.tensors} == set(tensors)
    for name, keep in result.masks.items():
        np.testing.assert_array_equal(np.asarray(found.read(name)), np.where(keep, numbers[name], 0))
        assert bytes(stored_bits(found, f"{name}_scale_inv")) == tensors[f"{name}_scale_inv"].tobytes()


def test_weights_in_other_formats_stay_as_they_are(tmp_path):
    """Of integers with zero points, no code is zero under every scale; of what lacks a scale, nothing is known."""
    tensors, _ = layers(1)
    tensors["a.weight"] = weights((64, 64)).astype(ml_dtypes.float8_e4m3fn)
    codes = np.arange(64 * 64).reshape(64, 64) % 16
    tensors |= {"b.weight_packed": packed(codes, 4), "b.weight_scale": np.ones((64, 1), np.float32)}
    tensors |= {"b.weight_shape": np.array([64, 64])}
    result = mpfast.prune(tensors, tmp_path / "out", sparsity=0.5, method="magnitude", repack=True)
    assert [row.name for row in result.budget] == ["model.layers.0.mlp.up_proj.weight"]
    reasons = {tensor.name: tensor.reason for tensor in result.skipped}
    assert reasons["b.weight"] == "is stored as int4 by row, in which no code stands for zero under every scale"
    found = open_checkpoint(tmp_path / "out")
    for name in ("a.weight", "b.weight_packed", "b.weight_scale", "b.weight_shape"):
        assert bytes(stored_bits(found.stored, name)) == tensors[name].tobytes()
    alone = {name: tensor for name, tensor in tensors.items() if name.startswith("b.")}
    with pytest.raises(ValueError, match=r"repack is not possible: b\.weight is stored as int4 by row"):
        mpfast.prune(alone, sparsity=0.5, repack=True)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_scale_that_no_code_is_zero_under_is_refused(value, tmp_path):
    tensors, _ = layers(1)
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[f"{name}_scale_inv"] = np.full_like(tensors[f"{name}_scale_inv"], value)
    keep = np.ones(tensors[name].shape, bool)
    keep[3, 5] = False
    with pytest.raises(ValueError, match=rf"zero times {value}, a scale of {name}, is not the zero"):
        mpfast.prune(tensors, tmp_path / "out", masks={name: keep}, repack=True)
    assert not (tmp_path / "out").exists()


def test_what_repack_is_not_for(tmp_path):
    tensors, _ = layers(1)
    with pytest.raises(ValueError, match=r"\(--dequantize bf16\) or repack=True \(--repack\)"):
        mpfast.prune(tensors, sparsity=0.5)
    with pytest.raises(ValueError, match=r"pass dequantize='bfloat16' \(--dequantize bf16\), or take"):
        mpfast.compress(tensors, rank=4)
    with pytest.raises(ValueError, match="repack keeps the format that dequantize does away with; pass one"):
        mpfast.prune(tensors, sparsity=0.5, repack=True, dequantize="bfloat16")
    with pytest.raises(ValueError, match="repack keeps the codes of what is kept, and moments give that new values"):
        mpfast.prune(tensors, sparsity=0.5, repack=True, moments={"model.layers.0.mlp.up_proj": np.eye(64)})
    with pytest.raises(ValueError, match="repack has nothing to do: no weight of the model is quantised"):
        mpfast.prune({"l.weight": np.ones((16, 16))}, sparsity=0.5, repack=True)


def test_scales_are_no_entries_of_the_model_and_are_told_together(tmp_path):
    tensors, numbers = layers()
    result = mpfast.prune(tensors, sparsity=0.5, method="magnitude", repack=True)
    assert result.budget.model_entries == sum(W.size for W in numbers.values()) + tensors["model.norm.weight"].size
    assert result.budget.dense == ()
    lines = [
        "".join(text for text, _ in line) for line in prune_lines(result, Arrangement(), width=None, verbose=False)
    ]
    (told,) = [line for line in lines if "scales of quantised weights" in line]
    assert told.startswith("  3 tensors (model.layers.0.mlp.up_proj.weight_scale_inv, ...):")


def tiny_llama(transformers):
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=1,
        num_attention_heads=4,
        tie_word_embeddings=False,
    )
    return transformers.LlamaForCausalLM(config)


def float8_parts(name, W):
    codes, scales, _ = as_float8(W, (128, 128))
    return {name: codes, f"{name}_scale_inv": scales}


def mxfp4_parts(name, W):
    W = W.transpose(0, 2, 1) + np.float32(1e-6)
    scales = powers_for(W)
    packed, _ = as_float4(W, 32, scales)
    blocks = packed.reshape(*W.shape[:2], -1, 16)
    return {f"{name}_blocks": blocks, f"{name}_scales": exponents(scales).view(np.uint8)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "build", "ends", "parts"),
    [
        ("fp8", tiny_llama, "proj.weight", float8_parts),
        ("mxfp4", tiny_gpt_oss, ("gate_up_proj", "down_proj"), mxfp4_parts),
    ],
)
def test_transformers_loads_what_was_masked(method, build, ends, parts, tmp_path):
    """By its own dequantisation: zeros where the mask has them, and elsewhere what it loads of the source."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    model = build(transformers).to(torch.bfloat16)
    replaced = {name: parts(name, numbers_in(W)) for name, W in model.state_dict().items() if name.endswith(ends)}
    assert replaced
    saved(model, tmp_path / "model", replaced, method)
    mpfast.prune(tmp_path / "model", tmp_path / "out", sparsity=0.5, method="magnitude", repack=True)
    keep = mpfast.checkpoints.MaskFile(tmp_path / "out" / "masks.safetensors")
    assert set(replaced) <= set(keep)
    source, found = (
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.bfloat16).state_dict()
        for name in ("model", "out")
    )
    for name, tensor in source.items():
        wanted = numbers_in(tensor)
        if name in keep:
            mask = keep[name].transpose(0, 2, 1) if method == "mxfp4" and name in replaced else keep[name]
            wanted = np.where(mask, wanted, 0)
            assert not mask.all()
        assert found[name].dtype == torch.bfloat16
        np.testing.assert_array_equal(numbers_in(found[name]), wanted, err_msg=name)
    assert mpfast.verify(tmp_path / "out").ok
