"""The difference of two checkpoints, formed tensor by tensor as it is read."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from mpfast.arrays import FLOATS
from mpfast.checkpoints.base import Checkpoint, TensorInfo, numbers

__all__ = ["Difference"]


class Difference:
    """``model - base``, tensor by tensor; one difference is in memory while it is used.

    Tensors that only one of the two has, or that differ in shape or are no floating-point numbers, are left out and
    named in `unmatched`.
    """

    def __init__(self, model: Checkpoint, base: Checkpoint) -> None:
        self._model = model
        self._base = base
        others = {info.name: info for info in base.tensors}
        self._pairs: dict[str, tuple[TensorInfo, TensorInfo]] = {}
        self.unmatched: list[tuple[TensorInfo, str]] = []
        for info in model.tensors:
            other = others.get(info.name)
            if other is None or other.shape != info.shape:
                self.unmatched.append((info, "the base has no such tensor, or of another shape"))
            elif {info.dtype, other.dtype} <= set(FLOATS):
                self._pairs[info.name] = (info, other)
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
            TensorInfo(name, mine.shape, "float64" if "float64" in (mine.dtype, other.dtype) else "float32")
            for name, (mine, other) in self._pairs.items()
        )

    def read(self, name: str) -> NDArray[Any]:
        """Return one difference, in float32, or float64 if one of the two is stored so."""
        mine, other = self._pairs[name]
        difference: NDArray[Any] = numbers(self._model.read(name), mine) - numbers(self._base.read(name), other)
        return difference

    def prefetch(self, name: str) -> None:
        """Ask for both tensors."""
        self._model.prefetch(name)
        self._base.prefetch(name)

    def release(self, name: str) -> None:
        """Give both tensors' memory back."""
        self._model.release(name)
        self._base.release(name)
