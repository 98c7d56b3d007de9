"""PEFT itself: its adapters by our choice of modules, ranks and starts, beside its own choices."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

import mpfast
from mpfast.checkpoints import MomentFile

from .tiny_models import tiny

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
ours = importlib.import_module("mpfast.integrations.peft")
calibration = importlib.import_module("mpfast.integrations.torch")


def tokens(count=2, length=12):
    return torch.randint(0, 96, (count, length), generator=torch.Generator().manual_seed(1))


def analysis_of(model, **options):
    return mpfast.analyze(model, progress=False, **options)


def lora_layers(model):
    return {
        name: layer
        for name, layer in model.get_base_model().named_modules()
        if isinstance(layer, peft.tuners.lora.LoraLayer)
    }


def test_the_return_value_is_that_of_pefts_own_choice():
    model = tiny("llama", num_hidden_layers=3)
    own = peft.find_kappa_target_modules(model, 0.3, show_progress=False)
    found = ours.target_modules(analysis_of(model), 0.3)
    assert found.keys() == own.keys()
    # PEFT looks at the head of the language model, too: one more of 22.
    assert len(found["target_modules"]) == len(own["target_modules"]) == 6
    assert found["target_parameters"] is own["target_parameters"] is None


def test_the_flattest_spectra_come_first_as_condition_numbers_have_them():
    """Of spectra that differ in one number both measures give one order."""
    rng = np.random.default_rng(0)
    bases = [np.linalg.qr(rng.standard_normal((24, 24)))[0] for _ in range(8)]
    steepness = [0.6, 0.1, 0.9, 0.3]
    model = torch.nn.Sequential(*(torch.nn.Linear(24, 24) for _ in steepness))
    for at, steep in enumerate(steepness):
        weight = bases[2 * at] * np.exp(-steep * np.arange(24)) @ bases[2 * at + 1]
        model[at].weight.data = torch.from_numpy(weight).float()
    own = peft.find_kappa_target_modules(model, 1.0, show_progress=False)["target_modules"]
    assert ours.target_modules(analysis_of(model), 1.0)["target_modules"] == own == ["1", "3", "0", "2"]


def test_stacks_of_experts_are_parameters_and_get_adapters():
    model = tiny("moe")
    chosen = ours.target_modules(analysis_of(model), 0.34)
    own = peft.find_kappa_target_modules(model, 0.34, show_progress=False)
    assert len(chosen["target_parameters"]) == len(own["target_parameters"]) == 2
    names = {name for name, parameter in model.named_parameters() if parameter.dim() == 3}
    assert names >= set(chosen["target_parameters"])
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, **chosen))
    found = lora_layers(adapted)
    assert sum(isinstance(layer, peft.tuners.lora.ParamWrapper) for layer in found.values()) == 2
    assert set(chosen["target_modules"]) <= set(found)


def test_a_choice_that_names_cannot_say_is_refused():
    model = torch.nn.ModuleDict({"0": torch.nn.Linear(16, 16), "block": torch.nn.Sequential(torch.nn.Linear(16, 16))})
    with torch.no_grad():
        model["0"].weight.copy_(torch.eye(16))
    with pytest.raises(ValueError, match=r"PEFT would take block\.0, which is not chosen, for 0, which is"):
        ours.target_modules(analysis_of(model), 0.5)
    assert set(ours.target_modules(analysis_of(model), 1.0)["target_modules"]) == {"0", "block.0"}


def test_ranks_by_error_are_those_of_the_adapters():
    model = tiny("llama", num_hidden_layers=2)
    ranks = mpfast.models.ranks(model, errors=[0.5, 0.6], progress=False)
    pattern = ours.rank_pattern(ranks, 0.5, largest=9)
    config = peft.LoraConfig(r=64, rank_pattern=pattern, target_modules="all-linear")
    found = lora_layers(peft.get_peft_model(model, config))
    wanted = {name.removesuffix(".weight"): min(rank, 9) for name, rank in ranks.at(0.5).items()}
    assert {name: layer.r["default"] for name, layer in found.items()} == wanted
    with pytest.raises(ValueError, match=r"error must be one of 0\.5, 0\.6"):
        ours.rank_pattern(ranks, 0.4)


def test_experts_of_a_stack_share_the_largest_of_their_ranks():
    model = tiny("moe", num_hidden_layers=1)
    ranks = mpfast.models.ranks(model, errors=[0.4], progress=False)
    pattern = ours.rank_pattern(ranks, 0.4)
    stack = "model.layers.0.mlp.experts.down_proj"
    largest = max(rank for name, rank in ranks.at(0.4).items() if name.startswith(stack))
    assert pattern[r"layers\.0\.mlp\.experts\.down_proj"] == largest


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize(("rslora", "dora"), [(False, False), (True, False), (False, True)])
def test_a_start_without_moments_is_pissa(kind, rslora, dora):
    """The same product as PEFT's by a full decomposition; the model computes what it did before."""
    settings = {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4}
    torch.manual_seed(0)
    make = {
        "llama": lambda: tiny("llama", num_hidden_layers=2),
        "gpt2": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(**settings)).eval(),
    }[kind]
    chosen = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn", "c_fc"]}[kind]
    options = {"r": 5, "lora_alpha": 12, "target_modules": chosen, "use_rslora": rslora, "use_dora": dora}
    options["fan_in_fan_out"] = kind == "gpt2"
    model = make()
    before = model(tokens()).logits
    theirs = make()
    theirs.load_state_dict(model.state_dict())
    dense = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    adapted = peft.get_peft_model(model, peft.LoraConfig(**options))
    starts = ours.start_adapters(adapted)
    # Products in single precision are off by some roundings of their largest terms.
    torch.testing.assert_close(adapted(tokens()).logits, before, atol=2e-5, rtol=0)
    pissa = lora_layers(peft.get_peft_model(theirs, peft.LoraConfig(init_lora_weights="pissa", **options)))
    found = lora_layers(adapted)
    assert [start.name for start in starts] == list(found) == list(pissa)
    for start in starts:
        update, own = (each[start.name].get_delta_weight("default") for each in (found, pissa))
        # Directions are off by the relative error of the values, 1e-5, over their relative gaps, here above 1e-2.
        torch.testing.assert_close(update, own, atol=1e-3 * float(own.detach().abs().max()), rtol=0)
        whole = dense[f"{start.name}.weight"].square().sum()
        assert start.share == pytest.approx(float(update.detach().square().sum() / whole), rel=1e-4)
        assert start.rank == 5


