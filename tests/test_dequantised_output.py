"""What is written of quantised checkpoints: nothing, or the dense model that other libraries load."""

from __future__ import annotations

import json

import numpy as np
import pytest

import mpfast
from mpfast.arrays import narrowed, widened
from mpfast.checkpoints import dense_copy, open_checkpoint, stored_chunks

from .quantised_models import DENSE, layers, numbers_in, saved, sharded, tiny_gpt_oss
from .quantised_weights import CASES, CONFIG, as_float4, as_float8, exponents, powers_for, write


@pytest.mark.parametrize("write_out", [True, False])
def test_a_quantised_checkpoint_is_refused_in_one_sentence(tmp_path, write_out):
    sharded(tmp_path / "model", layers()[0])
    with pytest.raises(ValueError, match=r"is quantised: model\.layers\.0\.mlp\.up_proj\.weight is packed; pass dequ"):
        mpfast.prune(tmp_path / "model", tmp_path / "out" if write_out else None, sparsity=0.5)
    with pytest.raises(ValueError, match=r"--dequantize bf16"):
        mpfast.compress(tmp_path / "model", tmp_path / "out" if write_out else None, rank=4)
    assert not (tmp_path / "out").exists()


def test_pruned_as_the_dense_model(tmp_path):
    tensors, numbers = layers()
    sharded(tmp_path / "model", tensors)
    out = tmp_path / "out"
    result = mpfast.prune(tmp_path / "model", out, sparsity=0.5, method="magnitude", dequantize="bfloat16")
    dense = {name: found.astype(DENSE) for name, found in numbers.items()}
    expected = mpfast.prune({**dense, "model.norm.weight": np.ones(64, DENSE)}, sparsity=0.5, method="magnitude")
    assert [row.content for row in result.budget] == [row.content for row in expected.budget]
    written = open_checkpoint(out)
    assert {info.name: info.dtype for info in written.tensors} == dict.fromkeys(
        [*numbers, "model.norm.weight"], "bfloat16"
    )
    for name, kept in expected.masks.items():
        np.testing.assert_array_equal(widened(written.read(name)), np.where(kept, dense[name].astype(np.float32), 0))
    files = {path.name for path in out.iterdir()}
    assert {"model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "tokenizer.json"} <= files
    assert files.isdisjoint({"model-00003-of-00003.safetensors", "hf_quant_config.json"})
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == {info.name for info in written.tensors}
    assert json.loads((out / "config.json").read_text()) == {"model_type": "llama", "hidden_size": 64}
    assert result.notes == (
        "written in bfloat16: 3 weights that are quantised in the source",
        "config.json: no longer says that the weights are quantised",
    )
    assert result.not_copied == ("hf_quant_config.json: says how the weights were quantised",)
    found = mpfast.verify(out)
    assert (found.problems, found.layers, found.untouched) == ((), 3, 1)
    changed = {**tensors, "model.norm.weight": np.zeros(64, DENSE)}
    sharded(tmp_path / "model", changed)
    assert "the source is not the one" in mpfast.verify(out).problems[0]


@pytest.mark.parametrize("format", ["dense", "factors"])
def test_compressed_as_the_dense_model(tmp_path, format):
    tensors, numbers = layers()
    sharded(tmp_path / "model", tensors)
    out = tmp_path / "out"
    result = mpfast.compress(tmp_path / "model", out, rank=4, format=format, dequantize="bfloat16")
    assert [layer.rank for layer in result.layers] == [4, 4, 4]
    assert "written in bfloat16: 3 weights that are quantised in the source" in result.notes
    written = open_checkpoint(out)
    assert {info.dtype for info in written.tensors} == {"bfloat16"}
    name = next(iter(numbers))
    if format == "dense":
        left = widened(written.read(name))
    else:
        left = widened(written.read(f"{name}_A")) @ widened(written.read(f"{name}_B"))
    u, s, v = np.linalg.svd(numbers[name].astype(DENSE).astype(np.float32), full_matrices=False)
    # Two factors in bfloat16, or their product: within two roundings of 2^-9 of its norm.
    np.testing.assert_allclose(left, (u[:, :4] * s[:4]) @ v[:4], atol=2 * 2**-8 * s[0])
    assert mpfast.verify(out).ok


def test_one_file_for_what_is_in_memory(tmp_path):
    tensors, numbers = layers()
    mpfast.prune(tensors, tmp_path / "out", sparsity=0.0, method="magnitude", dequantize="bfloat16")
    written = open_checkpoint(tmp_path / "out")
    for name, found in numbers.items():
        np.testing.assert_array_equal(written.read(name), narrowed(found))


def test_what_is_not_read_is_not_dequantised(tmp_path):
    tensors, _ = layers()
    name = "model.layers.1.mlp.up_proj.weight"
    del tensors[f"{name}_scale_inv"]
    sharded(tmp_path / "model", tensors)
    with pytest.raises(ValueError, match=rf"dequantize is not possible: {name} has no scale, and is never cast"):
        mpfast.prune(tmp_path / "model", sparsity=0.5, dequantize="bfloat16")
    with pytest.raises(ValueError, match="has nothing to do: no weight of the model is quantised"):
        mpfast.prune({"l.weight": np.ones((16, 16))}, sparsity=0.5, dequantize="bfloat16")
    with pytest.raises(ValueError, match="must be 'bfloat16', not 'bf16'"):
        mpfast.prune(tmp_path / "model", sparsity=0.5, dequantize="bf16")


def test_what_lies_beside_says_what_is_written(tmp_path):
    """The type that the model is loaded in, the size of its tensors; nothing of how they were quantised."""
    tensors, _ = layers()
    sharded(tmp_path / "model", tensors, {**CONFIG, "torch_dtype": "float16", "text_config": {"dtype": "float16"}})
    for name in ("quantize_config.json", "quant_config.json"):
        (tmp_path / "model" / name).write_text("{}")
    out = tmp_path / "out"
    result = mpfast.prune(tmp_path / "model", out, sparsity=0.5, method="magnitude", dequantize="bfloat16")
    said = json.loads((out / "config.json").read_text())
    assert (said["torch_dtype"], said["text_config"]) == ("bfloat16", {"dtype": "bfloat16"})
    assert "config.json: says that the weights are bfloat16" in result.notes
    assert not list(out.glob("quant*_config.json"))
    assert "quantize_config.json: says how the weights were quantised" in result.not_copied
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 2 * (3 * 128 * 64 + 64)
    sharded(tmp_path / "wide", tensors, {**CONFIG, "dtype": "float32"})
    mpfast.prune(tmp_path / "wide", tmp_path / "out of it", sparsity=0.5, dequantize="bfloat16")
    assert json.loads((tmp_path / "out of it" / "config.json").read_text())["dtype"] == "float32"


def test_numbers_that_are_none_are_told(tmp_path):
    tensors, _ = layers()
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[f"{name}_scale_inv"] = np.full_like(tensors[f"{name}_scale_inv"], np.nan)
    choice = {"sparsity": 0.5, "exclude": name, "dequantize": "bfloat16"}
    assert not any("NaN" in note for note in mpfast.prune(tensors, **choice).notes)
    result = mpfast.prune(tensors, tmp_path / "out", **choice)
    assert result.notes[-1] == f"{name}: NaN or infinite in the source, and here"
    assert np.isnan(widened(open_checkpoint(tmp_path / "out").read(name))).all()


def test_comfyui_is_told_that_nothing_is_scaled(tmp_path):
    tensors, *_ = CASES["ComfyUI"]()
    write(tmp_path / "model.safetensors", tensors, {"_quantization_metadata": "{}"})
    mpfast.prune(tmp_path / "model.safetensors", tmp_path / "out", sparsity=0.1, dequantize="bfloat16")
    written = open_checkpoint(tmp_path / "out")
    assert [info.name for info in written.tensors] == ["b.l.weight"]
    assert written.metadata == {"format": "pt"}


@pytest.mark.parametrize(
    ("case", "transposed"), [("gpt-oss", True), ("gpt-oss by OpenAI's names", False), ("a stack of experts", False)]
)
def test_stacks_are_written_as_the_dense_model_has_them(case, transposed, tmp_path):
    """That of transformers has (E, in, out) where the codes of gpt-oss are (E, out, in)."""
    tensors, config, _, numbers = CASES[case]()
    model = tmp_path / "model"
    model.mkdir()
    write(model / "model.safetensors", tensors)
    (model / "config.json").write_text(json.dumps(config))
    mpfast.prune(model, tmp_path / "out", sparsity=0.0, method="magnitude", dequantize="bfloat16")
    (info,) = open_checkpoint(tmp_path / "out").tensors
    expected = numbers.transpose(0, 2, 1) if transposed else numbers
    assert info.shape == expected.shape
    np.testing.assert_array_equal(open_checkpoint(tmp_path / "out").read(info.name), narrowed(expected))


def test_the_file_that_is_left_of_several_has_no_number(tmp_path):
    """Scales had one of their own; without an index, nobody would look for the first of two."""
    tensors, _ = layers(1)
    sharded(tmp_path / "model", {name: tensors[name] for name in tensors if "norm" not in name})
    mpfast.prune(tmp_path / "model", tmp_path / "out", sparsity=0.5, dequantize="bfloat16")
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert "model.safetensors" in files
    assert not any("model-0000" in name or "index" in name for name in files)
    assert mpfast.verify(tmp_path / "out").ok


def test_what_stays_is_decoded_in_pieces(monkeypatch):
    tensors, *_, numbers = CASES["a stack of experts"]()
    monkeypatch.setattr("mpfast.arrays.quantised.PANEL_BYTES", 4 * 200 * 100)
    dense = dense_copy(open_checkpoint(tensors), "bfloat16")
    chunks = [bytes(chunk) for chunk in stored_chunks(dense, "m.experts.gate_up_proj")]
    assert [len(chunk) for chunk in chunks] == [2 * 200 * rows for rows in (100, 100, 56)] * 3
    assert b"".join(chunks) == narrowed(numbers).tobytes()


@pytest.mark.slow
def test_transformers_loads_what_was_float8(tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=1,
        num_attention_heads=4,
        tie_word_embeddings=False,
    )
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    replaced, expected = {}, {}
    for name, tensor in model.state_dict().items():
        if name.endswith("proj.weight"):
            codes, scales, expected[name] = as_float8(numbers_in(tensor), (128, 128))
            replaced[name] = {name: codes, f"{name}_scale_inv": scales}
    saved(model, tmp_path / "model", replaced, "fp8")
    mpfast.prune(tmp_path / "model", tmp_path / "out", sparsity=0.0, method="magnitude", dequantize="bfloat16")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert loaded.dtype == torch.bfloat16
    for name, tensor in loaded.state_dict().items():
        before = numbers_in(model.state_dict()[name])
        wanted = expected[name].astype(DENSE).astype(np.float32) if name in expected else before
        np.testing.assert_array_equal(numbers_in(tensor), wanted, err_msg=name)


@pytest.mark.slow
def test_transformers_loads_what_was_mxfp4(tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    model = tiny_gpt_oss(transformers).to(torch.bfloat16)
    replaced, expected = {}, {}
    for name, tensor in model.state_dict().items():
        if name.endswith(("gate_up_proj", "down_proj")):
            W = numbers_in(tensor).transpose(0, 2, 1) + np.float32(1e-6)
            scales = powers_for(W)
            packed, found = as_float4(W, 32, scales)
            expected[name] = found.transpose(0, 2, 1)
            blocks = packed.reshape(*W.shape[:2], -1, 16)
            replaced[name] = {f"{name}_blocks": blocks, f"{name}_scales": exponents(scales).view(np.uint8)}
    assert len(replaced) == 2
    saved(model, tmp_path / "model", replaced, "mxfp4")
    result = mpfast.prune(tmp_path / "model", tmp_path / "out", sparsity=0.0, method="magnitude", dequantize="bfloat16")
    assert {row.name for row in result.budget} >= set(replaced)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    for name, tensor in loaded.state_dict().items():
        wanted = expected.get(name, numbers_in(model.state_dict()[name]))
        np.testing.assert_array_equal(numbers_in(tensor), wanted, err_msg=name)
    assert mpfast.verify(tmp_path / "out").ok
