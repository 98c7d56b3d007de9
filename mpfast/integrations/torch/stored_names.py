"""Which tensors of a checkpoint the tensors of a live model are made of, and back.

transformers calls and stacks weights in memory otherwise than on disk: a prefix more or less, the experts of a mixture
in one parameter. What is what is asked of transformers itself, and what it says is tried out on the weights before
anything is written: there and back must give the same bits.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from mpfast.support import InvalidValueError

__all__ = ["StoredNames"]

_LISTED = 3


@dataclass
class _Origin:
    """Tensors of a checkpoint that are loaded together.

    Attributes
    ----------
    sources : list of (str, str)
        Names in the checkpoint, and the pattern that each has matched.
    converter
        What makes live tensors of them; None where it is one tensor under another name, or the same.
    made : tuple of str
        The live tensors, once these were made; empty where there is no converter.
    """

    sources: list[tuple[str, str]] = field(default_factory=list)
    converter: Any = None
    made: tuple[str, ...] = ()


class StoredNames:
    """Names of a checkpoint's tensors against those of a model.

    Parameters
    ----------
    model : Module
        The model; its weights need not be there.
    names : iterable of str
        The checkpoint's tensors.
    """

    def __init__(self, model: torch.nn.Module, names: Iterable[str]) -> None:
        self._model = model
        # By the name of the (first) live tensor that is made of them.
        self._origins: dict[str, _Origin] = {}
        self._ties: dict[str, list[str]] = {}
        tied: dict[int, list[str]] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            self._ties[name] = tied.setdefault(id(parameter), [])
            tied[id(parameter)].append(name)
        self._match(sorted(names, key=_natural), set(model.state_dict()))

    def _match(self, names: Sequence[str], live: set[str]) -> None:
        if not hasattr(self._model, "base_model_prefix"):
            self._origins = {name: _Origin([(name, name)]) for name in names if name in live}
            return
        rename, conversions, converters = _conversions(self._model)
        infos = dict.fromkeys(live, True)
        for name in names:
            called, pattern = rename(name, infos)
            if called not in live and name in live:
                called, pattern = name, None
            if called not in live:
                continue  # the model has no such tensor: it stays as it is
            origin = self._origins.setdefault(called, _Origin())
            origin.sources.append((name, name if pattern is None else pattern))
            if pattern is not None and origin.converter is None:
                origin.converter = converters[pattern]
        if conversions:
            # Where transformers itself notes them for `save_pretrained`.
            self._model._weight_conversions = [each for each in conversions if each.was_used()]

    def counts(self, stored: Mapping[str, int]) -> dict[str, int]:
        """Sum up numbers of stored tensors over those that make up a live one, if all of these, or itself, have one."""
        return {
            live: stored[live] if live in stored else sum(stored[name] for name, _ in origin.sources)
            for live, origin in self._origins.items()
            if live in stored or all(name in stored for name, _ in origin.sources)
        }

    def outside(self, prefixes: Iterable[str]) -> list[str]:
        """Return the first live tensors of everything that lies in none of these modules."""
        starts = tuple(f"{prefix}." for prefix in prefixes)
        return [name for name in self._origins if not name.startswith(starts)]

    def inside(self, prefix: str) -> list[str]:
        """Return the first live tensors of everything that lies in a module."""
        return [name for name in self._origins if name.startswith(f"{prefix}.")]

    def read(self, names: Iterable[str], read: Callable[[str], torch.Tensor]) -> dict[str, torch.Tensor]:
        """Make live tensors.

        Parameters
        ----------
        names
            The first live tensors of what is to be read.
        read
            Gives a tensor of the checkpoint.
        """
        found: dict[str, torch.Tensor] = {}
        for name in names:
            origin = self._origins[name]
            if origin.converter is None:
                found[name] = read(origin.sources[0][0])
                continue
            converter = copy.deepcopy(origin.converter)
            for source, pattern in origin.sources:
                converter.add_tensor(name, source, pattern, read(source))
            try:
                made = converter.convert(name, model=self._model, config=self._model.config)
            except Exception as error:  # whatever code of others raises
                count = len(origin.sources)
                fact = f"{name}: transformers cannot make it of the {count} tensors that are there"
                raise InvalidValueError("model", f"{fact}: {type(error).__name__}: {error}") from error
            origin.made = tuple(made)
            found |= {live: value[0] if isinstance(value, list) else value for live, value in made.items()}
        return found

    def complete(
        self, prefix: str, found: dict[str, torch.Tensor], read: Callable[[str], torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Add what is stored under the name of another that it is one with; all tensors of a module must be there.

        Raises
        ------
        InvalidValueError
            Some are not.
        """
        wanted = [f"{prefix}.{name}" for name in self._model.get_submodule(prefix).state_dict()]
        for name in wanted:
            if name not in found:
                other = next((each for each in self._ties.get(name, ()) if each in self._origins), None)
                if other is not None:
                    found[name] = self.read([other], read)[other]
        missing = [name for name in wanted if name not in found]
        if missing:
            more = f" and {len(missing) - _LISTED} more" if len(missing) > _LISTED else ""
            raise InvalidValueError(
                "model",
                f"has no tensors that {', '.join(missing[:_LISTED])}{more} could be made of",
                "load it with from_pretrained, and pass the module to reconstruct_model",
            )
        return {name: found[name] for name in wanted}

    def called(self, name: str) -> list[str]:
        """Return all names of a live tensor."""
        return self._ties.get(name, [name])

    def first_of(self, live: str) -> str:
        """Return the first live tensor of what a live tensor, which was read, is made of."""
        for first, origin in self._origins.items():
            if live in (origin.made or (first,)):
                return first
        return next(each for each in self._ties[live] if each in self._origins)

    def same_as(self, live: str) -> str | None:
        """Return the stored tensor that a live one is, whole and alone; None where there is none."""
        origin = self._origins[self.first_of(live)]
        return origin.sources[0][0] if origin.converter is None else None

    def made_with(self, first: str) -> tuple[str, ...]:
        """Return all live tensors, which were read, that are made of the same ones as this first one."""
        return self._origins[first].made or (first,)

    def write(self, first: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Turn live tensors back into those of the checkpoint that they are made of; masks of them, too.

        Raises
        ------
        InvalidValueError
            The names are not those of the checkpoint.
        """
        origin = self._origins[first]
        if origin.converter is None:
            return {origin.sources[0][0]: tensors[first]}
        turned = self._turned_back(tensors)
        if set(turned) != {name for name, _ in origin.sources}:
            raise InvalidValueError("model", f"{first}: transformers gives it other names than the checkpoint has")
        return turned

    def _turned_back(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        module = importlib.import_module("transformers.core_model_loading")
        turned: dict[str, torch.Tensor] = module.revert_weight_conversion(self._model, dict(tensors))
        return turned


def _conversions(model: Any) -> tuple[Callable[[str, Any], tuple[str, str | None]], list[Any], dict[str, Any]]:
    """How transformers renames and converts what a checkpoint of this model holds.

    Versions before 5 convert nothing: there a prefix may be more or less.
    """
    prefix = model.base_model_prefix
    try:
        loading = importlib.import_module("transformers.core_model_loading")
        mapping = importlib.import_module("transformers.conversion_mapping")
        conversions = mapping.get_model_conversion_mapping(model)
        renamings = [each for each in conversions if isinstance(each, loading.WeightRenaming)]
        converters = [each for each in conversions if isinstance(each, loading.WeightConverter)]
        renamed = loading.rename_source_key
    except (ImportError, AttributeError):
        return (lambda name, live: (_with_prefix(name, prefix, live), None)), [], {}

    def rename(name: str, live: Any) -> tuple[str, str | None]:
        found: tuple[str, str | None] = renamed(name, renamings, converters, prefix, live)
        return found

    return rename, conversions, {pattern: each for each in converters for pattern in each.source_patterns}


def _with_prefix(name: str, prefix: str, live: Mapping[str, Any]) -> str:
    """The live name of a tensor of the model without its head, or of one that has a head more."""
    candidates = (name, name.removeprefix(f"{prefix}."), f"{prefix}.{name}")
    return next((each for each in candidates if each in live), name)


def _natural(name: str) -> list[tuple[Any, ...]]:
    """Experts in the order of their numbers, 10 after 9: transformers stacks them as they come."""
    key: list[tuple[Any, ...]] = []
    for part in name.split("."):
        text = part.rstrip("0123456789")
        key.append((1, text, int(part[len(text) :] or -1)) if text else (0, int(part)) if part else (1, "", -1))
    return key
