"""Low-rank checkpoints and LoRA adapters."""

from __future__ import annotations

import copy
import json
import warnings

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mpfast
from mpfast import CheckpointError
from mpfast.checkpoints.safetensors import SafetensorsFile


def planted(rank, shape, strength, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.standard_normal((shape[0], rank)))[0]
    right = np.linalg.qr(rng.standard_normal((shape[1], rank)))[0]
    edge = np.sqrt(shape[0]) + np.sqrt(shape[1])
    return (strength * edge * left @ right.T + rng.standard_normal(shape)).astype(dtype)


@pytest.fixture
def model(tmp_path):
    directory = tmp_path / "model"
    directory.mkdir()
    tensors = {
        "embed.weight": planted(2, (300, 64), 3),
        "a.weight": planted(5, (256, 192), 3),
        "a.bias": np.ones(256, np.float32),
        "b.weight": planted(3, (192, 256), 3, dtype=np.float16),
        "noise.weight": np.random.default_rng(3).standard_normal((128, 96)).astype(np.float32),
    }
    save_file(tensors, directory / "model.safetensors")
    (directory / "config.json").write_text("{}")
    return directory


def truncated(W, rank):
    U, s, Vh = np.linalg.svd(W.astype(np.float64), full_matrices=False)
    return (U[:, :rank] * s[:rank]) @ Vh[:rank]


def least_rank(W, error):
    s = np.linalg.svd(W.astype(np.float64), compute_uv=False)
    lost = np.sqrt(np.append(np.cumsum(s[::-1] ** 2)[::-1], 0) / (s**2).sum())
    return int(np.argmax(lost <= error))


def test_truncated_matrices_take_the_place_of_the_dense_ones(model, tmp_path):
    result = mpfast.compress(model, tmp_path / "out", rank=12)
    assert result.format == "dense"
    dense, written = (load_file(place / "model.safetensors") for place in (model, tmp_path / "out"))
    headers = [SafetensorsFile(place / "model.safetensors").header for place in (model, tmp_path / "out")]
    assert headers[0] == headers[1]
    assert {layer.name: layer.rank for layer in result.layers} == {"a.weight": 12, "b.weight": 12, "noise.weight": 12}
    for layer in result.layers:
        best = truncated(dense[layer.name], 12)
        # The Krylov run's, where the rank cuts through the noise; and that of the type that it is stored in.
        tolerance = 5e-5 if written[layer.name].dtype == np.float32 else 1e-3
        assert np.linalg.norm(written[layer.name] - best) < tolerance * np.linalg.norm(best)
        assert layer.energy == pytest.approx((best**2).sum() / (dense[layer.name].astype(float) ** 2).sum(), rel=1e-4)
    for name in ("embed.weight", "a.bias"):
        np.testing.assert_array_equal(written[name], dense[name])
    assert "embedding" in {tensor.name: tensor.reason for tensor in result.skipped}["embed.weight"]
    assert (tmp_path / "out" / "config.json").exists()
    assert json.loads((tmp_path / "out" / ".mpfast.json").read_text())["command"] == "compress"


def test_factors_multiply_to_the_truncated_matrices(model, tmp_path):
    result = mpfast.compress(model, tmp_path / "out", rank=12, format="factors")
    mpfast.compress(model, tmp_path / "dense", rank=12)
    dense = load_file(tmp_path / "dense" / "model.safetensors")
    written = load_file(tmp_path / "out" / "model.safetensors")
    for layer in result.layers:
        left, right = written[f"{layer.name}_A"], written[f"{layer.name}_B"]
        assert left.dtype == right.dtype == dense[layer.name].dtype
        assert layer.name not in written
        tolerance = 1e-5 if left.dtype == np.float32 else 2e-3
        product = left.astype(np.float64) @ right.astype(np.float64)
        assert np.linalg.norm(product - dense[layer.name]) < tolerance * np.linalg.norm(product)
    # Other libraries would fill a model that has no matrices with random ones.
    assert not (tmp_path / "out" / "config.json").exists()
    assert 0 < result.ratio < 0.25


