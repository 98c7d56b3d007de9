"""The difference of two checkpoints, formed tensor by tensor as it is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from mpfast.arrays import FLOATS
from mpfast.checkpoints.base import Checkpoint, Role, TensorInfo, numbers
from mpfast.checkpoints.effective import read_as_used
from mpfast.checkpoints.roles import roles_of
from mpfast.support import InvalidValueError

__all__ = ["Difference", "counterparts"]

# Pairs of prefixes that are tried, those first for which most names speak.
_TRIED = 8
# Shapes by name.
_Shapes = Mapping[str, tuple[int, ...]]


class Difference:
    """``model - base``, tensor by tensor; one difference is in memory while it is used.

    Names are matched as they are, or without what one side has in front of them, see `counterparts`. Tensors that only
    one of the two has, or that differ in shape or are no floating-point numbers, are left out and named in `unmatched`.

    Raises
    ------
    ValueError
        No tensor of the model has a difference to one of the base.
    """

    def __init__(self, model: Checkpoint, base: Checkpoint) -> None:
        self._model = model
        self._base = base
        self.config = getattr(model, "config", None)
        self.others = getattr(model, "others", ())
        mine, theirs = _decided(model), _decided(base)
        others = {_called(info): info for info in theirs}
        found = counterparts(map(_as_compared, mine), map(_as_compared, theirs))
        self._pairs: dict[str, tuple[TensorInfo, TensorInfo]] = {}
        self.unmatched: list[tuple[TensorInfo, str]] = []
        for info in mine:
            other = others[found[_called(info)]] if _called(info) in found else None
            if other is None:
                self.unmatched.append((info, "the base has no such tensor"))
            elif _shape(other) != _shape(info):
                self.unmatched.append((info, f"the base has one of another shape, {_shape(other)}"))
            elif {info.dtype, other.dtype} <= set(FLOATS):
                self._pairs[_called(info)] = (info, other)
            else:
                self.unmatched.append((info, "integer or quantised: has no difference"))
        matched = {other.name for _, other in self._pairs.values()}
        counted = set(found.values())
        self.only_in_base = tuple(info for info in theirs if info.name not in matched and _called(info) not in counted)
        if not self._pairs:
            if len(_best_pairings(*(_shapes(map(_as_compared, side)) for side in (mine, theirs)))) > 1:
                fact = "fits the names of the model in several ways, none better than the others"
                raise InvalidValueError("base", fact, "rename the tensors of one")
            raise InvalidValueError("base", _why_nothing_matches(model, base, self.unmatched, bool(found)))

    def why_not(self, name: str) -> str | None:
        """Why a tensor of the model has no difference; None if it has one."""
        return None if name in self._pairs else next(why for info, why in self.unmatched if info.name == name)

    def base_name(self, name: str) -> str:
        """Name in the base of the tensor that one of the model is compared with."""
        return _called(self._pairs[name][1])

    @property
    def renamed(self) -> tuple[str, str] | None:
        """A name of the model and the other one that its tensor has in the base; None where all names agree."""
        called = ((name, _called(base)) for name, (_, base) in self._pairs.items())
        return next((pair for pair in called if pair[0] != pair[1]), None)

    def pair(self, name: str) -> tuple[TensorInfo, TensorInfo]:
        """What the model and the base say of the two tensors."""
        return self._pairs[name]

    @property
    def source(self) -> str:
        """Both sources."""
        return f"{self._model.source} - {self._base.source}"

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """Tensors of both, in the order of the model, in the type of the difference."""
        return tuple(
            TensorInfo(name, _shape(mine), _wider(mine, other), _as_used(mine), mine.shared)
            for name, (mine, other) in self._pairs.items()
        )

    def both(self, name: str) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the tensors of the model and of the base, in float32, or float64 if stored so."""
        mine, other = self._pairs[name]
        return _numbers(self._model, mine), _numbers(self._base, other)

    def read(self, name: str) -> NDArray[Any]:
        """Return one difference, in float32, or float64 if one of the two is stored so."""
        mine, other = self.both(name)
        difference: NDArray[Any] = mine - other
        return difference

    def prefetch(self, name: str) -> None:
        """Ask for both tensors."""
        mine, other = self._pairs[name]
        self._model.prefetch(mine.name)
        self._base.prefetch(other.name)

    def release(self, name: str) -> None:
        """Give both tensors' memory back."""
        mine, other = self._pairs[name]
        self._model.release(mine.name)
        self._base.release(other.name)


def counterparts(model: Iterable[TensorInfo], base: Iterable[TensorInfo]) -> dict[str, str]:
    """Pair the names of two checkpoints, from the model's to the base's.

    A wrapper or a head puts something in front of all names (``module.``, ``base_model.model.``). Whatever it is, it is
    found by comparing the names: of the pairs of prefixes that turn a name of one into a name of the other, the one
    that gives the most tensors of equal shape. Names pair as they are if none gives more, and also if two give as many
    and not the same: which of them is meant is unknown.

    Examples
    --------
    >>> wrapped = [TensorInfo("module.fc.weight", (8, 8), "float32"), TensorInfo("module.fc.bias", (8,), "float32")]
    >>> counterparts(wrapped, [TensorInfo("fc.weight", (8, 8), "float32")])
    {'module.fc.weight': 'fc.weight'}
    >>> two = [TensorInfo(f"{tower}.fc.weight", (8, 8), "float32") for tower in ("encoder", "decoder")]
    >>> counterparts(two, [TensorInfo("tower.fc.weight", (8, 8), "float32")])
    {}
    """
    mine, others = _shapes(model), _shapes(base)
    best = _best_pairings(mine, others)
    found = best[0] if len(best) == 1 else _same_names(mine, others)
    return {name: found[name] for name in mine if name in found}


