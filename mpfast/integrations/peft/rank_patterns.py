"""Ranks of adapters, by the error that they may leave."""

from __future__ import annotations

import re

from mpfast.models import ModelRanks, module_patterns
from mpfast.support import InvalidTypeError, front_door, positive_integer

__all__ = ["rank_pattern"]


@front_door
def rank_pattern(ranks: ModelRanks, error: float, *, largest: int | None = None) -> dict[str, int]:
    """Return the ``rank_pattern`` of a ``LoraConfig``: for each layer the least rank that leaves no larger error.

    Keys are regular expressions that match one module each, in the model of the checkpoint as in one with a head on it.
    The rank of a stack of experts is the largest of its experts: PEFT gives all of them the same
    (``target_parameters``). No rank is below 1, which is PEFT's least.

    Parameters
    ----------
    ranks : ModelRanks
        As `mpfast.models.ranks` returns them: with ``base=`` those of an update that is there already, which say what
        an adapter in its place must have; without, those of the weights themselves, for `start_adapters`. With moments
        the errors are those of the outputs.
    error : float
        One of ``ranks.errors``.
    largest : int, optional
        No rank is larger, and then the error is.

    Raises
    ------
    TypeError
        `ranks` is no ModelRanks.
    ValueError
        `error` is none of those that ranks were asked for, or `largest` is no positive integer.
    """
    if not isinstance(ranks, ModelRanks):
        advice = "mpfast.models.ranks(model, moments) makes them"
        raise InvalidTypeError("ranks", f"must be a ModelRanks, not {type(ranks).__name__}", advice)
    if largest is not None:
        largest = positive_integer(largest, "largest")
    found: dict[str, int] = {}
    for name, rank in ranks.at(error).items():
        module = re.sub(r"\[[^]]*\]$", "", name).removesuffix(".weight")
        found[module] = max(found.get(module, 1), min(rank, largest or rank))
    others = [tensor.name.removesuffix(".weight") for tensor in ranks.skipped]
    return {key: found[module] for module, key in module_patterns(found, others).items()}
