"""The difference of two checkpoints, formed tensor by tensor as it is read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from mpfast.arrays import FLOATS
from mpfast.checkpoints.base import Checkpoint, Role, TensorInfo, numbers
from mpfast.checkpoints.effective import read_as_used
from mpfast.checkpoints.roles import roles_of

__all__ = ["Difference"]


class Difference:
    """``model - base``, tensor by tensor; one difference is in memory while it is used.

    Tensors that only one of the two has, or that differ in shape or are no floating-point numbers, are left out and
    named in `unmatched`.
    """

    def __init__(self, model: Checkpoint, base: Checkpoint) -> None:
        self._model = model
        self._base = base
        self.config = getattr(model, "config", None)
        self.others = getattr(model, "others", ())
        others = {_called(info): info for info in _decided(base)}
        self._pairs: dict[str, tuple[TensorInfo, TensorInfo]] = {}
        self.unmatched: list[tuple[TensorInfo, str]] = []
        for info in _decided(model):
            other = others.get(_called(info))
            if other is None or _shape(other) != _shape(info):
                self.unmatched.append((info, "the base has no such tensor, or of another shape"))
            elif {info.dtype, other.dtype} <= set(FLOATS):
                self._pairs[_called(info)] = (info, other)
            else:
                self.unmatched.append((info, "integer or quantised: has no difference"))

    def why_not(self, name: str) -> str | None:
        """Why a tensor of the model has no difference; None if it has one."""
        return None if name in self._pairs else next(why for info, why in self.unmatched if info.name == name)

    @property
    def source(self) -> str:
        """Both sources."""
        return f"{self._model.source} - {self._base.source}"

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """Tensors of both, in the order of the model, in the type of the difference."""
        return tuple(
            TensorInfo(name, _shape(mine), _wider(mine, other), _as_used(mine))
            for name, (mine, other) in self._pairs.items()
        )

    def read(self, name: str) -> NDArray[Any]:
        """Return one difference, in float32, or float64 if one of the two is stored so."""
        mine, other = self._pairs[name]
        difference: NDArray[Any] = _numbers(self._model, mine) - _numbers(self._base, other)
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


def _decided(checkpoint: Checkpoint) -> list[TensorInfo]:
    """Tensors with their roles: what has no difference is among what they are decided by."""
    roles = roles_of(checkpoint)
    return [replace(info, known=roles[info.name]) for info in checkpoint.tensors]


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
