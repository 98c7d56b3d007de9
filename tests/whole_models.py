"""Tiny models of several architectures of transformers, and batches for them."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

SIZES = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
EXPERTS = {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 32, "num_experts_per_tok": 2}
GPT2 = {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
MODELS = {
    "bert": ("BertForSequenceClassification", {**SIZES, "num_hidden_layers": 2}),
    "llama": ("LlamaForCausalLM", {**SIZES, "num_hidden_layers": 2, "num_key_value_heads": 2}),
    "gpt2": ("GPT2LMHeadModel", GPT2),
    "moe": (
        "Qwen2MoeForCausalLM",
        {**SIZES, **EXPERTS, "num_hidden_layers": 2, "num_key_value_heads": 2, "num_experts": 4},
    ),
    "vit": ("ViTForImageClassification", {**VISION, "num_hidden_layers": 2}),
}


def tiny(kind, **changes):
    transformers = pytest.importorskip("transformers")
    name, settings = MODELS[kind]
    torch.manual_seed(0)
    class_ = getattr(transformers, name)
    return class_(class_.config_class(**{**settings, **changes})).eval()


def batches(kind, count=4, padded=True):
    generator = torch.Generator().manual_seed(1)
    if kind == "vit":
        return [{"pixel_values": torch.randn(8, 3, 32, 32, generator=generator)} for _ in range(count)]
    found = []
    for _ in range(count):
        ids = torch.randint(0, 96, (8, 24), generator=generator)
        mask = torch.ones_like(ids)
        mask[::2, 18:] = 1 - padded
        found.append({"input_ids": ids, "attention_mask": mask})
    return found


def saved(kind, folder, dtype=torch.float32, shard="50GB", **changes):
    model = tiny(kind, **changes).to(dtype)
    model.save_pretrained(folder, max_shard_size=shard)
    return type(model)
