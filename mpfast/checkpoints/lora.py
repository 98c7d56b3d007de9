"""LoRA pairs seen as the products that they stand for, formed when they are read."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast import _core
from mpfast.checkpoints.base import Checkpoint, Role, TensorInfo, numbers
from mpfast.support import InvalidValueError

__all__ = ["LoraProducts", "LowRankProduct", "factor_roles", "has_lora_pairs"]

# PEFT, its embeddings, torchtune, kohya, diffusers and x-flux: what multiplies first, and its partner.
_PARTNERS = {"A": "B", "a": "b", "down": "up"}
# The word by itself: an "exploration" has layers that go up and down, too.
_STEM = r"(\w*_)?lora(\d+|_\w+)?"
_FIRST = rf"lora_(embedding_)?A|lora_a|lora_down|(?P<stem>{_STEM})\.down"
_SECOND = rf"lora_(embedding_)?B|lora_b|lora_up|{_STEM}\.up"
# LyCORIS, what scales or extends a pair, and the other kinds of adapters: PEFT's words and what comes after them.
_TUNERS = (
    "adamss|beft|boft|c3a|deft|delora|fourierft|frod|glora|gralora|hira|hra|ia3|lily|miss|oft|osf|peanut|poly_lora|psoft|"
    "p?vera|randlora|road|shadow|shira|supertuning(_lora)?|tinylora|trainable_tokens|unilora|vblora|waveft|bone"
)
_PARTS_OF_TUNERS = (
    r"(embedding_)?[ABCPRSUVlrsuv]|[AB]_general|blocks?|theta(_d)?|alpha|diag|spectrum|kernel|weight|values|gamma|bias|"
    r"lambda(_\w+)?|logits_[AB]|vector_bank|router|delta|original|encoders|decoders"
)
_MORE = (
    r"lora_(mid|diag|E|magnitude_vector)|dora_scale|hada_[wt][12](_[ab])?|lokr_(w[12](_[ab])?|t[12])|"
    rf"({_TUNERS})_({_PARTS_OF_TUNERS})|shadow_(up|down)|diff(_b)?(?=$)"
)
# LyCORIS' GLoRA, whose short names say something where all four are there.
_FOUR = ("a1", "a2", "b1", "b2")
# Between the two factors of a pair: without it their product is not the update.
_BETWEEN = ("lora_E", "lora_mid", "lora_diag")
_FACTOR = re.compile(
    rf"(?P<module>.*?)(?P<dot>^|[./])(?P<which>(?P<first>{_FIRST})|{_SECOND}|{_MORE})"
    r"(?P<adapter>[./](?!weight$)[^./]+)?(?P<end>[./]weight)?"
)


# Of a product with factors: they are small, and the layers of a model are looked at side by side.
THREADS = 1


class LowRankProduct:
    """The matrix B A of a LoRA pair, known by its products: A (r, n), B (m, r)."""

    def __init__(self, A: NDArray[Any], B: NDArray[Any]) -> None:
        self._A = A.astype(np.float64)
        self._B = B.astype(np.float64)
        self.shape = (B.shape[0], A.shape[1])
        self.dtype = np.dtype(np.float64)

    def singular_values(self) -> NDArray[np.float64]:
        """All min(m, n) singular values, descending, from those of an r x r matrix; the others are exactly zero."""
        values = np.zeros(min(self.shape))
        if self._A.size == 0 or self._B.size == 0:
            return values
        finite = np.isfinite(self._A).all() and np.isfinite(self._B).all()
        if not finite or not np.isfinite(inner := self._inner()).all():
            raise InvalidValueError(
                "W", "is a product of factors with non-finite entries (NaN or inf)", "clean them first"
            )
        image = inner if inner.shape[0] <= inner.shape[1] else np.ascontiguousarray(inner.T)
        found = _core.singular_decomposition(np.eye(len(image)), image, THREADS)[0]
        values[: len(found)] = found
        return values

    def _inner(self) -> NDArray[np.float64]:
        """A matrix with the same non-zero singular values, at most r x r."""
        return _core.dense_product(_triangle(self._B.T), _triangle(self._A).T, THREADS)

    def matmat(self, X: NDArray[Any]) -> NDArray[Any]:
        """Return B A X."""
        return _core.dense_product(self._B, _core.dense_product(self._A, X, THREADS), THREADS)

    def rmatmat(self, X: NDArray[Any]) -> NDArray[Any]:
        """Return (B A)^T X."""
        return _core.dense_product(self._A.T, _core.dense_product(self._B.T, X, THREADS), THREADS)


def _triangle(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """R of the QR factorisation of the matrix with these rows as columns."""
    return _core.orthonormal_rows(np.ascontiguousarray(rows), THREADS)[1]


def _pair_of(name: str) -> tuple[str, str] | None:
    """The product's name and the name of B that belongs to A; None for another tensor."""
    found = _FACTOR.fullmatch(name)
    if found is None or found["first"] is None:
        return None
    adapter, end = found["adapter"] or "", found["end"] or ""
    start = f"{found['module']}{found['dot']}"
    stem = found["stem"] if found["stem"] not in (None, "lora_linear_layer") else "lora"
    cut = max(found["first"].rfind("_"), found["first"].rfind(".")) + 1
    second = found["first"][:cut] + _PARTNERS[found["first"][cut:]]
    return f"{start}{stem}{adapter}", f"{start}{second}{adapter}{end}"


