"""What a bound on the change of logits leaves of predictions and losses.

References
----------
Berlyand, Bourdais, Owhadi, Shmalo 2026 (arXiv 2606.02608), certificates; the worst case of the cross-entropy is ours.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpfast.support import InvalidValueError, front_door

__all__ = ["margin_safe", "worst_cross_entropy"]

Array = NDArray[np.float64]

ROUNDING = 2.0**-52
# By how many roundings a loss may be off for having been computed.
LOSS_ROUNDINGS = 4.0


def worst_cross_entropy(
    loss: ArrayLike | None = None,
    eta: ArrayLike = 0.0,
    *,
    logits: ArrayLike | None = None,
    labels: ArrayLike | None = None,
) -> Array:
    """Largest increase of a sample's cross-entropy when no logit moves by more than eta.

    ``log(1 + e^(2 eta) (e^loss - 1)) - loss``: the true class's logit falls by eta, all others rise by it. Never more
    than ``2 eta``.

    Parameters
    ----------
    loss
        Of each sample; a bound is given for what may have been rounded to it. A loss of 0 is none of finite logits, and
        says nothing of what it was: its bound is ``2 eta``. Or, without rounding,
    logits, labels
        (samples, classes), or logarithms of probabilities, and the true classes, (samples,).
    eta
        One number, or one per sample.

    Raises
    ------
    ValueError
        Both or neither of `loss` and `logits` are given, or these and `labels` do not fit.

    Examples
    --------
    >>> print(f"{worst_cross_entropy(0.1, 0.2):.4f}")
    0.0457
    >>> worst_cross_entropy(logits=[[60.0, 20.0]], labels=[0], eta=20.0).round(4)
    array([0.6931])
    """
    if (loss is None) == (logits is None):
        raise InvalidValueError("", "either loss, or logits and labels, must be given")
    eta = np.asarray(eta, np.float64)
    if logits is not None:
        others = _others(logits, labels)
        return _increase(others, np.logaddexp(0.0, others), eta)
    given = np.asarray(loss)
    precision = float(np.finfo(given.dtype).eps) if given.dtype.kind == "f" else ROUNDING
    # The increase grows with the loss: that of the largest loss which may have been rounded to this one.
    largest = given.astype(np.float64)
    largest = largest + LOSS_ROUNDINGS * precision * (1 + np.abs(largest))
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        # log(e^loss - 1) without overflow.
        others = largest + np.log(-np.expm1(-largest))
    return np.where(given == 0, 2 * eta, np.minimum(_increase(others, largest, eta), 2 * eta))


def _others(logits: ArrayLike, labels: ArrayLike | None) -> Array:
    """Logarithm of the other classes' probability over that of the true one, sample by sample."""
    scores = np.asarray(logits, np.float64)
    truth = np.asarray(labels if labels is not None else [])
    if scores.ndim != 2 or truth.shape != scores.shape[:1] or truth.dtype.kind not in "iu":
        raise InvalidValueError(
            "labels",
            f"must be integers, one for each row of logits (samples, classes), not {truth.dtype} {truth.shape}",
        )
    if len(truth) and not 0 <= truth.min() <= truth.max() < scores.shape[1]:
        raise InvalidValueError("labels", f"must lie in [0, {scores.shape[1]})")
    true_ones = np.take_along_axis(scores, truth[:, None].astype(np.intp), axis=1)
    ahead = scores - true_ones
    np.put_along_axis(ahead, truth[:, None].astype(np.intp), -np.inf, axis=1)
    result: Array = np.logaddexp.reduce(ahead, axis=1)
    return result


def _increase(others: Array, loss: Array, eta: Array) -> Array:
    """``log(1 + e^(2 eta + others)) - loss``, not below 0."""
    with np.errstate(over="ignore", invalid="ignore"):
        result: Array = np.logaddexp(0.0, 2 * eta + others) - loss
    return np.maximum(result, 0.0)


@front_door
def margin_safe(logits: ArrayLike, eta: ArrayLike) -> NDArray[np.bool_]:
    """Which predictions cannot change when no logit moves by more than eta: those with a margin above ``2 eta``.

    Parameters
    ----------
    logits
        (samples, classes).
    eta
        One number, or one per sample.

    Raises
    ------
    ValueError
        `logits` is not 2-D with at least two classes.
    """
    scores = np.asarray(logits, np.float64)
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise InvalidValueError("logits", f"must be (samples, classes), two at least, but have {scores.shape}")
    top = np.sort(scores, axis=1)
    safe: NDArray[np.bool_] = top[:, -1] - top[:, -2] > 2 * np.asarray(eta, np.float64)
    return safe
