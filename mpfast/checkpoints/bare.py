"""Parameters that are no ``<module>.weight``: which of them are matrices all the same, and which are left open.

Projections and stacks of experts are called so; a decay, a table of relative positions or a state of an optimiser has
two dimensions as well, and is no matrix that a model multiplies with.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from mpfast.checkpoints.base import Role, TensorInfo
from mpfast.checkpoints.config_json import experts_of
from mpfast.checkpoints.families import family_of
from mpfast.checkpoints.quantised_modules import parent_of

__all__ = ["bare", "is_bare", "is_structured", "merged_experts", "optimiser_state"]

# What frameworks call the weight of a module, and what they store in its place.
_WEIGHT = re.compile(r"(^|_)(weights?|kernels?)(_(ih|hh|hr)(_l\d+(_reverse)?)?)?(_?\d+|_(orig|raw|bar))?$")
# Matrices without a module of their own: proj, gate_up_proj, text_projection, qkv; W_Q, w1, wi_0 of one's own.
_MATRIX = re.compile(
    r"(^|_)(proj|projection|matrix|qkv)$|^W[A-Za-z_]*\d*$|^U\d*$|^w([_io]|\d)*$|^[uv]\d+$|^(fc|mlp)\d+$|"
    r"^c_(attn|fc)$|_linear$"
)
_STACK = re.compile(r"(^|[._/])(experts?|moe)([._/]|$)")
_SEVERAL = re.compile(r"(^|[._/])experts[._/](?!\d)")
_OPTIMISER = re.compile(
    r"(^|[./])(optim(izer)?s?(_?states?)?(_dict)?|opt_states?)[./]|"
    r"(^|[./_])(exp_avg(_sq)?|max_exp_avg_sqs?|momentum_buffer|square_avg|grad_avg|acc_delta|exp_inf)([./]|$)"
)
# The longest group of an n:m pattern for which an expert's inputs are looked at.
_LONGEST_GROUP = 16


def is_structured(names: Iterable[str]) -> bool:
    """Whether names tell modules from their parameters; those that do not are the user's own, of plain arrays."""
    return any(_split(name)[0] for name in names)


def is_bare(name: str) -> bool:
    """Whether the last part of a name is not what frameworks call the weight of a module."""
    return _WEIGHT.search(_split(name)[1]) is None


def bare(info: TensorInfo) -> Role | None:
    """The role of a parameter by itself: unknown; None where its name says that it is a matrix, or a stack of them.

    Examples
    --------
    >>> bare(TensorInfo("mixer.A_log", (1536, 16), "float32")).kind
    'unknown'
    >>> bare(TensorInfo("visual.proj", (768, 512), "float32")) is None
    True
    """
    called = _MATRIX.search(_split(info.name)[1]) is not None
    if (len(info.shape) == 2 and called) or (len(info.shape) == 3 and (called or _STACK.search(info.name))):
        return None
    reason = (
        "a parameter by itself, and what the model does with it is not known; if it is a matrix, call it "
        "<module>.weight (out, in) or <module>.kernel (in, out)"
    )
    return Role("unknown", reason=reason)


def merged_experts(info: TensorInfo, config: Mapping[str, Any] | None) -> Role | None:
    """The role of a matrix that belongs to several experts at once; None for any other."""
    if len(info.shape) != 2 or not _SEVERAL.search(info.name):
        return None
    count = experts_of(config) if family_of(config).merged else None
    if not count or info.shape[0] % count:
        reason = (
            "one matrix of several experts: how many lie in it, and how, is not known without the model_type and the "
            "number of experts in config.json"
        )
        return Role("unknown", reason=reason, source="name")
    out_of = parent_of(info.name)[1] == "w2"
    whole = info.shape[0] // count % _LONGEST_GROUP == 0  # no group along the rows belongs to two experts
    inputs = ((0,) if whole else ()) if out_of else (1,)
    return Role("experts", inputs, source="config.json", stacked=count)


def optimiser_state(info: TensorInfo) -> Role | None:
    """The role of what an optimiser keeps of every weight, in its shape and often under its name; None for others."""
    if len(info.shape) < 2 or not _OPTIMISER.search(info.name):
        return None
    return Role("buffer", reason="state of an optimiser: no weight of the model")


def _split(name: str) -> tuple[str, str]:
    """The module and the last part of a name that is no number: of weights.0, weights; of kernel:0, kernel."""
    module, base = parent_of(name)
    while base.isdigit() and module:
        module, base = parent_of(module)
    return module, base.partition(":")[0]
