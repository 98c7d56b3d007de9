"""The energies of a matrix's rows and columns, and the same matrix with its rows and columns scaled."""

from __future__ import annotations

from typing import Any

import numpy as np

from mpfast.operators.factors import Energies, Factors
from mpfast.operators.protocol import LanczosRun, Source
from mpfast.support import InvalidValueError

__all__ = ["energies", "scaled"]


def energies(source: Source, run: LanczosRun | None = None) -> Energies | None:
    """Sums of the squares of every row and of every column of the matrix that ``source`` multiplies with.

    Parameters
    ----------
    source
        Of shape (m, n).
    run
        A run on this source that was started with ``energies=True``: what its first pass saw costs nothing more.
        Otherwise the entries are read once.

    Returns
    -------
    energies
        Of shapes (m,) and (n,), float64, in units of ``4**source.scale_exponent``; None where nobody sees the entries.

    Raises
    ------
    ValueError
        W has non-finite entries, or their squares are no float64.
    """
    found = source.energies(run)
    if found is not None and not all(np.isfinite(each).all() for each in found):
        raise InvalidValueError("", "the squares of the entries of W leave the range of float64", "scale W")
    return found


def scaled(source: Source, row_scale: Any, column_scale: Any) -> Source:
    """Return a source of the matrix with entries ``row_scale[i] W[i, j] column_scale[j]``, which is never formed.

    Every product multiplies the vectors by the factors instead, and what lies between the halves of a Gram product:
    W is read as often and as it was.

    Parameters
    ----------
    source
        Of shape (m, n); stays as it is. It may be scaled itself.
    row_scale, column_scale
        Factors of shapes (m,) and (n,), finite and not negative. A row or column of factor 0 counts as zero.

    Raises
    ------
    ValueError
        The factors do not fit, or are further than a factor of 2^400 from their median. (From 2^60 on products are
        formed in fp64, whatever W is stored in.)
    """
    before = source.factors
    if before is not None:
        return source.scaled(before.of_more(row_scale, column_scale))
    return source.scaled(Factors.of(row_scale, column_scale, source.shape))