@pytest.mark.parametrize("error", [0.95, 0.8, 0.6])
def test_the_least_rank_that_meets_an_error_or_holds_an_energy(model, error):
    dense = load_file(model / "model.safetensors")
    for options in ({"error": error}, {"energy": 1 - error**2}):
        found = mpfast.compress(model, include=["a.weight", "noise.weight"], **options)
        assert [layer.rank for layer in found.layers] == [
            max(1, least_rank(dense[layer.name], error)) for layer in found.layers
        ]
        assert all(1 - layer.energy <= error**2 + 1e-6 for layer in found.layers)


def test_something_must_be_asked_for(model):
    for options, message in [
        ({}, "pass one of rank, energy .* and error"),
        ({"rank": "mp_edge"}, "is for the difference to a base"),
        ({"rank": 3, "energy": 0.5}, "do not go together"),
        ({"energy": 0.0}, r"energy must be a number in \(0, 1\]"),
        ({"energy": True}, "energy must be"),
        ({"error": 1.0}, r"error must be a number in \[0, 1\)"),
        ({"error": float("nan")}, "error must be"),
        ({"rank": 3, "format": "zip"}, "format must be one of dense, factors, lora"),
        ({"rank": 3, "format": "lora"}, "pass base"),
        ({"rank": 3, "base_id": "org/name"}, "pass base"),
    ]:
        with pytest.raises(ValueError, match=message):
            mpfast.compress(model, **options)
    with pytest.raises(ValueError, match="by itself"):
        mpfast.compress(model, base=model, format="dense")


