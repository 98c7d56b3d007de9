"""The problem behind an n:m mask of least output error: weights, their groups, and the second moment of the inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpfast import _core
from mpfast.arrays import as_numpy, boolean_mask, on_host, raise_if_nonfinite, wide
from mpfast.support import InvalidValueError, check_group

__all__ = ["LARGEST_EXACT", "LARGEST_PRIOR", "Problem", "checked_moment", "diagonal_blocks"]

Array = NDArray[np.float64]
#: Groups up to this size are searched exhaustively.
LARGEST_EXACT = 16
#: A prior beyond this would leave the range of float32, in which the search runs.
LARGEST_PRIOR = 1e30
_CHUNK_ENTRIES = 1 << 20


@dataclass
class Problem:
    """Weights as rows, how many of each group stay, and the second moment of the inputs."""

    rows: NDArray[Any]
    dtype: str
    shape: tuple[int, ...]
    n: int
    m: int
    moment: Array
    layout: str = "flat"
    source: NDArray[np.bool_] | None = None
    prior: float = 0.0

    @classmethod
    def of(
        cls,
        W: Any,
        n: int,
        m: int,
        second_moment: ArrayLike,
        source_mask: Any,
        prior: float,
        restore: bool,
        layout: str,
    ) -> Problem:
        """Check the arguments of `project`."""
        check_group(n, m)
        if layout not in ("flat", "channel"):
            raise InvalidValueError("layout", f"must be 'flat' or 'channel', not {layout!r}")
        if not 0 <= prior <= LARGEST_PRIOR:
            raise InvalidValueError("prior", f"must lie between 0 and {LARGEST_PRIOR:g}, not {prior!r}")
        if source_mask is None and (prior > 0 or not restore):
            raise InvalidValueError("", "prior and restore=False refer to a source_mask, and there is none")
        array, dtype = as_numpy(W)
        if array.ndim < 2 or array.size == 0:
            raise InvalidValueError("W", f"must be non-empty with at least 2 dimensions, but has shape {array.shape}")
        rows, source = array.reshape(len(array), -1), None
        if source_mask is not None:
            source = np.ascontiguousarray(boolean_mask(source_mask, array.shape, "W")).reshape(rows.shape)
            if not restore:
                rows = np.multiply(rows, source.astype(rows.dtype))
        length = rows.shape[1] if layout == "flat" else array.shape[1]
        if length % m:
            raise InvalidValueError("", f"{length} inputs cannot be cut into groups of {m}")
        moment = checked_moment(second_moment, rows.shape[1], m)
        return cls(rows, dtype, array.shape, int(n), int(m), moment, layout, source, float(prior))

    def numbers(self, rows: slice) -> Array:
        """Some rows in float64."""
        return wide(self.rows[rows], self.dtype)

    def solve(self, channels: NDArray[np.int64] | None, threads: int) -> NDArray[np.bool_]:
        """The mask, in the order of W, when groups are made with the input channels in this order."""
        order, rows, source = self.order(channels), self.rows, self.source
        if order is not None:
            rows = rows[:, order]
            source = None if source is None else np.ascontiguousarray(source[:, order])
        keep = np.empty(rows.shape, np.bool_)
        matrix = _core.Matrix(rows, self.dtype)
        found = _core.project_groups(
            matrix, diagonal_blocks(self.moment, self.m, order), source, self.prior, keep, self.n, self.m, threads
        )
        if found is not None:
            row, column = (int(i) for i in np.unravel_index(found[2], rows.shape))
            flat = row * rows.shape[1] + (column if order is None else int(order[column]))
            raise_if_nonfinite("W", found[1], tuple(int(i) for i in np.unravel_index(flat, self.shape)))
        if order is None:
            return keep
        mask = np.empty_like(keep)
        mask[:, order] = keep
        return mask

    def dealt_out(self) -> NDArray[np.int64]:
        """Order of the channels where slot j of group g holds that of rank ``j G + g``; left-overs stay at the end."""
        if self.moment.ndim != 2:
            raise InvalidValueError("permute", "needs the full second moment, of shape (row length, row length)")
        squares = np.zeros(self.rows.shape[1])
        for chunk in self._chunks():
            squares += (self.numbers(chunk) ** 2).sum(axis=0)
        importance = (squares * np.diagonal(self.moment)).reshape(self.shape[1], -1).sum(axis=1)
        groups = len(importance) // self.m
        ranked = np.argsort(-importance, kind="stable")
        dealt = ranked[: groups * self.m].reshape(self.m, groups).T.reshape(-1)
        return np.concatenate([dealt, ranked[groups * self.m :]]).astype(np.int64)

    def order(self, channels: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
        """Columns in the order in which groups are consecutive; None if that is theirs."""
        if channels is None and (self.layout == "flat" or len(self.shape) == 2):
            return None
        index = np.arange(self.rows.shape[1]).reshape(self.shape[1], -1)
        if channels is not None:
            index = index[channels]
        return np.ascontiguousarray(index.T if self.layout == "channel" else index).reshape(-1)

    def _chunks(self) -> list[slice]:
        step = max(1, _CHUNK_ENTRIES // self.rows.shape[1])
        return [slice(at, at + step) for at in range(0, len(self.rows), step)]

    def cost(self, keep: NDArray[np.bool_], blocks: Array) -> float:
        """Sum of Q over all groups."""
        total = 0.0
        for chunk in self._chunks():
            dropped = (self.numbers(chunk) * ~keep[chunk]).reshape(-1, len(blocks), self.m)
            total += _quadratic(dropped, blocks)
        return total

    def lower_bound(self, blocks: Array) -> float:
        """Sum over all groups of the least eigenvalue of the correlations times the d least w_i^2 C_ii."""
        d = self.m - self.n
        diagonal = np.diagonal(blocks, axis1=1, axis2=2)
        with np.errstate(divide="ignore"):
            inverse = np.where(diagonal > 0, 1 / np.sqrt(diagonal), 0.0)
        correlations = blocks * inverse[:, :, None] * inverse[:, None, :]
        # Dead inputs cost nothing and are no part of the correlations; on the diagonal they must not be the minimum.
        correlations += np.eye(self.m) * (diagonal == 0)[:, None, :]
        least = np.maximum(np.linalg.eigvalsh(correlations)[:, 0], 0.0)
        total = 0.0
        for chunk in self._chunks():
            single = self.numbers(chunk).reshape(-1, len(blocks), self.m) ** 2 * diagonal
            total += float((np.sort(single, axis=-1)[..., :d].sum(axis=-1) * least).sum())
        return total


def diagonal_blocks(moment: Array, m: int, order: NDArray[np.int64] | None) -> Array:
    """Return the blocks on the diagonal of the moment, with the inputs in this order; given blocks have it already."""
    if moment.ndim == 3:
        return np.ascontiguousarray(moment)
    groups = (np.arange(len(moment)) if order is None else order).reshape(-1, m)
    return np.ascontiguousarray(moment[groups[:, :, None], groups[:, None, :]])


def _quadratic(residual: Array, blocks: Array) -> float:
    """Sum over rows and groups of r^T C r, for residuals (rows, groups, m)."""
    by_group = np.ascontiguousarray(residual.transpose(1, 0, 2))
    return float(np.vdot(by_group, by_group @ blocks))


def checked_moment(second_moment: ArrayLike, row: int, m: int) -> Array:
    """Return a second moment in float64, made symmetric; InvalidValueError where it is none of rows of this length."""
    moment = np.asarray(on_host(second_moment), np.float64)
    if moment.shape not in ((row // m, m, m), (row, row)):
        raise InvalidValueError(
            "second_moment", f"must have the shape {(row // m, m, m)} or {(row, row)}, not {moment.shape}"
        )
    if not np.isfinite(moment).all():
        raise InvalidValueError("second_moment", "has entries that are not finite")
    transposed = np.swapaxes(moment, -1, -2)
    diagonal = np.diagonal(moment, axis1=-2, axis2=-1)
    scale = float(diagonal.max(initial=0.0))
    if (diagonal < 0).any() or np.abs(moment - transposed).max(initial=0.0) > 1e-4 * scale:
        raise InvalidValueError("second_moment", "must be symmetric, and its diagonal must not be negative")
    symmetric: Array = (moment + transposed) / 2
    roots = np.sqrt(diagonal)[..., None]
    step = max(1, _CHUNK_ENTRIES // moment.shape[-1])
    for at in range(0, moment.shape[-1], step):
        rows = slice(at, at + step)
        most = roots[..., rows, :] * np.swapaxes(roots, -1, -2)
        if (np.abs(symmetric[..., rows, :]) > 1.001 * most + 1e-4 * scale).any():
            raise InvalidValueError("second_moment", "is none: an entry exceeds the geometric mean of its diagonal's")
    return symmetric
