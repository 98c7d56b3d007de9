"""Prune and restore (SER): putting pruned weights back, and scores of which ones are worth it.

One step from sparsity s to s' > s prunes more than it should, ``s' + 0.03``, and then restores the best of what it has
pruned, exactly so many that s' is met::

    masks = mpfast.masks.spectral_budget(weights, target + 0.03, within=masks)
    masks = mpfast.masks.restore(masks, saliency, target)

The saliency may come from training (how far a pruned weight moves when only the pruned ones may move: the paper's
choice, see `mpfast.integrations.torch.restoration`) or from the functions here, which need no gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpfast.arrays import as_wide, boolean_mask, like
from mpfast.masks.weights import HostLayer, prune_count
from mpfast.support import InvalidValueError, floor_count, front_door, thread_count

__all__ = ["input_norm_saliency", "restoration_gain", "restore"]

# What every pruned entry has, so that those of saliency zero come before those that cannot be restored at all.
_LEAST = 1e-290


@front_door
def restore(
    masks: Any,
    saliency: Any,
    sparsity: float,
    *,
    layer_weights: Mapping[str, float] | None = None,
    eligible: Any = None,
    threads: int | None = None,
) -> Any:
    """Put the pruned weights of largest saliency back, until a sparsity is met exactly.

    Parameters
    ----------
    masks
        Mask, or mapping from name to mask, True = kept.
    saliency
        Array like each mask; its magnitude counts.
    sparsity
        Share of all entries that is pruned afterwards.
    layer_weights
        Factors of the saliency by name; the paper's are one over the weights of the spectral budget, which protect
        layers of low noise.
    eligible
        Masks of what may be restored; default all that is pruned.
    threads
        Number of threads; the result does not depend on it.

    Returns
    -------
    masks
        As `masks`; every entry that was kept still is.

    Raises
    ------
    ValueError
        More is kept already than `sparsity` allows, fewer entries are eligible than must be restored, a shape does not
        fit, or a saliency is not finite.

    Examples
    --------
    >>> import numpy as np
    >>> restore(np.array([True, False, False, False]), np.array([9.0, 1.0, 3.0, 2.0]), 0.5)
    array([ True, False,  True, False])
    """
    mapping = isinstance(masks, Mapping)
    listed = dict(masks) if mapping else {"": masks}
    given = saliency if mapping else {"": saliency}
    allowed = None if eligible is None else (eligible if mapping else {"": eligible})
    kept, candidates, layers, scales = {}, 0, [], []
    for name, mask in listed.items():
        label = f"masks[{name!r}]" if mapping else "masks"
        keep = kept[name] = boolean_mask(mask, np.shape(mask), label)
        values = np.abs(as_wide(given[name], name=label.replace("masks", "saliency")))
        if values.shape != keep.shape:
            raise InvalidValueError(f"the saliency of {label}", f"has the shape {values.shape}, not {keep.shape}")
        if not np.isfinite(values).all():
            raise InvalidValueError(f"the saliency of {label}", "has entries that are not finite")
        pruned = ~keep if allowed is None else ~keep & boolean_mask(allowed[name], keep.shape, label)
        candidates += int(np.count_nonzero(pruned))
        layers.append(HostLayer(np.where(pruned, np.maximum(values, _LEAST), 0.0), label))
        scales.append(1.0 if layer_weights is None else float(layer_weights[name]))
    total = sum(keep.size for keep in kept.values())
    gone = total - sum(int(np.count_nonzero(keep)) for keep in kept.values())
    count = gone - floor_count(sparsity, total)
    if not 0 <= count <= candidates:
        raise InvalidValueError(
            f"sparsity={sparsity!r}",
            f"means to restore {count} entries",
            f"{gone} are pruned and {candidates} of them may be restored",
        )
    prune_count(layers, scales, total - count, thread_count(threads))
    result = {
        name: like(keep | layer.keep, listed[name]) for (name, keep), layer in zip(kept.items(), layers, strict=True)
    }
    return result if mapping else result[""]


@front_door
def input_norm_saliency(W: Any, second_moment: ArrayLike) -> NDArray[np.float64]:
    """``|w_ij| sqrt(C_jj)``: how much the weight adds to the output, in root mean square.

    Parameters
    ----------
    W
        (out, in, ...).
    second_moment
        Mean of ``x x^T`` over the layer's inputs, (row length, row length), or only its diagonal, (row length,).
    """
    weights = as_wide(W)
    moment = as_wide(second_moment, name="second_moment")
    diagonal = moment if moment.ndim == 1 else np.diagonal(moment)
    result: NDArray[np.float64] = np.abs(weights) * np.sqrt(diagonal).reshape(weights.shape[1:])
    return result


@front_door
def restoration_gain(W: Any, mask: Any, second_moment: ArrayLike) -> NDArray[np.float64]:
    """Return how much the mean squared change of the output shrinks when this one pruned weight is put back.

    With R the pruned weights and C the second moment, ``2 r_ij (R C)_ij - r_ij^2 C_jj``. Zero where nothing is pruned,
    and where putting a weight back would do harm: alone, it would undo what others cancel.

    Parameters
    ----------
    W, mask
        Weights (out, in, ...) and the boolean mask that prunes them.
    second_moment
        Mean of ``x x^T`` over the layer's inputs, (row length, row length).
    """
    weights = as_wide(W)
    moment = as_wide(second_moment, name="second_moment")
    pruned = ~boolean_mask(mask, weights.shape, "W")
    R = (weights * pruned).reshape(len(weights), -1)
    gain = 2 * R * (R @ moment) - R**2 * np.diagonal(moment)
    result: NDArray[np.float64] = np.maximum(gain, 0.0).reshape(weights.shape)
    return result
