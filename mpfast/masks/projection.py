"""n:m masks that change a layer's output least, given the second moment of its inputs (CAST).

For a row ``w`` of the weights and a group of m inputs with second moment ``C`` (uncentred: the mean of ``x x^T``), a
mask that drops the set D costs ``Q(D) = sum over i, j in D of w_i C_ij w_j``, the mean squared change of the output as
far as this group is concerned. For m <= 16 the mask found is the best there is; beyond that, a local optimum with a
lower bound. The algorithm is in ``csrc/masks/projection.hpp``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpfast import _core
from mpfast.arrays import as_numpy, boolean_mask, has_cuda_backend, is_on_gpu, like, on_host, raise_if_nonfinite
from mpfast.masks.cuda import DeviceLayer, projection_on_device
from mpfast.masks.projection_problem import LARGEST_EXACT, LARGEST_PRIOR, Problem, checked_moment, diagonal_blocks
from mpfast.support import InvalidValueError, front_door, thread_count

__all__ = ["Projection", "output_error", "permute_inputs", "permute_outputs", "project", "project_mask"]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Projection:
    """A mask with n of every m inputs, and what it costs.

    Costs are sums over rows and groups of the mean squared change of the output that a group causes; they are those of
    the weights alone, without the prior.

    Attributes
    ----------
    mask : array
        Boolean, of the shape of W, in W's own order of inputs, in the caller's framework.
    permutation : ndarray of int, optional
        The order of the inputs in which groups are consecutive: ``permute_inputs(mask, permutation)`` is n:m.
    cost : float
        Of this mask.
    magnitude_cost : float
        Of the mask that keeps the n largest weights of each of the same groups.
    lower_bound : float
        No mask costs less: `cost` itself where the search was exhaustive, without source mask or prior.
    """

    mask: Any
    permutation: NDArray[np.int64] | None
    cost: float
    magnitude_cost: float
    lower_bound: float

    @property
    def gap(self) -> float:
        """How much cheaper a mask could be at best, relative to `cost`."""
        return 0.0 if self.cost == 0 else 1 - self.lower_bound / self.cost


@front_door
def project(
    W: Any,
    n: int,
    m: int,
    second_moment: ArrayLike,
    *,
    source_mask: Any = None,
    prior: float = 0.0,
    restore: bool = True,
    permute: bool | str = False,
    layout: str = "flat",
    threads: int | None = None,
) -> Projection:
    """Keep those n of every m weights of a row whose loss changes the output least.

    Parameters
    ----------
    W
        Weights (out, in) or (out, in, kh, kw), of any framework, in host memory.
    n, m
        ``1 <= n <= m <= 64``.
    second_moment
        Mean of ``x x^T`` over the inputs x of the layer: its blocks on the diagonal, shape (row length / m, m, m), or
        all of it, (row length, row length). With ``layout="channel"`` the blocks come kernel position by position;
        the full matrix is always in the order of ``W.reshape(out, -1)``.
    source_mask
        A mask that W has already.
    prior
        Cost of dropping a weight that `source_mask` keeps, and gain of not restoring one it does not, in units of the
        mean cost of a mask of the group. The paper uses 0.1 to 0.5.
    restore
        Whether a weight that `source_mask` prunes may come back; if not, it counts as zero.
    permute
        True: sort the inputs by importance, ``||W_j||^2 C_jj``, and deal them out to the groups, so that important
        inputs do not share one. ``"auto"``: the same if it makes the mask cheaper. Needs the full second moment.
    layout
        ``"flat"``: groups run along ``in * kh * kw``; ``"channel"``: along ``in``, at each position of the kernel.
    threads
        Number of threads; the result does not depend on it.

    Returns
    -------
    Projection
        Of equal costs, the mask that drops the inputs of lowest index.

    Raises
    ------
    ValueError
        Shapes or options do not fit; W or `second_moment` is not finite; `second_moment` is not symmetric or has a
        negative diagonal.
    TypeError
        W is not a real floating-point array.

    References
    ----------
    Berlyand, Bourdais, Owhadi, Shmalo 2026 (arXiv 2606.02608), CAST; the cost with the sign error of the printed
    formula corrected.

    Examples
    --------
    >>> import numpy as np
    >>> C = np.array([[1.0, 0.99], [0.99, 1.0]])  # two inputs that are nearly the same
    >>> project(np.array([[1.0, -0.9]]), 1, 2, C[None]).mask
    array([[ True, False]])
    """
    if isinstance(permute, np.bool_):
        permute = bool(permute)
    if not (isinstance(permute, bool) or permute == "auto"):
        raise InvalidValueError("permute", f"must be True, False or 'auto', not {permute!r}")
    count = thread_count(threads)
    problem = Problem.of(W, n, m, second_moment, source_mask, prior, restore, layout)
    result = None
    if permute is not True:
        result = _priced(problem, problem.solve(None, count), None, count)
    if permute is not False:
        channels = problem.dealt_out()
        permuted = _priced(problem, problem.solve(channels, count), channels, count)
        if result is None or permuted.cost < result.cost:
            result = permuted
    assert result is not None
    return replace(result, mask=like(result.mask.reshape(problem.shape), W))


def _priced(problem: Problem, mask: NDArray[np.bool_], channels: NDArray[np.int64] | None, threads: int) -> Projection:
    """A mask with its cost, that of magnitude, and the bound."""
    order = problem.order(channels)
    here = problem
    keep = mask
    if order is not None:
        here, keep = replace(problem, rows=problem.rows[:, order]), mask[:, order]
    blocks = diagonal_blocks(problem.moment, problem.m, order)
    largest = np.empty(mask.shape, np.bool_)
    _core.keep_largest_of_groups([_core.Matrix(here.rows, problem.dtype)], [largest], problem.n, problem.m, threads)
    cost = here.cost(keep, blocks)
    exhaustive = problem.m <= LARGEST_EXACT and problem.prior == 0
    bound = cost if exhaustive else min(here.lower_bound(blocks), cost)
    return Projection(mask, channels, cost, here.cost(largest, blocks), bound)


def project_mask(
    W: Any,
    n: int,
    m: int,
    second_moment: ArrayLike,
    *,
    source_mask: Any = None,
    prior: float = 0.0,
    permute: bool = False,
    layout: str = "flat",
    threads: int | None = None,
) -> tuple[Any, NDArray[np.int64] | None]:
    """Return mask and permutation of `project` without working out what they cost, which takes longer than the mask.

    It is what `mpfast.masks.n_m` calls; errors as those of `project`.
    """
    count = thread_count(threads)
    if is_on_gpu(W) and has_cuda_backend():
        return _mask_on_device(W, n, m, second_moment, source_mask, prior, permute, layout), None
    problem = Problem.of(W, n, m, second_moment, source_mask, prior, True, layout)
    channels = problem.dealt_out() if permute else None
    mask = problem.solve(channels, count)
    return like(mask.reshape(problem.shape), W), channels


def _mask_on_device(
    W: Any, n: int, m: int, second_moment: ArrayLike, source_mask: Any, prior: float, permute: bool, layout: str
) -> Any:
    shape = tuple(int(extent) for extent in W.shape)
    if len(shape) < 2 or 0 in shape:
        raise InvalidValueError("W", f"must be non-empty with at least 2 dimensions, but has shape {shape}")
    if not 1 <= n <= m <= LARGEST_EXACT:
        raise InvalidValueError(
            "", f"on a GPU 1 <= n <= m <= {LARGEST_EXACT} is needed with a second_moment, got {n}:{m}"
        )
    if permute or (layout == "channel" and len(shape) > 2):
        raise InvalidValueError(
            "", "on a GPU neither permute nor layout='channel' of a convolution: reorder W yourself"
        )
    if not 0 <= prior <= LARGEST_PRIOR or (prior > 0 and source_mask is None):
        raise InvalidValueError("prior", f"must lie between 0 and {LARGEST_PRIOR:g}, and needs a source_mask")
    rows = W.reshape(shape[0], -1)
    if rows.shape[1] % m:
        raise InvalidValueError("", f"rows of length {rows.shape[1]} cannot be cut into groups of {m}")
    layer = DeviceLayer(rows, "W")
    source = None
    if source_mask is not None:
        if tuple(source_mask.shape) != shape or "bool" not in str(source_mask.dtype) or not is_on_gpu(source_mask):
            raise InvalidValueError("source_mask", "must be a boolean array of the shape of W, on its GPU")
        source = source_mask.reshape(rows.shape)
        if hasattr(source, "contiguous"):
            source = source.contiguous()
    moment = checked_moment(second_moment, int(rows.shape[1]), m)
    bad = projection_on_device(layer, diagonal_blocks(moment, m, None), source, float(prior), n, m)
    if bad is not None:
        raise_if_nonfinite("W", *bad)
    return layer.mask().reshape(shape)


def permute_inputs(W: Any, permutation: NDArray[np.int64]) -> Any:
    """Return weights (or a mask) with the input channels in this order: ``W[:, permutation]``."""
    return W[:, permutation]


def permute_outputs(W: Any, permutation: NDArray[np.int64]) -> Any:
    """Return weights or a bias with the output channels in this order: ``W[permutation]``.

    Folds a permutation of a layer's inputs into the layer before it, when nothing between the two mixes channels:
    ``f(x) = W2 act(W1 x + b1)`` is unchanged when ``W1, b1`` become ``permute_outputs(., p)`` and ``W2`` becomes
    ``permute_inputs(W2, p)``.
    """
    return W[permutation]


@front_door
def output_error(W: Any, mask: Any, second_moment: ArrayLike) -> float:
    """Mean squared change of a layer's output, summed over its outputs, when the mask is applied.

    Parameters
    ----------
    W, mask
        Weights and boolean mask of the same shape, (out, in, ...).
    second_moment
        Mean of ``x x^T`` over the inputs, (row length, row length): the error is exact. Or its blocks on the diagonal,
        (row length / m, m, m): what the groups cause one by one.

    Raises
    ------
    ValueError
        Shapes do not fit.
    """
    array, dtype = as_numpy(W)
    keep = boolean_mask(mask, array.shape, "W").reshape(array.shape[0], -1)
    rows = array.reshape(array.shape[0], -1)
    moment = np.asarray(on_host(second_moment), np.float64)
    size = moment.shape[-1]
    blocks = moment if moment.ndim == 3 else moment[None]
    if moment.ndim not in (2, 3) or blocks.shape != (len(blocks), size, size) or len(blocks) * size != rows.shape[1]:
        raise InvalidValueError("", f"a second_moment of shape {moment.shape} does not fit {rows.shape[1]} inputs")
    return Problem(rows, dtype, array.shape, size, size, moment).cost(keep, np.ascontiguousarray(blocks))
