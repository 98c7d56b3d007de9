"""Low-rank checkpoints and LoRA adapters."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mpfast


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


def test_factors_at_the_edge(model, tmp_path):
    result = mpfast.compress(model, tmp_path / "out")
    assert {layer.name: layer.rank for layer in result.layers} == {"a.weight": 5, "b.weight": 3}
    dense = load_file(model / "model.safetensors")
    written = load_file(tmp_path / "out" / "model.safetensors")
    for layer in result.layers:
        left, right = written[f"{layer.name}_A"], written[f"{layer.name}_B"]
        assert left.dtype == right.dtype == dense[layer.name].dtype
        U, s, Vh = np.linalg.svd(dense[layer.name].astype(np.float64), full_matrices=False)
        best = (U[:, : layer.rank] * s[: layer.rank]) @ Vh[: layer.rank]
        tolerance = 1e-5 if left.dtype == np.float32 else 2e-3
        product = left.astype(np.float64) @ right.astype(np.float64)
        assert np.linalg.norm(product - best) < tolerance * np.linalg.norm(best)
        assert layer.energy == pytest.approx((s[: layer.rank] ** 2).sum() / (s**2).sum(), rel=1e-4)
        assert layer.name not in written
    for name in ("embed.weight", "a.bias", "noise.weight"):
        np.testing.assert_array_equal(written[name], dense[name])
    reasons = {tensor.name: tensor.reason for tensor in result.skipped}
    assert "no singular value above" in reasons["noise.weight"]
    assert "embedding" in reasons["embed.weight"]
    assert (tmp_path / "out" / "config.json").exists()
    assert 0 < result.ratio < 0.1


def test_a_rank_that_would_not_pay(model):
    result = mpfast.compress(model, rank=100)
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
    mpfast.compress(tmp_path / "model", tmp_path / "out")
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
    mpfast.compress({"a.weight": W}, tmp_path / "out")
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
    mpfast.compress(index, tmp_path / "out", rank=2)
    assert [path.name for path in sorted((tmp_path / "out").glob("*.json"))] == ["config.json", index.name]
    found = mpfast.checkpoints.open_checkpoint(tmp_path / "out")
    assert [info.name for info in found.tensors] == ["a.weight_A", "a.weight_B", "b.weight_A", "b.weight_B"]


def test_a_quantised_base_has_no_difference():
    model = {name: planted(2, (128, 96), 3) for name in ("a.weight", "b.weight")}
    base = {"a.weight": np.zeros((128, 96), np.int8), "b.weight": np.zeros((128, 96), np.float32)}
    result = mpfast.compress(model, base=base)
    assert [layer.name for layer in result.layers] == ["b.weight"]
    assert result.skipped[0].reason == "integer or quantised: has no difference"