def test_matrices_without_entries_that_count():
    zero = {"z.weight": np.zeros((64, 48), np.float32), "one.weight": np.ones((64, 48), np.float32)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for options in ({"rank": 2}, {"energy": 0.5}, {"error": 0.0}):
            found = mpfast.compress(zero, **options)
            assert all(np.isfinite(layer.energy) for layer in found.layers)
        assert [layer.rank for layer in found.layers] == [1, 1]


def test_a_name_that_a_factor_would_have_is_taken(tmp_path):
    model = {"a.weight": planted(2, (64, 64), 3), "a.weight_A": np.ones(3, np.float32)}
    with pytest.raises(ValueError, match=r"a.weight: cannot be split.* a.weight_A already"):
        mpfast.compress(model, tmp_path / "out", rank=2, format="factors")
    assert not list(tmp_path.iterdir())
    mpfast.compress(model, tmp_path / "out", rank=2)


def test_a_rank_that_would_not_pay(model):
    result = mpfast.compress(model, rank=100, exclude="noise*")
    assert {layer.name for layer in result.layers} == {"a.weight", "b.weight"}
    assert all(layer.rank == 100 for layer in result.layers)
    with pytest.raises(ValueError, match="rank 120 would take more entries"):
        mpfast.compress(model, rank=120)


@pytest.mark.parametrize("rank", [0, -1, "edge"])
def test_bad_ranks(model, rank):
    with pytest.raises(ValueError, match="rank must be"):
        mpfast.compress(model, rank=rank)


def test_shards_keep_their_names(tmp_path):
    (tmp_path / "model").mkdir()
    for part in range(2):
        save_file({f"{part}.weight": planted(2, (128, 96), 3, part)}, tmp_path / "model" / f"m-{part}.safetensors")
    mpfast.compress(tmp_path / "model", tmp_path / "out", rank=2, format="factors")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {f"{p}.weight_{f}": f"m-{p}.safetensors" for p in range(2) for f in "AB"}
    assert sum(row.size for row in mpfast.checkpoints.open_checkpoint(tmp_path / "out").tensors) == 4 * (128 + 96)


def tuned(model, tmp_path, rank=4):
    """A copy of the model with an update of low rank in two layers."""
    tensors = load_file(model / "model.safetensors")
    rng = np.random.default_rng(9)
    for name in ("a.weight", "b.weight"):
        m, n = tensors[name].shape
        update = rng.standard_normal((m, rank)) @ rng.standard_normal((rank, n)) / 10
        tensors[name] = (tensors[name] + update + 0.01 * rng.standard_normal((m, n))).astype(tensors[name].dtype)
    save_file(tensors, tmp_path / "tuned.safetensors")
    return tmp_path / "tuned.safetensors", tensors


def test_an_adapter_of_the_difference(model, tmp_path):
    path, tensors = tuned(model, tmp_path)
    result = mpfast.compress(path, tmp_path / "adapter", base=model)
    assert {layer.name: layer.rank for layer in result.layers} == {"a.weight": 4, "b.weight": 4}
    reasons = {tensor.name: tensor.reason for tensor in result.skipped}
    assert reasons["noise.weight"] == "equal in both checkpoints"
    base = load_file(model / "model.safetensors")
    adapter = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    update = adapter["base_model.model.a.lora_B.weight"] @ adapter["base_model.model.a.lora_A.weight"]
    change = tensors["a.weight"] - base["a.weight"]
    assert np.linalg.norm(update - change) < 0.1 * np.linalg.norm(change)


def test_peft_loads_the_adapter(model, tmp_path):
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    path, tensors = tuned(model, tmp_path)
    mpfast.compress(path, tmp_path / "adapter", base=model)
    base = load_file(model / "model.safetensors")
    network = torch.nn.ModuleDict({"a": torch.nn.Linear(192, 256), "b": torch.nn.Linear(256, 192)})
    with torch.no_grad():
        for name in ("a", "b"):
            network[name].weight.copy_(torch.from_numpy(base[f"{name}.weight"].astype(np.float32)))
    merged = peft.PeftModel.from_pretrained(network, tmp_path / "adapter").merge_and_unload()
    for name in ("a", "b"):
        before = np.linalg.norm(tensors[f"{name}.weight"].astype(np.float64) - base[f"{name}.weight"])
        after = np.linalg.norm(tensors[f"{name}.weight"].astype(np.float64) - merged[name].weight.detach().numpy())
        assert after < 0.2 * before


def test_bfloat16_factors_are_rounded(tmp_path):
    torch = pytest.importorskip("torch")
    W = torch.from_numpy(planted(4, (200, 160), 3)).bfloat16()
    mpfast.compress({"a.weight": W}, tmp_path / "out", rank=4, format="factors")
    from safetensors.torch import load_file as load_torch

    written = load_torch(tmp_path / "out" / "model.safetensors")
    assert written["a.weight_A"].dtype == torch.bfloat16
    U, s, Vh = torch.linalg.svd(W.double(), full_matrices=False)
    best = (U[:, :4] * s[:4]) @ Vh[:4]
    product = written["a.weight_A"].double() @ written["a.weight_B"].double()
    assert float((product - best).norm() / best.norm()) < 1e-2


def test_an_index_keeps_its_name_and_others_stay_behind(tmp_path):
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    weight_map = {f"{name}.weight": f"unet-{name}.safetensors" for name in "ab"}
    for name, file in weight_map.items():
        save_file({name: planted(2, (128, 96), 3)}, directory / file)
    index = directory / "unet.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    stale = {"weight_map": {"a.weight": "unet-fp16.safetensors"}}
    (directory / "unet.fp16.safetensors.index.json").write_text(json.dumps(stale))
    mpfast.compress(index, tmp_path / "out", rank=2, format="factors")
    assert [path.name for path in sorted((tmp_path / "out").glob("[!.]*.json"))] == [index.name]
    found = mpfast.checkpoints.open_checkpoint(tmp_path / "out")
    assert [info.name for info in found.tensors] == ["a.weight_A", "a.weight_B", "b.weight_A", "b.weight_B"]


def adapted(peft, network, directory):
    return peft.PeftModel.from_pretrained(network, directory).merge_and_unload()


@pytest.mark.parametrize("form", ["live", "directories", "files"])
@pytest.mark.parametrize("name", ["c_proj", "c_attn"])
def test_the_adapter_of_a_conv1d_is_the_right_way_round(form, name, tmp_path):
    """GPT-2 stores (in, out): one of the two matrices is square, so that no shape tells."""
    torch, transformers, peft = map(pytest.importorskip, ("torch", "transformers", "peft"))
    torch.manual_seed(0)
    options = {"n_embd": 64, "n_layer": 1, "n_head": 2, "vocab_size": 100, "n_positions": 32}
    base = transformers.GPT2LMHeadModel(transformers.GPT2Config(**options, bos_token_id=0, eos_token_id=0)).eval()
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        weight = getattr(tuned.transformer.h[0].attn, name).weight
        weight += torch.randn(len(weight), 2) @ torch.randn(2, weight.shape[1]) * 0.3
        tuned.transformer.ln_f.bias += 1
    models = {"base": base, "tuned": tuned}
    if form != "live":
        for key, model in models.items():
            model.save_pretrained(tmp_path / key)
        models = {key: tmp_path / key for key in models}
    if form == "files":  # nothing but the shapes of the other matrices tells
        for key, place in models.items():
            (place / "config.json").unlink()
            models[key] = place / "model.safetensors"
    result = mpfast.compress(models["tuned"], tmp_path / "a", base=models["base"], rank=2, base_id="org/base")
    merged = adapted(peft, copy.deepcopy(base), tmp_path / "a")
    change = (getattr(m.transformer.h[0].attn, name).weight for m in (merged, base, tuned))
    got, before, wanted = (weight.detach() for weight in change)
    # Ranks of 2 hold the whole update; the factors and their product are rounded to float32.
    assert torch.allclose(got - before, wanted - before, atol=1e-5)
    configuration = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert configuration["base_model_name_or_path"] == "org/base"
    assert configuration["task_type"] == (None if form == "files" else "CAUSAL_LM")
    assert configuration["fan_in_fan_out"] is True
    assert [tensor.name for tensor in result.not_in_adapter] == ["transformer.ln_f.bias"]


def test_a_square_matrix_of_unknown_orientation_is_left_out():
    square = {"h.0.attn.c_proj.weight": planted(2, (64, 64), 3), "fc.weight": planted(2, (64, 64), 3, 1)}
    base = {name: np.zeros((64, 64), np.float32) for name in square}
    result = mpfast.compress(square, base=base, rank=2)
    assert [layer.name for layer in result.layers] == ["fc.weight"]
    assert "neither its shape nor a config.json says" in result.skipped[0].reason
    assert result.not_in_adapter == result.skipped
    assert "fc.weight: taken to be stored as (out, in)" in result.notes[0]


def test_ranks_go_to_the_modules_that_they_are_for(tmp_path):
    """PEFT takes the first key that a module's name ends with: "fc" is the end of "inner.fc", too."""
    torch, peft = map(pytest.importorskip, ("torch", "peft"))
    shapes = {"fc": 2, "inner.fc": 5, "a.inner.fc": 3}
    torch.manual_seed(0)

    network = torch.nn.Module()
    network.fc = torch.nn.Linear(32, 40)
    network.inner = torch.nn.Module()
    network.inner.fc = torch.nn.Linear(32, 40)
    network.a = torch.nn.Module()
    network.a.inner = torch.nn.Module()
    network.a.inner.fc = torch.nn.Linear(32, 40)
    tuned = copy.deepcopy(network)
    with torch.no_grad():
        for name, rank in shapes.items():
            tuned.get_submodule(name).weight += torch.randn(40, rank) @ torch.randn(rank, 32)
    result = mpfast.compress(tuned, tmp_path / "a", base=network, error=1e-3)
    assert {layer.name.removesuffix(".weight"): layer.rank for layer in result.layers} == shapes
    configuration = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert not any(set("^$") & set(key) for key in configuration["rank_pattern"])
    merged = adapted(peft, copy.deepcopy(network), tmp_path / "a")
    for name in shapes:
        got, wanted = (model.get_submodule(name).weight for model in (merged, tuned))
        assert torch.allclose(got, wanted, atol=1e-4)
    assert configuration["base_model_name_or_path"] is None


@pytest.mark.parametrize(
    ("architecture", "more", "task"),
    [
        ("LlamaForCausalLM", {}, "CAUSAL_LM"),
        ("GPT2LMHeadModel", {}, "CAUSAL_LM"),
        ("BertForSequenceClassification", {}, "SEQ_CLS"),
        ("BertForTokenClassification", {}, "TOKEN_CLS"),
        ("BertForQuestionAnswering", {}, "QUESTION_ANS"),
        ("T5ForConditionalGeneration", {"is_encoder_decoder": True}, "SEQ_2_SEQ_LM"),
        ("LlavaForConditionalGeneration", {}, None),
        ("BertModel", {}, None),
    ],
)
def test_the_task_comes_from_the_architecture(architecture, more, task, tmp_path):
    for key, strength in (("base", 0), ("tuned", 3)):
        (tmp_path / key).mkdir()
        (tmp_path / key / "config.json").write_text(json.dumps({"architectures": [architecture], **more}))
        W = planted(2, (64, 48), 3) * (strength / 3)
        save_file({"x.weight": W.astype(np.float32)}, tmp_path / key / "model.safetensors")
    mpfast.compress(tmp_path / "tuned", tmp_path / "a", base=tmp_path / "base")
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["task_type"] == task


@pytest.mark.slow
def test_the_head_of_a_classifier_goes_along_whole(tmp_path):
    """PEFT takes no adapter of such a task without it."""
    torch, transformers, peft = map(pytest.importorskip, ("torch", "transformers", "peft"))
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 96}
    config = transformers.BertConfig(**sizes, vocab_size=120, num_labels=9)
    base = transformers.BertForSequenceClassification(config).eval()
    tuned = copy.deepcopy(base)
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if weight.dim() == 2 and "embed" not in name:
                weight += torch.randn(len(weight), 2) @ torch.randn(2, weight.shape[1]) * 0.1
        tuned.classifier.bias += 1
    base.save_pretrained(tmp_path / "base")
    tuned.save_pretrained(tmp_path / "tuned")
    result = mpfast.compress(tmp_path / "tuned", tmp_path / "a", base=tmp_path / "base", rank=2)
    assert result.not_in_adapter == ()
    merged = adapted(peft, copy.deepcopy(base), tmp_path / "a")
    for name, wanted in tuned.state_dict().items():
        assert torch.allclose(merged.state_dict()[name], wanted, atol=1e-5), name


