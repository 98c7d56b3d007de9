"""A model block by block: what each block is called with, and hidden states that run through it."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from mpfast.integrations.torch.sites import experts_one_by_one
from mpfast.support import CheckpointError, InputError, InvalidValueError

__all__ = ["Call", "blocks_of", "call_block", "calls_of", "first_tensor", "states_of", "undisturbed"]


@dataclass
class Call:
    """What a block is called with beside its hidden states.

    Attributes
    ----------
    args, keywords
        The other arguments.
    keyword : str
        The name under which the hidden states come; empty where they come first.
    """

    args: tuple[Any, ...]
    keywords: dict[str, Any]
    keyword: str


def blocks_of(model: torch.nn.Module, blocks: str | Sequence[str]) -> dict[str, torch.nn.Module]:
    """Return the blocks of a model by name, in the order of the model.

    Parameters
    ----------
    blocks
        ``"auto"``: the members of the list of modules that has the most parameters, of those that lie in no other one;
        or patterns of names.
    """
    named = dict(model.named_modules())
    if blocks != "auto":
        patterns = [blocks] if isinstance(blocks, str) else list(blocks)
        found = {
            name: module
            for name, module in named.items()
            if any(fnmatch.fnmatchcase(name, pattern) and name.count(".") == pattern.count(".") for pattern in patterns)
        }
        if not found:
            raise InvalidValueError("blocks", f"matches no module: {blocks!r}")
        return found
    lists: list[str] = []
    for kind in (torch.nn.ModuleList, torch.nn.Sequential):
        for name, module in named.items():
            inside = any(name.startswith(f"{other}.") or other == "" for other in lists)
            if isinstance(module, kind) and len(module) and not inside:
                lists.append(name)
        if lists:
            break
    if not lists:
        raise InvalidValueError("blocks", "the model has no list of modules", "name its blocks by a pattern")
    longest = max(lists, key=lambda name: sum(parameter.numel() for parameter in named[name].parameters()))
    return {f"{longest}.{key}" if longest else key: module for key, module in named[longest].named_children()}


def first_tensor(output: Any) -> torch.Tensor:
    """The hidden states in what a block returns: itself, or the first of several."""
    if isinstance(output, torch.Tensor):
        return output
    values = list(output.values()) if isinstance(output, Mapping) else list(output)
    if not values or not isinstance(values[0], torch.Tensor):
        raise InvalidValueError("blocks", "return no tensor, nor one first of several")
    return values[0]


def call_block(block: torch.nn.Module, hidden: torch.Tensor, call: Call) -> torch.Tensor:
    """Run a block on hidden states."""
    if call.keyword:
        return first_tensor(block(*call.args, **{**call.keywords, call.keyword: hidden}))
    return first_tensor(block(hidden, *call.args, **call.keywords))


class _Alike:
    """Keeps tensors that are equal, such as the positions of batches of one length, once."""

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], torch.Tensor] = {}

    def calls(self, calls: Mapping[str, Call]) -> dict[str, Call]:
        """The same calls of one batch with tensors that were there before, where there were equal ones."""
        known: dict[int, torch.Tensor] = {}  # blocks mostly get the very same ones

        def kept(value: Any) -> Any:
            if type(value) in (tuple, list):
                return type(value)(map(kept, value))
            if type(value) is not torch.Tensor or value.device.type != "cpu" or value.layout is not torch.strided:
                return value
            if id(value) not in known:
                bits = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
                key = value.dtype, tuple(value.shape), value.stride(), hashlib.sha256(bits).digest()
                known[id(value)] = self._kept.setdefault(key, value)
            return known[id(value)]

        return {
            name: Call(
                tuple(map(kept, call.args)), {key: kept(value) for key, value in call.keywords.items()}, call.keyword
            )
            for name, call in calls.items()
        }


class _EnoughError(Exception):
    """Nothing that comes after is needed."""


def calls_of(
    model: torch.nn.Module, blocks: Mapping[str, torch.nn.Module], batches: Iterable[Any]
) -> tuple[list[torch.Tensor], list[dict[str, Call]], list[torch.Tensor | None]]:
    """Run the model over the batches, up to its last block; over the first one up to its head, for what comes after.

    A block that is called again after the last one shows only there. The logits of a language model take much memory,
    and no block follows them.

    Returns
    -------
    hidden : list of Tensor
        What the first block gets, by batch.
    calls : list of dict
        What else each block gets, by batch and name.
    valid : list of Tensor or None
        Which places are no padding, by batch, as the batch's ``attention_mask`` says.

    Raises
    ------
    InvalidValueError
        A block is not called once in each pass, or does not get what the one before it returned; or the model does not
        run on a batch.
    """
    hidden, calls, valid = [], [], []
    alike = _Alike()
    for number, batch in enumerate(batches):
        with _named_batch(number):
            first, found = _one_pass(model, blocks, batch, to_its_head=number == 0)
        mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
        fits = isinstance(mask, torch.Tensor) and mask.shape == first.shape[:-1]
        hidden.append(first)
        calls.append(alike.calls(found))
        valid.append(mask.bool() if fits and mask is not None else None)
    if not hidden:
        raise InvalidValueError("batches", "are empty")
    return hidden, calls, valid


@contextmanager
def _named_batch(number: int) -> Iterator[None]:
    """Say which batch a model has failed on, unless it is something of ours that was wrong, or memory."""
    try:
        yield
    except (InputError, CheckpointError, torch.cuda.OutOfMemoryError):
        raise
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise InvalidValueError(
            "batches",
            f"hold one that the model does not run on, number {number}: {type(error).__name__}: {error}",
            "each is what a forward pass takes: a tensor, a tuple, or a mapping of arguments",
        ) from error


def _one_pass(
    model: torch.nn.Module, blocks: Mapping[str, torch.nn.Module], batch: Any, *, to_its_head: bool
) -> tuple[torch.Tensor, dict[str, Call]]:
    names = list(blocks)
    found: dict[str, Call] = {}
    start: list[torch.Tensor] = []
    returned: list[tuple[str, torch.Tensor, int | None]] = []

    def before(name: str, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if name in found:
            raise InvalidValueError("blocks", f"{name} is called more than once in a pass", "name other ones")
        states, keyword = states_of(name, args, keywords)
        if not start:
            start.append(states.detach().clone())
        elif not _is_as_returned(states, *returned[-1][1:]):
            raise InvalidValueError(
                "blocks", f"{name} is not handed what {returned[-1][0]} returned", "name blocks that follow each other"
            )
        found[name] = Call(args[1:], {key: value for key, value in keywords.items() if key != keyword}, keyword)

    def after(name: str, output: Any) -> None:
        output = first_tensor(output)
        returned.append((name, output, _version(output)))
        if len(found) == len(names) and not to_its_head:
            raise _EnoughError

    def at_the_head(*_: Any) -> None:
        if len(found) == len(names):
            raise _EnoughError

    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    hooks = [] if head is None else [head.register_forward_pre_hook(at_the_head)]
    for name, block in blocks.items():
        hooks.append(
            block.register_forward_pre_hook(
                lambda _, args, keywords, name=name: before(name, args, keywords), with_kwargs=True
            )
        )
        hooks.append(block.register_forward_hook(lambda _, args, output, name=name: after(name, output)))
    try:
        _run(model, batch)
    except _EnoughError:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    if len(found) < len(names):
        missing = next(name for name in names if name not in found)
        raise InvalidValueError("blocks", f"{missing} is not called", "name those that are, by a pattern")
    return start[0], {name: found[name] for name in found}


def _is_as_returned(states: torch.Tensor, output: torch.Tensor, version: int | None) -> bool:
    """Whether a block is handed what the one before it returned, and nothing has been written to that since."""
    same = output.data_ptr() == states.data_ptr() and output.shape == states.shape
    return same and _version(states) == version


def _version(states: torch.Tensor) -> int | None:
    return None if states.is_inference() else states._version


def states_of(name: str, args: tuple[Any, ...], keywords: Mapping[str, Any]) -> tuple[Any, str]:
    """Return the hidden states that a block is called with, and under which name they come; empty: first."""
    if args:
        return args[0], ""
    if isinstance(keywords.get("hidden_states"), torch.Tensor):
        return keywords["hidden_states"], "hidden_states"
    found = next((key for key, value in keywords.items() if isinstance(value, torch.Tensor)), None)
    if found is None:
        raise InvalidValueError("blocks", f"{name} is called without a tensor")
    return keywords[found], found


def _run(model: torch.nn.Module, batch: Any) -> None:
    if isinstance(batch, Mapping):
        model(**batch)
    elif isinstance(batch, (tuple, list)):
        model(*batch)
    else:
        model(batch)


@contextmanager
def undisturbed(model: torch.nn.Module) -> Iterator[None]:
    """Run a model as in evaluation, without caches, and experts one by one; what it was set to comes back."""
    training = [module for module in model.modules() if module.training]
    # A model of several parts has a configuration for each.
    configs = {id(config): config for module in model.modules() if (config := getattr(module, "config", None))}
    cached = [config for config in configs.values() if getattr(config, "use_cache", None)]
    model.eval()
    for config in cached:
        config.use_cache = False
    try:
        with torch.no_grad(), experts_one_by_one(model):
            yield
    finally:
        for module in training:
            module.training = True
        for config in cached:
            config.use_cache = True
