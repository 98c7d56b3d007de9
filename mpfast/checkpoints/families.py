"""What families of models store otherwise than PyTorch's Linear does: data, by ``model_type`` of ``config.json``."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mpfast.support import CheckpointError, unique_keys

__all__ = [
    "CONV1D",
    "FAMILIES",
    "Family",
    "StackedExpert",
    "experts_of",
    "family_of",
    "quantisation_of",
    "quantisation_settings",
    "read_config",
    "setting",
    "stacked_expert",
    "without_quantisation",
]

#: Names of the projections that GPT-2 and its kin store as (in, out), others under the same names as (out, in).
CONV1D = re.compile(r"(^|[./])(c_attn|c_fc|c_proj|q_attn)[./]weight$")


@dataclass(frozen=True)
class Family:
    """How the models of one ``model_type`` store their projections.

    Attributes
    ----------
    conv1d : bool
        Projections called as in `CONV1D` are (in, out).
    experts : {"out_in", "in_out", ""}
        Order of the last two axes of stacks of experts; empty where there are no stacks or only their shapes tell.
    gate_up : {"halves", "alternating", ""}
        How gate and up lie in a projection to both; empty where there is none.
    qkv : str
        Last part of the name of a projection to all queries, then all keys, then all values, of as many rows as heads
        ask for; empty where there is none, or they alternate head by head.
    mixed : str
        Last part of the name of one in which they alternate, under a name that means thirds elsewhere: it stays whole.
    merged : bool
        The experts' matrices of one projection are one matrix, each below the one before: those into an expert as
        (out, in), those out of it as (in, out).
    """

    conv1d: bool = False
    experts: str = ""
    gate_up: str = ""
    qkv: str = ""
    mixed: str = ""
    merged: bool = False


#: One entry per family that differs from PyTorch's own layout, or fuses projections.
FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        # transformers' Conv1D
        "gpt2": Family(conv1d=True),
        "openai-gpt": Family(conv1d=True),
        "imagegpt": Family(conv1d=True),
        "decision_transformer": Family(conv1d=True),
        "clvp": Family(conv1d=True),
        # (E, in, out)
        "gpt_oss": Family(experts="in_out", gate_up="alternating"),
        "openai_privacy_filter": Family(experts="in_out", gate_up="halves"),
        "llama4": Family(experts="in_out", gate_up="halves"),
        "llama4_text": Family(experts="in_out", gate_up="halves"),
        "aria": Family(experts="in_out"),
        "aria_text": Family(experts="in_out"),
        # gate and up in one; the shapes tell how stacks are stored
        "qwen3_vl_moe": Family(gate_up="halves"),
        "qwen3_vl_moe_text": Family(gate_up="halves"),
        **dict.fromkeys(
            (
                "qwen2_moe",
                "qwen3_moe",
                "qwen3_next",
                "qwen3_5_moe",
                "qwen3_5_moe_text",
                "qwen3_omni_moe",
                "mixtral",
                "deepseek_v2",
                "deepseek_v3",
                "glm4_moe",
                "granitemoe",
                "ernie4_5_moe",
                "flex_olmo",
                "dots1",
                "hunyuan_v1_moe",
                "jamba",
                "longcat_flash",
                "mistral4",
            ),
            Family(experts="out_in", gate_up="halves"),
        ),
        # fused in dense models
        "phi3": Family(gate_up="halves", qkv="qkv_proj"),
        "phi4_multimodal": Family(gate_up="halves", qkv="qkv_proj"),
        "glm": Family(gate_up="halves"),
        "glm4": Family(gate_up="halves"),
        "modernbert": Family(qkv="Wqkv"),
        "mpt": Family(qkv="Wqkv"),
        "gpt_bigcode": Family(qkv="c_attn"),
        "qwen": Family(qkv="c_attn"),
        # queries, values and keys of every quarter of the heads
        "codegen": Family(mixed="qkv_proj"),
        "moss": Family(mixed="qkv_proj"),
        "baichuan": Family(qkv="W_pack"),
        "dbrx": Family(merged=True),
    }
)
_NO_FAMILY = Family()
# What configurations say of quantisation is under one of these, by itself or in the part on the language model.
_ON_QUANTISATION = ("quantization_config", "quantization", "compression_config")
_ON_LANGUAGE = ("text_config", "llm_config", "language_config", "thinker_config")
# What the projections of experts that are stored one by one are called, two into an expert and one out of it, and what
# transformers stacks them into when it loads them, the former two one below the other.
_INTO_EXPERTS = (("gate_proj", "up_proj"), ("w1", "w3"))
_OUT_OF_EXPERTS = ("down_proj", "w2")
_STACKED_INTO, _STACKED_OUT = "gate_up_proj", "down_proj"
_EXPERT = re.compile(r"(?P<holder>(.+\.)?experts)\.(?P<number>\d+)\.(?P<projection>[^.]+)\.weight")


@dataclass(frozen=True)
class StackedExpert:
    """A matrix of an expert that is stored by itself, as it is called in the loaded model.

    Attributes
    ----------
    stack : str
        Name of the stack.
    number : int
        Of the expert in it.
    rows : tuple of str
        Names of the stored matrices that are its matrix in the stack, from above.
    """

    stack: str
    number: int
    rows: tuple[str, ...]


def stacked_expert(name: str, stacks: Collection[str]) -> StackedExpert | None:
    """Find the stack of a loaded model in which the matrix of an expert is; None where it is in none.

    Some models call what holds their experts otherwise on disk (``block_sparse_moe``) than in memory (``mlp``): then it
    is the only one of the same block.

    Examples
    --------
    >>> stacks = {"layers.0.mlp.experts.gate_up_proj", "layers.0.mlp.experts.down_proj"}
    >>> found = stacked_expert("layers.0.block_sparse_moe.experts.3.w1.weight", stacks)
    >>> found.stack, found.number, [row.rpartition("experts.")[2] for row in found.rows]
    ('layers.0.mlp.experts.gate_up_proj', 3, ['3.w1.weight', '3.w3.weight'])
    """
    found = _EXPERT.fullmatch(name)
    if found is None:
        return None
    projection = found["projection"]
    rows: tuple[str, ...] = (name,)
    called = [projection]
    if projection in _OUT_OF_EXPERTS:
        called.append(_STACKED_OUT)
    for both in _INTO_EXPERTS:
        if projection in both:
            called.append(_STACKED_INTO)
            rows = tuple(f"{found['holder']}.{found['number']}.{each}.weight" for each in both)
    for last in dict.fromkeys(called):
        stack = f"{found['holder']}.{last}"
        if stack not in stacks:
            block = _block_of(stack)
            alike = [each for each in stacks if _block_of(each) == block and each.endswith(f".experts.{last}")]
            if len(alike) != 1:
                continue
            stack = alike[0]
        return StackedExpert(stack, int(found["number"]), rows if last == _STACKED_INTO else (name,))
    return None


def _block_of(stack: str) -> str:
    """The block that a stack of experts is in: of ``layers.0.mlp.experts.down_proj``, ``layers.0``."""
    return stack.rsplit(".", 3)[0]


def family_of(config: Mapping[str, Any] | None) -> Family:
    """Return what is known of a model's family; nothing particular where its type is not listed."""
    for said in () if config is None else (config, _language(config)):
        kind = said.get("model_type")
        if isinstance(kind, str) and kind in FAMILIES:
            return FAMILIES[kind]
    return _NO_FAMILY


