"""What an adapter's configuration says of each update: its rank, and its alpha, of which the scale is a ratio."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from mpfast.checkpoints.base import Checkpoint
from mpfast.checkpoints.tensor_bits import as_stored
from mpfast.support import CheckpointError, parse_json

__all__ = [
    "ADAPTER_CONFIG",
    "METADATA_KEY",
    "AdapterSettings",
    "live_settings",
    "packed_settings",
    "settings_beside",
    "unpacked_settings",
]

#: PEFT's configuration of an adapter, beside its weights.
ADAPTER_CONFIG = "adapter_config.json"
#: Where diffusers keeps the same in the header of a file, the names with that of the component before them.
METADATA_KEY = "lora_adapter_metadata"
_PEFT_PREFIX = "base_model.model."
# What PEFT calls alpha: of LoRA, of LoHa and LoKr.
_ALPHAS = ("lora_alpha", "alpha")
_BASE_LAYER = re.compile(r"\.base_layer(?=\.|$)")


@dataclass(frozen=True)
class AdapterSettings:
    """Ranks and alphas by module, as PEFT reads them.

    Attributes
    ----------
    values : mapping
        The configuration.
    prefix : str
        What the names of the tensors have before that of the module: ``base_model.model.``, ``transformer.``.
    """

    values: Mapping[str, Any]
    prefix: str

    #: Whether the updates have a factor of one number per rank, ``lora_E``, between their two.
    has_lengths: ClassVar[bool] = False

    @classmethod
    def of(cls, values: Mapping[str, Any], prefix: str) -> AdapterSettings:
        """Read a configuration as its kind of adapter does."""
        return (AdaLoraSettings if values.get("peft_type") == "ADALORA" else cls)(values, prefix)

    @property
    def alpha_name(self) -> str:
        """What the configuration calls alpha."""
        return next((name for name in _ALPHAS if name in self.values), _ALPHAS[0])

    def keys_of(self, module: str) -> list[str]:
        """Names that patterns may match for a module as the file calls it.

        That of the module in the model, or where parameters of it are tuned, those of the parameters: a file does not
        say which of several its factors are of.
        """
        name = _BASE_LAYER.sub("", module.removeprefix(self.prefix))
        parameters = self.values.get("target_parameters") or ()
        found = []
        for target in parameters if isinstance(parameters, list | tuple) else ():
            owner, _, parameter = str(target).rpartition(".")
            if owner and (name == owner or name.endswith(f".{owner}")):
                found.append(f"{name}.{parameter}")
        return found or [name]

    def rank(self, module: str) -> int | None:
        """Rank of a module's update; None where the configuration does not say, or says several."""
        found = {self._value(key, "rank_pattern", "r") for key in self.keys_of(module)}
        value = found.pop() if len(found) == 1 else None
        return int(value) if value is not None and value >= 1 and value == int(value) else None

    def scale(self, module: str, rank: int) -> float | None:
        """By what a module's update is multiplied: alpha / r, or alpha / sqrt(r); None where that is not said.

        Parameters
        ----------
        module
            As the file calls it.
        rank
            Of its factors, 0 where they have none. PEFT would not load factors of another rank than it is told.
        """
        alphas = {self._value(key, "alpha_pattern", self.alpha_name) for key in self.keys_of(module)}
        said = self.rank(module)
        alpha = alphas.pop() if len(alphas) == 1 else None
        return None if alpha is None or said is None or rank not in (0, said) else alpha / self._divisor(said)

    def change(self, before: int, after: int) -> float:
        """What the factors are to be multiplied by when their rank changes, for alpha cannot say it: 1 of LoRA."""
        return 1.0

    def with_ranks(self, wanted: Mapping[str, int], kept: Iterable[str]) -> dict[str, Any]:
        """Return the configuration with other ranks, and alphas that keep the scales.

        Parameters
        ----------
        wanted
            Rank of the update of each module, as the file calls it.
        kept
            The other modules that have updates, whose ranks stay.
        """
        modules = [*wanted, *kept]
        keys: dict[str, int | None] = {}
        for module in modules:
            for key in self.keys_of(module):
                keys.setdefault(key, wanted.get(module))
        ranks: dict[str, float] = {}
        alphas: dict[str, float] = {}
        for key, rank in keys.items():
            r, alpha = self._value(key, "rank_pattern", "r"), self._value(key, "alpha_pattern", self.alpha_name)
            if r is not None and alpha is not None and r > 0:
                ranks[key] = int(r) if rank is None else rank
                alphas[key] = _plain(alpha * self._divisor(ranks[key]) / self._divisor(r))
        if not ranks:
            return dict(self.values)
        # What parameters need is the default where it can be: PEFT warns of patterns that match no module.
        parameters = [key for module in modules if self.is_of_parameters(module) for key in self.keys_of(module)]
        among = [key for key in parameters if key in ranks] or list(ranks)
        r, alpha = Counter((ranks[key], alphas[key]) for key in among).most_common(1)[0][0]
        return {
            **self.values,
            "r": r,
            self.alpha_name: alpha,
            "rank_pattern": _pattern(ranks, r),
            "alpha_pattern": _pattern(alphas, alpha),
        }

    def is_of_parameters(self, module: str) -> bool:
        """Whether parameters of a module are tuned, rather than what it computes: of a stack of experts, say."""
        return self.keys_of(module) != [_BASE_LAYER.sub("", module.removeprefix(self.prefix))]

    def _divisor(self, rank: float) -> float:
        return math.sqrt(rank) if self.values.get("use_rslora") is True else float(rank)

    def _value(self, key: str, pattern: str, default: str) -> float | None:
        patterns = self.values.get(pattern) or {}
        found = self.values.get(default)
        for expression, value in patterns.items() if isinstance(patterns, Mapping) else ():
            if _matches(expression, key):
                found = value
                break
        return _number(found)