def _shapes(tensors: Iterable[TensorInfo]) -> dict[str, tuple[int, ...]]:
    return {info.name: info.shape for info in tensors}


def _same_names(mine: _Shapes, others: _Shapes) -> dict[str, str]:
    return {name: name for name in mine if name in others}


def _best_pairings(mine: _Shapes, others: _Shapes) -> list[dict[str, str]]:
    """The pairing of names that gives the most tensors of equal shape; several where these do not say the same."""
    same = _same_names(mine, others)
    if len(same) == len(mine):
        return [same]
    # By the pairs of equal shape in them, so that two ways to say the same are one.
    best: dict[frozenset[tuple[str, str]], dict[str, str]] = {_agreeing(same, mine, others): same}
    for prefix, replacement in _prefixes(mine, others):
        if not _is_wrapping(prefix, replacement, mine, others):
            continue
        # A name that has the prefix goes before one that is the same without.
        renamed: dict[str, str] = {name: replacement + name[len(prefix) :] for name in mine if name.startswith(prefix)}
        found = {name: other for name, other in renamed.items() if other in others}
        taken = set(found.values())
        found |= {name: name for name in mine if name not in renamed and name in others and name not in taken}
        agreeing = _agreeing(found, mine, others)
        most = len(next(iter(best)))
        if len(agreeing) > most:
            best = {agreeing: found}
        elif len(agreeing) == most and same not in best.values():
            best.setdefault(agreeing, found)
    return list(best.values())


def _is_wrapping(prefix: str, replacement: str, mine: _Shapes, others: _Shapes) -> bool:
    """Whether one side has something in front of the other's names, and not another layer that ends in ``weight``, too.

    What is left of some name has to name a layer still, unless all names of both sides have the prefixes and one of
    these is empty: a single layer, wrapped. Layers of a list that differ in their number are others.
    """
    if _last_part(prefix).isdigit() and _last_part(replacement).isdigit():
        return False
    left = [name[len(prefix) :] for name in mine if name.startswith(prefix)]
    if any("." in ending and others.get(f"{replacement}{ending}") == mine[f"{prefix}{ending}"] for ending in left):
        return True
    everywhere = len(left) == len(mine) and all(name.startswith(replacement) for name in others)
    return everywhere and not (prefix and replacement)


def _last_part(prefix: str) -> str:
    return prefix.rstrip(".").rpartition(".")[2]


def _agreeing(pairs: Mapping[str, str], mine: _Shapes, others: _Shapes) -> frozenset[tuple[str, str]]:
    return frozenset((name, other) for name, other in pairs.items() if mine[name] == others[other])


def _prefixes(mine: _Shapes, others: _Shapes) -> list[tuple[str, str]]:
    """Pairs of a prefix of one side and what the other has in its place, those first that most names have."""
    by_ending: dict[str, list[str]] = {}
    for other in others:
        for ending in _endings(other):
            # Where more have an ending than are tried, it tells nothing.
            if len(having := by_ending.setdefault(ending, [])) <= _TRIED:
                having.append(other)
    votes: Counter[tuple[str, str]] = Counter()
    for name in mine:
        ending = next((ending for ending in _endings(name) if ending in by_ending), "")  # the longest
        for other in by_ending[ending] if ending else ():
            votes[name.removesuffix(ending), other.removesuffix(ending)] += 1
    return [pair for pair, _ in votes.most_common(_TRIED) if pair != ("", "")]


def _endings(name: str) -> list[str]:
    """Return the name, and what of it follows each dot, the longest first."""
    parts = name.split(".")
    return [".".join(parts[at:]) for at in range(len(parts))]


def _why_nothing_matches(
    model: Checkpoint, base: Checkpoint, unmatched: list[tuple[TensorInfo, str]], names_match: bool
) -> str:
    if names_match:
        name, why = next((info.name, why) for info, why in unmatched if why != "the base has no such tensor")
        return f"has no tensor to compare with: {name}: {why}"
    examples = " and ".join(
        f"{whose} has {checkpoint.tensors[0].name!r}" if checkpoint.tensors else f"{whose} has no tensors"
        for whose, checkpoint in (("the model", model), ("it", base))
    )
    return f"has none of the names of the model: for example, {examples}"


def _decided(checkpoint: Checkpoint) -> list[TensorInfo]:
    """Tensors with their roles: what has no difference is among what they are decided by."""
    roles = roles_of(checkpoint)
    return [replace(info, known=roles[info.name]) for info in checkpoint.tensors]


def _as_compared(info: TensorInfo) -> TensorInfo:
    return TensorInfo(_called(info), _shape(info), info.dtype)


def _called(info: TensorInfo) -> str:
    return info.known.called or info.name if info.known else info.name


def _shape(info: TensorInfo) -> tuple[int, ...]:
    return info.shape if info.known is None or info.known.shape is None else info.known.shape


def _wider(mine: TensorInfo, other: TensorInfo) -> str:
    return "float64" if "float64" in (mine.dtype, other.dtype) else "float32"


def _as_used(info: TensorInfo) -> Role | None:
    """The role of a tensor that is read as the model computes with it."""
    return info.known and replace(info.known, called="", shape=None, masked_by="", scaled_by="")


def _numbers(checkpoint: Checkpoint, info: TensorInfo) -> NDArray[Any]:
    role = info.known or Role("unknown")
    tensor = read_as_used(checkpoint, _called(info), info.name, role.masked_by, role.scaled_by)
    return numbers(tensor, replace(info, dtype="float32") if role.scaled_by else info)
