"""The rows of a comparison."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mpfast.support import signed

__all__ = ["DIFF_COLUMNS", "DiffRow", "diff_figures"]


@dataclass(frozen=True)
class DiffRow:
    """What changed in one tensor, or of analyses in one matrix, from A to B.

    Attributes
    ----------
    name, other : str
        Its name in A and in B.
    shape : tuple of int
        Of the tensor; of analyses, of the matrix.
    equal : bool
        Whether the two are the same: every entry, or of analyses every figure but the time.
    norm : float
        Frobenius norm ``||W||`` in A.
    change : float
        ``||delta|| / ||W||``, delta being B - A; infinite where A is zero and B is not. Of analyses, which hold no
        weights: the change of the norm, ``| ||W_B|| / ||W_A|| - 1 |``, which it is at least.
    largest : float or None
        Largest ``|delta|`` of an entry; None of analyses.
    sigma_plus, ks : float or None
        How much larger the edge is in B, relative to A, and the distance of the fit, absolutely; None of checkpoints.
    spikes, signals : int or None
        How many more there are in B; None of checkpoints.
    share : float or None
        How much more of the energy is fitted noise in B, absolutely; None of checkpoints.
    effective_rank, stable_rank : float or None
        How much larger they are in B, relative to A; None of checkpoints.
    verdicts : tuple of str
        Of A and of B; empty of checkpoints.
    """

    name: str
    other: str
    shape: tuple[int, ...]
    equal: bool
    norm: float
    change: float
    largest: float | None = None
    sigma_plus: float | None = None
    ks: float | None = None
    spikes: int | None = None
    signals: int | None = None
    share: float | None = None
    effective_rank: float | None = None
    stable_rank: float | None = None
    verdicts: tuple[str, ...] = ()


#: The columns of a row that are numbers.
DIFF_COLUMNS = (
    *("norm", "change", "largest", "sigma_plus", "ks"),
    *("spikes", "signals", "share", "effective_rank", "stable_rank"),
)


def diff_figures(analyses: bool) -> dict[str, Callable[[DiffRow], str]]:
    """Return by heading what a table shows of a row besides its name and shape."""
    if not analyses:
        return {"change": lambda row: f"{row.change:.3g}", "largest": lambda row: f"{row.largest:.3g}"}
    return {
        "norm": lambda row: f"{row.change:.2%}",
        "sigma+": lambda row: _signed(row.sigma_plus, ".2%"),
        "KS": lambda row: _signed(row.ks, ".3f"),
        "spikes": lambda row: _signed(row.spikes, "d"),
        "signals": lambda row: _signed(row.signals, "d"),
        "share": lambda row: _signed(row.share, ".3f"),
        "eff.rank": lambda row: _signed(row.effective_rank, ".2%"),
        "noise": lambda row: " -> ".join(dict.fromkeys(row.verdicts)),
    }


def _signed(value: float | None, form: str) -> str:
    return "?" if value is None else signed(value, form)
