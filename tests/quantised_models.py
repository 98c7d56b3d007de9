"""Whole models with quantised weights: as tensors by name, in files, and saved by transformers."""

from __future__ import annotations

import json

import numpy as np

from mpfast.checkpoints import open_checkpoint

from .quantised_weights import CONFIG, as_float8, ml_dtypes, weights, write

DENSE = ml_dtypes.bfloat16


def layers(count=3, side=64):
    """Block float8 with a norm and a head, and the numbers of the weights."""
    tensors, numbers = {}, {}
    for layer in range(count):
        name = f"model.layers.{layer}.mlp.up_proj.weight"
        codes, scales, numbers[name] = as_float8(weights((2 * side, side), layer), (128, 128))
        tensors |= {name: codes, f"{name}_scale_inv": scales}
    tensors["model.norm.weight"] = np.ones(side, DENSE)
    return tensors, numbers


def sharded(folder, tensors, config=CONFIG):
    """Scales in files of their own."""
    folder.mkdir(exist_ok=True)
    names = list(tensors)
    homes = {
        "model-00001-of-00003.safetensors": [name for name in names if "layers.0" in name and "scale" not in name],
        "model-00002-of-00003.safetensors": [name for name in names if "layers.0" not in name and "scale" not in name],
        "model-00003-of-00003.safetensors": [name for name in names if "scale" in name],
    }
    homes = {file: members for file, members in homes.items() if members}
    for file, members in homes.items():
        write(folder / file, {name: tensors[name] for name in members})
    weight_map = {name: file for file, members in homes.items() for name in members}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "llama", "hidden_size": 64}))
    (folder / "hf_quant_config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")


def saved(model, folder, replaced, method):
    """Save a model of transformers with some tensors quantised, and a configuration that says so."""
    model.save_pretrained(folder)
    stored = open_checkpoint(folder)
    tensors = {info.name: stored.read(info.name).copy() for info in stored.tensors if info.name not in replaced}
    tensors |= {name: part for parts in replaced.values() for name, part in parts.items()}
    stored = {name: array.view(DENSE) if array.dtype == np.uint16 else array for name, array in tensors.items()}
    write(folder / "model.safetensors", stored, {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": method}}))


def numbers_in(tensor):
    return tensor.detach().float().numpy()


def tiny_gpt_oss(transformers):
    """Square experts, which no shape tells from their transposes."""
    config = transformers.GptOssConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=2,
        num_experts_per_tok=1,
        layer_types=["full_attention"],
    )
    return transformers.GptOssForCausalLM(config)
