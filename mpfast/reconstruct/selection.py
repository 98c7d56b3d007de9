"""How many weights stay, and where: a share of all, or n of every m."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast import _core
from mpfast.support import InvalidValueError, check_sparsity, floor_count, parsed_pattern

__all__ = ["Selection", "parsed_group"]


@dataclass(frozen=True)
class Selection:
    """What is to be pruned of a matrix.

    Attributes
    ----------
    pruned : int
        How many entries go.
    pattern : tuple of int or None
        (n, m): n of every m consecutive entries of a row stay.
    """

    pruned: int
    pattern: tuple[int, int] | None = None

    @classmethod
    def of(cls, shape: tuple[int, int], sparsity: float | None, pattern: Any) -> Selection:
        """Check the two options, of which one is given."""
        if (sparsity is None) == (pattern is None):
            raise InvalidValueError("", "one of sparsity and pattern is needed", "give a share, or n of every m")
        size = shape[0] * shape[1]
        if sparsity is not None:
            return cls(floor_count(check_sparsity(sparsity), size))
        n, m = parsed_group(pattern)
        if shape[1] % m:
            raise InvalidValueError("pattern", f"does not fit: rows of {shape[1]} cannot be cut into groups of {m}")
        return cls(size // m * (m - n), (n, m))

    @property
    def request(self) -> tuple[int | None, tuple[int, int] | None]:
        """The number of entries that go or the pattern: what is asked of the core."""
        return (None, self.pattern) if self.pattern else (self.pruned, None)

    def part(self, share: float) -> Selection:
        """Return what prunes this share of the entries that are to go; at least one of a group stays."""
        if self.pattern is None:
            return replace(self, pruned=floor_count(share, self.pruned))
        n, m = self.pattern
        kept = n + round((m - n) * (1 - share))
        return Selection(self.pruned // (m - n) * (m - kept), (kept, m))

    def largest(self, values: NDArray[np.float32], threads: int) -> NDArray[np.bool_]:
        """Return the mask of the entries of largest magnitude; of equal ones, that at the lower index goes."""
        keep = np.empty(values.shape, np.bool_)
        matrix = _core.Matrix(values, "float32")
        if self.pattern is None:
            _core.prune_smallest([matrix], [1.0], [keep], self.pruned, threads)
        else:
            _core.keep_largest_of_groups([matrix], [keep], *self.pattern, threads)
        return keep


def parsed_group(pattern: Any) -> tuple[int, int]:
    """Return n and m of a pattern; ValueError unless it is one."""
    text = f"{pattern[0]}:{pattern[1]}" if isinstance(pattern, tuple) and len(pattern) == 2 else pattern
    found = parsed_pattern(text)
    if found is None:
        raise InvalidValueError("pattern", f"must be n:m with 1 <= n < m <= 64, such as '2:4', not {pattern!r}")
    return found
