"""The columns of each kind of row, as its JSON calls them: what tables are sorted by, and conditions look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mpfast.models import DIFF_COLUMNS, LEVELS, NUMBER_COLUMNS, VERDICTS, WORD_COLUMNS

__all__ = [
    "BUDGET",
    "DIFFERENCE",
    "FACTORED",
    "LAYERS",
    "NARROWED",
    "PRUNED",
    "QUANTIZED",
    "RANKS",
    "RESIZED",
    "TENSORS",
    "Columns",
    "Words",
]


@dataclass(frozen=True)
class Words:
    """What a column of words can hold.

    Attributes
    ----------
    known : tuple of str
        All that there are; empty where any word can stand there.
    ladder : tuple of str
        Those that have an order, from the first to the last.
    """

    known: tuple[str, ...] = ()
    ladder: tuple[str, ...] = ()


@dataclass(frozen=True)
class Columns:
    """The columns of a kind of row.

    Attributes
    ----------
    numbers : tuple of str
        Those of a number each.
    words : mapping of str to Words
        Those of a word each, or of a name.
    has_shape : bool
        Whether there is a column ``shape``.
    """

    numbers: tuple[str, ...]
    words: Mapping[str, Words] = field(default_factory=dict)
    has_shape: bool = True

    @property
    def sortable(self) -> tuple[str, ...]:
        """All that rows can be put in order by."""
        return (*self.words, *(("shape",) if self.has_shape else ()), *self.numbers)


def _words(*names: str) -> dict[str, Words]:
    return {name: Words() for name in names}


LAYERS = Columns(NUMBER_COLUMNS, {**_words(*WORD_COLUMNS), "verdict": Words(VERDICTS, LEVELS)})
BUDGET = Columns(("pruned", "sparsity", "sigma_plus", "sigma_plus_error", "rank"), _words("name", "kind", "dtype"))
PRUNED = Columns((*BUDGET.numbers, "masked_error", "error", "heldout_error"), BUDGET.words)
RANKS = Columns(("entries", "paying_rank"), _words("name", "kind"))
FACTORED = Columns(("rank", "energy"), _words("name"))
_FIT_ERRORS = ("error", "heldout_error")
NARROWED = Columns(("units", "masked_error", *_FIT_ERRORS), _words("name", "kind"), has_shape=False)
QUANTIZED = Columns(("weight_error", *_FIT_ERRORS), _words("name"))
RESIZED = Columns(("old_rank", "rank", "error", "experts"), _words("name"))
TENSORS = Columns(("entries", "matrices"), _words("name", "dtype", "stored", "role", "known_from"))
DIFFERENCE = Columns(DIFF_COLUMNS, _words("name", "other"))
