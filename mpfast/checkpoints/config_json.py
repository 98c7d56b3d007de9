"""The ``config.json`` of a model: read, checked value by value, and asked for sizes and for quantisation.

A value that is said and cannot be would pass for one that is not said, and what follows would be guessed: it is an
error where the file is read, whoever asks for it later, or nobody.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from mpfast.support import CheckpointError, short, unique_keys

__all__ = [
    "checked_config",
    "experts_of",
    "languages_of",
    "quantisation_of",
    "quantisation_settings",
    "read_config",
    "setting",
    "with_dtype",
    "without_quantisation",
]


class _Kind(NamedTuple):
    """What a setting can be, if it is said at all.

    Attributes
    ----------
    told : str
        In words.
    accepts : callable
        Whether a value is such a one.
    """

    told: str
    accepts: Callable[[Any], bool]


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


_COUNT = _Kind(
    "a whole number, or a list of them",  # a list: one for each block
    lambda value: _is_count(value) or (isinstance(value, list | tuple) and all(map(_is_count, value))),
)
_TEXT = _Kind("a text", lambda value: isinstance(value, str))
_TEXTS = _Kind(
    "a list of texts",
    lambda value: isinstance(value, list | tuple) and all(isinstance(one, str) for one in value),
)
_SWITCH = _Kind("true or false", lambda value: isinstance(value, bool))
_OBJECT = _Kind("an object", lambda value: isinstance(value, Mapping))

# What configurations say of quantisation is under one of these, by itself or in the part on the language model.
_ON_QUANTISATION = ("quantization_config", "quantization", "compression_config")
# Under which transformers' models say the type of their weights, before version 5 and since.
_DTYPE = ("torch_dtype", "dtype")
_ON_LANGUAGE = ("text_config", "llm_config", "language_config", "thinker_config")
_ON_LAYERS = ("attn_config", "ffn_config")
_COUNTS = (
    "hidden_size n_embd d_model vocab_size intermediate_size n_inner d_ff ffn_dim hidden_dim "
    "num_attention_heads n_head n_heads head_dim kv_channels num_key_value_heads num_kv_heads n_head_kv kv_n_heads "
    "linear_num_key_heads linear_key_head_dim linear_num_value_heads linear_value_head_dim "
    "moe_num_experts num_local_experts num_experts"
)
# All that is read of a configuration but its parts, by name.
_KINDS: Mapping[str, _Kind] = MappingProxyType(
    {
        "model_type": _TEXT,
        "architectures": _TEXTS,
        "quantization_config": _OBJECT,
        **dict.fromkeys(_COUNTS.split(), _COUNT),
        **dict.fromkeys(("multi_query", "new_decoder_architecture", "is_encoder_decoder"), _SWITCH),
    }
)


def read_config(directory: Path) -> Mapping[str, Any] | None:
    """Return what the ``config.json`` of a directory says; None where there is none.

    Raises
    ------
    CheckpointError
        It is no JSON object, has a key twice, or says of what is read of it something that cannot be.
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
    return checked_config(config, str(path))


def checked_config(config: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Return a configuration whose values are all that they can be; `where` it stands is for messages.

    Raises
    ------
    CheckpointError
        A value that is read is of another kind.

    Examples
    --------
    >>> checked_config({"hidden_size": "64"}, "config.json")
    Traceback (most recent call last):
        ...
    mpfast.support.errors.CheckpointError: config.json: hidden_size must be a whole number, or a list of them, not '64'
    """
    _check(config, where)
    for key, part in _parts_of(config, *_ON_LANGUAGE, *_ON_LAYERS):
        _check(part, f"{where}: {key}")
    return config


def _check(values: Mapping[str, Any], where: str) -> None:
    for name, kind in _KINDS.items():
        value = values.get(name)
        if value is not None and not kind.accepts(value):
            raise CheckpointError(f"{where}: {name} must be {kind.told}, not {short(value)}")


def setting(config: Mapping[str, Any] | None, *names: str) -> int | None:
    """Return the first positive integer that a configuration has by these names, or one of its parts.

    These are those on the language model, its attention and its feed-forward layers. A list has a number for each block
    and so none of the model.
    """
    if config is None:
        return None
    for said in (config, *languages_of(config), *(part for _, part in _parts_of(config, *_ON_LAYERS))):
        for name in names:
            if _KINDS[name] is not _COUNT:
                raise KeyError(name)  # else it would not have been checked
            value = said.get(name)
            if type(value) is int and value > 0:
                return value
    return None


def experts_of(config: Mapping[str, Any] | None) -> int | None:
    """Return the number of experts that a configuration says."""
    return setting(config, "moe_num_experts", "num_local_experts", "num_experts")


def languages_of(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Return the part on the language model, if there is one; looked for when it is asked for."""
    return (part for _, part in islice(_parts_of(config, *_ON_LANGUAGE), 1))


def _parts_of(config: Mapping[str, Any], *keys: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    return ((key, config[key]) for key in keys if key in config and isinstance(config[key], Mapping))


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
    for said in () if config is None else (config, *languages_of(config)):
        yield from ((key, found) for key, found in _parts_of(said, *_ON_QUANTISATION) if found)


def without_quantisation(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration that says nothing of the quantisation of the weights."""
    kept = {key: value for key, value in config.items() if key not in _ON_QUANTISATION}
    for key in _ON_LANGUAGE:
        if isinstance(kept.get(key), Mapping):
            kept[key] = {name: value for name, value in kept[key].items() if name not in _ON_QUANTISATION}
    return kept


def with_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """Return a configuration that names this type of two bytes, where it names any but a wider one."""
    kept = dict(config)
    for key in _DTYPE:
        if isinstance(kept.get(key), str) and kept[key].removeprefix("torch.") not in ("float32", "float64", "auto"):
            kept[key] = dtype
    for key in _ON_LANGUAGE:
        if isinstance(kept.get(key), Mapping):
            kept[key] = with_dtype(kept[key], dtype)
    return kept
