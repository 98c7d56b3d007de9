"""What live PyTorch modules say of their weights, and state dictionaries of parametrised ones."""

from __future__ import annotations

import io
import json
from collections import Counter

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mpfast
from mpfast.checkpoints import WHOLE, open_checkpoint, roles_of, select_layers
from mpfast.checkpoints.safetensors import SafetensorsFile
from mpfast.checkpoints.torch_state import TorchState

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations, parametrize, prune  # noqa: E402

from mpfast.integrations.torch import SecondMoments, hold, prunable_modules, split_modules  # noqa: E402


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


def parametrised():
    """Modules whose weight is not what is stored, with the weight that they compute with."""
    torch.manual_seed(0)
    pruned = nn.Linear(32, 48)
    prune.l1_unstructured(pruned, "weight", 0.3)
    held = hold(nn.Linear(32, 48), {"weight": torch.rand(48, 32) > 0.4})
    return {
        "pruned": pruned,
        "held": held,
        "normed": parametrizations.weight_norm(nn.Linear(32, 48)),
        "normed along inputs": parametrizations.weight_norm(nn.Conv1d(16, 32, 9), dim=1),
        "normed, old": nn.utils.weight_norm(nn.Linear(32, 48)),
        "spectral": parametrizations.spectral_norm(nn.Linear(32, 48)),
        "spectral, old": nn.utils.spectral_norm(nn.Linear(32, 48)),
        "orthogonal": parametrizations.orthogonal(nn.Linear(32, 48)),
    }


def matrix(weight):
    return weight.detach().reshape(len(weight), -1).double().numpy()


@pytest.mark.parametrize("case", parametrised())
def test_weights_are_read_as_the_model_computes_with_them(case):
    module = parametrised()[case]
    model = nn.ModuleDict({"x": module})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    (row,) = mpfast.analyze(model)
    # A step of power iteration that the forward pass takes in training is not taken here.
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    model.eval()
    if "old" in case:
        next(iter(module._forward_pre_hooks.values()))(module, None)
    assert (row.name, row.tensor_shape) == ("x.weight", tuple(module.weight.shape))
    assert row.fro_norm == pytest.approx(np.linalg.norm(matrix(module.weight)), rel=1e-5)


@pytest.mark.parametrize("case", ["pruned", "held", "normed", "normed along inputs", "normed, old"])
def test_so_are_their_state_dictionaries(case, tmp_path):
    module = parametrised()[case]
    model = nn.ModuleDict({"x": module})
    torch.save(model.state_dict(), tmp_path / "m.pt")
    (row,) = mpfast.analyze(tmp_path / "m.pt")
    assert (row.name, row.tensor_shape) == ("x.weight", tuple(module.weight.shape))
    assert row.fro_norm == pytest.approx(np.linalg.norm(matrix(module.weight)), rel=1e-5)


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("case", ["pruned", "held"])
def test_pruning_counts_what_a_mask_prunes_already(case, live, tmp_path):
    module = parametrised()[case]
    model = nn.Sequential(module, nn.Linear(48, 32))
    result = mpfast.prune(model if live else model.state_dict(), tmp_path / "out", sparsity=0.6, method="uniform")
    rows = {row.name: row for row in result.budget}
    assert set(rows) == {"0.weight", "1.weight"}
    assert rows["0.weight"].sparsity == pytest.approx(0.6, abs=1e-3)
    assert set(result.masks) == set(rows)
    assert isinstance(result.masks["0.weight"], torch.Tensor)
    assert mpfast.verify(tmp_path / "out").ok
    written = load_file(tmp_path / "out" / "model.safetensors")
    state = model.state_dict()
    assert list(written) == list(state)
    dense = module.weight.detach().clone()
    model.load_state_dict({name: torch.from_numpy(array) for name, array in written.items()})
    if case == "pruned":
        next(iter(module._forward_pre_hooks.values()))(module, None)
    assert float((module.weight == 0).float().mean()) == pytest.approx(0.6, abs=1e-3)
    assert module.weight.equal(dense * result.masks["0.weight"])
    budget = mpfast.analyze(model).budget(0.7)
    assert mpfast.prune(model, budget=budget).budget.pruned == budget.pruned


@pytest.mark.parametrize("case", ["normed", "normed, old", "spectral", "orthogonal"])
def test_what_cannot_be_set_to_zero_in_its_parts_stays(case):
    model = nn.Sequential(parametrised()[case], nn.Linear(48, 32))
    result = mpfast.prune(model, sparsity=0.5, method="magnitude")
    assert [row.name for row in result.budget] == ["1.weight"]
    assert "remove" in {t.name: t.reason for t in result.skipped}["0.weight"]


