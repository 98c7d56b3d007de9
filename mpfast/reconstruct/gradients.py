"""Which outputs of a layer matter to the loss."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.arrays import as_wide
from mpfast.support import InvalidValueError

__all__ = ["row_weights"]

# Of the mean over a layer: an output that no gradient reached in the sample is not free to be anything.
_LEAST_GRADIENT = 0.01


def row_weights(gradient: Any, name: str, rows: int) -> NDArray[np.float64]:
    """Return what the rows of W are multiplied with, (rows,), so that errors are those of the loss (Gauss-Newton).

    Parameters
    ----------
    gradient
        Mean squares of the gradients of the loss in the layer's outputs, (rows,), of any framework, or a number.
    name
        For error messages.
    rows
        Number of outputs.
    """
    values = np.float64(gradient) if isinstance(gradient, (int, float, np.number)) else as_wide(gradient, name=name)
    if values.shape not in ((), (rows,)) or not np.isfinite(values).all() or not values.min() >= 0 < values.max():
        raise InvalidValueError(name, f"must be finite, not negative and not all zero, a number or of shape ({rows},)")
    floor = _LEAST_GRADIENT * (values / values.max()).mean() * values.max()
    weights: NDArray[np.float64] = np.sqrt(np.broadcast_to(np.maximum(values, floor), (rows,)))
    return weights
