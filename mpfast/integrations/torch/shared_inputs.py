"""Which modules are handed the same inputs, found out while a model runs, so that these are counted once.

Modules belong together for as long as they have been handed the same tensors, one after the other. What the first of
them is handed is kept until the others have been handed it, too, and only then counted: a module that is handed
something else leaves with a copy of what it has in common with the others, which is then exact.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from mpfast.checkpoints import InputSum

__all__ = ["Input", "SharedInputs", "SharedSum"]


@dataclass
class Input:
    """What a module was called with.

    Attributes
    ----------
    module : Module
        The module.
    x : Tensor
        The tensor, the very object: its memory is only known to be in use while that lives.
    valid : Tensor, optional
        Which rows of it count.
    """

    module: torch.nn.Module
    x: torch.Tensor
    valid: torch.Tensor | None

    def kept(self) -> Input:
        """Return a copy that stays as it is, whatever becomes of the tensors."""
        return Input(self.module, self.x.clone(), None if self.valid is None else self.valid.clone())


class _Handed:
    """An input by which the next ones are recognised; the memory of its tensor is not kept."""

    def __init__(self, given: Input, copy: Input | None = None) -> None:
        self._x = weakref.ref(given.x)
        self._valid = given.valid
        self._look = _look(given)
        self._version = _version(given.x)
        self._valid_version = None if given.valid is None else _version(given.valid)
        self.copy = copy

    def is_again(self, given: Input) -> bool:
        """Whether `given` is known to be the same entries: of the same memory, and not written to since."""
        x = self._x()
        if x is None or given.valid is not self._valid or self._look != _look(given):
            return False
        # In inference mode writing leaves no trace: a copy must tell.
        old = Input(given.module, given.x, given.valid) if self.copy is None else self.copy
        pairs = [(self._version, old.x, given.x)]
        if old.valid is not None and given.valid is not None:
            pairs.append((self._valid_version, old.valid, given.valid))
        return all(
            version == _version(now) if version is not None else self.copy is not None and torch.equal(was, now)
            for version, was, now in pairs
        )


def _look(given: Input) -> tuple[Any, ...]:
    x, module = given.x, given.module
    # How a convolution cuts its input into rows; a Linear has none of these.
    names = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
    reading = tuple(getattr(module, name, None) for name in names)
    return x.data_ptr(), x.shape, x.stride(), x.dtype, x.device, type(module) is torch.nn.Linear, reading


def _version(x: torch.Tensor) -> int | None:
    return None if x.is_inference() else x._version


@dataclass
class SharedSum(InputSum[torch.Tensor]):
    """The sums of modules that have been handed the same inputs so far.

    Attributes
    ----------
    handed : optional
        The input that some of the modules have been handed and others not yet; or the first one, which is counted.
    seen : set of str
        Those who have been handed it.
    is_whole : bool
        Whether nothing has come in between while an input was counted.
    """

    handed: _Handed | None = None
    seen: set[str] = field(default_factory=set)
    is_whole: bool = True

    def twin(self, modules: list[str]) -> SharedSum:
        """Return the same sums for other modules."""
        return SharedSum(
            modules, list(self.rows), [part.clone() for part in self.parts], self.calls, is_whole=self.is_whole
        )


class SharedInputs:
    """Hands every distinct input to `count` once, with the sum that it belongs to.

    Parameters
    ----------
    count : function
        Of an input and a `SharedSum`.

    Attributes
    ----------
    sums : dict of str to SharedSum
        By module, in the order of their first inputs.
    """

    def __init__(self, count: Callable[[Input, SharedSum], None]) -> None:
        self._count = count
        self.sums: dict[str, SharedSum] = {}
        self._first_inputs: list[SharedSum] = []
        self._latest: tuple[torch.Tensor, SharedSum] | None = None

    def see(self, name: str, given: Input) -> None:
        """Take notice that a module is called."""
        found = self.sums.get(name)
        if found is None:
            self._see_first(name, given)
            return
        if len(found.modules) > 1 and found.seen:
            assert found.handed is not None
            if name not in found.seen and found.handed.is_again(given):
                found.seen.add(name)
                if len(found.seen) == len(found.modules):
                    self._count_waiting(found)
                return
            if name in found.seen:
                self._part_from_those_behind(found)
            else:
                found = self._part(found, [name])
        self._see_next(name, found, given)

    def _see_first(self, name: str, given: Input) -> None:
        for found in self._first_inputs:
            if found.handed is not None and found.handed.is_again(given):
                found.modules.append(name)
                self.sums[name] = found
                return
        found = self.sums[name] = SharedSum([name])
        # Without a record of writes only a copy tells whether the next input is the same: one copy, of the latest.
        tensors = [given.x] if given.valid is None else [given.x, given.valid]
        copy = given.kept() if None in map(_version, tensors) else None
        if self._latest is not None and self._latest[1].handed is not None and not self._latest[1].seen:
            self._latest[1].handed.copy = None
        self._latest = given.x, found  # while it lives, no other tensor can lie where it lies
        self._count(given, found)
        found.handed = _Handed(given, copy)
        self._first_inputs.append(found)

    def _see_next(self, name: str, found: SharedSum, given: Input) -> None:
        self._first_inputs = [other for other in self._first_inputs if other is not found]
        found.handed = None
        if len(found.modules) == 1:
            self._count(given, found)
            return
        found.handed, found.seen = _Handed(given, given.kept()), {name}
        self._latest = given.x, found

    def _count_waiting(self, found: SharedSum) -> None:
        assert found.handed is not None
        assert found.handed.copy is not None
        waiting, found.handed, found.seen = found.handed.copy, None, set()
        self._count(waiting, found)

    def _part(self, found: SharedSum, leaving: list[str]) -> SharedSum:
        """Give modules that have not been handed what is waiting a sum of their own."""
        found.modules = [name for name in found.modules if name not in leaving]
        own = found.twin(leaving)
        self.sums.update(dict.fromkeys(leaving, own))
        if len(found.seen) == len(found.modules):
            self._count_waiting(found)
        return own

    def _part_from_those_behind(self, found: SharedSum) -> None:
        self._part(found, [name for name in found.modules if name not in found.seen])

    def settle(self) -> None:
        """Count what is waiting: modules that have not been handed it yet have been handed less than the others."""
        if self._latest is None:
            return
        for found in self.distinct():
            if found.seen:
                self._part_from_those_behind(found)
        self._latest = None

    def distinct(self) -> list[SharedSum]:
        """Return every sum once."""
        return list({id(found): found for found in self.sums.values()}.values())