def test_the_difference_of_masked_models():
    base = nn.ModuleDict({"x": nn.Linear(32, 48)})
    tuned = nn.ModuleDict({"x": nn.Linear(32, 48)})
    difference = tuned.x.weight.detach() - base.x.weight.detach()
    keep = torch.rand(48, 32) > 0.5
    hold(tuned, {"x": keep})
    (row,) = mpfast.analyze(tuned, base=base)
    difference = torch.where(keep, difference, -base.x.weight.detach())
    assert row.name == "x.weight"
    assert row.fro_norm == pytest.approx(float(difference.norm()), rel=1e-5)


class Own(nn.Module):
    """A parametrisation by others."""

    def forward(self, w):
        if w.abs().max() > 1e6:
            raise RuntimeError("out of range")
        return w.T @ w


def test_parametrisations_by_others():
    model = nn.ModuleDict({"x": nn.Linear(32, 32), "y": nn.Linear(32, 32)})
    parametrize.register_parametrization(model.x, "weight", Own(), unsafe=True)
    rows = mpfast.analyze(model)
    assert [row.name for row in rows] == ["x.weight", "y.weight"]
    assert rows[0].fro_norm == pytest.approx(float(model.x.weight.norm()), rel=1e-5)


class Scale(nn.Module):
    """A parametrisation with a matrix of its own."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.rand(64, 64))

    def forward(self, w):
        return w * self.gain


def test_parameters_of_a_parametrisation_are_no_layers(tmp_path):
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    parametrize.register_parametrization(model[0], "weight", Scale())
    assert [row.name for row in mpfast.analyze(model)] == ["0.weight", "1.weight"]
    result = mpfast.prune(model, sparsity=0.5, method="magnitude")
    assert [row.name for row in result.budget] == ["1.weight"]


@pytest.mark.parametrize("from_file", [False, True])
def test_two_names_of_one_tensor_are_pruned_and_verified_together(from_file, tmp_path):
    weight = torch.randn(64, 64)
    model = {"a.weight": weight, "b.weight": weight, "c.weight": torch.randn(64, 64)}
    if from_file:
        torch.save(model, tmp_path / "model.pt")
        model = tmp_path / "model.pt"
    mpfast.prune(model, tmp_path / "out", sparsity=0.5, method="magnitude")
    written = load_file(tmp_path / "out" / "model.safetensors")
    np.testing.assert_array_equal(written["a.weight"], written["b.weight"])
    assert mpfast.verify(tmp_path / "out").ok
    assert mpfast.verify(tmp_path / "out", model).ok
    written["b.weight"][0, 0] += 1
    save_file(written, tmp_path / "out" / "model.safetensors")
    assert not mpfast.verify(tmp_path / "out").ok


@pytest.mark.parametrize("with_source", [True, False])
def test_verify_reads_each_tensor_once(with_source, tmp_path, monkeypatch):
    """Three names of one tensor among layers of the same shape: what was equal is told by hashes."""
    shared = torch.randn(64, 64)
    model = {f"{name}.weight": shared for name in "abc"} | {f"{name}.weight": torch.randn(64, 64) for name in "xyz"}
    torch.save(model, tmp_path / "model.pt")
    mpfast.prune(tmp_path / "model.pt", tmp_path / "out", sparsity=0.5, method="magnitude")
    (tmp_path / "model.pt").rename(tmp_path / "moved.pt")
    reads = Counter()

    def count(kind, method):
        original = getattr(kind, method)

        def counted(self, name):
            reads[self.source, name] += 1
            return original(self, name)

        monkeypatch.setattr(kind, method, counted)

    count(SafetensorsFile, "raw")
    count(SafetensorsFile, "read")
    count(TorchState, "read")
    found = mpfast.verify(tmp_path / "out", tmp_path / "moved.pt" if with_source else None)
    assert found.ok
    assert found.layers == 4
    assert set(reads.values()) == {1}
    assert len(reads) == 4 + 6 + (6 if with_source else 0)  # masks, output, source


def test_a_file_of_torch_is_read_whatever_its_name(tmp_path):
    torch.save({"fc.weight": torch.randn(32, 48)}, tmp_path / "model.safetensors")
    assert [row.name for row in mpfast.analyze(tmp_path / "model.safetensors")] == ["fc.weight"]


def test_tensors_without_a_memory_of_their_own_in_an_output(tmp_path):
    dense = torch.randn(64, 64)
    with pytest.raises(TypeError, match="sparse"):
        mpfast.prune({"s": dense.to_sparse(), "c": dense}, tmp_path / "out", sparsity=0.5, method="magnitude")
    lazy = nn.Sequential(nn.LazyLinear(16), nn.Linear(64, 64))
    result = mpfast.prune(lazy, tmp_path / "out", sparsity=0.5, method="magnitude")
    assert {tensor.name for tensor in result.skipped} == {"0.weight", "0.bias", "1.bias"}


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(64, 200, bias=False)
        self.tok = nn.Embedding(200, 64)
        self.tok.weight = self.out.weight
        self.fc = nn.Linear(64, 64)


def test_a_head_that_is_the_embedding_stays_dense(tmp_path):
    model = Tied()
    result = mpfast.prune(model, tmp_path / "out", sparsity=0.5, method="magnitude")
    assert [row.name for row in result.budget] == ["fc.weight"]
    assert {t.name: t.reason for t in result.skipped}["out.weight"] == "the same tensor as tok.weight"
    # With embeddings both names get the pruned weight.
    mpfast.prune(model, tmp_path / "all", sparsity=0.5, method="magnitude", embeddings=True)
    written = load_file(tmp_path / "all" / "model.safetensors")
    assert (written["tok.weight"] == 0).any()
    np.testing.assert_array_equal(written["tok.weight"], written["out.weight"])
    torch.save(model.state_dict(), tmp_path / "m.pt")
    assert len(mpfast.analyze(tmp_path / "m.pt")) == 2
    assert set(prunable_modules(model)) == {"fc"}


def test_entries_that_are_no_tensors():
    class Extra(nn.Module):
        def __init__(self, state):
            super().__init__()
            self.fc = nn.Linear(32, 32)
            self.state = state

        def get_extra_state(self):
            return self.state

        def set_extra_state(self, state):
            pass

    for state in (("v", 1), io.BytesIO(b"x"), {"a": {"b": torch.zeros(2)}}, None, "v2"):
        analysis = mpfast.analyze(Extra(state))
        assert len(analysis) == 1
        assert {t.name: t.dtype for t in analysis.skipped}["_extra_state"] == type(state).__name__
    lazy = mpfast.analyze(nn.Sequential(nn.Linear(32, 32), nn.LazyLinear(8)))
    assert {t.name for t in lazy.skipped} == {"0.bias", "1.weight", "1.bias"}


def test_a_file_that_would_lack_something_is_not_written(tmp_path):
    class Extra(nn.Linear):
        def get_extra_state(self):
            return ("v", 1)

        def set_extra_state(self, state):
            pass

    for change in (
        lambda out: mpfast.prune(Extra(32, 32), out, sparsity=0.5, method="magnitude"),
        lambda out: mpfast.compress(Extra(32, 32), out, rank=2),
    ):
        with pytest.raises(ValueError, match=r"1 entries that no file of tensors holds, '_extra_state' \(tuple\)"):
            change(tmp_path / "out")
        assert change(None) is not None
    assert not (tmp_path / "out").exists()


def test_float8_beside_others_is_copied(tmp_path):
    state = {"a.weight": torch.randn(32, 32), "b.weight": torch.randn(32, 32).to(torch.float8_e4m3fn)}
    torch.save(state, tmp_path / "m.pt")
    for model in (state, tmp_path / "m.pt"):
        result = mpfast.prune(model, tmp_path / "out", sparsity=0.5, method="magnitude", overwrite=True)
        assert "float8" in {t.name: t.reason for t in result.skipped}["b.weight"]
        found = open_checkpoint(tmp_path / "out")
        assert found.tensors[1].dtype == "float8_e4m3fn"
        np.testing.assert_array_equal(found.read("b.weight"), state["b.weight"].view(torch.uint8).numpy())


def test_tensors_without_entries_of_their_own():
    state = {
        "a.weight": torch.randn(32, 32),
        "s.weight": torch.randn(32, 32).to_sparse(),
        "m.weight": torch.empty(32, 32, device="meta"),
    }
    analysis = mpfast.analyze(state)
    assert [row.name for row in analysis] == ["a.weight"]
    reasons = {t.name: t.reason for t in analysis.skipped}
    assert "sparse" in reasons["s.weight"]
    assert "meta device" in reasons["m.weight"]


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
GPT2 = {"n_embd": 64, "n_layer": 1, "n_head": 2, "vocab_size": 100, "n_positions": 32}
GPT2 |= {"bos_token_id": 0, "eos_token_id": 0}
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


def test_whole_views_of_a_state_dictionary_have_no_parts():
    layers, *_ = select_layers(open_checkpoint(nn.LSTM(24, 16).state_dict()), None, None, WHOLE)
    assert [layer.name for layer in layers] == ["weight_ih_l0", "weight_hh_l0"]
    assert json.dumps([layer.shape for layer in layers]) == "[[64, 24], [64, 16]]"


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