def setting(config: Mapping[str, Any] | None, *names: str) -> int | None:
    """Return the first positive integer that a configuration, or its part on the language model, has by these names."""
    for said in () if config is None else (config, _language(config)):
        for name in names:
            value = said.get(name)
            if type(value) is int and value > 0:
                return value
    return None


def quantisation_of(config: Mapping[str, Any] | None) -> str:
    """Name the method by which a configuration says that the weights are quantised; empty where it does not."""
    for key, found in _quantisations(config):
        method = found.get("quant_method", found.get("quant_algo", found.get("mode")))
        return method if isinstance(method, str) else key
    return ""


def quantisation_settings(config: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return what a configuration says of the quantisation of the weights; empty where it says nothing."""
    return next((found for _, found in _quantisations(config)), {})


def _quantisations(config: Mapping[str, Any] | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for said in () if config is None else (config, _language(config)):
        for key in _ON_QUANTISATION:
            found = said.get(key)
            if isinstance(found, Mapping) and found:
                yield key, found


def without_quantisation(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration that says nothing of the quantisation of the weights."""
    kept = {key: value for key, value in config.items() if key not in _ON_QUANTISATION}
    for key in _ON_LANGUAGE:
        if isinstance(kept.get(key), Mapping):
            kept[key] = {name: value for name, value in kept[key].items() if name not in _ON_QUANTISATION}
    return kept


def _language(config: Mapping[str, Any]) -> Mapping[str, Any]:
    return next(_parts_of(config, *_ON_LANGUAGE), {})


def _parts_of(config: Mapping[str, Any], *keys: str) -> Iterator[Mapping[str, Any]]:
    return (config[key] for key in keys if isinstance(config.get(key), Mapping))


def experts_of(config: Mapping[str, Any] | None) -> int | None:
    """Return the number of experts that a configuration, or its part on the feed-forward layers, says."""
    names = ("moe_num_experts", "num_local_experts", "num_experts")
    counts = (setting(said, *names) for said in (config, *_parts_of(config or {}, "ffn_config")))
    return next((count for count in counts if count), None)


def read_config(directory: Path) -> Mapping[str, Any] | None:
    """Return what the ``config.json`` of a directory says; None where there is none.

    Raises
    ------
    CheckpointError
        It is no JSON object, or has a key twice.
    """
    path = directory / "config.json"
    if not path.is_file():
        return None
    try:
        # Infinities and NaN are no JSON, but transformers writes them.
        config = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: no valid JSON: {error}") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: holds {type(config).__name__}, not the object of a model's settings")
    return config
