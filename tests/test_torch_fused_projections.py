"""Projections that hold several matrices, split as the models themselves do: from their files and live."""

from __future__ import annotations

import contextlib
import importlib

import numpy as np
import pytest

import mpfast
from mpfast.checkpoints import Views, layer_part, open_checkpoint, select_layers

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

VOCABULARY, TOKENS = 50, 3
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
SIZES |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
GPT = {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 1, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
MLP = {"intermediate_size": 48}
GROUPED = {**SIZES, **MLP, "num_key_value_heads": 2}
MIXTURE = {"num_local_experts": 3, "num_experts_per_tok": 3}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_num_value_heads": 4,
    "linear_value_head_dim": 12,
    "layer_types": ["linear_attention"],
}
MPT = {"vocab_size": VOCABULARY, "d_model": 64, "n_heads": 4, "n_layers": 1, "max_seq_len": 16}
DBRX = {"vocab_size": VOCABULARY, "d_model": 64, "n_heads": 4, "n_layers": 1}
DBRX |= {
    "attn_config": {"kv_n_heads": 2, "clip_qkv": 1e9},
    "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 2, "moe_top_k": 1},
}

# Class, configuration, the name of the projection.
QKV = {
    "phi3": ("Phi3ForCausalLM", GROUPED, "qkv_proj"),
    "phi3 with a length of its own": ("Phi3ForCausalLM", {**GROUPED, "head_dim": 24}, "qkv_proj"),
    "falcon 7b": ("FalconForCausalLM", {**SIZES, "multi_query": True}, "query_key_value"),
    "falcon rw": ("FalconForCausalLM", {**SIZES, "multi_query": False, "alibi": True}, "query_key_value"),
    "falcon 40b": (
        "FalconForCausalLM",
        {**SIZES, "new_decoder_architecture": True, "num_kv_heads": 2},
        "query_key_value",
    ),
    "gpt neox": ("GPTNeoXForCausalLM", {**SIZES, **MLP}, "query_key_value"),
    "gpt neox japanese": ("GPTNeoXJapaneseForCausalLM", {**SIZES, **MLP}, "query_key_value"),
    "bloom": ("BloomForCausalLM", {**SIZES, "n_layer": 1, "n_head": 4}, "query_key_value"),
    "persimmon": ("PersimmonForCausalLM", {**SIZES, **MLP}, "query_key_value"),
    "bigcode": ("GPTBigCodeForCausalLM", {**GPT, "multi_query": True}, "c_attn"),
    "bigcode, heads apart": ("GPTBigCodeForCausalLM", {**GPT, "multi_query": False}, "c_attn"),
    "gpt2": ("GPT2LMHeadModel", GPT, "c_attn"),
    "codegen": ("CodeGenForCausalLM", {**GPT, "n_head": 8, "rotary_dim": 8}, "qkv_proj"),
    "mpt": ("MptForCausalLM", MPT, "Wqkv"),
    "dbrx": ("DbrxForCausalLM", DBRX, "Wqkv"),
    "modernbert": ("ModernBertForMaskedLM", {**SIZES, **MLP, "cls_token_id": 1, "sep_token_id": 2}, "Wqkv"),
    "deberta": ("DebertaForMaskedLM", {**SIZES, **MLP}, "in_proj"),
}


