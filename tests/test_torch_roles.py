"""What weights of live PyTorch models are, by the classes of their modules, alone and in families of transformers."""

from __future__ import annotations

import pytest

import mpfast
from mpfast.checkpoints import open_checkpoint, roles_of, select_layers

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from mpfast.integrations.torch import SecondMoments, split_modules  # noqa: E402


class Scaled(nn.Linear):
    """A subclass with a forward of its own."""

    def forward(self, x):
        return 2 * super().forward(x)


class Turned(nn.Linear):
    """A subclass that multiplies with the transposed weight."""

    def forward(self, x):
        return x @ self.weight


class Named(nn.Linear):
    """A subclass with nothing of its own."""


class Standardised(nn.Conv2d):
    """A subclass that changes the weight on its way to the parent's method."""

    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight - weight.mean(), bias)


class Doubled(nn.Embedding):
    """A subclass with a look-up of its own."""

    def forward(self, x):
        return 2 * self.weight[x]


class Buffered(nn.Module):
    def __init__(self):
        super().__init__()
        self.loose = nn.Parameter(torch.randn(32, 32))
        self.proj = nn.Parameter(torch.randn(32, 32))
        self.weight = nn.Parameter(torch.randn(32, 24))
        self.register_buffer("table", torch.randn(32, 32))


# Module, name of the parameter, kind, axes of the inputs, parts.
MODULES = [
    (lambda: nn.Linear(32, 48), "weight", "linear", (1,), 0),
    (lambda: Scaled(32, 48), "weight", "linear", (1,), 0),
    (lambda: Named(32, 48), "weight", "linear", (1,), 0),
    (lambda: Turned(32, 48), "weight", "linear", (), 0),
    (lambda: Standardised(16, 32, 3), "weight", "conv", (), 0),
    (lambda: Doubled(48, 32), "weight", "embedding", (), 0),
    (lambda: nn.Embedding(48, 32), "weight", "embedding", (1,), 0),
    (lambda: nn.EmbeddingBag(48, 32), "weight", "embedding", (1,), 0),
    (lambda: nn.Conv1d(16, 32, 9), "weight", "conv", (1, 2), 0),
    (lambda: nn.Conv2d(16, 32, 3, groups=4), "weight", "conv", (1, 2, 3), 0),
    (lambda: nn.Conv3d(8, 16, 3), "weight", "conv", (1, 2, 3, 4), 0),
    (lambda: nn.ConvTranspose1d(16, 32, 9), "weight", "conv_transposed", (0,), 0),
    (lambda: nn.ConvTranspose2d(16, 32, 3), "weight", "conv_transposed", (0,), 0),
    (lambda: nn.Bilinear(12, 8, 16), "weight", "linear", (1, 2), 0),
    (lambda: nn.LSTM(24, 16), "weight_ih_l0", "linear", (1,), 4),
    (lambda: nn.GRU(24, 16), "weight_hh_l0", "linear", (1,), 3),
    (lambda: nn.RNN(24, 16), "weight_ih_l0", "linear", (1,), 0),
    (lambda: nn.LSTMCell(24, 16), "weight_ih", "linear", (1,), 4),
    (lambda: nn.MultiheadAttention(32, 4), "in_proj_weight", "linear", (1,), 3),
    (lambda: nn.MultiheadAttention(32, 4, kdim=16, vdim=16), "k_proj_weight", "linear", (1,), 0),
    (lambda: nn.MultiheadAttention(32, 4, add_bias_kv=True), "bias_k", "vector", (), 0),
    (lambda: nn.LayerNorm((16, 32)), "weight", "vector", (), 0),
    (Buffered, "table", "buffer", (), 0),
    (Buffered, "loose", "unknown", (), 0),
    (Buffered, "proj", "linear", (), 0),
    (Buffered, "weight", "linear", (), 0),
]


@pytest.mark.parametrize(("make", "name", "kind", "axes", "parts"), MODULES)
def test_classes_of_modules(make, name, kind, axes, parts):
    role = roles_of(open_checkpoint(nn.ModuleDict({"x": make()})))[f"x.{name}"]
    assert (role.kind, role.input_axes, len(role.parts)) == (kind, axes, parts)
    assert role.source == ("name" if isinstance(make(), Buffered) and name != "table" else "module class")
    assert roles_of(open_checkpoint(make()))[name].kind == kind


def test_a_subclass_that_multiplies_in_its_own_way_gets_no_pattern():
    model = nn.Sequential(Turned(32, 32), nn.Linear(32, 32))
    result = mpfast.prune(model, pattern="2:4")
    assert [row.name for row in result.budget] == ["1.weight"]
    assert "not known" in {tensor.name: tensor.reason for tensor in result.skipped}["0.weight"]
    assert len(mpfast.prune(model, sparsity=0.5, method="magnitude").budget) == 2


