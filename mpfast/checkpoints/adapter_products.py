"""The updates of an adapter seen as the matrices that they stand for, never formed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mpfast.checkpoints.adapter_updates import Update, updates_of
from mpfast.checkpoints.base import Checkpoint, NoTensor, Role, TensorInfo

__all__ = ["AdapterProducts", "has_updates"]

UNSCALED = "the product of the factors, without the scale of the update (alpha / r), which nothing here says"
DORA = "the update before DoRA brings the rows of the sum to the lengths that it has trained"


def has_updates(checkpoint: Checkpoint) -> bool:
    """Whether some tensors are the factors of updates whose product is known."""
    return bool(updates_of(checkpoint))


class AdapterProducts:
    """A checkpoint whose factors of updates are seen as the products that they stand for.

    Names are those of the updates (``<module>.lora``), of fused experts with the expert's number in brackets. Products
    are multiplied by the scale of the update, where that is known.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._products: dict[str, tuple[Update, int]] = {}
        self._scales: dict[str, float | None] = {}
        first: dict[str, list[TensorInfo]] = {}
        hidden = set()
        for update in updates_of(checkpoint).values():
            names = (
                [f"{update.name}[{expert}]" for expert in range(update.count)] if update.count > 1 else [update.name]
            )
            known = Role("lora", (1,), source="names of a pair", of=update.name)
            members = [info.name for info in update.factors.values()]
            hidden.update(members)
            first[members[0]] = [TensorInfo(name, update.shape, "float64", known) for name in names]
            self._products |= {name: (update, expert) for expert, name in enumerate(names)}
        self._tensors: list[TensorInfo] = []
        for info in checkpoint.tensors:
            self._tensors += first.get(info.name, [] if info.name in hidden else [info])
        self.config: Mapping[str, Any] | None = getattr(checkpoint, "config", None)
        self.others: tuple[NoTensor, ...] = getattr(checkpoint, "others", ())

    @property
    def factors(self) -> dict[str, tuple[str, ...]]:
        """The tensors that each product is made of, by its name; the experts of a stack have theirs in common."""
        return {
            name: tuple(info.name for info in update.factors.values()) for name, (update, _) in self._products.items()
        }

    @property
    def source(self) -> str:
        """The source of the factors."""
        return self._checkpoint.source

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """The products and whatever is no factor."""
        return tuple(self._tensors)

    def remarks(self, name: str) -> tuple[str, ...]:
        """What is to be known of a product beside its numbers."""
        update = self._products[name][0]
        unscaled = () if self._scale(update) is not None else (UNSCALED,)
        return (*unscaled, DORA) if update.magnitude else unscaled

    def read(self, name: str) -> Any:
        """Return a product as what multiplies with it, or as an array where that is smaller; all else as it is."""
        if name not in self._products:
            return self._checkpoint.read(name)
        update, expert = self._products[name]
        scale = self._scale(update)
        return update.product(self._checkpoint.read, expert, 1.0 if scale is None else scale)

    def _scale(self, update: Update) -> float | None:
        if update.name not in self._scales:
            self._scales[update.name] = update.scale(self._checkpoint.read)
        return self._scales[update.name]

    def prefetch(self, name: str) -> None:
        """Ask for a tensor; factors are small."""
        if name not in self._products:
            self._checkpoint.prefetch(name)

    def release(self, name: str) -> None:
        """Give a tensor's memory back; factors are small."""
        if name not in self._products:
            self._checkpoint.release(name)
