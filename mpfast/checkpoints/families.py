"""What families of models store otherwise than PyTorch's Linear does: data, by ``model_type`` of ``config.json``."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from mpfast.checkpoints.config_json import languages_of

__all__ = [
    "CONV1D",
    "FAMILIES",
    "Family",
    "StackedExpert",
    "family_of",
    "other_names",
    "stacked_expert",
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
    fused : mapping of str to str
        Projections that hold several matrices: the last part of a name, and one of `mpfast.checkpoints.fused.LAYOUTS`.
    merged : bool
        The experts' matrices of one projection are one matrix, each below the one before: those into an expert as
        (out, in), those out of it as (in, out).
    """

    conv1d: bool = False
    experts: str = ""
    fused: Mapping[str, str] = field(default_factory=dict)
    merged: bool = False


_GATE_UP = {"gate_up_proj": "gate, up"}


def _families(names: str, **options: Any) -> dict[str, Family]:
    return dict.fromkeys(names.split(), Family(**options))


#: One entry per family that differs from PyTorch's own layout, or fuses projections.
FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        # transformers' Conv1D
        "gpt2": Family(conv1d=True),
        "openai-gpt": Family(conv1d=True),
        "imagegpt": Family(conv1d=True),
        "decision_transformer": Family(conv1d=True),
        "clvp": Family(conv1d=True),
        # stacks (E, in, out)
        "gpt_oss": Family(experts="in_out", fused={"gate_up_proj": "gate and up alternating"}),
        **_families("openai_privacy_filter llama4 llama4_text aria aria_text", experts="in_out", fused=_GATE_UP),
        # stacks of which the shapes tell how they are stored
        **_families("qwen3_vl_moe qwen3_vl_moe_text", fused=_GATE_UP),
        # stacks (E, out, in), where the experts are not stored one by one
        **_families(
            "qwen2_moe qwen3_moe qwen3_omni_moe mixtral deepseek_v2 deepseek_v3 glm4_moe glm4v_moe ernie4_5_moe "
            "flex_olmo dots1 hunyuan_v1_moe jamba longcat_flash mistral4 olmoe phimoe gemma4 gemma4_text",
            experts="out_in",
            fused=_GATE_UP,
        ),
        **_families(
            "granitemoe granitemoeshared granitemoehybrid",
            experts="out_in",
            fused={**_GATE_UP, "input_linear": "gate, up"},
        ),
        "minimax": Family(experts="out_in", fused={**_GATE_UP, "qkv_proj": "qkv by head"}),
        "qwen3_next": Family(experts="out_in", fused={**_GATE_UP, "in_proj_qkvz": "linear qkv by head"}),
        **_families(
            "qwen3_5 qwen3_5_text qwen3_5_moe qwen3_5_moe_text",
            experts="out_in",
            fused={**_GATE_UP, "in_proj_qkv": "linear qkv in turn"},
        ),
        # fused in dense models
        **_families("phi3 phi4_multimodal", fused={**_GATE_UP, "qkv_proj": "qkv in turn"}),
        **_families("glm glm4 glm4v glm4v_text glm_ocr glm_ocr_text glm_image glm_image_text dia", fused=_GATE_UP),
        "modernbert": Family(fused={"Wqkv": "qkv in turn", "Wi": "gate, up"}),
        "mpt": Family(fused={"Wqkv": "qkv in turn"}),
        "dbrx": Family(fused={"Wqkv": "qkv in turn"}, merged=True),
        "qwen": Family(fused={"c_attn": "qkv in turn"}),
        "baichuan": Family(fused={"W_pack": "qkv in turn"}),
        "gpt_bigcode": Family(fused={"c_attn": "qkv by group"}),
        "internlm2": Family(fused={"wqkv": "qkv by group"}),
        **_families("falcon RefinedWeb RefinedWebModel", fused={"query_key_value": "qkv by group"}),
        **_families("gpt_neox gpt_neox_japanese bloom persimmon", fused={"query_key_value": "qkv by head"}),
        "deberta": Family(fused={"in_proj": "qkv by head"}),
        **_families("codegen moss", fused={"qkv_proj": "qvk by quarter"}),
    }
)
_NO_FAMILY = Family()
# What the projections of experts that are stored one by one are called, two into an expert and one out of it, and what
# transformers stacks them into when it loads them, the former two one below the other.
_INTO_EXPERTS = (("gate_proj", "up_proj"), ("w1", "w3"))
_OUT_OF_EXPERTS = ("down_proj", "w2")
_STACKED_INTO, _STACKED_OUT = "gate_up_proj", "down_proj"
# What else transformers calls otherwise when it has loaded it: on disk, and in memory.
_RENAMED = (
    ("block_sparse_moe.input_linear.weight", "block_sparse_moe.experts.gate_up_proj"),
    ("block_sparse_moe.output_linear.weight", "block_sparse_moe.experts.down_proj"),
    ("block_sparse_moe.router.layer.weight", "block_sparse_moe.router.weight"),
    ("block_sparse_moe.gate.weight", "mlp.gate.weight"),
    ("block_sparse_moe.gate.weight", "mlp.router.weight"),
)
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


def other_names(name: str) -> tuple[str, ...]:
    """Return what a tensor of a mixture may be called in the loaded model if `name` is of a file, and the other way.

    Examples
    --------
    >>> other_names("model.layers.0.mlp.gate.weight")
    ('model.layers.0.block_sparse_moe.gate.weight',)
    """
    pairs = [*_RENAMED, *((live, stored) for stored, live in _RENAMED)]
    return tuple(f"{name.removesuffix(one)}{other}" for one, other in pairs if name.endswith(f".{one}"))


def _block_of(stack: str) -> str:
    """The block that a stack of experts is in: of ``layers.0.mlp.experts.down_proj``, ``layers.0``."""
    return stack.rsplit(".", 3)[0]


def family_of(config: Mapping[str, Any] | None) -> Family:
    """Return what is known of a model's family; nothing particular where its type is not listed."""
    for said in () if config is None else (config, *languages_of(config)):
        kind = said.get("model_type")
        if isinstance(kind, str) and kind in FAMILIES:
            return FAMILIES[kind]
    return _NO_FAMILY
