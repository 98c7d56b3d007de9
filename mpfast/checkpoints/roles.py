"""What every tensor of a checkpoint is to its model, decided once, for the whole checkpoint, from what is known.

In this order: the types of the tensors beside it (quantised weights and their companions), names of factors of updates,
what the reader knows (classes of modules, nodes of a graph, storage), pairs of a weight and its mask, and what the
parameter shows by itself (`parameter_roles`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mpfast.checkpoints.adapter_names import factor_roles
from mpfast.checkpoints.bare import is_structured
from mpfast.checkpoints.base import Checkpoint, Role, TensorInfo
from mpfast.checkpoints.config_json import quantisation_of
from mpfast.checkpoints.parameter_roles import LAYERS, by_shape_and_name, of_parameter, unsupported_dtype
from mpfast.checkpoints.quantised_modules import companions_of

__all__ = [
    "companion_of",
    "quantised_weight",
    "roles_of",
    "shares_memory",
    "stays_dense",
    "unseen_quantisation",
]


def stays_dense(kind: str) -> bool:
    """Whether a layer is an embedding, or the output head of a language model: these stay dense unless asked for."""
    return kind in ("embedding", "head")


def quantised_weight(checkpoint: Checkpoint) -> str | None:
    """Name one quantised weight of a checkpoint; None where there is none."""
    for info in checkpoint.tensors:
        if info.stored:
            return info.name
    roles = roles_of(checkpoint)
    for role in roles.values():
        if role.kind == "companion":
            return role.of
    return next((name for name, role in roles.items() if role.kind == "quantised"), None)


def unseen_quantisation(checkpoint: Checkpoint) -> str:
    """Say that a configuration calls the weights quantised and none of the tensors looks so; empty otherwise.

    Either the weights were dequantised and the configuration was left as it was, or they are packed in a way that is
    not known here: nothing but the numbers could tell.
    """
    method = quantisation_of(getattr(checkpoint, "config", None))
    if not method or quantised_weight(checkpoint) is not None:
        return ""
    return (
        f"{checkpoint.source}: the configuration says that the weights are quantised ({method}), but no tensor is seen "
        "to be packed; they are taken for plain numbers. If they were dequantised, take that out of config.json, for "
        "whoever loads the model goes by it; if not, dequantise them first"
    )


def roles_of(checkpoint: Checkpoint) -> Mapping[str, Role]:
    """Return the role of every tensor of a checkpoint, by name, in its order.

    Examples
    --------
    >>> from mpfast.checkpoints.mapping import ArrayMapping
    >>> import numpy as np
    >>> model = {"q.weight": np.ones((8, 64), np.int8), "q.scale": np.ones((8, 16)), "out.weight": np.ones((16, 8))}
    >>> {name: role.kind for name, role in roles_of(ArrayMapping(model)).items()}
    {'q.weight': 'quantised', 'q.scale': 'companion', 'out.weight': 'linear'}
    """
    tensors = checkpoint.tensors
    config: Mapping[str, Any] | None = getattr(checkpoint, "config", None)
    infos = {info.name: info for info in tensors}
    roles: dict[str, Role] = {}
    method = quantisation_of(config)
    # What is seen as numbers, and what is stored of it, has its roles.
    unseen = [info for info in tensors if info.known is None or info.known.kind not in ("companion", "quantised")]
    companions, packed = companions_of(unseen, quantised=bool(method))
    for name, weight in companions.items():
        roles[name] = companion_of(weight)
    quantised = set(packed) if method else set(companions.values())
    for name in packed:
        if name in quantised:
            said = f"quantised ({method})" if method else f"quantised: {infos[name].dtype} with scales beside it"
            source = "config.json" if method else "companions"
            roles[name] = Role("quantised", reason=f"{said}: dequantise first", source=source)
    # Before the classes of modules: in a live model, factors are Linear modules, too.
    known = {name: _of_readable(info, info.known) for name, info in infos.items() if info.known is not None}
    for found in (factor_roles(tensors), known, _mask_roles(infos, config), _norm_roles(infos, config)):
        for name, role in found.items():
            roles.setdefault(name, role)
    structured = is_structured(infos)
    decided = {
        name: roles.get(name) or of_parameter(info, infos, config, structured=structured)
        for name, info in infos.items()
    }
    return {name: _kept_whole(role, infos[name].shared) for name, role in decided.items()}


def _of_readable(info: TensorInfo, role: Role) -> Role:
    """The role of a parameter by the class of its module, unless it is of a type that is not read."""
    reason = unsupported_dtype(info.dtype) if role.source == "module class" and not role.reason else None
    return Role("buffer", reason=reason, source="type") if reason else role


def companion_of(weight: str) -> Role:
    """Return the role of what belongs to a quantised weight."""
    reason = f"scale of the quantised {weight}, or what else belongs to it"
    return Role("companion", reason=reason, source="companions", of=weight)


def _kept_whole(role: Role, shared: tuple[str, ...]) -> Role:
    """The role of a tensor that shares memory: a zero in it would be one in another, which may not be written."""
    if not shared or role.fixed or role.kind not in LAYERS:
        return role
    return replace(role, fixed=f"{shares_memory(shared)}, which would change as well: make copies of them first")


def shares_memory(others: tuple[str, ...]) -> str:
    """Say with which tensors another one has entries in common."""
    more = f" and {len(others) - 1} more" if len(others) > 1 else ""
    return f"shares memory with {others[0]}{more}"


def _mask_roles(infos: Mapping[str, TensorInfo], config: Mapping[str, Any] | None) -> dict[str, Role]:
    """Weights below masks: ``weight_orig`` and ``weight_mask`` of `torch.nn.utils.prune`, and what `hold` leaves."""
    found = {}
    for name, info in infos.items():
        pruned = name.removesuffix("_mask")
        weight, called = f"{pruned}_orig", pruned
        held = re.fullmatch(r"(.*\.)?parametrizations\.([^.]+)\.\d+\.mask", name)
        if held:
            called = f"{held[1] or ''}{held[2]}"
            weight = f"{held[1] or ''}parametrizations.{held[2]}.original"
        elif pruned == name:
            continue
        elif weight not in infos:
            weight = pruned  # the mask of a weight that is pruned already
        if weight not in infos or infos[weight].shape != info.shape:
            continue
        found[name] = Role("mask", reason=f"mask of {called}", source="names of a pair", of=weight)
        if weight != called:
            role = by_shape_and_name(replace(infos[weight], name=called), {**infos, called: infos[weight]}, config)
            found[weight] = replace(role, called=called, masked_by=name)
    return found


def _norm_roles(infos: Mapping[str, TensorInfo], config: Mapping[str, Any] | None) -> dict[str, Role]:
    """Weight normalisation: lengths and directions, under the names of both of PyTorch's ways."""
    found = {}
    for name, info in infos.items():
        new = re.fullmatch(r"(.*\.)?parametrizations\.([^.]+)\.original1", name)
        old = None if new else re.fullmatch(r"(.*\.)?([^.]+)_v", name)
        if new:
            called, lengths = f"{new[1] or ''}{new[2]}", f"{name[:-1]}0"
        elif old:
            called, lengths = name[:-2], f"{name[:-2]}_g"
        else:
            continue
        scale = infos.get(lengths)
        if scale is None or len(scale.shape) != len(info.shape) or len(info.shape) < 2:
            continue
        if any(a not in (1, b) for a, b in zip(scale.shape, info.shape, strict=True)):
            continue
        role = by_shape_and_name(replace(info, name=called), {**infos, called: info}, config)
        fixed = "weight-normed: a zero would change the other weights; remove the parametrisation first"
        found[name] = replace(role, called=called, scaled_by=lengths, fixed=fixed)
        found[lengths] = Role(
            "part", reason=f"lengths of the weight-normed {called}", source="names of a pair", of=name
        )
    return found