def tiny(kind, torch, transformers):
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    if kind == "bert":
        return transformers.BertModel(transformers.BertConfig(**sizes, vocab_size=120)).eval()
    if kind == "gpt2":
        return transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_embd=48, n_layer=2, n_head=4, vocab_size=120, n_positions=32)
        ).eval()
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, vocab_size=120)).eval()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_what_is_written_loads_with_the_truncated_weights(kind, tmp_path):
    torch, transformers = map(pytest.importorskip, ("torch", "transformers"))
    model = tiny(kind, torch, transformers)
    model.save_pretrained(tmp_path / "model", max_shard_size="60KB" if kind == "llama" else "5GB")
    result = mpfast.compress(tmp_path / "model", tmp_path / "dense", rank=8)
    assert len(result.layers) >= 8
    loaded, missing = type(model).from_pretrained(tmp_path / "dense", output_loading_info=True)
    assert not missing["missing_keys"]
    assert not missing["unexpected_keys"]
    ranks = {layer.name for layer in result.layers}
    for name, before in model.state_dict().items():
        # 8 of 48 singular values: matrices of this size are decomposed by LAPACK, in float64.
        wanted = truncated(before.numpy(), 8) if name in ranks else before.numpy()
        np.testing.assert_allclose(loaded.state_dict()[name].numpy(), wanted, atol=1e-6)
    mpfast.compress(tmp_path / "model", tmp_path / "factors", rank=8, format="factors")
    with pytest.raises((OSError, ValueError), match=r"config\.json"):
        transformers.AutoModel.from_pretrained(tmp_path / "factors")
    from mpfast.integrations.torch import LowRankPair, load_factors

    other = load_factors(tiny(kind, torch, transformers), tmp_path / "factors").eval()
    assert sum(isinstance(module, LowRankPair) for module in other.modules()) == len(ranks)
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        ours, theirs = (m(tokens, return_dict=True)[0] for m in (other, loaded.eval()))
    # Products in another order, rounded to float32 in a few layers.
    assert torch.allclose(ours, theirs, atol=1e-4 * float(theirs.abs().max()))


