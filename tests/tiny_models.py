"""Small random models with the shapes of real ones, for what other tools make of a budget."""

from __future__ import annotations

from typing import Any

import pytest

import mpfast

SIZES = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
MIXTURE = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}

# Class, configuration; twelve layers where the order of the names matters: 10 comes before 2 in a file.
MODELS = {
    "llama": ("LlamaForCausalLM", {**SIZES, "num_hidden_layers": 12, "num_key_value_heads": 2}),
    "bert": ("BertForSequenceClassification", {**SIZES, "num_hidden_layers": 11}),
    "moe": ("Qwen3MoeForCausalLM", {**SIZES, **GROUPED, **MIXTURE, "num_hidden_layers": 3}),
}


def tiny(kind: str, **changes: Any) -> Any:
    """Return a random model, the same each time."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    name, settings = MODELS[kind]
    torch.manual_seed(0)
    class_ = getattr(transformers, name)
    return class_(class_.config_class(**{**settings, **changes})).eval()


def spread_budget(model: Any, **options: Any) -> Any:
    """Return a budget in which every layer has a sparsity of its own, by the position of its name in a hash order."""
    analysis = mpfast.analyze(model, progress=False)
    places = {name: place for place, name in enumerate(sorted(row.name[::-1] for row in analysis))}
    return analysis.budget(
        0.5, method=lambda row: 0.6 * places.get(row.name[::-1], 0) / len(places), floor=0.05, **options
    )


def linear_modules(model: Any) -> dict[str, Any]:
    """Return the linear modules by name, in module order."""
    import torch

    return {name: module for name, module in model.named_modules() if type(module) is torch.nn.Linear}


def adalora(**options):
    """Modules, and PEFT's model of them whose updates have lost ranks, as AdaLoRA's training leaves it."""
    import peft
    import torch

    base = {"conv": torch.nn.Conv2d(8, 12, 3), "fc": torch.nn.Linear(24, 32), "head": torch.nn.Linear(32, 20)}
    settings = {"init_r": 5, "target_r": 2, "total_step": 10, "target_modules": list(base), **options}
    torch.manual_seed(1)
    model = peft.get_peft_model(torch.nn.ModuleDict(base), peft.AdaLoraConfig(**settings))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter)
    kept = {"conv": [True, False, True, True, False], "fc": [False, True, False, False, True]}
    for name, ranks in kept.items():
        model.base_model.model[name].lora_E["default"].data[~torch.tensor(ranks)] = 0
    model.peft_config["default"].rank_pattern = {f"{name}.lora_E.default": ranks for name, ranks in kept.items()}
    return base, model
