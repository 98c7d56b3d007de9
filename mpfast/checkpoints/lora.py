"""LoRA pairs seen as the products that they stand for, formed when they are read."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.checkpoints.base import Checkpoint, TensorInfo, numbers
from mpfast.support import InvalidValueError

__all__ = ["LoraProducts", "LowRankProduct", "has_lora_pairs"]

_LORA_A = re.compile(r"(?P<module>.*)\.lora_A(?P<adapter>\.[^.]+)?\.weight")


class LowRankProduct:
    """The matrix B A of a LoRA pair, known by its products: A (r, n), B (m, r)."""

    def __init__(self, A: NDArray[Any], B: NDArray[Any]) -> None:
        self._A = A.astype(np.float64)
        self._B = B.astype(np.float64)
        self.shape = (B.shape[0], A.shape[1])
        self.dtype = np.dtype(np.float64)

    def singular_values(self) -> NDArray[np.float64]:
        """All min(m, n) singular values, descending, from those of an r x r matrix; the others are exactly zero."""
        inner = np.linalg.qr(self._B)[1] @ np.linalg.qr(self._A.T)[1].T
        if not np.isfinite(inner).all():
            raise InvalidValueError(
                "W", "is a product of factors with non-finite entries (NaN or inf)", "clean them first"
            )
        values = np.zeros(min(self.shape))
        found = np.linalg.svd(inner, compute_uv=False)[: len(values)]
        values[: len(found)] = found
        return values

    def matmat(self, X: NDArray[Any]) -> NDArray[Any]:
        """Return B A X."""
        return np.asarray(self._B @ (self._A @ X))

    def rmatmat(self, X: NDArray[Any]) -> NDArray[Any]:
        """Return (B A)^T X."""
        return np.asarray(self._A.T @ (self._B.T @ X))


def _pair_of(name: str) -> tuple[str, str] | None:
    """The product's name and the name of B that belongs to A; None for another tensor."""
    found = _LORA_A.fullmatch(name)
    if found is None:
        return None
    adapter = found["adapter"] or ""
    return f"{found['module']}.lora{adapter}", f"{found['module']}.lora_B{adapter}.weight"


def has_lora_pairs(checkpoint: Checkpoint) -> bool:
    """Whether some tensors are the factors of LoRA updates."""
    names = {info.name for info in checkpoint.tensors}
    return any((pair := _pair_of(name)) is not None and pair[1] in names for name in names)


class LoraProducts:
    """A checkpoint whose LoRA pairs are seen as the products that they stand for, by name ``<module>.lora``."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        infos = {info.name: info for info in checkpoint.tensors}
        self._pairs: dict[str, tuple[TensorInfo, TensorInfo]] = {}
        tensors: dict[str, TensorInfo] = dict(infos)
        for info in checkpoint.tensors:
            pair = _pair_of(info.name)
            other = None if pair is None else infos.get(pair[1])
            if pair is None or other is None or len(info.shape) != 2 or other.shape[1:] != info.shape[:1]:
                continue
            self._pairs[pair[0]] = (info, other)
            del tensors[info.name], tensors[other.name]
            tensors[pair[0]] = TensorInfo(pair[0], (other.shape[0], info.shape[1]), "float64")
        self._tensors = tuple(tensors.values())

    @property
    def source(self) -> str:
        """The source of the factors."""
        return self._checkpoint.source

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """The products and whatever is no factor."""
        return self._tensors

    def read(self, name: str) -> Any:
        """Return a product as a `LowRankProduct`, anything else as it is."""
        if name not in self._pairs:
            return self._checkpoint.read(name)
        a, b = self._pairs[name]
        return LowRankProduct(numbers(self._checkpoint.read(a.name), a), numbers(self._checkpoint.read(b.name), b))

    def prefetch(self, name: str) -> None:
        """Ask for a tensor; factors are small."""
        if name not in self._pairs:
            self._checkpoint.prefetch(name)

    def release(self, name: str) -> None:
        """Give a tensor's memory back; factors are small."""
        if name not in self._pairs:
            self._checkpoint.release(name)
