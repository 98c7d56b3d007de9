"""Resized adapters as PEFT and diffusers load them: what they compute, and at which scales."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mpfast

from .adapters import ROUNDING, falling, product, tree, truncated
from .tiny_models import adalora


@pytest.fixture(scope="module")
def peft():
    return pytest.importorskip("peft")


def tiny(torch):
    """A model with what PEFT adapts: an embedding, a convolution, linear layers and fused experts."""

    class Experts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.up = torch.nn.Parameter(torch.randn(3, 16, 20) / 4)
            self.down = torch.nn.Parameter(torch.randn(3, 20, 16) / 4)

        def forward(self, x):
            return sum(x @ self.up[expert] @ self.down[expert] for expert in range(3))

    class Tiny(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = torch.nn.Embedding(30, 24)
            self.conv = torch.nn.Conv1d(24, 20, 3)
            self.fc = torch.nn.Linear(20, 16)
            self.experts = Experts()

        def forward(self, tokens):
            hidden = self.conv(self.embed(tokens).transpose(1, 2)).transpose(1, 2)
            return self.experts(self.fc(hidden))

    torch.manual_seed(0)
    return Tiny()


LORA = {"r": 8, "lora_alpha": 4, "target_modules": ["embed", "conv", "fc"]}
EXPERTS = {"target_parameters": ["experts.up", "experts.down"]}


@pytest.mark.parametrize(
    "config",
    [
        LORA,
        {**LORA, "use_rslora": True, "rank_pattern": {"fc": 6}, "alpha_pattern": {"conv": 5}},
        {**LORA, **EXPERTS},
        {**LORA, **EXPERTS, "rank_pattern": {"experts.up": 4, "experts.down": 4}},
        {**LORA, "bias": "lora_only", "target_modules": ["fc", "conv"]},
        {**LORA, "use_dora": True},
    ],
)
@pytest.mark.parametrize("options", [{"rank": 3}, {"error": 0.35}])
def test_peft_loads_what_is_written_and_computes_with_the_truncated_products(peft, tmp_path, config, options):
    import torch

    base = tiny(torch)
    model = peft.get_peft_model(copy.deepcopy(base), peft.LoraConfig(**config))
    for name, parameter in model.named_parameters():
        if "lora_" in name and "magnitude" not in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "a")
    result = mpfast.resize(tmp_path / "a", tmp_path / "out", **options)
    assert (tmp_path / "out" / "README.md").is_file()
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "out")
    reports = {layer.name.removesuffix(".lora"): layer for layer in result.layers}
    ranks = {}
    for name, module in loaded.named_modules():
        if not hasattr(module, "get_delta_weight"):
            continue
        ranks[name] = module.r["default"]
        assert reports[name].rank == ranks[name]
        if not config.get("use_dora"):
            # The update of the source, cut by NumPy, in the place of the one that was loaded.
            source = dict(model.named_modules())[name]
            whole = source.get_delta_weight("default").detach().double()
            found = module.get_delta_weight("default").detach().double()
            matrices = [
                part.numpy() for part in (whole if whole.ndim == 3 and "experts" in name else [whole.flatten(1)])
            ]
            cut = np.stack([truncated(W, ranks[name]) for W in matrices]).reshape(found.shape)
            norm = np.linalg.norm(whole)
            assert np.linalg.norm(found.numpy() - cut) <= 4 * ROUNDING * norm
            assert reports[name].error == pytest.approx(float((found - whole).norm()) / norm, rel=1e-3, abs=1e-5)
    # The same forward pass as of the source with the truncated factors in it.
    with torch.no_grad():
        for name, module in model.named_modules():
            if name in ranks:
                cut_in_place(torch, module, ranks[name], reports[name].experts)
        tokens = torch.arange(30).reshape(3, 10)
        torch.testing.assert_close(loaded(tokens), model(tokens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("alpha", [6, 0])
@pytest.mark.parametrize("options", [{"rank": 3}, {"error": 0.5}])
def test_peft_loads_resized_adapters_of_adalora(peft, tmp_path, alpha, options):
    base, model = adalora(lora_alpha=alpha)
    model.save_pretrained(tmp_path / "a")
    whole = {name: delta_of(module) for name, module in updated(base, peft, tmp_path / "a")}
    result = mpfast.resize(tmp_path / "a", tmp_path / "out", **options)
    reports = {layer.name.split(".")[-2]: layer for layer in result.layers}
    assert {name: layer.old_rank for name, layer in reports.items()} == {"conv": 3, "fc": 2, "head": 5}
    for name, module in updated(base, peft, tmp_path / "out"):
        rank = module.r["default"]
        assert rank == reports[name].rank
        found = delta_of(module)
        norm = np.linalg.norm(whole[name])
        assert np.linalg.norm(found - truncated(whole[name], rank)) <= 4 * ROUNDING * norm
        assert reports[name].error == pytest.approx(np.linalg.norm(found - whole[name]) / norm, rel=1e-3, abs=1e-5)
    again = mpfast.resize(tmp_path / "out", tmp_path / "again", rank=2)
    ranks = {name: min(layer.rank, 2) for name, layer in reports.items()}
    assert {layer.name.split(".")[-2]: layer.rank for layer in again.layers} == ranks
    assert {name: module.r["default"] for name, module in updated(base, peft, tmp_path / "again")} == ranks


def updated(base, peft, place):
    """The modules that PEFT updates when it loads an adapter, by name."""
    import torch

    modules = peft.PeftModel.from_pretrained(torch.nn.ModuleDict(copy.deepcopy(base)), place).named_modules()
    return [(name.rpartition(".")[2], module) for name, module in modules if hasattr(module, "get_delta_weight")]


def delta_of(module):
    return module.get_delta_weight("default").detach().double().flatten(1).numpy()


def cut_in_place(torch, module, rank, experts):
    """Set all but the first triplets of the products to zero, the ranks as they were."""
    embedding = "default" in getattr(module, "lora_embedding_A", {})
    pair = (module.lora_embedding_A, module.lora_embedding_B) if embedding else (module.lora_A, module.lora_B)
    A, B = (one["default"] if embedding else one["default"].weight for one in pair)
    first = A.double().reshape(experts, -1, A[0].numel())
    second = B.double().reshape(len(B), -1, experts).permute(2, 0, 1)
    U, s, Vh = torch.linalg.svd(second @ first, full_matrices=False)
    keep = torch.arange(s.shape[-1]) < rank
    root, inner = (s * keep).sqrt(), first.shape[1]
    A.copy_((root[..., None] * Vh)[:, :inner].reshape(A.shape))
    B.copy_((U * root[:, None])[..., :inner].permute(1, 2, 0).reshape(B.shape))


@pytest.mark.slow
@pytest.mark.parametrize("noted", [False, True])
@pytest.mark.parametrize("options", [{"rank": 5}, {"error": 0.35}])
def test_diffusers_loads_what_is_written_at_the_same_scales(tmp_path, noted, options):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")

    def transformer():
        torch.manual_seed(0)
        sizes = {"caption_projection_dim": 32, "joint_attention_dim": 32, "pooled_projection_dim": 32}
        heads = {"attention_head_dim": 8, "num_attention_heads": 4, "num_layers": 1}
        return diffusers.SD3Transformer2DModel(
            sample_size=8, patch_size=1, in_channels=4, out_channels=4, **heads, **sizes
        )

    model = {}
    for number, (name, rank) in enumerate((("to_q", 8), ("to_k", 8), ("to_v", 4))):
        A, B = falling(32, 32, rank, seed=number)
        module = f"transformer.transformer_blocks.0.attn.{name}"
        model |= {f"{module}.lora_A.weight": A, f"{module}.lora_B.weight": B}
    entry = {"r": 8, "lora_alpha": 2, "rank_pattern": {"to_v": 4}, "target_modules": ["to_q", "to_k", "to_v"]}
    text = json.dumps({f"transformer.{key}": value for key, value in entry.items()})
    header = {"format": "pt"} | ({"lora_adapter_metadata": text} if noted else {})
    save_file(model, tmp_path / "style.safetensors", header)
    result = mpfast.resize(tmp_path / "style.safetensors", tmp_path / "out", **options)
    loaded = transformer()
    loaded.load_lora_adapter(str(tmp_path / "out"), prefix="transformer", weight_name="style.safetensors")
    modules = dict(loaded.named_modules())
    for layer in result.layers:
        name = layer.name.removesuffix(".lora")
        W = product(model[f"{name}.lora_A.weight"], model[f"{name}.lora_B.weight"]) * (
            2 / layer.old_rank if noted else 1
        )
        module = modules[name.removeprefix("transformer.")]
        found = module.get_delta_weight(next(iter(module.lora_A))).detach().double().numpy()
        assert np.linalg.norm(found - truncated(W, layer.rank)) <= 4 * ROUNDING * np.linalg.norm(W)


def test_an_adapter_of_torch_files_becomes_one_of_safetensors(peft, tmp_path):
    import torch

    model = peft.get_peft_model(tiny(torch), peft.LoraConfig(**LORA))
    model.save_pretrained(tmp_path / "a")
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    torch.save({name: torch.from_numpy(tensor) for name, tensor in tensors.items()}, tmp_path / "a/adapter_model.bin")
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    mpfast.resize(tmp_path / "a", tmp_path / "out", rank=2)
    assert peft.PeftModel.from_pretrained(tiny(torch), tmp_path / "out").peft_config["default"].r == 2
    assert "adapter_model.bin" not in tree(tmp_path / "out")
