"""Masks that keep the largest entries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mpfast.masks.by_row import prune_by_row
from mpfast.masks.weights import Weights, close_layers, open_layers, prune_layers, what_prune_would_protect
from mpfast.support import InvalidValueError, MissingKeyError, check_sparsity, front_door, thread_count, warn_caller

__all__ = ["magnitude"]


@front_door
def magnitude(
    weights: Weights,
    sparsity: float | Mapping[str, float],
    *,
    scope: str = "global",
    within: Any = None,
    out: Any = None,
    threads: int | None = None,
) -> Any:
    """Keep the largest entries in magnitude.

    Parameters
    ----------
    weights
        One array, or a mapping from name to array; any framework, any number of dimensions.
    sparsity
        Share of entries to prune, 0 to 1; or one for each layer by name, such as a budget's.
    scope
        ``"global"``: over all layers together; ``"layer"``: in each; ``"row"``: in each row (out, ...) of each layer.
        Rows lose as many entries as each other up to one, so that the layer's count is exact. With
        `input_norm_saliency` in the place of the weights, that is Wanda (arXiv 2306.11695).
    within
        Masks of an earlier, lower sparsity, as this function returns them: what they prune stays pruned and counts, so
        that the masks of a growing sparsity are nested. Weights in host memory only.
    out
        C-contiguous boolean array of the shape of the weight to write the mask into, or a mapping of them by name:
        NumPy or PyTorch in host memory, the weights' framework on a GPU. Memory that was in use before takes less time
        than new pages. After an error its entries mean nothing. Not together with `within`.
    threads
        Number of threads; the result does not depend on it.

    Returns
    -------
    mask
        Boolean array like each weight, on its device, or a dict of them; those of `out` themselves, if given.

    Raises
    ------
    ValueError
        A weight is empty or has non-finite entries; an option is out of range.
    TypeError
        A weight is not a real floating-point array.
    KeyError
        `sparsity` or `within` lacks a layer.

    Warns
    -----
    UserWarning
        Among matrices there are vectors, embeddings or output heads, which `mpfast.prune` would leave dense.

    Examples
    --------
    >>> import numpy as np
    >>> magnitude(np.array([[1.0, -3.0], [0.0, 2.0]]), 0.5)
    array([[False,  True],
           [False,  True]])
    """
    if scope not in ("global", "layer", "row"):
        raise InvalidValueError("scope", f"must be 'global', 'layer' or 'row', not {scope!r}")
    count = thread_count(threads)
    warn_caller("magnitude", what_prune_would_protect(weights))
    layers, mapping = open_layers(weights, within, out)
    groups = [layers] if scope == "global" else [[layer] for layer in layers]
    if isinstance(sparsity, Mapping):
        if not mapping:
            raise InvalidValueError("", "a sparsity for each layer needs a mapping of weights")
        groups = [[layer] for layer in layers]
        missing = [name for name in weights if name not in sparsity]
        if missing:
            raise MissingKeyError("sparsity", f"has no share for {missing[0]!r}")
        shares = [check_sparsity(sparsity[name], f"sparsity[{name!r}]") for name in weights]
    else:
        shares = [check_sparsity(sparsity)] * len(groups)
    for group, share in zip(groups, shares, strict=True):
        if scope == "row":
            prune_by_row(group[0], share, count)
        else:
            prune_layers(group, [1.0] * len(group), share, count)
    return close_layers(layers, weights, mapping)
