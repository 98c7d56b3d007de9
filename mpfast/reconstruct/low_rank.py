"""Low-rank factors that change the outputs least, in closed form; ranks of many layers from one budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.arrays import as_numpy, check_matrix, host_copy, in_storage, like_stored
from mpfast.reconstruct.factor import Factor, as_factor
from mpfast.reconstruct.gradients import row_weights
from mpfast.spectra import PrincipalOutputs
from mpfast.support import (
    InvalidTypeError,
    InvalidValueError,
    MissingKeyError,
    argument_called,
    check_sparsity,
    front_door,
    positive_integer,
    thread_count,
)

__all__ = ["lowrank", "lowrank_pooled"]

Array = NDArray[np.float64]


@front_door
def lowrank(
    W: Any, C: Any, rank: int | None = None, *, error: float | None = None, threads: int | None = None
) -> tuple[Any, Any]:
    """Split W into ``A @ B`` of a rank, so that the layer's outputs change least.

    The best of all matrices of that rank is ``Q Q^T W``, with Q the leading eigenvectors of ``W H W^T``: the projection
    of the outputs onto their principal directions.

    Parameters
    ----------
    W
        Weights, (out, in), of any framework; float64, float32, float16 or bfloat16.
    C
        Mean of ``x x^T`` over the inputs, (in, in), or a `Factor` of it.
    rank
        Of the product, 1 to ``min(out, in)``.
    error
        In its place, the largest error: the least rank with
        ``tr (W - A B) C (W - A B)^T <= error * tr W C W^T``.
    threads
        Number of threads; the result does not depend on it.

    Returns
    -------
    A, B
        Shapes (out, rank) and (rank, in), in the caller's framework and type; column k of A and row k of B have the
        same norm.

    Raises
    ------
    ValueError
        Not exactly one of `rank` and `error` is given, one is out of range, shapes do not fit, or an entry is not
        finite.
    TypeError
        W or C is no array of real numbers.

    References
    ----------
    Wang et al., arXiv 2403.07378 (SVD-LLM), where the same product is found by a Cholesky factor of C.

    Examples
    --------
    >>> import numpy as np
    >>> from mpfast import reconstruct
    >>> rng = np.random.default_rng(0)
    >>> W, X = rng.standard_normal((16, 32)), rng.standard_normal((500, 4)) @ rng.standard_normal((4, 32))
    >>> A, B = reconstruct.lowrank(W, reconstruct.Factor(X.T @ X / 500, damping=0), error=1e-6)
    >>> A.shape, B.shape
    ((16, 4), (4, 32))
    """
    outputs = _Outputs(W, C, "W", thread_count(threads))
    if (rank is None) == (error is None):
        raise InvalidValueError("", "one of rank and error is needed", "give a rank, or the largest error")
    if error is not None:
        return outputs.factors(outputs.rank_for(check_sparsity(error, "error")))
    wanted, largest = positive_integer(rank, "rank"), min(outputs.shape)
    if wanted > largest:
        raise InvalidValueError("rank", f"must be at most min(W.shape) = {largest}, not {rank!r}")
    return outputs.factors(wanted)


@front_door
def lowrank_pooled(
    layers: Mapping[str, tuple[Any, Any]],
    share: float,
    *,
    gradients: Mapping[str, Any] | None = None,
    threads: int | None = None,
) -> dict[str, tuple[Any, Any] | None]:
    """Factor many layers, their ranks taken from one budget of parameters: the directions that matter most come first.

    A direction of a layer is worth what it adds to the mean square of the outputs, each weighted by its gradient, for
    each of its ``out + in`` parameters. A layer whose factors would be as large as itself stays dense.

    Parameters
    ----------
    layers
        Name to (W, C), as `lowrank` takes them.
    share
        Share of the parameters of all layers that may be used, more than 0 and at most 1.
    gradients
        Name to the mean squares of the gradients of a loss in the layer's outputs, (out,) or a number: with them,
        directions and what they add are those of the loss (Gauss-Newton), which matters much. One backward pass gives
        them, of random directions of the model's output. An output counts for at least 1 % of the layer's mean. Without
        gradients, all outputs of all layers count alike.
    threads
        Number of threads; the result does not depend on it.

    Returns
    -------
    dict
        Name to (A, B), or None where the layer stays dense. At least one direction of every layer is kept.

    Raises
    ------
    ValueError
        As `lowrank`; there is no layer, or `share` or a gradient is out of range.
    KeyError
        `gradients` lacks a layer.

    Examples
    --------
    >>> import numpy as np
    >>> from mpfast import reconstruct
    >>> rng = np.random.default_rng(0)
    >>> W, C = rng.standard_normal((16, 32)), np.eye(32)
    >>> pooled = reconstruct.lowrank_pooled({"quiet": (0.1 * W, C), "loud": (W, C)}, 0.5)
    >>> pooled["quiet"][0].shape[1], pooled["loud"][0].shape[1]
    (1, 9)
    """
    real = isinstance(share, (int, float, np.integer, np.floating)) and not isinstance(share, bool)
    if not real or not 0 < share <= 1:
        raise InvalidValueError("share", f"must be a number in (0, 1], not {share!r}")
    if not isinstance(layers, Mapping):
        raise InvalidTypeError("layers", f"must be a mapping from name to (W, C), not {type(layers).__name__}")
    if not layers:
        raise InvalidValueError("layers", "is empty")
    if gradients is not None and not isinstance(gradients, Mapping):
        raise InvalidTypeError("gradients", f"must be a mapping from name to array, not {type(gradients).__name__}")
    if gradients is not None and (missing := [name for name in layers if name not in gradients]):
        raise MissingKeyError("gradients", f"has none for {missing[0]!r}")
    count = thread_count(threads)
    opened = {name: _opened(name, pair, gradients, count) for name, pair in layers.items()}
    shapes, values = ({name: getattr(layer, of) for name, layer in opened.items()} for of in ("shape", "energies"))
    ranks = _pooled_ranks(shapes, values, float(share))
    return {name: None if rank is None else opened[name].factors(rank) for name, rank in ranks.items()}


def _opened(name: str, pair: Any, gradients: Mapping[str, Any] | None, threads: int) -> _Outputs:
    where = f"layers[{name!r}]"
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise InvalidValueError(where, "must be a pair of W and C")
    with argument_called(f"C of {where}", within="C"):
        W, C = pair
        return _Outputs(W, C, where, threads, None if gradients is None else (gradients[name], f"gradients[{name!r}]"))


class _Outputs:
    """The principal directions of a layer's outputs, each weighted by a gradient and its name where one is given."""

    def __init__(self, W: Any, C: Any, name: str, threads: int, gradient: tuple[Any, str] | None = None) -> None:
        self._given = W
        array, self._dtype = as_numpy(host_copy(W), name=name)
        check_matrix(array.shape, self._dtype, name)
        self._factor: Factor = as_factor(C, array.shape, threads)
        roots = None if gradient is None else row_weights(*gradient, len(array))
        self._outputs = PrincipalOutputs(array, self._dtype, name, self._factor.damped(), threads, roots)
        self.shape, self.energies = self._outputs.shape, self._outputs.energies

    def factors(self, rank: int) -> tuple[Any, Any]:
        """A and B of the best product of this rank."""
        left, right = self._outputs.factors(rank)
        return self._stored(left), self._stored(right)

    def rank_for(self, error: float) -> int:
        """The least rank whose error, by C undamped, is no larger; the full one where none is."""
        captured, total = self._outputs.captured(self._factor.moment)
        # Rounding of sums of so many terms.
        enough = captured >= (1 - error) * total - 1e-12 * total
        return int(enough.argmax()) + 1 if enough.any() else len(captured)

    def _stored(self, values: Array) -> Any:
        return like_stored(np.ascontiguousarray(in_storage(values, self._dtype)), self._dtype, self._given)


