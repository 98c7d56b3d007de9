"""Masks that keep n of every m consecutive entries."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpfast import _core
from mpfast.arrays import as_numpy, has_cuda_backend, is_on_gpu, like, raise_if_nonfinite
from mpfast.masks.cuda import DeviceLayer, groups_on_device
from mpfast.masks.outputs import check_device_mask, host_mask
from mpfast.support import InvalidValueError, check_group, front_door, thread_count

__all__ = ["GroupLayout", "n_m"]

#: Along what the groups of a convolution run: the flattened row, or the channels at each position of the kernel.
GroupLayout = Literal["flat", "channel"]

# Entries copied at a time, where rows cannot be seen as such.
CHUNK_ENTRIES = 4 << 20


@front_door
def n_m(
    W: Any,
    n: int,
    m: int,
    *,
    second_moment: ArrayLike | None = None,
    source_mask: Any = None,
    prior: float = 0.0,
    permute: bool = False,
    layout: GroupLayout = "flat",
    out: Any = None,
    threads: int | None = None,
) -> Any:
    """Keep n of every m consecutive entries along a row: the largest, or those whose loss changes the output least.

    Parameters
    ----------
    W
        Array of any framework with at least 2 dimensions; (out, in) or (out, in, kh, kw).
    n, m
        ``1 <= n <= m <= 64``; the row length must be a multiple of m.
    second_moment
        Mean of ``x x^T`` over the layer's inputs, its blocks (row length / m, m, m) or all of it: the mask is then that
        of `mpfast.masks.projection.project`, which also says what it costs. Without it, the n largest stay.
    source_mask, prior, permute
        As `mpfast.masks.project`; they need a `second_moment`. On a GPU m is at most 16, and permute is not there.
    layout
        ``"flat"``: groups run along the flattened row ``in * kh * kw``. ``"channel"``: along ``in`` at each position of
        the kernel, the layout of sparse tensor cores.
    out
        As in `magnitude`: an array to write the mask into. Of the n largest only, and not with ``layout="channel"``.
    threads
        Number of threads; the result does not depend on it.

    Returns
    -------
    mask
        Boolean array of the shape of W, exactly n of every m True; `out` itself, if given. With ``permute=True`` the
        tuple (mask, permutation): ``mask[:, permutation]`` has the pattern.

    Raises
    ------
    ValueError
        A shape or option does not fit, or W has non-finite entries.
    TypeError
        W is not a real floating-point array.

    Examples
    --------
    >>> import numpy as np
    >>> n_m(np.array([[1.0, -4.0, 3.0, 2.0]]), 2, 4)
    array([[False,  True,  True, False]])
    """
    check_group(n, m)
    if not isinstance(permute, bool | np.bool_):
        raise InvalidValueError(
            "permute", f"must be True or False, not {permute!r}", "mpfast.masks.project knows 'auto', too"
        )
    if layout not in get_args(GroupLayout):
        raise InvalidValueError("layout", f"must be {' or '.join(map(repr, get_args(GroupLayout)))}, not {layout!r}")
    if out is not None and (second_moment is not None or layout == "channel"):
        raise InvalidValueError("out", "takes masks of the n largest along flat rows only")
    if second_moment is not None:
        from mpfast.masks.projection import project_mask

        mask, permutation = project_mask(
            W,
            n,
            m,
            second_moment,
            source_mask=source_mask,
            prior=prior,
            permute=bool(permute),
            layout=layout,
            threads=threads,
        )
        return (mask, permutation) if permute else mask
    if source_mask is not None or prior or permute:
        raise InvalidValueError("", "source_mask, prior and permute need a second_moment")
    count = thread_count(threads)
    if is_on_gpu(W) and has_cuda_backend():
        return _largest_on_device(W, n, m, layout, out)
    return _largest_on_host(W, n, m, layout, out, count)


def _largest_on_host(W: Any, n: int, m: int, layout: GroupLayout, out: Any, threads: int) -> Any:
    array, dtype = as_numpy(W)
    _check_dimensions(array.shape)
    channels = layout == "channel" and array.ndim > 2
    if channels:
        array = np.moveaxis(array, 1, -1)
    row = array.shape[-1] if channels else math.prod(array.shape[1:])
    _check_row(row, m)
    keep = host_mask(out, array, "out")
    rows, done = keep.reshape(-1, row), 0
    for pieces in _kernel_positions(array) if channels else _flat_rows(array, row):
        length = sum(map(len, pieces))
        masks = list(rows[done : done + length].reshape(len(pieces), *pieces[0].shape))
        found = _core.keep_largest_of_groups([_core.Matrix(piece, dtype) for piece in pieces], masks, n, m, threads)
        if found is not None:
            which, bad, first_bad = found
            position = np.unravel_index(done * row + which * pieces[0].size + first_bad, array.shape)
            _refuse_nonfinite(bad, tuple(int(i) for i in position), channels)
        done += length
    return out if out is not None else like(np.ascontiguousarray(np.moveaxis(keep, -1, 1)) if channels else keep, W)


def _flat_rows(array: NDArray[Any], row: int) -> Iterator[list[NDArray[Any]]]:
    """Yield the flattened rows as matrices, all at once where that takes no copy."""
    # Rows whose entries have no common stride (channels last) are copied, some at a time.
    step = len(array) if np.shares_memory(array[:1].reshape(1, -1), array) else max(1, CHUNK_ENTRIES // row)
    for first in range(0, len(array), step):
        yield [array[first : first + step].reshape(-1, row)]


def _kernel_positions(array: NDArray[Any]) -> Iterator[list[NDArray[Any]]]:
    """Yield, at once, a matrix for every leading index; its rows run along the channels, the last dimension."""
    yield [array[index] for index in np.ndindex(array.shape[:-2])]


def _refuse_nonfinite(count: int, position: tuple[int, ...], channels: bool) -> None:
    """Name the place of the first entry that is not finite, in the caller's order of the dimensions."""
    if channels:
        position = (position[0], position[-1], *position[1:-1])
    raise_if_nonfinite("W", count, position)


def _check_dimensions(shape: tuple[int, ...]) -> None:
    if len(shape) < 2 or 0 in shape:
        raise InvalidValueError("W", f"must be a non-empty array of at least 2 dimensions, but has shape {shape}")


def _check_row(row: int, m: int) -> None:
    if row % m:
        raise InvalidValueError("", f"rows of length {row} cannot be cut into groups of {m}")


def _largest_on_device(W: Any, n: int, m: int, layout: GroupLayout, out: Any) -> Any:
    shape = tuple(W.shape)
    _check_dimensions(shape)
    if layout == "channel" and len(shape) > 2:
        raise InvalidValueError(
            "", "layout='channel' of a convolution on a GPU", "move the channels to the end yourself"
        )
    if out is not None:
        check_device_mask(out, W, "out")
    layer = DeviceLayer(W.reshape(shape[0], -1), "W", None if out is None else out.reshape(shape[0], -1))
    _check_row(layer.shape[1], m)
    bad = groups_on_device(layer, n, m)
    if bad is not None:
        raise_if_nonfinite("W", *bad)
    return layer.mask().reshape(shape) if out is None else out
