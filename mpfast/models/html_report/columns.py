"""What a reader of a page is told of each figure; `row_figures` and `diff_figures` have the figures themselves."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

__all__ = ["COMPARISON_COLUMNS", "LAYER_COLUMNS", "Column"]


class Column(NamedTuple):
    """What a heading stands for.

    Attributes
    ----------
    field : str
        The field of a row that it is sorted by.
    meaning : str
        What it is, in a sentence or two.
    foremost : bool
        Whether a small screen shows it of rows that are not opened.
    """

    field: str
    meaning: str
    foremost: bool = False


#: Of tables of layers, by heading.
LAYER_COLUMNS: Mapping[str, Column] = MappingProxyType(
    {
        "layer": Column("name", "Name of the matrix; an exclamation mark says that there is a warning."),
        "shape": Column("shape", "Rows x columns of the matrix.", foremost=True),
        "sigma+": Column(
            "sigma_plus",
            "Upper edge of the noise on the singular-value scale, noise taken for even; with one standard error where "
            "it is an estimate.",
            foremost=True,
        ),
        "spikes": Column("spikes", "Singular values above the Tracy-Widom corrected edge, noise taken for even."),
        "signals": Column(
            "signals",
            "Once scales of rows and columns are taken out, where these differ: singular values that could not come "
            "from independent entries, to those that stand out of the bulk.",
            foremost=True,
        ),
        "uneven": Column(
            "unevenness", "By what share the edge would move if all that rows and columns differ in were noise."
        ),
        "KS": Column(
            "ks_scaled", "Kolmogorov distance between the bulk and the law, before and after scales are taken out."
        ),
        "noise": Column(
            "verdict",
            "What the bulk is: even noise, noise of uneven scale, nearly noise, or none. It is no mark: most trained "
            "layers have none.",
            foremost=True,
        ),
        "share": Column(
            "share", "Share of the energy that is fitted noise. It is no share that can go.", foremost=True
        ),
        "eff.rank": Column(
            "entropy_rank", "Effective rank: exponential of the entropy of the energies of directions.", foremost=True
        ),
        "hill_alpha": Column("hill_alpha", "Hill estimate of the exponent of the tail."),
        "stable": Column("stable_rank", "Stable rank: squared Frobenius norm over squared largest singular value."),
        "stored": Column("stored", "How a quantised tensor is stored; empty of any other."),
        "rounding": Column(
            "quantization_noise", "Share of the fitted variance that the rounding of the stored format explains."
        ),
    }
)

#: Of comparisons, by heading.
COMPARISON_COLUMNS: Mapping[str, Column] = MappingProxyType(
    {
        "tensor": Column("name", "Name in A."),
        "matrix": Column("name", "Name in A."),
        "shape": Column("shape", "Extents in A.", foremost=True),
        "change": Column("change", "Frobenius norm of the difference over that of the tensor in A.", foremost=True),
        "largest": Column("largest", "Largest difference of an entry.", foremost=True),
        "norm": Column(
            "change", "Change of the Frobenius norm; the matrix itself changed by at least as much.", foremost=True
        ),
        "sigma+": Column("sigma_plus", "How much larger the edge of even noise is in B, relative to A.", foremost=True),
        "KS": Column("ks", "How much larger the distance between the bulk and the law of even noise is in B."),
        "spikes": Column("spikes", "How many more singular values stand out of even noise in B."),
        "signals": Column(
            "signals", "How many more stand out in B once scales of rows and columns are taken out.", foremost=True
        ),
        "share": Column("share", "How much more of the energy is fitted noise in B.", foremost=True),
        "eff.rank": Column(
            "effective_rank", "How much larger the effective rank is in B, relative to A.", foremost=True
        ),
        "noise": Column("verdicts", "What the bulk is in A and in B; once, where both are the same.", foremost=True),
    }
)
