"""How far the shares of layers may go: floors, ceilings and groups, by patterns of their names."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mpfast.checkpoints import unmatched_patterns
from mpfast.masks import allocate
from mpfast.models.extent import default_ceiling
from mpfast.models.layer_data import LayerData, Target
from mpfast.models.share_rules import Rule
from mpfast.support import (
    InvalidTypeError,
    InvalidValueError,
    check_patterns,
    check_sparsity,
    floor_count,
    warn_caller,
)

__all__ = ["Bound", "Bounds", "counts_within"]

#: One number, or one by glob pattern of the name.
Bound = float | Mapping[str, float]


@dataclass(frozen=True)
class Bounds:
    """Smallest and largest sparsity of each layer, and which layers get the same.

    Attributes
    ----------
    floor, ceiling : float or mapping of pattern to float
        Of layers that no pattern matches, 0 and `highest`.
    groups : mapping of str to patterns
        Layers whose names match the patterns of one group get one sparsity.
    highest : float
        The usual ceiling.
    """

    floor: Bound
    ceiling: Bound
    groups: Mapping[str, Sequence[str]]
    highest: float

    @classmethod
    def checked(
        cls,
        sparsity: float,
        floor: Bound = 0.0,
        ceiling: Bound | None = None,
        groups: Mapping[str, str | Iterable[str]] | None = None,
    ) -> Bounds:
        """Return the bounds that a caller asks for.

        Raises
        ------
        InvalidValueError, InvalidTypeError
            One is out of range or of a wrong type, or one number for all leaves no room for `sparsity`.
        """
        highest = default_ceiling(sparsity)
        _check_bound(floor, "floor")
        if ceiling is not None:
            _check_bound(ceiling, "ceiling")
        # One number that all layers are bounded by; of others, `allocate` knows.
        if not isinstance(floor, Mapping) and floor > sparsity:
            raise InvalidValueError("floor", f"must be at most the sparsity, {sparsity:g}, not {floor:g}")
        if ceiling is not None and not isinstance(ceiling, Mapping) and ceiling < sparsity:
            raise InvalidValueError("ceiling", f"must be at least the sparsity, {sparsity:g}, not {ceiling:g}")
        return cls(_plain(floor), highest if ceiling is None else _plain(ceiling), _checked_groups(groups), highest)

    def warn_of_unmatched(self, names: Sequence[str], exclude: Sequence[str], function: str) -> None:
        """Point out every pattern that is without effect."""
        patterns = {"exclude": exclude, **{f"group {group!r}": members for group, members in self.groups.items()}}
        both = (("floor", self.floor), ("ceiling", self.ceiling))
        patterns |= {what: list(bound) for what, bound in both if isinstance(bound, Mapping)}
        for what, given in patterns.items():
            for text in unmatched_patterns(what, given, names):
                warn_caller(function, text)

    def target(self, layers: Sequence[LayerData], sparsity: float, reach: float) -> Target:
        """Return what is to go, and between which shares of each layer.

        Parameters
        ----------
        layers
            Those that are budgeted.
        sparsity
            Share of all their entries.
        reach
            Farthest that a share is to be from that, where the bounds leave room for it.
        """
        low = np.array([_bound(self.floor, layer.name, 0.0) for layer in layers])
        high = np.array([_bound(self.ceiling, layer.name, self.highest) for layer in layers])
        sizes = np.array([layer.size for layer in layers], np.float64)
        pruned = floor_count(sparsity, int(sizes.sum()))
        near, far = np.clip(sparsity - reach, low, high), np.clip(sparsity + reach, low, high)
        if np.ceil(near * sizes - 1e-9).sum() <= pruned <= np.floor(far * sizes + 1e-9).sum():
            low, high = near, far
        return Target(sparsity, pruned, low, high)

    def groups_of(self, layers: Sequence[LayerData]) -> list[str]:
        """Return a key for each layer: the same for layers that get one sparsity."""
        return [_group(self.groups, layer.name) for layer in layers]


def counts_within(
    rule: Rule,
    layers: Sequence[LayerData],
    values: Sequence[Any],
    sparsity: float,
    bounds: Bounds,
    reach: float = 1.0,
) -> list[int]:
    """Return how many entries of each layer go, exact in all.

    Parameters
    ----------
    rule
        Says what share of each layer is wanted.
    layers, values
        The layers, and what was measured of each.
    sparsity
        Share of all entries.
    bounds
        Of the shares.
    reach
        Farthest that a share is to be from the target.
    """
    target = bounds.target(layers, sparsity, reach)
    return allocate(
        rule(layers, values, target),
        [layer.size for layer in layers],
        target.pruned,
        floors=target.low,
        ceilings=target.high,
        groups=bounds.groups_of(layers),
    )


def _plain(bound: Bound) -> Bound:
    return dict(bound) if isinstance(bound, Mapping) else float(bound)


def _checked_groups(groups: Any) -> dict[str, list[str]]:
    if groups is None:
        return {}
    if not isinstance(groups, Mapping):
        raise InvalidTypeError("groups", f"must map names of groups to glob patterns, not {type(groups).__name__}")
    return {str(group): check_patterns(names, f"groups[{group!r}]") for group, names in groups.items()}


def _check_bound(bound: Any, name: str) -> None:
    if not isinstance(bound, Mapping):
        check_sparsity(bound, name)
        return
    for pattern in check_patterns(bound, name):
        check_sparsity(bound[pattern], f"{name}[{pattern!r}]")


def _bound(bound: Bound, name: str, default: float) -> float:
    if not isinstance(bound, Mapping):
        return float(bound)
    return next((float(value) for pattern, value in bound.items() if fnmatch.fnmatchcase(name, pattern)), default)


def _group(groups: Mapping[str, Sequence[str]], name: str) -> str:
    """The group that a layer belongs to; a layer of none is one by itself."""
    for group, patterns in groups.items():
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            return f"group {group}"
    return f"layer {name}"