class AdaLoraSettings(AdapterSettings):
    """What PEFT's AdaLoRA says: the rank that all updates began with, and which of its ranks each has kept.

    The updates ``lora_B diag(lora_E) lora_A`` are multiplied by alpha over the rank at the beginning, to which PEFT
    adds 1e-5, however many are left; without an alpha above zero, the rank of the update takes its place.
    """

    has_lengths: ClassVar[bool] = True

    def rank(self, module: str) -> int | None:
        """Rank of a module's update; None where the configuration does not say."""
        kept = self._kept(module)
        return self._first_rank() if kept is None else sum(kept)

    def scale(self, module: str, rank: int) -> float | None:
        """By what a module's update of this rank is multiplied; None where that is not said.

        While a model is trained, its updates have all ranks, and zeros where they are to have none.
        """
        first, alpha = self._first_rank(), _number(self.values.get("lora_alpha"))
        if first is None or alpha is None or rank not in (self.rank(module), first):
            return None
        return (alpha if alpha > 0 else rank) / (first + 1e-5)

    def change(self, before: int, after: int) -> float:
        """See `AdapterSettings.change`."""
        alpha = _number(self.values.get("lora_alpha"))
        return 1.0 if alpha is None or alpha > 0 else before / after

    def with_ranks(self, wanted: Mapping[str, int], kept: Iterable[str]) -> dict[str, Any]:
        """Return the configuration with other ranks; see `AdapterSettings.with_ranks`."""
        patterns = dict(self._patterns())
        first = self._first_rank() or 0
        for module, rank in wanted.items():
            if rank != self.rank(module):
                patterns[self._key(module)] = [at < rank for at in range(first)]
        return {**self.values, "rank_pattern": patterns}

    def _first_rank(self) -> int | None:
        value = self.values.get("init_r")
        return value if type(value) is int and value >= 1 else None

    def _patterns(self) -> Mapping[str, Any]:
        found = self.values.get("rank_pattern")
        return found if isinstance(found, Mapping) else {}

    def _kept(self, module: str) -> list[bool] | None:
        """Which of a module's ranks are left; None where all are."""
        found = self._patterns().get(self._key(module))
        return found if isinstance(found, list) and all(type(kept) is bool for kept in found) else None

    def _key(self, module: str) -> str:
        return f"{module.removeprefix(self.prefix)}.lora_E"


