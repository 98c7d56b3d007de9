"""Blocks that let hidden states through as they are: what all blocks are called with, without their weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch

from mpfast.integrations.torch.block_streams import Call, states_of
from mpfast.support import InvalidValueError

__all__ = ["BlockOutput", "check_calls", "standing_in"]


class BlockOutput:
    """What blocks return: hidden states first, and perhaps other things."""

    def __init__(self) -> None:
        self._example: Any = None
        self._kind: Any = None

    @property
    def is_known(self) -> bool:
        """Whether one was seen."""
        return self._kind is not None

    def learn(self, output: Any) -> None:
        """Take an output as an example, of which no numbers are kept."""
        self._kind, self._example = _kind(output), _without_numbers(output)

    def around(self, hidden: torch.Tensor) -> Any:
        """An output with these hidden states, whose other tensors have no numbers."""
        return _with_first(self._example, hidden)

    @contextlib.contextmanager
    def checked(self, name: str, block: torch.nn.Module) -> Iterator[None]:
        """Raise InvalidValueError where a block returns other things than the example has."""

        def check(module: torch.nn.Module, args: Any, output: Any) -> None:
            if _kind(output) != self._kind:
                raise InvalidValueError(
                    "blocks", f"{name} does not return what the first block returns", "load the model, and pass it"
                )

        handle = block.register_forward_hook(check)
        try:
            yield
        finally:
            handle.remove()


@contextlib.contextmanager
def standing_in(
    blocks: Mapping[str, torch.nn.Module], loaded: Callable[[str], AbstractContextManager[Any]]
) -> Iterator[BlockOutput]:
    """Let blocks return the hidden states that they get. The first one is run once, to see what it returns.

    Parameters
    ----------
    blocks
        By name.
    loaded
        Gives a block its weights for a while, by its name.
    """
    output = BlockOutput()

    def stand_in(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def pass_on(*args: Any, **keywords: Any) -> Any:
            if not output.is_known:
                with loaded(name):
                    output.learn(forward(*args, **keywords))
            return output.around(states_of(name, args, keywords)[0])

        return pass_on

    try:
        for name, block in blocks.items():
            block.forward = stand_in(name, block.forward)
        yield output
    finally:
        for block in blocks.values():
            block.__dict__.pop("forward", None)


def check_calls(calls: Sequence[Mapping[str, Call]]) -> None:
    """Raise InvalidValueError where a block is called with what another one has computed beside hidden states."""
    for found in calls:
        for name, call in found.items():
            if _has_no_numbers((call.args, dict(call.keywords))):
                raise InvalidValueError(
                    "blocks",
                    f"{name} is called with something that depends on what other blocks compute",
                    "load the model, and pass it to reconstruct_model",
                )


def _kind(output: Any) -> Any:
    if isinstance(output, Mapping):
        return type(output), tuple((key, _kind(value)) for key, value in output.items())
    if isinstance(output, (tuple, list)):
        return type(output), tuple(map(_kind, output))
    return type(output)


def _without_numbers(output: Any) -> Any:
    if isinstance(output, torch.Tensor):
        return torch.empty_like(output, device="meta")
    return _rebuilt(output, map(_without_numbers, _members(output))) if _members(output) else output


def _with_first(example: Any, hidden: torch.Tensor) -> Any:
    if isinstance(example, torch.Tensor):
        return hidden
    return _rebuilt(example, [hidden, *_members(example)[1:]])


def _members(output: Any) -> list[Any]:
    if isinstance(output, Mapping):
        return list(output.values())
    return list(output) if isinstance(output, (tuple, list)) else []


def _rebuilt(output: Any, members: Any) -> Any:
    if isinstance(output, Mapping):
        return type(output)(**dict(zip(output, members, strict=True)))
    named = hasattr(output, "_fields")
    return type(output)(*members) if named else type(output)(members)


def _has_no_numbers(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return bool(value.is_meta)
    return any(map(_has_no_numbers, _members(value)))