def _pooled_ranks(
    shapes: Mapping[str, tuple[int, int]], values: Mapping[str, Array], share: float
) -> dict[str, int | None]:
    """Ranks by value for each parameter, the largest first, as long as there are parameters; None: dense."""
    total = sum(rows * cols for rows, cols in shapes.values())
    budget = share * total
    ranks = dict.fromkeys(shapes, 1)
    dense = {name for name, (rows, cols) in shapes.items() if rows + cols >= rows * cols}
    spent = sum(min(rows + cols, rows * cols) for rows, cols in shapes.values())
    if spent > budget:
        raise InvalidValueError(
            "share", f"is too small: one direction of every layer takes {spent / total:.2%} already, not {share:.2%}"
        )
    candidates = sorted(
        (
            (-value / sum(shapes[name]), order, k, name)
            for order, name in enumerate(shapes)
            for k, value in enumerate(values[name].tolist())
            if k > 0
        ),
    )
    for _, _, k, name in candidates:
        rows, cols = shapes[name]
        if name in dense or k != ranks[name]:
            continue
        # The last direction costs what is left up to the dense size.
        cost = min((k + 1) * (rows + cols), rows * cols) - min(k * (rows + cols), rows * cols)
        if spent + cost > budget:
            continue
        spent += cost
        ranks[name] = k + 1
        if (k + 1) * (rows + cols) >= rows * cols:
            dense.add(name)
    return {name: None if name in dense else rank for name, rank in ranks.items()}