def watched(model):
    with calibration.SecondMoments(model, include="*mlp.down_proj") as moments:
        for seed in range(4):
            batch = torch.randint(0, 96, (8, 32), generator=torch.Generator().manual_seed(seed))
            model(batch)
    return moments


@pytest.mark.parametrize("saved", [False, True])
def test_a_start_with_moments_leaves_the_least_of_the_outputs(saved, tmp_path):
    model = tiny("llama", num_hidden_layers=2)
    moments = watched(model)
    if saved:
        moments.save(tmp_path / "moments.safetensors")
        moments = MomentFile(tmp_path / "moments.safetensors")
    before = model(tokens()).logits
    dense = {name: parameter.detach().double().numpy() for name, parameter in model.named_parameters()}
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["down_proj"]))
    given = tmp_path / "moments.safetensors" if saved else moments
    for start in ours.start_adapters(adapted, given, damping=0):
        W, C = dense[f"{start.name}.weight"], np.asarray(moments[start.name])
        values, vectors = np.linalg.eigh(C)
        tail = np.linalg.svd(W @ (vectors * np.sqrt(values.clip(0))), compute_uv=False) ** 2
        assert start.share == pytest.approx(tail[:4].sum() / tail.sum(), rel=1e-5)
    torch.testing.assert_close(adapted(tokens()).logits, before, atol=2e-5, rtol=0)


def test_a_trained_start_becomes_an_adapter_of_the_base_as_it_was(tmp_path):
    model = tiny("llama", num_hidden_layers=2)
    base = tiny("llama", num_hidden_layers=2)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj"]))
    ours.start_adapters(adapted)
    adapted.save_pretrained(tmp_path / "start")
    before = adapted(tokens()).logits
    optimizer = torch.optim.SGD([one for one in adapted.parameters() if one.requires_grad], lr=20.0)
    for _ in range(3):
        optimizer.zero_grad()
        adapted(tokens(), labels=tokens()).loss.backward()
        optimizer.step()
    trained = adapted(tokens()).logits.detach()
    adapted.save_pretrained(tmp_path / "out", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "out").eval()
    assert (trained - before).abs().max() > 0.01
    torch.testing.assert_close(loaded(tokens()).logits, trained, atol=5e-5, rtol=0)  # roundings, as above