@pytest.mark.slow
def test_what_a_mamba_model_computes_its_decays_from_is_no_layer(transformers):
    config = transformers.MambaConfig(hidden_size=64, num_hidden_layers=1, vocab_size=100)
    names = [row.name for row in mpfast.analyze(transformers.MambaForCausalLM(config))]
    assert any(name.endswith("in_proj.weight") for name in names)
    assert not any("A_log" in name for name in names)


@pytest.mark.slow
def test_the_experts_of_a_live_dbrx_model(transformers):
    ffn = {"moe_num_experts": 4, "ffn_hidden_size": 48, "moe_top_k": 2}
    config = transformers.DbrxConfig(d_model=64, n_heads=4, n_layers=1, vocab_size=100, ffn_config=ffn)
    config.attn_config.rope_theta = 10000.0
    rows = [row for row in mpfast.analyze(transformers.DbrxForCausalLM(config)) if ".experts." in row.name]
    assert len(rows) == 12
    assert {row.shape for row in rows} == {(48, 64)}


def test_the_gates_of_a_recurrent_layer_are_found_from_its_file_too():
    lstm = nn.LSTM(24, 16)
    live, stored = (mpfast.analyze(model) for model in (lstm, lstm.state_dict()))
    assert [row.name for row in live] == [row.name for row in stored]
    assert live[0].name == "weight_ih_l0[input]"
    assert live[1].fro_norm == pytest.approx(float(lstm.weight_ih_l0[16:32].norm()), rel=1e-5)


def test_split_layers_have_a_weight_for_those_who_read_it():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(96, 4, 192, batch_first=True).eval()
    small, report = split_modules(layer, 8)
    assert "itself" in report["self_attn.out_proj"]
    assert report["linear1"] == "rank 8 of 96"
    x = torch.randn(2, 10, 96)
    # The same layer with the products in place of the factors: what the fast path of PyTorch reads.
    for name in ("linear1", "linear2"):
        split = small.get_submodule(name)
        assert (split.in_features, split.out_features) == tuple(reversed(split.weight.shape))
        with torch.no_grad():
            layer.get_submodule(name).weight.copy_(split.weight)
            assert layer.get_submodule(name).bias.equal(split.bias)
    expected = layer(x).detach()
    torch.testing.assert_close(small(x), expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():  # the fast path
        torch.testing.assert_close(small(x), expected, rtol=1e-4, atol=1e-5)
    conv, _ = split_modules(nn.Sequential(nn.Conv2d(8, 16, 3)), 2)
    assert conv[0].weight.shape == (16, 8, 3, 3)


transformers_config = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
GROUPED = {**transformers_config, "num_key_value_heads": 2}
EXPERTS = {**GROUPED, "moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}
IMAGE = {"image_size": 32, "patch_size": 8}
TOKENS = {"bos_token_id": 0, "eos_token_id": 0}
GPT2 = {"n_embd": 64, "n_layer": 1, "n_head": 2, "vocab_size": 100, "n_positions": 32, **TOKENS}


OSS = {**GROUPED, "num_local_experts": 4, "head_dim": 16}
T5 = {"d_model": 64, "d_ff": 128, "num_layers": 1, "num_heads": 2, "d_kv": 32, "vocab_size": 100}
FAMILIES = {
    "BertForMaskedLM": transformers_config,
    "GPT2LMHeadModel": GPT2,
    "LlamaForCausalLM": GROUPED,
    "Qwen2MoeForCausalLM": EXPERTS,
    "Qwen3MoeForCausalLM": {**EXPERTS, "head_dim": 16},
    "T5ForConditionalGeneration": {**T5, "decoder_start_token_id": 0},
    "ViTForImageClassification": {**transformers_config, **IMAGE},
    "Phi3ForCausalLM": GROUPED,
    "GptOssForCausalLM": OSS,
}


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_families_of_transformers_on_disk_and_live(name, transformers, tmp_path):
    """What the modules say is what the files say: kinds, axes and parts, wherever the names are the same."""
    model_class = getattr(transformers, name)
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**FAMILIES[name])).eval()
    model.save_pretrained(tmp_path / "m")
    live, stored = open_checkpoint(model), open_checkpoint(tmp_path / "m")
    assert live.config["model_type"] == stored.config["model_type"]
    by_module, by_file = roles_of(live), roles_of(stored)
    common = [key for key in by_file if key in by_module and by_module[key].kind != "alias"]
    assert len(common) >= 4
    for key in common:
        mine, theirs = by_module[key], by_file[key]
        assert (mine.kind, mine.parts) == (theirs.kind, theirs.parts), key
        routed = key.endswith(".gate.weight")  # of a class that multiplies in its own way, which its file does not say
        assert mine.input_axes == (() if routed else theirs.input_axes), key
    assert all(role.kind != "unknown" for role in by_file.values())
    embeddings = [key for key, role in by_file.items() if role.kind == "embedding" and "position" not in key]
    assert embeddings
    # Every projection of a block is a layer, whose pattern runs along its inputs: those of the modules.
    result = mpfast.prune(tmp_path / "m", pattern="2:4")
    assert {row.name for row in result.budget}.isdisjoint(embeddings)
    for module_name, module in model.named_modules():
        key = f"{module_name}.weight"
        row = next((row for row in result.budget if row.name == key), None)
        if row is not None and isinstance(module, nn.Linear):
            assert row.shape[row.input_axes[0]] == module.in_features


