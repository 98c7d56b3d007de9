"""Second moments of the inputs of layers, in memory or in a file."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Any, Generic, TypeVar

from mpfast.support import InvalidValueError, front_door

__all__ = ["FEW_ROWS_PER_INPUT", "InputSum", "Moments", "WatchedWeight", "weight_of"]

#: Below so many rows for each input the small eigenvalues of a second moment are far too small.
FEW_ROWS_PER_INPUT = 4

Array = TypeVar("Array")


@dataclass
class InputSum(Generic[Array]):
    """Sums of ``x x^T`` over contiguous parts of the inputs that some modules share.

    Attributes
    ----------
    modules : list of str
        Who shares them.
    rows : list of int
        How many inputs each part has.
    parts : list of array
        The sums.
    calls : int
        How often a module of these was called.
    mean : array, optional
        Of all inputs, once it has been asked for.
    """

    modules: list[str]
    rows: list[int] = field(default_factory=list)
    parts: list[Array] = field(default_factory=list)
    calls: int = 0
    mean: Array | None = None

    def mean_over(self, numbers: Sequence[int]) -> Array:
        """Return the mean of ``x x^T`` over the inputs of some parts."""
        total: Any = reduce(add, (self.parts[number] for number in numbers))
        mean: Array = total / sum(self.rows[number] for number in numbers)
        return mean


@dataclass(frozen=True)
class WatchedWeight:
    """By what the weight of a module that was watched is known again.

    Attributes
    ----------
    dtype : str
        Its type.
    hash : str
        Of its entries in that type, as `mpfast.checkpoints.content_hash` gives it.
    """

    dtype: str
    hash: str

    def to_list(self) -> list[str]:
        """Return it as a file has it."""
        return [self.dtype, self.hash]


class Moments(Mapping[str, Array]):
    """The mean of ``x x^T`` over the inputs x of layers: a mapping from module name to float64 array.

    Attributes
    ----------
    block : int or None
        Size of the blocks of the diagonal that are known; None where the whole matrix is.
    """

    block: int | None = None

    @abstractmethod
    def _sum_of(self, name: str) -> InputSum[Array]:
        """Return what is known of a module; KeyError where nothing is."""

    def _whole(self, name: str) -> Array:
        found = self._sum_of(name)
        if found.mean is None:
            found.mean = self._checked(name, found.mean_over(range(len(found.rows))))
        return found.mean

    def _checked(self, name: str, mean: Any) -> Any:
        trace = float(mean.diagonal(0, -2, -1).sum())
        if trace - trace != 0:
            raise InvalidValueError(
                "", f"the inputs of {name!r} hold NaN or infinities, or numbers whose squares do", "clean the data"
            )
        return mean

    def __getitem__(self, name: str) -> Array:
        """Mean of ``x x^T``, float64: at every access the same array, which is not to be changed.

        Modules that share their inputs have one array.
        """
        return self._whole(name)

    @property
    def rows(self) -> dict[str, int]:
        """How many inputs each module has seen: samples times tokens or places."""
        return {name: sum(self._sum_of(name).rows) for name in self}

    @property
    def shared(self) -> dict[str, str]:
        """Modules that have been handed the same inputs as another one, and the first of these."""
        firsts = {name: self._sum_of(name).modules[0] for name in self}
        return {name: first for name, first in firsts.items() if name != first}

    @property
    def rows_per_input(self) -> dict[str, float]:
        """Rows for each input dimension: how much data there is for a matrix of this size."""
        return {name: sum(found.rows) / _length(found) for name, found in self._named_sums()}

    def _named_sums(self) -> Iterator[tuple[str, InputSum[Array]]]:
        yield from ((name, self._sum_of(name)) for name in self)

    @property
    def warning(self) -> str:
        """What is to be said against these moments; empty where nothing is."""
        ratios = {name: ratio for name, ratio in self.rows_per_input.items() if ratio < FEW_ROWS_PER_INPUT}
        if not ratios:
            return ""
        least = min(ratios, key=lambda name: ratios[name])
        return (
            f"{len(ratios)} of {len(self)} layers have seen fewer than {FEW_ROWS_PER_INPUT} inputs per dimension "
            f"({least or 'the model'}: {ratios[least]:.2g}): use more data, or strong damping"
        )

    def watched_weights(self) -> dict[str, WatchedWeight]:
        """Type and hash of the weights of the modules, as far as they are known."""
        return {}

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Shape of a module's moment."""
        part: Any = self._sum_of(name).parts[0]
        return tuple(part.shape)

    def fold_rows(self, name: str) -> tuple[int, ...]:
        """How many inputs each part of those of a module has."""
        return tuple(self._sum_of(name).rows)

    @front_door
    def fold(self, name: str, number: int) -> Array:
        """Mean of ``x x^T`` over one part of a module's inputs.

        Raises
        ------
        ValueError
            There is no part of this number.
        """
        found = self._sum_of(name)
        mean: Array = self._checked(name, found.mean_over([_part(found, number)]))
        return mean

    @front_door
    def without(self, name: str, number: int) -> Array:
        """Mean of ``x x^T`` over all parts of a module's inputs but one.

        Raises
        ------
        ValueError
            There is no part of this number, or no other.
        """
        found = self._sum_of(name)
        others = [other for other in range(len(found.rows)) if other != _part(found, number)]
        if not others:
            raise InvalidValueError("", f"the inputs of {name!r} are one part", "collect them with folds=2 or more")
        mean: Array = self._checked(name, found.mean_over(others))
        return mean


def _part(found: InputSum[Any], number: int) -> int:
    if number not in range(len(found.rows)):
        raise InvalidValueError("number", f"must lie between 0 and {len(found.rows) - 1}, not {number!r}")
    return number


def _length(found: InputSum[Any]) -> int:
    return int(found.parts[0].shape[-1])


def weight_of(module: str) -> str:
    """Return the name of a module's weight, as a checkpoint has it; of a part of a tensor, in brackets, its own."""
    if module.endswith("]"):
        return module
    return f"{module}.weight" if module else "weight"
