"""Pruned weights, chosen and refitted with the second moment of the inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.reconstruct.conjugate_gradients import check_steps, finish
from mpfast.reconstruct.fit import Fit
from mpfast.reconstruct.gradients import row_weights
from mpfast.reconstruct.layer import Layer
from mpfast.reconstruct.rounds import alternating, gradual
from mpfast.reconstruct.selection import Selection
from mpfast.reconstruct.surgery import open_surgery
from mpfast.support import InvalidValueError, front_door, thread_count

__all__ = ["prune"]

Single = NDArray[np.float32]
Mask = NDArray[np.bool_]


@front_door
def prune(
    W: Any,
    C: Any,
    *,
    sparsity: float | None = None,
    pattern: str | tuple[int, int] | None = None,
    method: str = "obs",
    refit: int = 4,
    gradients: Any = None,
    threads: int | None = None,
) -> Fit:
    """Choose which weights stay, and refit them, so that the layer's outputs change least.

    Parameters
    ----------
    W
        Weights, (out, in), of any framework; float64, float32, float16 or bfloat16. Computed with in single precision.
    C
        Mean of ``x x^T`` over the inputs, (in, in), or a `Factor` of it, which layers with the same input share.
    sparsity
        Share of the weights that go, 0 to 1: ``floor(sparsity * W.size)`` of them.
    pattern
        In its place: n of every m consecutive weights of a row stay, ``"2:4"`` or ``(2, 4)``, m up to 64; m divides the
        number of inputs.
    method
        ``"obs"``: optimal brain surgeon, column by column, as SparseGPT; for a pattern, the set that goes is the best
        of all sets of a group, exactly for m up to 16. ``"gradual"``: a little is pruned by magnitude times the input's
        norm, the rest refitted, and more pruned, in four rounds; about four times the time. ``"admm"``: mask and
        weights together, as ALPS; some ten times the time, with an eigendecomposition of C, and the least error.
    refit
        Steps of conjugate gradients in the end, and a scale for each row, see `mpfast.reconstruct.refit`; 0: neither.
    gradients
        Mean squares of the gradients of a loss in the layer's outputs, (out,): with a `sparsity`, outputs that matter
        more to the loss keep more weights. An output counts for at least 1 % of the mean. Errors do not know of them.
    threads
        Number of threads; the result does not depend on it.

    Returns
    -------
    Fit

    Raises
    ------
    ValueError
        Not exactly one of `sparsity` and `pattern` is given, an option is out of range, shapes do not fit, an entry is
        not finite, or as `Factor`.
    TypeError
        W or C is no array of real numbers.

    References
    ----------
    Frantar and Alistarh, arXiv 2301.00774 (SparseGPT); Meng et al., arXiv 2406.07831 (ALPS).

    Examples
    --------
    >>> import numpy as np
    >>> from mpfast import reconstruct
    >>> rng = np.random.default_rng(0)
    >>> W, X = rng.standard_normal((16, 32)), rng.standard_normal((500, 32)) @ rng.standard_normal((32, 32))
    >>> fit = reconstruct.prune(W, X.T @ X / 500, pattern="2:4")
    >>> bool((fit.mask.reshape(-1, 4).sum(axis=1) == 2).all()), fit.error < 0.5 * fit.masked_error
    (True, True)
    """
    methods = ("obs", *_IN_ROUNDS)
    if method not in methods:
        raise InvalidValueError("method", f"must be {', '.join(map(repr, methods))}, not {method!r}")
    steps = check_steps(refit, "refit")
    if method == "obs":
        surgery = open_surgery(W, C, thread_count(threads), pattern)
        selection = Selection.of(surgery.shape, sparsity, pattern)
        if gradients is not None:
            surgery.weigh_rows(row_weights(gradients, "gradients", surgery.shape[0]))
        surgery.columns(selection=selection, again=steps > 0)
        surgery.finish(steps)
        return surgery.fit()
    layer = Layer(W, C, thread_count(threads))
    selection = Selection.of(layer.shape, sparsity, pattern)
    if gradients is not None:
        layer.weigh_rows(row_weights(gradients, "gradients", layer.shape[0]))
    values, keep = _IN_ROUNDS[method](layer, selection)
    finish(layer, values, keep, steps)
    return layer.fit(values, keep)


# They refit the weights themselves, too.
_IN_ROUNDS: dict[str, Callable[[Layer, Selection], tuple[Single, Mask]]] = {"gradual": gradual, "admm": alternating}
