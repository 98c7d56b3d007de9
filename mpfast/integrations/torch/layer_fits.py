"""Matrices of a block fitted to the moments of their inputs, and what that changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mpfast import reconstruct
from mpfast.checkpoints import FEW_ROWS_PER_INPUT
from mpfast.integrations.torch.fit_options import FitOptions
from mpfast.integrations.torch.input_sums import InputMoments, InputSums
from mpfast.integrations.torch.sites import Site
from mpfast.models import DEFAULT_FIT, damping_for
from mpfast.support import give_back_freed_memory

__all__ = ["BlockFit", "LayerFit", "few_inputs", "fit_block"]

Array = NDArray[np.float64]

# Rows whose errors are computed at a time: no second copy of a matrix, in double precision, is needed.
_ERROR_ROWS = 64


@dataclass(frozen=True)
class LayerFit:
    """What was done to a matrix.

    Attributes
    ----------
    name : str
        Of its tensor, with the number of the expert in brackets where it is one of a stack.
    shape : tuple of int
        (out, in).
    rows : int
        How many inputs it was fitted to.
    pruned : int
        Entries that are zero now, by a mask.
    rank : int or None
        Of the product that it was replaced by.
    masked_error : float or None
        Mean squared distance of its outputs from those of the dense model, over the mean square of these, if the kept
        weights had stayed as they were; None where nothing was masked, or nothing is known of its inputs.
    error : float or None
        The same with the weights that it has.
    heldout_error : float or None
        The same on the batches that were kept back.
    reason : str or None
        What is to be said: that it saw no inputs, or few of them.
    bits, group : int or None
        Its weights are whole numbers of so many bits, with one scale and one zero for each `group` consecutive inputs
        of a row; None where they were not rounded.
    """

    name: str
    shape: tuple[int, int]
    rows: int
    pruned: int
    rank: int | None
    masked_error: float | None
    error: float | None
    heldout_error: float | None
    reason: str | None = None
    bits: int | None = None
    group: int | None = None

    @property
    def rows_per_input(self) -> float:
        """Inputs for each of their dimensions."""
        return self.rows / self.shape[1]


@dataclass
class BlockFit:
    """What has become of a block, whose matrices hold their new weights.

    Attributes
    ----------
    report : list of LayerFit
        A row for each matrix.
    masks : dict of str to Tensor
        By tensor, boolean, in its stored shape, True = kept; nothing where nothing was pruned.
    factors : dict of str to tuple of Tensor
        By matrix, A and B, whose product it is now.
    grids : dict of str to Grid
        By matrix, what its weights were rounded to.
    skipped : dict of str to str
        Matrices that were left alone, and why.
    """

    report: list[LayerFit] = field(default_factory=list)
    masks: dict[str, torch.Tensor] = field(default_factory=dict)
    factors: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    grids: dict[str, reconstruct.Grid] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def join(self, other: BlockFit) -> None:
        """Take in what has become of another block."""
        self.report += other.report
        self.masks |= other.masks
        self.factors |= other.factors
        self.grids |= other.grids
        self.skipped |= other.skipped


def fit_block(
    sites: list[Site],
    sums: dict[str, tuple[InputSums, InputSums]],
    options: FitOptions,
    counts: Mapping[str, int] | None,
    finished: Callable[[Site, BlockFit, bool], None] | None = None,
) -> BlockFit:
    """Fit the matrices of a block and put the results in their places.

    Parameters
    ----------
    sites
        The matrices. The list is used up, so that who has taken note of a finished one can let go of it.
    sums
        What each has seen, of the batches that it is fitted to and of those that are kept back. They are used up: the
        matrices with the fewest inputs come first, and what they have seen is gone when the largest come.
    options
        Of the call.
    counts
        How many entries of each tensor go, see `FitOptions.pruned_of`.
    finished
        Called after each matrix, with what has become of the block so far and whether the matrix has new weights.
    """
    order = {site.name: number for number, site in enumerate(sites)}
    fitting = _Fitting(options, counts, finished)
    pools = _pools(sites, sums)
    groups: dict[int, list[Site]] = {}
    for name in order:
        groups.setdefault(id(sums[name][0]), []).append(sites.pop(0))
    for members in sorted(groups.values(), key=lambda members: members[0].inputs):
        fitting.replace_all(members, sums, pools.get(members[0].tensor))
    fitting.fitted.report.sort(key=lambda row: order[row.name])
    return fitting.fitted


@dataclass
class _Fitting:
    """Fits one matrix after the other, and keeps what becomes of them."""

    options: FitOptions
    counts: Mapping[str, int] | None
    finished: Callable[[Site, BlockFit, bool], None] | None
    fitted: BlockFit = field(default_factory=BlockFit)

    def replace_all(self, sites: list[Site], sums: dict[str, tuple[InputSums, InputSums]], pool: Array | None) -> None:
        """Fit matrices that have seen the same; they and what they have seen are gone afterwards."""
        training = sums[sites[0].name][0]
        rows = training.rows
        factor = None
        if rows or pool is not None:
            moments = training.moments() if pool is None else _borrowing(training, pool, sites[0].inputs)
            give_back_freed_memory()
            factor = self._factor(moments)
        while sites:
            site = sites.pop(0)
            kept_back = sums.pop(site.name)[1]
            if factor is None:
                self.fitted.skipped[site.name] = "has seen no inputs"
            else:
                if not sites:
                    factor.begin_last_fit()
                give_back_freed_memory()
                self._replace(site, moments, factor, rows, kept_back.moments() if kept_back.rows else None)
            if self.finished is not None:
                self.finished(site, self.fitted, factor is not None)

    def _factor(self, moments: InputMoments) -> reconstruct.Factor:
        """Damp a moment by how much it has seen."""
        options = self.options
        rows = moments.rows / len(moments.own)
        damping, diagonal = damping_for(options.method, options.steps, options.damping, rows)
        factor = reconstruct.Factor(moments.own, damping, diagonal=diagonal, threads=options.threads)
        if options.rank is None and options.method == DEFAULT_FIT:
            factor.upper  # noqa: B018  made while there are no copies of weights, since it takes the most memory
        return factor

    def _replace(
        self,
        site: Site,
        moments: InputMoments,
        factor: reconstruct.Factor,
        rows: int,
        kept_back: InputMoments | None,
    ) -> None:
        """Fit a matrix, put the result in its place, and note what that changes."""
        new, mask, grid = self._new_weights(site, moments, factor)
        give_back_freed_memory()
        dense, changed = site.matrix, [new]
        if mask is not None:
            changed.append(dense * torch.from_numpy(mask).to(dense.device))
        error, *masked_error = _errors(dense, changed, moments)
        self.fitted.report.append(
            LayerFit(
                site.name,
                (dense.shape[0], dense.shape[1]),
                rows,
                0 if mask is None else int(mask.size - np.count_nonzero(mask)),
                self.options.rank,
                masked_error[0] if masked_error else None,
                error,
                None if kept_back is None else _errors(dense, [new], kept_back)[0],
                _reason_of_rows(rows, site),
                None if grid is None else grid.bits,
                None if grid is None else grid.group,
            )
        )
        dense.copy_(new)

    def _new_weights(
        self, site: Site, moments: InputMoments, factor: reconstruct.Factor
    ) -> tuple[torch.Tensor, NDArray[np.bool_] | None, reconstruct.Grid | None]:
        """Return what comes in the place of a matrix, in its type, and the mask and the grid that it has then."""
        if self.options.rank is not None:
            left, right = reconstruct.lowrank(_target(site, moments, factor), factor, self.options.rank)
            one, other = (torch.from_numpy(f).to(site.parameter) for f in (left, right))
            self.fitted.factors[site.name] = one, other
            return torch.from_numpy(left @ right).to(site.parameter), None, None
        if moments.cross is moments.own:
            single = site.matrix.float().cpu().numpy()  # a view where it is that already
        else:
            single = _target(site, moments, factor).astype(np.float32)
            give_back_freed_memory()
        fit = self._fit(site, single, factor)
        if fit.grid is not None:
            self.fitted.grids[site.name] = fit.grid
        mask = fit.mask if self.options.prunes else None
        if mask is not None:
            self._keep_mask(site, mask)
        return torch.from_numpy(np.ascontiguousarray(fit.weights)).to(site.parameter), mask, fit.grid

    def _fit(self, site: Site, target: NDArray[np.float32], factor: reconstruct.Factor) -> Any:
        """Prune, or round, or both."""
        options = self.options
        share = None
        if options.prunes and options.groups is None:
            # Half an entry more than is asked for, so that no rounding of the share makes it one less.
            share = min(1.0, (options.pruned_of(site, self.counts) + 0.5) / target.size)
        if options.bits is None:
            return reconstruct.prune(
                target,
                factor,
                sparsity=share,
                pattern=options.groups,
                method=options.method,
                refit=options.refit,
                threads=options.threads,
            )
        return reconstruct.quantize(
            target,
            factor,
            options.bits,
            group=options.group,
            sparsity=share,
            pattern=options.groups,
            threads=options.threads,
        )

    def _keep_mask(self, site: Site, mask: Any) -> None:
        whole = self.fitted.masks
        stored = torch.from_numpy(np.ascontiguousarray(mask.T if site.transposed else mask)).to(site.parameter.device)
        if site.expert is None:
            whole[site.tensor] = stored
            return
        if site.tensor not in whole:
            whole[site.tensor] = torch.ones_like(site.parameter, dtype=torch.bool)
        whole[site.tensor][site.expert] = stored


def _pools(sites: Sequence[Site], sums: Mapping[str, tuple[InputSums, InputSums]]) -> dict[str, Array]:
    """The mean over the inputs of all experts of each stack."""
    totals: dict[str, Array] = {}
    rows: dict[str, int] = {}
    for site in sites:
        found = sums[site.name][0]
        if site.expert is not None and found.rows:
            totals[site.tensor] = totals[site.tensor] + found.sums() if site.tensor in totals else found.sums()
            rows[site.tensor] = rows.get(site.tensor, 0) + found.rows
    return {tensor: total / rows[tensor] for tensor, total in totals.items()}


def _borrowing(own: InputSums, pool: Array, inputs: int) -> InputMoments:
    """The moment of an expert; where it has few rows, with as many from the mean of its stack as are missing."""
    lacking = max(0, FEW_ROWS_PER_INPUT * inputs - own.rows)
    total = own.sums() + lacking * pool if own.rows else pool * lacking
    mean = total / (own.rows + lacking)
    return InputMoments(own.rows, mean, mean, mean)


def _wide(matrix: torch.Tensor) -> Array:
    """A copy in double precision, in row-major order."""
    exact = matrix if matrix.dtype in (torch.float32, torch.float64) else matrix.float()
    return np.array(exact.cpu().numpy(), np.float64, order="C")


def _target(site: Site, moments: InputMoments, factor: reconstruct.Factor) -> Array:
    """The weights that, applied to what comes now, are closest to the dense ones applied to what came."""
    dense = _wide(site.matrix)
    if moments.cross is moments.own:
        return dense
    right = dense @ moments.cross
    # The damped moment differs from the measured one on its diagonal alone.
    dense *= factor.damped_diagonal - np.diagonal(moments.own)
    right += dense
    del dense
    damped = np.array(moments.own, order="C")
    np.fill_diagonal(damped, factor.damped_diagonal)
    lower = torch.linalg.cholesky(torch.from_numpy(damped))
    del damped
    # Of large moments every copy counts: `torch.cholesky_solve` would make one of the factor.
    half = torch.linalg.solve_triangular(lower, torch.from_numpy(right).T, upper=False)
    del right
    solved = torch.linalg.solve_triangular(lower.T, half, upper=True)
    found: Array = np.ascontiguousarray(solved.T.numpy())
    return found


def _errors(dense: torch.Tensor, changed: Sequence[torch.Tensor], moments: InputMoments) -> list[float]:
    """Mean squared distance of outputs from the dense model's, over the mean square of these, of weights each."""
    whole, distances = 0.0, [0.0 for _ in changed]
    for first in range(0, len(dense), _ERROR_ROWS):
        rows = _wide(dense[first : first + _ERROR_ROWS])
        image = rows @ moments.dense
        square = float(np.vdot(image, rows))
        whole += square
        if moments.cross is not moments.own:
            image = rows @ moments.cross
        for number, weights in enumerate(changed):
            new = _wide(weights[first : first + _ERROR_ROWS])
            if moments.cross is moments.own:
                new -= rows
                distances[number] += float(np.vdot(new @ moments.own, new))
            else:
                distances[number] += square - 2 * float(np.vdot(image, new)) + float(np.vdot(new @ moments.own, new))
    # Rounding may leave a distance of nothing below zero.
    return [max(distance, 0.0) / whole if whole > 0 else 0.0 for distance in distances]


def _reason_of_rows(rows: int, site: Site) -> str | None:
    if rows >= FEW_ROWS_PER_INPUT * site.inputs:
        return None
    seen = f"has seen {rows} inputs for {site.inputs} dimensions"
    return seen if site.expert is None else f"{seen}; the mean of its stack makes up for the rest"


def few_inputs(report: Sequence[LayerFit]) -> str:
    """Say what is to be said against the data; empty where nothing is."""
    few = [row for row in report if row.rows_per_input < FEW_ROWS_PER_INPUT]
    if not few:
        return ""
    least = min(few, key=lambda row: row.rows_per_input)
    return (
        f"{len(few)} of {len(report)} matrices have seen fewer than {FEW_ROWS_PER_INPUT} inputs per dimension "
        f"({least.name}: {least.rows_per_input:.2g}): use more data, or strong damping"
    )
