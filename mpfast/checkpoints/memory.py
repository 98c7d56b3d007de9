"""Which arrays in memory are the same, seen alike or otherwise, and which have entries in common."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["SharedMemory", "shared_memory"]

# Steps of NumPy's search for an entry in common; two views of one matrix take a handful.
_LONGEST_SEARCH = 10_000


@dataclass(frozen=True)
class SharedMemory:
    """What is known of arrays that share memory, by name.

    Attributes
    ----------
    aliases : dict of str to str
        Of arrays that are the same memory, seen in the same way: all but one of them, with that one.
    views : dict of str to (str, str)
        Of arrays that are the same memory, seen otherwise: likewise, and how.
    overlaps : dict of str to tuple of str
        The arrays that have entries in common with another one and are not seen like it, with these others.
    """

    aliases: Mapping[str, str]
    views: Mapping[str, tuple[str, str]]
    overlaps: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class _Place:
    """Where the entries of an array lie; strides in bytes."""

    device: str
    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    itemsize: int
    dtype: str

    @property
    def reach(self) -> tuple[int, int]:
        """Its first byte, and the one after its last."""
        steps = [(extent - 1) * stride for extent, stride in zip(self.shape, self.strides, strict=True)]
        low, high = (sum(bound(step, 0) for step in steps) for bound in (min, max))
        return self.address + low, self.address + high + self.itemsize

    @property
    def entries(self) -> Hashable:
        """Equal for arrays of the same entries, in whatever order and shape; not for all of these."""
        axes = sorted((abs(s), n) for n, s in zip(self.shape, self.strides, strict=True) if n > 1)
        merged: list[tuple[int, int]] = []
        for stride, extent in axes:  # the fastest first; two axes without a gap between are one
            if merged and stride == merged[-1][0] * merged[-1][1]:
                merged[-1] = (merged[-1][0], merged[-1][1] * extent)
            else:
                merged.append((stride, extent))
        return self.device, self.reach[0], tuple(merged), self.dtype

    def seen_from(self, other: _Place | tuple[str, int] | None) -> str:
        """How it sees the entries that another array sees as well."""
        reversed_axes = isinstance(other, _Place) and (self.shape, self.strides) == (
            other.shape[::-1],
            other.strides[::-1],
        )
        return "transposed" if reversed_axes and len(self.shape) == 2 else "in another shape or order"

    @property
    def __array_interface__(self) -> dict[str, Any]:
        # NumPy computes with the addresses alone; nothing is read.
        layout = {"shape": self.shape, "strides": self.strides, "typestr": f"|V{self.itemsize}"}
        return {"version": 3, "data": (self.address, True), **layout}

    def as_numpy(self) -> NDArray[Any]:
        return np.asarray(self)

    def meets(self, other: _Place) -> bool:
        """Whether the two have a byte in common; so is what takes too long to tell."""
        try:
            return bool(np.shares_memory(self.as_numpy(), other.as_numpy(), max_work=_LONGEST_SEARCH))  # type: ignore[arg-type]
        except RuntimeError:  # NumPy's TooHardError, which moved between versions
            return True


def shared_memory(arrays: Mapping[str, Any], rank: Callable[[str], int]) -> SharedMemory:
    """Compare the memory of NumPy's arrays and of tensors; other objects are the same if they are one object.

    Parameters
    ----------
    arrays
        By name.
    rank
        Of several names of one memory the one of the lowest rank stands for all, the first of equals.
    """
    places = {name: _place_of(array) for name, array in arrays.items()}
    same: dict[Hashable, list[str]] = {}
    for name, place in places.items():
        if place is not None:
            same.setdefault(place.entries if isinstance(place, _Place) else place, []).append(name)
    aliases: dict[str, str] = {}
    views: dict[str, tuple[str, str]] = {}
    overlaps: dict[str, tuple[str, ...]] = {}
    owners: list[tuple[str, _Place]] = []
    for names in same.values():
        owner, *others = sorted(names, key=rank)
        for name in others:
            if (place := places[name]) == places[owner]:
                aliases[name] = owner
            elif isinstance(place, _Place):
                views[name] = owner, place.seen_from(places[owner])
        other_views = tuple(name for name in others if name in views)
        if other_views:
            overlaps[owner] = other_views
        if isinstance(place := places[owner], _Place):
            owners.append((owner, place))
    for one, other in _meetings(owners):
        overlaps[one] = (*overlaps.get(one, ()), other)
        overlaps[other] = (*overlaps.get(other, ()), one)
    return SharedMemory(aliases, views, overlaps)


def _meetings(owners: list[tuple[str, _Place]]) -> list[tuple[str, str]]:
    """All pairs that have bytes in common, found along the addresses."""
    found = []
    before: list[tuple[str, _Place]] = []
    for name, place in sorted(owners, key=lambda owner: owner[1].reach):
        first = place.reach[0]
        before = [(other, there) for other, there in before if there.device == place.device and there.reach[1] > first]
        found += [(other, name) for other, there in before if there.meets(place)]
        before.append((name, place))
    return found


def _place_of(array: Any) -> _Place | tuple[str, int] | None:
    """Where an array lies, or which object it is; None where that cannot be told."""
    try:
        if isinstance(array, np.ndarray):
            address = array.__array_interface__["data"][0]
            placed = _Place("cpu", address, array.shape, array.strides, array.itemsize, array.dtype.str)
            return placed if array.nbytes else None
        if hasattr(array, "data_ptr"):
            if array.numel() == 0 or array.device.type == "meta" or array.data_ptr() == 0:
                return None
            size = int(array.element_size())
            strides = tuple(size * int(stride) for stride in array.stride())
            shape = tuple(int(extent) for extent in array.shape)
            return _Place(str(array.device), int(array.data_ptr()), shape, strides, size, str(array.dtype))
    except Exception:  # tensors without a plain memory, whatever their framework raises
        return None
    return "object", id(array)