def test_a_trained_start_of_dora_goes_with_the_weights_that_are_left(tmp_path):
    model = tiny("llama", num_hidden_layers=2)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["up_proj"], use_dora=True))
    before = adapted(tokens()).logits
    ours.start_adapters(adapted)
    torch.testing.assert_close(adapted(tokens()).logits, before, atol=2e-5, rtol=0)  # roundings, as above
    optimizer = torch.optim.SGD([one for one in adapted.parameters() if one.requires_grad], lr=20.0)
    optimizer.zero_grad()
    adapted(tokens(), labels=tokens()).loss.backward()
    optimizer.step()
    trained = adapted(tokens()).logits.detach()
    adapted.save_pretrained(tmp_path / "tuned")
    adapted.unload().save_pretrained(tmp_path / "left")
    left = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "left")
    loaded = peft.PeftModel.from_pretrained(left, tmp_path / "tuned").eval()
    torch.testing.assert_close(loaded(tokens()).logits, trained, atol=2e-5, rtol=0)
    assert (trained - before).abs().max() > 0.01


def test_bfloat16_weights_keep_their_outputs_to_their_rounding():
    model = tiny("llama", num_hidden_layers=1).to(torch.bfloat16)
    dense = model.model.layers[0].mlp.up_proj.weight.detach().clone()
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["up_proj"]))
    ours.start_adapters(adapted)
    (layer,) = lora_layers(adapted).values()
    assert layer.get_base_layer().weight.dtype == torch.bfloat16
    together = layer.get_base_layer().weight.float() + layer.get_delta_weight("default").float()
    # Of the weight that is left, eight bits.
    torch.testing.assert_close(together, dense.float(), atol=2.0**-8 * float(dense.abs().max()), rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_modules": ["embed_tokens"]}, "is of PEFT's class Embedding"),
        (
            {"target_modules": ["q_proj"], "task_type": "CAUSAL_LM", "alora_invocation_tokens": [1]},
            "neither plain LoRA nor DoRA but of PEFT's class ALora",
        ),
        ({"target_modules": ["q_proj"], "r": 64}, "has rank 64, but its weight is"),
        ({"target_modules": ["q_proj"], "init_lora_weights": "pissa"}, "has started from something else"),
        ({"target_modules": ["q_proj"], "lora_alpha": 0}, "a positive scale is needed"),
    ],
)
def test_what_cannot_start_is_refused_and_nothing_changes(options, message):
    adapted = peft.get_peft_model(tiny("llama", num_hidden_layers=1), peft.LoraConfig(**options))
    before = {name: value.clone() for name, value in adapted.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        ours.start_adapters(adapted)
    assert all(torch.equal(value, before[name]) for name, value in adapted.state_dict().items())


def test_tied_weights_other_adapters_and_other_moments_are_refused(tmp_path):
    tied = tiny("llama", num_hidden_layers=1, tie_word_embeddings=True)
    adapted = peft.get_peft_model(tied, peft.LoraConfig(target_modules=["lm_head"]))
    with pytest.raises(ValueError, match="lm_head: shares its weight"):
        ours.start_adapters(adapted)
    config = peft.LoraConfig(target_modules=["down_proj"])
    model = tiny("llama", num_hidden_layers=2)
    moments = watched(model)
    moments.save(tmp_path / "moments.safetensors")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(2)
    adapted = peft.get_peft_model(model, config)
    with pytest.raises(ValueError, match=r"collected from other weights of 'model\.layers\.1\.mlp\.down_proj'"):
        ours.start_adapters(adapted, tmp_path / "moments.safetensors")
    with pytest.raises(KeyError, match=r"has none for 'model\.layers\.0\.mlp\.down_proj'"):
        ours.start_adapters(adapted, {"model.layers.1.mlp.down_proj": np.eye(64)})
    with pytest.raises(ValueError, match=r"have shape \(3, 3\) for 'model\.layers\.0\.mlp\.down_proj'"):
        ours.start_adapters(adapted, {name: np.eye(3) for name in moments})
    adapted.add_adapter("second", config)
    with pytest.raises(ValueError, match="has other adapters"):
        ours.start_adapters(adapted)
    with pytest.raises(ValueError, match="'third' is none of the model's"):
        ours.start_adapters(adapted, adapter="third")
    with pytest.raises(TypeError, match="has no LoRA layers"):
        ours.start_adapters(model.model.embed_tokens)
