"""Least squares on a mask: the best values of the weights that stay."""

from __future__ import annotations

from typing import Any

from mpfast.reconstruct.conjugate_gradients import check_steps
from mpfast.reconstruct.fit import Fit
from mpfast.reconstruct.surgery import open_surgery
from mpfast.support import front_door, thread_count

__all__ = ["refit"]


@front_door
def refit(W: Any, C: Any, mask: Any, *, steps: int = 8, threads: int | None = None) -> Fit:
    """Give the weights that a mask keeps the values with which the layer's outputs change least.

    Every row is a least-squares problem of its own, on the inputs that it keeps. It is solved by conjugate gradients,
    from what optimal brain surgeon makes of the mask, with the leading directions of C as a preconditioner. With the
    default steps the error is within 1 % of the least that is possible, on layers of MiniLM at 60 %.

    Where inputs are so nearly combinations of others that single precision does not hold the fit of a row, which takes
    next to no damping, the row's weights stay as they are.

    With damping, the weights that stay make up for less than they could. Where there is any, each row v is therefore
    multiplied in the end with what is best for C undamped, ``(w C v) / (v C v)``, within 0.5 and 2: by that, the error
    never rises.

    Parameters
    ----------
    W
        Weights, (out, in), of any framework; float64, float32, float16 or bfloat16. Computed with in single precision.
    C
        Mean of ``x x^T`` over the inputs, (in, in), or a `Factor` of it.
    mask
        Boolean, of the shape of W, of any framework; True where a weight is kept.
    steps
        Of conjugate gradients, 0 or more; each costs about ``2 out in^2`` flops.
    threads
        Number of threads; the result does not depend on it.

    Returns
    -------
    Fit

    Raises
    ------
    ValueError
        Shapes do not fit, an entry is not finite, or as `Factor`.
    TypeError
        W or C is no array of real numbers.

    Examples
    --------
    >>> import numpy as np
    >>> from mpfast import masks, reconstruct
    >>> rng = np.random.default_rng(0)
    >>> W, X = rng.standard_normal((16, 32)), rng.standard_normal((500, 32)) @ rng.standard_normal((32, 32))
    >>> fit = reconstruct.refit(W, X.T @ X / 500, masks.magnitude(W, 0.5))
    >>> fit.error < 0.5 * fit.masked_error
    True
    """
    surgery = open_surgery(W, C, thread_count(threads))
    surgery.columns(mask=mask, again=True)
    surgery.finish(check_steps(steps, "steps"))
    return surgery.fit()