def built(name, settings):
    class_ = getattr(transformers, name)
    config = class_.config_class(**settings)
    if name == "DbrxForCausalLM":
        config.attn_config.rope_theta = 10000.0
    torch.manual_seed(0)
    model = class_(config).double().eval()
    with contextlib.suppress(AttributeError, ValueError):  # of models without experts
        model.set_experts_implementation("eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8)  # far from where attention is even
    return model


def module_called(model, owner):
    return next(module for name, module in model.named_modules() if name.split(".")[-1] == owner)


@contextlib.contextmanager
def changed_outputs(module, change):
    """Let a module's outputs pass through `change`."""
    handle = module.register_forward_hook(lambda _module, _inputs, outputs: change(outputs.clone()))
    try:
        yield
    finally:
        handle.remove()


def told_by_the_forward_pass(model, module, outputs):
    """What each output of a projection is, by what becomes of the model's results when it is zero at one position.

    With one token alone attention is the same whatever the query and the key: only values change anything. With
    several, the query of a position changes that position alone, its key the others, too.
    """

    def differs(tokens, at):
        ids = torch.arange(3, 3 + tokens).repeat(outputs, 1)

        def silence(found):
            found[torch.arange(outputs), at, torch.arange(outputs)] = 0
            return found

        with torch.no_grad():
            plain = model(input_ids=ids).logits
            with changed_outputs(module, silence):
                found = model(input_ids=ids).logits
        return ((found - plain).abs().amax(dim=-1) > 1e-9 * plain.abs().max()).numpy()

    alone, among = differs(1, 0)[:, 0], differs(TOKENS, 1)
    others = among[:, [0, 2]].any(axis=1)
    assert among[:, 1].any()
    return np.where(alone, "value", np.where(others, "key", "query"))


def labels(layers, tensor, outputs, axis):
    """The label of each output by the parts that the layers are, each taken once."""
    found = np.full(outputs, "", dtype=object)
    numbered = np.broadcast_to(np.arange(outputs).reshape(-1, 1) if axis == 0 else np.arange(outputs), tensor.shape)
    for layer in layers:
        part = layer_part(np.ascontiguousarray(numbered), layer)
        assert part.shape == layer.shape
        numbers = part[:, 0] if axis == 0 else part[0]
        assert (found[numbers] == "").all()
        found[numbers] = layer.name[:-1].rpartition("[")[2].rpartition(",")[2]
    return found


def layers_of(source, include):
    layers, *_ = select_layers(open_checkpoint(source), include, None, Views())
    return layers


@pytest.mark.parametrize("case", QKV)
def test_queries_keys_and_values_are_those_of_the_forward_pass(case, tmp_path):
    model_name, settings, owner = QKV[case]
    model = built(model_name, settings)
    module = module_called(model, owner)
    outputs = getattr(module, "out_features", None) or module.nf
    axis = 1 if hasattr(module, "nf") else 0
    told = told_by_the_forward_pass(model, module, outputs)
    assert set(told) == {"query", "key", "value"}
    model.save_pretrained(tmp_path)
    for source in (model, tmp_path):
        found = layers_of(source, f"*{owner}.weight")
        assert {layer.unsplit for layer in found} == {""}
        assert (labels(found, module.weight, outputs, axis) == told).all()
    (row, *_) = [row for row in mpfast.analyze(tmp_path, include=f"*{owner}.weight") if row.name.endswith("[key]")]
    weight = module.weight.detach()
    key = weight[told == "key"] if axis == 0 else weight[:, told == "key"]
    assert row.fro_norm == pytest.approx(float(key.norm()), rel=1e-6)
    assert row.shape == tuple(key.shape)


# Class, configuration, the name of the projection, of what its outputs go into.
GATED = {
    "phi3": ("Phi3ForCausalLM", GROUPED, "gate_up_proj", "mlp"),
    "glm": ("GlmForCausalLM", {**GROUPED, "head_dim": 16}, "gate_up_proj", "mlp"),
    "glm4": ("Glm4ForCausalLM", {**GROUPED, "head_dim": 16}, "gate_up_proj", "mlp"),
    "modernbert": ("ModernBertForMaskedLM", QKV["modernbert"][1], "Wi", "mlp"),
    "gpt oss": (
        "GptOssForCausalLM",
        {**GROUPED, **MIXTURE, "head_dim": 16, "swiglu_limit": 1e9},
        "gate_up_proj",
        "experts",
    ),
    "llama4": (
        "Llama4ForCausalLM",
        {**GROUPED, **MIXTURE, "head_dim": 16, "intermediate_size_mlp": 48},
        "gate_up_proj",
        "experts",
    ),
    "granite": ("GraniteMoeForCausalLM", {**GROUPED, **MIXTURE}, "gate_up_proj", "experts"),
    "qwen3.5": (
        "Qwen3_5MoeForCausalLM",
        {
            **GROUPED,
            "layer_types": ["full_attention"],
            "head_dim": 16,
            "moe_intermediate_size": 48,
            "shared_expert_intermediate_size": 32,
        }
        | {"num_experts": 3, "num_experts_per_tok": 3},
        "gate_up_proj",
        "experts",
    ),
}
# What the files call a stack otherwise than the model does.
ON_DISK = {"granite": "input_linear.weight"}


def results_at(model, holder, run):
    """What a module hands on, run by run."""
    kept = []
    handle = holder.register_forward_hook(
        lambda _module, _inputs, found: kept.append((found[0] if isinstance(found, tuple) else found).reshape(-1))
    )
    try:
        with torch.no_grad():
            run()
    finally:
        handle.remove()
    return torch.stack(kept)


def told_by_scaling(model, holder, projection, outputs):
    """What each output of a projection is: what is handed on is affine in what multiplies, not in what is activated."""
    ids = torch.arange(3, 3 + TOKENS)[None]

    def results(factor):
        def run():
            for output in range(outputs):
                if isinstance(projection, torch.nn.Module):
                    scale = torch.ones(outputs, dtype=torch.float64)
                    scale[output] = factor
                    with changed_outputs(projection, lambda found, scale=scale: found * scale):
                        model(input_ids=ids)
                    continue
                axis = 1 + int(projection.shape[2] == outputs)
                row = projection.data.select(axis, output)
                before = row.clone()
                row.mul_(factor)
                model(input_ids=ids)
                row.copy_(before)

        return results_at(model, holder, run)

    at_one, at_two, at_minus = results(1), results(2), results(-1)
    change = at_two - at_one
    assert (change.abs().amax(dim=-1) > 0).all()
    bent = (change - (at_one - at_minus) / 2).abs().amax(dim=-1)
    return np.where((bent > 1e-9 * at_one.abs().max()).numpy(), "gate", "up")


@pytest.mark.parametrize("case", GATED)
def test_gates_and_what_they_multiply_are_those_of_the_forward_pass(case, tmp_path):
    model_name, settings, owner, holder = GATED[case]
    model = built(model_name, settings)
    module = module_called(model, holder)
    projection = getattr(module, owner)
    tensor = projection.weight if isinstance(projection, torch.nn.Module) else projection
    told = told_by_scaling(model, module, projection, 96)
    assert sorted(told) == ["gate"] * 48 + ["up"] * 48
    model.save_pretrained(tmp_path, save_original_format=case != "qwen3.5")  # of which files have stacks, too
    for source, ending in ((model, owner), (tmp_path, ON_DISK.get(case, owner))):
        found = layers_of(source, f"*{ending}{'.weight' if tensor.dim() == 2 else ''}")
        if tensor.dim() == 2:
            assert (labels(found, tensor, 96, 0) == told).all()
            continue
        assert len(found) == 6
        axis = 1 + int(tensor.shape[2] == 96)
        for layer in found:
            part = layer_part(tensor.detach(), layer)
            expert = tensor.detach()[layer.index[0]]
            wanted = torch.from_numpy(told == layer.name[:-1].rpartition(",")[2])
            assert part.equal(expert[wanted] if axis == 1 else expert[:, wanted])
            assert layer.input_axes == (3 - axis,)


def told_by_linear_attention(model, module, outputs, monkeypatch):
    """What each output is, by which argument of the recurrence is zero where it is."""
    modelling = importlib.import_module(type(model).__module__)
    seen = []
    recurrence = modelling.torch_chunk_gated_delta_rule

    def watched(query, key, value, **options):
        seen.append((query, key, value))
        return recurrence(query, key, value, **options)

    monkeypatch.setattr(modelling, "torch_chunk_gated_delta_rule", watched)

    def silence(found):
        found[torch.arange(outputs), :, torch.arange(outputs)] = 0
        return found

    with torch.no_grad(), changed_outputs(module, silence):
        model(input_ids=torch.arange(3, 3 + TOKENS).repeat(outputs, 1), use_cache=False)
    gone = [(part == 0).flatten(1).any(dim=1).numpy() for part in seen[0]]
    assert (sum(part.astype(int) for part in gone) <= 1).all()
    return np.select(gone, ["query", "key", "value"], "gate")


@pytest.mark.parametrize(
    ("model_name", "owner"), [("Qwen3NextForCausalLM", "in_proj_qkvz"), ("Qwen3_5ForCausalLM", "in_proj_qkv")]
)
def test_projections_of_linear_attention_are_those_of_the_forward_pass(model_name, owner, tmp_path, monkeypatch):
    model = built(model_name, {**GROUPED, **LINEAR, "head_dim": 16, "num_experts": 0})
    module = module_called(model, owner)
    told = told_by_linear_attention(model, module, module.out_features, monkeypatch)
    assert set(told) == {"query", "key", "value"} | ({"gate"} if owner.endswith("z") else set())
    model.save_pretrained(tmp_path)
    for source in (model, tmp_path):
        found = layers_of(source, f"*{owner}.weight")
        assert (labels(found, module.weight, module.out_features, 0) == told).all()
