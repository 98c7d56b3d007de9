"""Factors of a smaller rank for an update of an adapter, in the types that the adapter has, and what they lose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.arrays import wide
from mpfast.checkpoints import LowRankProduct, Update
from mpfast.models.factored_output import stored_as
from mpfast.models.factoring import Wanted
from mpfast.support import InputError, InvalidValueError

__all__ = ["ResizedUpdate", "rank_of", "resized"]

Read = Callable[[str], Any]


@dataclass(frozen=True)
class ResizedUpdate:
    """An update that has another rank, or kept its own.

    Attributes
    ----------
    name : str
        Of the update: ``<module>.lora``.
    shape : (int, int)
        Of the matrix, (out, in).
    old_rank, rank : int
        Of the factors before and after; of each expert where it is a stack.
    error : float
        Frobenius norm of the difference between both products over that of the first. Of what is stored: the rounding
        of the factors is in it.
    experts : int
        How many matrices it is of.
    """

    name: str
    shape: tuple[int, int]
    old_rank: int
    rank: int
    error: float
    experts: int = 1


def rank_of(update: Update, read: Read, wanted: Wanted) -> int:
    """Return how many ranks of an update are to stay; of a stack, as many as the expert needs that needs most."""
    if isinstance(wanted.rank, int):
        return update.rank if wanted.rank >= update.rank else min(wanted.rank, *update.shape)
    return max(wanted.count(values[: update.rank]) for values in _of_each(update, read, LowRankProduct.singular_values))


def resized(update: Update, read: Read, rank: int) -> tuple[ResizedUpdate, dict[str, NDArray[Any]]]:
    """Cut an update to a rank.

    Parameters
    ----------
    update
        Of the kind "pair", with a scale that is known.
    read
        From the name of a tensor to its entries.
    rank
        Of the new factors. Where it is that of the old ones, these stay.

    Returns
    -------
    report : ResizedUpdate
    tensors : dict of str to array
        What takes the place of tensors, by their names, as it is stored: both factors and, where it is a tensor, alpha.
    """
    if rank == update.rank:
        return ResizedUpdate(update.name, update.shape, rank, rank, 0.0, update.count), {}
    alpha, change = _alpha(update, read, rank)
    parts = _of_each(update, read, LowRankProduct.decomposed)
    infos = update.factors
    if "E" in infos:
        return _with_lengths(update, read, parts[0], rank)
    # Both factors have the square roots of the singular values: the smallest range of entries.
    first = np.concatenate([np.sqrt(s[:rank])[:, None] * Vh[:rank] for _, s, Vh in parts])
    second = np.stack([change * U[:, :rank] * np.sqrt(s[:rank]) for U, s, _ in parts], axis=2)
    A = _stored(first, infos["A"].dtype, update.name).reshape(update.count * rank, *infos["A"].shape[1:])
    B = _stored(second, infos["B"].dtype, update.name).reshape(len(second), -1, *infos["B"].shape[2:])
    error = _error(update, read, rank, wide(A, infos["A"].dtype), wide(B, infos["B"].dtype) / change)
    report = ResizedUpdate(update.name, update.shape, update.rank, rank, error, update.count)
    return report, {infos["A"].name: A, infos["B"].name: B} | ({} if alpha is None else {update.alpha: alpha})


def _with_lengths(
    update: Update, read: Read, parts: tuple[NDArray[Any], ...], rank: int
) -> tuple[ResizedUpdate, dict[str, NDArray[Any]]]:
    """Cut an update of AdaLoRA: to singular vectors, as its training wants them, and singular values between them."""
    U, s, Vh = parts
    change = 1.0 if update.settings is None else update.settings.change(update.rank, rank)
    values = {"A": Vh[:rank], "E": change * s[:rank, None], "B": U[:, :rank]}
    stored = {word: _stored(part, update.factors[word].dtype, update.name) for word, part in values.items()}
    A, E, B = (wide(part, update.factors[word].dtype) for word, part in stored.items())
    error = _error(update, read, rank, A * E / change, B)
    report = ResizedUpdate(update.name, update.shape, update.rank, rank, error)
    return report, {update.factors[word].name: part for word, part in stored.items()}


def _of_each(update: Update, read: Read, what: Callable[[LowRankProduct], Any]) -> list[Any]:
    """Look at the product of each expert, without its scale."""
    try:
        return [what(LowRankProduct(*update.pair(read, expert))) for expert in range(update.count)]
    except InputError as error:
        raise InvalidValueError(update.name, error.reason) from None


def _alpha(update: Update, read: Read, rank: int) -> tuple[NDArray[Any] | None, float]:
    """Return alpha for a rank, where a tensor holds it, and what its rounding leaves for the factors to make up."""
    if not update.alpha:
        return None, 1.0
    info, scale = update.factors["alpha"], update.scale(read)
    exact = 0.0 if scale is None else scale * rank
    if exact == 0 or not np.isfinite(exact):
        return None, 1.0
    if info.dtype.startswith(("int", "uint")):
        values = np.array(np.rint(exact) or np.copysign(1.0, exact), info.dtype)
    else:
        values = stored_as(np.array(exact), info.dtype)
    return values.reshape(info.shape), exact / float(wide(values, info.dtype).reshape(-1)[0])


def _stored(values: NDArray[np.float64], dtype: str, name: str) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        found = stored_as(values, dtype)
    if not np.isfinite(wide(found, dtype)).all():
        raise InvalidValueError(name, f"has factors beyond the largest {dtype}", "cast the adapter to float32 first")
    return found


def _error(update: Update, read: Read, rank: int, A: NDArray[np.float64], B: NDArray[np.float64]) -> float:
    """Relative difference of the products of what is stored, from their factors alone."""
    before = _of_each(update, read, lambda product: product)
    first, second = A.reshape(update.count, rank, -1), B.reshape(len(B), rank, update.count)
    after = [LowRankProduct(first[expert], second[:, :, expert]) for expert in range(update.count)]
    whole = np.linalg.norm([product.frobenius_norm() for product in before])
    lost = np.linalg.norm([old.minus(new).frobenius_norm() for old, new in zip(before, after, strict=True)])
    return float(lost / whole) if whole else 0.0
