"""A property that is computed at first use."""

from __future__ import annotations

from functools import cached_property
from typing import Any, TypeVar, overload

Value = TypeVar("Value")

__all__ = ["KeptProperty"]


class KeptProperty(cached_property[Value]):
    """`functools.cached_property` without the lock that it has before Python 3.12.

    All instances share that lock and hold it while they compute: threads wait for each other, and a child that is
    forked meanwhile waits for ever. Here two threads may compute the same value, and the first one's is kept.
    """

    @overload
    def __get__(self, instance: None, owner: type[Any] | None = None) -> KeptProperty[Value]: ...
    @overload
    def __get__(self, instance: object, owner: type[Any] | None = None) -> Value: ...
    def __get__(self, instance: object | None, owner: type[Any] | None = None) -> Any:
        """Return the value, or the property itself when asked of the class."""
        if instance is None:
            return self
        name = self.attrname
        assert name is not None  # a class has given it
        kept = vars(instance)
        return kept[name] if name in kept else kept.setdefault(name, self.func(instance))