def _number(value: Any) -> float | None:
    """Return what an entry says where that is a finite number."""
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable else None


def _matches(expression: Any, name: str) -> bool:
    """Whether PEFT takes a pattern for a module of this name: it is a regular expression for the end of it."""
    if not isinstance(expression, str):
        return False
    end, pattern = _compiled(expression)
    return name.endswith(end) and pattern is not None and pattern.match(name) is not None


@lru_cache(maxsize=1 << 14)
def _compiled(expression: str) -> tuple[str, re.Pattern[str] | None]:
    """What names that a pattern matches end with, as far as that shows, and the pattern; None where it is none.

    An adapter with a rank for each of a thousand modules has a thousand patterns.
    """
    try:
        pattern = re.compile(rf"(.*\.)?({expression})$")
    except (re.error, RecursionError, OverflowError):
        pattern = None
    plain = re.fullmatch(r"(\w+\.)*(\w+)", expression)
    return ("" if plain is None else plain[2]), pattern


def _pattern(values: Mapping[str, float], default: float) -> dict[str, float]:
    """What differs from the default by module, and what would else be taken for one of these; longer names first.

    PEFT takes the first key that a module's name ends with.
    """
    differing = [key for key, value in values.items() if value != default]
    taken = [key for key in values if any(_matches(other, key) for other in differing)]
    return {key: values[key] for key in sorted(taken, key=lambda key: (-len(key), key))}


def _plain(value: float) -> float:
    """A whole number without a fraction, which is how alphas are written."""
    near = round(value)
    return near if math.isclose(value, near, rel_tol=1e-12) and near else value


def live_settings(checkpoint: Checkpoint) -> dict[str, AdapterSettings]:
    """Return what PEFT's configurations in a live model say, by the names of its adapters."""
    adapters: Mapping[str, Mapping[str, Any]] = getattr(as_stored(checkpoint), "adapters", {})
    return {name: AdapterSettings.of(values, _PEFT_PREFIX) for name, values in adapters.items()}


def settings_beside(checkpoint: Checkpoint) -> AdapterSettings | None:
    """Return what the ``adapter_config.json`` beside a checkpoint's files says; None where there is none.

    Raises
    ------
    CheckpointError
        It is no JSON object.
    """
    try:
        source = Path(checkpoint.source)
        path = (source if source.is_dir() else source.parent) / ADAPTER_CONFIG
        if not source.exists() or not path.is_file():
            return None
    except (OSError, ValueError):  # no name that the system takes
        return None
    try:
        found = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: is no JSON object; PEFT writes one")
    return AdapterSettings.of(found, _PEFT_PREFIX)


def unpacked_settings(metadata: Mapping[str, str]) -> dict[str, AdapterSettings]:
    """Return what diffusers' entry in a file's header says, by what the names of the tensors begin with.

    One entry holds the configurations of all components of a pipeline: ``transformer.r``, ``text_encoder.r``.
    """
    try:
        found = parse_json(metadata.get(METADATA_KEY, "{}").encode())
    except ValueError:
        return {}
    values = found if isinstance(found, dict) else {}
    found_prefixes = {name[: -len("r")] for name in values if name == "r" or name.endswith(".r")}
    # An empty one, of a file of one component that is not named, begins every name: it comes last.
    prefixes = sorted(found_prefixes, key=len, reverse=True)
    return {
        prefix: AdapterSettings.of(
            {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}, prefix
        )
        for prefix in prefixes
    }


def packed_settings(settings: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the text of diffusers' entry for these configurations, by what the names of the tensors begin with."""
    values = {f"{prefix}{name}": value for prefix, found in settings.items() for name, value in found.items()}
    return json.dumps(values, indent=2, sort_keys=True)