def _fits(A: TensorInfo, B: TensorInfo) -> bool:
    """Whether B (m, r) times A (r, n) is a product; those of a convolution are (m, r, 1, 1) and (r, n, kh, kw).

    MLX has the names of torchtune, but its factors the other way round: there the rank is the larger extent.
    """
    return (
        len(A.shape) >= 2
        and (not re.search(r"lora_a\b", A.name) or A.shape[0] <= min(A.shape[1], B.shape[0]))
        and len(B.shape) in (2, len(A.shape))
        and B.shape[1] == A.shape[0]
        and all(extent == 1 for extent in B.shape[2:])
    )


def _pairs_of(tensors: Iterable[TensorInfo]) -> dict[str, tuple[TensorInfo, TensorInfo]]:
    """The pairs A and B by the name of their product."""
    infos = {info.name: info for info in tensors}
    found = {}
    for info in infos.values():
        pair = _pair_of(info.name)
        if pair is None or pair[1] not in infos or not _fits(info, infos[pair[1]]):
            continue
        if not any(other in infos for other in _names_between(info.name)):
            found[pair[0]] = (info, infos[pair[1]])
    return found


def _names_between(name: str) -> list[str]:
    """The names that a factor between a pair's two would have, from that of the first of them."""
    found = _FACTOR.fullmatch(name)
    if found is None:
        return []
    start, adapter = f"{found['module']}{found['dot']}", found["adapter"] or ""
    return [f"{start}{word}{adapter}{end}" for word in _BETWEEN for end in ("", ".weight")]


def factor_roles(tensors: Iterable[TensorInfo]) -> dict[str, Role]:
    """Return the roles of the tensors that are factors of updates, by name."""
    roles = {}
    infos = {info.name: info for info in tensors}
    for info in infos.values():
        found = _FACTOR.fullmatch(info.name)
        stem, part = info.name.removesuffix(".weight")[:-3], info.name.removesuffix(".weight")[-3:]
        if part[:1] == "." and part[1:] in _FOUR and all(f"{stem}.{other}.weight" in infos for other in _FOUR):
            reason = f"factor of an update of {stem}: merge it into its base first"
            roles[info.name] = Role("factor", reason=reason, source="names of a pair", of=stem)
        if found is not None and len(info.shape) >= 2:
            module = found["module"] or "the model"
            of_lora = found["which"].startswith(("lora", "dora")) or found["which"].endswith((".down", ".up"))
            kind = "the LoRA update" if of_lora else "an update"
            between = next((name for name in _names_between(info.name) if name in infos), "")
            more = f" (with {between} among its factors, it is no product of two)" if between else ""
            reason = f"factor of {kind} of {module}{more}: merge it into its base first"
            roles[info.name] = Role("factor", reason=reason, source="names of a pair", of=module)
    return roles


def has_lora_pairs(checkpoint: Checkpoint) -> bool:
    """Whether some tensors are the factors of LoRA updates."""
    return bool(_pairs_of(checkpoint.tensors))


class LoraProducts:
    """A checkpoint whose LoRA pairs are seen as the products that they stand for, by name ``<module>.lora``."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._pairs = _pairs_of(checkpoint.tensors)
        products = {A.name: name for name, (A, _) in self._pairs.items()}
        seconds = {B.name for _, B in self._pairs.values()}
        self._tensors: list[TensorInfo] = []
        for info in checkpoint.tensors:
            if info.name in products:
                name = products[info.name]
                A, B = self._pairs[name]
                known = Role("lora", (1,), source="names of a pair", of=name)
                self._tensors.append(TensorInfo(name, (B.shape[0], math.prod(A.shape[1:])), "float64", known))
            elif info.name not in seconds:
                self._tensors.append(info)
        self.config = getattr(checkpoint, "config", None)
        self.others = getattr(checkpoint, "others", ())

    @property
    def source(self) -> str:
        """The source of the factors."""
        return self._checkpoint.source

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """The products and whatever is no factor."""
        return tuple(self._tensors)

    def read(self, name: str) -> Any:
        """Return a product as a `LowRankProduct`, anything else as it is."""
        if name not in self._pairs:
            return self._checkpoint.read(name)
        a, b = self._pairs[name]
        A, B = numbers(self._checkpoint.read(a.name), a), numbers(self._checkpoint.read(b.name), b)
        return LowRankProduct(A.reshape(len(A), -1), B.reshape(len(B), -1))

    def prefetch(self, name: str) -> None:
        """Ask for a tensor; factors are small."""
        if name not in self._pairs:
            self._checkpoint.prefetch(name)

    def release(self, name: str) -> None:
        """Give a tensor's memory back; factors are small."""
        if name not in self._pairs:
            self._checkpoint.release(name)