def test_a_quantised_base_has_no_difference():
    model = {name: planted(2, (128, 96), 3) for name in ("a.weight", "b.weight")}
    base = {"a.weight": np.zeros((128, 96), np.int8), "b.weight": np.zeros((128, 96), np.float32)}
    result = mpfast.compress(model, base=base)
    assert [layer.name for layer in result.layers] == ["b.weight"]
    assert result.skipped[0].reason == "integer or quantised: has no difference"


class TestVerify:
    """What is written is what the mark says: by hashes, by ranks, and by the distance from the source."""

    @pytest.mark.parametrize("format", ["dense", "factors"])
    @pytest.mark.parametrize("options", [{"rank": 12}, {"error": 0.9}, {"energy": 0.3}])
    def test_what_was_written_verifies(self, format, options, model, tmp_path):
        result = mpfast.compress(model, tmp_path / "out", format=format, **options)
        found = mpfast.verify(tmp_path / "out")
        assert found.problems == ()
        assert (found.command, found.layers) == ("compress", len(result.layers))
        assert found.source == str(model / "model.safetensors")
        assert found.untouched == 5 - len(result.layers)
        model.rename(tmp_path / "moved")
        alone = mpfast.verify(tmp_path / "out")
        assert (alone.ok, alone.source, alone.untouched) == (True, None, found.untouched)
        assert "it is not at hand" in alone.not_compared[0]
        assert mpfast.verify(tmp_path / "out", tmp_path / "moved").ok

    @pytest.mark.parametrize("kind", ["bfloat16", "float16", "float32", "float64"])
    @pytest.mark.parametrize("format", ["dense", "factors"])
    def test_every_type(self, kind, format, tmp_path):
        torch = pytest.importorskip("torch")
        torch.manual_seed(0)
        dtype = getattr(torch, kind)
        state = {"a.weight": torch.randn(96, 64).to(dtype), "c.weight": torch.randn(32, 16, 3, 3).to(dtype) * 1e-6}
        state |= {"z.weight": torch.zeros(64, 64).to(dtype), "n": torch.arange(5)}
        mpfast.compress(state, tmp_path / "out", rank=9, format=format)
        found = mpfast.verify(tmp_path / "out", state)
        assert (found.problems, found.layers, found.untouched) == ((), 3, 1)

    @pytest.mark.parametrize("format", ["dense", "factors"])
    def test_what_is_wrong_is_found(self, format, model, tmp_path):
        mpfast.compress(model, tmp_path / "out", rank=12, format=format)
        file = tmp_path / "out" / "model.safetensors"
        tensors = load_file(file)
        metadata = SafetensorsFile(file).metadata
        name = "a.weight" if format == "dense" else "a.weight_A"

        def problems(changes, source=model):
            save_file({**tensors, **changes}, file, metadata)
            return " | ".join(mpfast.verify(tmp_path / "out", source).problems)

        assert problems({}) == ""
        touched = tensors[name].copy()
        touched[0, 0] += 1e-6
        assert problems({name: touched}) == f"{name}: its content hash is not that of what was written"
        assert "a.weight: has NaN" in problems({name: np.full_like(touched, np.nan)})
        assert "away from the source" in problems({name: -tensors[name]})
        assert problems({"a.bias": tensors["a.bias"] + 1}) == "a.bias: is not factored, but differs from the source"
        assert "names, shapes or types" in problems({"more": np.ones(3, np.float32)})
        if format == "dense":
            full = np.random.default_rng(0).standard_normal(touched.shape).astype(np.float32)
            assert "a.weight: is of a rank larger than 12" in problems({name: full})
        dense = load_file(model / "model.safetensors")
        edited = {**dense, "a.weight": dense["a.weight"] * np.float32(1 + 1e-6)}
        assert "a.weight: the source is not the one that was factored" in problems({}, edited)

    def test_an_adapter_is_refused_and_a_damaged_mark_named(self, model, tmp_path):
        base = {name: np.zeros_like(tensor) for name, tensor in load_file(model / "model.safetensors").items()}
        mpfast.compress(model, tmp_path / "adapter", base=base)
        with pytest.raises(ValueError, match="LoRA adapter"):
            mpfast.verify(tmp_path / "adapter")
        mpfast.compress(model, tmp_path / "out", rank=12)
        mark = json.loads((tmp_path / "out" / ".mpfast.json").read_text())
        for change in ({"layers": 5}, {"layers": [{}]}, {"written": None}, {"format": "x"}):
            (tmp_path / "out" / ".mpfast.json").write_text(json.dumps({**mark, **change}))
            with pytest.raises(CheckpointError, match=r"\.mpfast\.json"):
                mpfast.verify(tmp_path / "out")