@pytest.mark.slow
def test_parts_of_transformers_models(transformers):
    config = transformers.Phi3Config(**GROUPED)
    model = transformers.Phi3ForCausalLM(config)
    layers, *_ = select_layers(open_checkpoint(model), None, None)
    assert all("[" not in layer.name for layer in layers)
    names = [row.name for row in mpfast.analyze(model, include="*qkv_proj*")]
    assert [name.partition("[")[2] for name in names] == ["query]", "key]", "value]"]
    gpt = transformers.GptOssForCausalLM(transformers.GptOssConfig(**OSS))
    row = mpfast.analyze(gpt, include="*gate_up_proj")[1]
    W = gpt.model.layers[0].mlp.experts.gate_up_proj[0][:, 1::2]
    assert row.name.endswith("[0,up]")
    assert row.fro_norm == pytest.approx(float(W.norm()), rel=1e-5)
    t5 = transformers.T5ForConditionalGeneration(transformers.T5Config(**T5, decoder_start_token_id=0)).eval()
    small, report = split_modules(t5, 4)
    assert any(text.startswith("rank 4") for text in report.values())
    tokens = torch.arange(5)[None]
    assert small(input_ids=tokens, decoder_input_ids=tokens).logits.isfinite().all()


@pytest.mark.slow
def test_a_live_adapter(transformers):
    peft = pytest.importorskip("peft")
    base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**GROUPED))
    model = peft.get_peft_model(base, peft.LoraConfig(r=8, target_modules=["q_proj"]))
    analysis = mpfast.analyze(model)
    assert {row.kind for row in analysis if ".lora" in row.name} == {"lora"}
    result = mpfast.prune(model, sparsity=0.5)
    assert result.budget.pruned > 0
    assert not any("lora" in row.name for row in result.budget)


def test_second_moments_name_what_they_do_not_watch():
    model = nn.Sequential(nn.Linear(16, 16), nn.Conv1d(16, 16, 3))
    assert "not watched" in SecondMoments(model).skipped["1"]


def test_models_of_torchscript_are_read_by_their_names():
    model = torch.jit.script(nn.Sequential(nn.Linear(32, 32), nn.ReLU()))
    assert [row.name for row in mpfast.analyze(model)] == ["0.weight"]


@pytest.mark.parametrize("names", [("q.lora_A.weight", "q.lora_B.weight"), ("lm_head.weight", "embed.weight")])
def test_a_report_without_a_layer_to_prune(names):
    first, second = torch.randn(16, 64), torch.randn(64, 16)
    assert "<html" in mpfast.analyze(dict(zip(names, (first, second), strict=True))).to_html()


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "int8"])
def test_a_module_whose_weight_is_of_a_type_that_is_not_read_is_left_alone(dtype):
    """Some store single layers in eight bits, with the scale elsewhere or none: others are pruned all the same."""
    model = nn.Sequential(nn.Linear(64, 48), nn.Linear(48, 40), nn.Conv2d(16, 16, 3))
    for module in (model[1], model[2]):
        module.weight = nn.Parameter(module.weight.detach().to(getattr(torch, dtype)), requires_grad=False)
    before = model[1].weight.clone()
    analysis = mpfast.analyze(model, progress=False)
    assert [row.name for row in analysis] == ["0.weight"]
    reasons = {tensor.name: tensor.reason for tensor in analysis.skipped}
    assert ("never cast" if dtype.startswith("float8") else "integer") in reasons["1.weight"]
    result = mpfast.prune(model, sparsity=0.5, progress=False)
    assert [row.name for row in result.budget] == ["0.weight"]
    assert torch.equal(model[1].weight.view(torch.uint8), before.view(torch.uint8))
