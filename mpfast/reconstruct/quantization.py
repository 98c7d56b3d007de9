"""Rounded weights whose errors the later columns make up for, alone or together with a mask."""

from __future__ import annotations

from typing import Any

from mpfast.reconstruct.fit import Fit
from mpfast.reconstruct.selection import Selection
from mpfast.reconstruct.surgery import open_surgery
from mpfast.support import InvalidValueError, check_flag, front_door, positive_integer, thread_count

__all__ = ["quantize"]

MOST_BITS = 8
# Beyond this power of two, up or down, weights have steps that single precision does not hold.
_SCALES = 100


@front_door
def quantize(
    W: Any,
    C: Any,
    bits: int,
    *,
    group: int | None = 64,
    symmetric: bool = False,
    mask: Any = None,
    sparsity: float | None = None,
    pattern: str | tuple[int, int] | None = None,
    threads: int | None = None,
) -> Fit:
    """Round weights to a grid, column by column, each time letting the columns to the right make up for it (GPTQ).

    Where inputs are so nearly combinations of others that single precision may not hold what makes up for what, which
    takes next to no damping, every row that would come out worse than by rounding alone is rounded alone: what the mask
    keeps of it goes to the nearest value of a grid of its own.

    Parameters
    ----------
    W
        Weights, (out, in), of any framework; float64, float32, float16 or bfloat16. Computed with in single precision.
    C
        Mean of ``x x^T`` over the inputs, (in, in), or a `Factor` of it.
    bits
        1 to 8: there are ``2**bits`` values in a group.
    group
        How many consecutive weights of a row share a scale and a zero; None: all of a row. The grid spans the weights
        of the group, as they are when the columns before it are done, and has zero on it.
    symmetric
        Whether zero is in the middle of every grid, at ``2**(bits - 1)``, as formats have it that store no zeros; of 2
        bits or more. Steps are the wider for it, by up to twice.
    mask, sparsity, pattern
        At most one: a boolean mask of the shape of W, or what is to be pruned, as in `mpfast.reconstruct.prune`. What
        is pruned is chosen and zeroed in the same pass.
    threads
        Number of threads; the result does not depend on it.

    Returns
    -------
    Fit
        With the rounded weights, in the type of W, and their `Grid`.

    Raises
    ------
    ValueError
        An option is out of range or does not go with another, shapes do not fit, an entry is not finite, or as
        `Factor`.
    TypeError
        W or C is no array of real numbers.

    References
    ----------
    Frantar et al., arXiv 2210.17323.

    Examples
    --------
    >>> import numpy as np
    >>> from mpfast import reconstruct
    >>> rng = np.random.default_rng(0)
    >>> W, X = rng.standard_normal((16, 64)), rng.standard_normal((500, 64)) @ rng.standard_normal((64, 64))
    >>> fit = reconstruct.quantize(W, X.T @ X / 500, 3, group=32)
    >>> len(np.unique(fit.weights[0, :32])) <= 8
    True
    """
    if positive_integer(bits, "bits", optional=False) > MOST_BITS:
        raise InvalidValueError("bits", f"must be at most {MOST_BITS}, not {bits!r}")
    check_flag(symmetric, "symmetric")
    if symmetric and bits < 2:
        raise InvalidValueError("bits", "must be at least 2 where the grid is symmetric")
    if sum(option is not None for option in (mask, sparsity, pattern)) > 1:
        raise InvalidValueError("", "mask, sparsity and pattern exclude each other")
    surgery = open_surgery(W, C, thread_count(threads), pattern)
    if not 2.0**-_SCALES < surgery.unit < 2.0**_SCALES:
        raise InvalidValueError("W", f"is near {surgery.unit:g}: its scales, in single precision, are off", "scale it")
    cols = surgery.shape[1]
    width = cols if group is None else min(positive_integer(group, "group"), cols)
    selection = None
    if sparsity is not None or pattern is not None:
        selection = Selection.of(surgery.shape, sparsity, pattern)
        groups = selection.pattern
        if groups is not None and width != cols and width % groups[1]:
            raise InvalidValueError("group", f"must be a multiple of the pattern's {groups[1]}, not {group!r}")
    surgery.columns(mask=mask, selection=selection, grid=(int(bits), width, symmetric), again=False)
    return surgery.fit()
