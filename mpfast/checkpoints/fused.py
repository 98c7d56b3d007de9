"""How projections that hold several matrices split along their outputs: data and rules, by family and configuration.

Where the configuration does not account for every output, the projection stays whole, and it is said why.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mpfast.checkpoints.base import OutputPart
from mpfast.checkpoints.config_json import setting
from mpfast.checkpoints.families import Family
from mpfast.checkpoints.quantised_modules import parent_of

__all__ = ["LAYOUTS", "FusedParts", "consecutive", "fused_parts", "is_fused_qkv"]

_QKV = ("query", "key", "value")
_WIDTH = ("hidden_size", "n_embd", "d_model")
# Projections that hold query, key and value one after the other, where no family says otherwise. Not
# "query_key_value": those alternate head by head in most.
_FUSED_QKV = re.compile(r"(^|[._/])(c_attn|qkv|qkv_proj|Wqkv|in_proj_weight|W_pack)([._/]|$)")
_FUSED = re.compile(r"^(gate_up(_proj)?|query_key_value|[Ww]?qkv(_proj)?|c_attn|W_pack|in_proj_qkvz?)$")


@dataclass(frozen=True)
class FusedParts:
    """How a projection splits.

    Attributes
    ----------
    parts : tuple of OutputPart
        Empty where it does not, or where that is not known.
    reason : str
        Why it is left whole; empty where it splits, or is no fused projection.
    """

    parts: tuple[OutputPart, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class _Layout:
    """The same matrices in each of so many blocks of outputs, one after the other, so many outputs each."""

    blocks: int
    sizes: tuple[tuple[str, int], ...]
    said: str = ""  # what the sizes follow from

    @property
    def outputs(self) -> int:
        return self.blocks * sum(size for _, size in self.sizes)

    def parts(self) -> tuple[OutputPart, ...]:
        period = self.outputs // self.blocks
        found, start = [], 0
        for label, size in self.sizes:
            found.append(OutputPart(label, start, size, self.blocks, period if self.blocks > 1 else 0))
            start += size
        return tuple(found)


def consecutive(*sizes: tuple[str, int]) -> tuple[OutputPart, ...]:
    """Parts of so many outputs each, one after the other."""
    return _Layout(1, sizes).parts()


def fused_parts(
    name: str, shape: tuple[int, ...], inputs: tuple[int, ...], config: Mapping[str, Any] | None, family: Family
) -> FusedParts:
    """Say how a projection splits along its outputs.

    Parameters
    ----------
    name
        Of the tensor.
    shape
        (rows, columns), or (experts, rows, columns).
    inputs
        The axis of the inputs; a projection of which it is not known stays whole.
    config
        Of the model; None where there is none, or where the family is known from elsewhere.
    family
        Of the model.

    Examples
    --------
    >>> config = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    >>> family = Family(fused={"wqkv": "qkv by group"})
    >>> found = fused_parts("layers.0.wqkv.weight", (128, 64), (1,), config, family)
    >>> [(part.label, part.start, part.length, part.runs, part.stride) for part in found.parts]
    [('query', 0, 32, 2, 64), ('key', 32, 16, 2, 64), ('value', 48, 16, 2, 64)]
    >>> fused_parts("layers.0.wqkv.weight", (144, 64), (1,), config, family).reason
    'its 144 outputs are not the 128 of 4 heads of 16 and 2 of keys and of values, as config.json has them'
    """
    module, base = parent_of(name)
    owner = parent_of(module)[1] if base == "weight" else base
    is_fused = owner in family.fused or _FUSED.search(owner) is not None
    if len(inputs) != 1 or len(shape) not in (2, 3):
        return FusedParts(reason="which of its axes the inputs are is not known" if is_fused else "")
    outputs, width = shape[2 * len(shape) - 3 - inputs[0]], shape[inputs[0]]
    layout = family.fused.get(owner)
    if layout is None:
        if len(shape) == 2 and outputs == 3 * width and is_fused_qkv(name):
            return FusedParts(consecutive(*((label, width) for label in _QKV)))
        return FusedParts(reason=_not_known(config) if is_fused else "")
    expected = setting(config, *_WIDTH)
    if expected is not None and width != expected:
        return FusedParts(reason=f"its {width} inputs are not the {expected} of the model, as config.json has it")
    found = LAYOUTS[layout](outputs, config or {})
    if isinstance(found, str):
        return FusedParts(reason=found)
    if found.outputs != outputs:
        return FusedParts(reason=f"its {outputs} outputs are not the {found.outputs} of {found.said}")
    return FusedParts(found.parts())


def _not_known(config: Mapping[str, Any] | None) -> str:
    kind = None if config is None else config.get("model_type")
    without = "without the model_type in config.json" if kind is None else f"of the model_type {kind!r}"
    return f"how its matrices lie in it is not known {without}"


def is_fused_qkv(name: str) -> bool:
    """Whether a name says that a projection holds queries, keys and values, each of them in one piece."""
    return _FUSED_QKV.search(name) is not None


def _heads(config: Mapping[str, Any]) -> tuple[int, int, int] | str:
    """Heads of queries, of keys, and the outputs of each; or what is missing."""
    heads = setting(config, "num_attention_heads", "n_head", "n_heads")
    width = setting(config, *_WIDTH)
    length = setting(config, "head_dim", "kv_channels") or (width // heads if heads and width else None)
    if heads is None or length is None:
        return "config.json does not say how many heads of which length there are"
    grouped = setting(config, "num_key_value_heads", "num_kv_heads", "n_head_kv", "kv_n_heads") or heads
    shared = config.get("multi_query")
    if shared is None or config.get("new_decoder_architecture") is True:
        return heads, grouped, length
    return heads, 1 if shared is True else heads, length


def _said(heads: int, pairs: int, length: int) -> str:
    return f"{heads} heads of {length} and {pairs} of keys and of values, as config.json has them"


def _qkv_in_turn(outputs: int, config: Mapping[str, Any]) -> _Layout | str:
    """All queries, all keys, all values."""
    found = _heads(config)
    if isinstance(found, str):
        return found
    heads, pairs, length = found
    return _Layout(1, tuple(zip(_QKV, (heads * length, pairs * length, pairs * length), strict=True)), _said(*found))


def _qkv_by_group(outputs: int, config: Mapping[str, Any]) -> _Layout | str:
    """For every head of keys the queries that share it, it, and its values."""
    found = _heads(config)
    if isinstance(found, str):
        return found
    heads, pairs, length = found
    if heads % pairs:
        return f"{heads} heads are not shared out over {pairs} of keys, as config.json has them"
    return _grouped(heads, pairs, length)


def _qkv_by_head(outputs: int, config: Mapping[str, Any]) -> _Layout | str:
    """For every head its query, key and value, whatever other layers of the model share."""
    found = _heads(config)
    return found if isinstance(found, str) else _grouped(found[0], found[0], found[2])


def _grouped(heads: int, pairs: int, length: int) -> _Layout:
    sizes = (heads // pairs * length, length, length)
    return _Layout(pairs, tuple(zip(_QKV, sizes, strict=True)), _said(heads, pairs, length))


def _qvk_by_quarter(outputs: int, config: Mapping[str, Any]) -> _Layout | str:
    """Queries, values and keys of every quarter of the heads."""
    found = _heads(config)
    if isinstance(found, str):
        return found
    heads, _, length = found
    if heads * length % 4:
        return f"{heads} heads of {length} have no quarters"
    return _Layout(
        4, tuple((label, heads * length // 4) for label in ("query", "value", "key")), _said(heads, heads, length)
    )


def _linear_sizes(config: Mapping[str, Any]) -> tuple[int, int, int, int] | str:
    """Of linear attention: heads of keys, the outputs of each, heads of values, the outputs of each."""
    names = ("num_key_heads", "key_head_dim", "num_value_heads", "value_head_dim")
    found = [size for name in names if (size := setting(config, f"linear_{name}")) is not None]
    if len(found) < len(names):
        return "config.json does not say how many heads of which length linear attention has"
    keys, length, values, value_length = found
    return keys, length, values, value_length


def _linear_in_turn(outputs: int, config: Mapping[str, Any]) -> _Layout | str:
    """All queries, all keys, all values of linear attention."""
    found = _linear_sizes(config)
    if isinstance(found, str):
        return found
    keys, length, values, value_length = found
    sizes = (keys * length, keys * length, values * value_length)
    return _Layout(1, tuple(zip(_QKV, sizes, strict=True)), _said_of_linear(*found))


def _linear_by_head(outputs: int, config: Mapping[str, Any]) -> _Layout | str:
    """For every head of keys of linear attention its queries, keys, and values and gates that share it."""
    found = _linear_sizes(config)
    if isinstance(found, str):
        return found
    keys, length, values, value_length = found
    if values % keys:
        return f"{values} heads of values are not shared out over {keys} of keys, as config.json has them"
    shared = values // keys * value_length
    sizes = (length, length, shared, shared)
    return _Layout(keys, tuple(zip((*_QKV, "gate"), sizes, strict=True)), _said_of_linear(*found))


def _said_of_linear(keys: int, length: int, values: int, value_length: int) -> str:
    return f"{keys} heads of keys of {length} and {values} of values of {value_length}, as config.json has them"


def _halves(outputs: int, config: Mapping[str, Any]) -> _Layout | str:
    """The gate, which is activated, and what it is multiplied with."""
    if outputs % 2:
        return f"its {outputs} outputs have no halves"
    return _Layout(1, (("gate", outputs // 2), ("up", outputs // 2)))


def _alternating(outputs: int, config: Mapping[str, Any]) -> _Layout | str:
    """An output of the gate and one of what it is multiplied with, in turn."""
    if outputs % 2:
        return f"its {outputs} outputs have no halves"
    return _Layout(outputs // 2, (("gate", 1), ("up", 1)))


#: Layouts of `Family.fused` by name: from the number of outputs and the configuration.
LAYOUTS: Mapping[str, Callable[[int, Mapping[str, Any]], _Layout | str]] = {
    "qkv in turn": _qkv_in_turn,
    "qkv by group": _qkv_by_group,
    "qkv by head": _qkv_by_head,
    "qvk by quarter": _qvk_by_quarter,
    "linear qkv in turn": _linear_in_turn,
    "linear qkv by head": _linear_by_head,
    "gate, up": _halves,
    "gate and up alternating": _alternating,
}
