"""Whole models compressed block by block, each layer fitted to what it sees in the compressed model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mpfast import reconstruct
from mpfast.checkpoints import (
    FEW_ROWS_PER_INPUT,
    MIN_SIDE,
    NameFilter,
    name_filter,
    open_checkpoint,
    roles_of,
    telling_reason,
)
from mpfast.integrations.torch.block_streams import Call, blocks_of, call_block, calls_of, undisturbed
from mpfast.integrations.torch.budgets import budget_by_name
from mpfast.integrations.torch.input_sums import InputMoments, InputSums
from mpfast.integrations.torch.sites import Site, sites_of, watched
from mpfast.models import FITTED_METHODS, Budget, damping_for
from mpfast.support import (
    InvalidTypeError,
    InvalidValueError,
    check_sparsity,
    floor_count,
    front_door,
    parsed_pattern,
    positive_integer,
    thread_count,
    warn_caller,
)

__all__ = ["LayerFit", "ReconstructedModel", "reconstruct_model"]

Array = NDArray[np.float64]


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
        Entries that are zero now.
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

    @property
    def rows_per_input(self) -> float:
        """Inputs for each of their dimensions."""
        return self.rows / self.shape[1]


@dataclass(frozen=True)
class ReconstructedModel:
    """A model whose layers were compressed.

    Attributes
    ----------
    model : Module
        The model.
    masks : dict of str to Tensor
        By tensor, boolean, in its stored shape, True = kept; empty where nothing was pruned.
    report : tuple of LayerFit
        A row for each matrix.
    skipped : dict of str to str
        Matrices in the blocks that were left alone, and why.
    factors : dict of str to tuple of Tensor
        With ``rank=``: A (out, rank) and B (rank, in) of each matrix, which is their product now.
    """

    model: torch.nn.Module
    masks: dict[str, torch.Tensor]
    report: tuple[LayerFit, ...]
    skipped: dict[str, str]
    factors: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)


@front_door
def reconstruct_model(
    model: torch.nn.Module,
    batches: Iterable[Any],
    *,
    sparsity: float | None = None,
    pattern: str | None = None,
    rank: int | None = None,
    budget: Budget | str | None = None,
    method: str = "obs",
    refit: int = 4,
    damping: float | None = None,
    include: NameFilter | None = None,
    exclude: NameFilter | None = None,
    blocks: str | Sequence[str] = "auto",
    sequential: bool = True,
    toward: str = "dense",
    heldout: float = 0.25,
    inplace: bool = False,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ReconstructedModel:
    """Compress the linear layers in a model's blocks, each fitted to the inputs that it gets.

    The hidden states of all batches go through one block at a time. The second moments of the inputs of its layers are
    collected, the layers are pruned and refitted, and the hidden states go on through the compressed block. At any time
    there are the moments of one block and one or two sets of hidden states.

    Parameters
    ----------
    model : Module
        A model of transformers, or another one that has a list of blocks, each of which returns the hidden states (or
        several things, these first) and is handed what the one before it returned. Linear layers, transformers' Conv1D
        and stacks of experts are compressed.
    batches : iterable
        What the model is called with, ``model(**batch)`` for mappings: data of the kind it is to do well on. They are
        all kept. Places that are zero in ``attention_mask`` are padding, and not counted; of what routed experts see
        they are.
    sparsity : float, optional
        Share of the entries of each matrix that go. Or `pattern`, ``"2:4"``, n of every m consecutive inputs stay; or
        `rank`, each matrix is replaced by a product of this rank, where that has fewer entries; or `budget`, how many
        entries of each tensor go. With `sparsity`, `budget` may be the name of one of `mpfast.models.METHODS`, which
        shares it out; the second moments that it may need are collected of all blocks at once.
    method, refit
        As in `mpfast.reconstruct.prune`.
    damping : float, optional
        Share of the mean of a moment's diagonal. Default as `mpfast.models.damping_for`, by how much it has seen.
    include, exclude : optional
        Names of tensors, as in `mpfast.analyze`.
    blocks : str or sequence of str
        ``"auto"``: the members of the largest list of modules; or patterns of their names, ``"encoder.layer.*"``.
    sequential : bool
        Whether a layer is fitted to what it gets in the compressed model; otherwise to its inputs in the dense one.
    toward : {"dense", "own"}
        What a layer's outputs are to be like where it is fitted in sequence: those of the dense model, which makes up
        for what the blocks before have changed, or those that its dense weights would have with its inputs now. Routed
        experts, which see other tokens than in the dense model, are always fitted toward their own.
    heldout : float
        Share of the batches, the last ones, that are kept back for `LayerFit.heldout_error`. One batch, at least, where
        there are two.
    inplace : bool
        Change the model; otherwise a copy is made.
    threads : int, optional
        Of what the core does. Default those of PyTorch.
    progress : function, optional
        Called after each block with the blocks done and the blocks in all.

    Returns
    -------
    ReconstructedModel

    Raises
    ------
    ValueError
        Not exactly one of `sparsity`, `pattern`, `rank` and `budget` is given, an option is out of range, the blocks
        are none that follow each other, or no layer is left.
    TypeError
        `budget` is no Budget.

    Warns
    -----
    UserWarning
        Of matrices that have seen fewer than 4 inputs per dimension, or none.

    Notes
    -----
    With W the dense weights, y the inputs now, x those in the dense model, C, X and D the means of ``y y^T``, ``x y^T``
    and ``x x^T``, and H the damped C, the weights that are pruned are ``(W X + W (H - C)) H^-1`` where `toward` is
    "dense". The error of V is ``(tr W D W^T - 2 tr W X V^T + tr V C V^T) / tr W D W^T``. An expert of a stack that has
    seen fewer than 4 inputs per dimension borrows the rest from the mean of all experts of its stack.

    Examples
    --------
    >>> layers = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Linear(16, 16))
    >>> result = reconstruct_model(layers, list(torch.randn(4, 100, 16)), pattern="2:4")
    >>> [row.pruned for row in result.report], bool(result.report[0].error < result.report[0].masked_error)
    ([128, 128], True)
    """
    named, given_budget = (budget, None) if isinstance(budget, str) else (None, budget)
    team = _team(threads)
    options = _Options(sparsity, pattern, rank, given_budget, method, refit, damping, sequential, toward, heldout, team)
    network = model if inplace else copy.deepcopy(model)
    given = list(batches)
    kept_back = 0
    if options.heldout and len(given) > 1:
        kept_back = min(len(given) - 1, max(1, int(options.heldout * len(given))))
    if named is not None:
        where, training = (include, exclude, blocks), given[: len(given) - kept_back]
        shared = budget_by_name(named, network, training, sparsity, where, team)
        options = replace(options, sparsity=None, budget=shared)
    found = blocks_of(network, blocks)
    chosen, skipped = _chosen(network, found, include, exclude, options)
    with undisturbed(network):
        hidden, calls, valid = calls_of(network, found, given)
        run = _Run(options, hidden, valid, len(given) - kept_back, skipped)
        order = list(calls[0])
        for number, name in enumerate(order):
            run.compress(found[name], chosen[name], [each.pop(name) for each in calls])
            if progress is not None:
                progress(number + 1, len(order))
    warn_caller("reconstruct_model", _few(run.report))
    return ReconstructedModel(network, run.masks, tuple(run.report), run.skipped, run.factors)


def _team(threads: int | None) -> int:
    return thread_count(torch.get_num_threads() if threads is None else threads)


@dataclass(frozen=True)
class _Options:
    """What the caller of `reconstruct_model` asked for, see there."""

    sparsity: float | None
    pattern: str | None
    rank: int | None
    budget: Budget | None
    method: str
    refit: int
    damping: float | None
    sequential: bool
    toward: str
    heldout: float
    threads: int

    def __post_init__(self) -> None:
        if sum(option is not None for option in (self.sparsity, self.pattern, self.rank, self.budget)) != 1:
            raise InvalidValueError("", "pass one of sparsity, pattern, rank and budget")
        if self.budget is not None and not isinstance(self.budget, Budget):
            raise InvalidTypeError("budget", f"must be a Budget, not {type(self.budget).__name__}")
        if self.sparsity is not None:
            check_sparsity(self.sparsity)
        if self.wanted_pattern is not None and self.groups is None:
            raise InvalidValueError("pattern", f"must be n:m with 1 <= n < m <= 64, not {self.wanted_pattern!r}")
        if self.rank is not None:
            positive_integer(self.rank, "rank")
        if self.method not in FITTED_METHODS:
            raise InvalidValueError("method", f"must be one of {', '.join(FITTED_METHODS)}, not {self.method!r}")
        if type(self.refit) is not int or self.refit < 0:
            raise InvalidValueError("refit", f"must be an integer of at least 0, not {self.refit!r}")
        if self.toward not in ("dense", "own"):
            raise InvalidValueError("toward", f"must be 'dense' or 'own', not {self.toward!r}")
        if not 0 <= self.heldout < 1:
            raise InvalidValueError("heldout", f"must lie in [0, 1), not {self.heldout!r}")

    @property
    def wanted_pattern(self) -> str | None:
        """The pattern asked for, or that of the budget."""
        return self.pattern if self.budget is None else self.budget.pattern

    @property
    def groups(self) -> tuple[int, int] | None:
        """Its n and m."""
        return None if self.wanted_pattern is None else parsed_pattern(self.wanted_pattern)

    def pruned_of(self, site: Site, counts: Mapping[str, int]) -> int:
        """How many entries of a matrix go, where there is no pattern."""
        if self.sparsity is not None:
            return floor_count(self.sparsity, site.matrix.numel())
        if site.expert is None:
            return counts[site.tensor]
        # Of a stack every expert gives its part, as evenly as whole numbers allow.
        return counts[site.tensor] * (site.expert + 1) // site.parts - counts[site.tensor] * site.expert // site.parts


def _chosen(
    model: torch.nn.Module,
    blocks: Mapping[str, torch.nn.Module],
    include: NameFilter | None,
    exclude: NameFilter | None,
    options: _Options,
) -> tuple[dict[str, list[Site]], dict[str, str]]:
    """The matrices of every block that are to be compressed, and why others are not."""
    roles = roles_of(open_checkpoint(model))
    wanted, unwanted = name_filter(include, "include"), name_filter(exclude, "exclude")
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    chosen: dict[str, list[Site]] = {}
    skipped: dict[str, str] = {}
    for prefix, block in blocks.items():
        sites, others = sites_of(block, prefix, roles)
        skipped |= others
        chosen[prefix] = []
        for site in sites:
            called = (site.tensor, site.tensor.rpartition(".")[0])
            if (wanted and not any(map(wanted, called))) or (unwanted and any(map(unwanted, called))):
                skipped[site.tensor] = "left out by include or exclude"
            elif len(names[id(site.parameter)]) > 1:
                skipped[site.tensor] = f"is one with {next(n for n in names[id(site.parameter)] if n != site.tensor)}"
            elif (reason := _reason(site, options)) is not None:
                skipped[site.tensor] = reason
            else:
                chosen[prefix].append(site)
    if not any(chosen.values()):
        sizes = {name: parameter.numel() for name, parameter in model.named_parameters(remove_duplicate=False)}
        raise InvalidValueError("", f"no layer is left to compress{telling_reason(skipped, sizes)}")
    return chosen, skipped


def _reason(site: Site, options: _Options) -> str | None:
    rows, inputs = site.matrix.shape
    if min(rows, inputs) < MIN_SIDE:
        return f"too small: fewer than {MIN_SIDE} rows or columns"
    if options.rank is not None and options.rank * (rows + inputs) >= rows * inputs:
        return f"factors of rank {options.rank} would be as large as the matrix"
    if options.groups is not None and inputs % options.groups[1]:
        return f"{inputs} inputs cannot be cut into groups of {options.groups[1]}"
    if options.budget is not None and all(row.name != site.tensor for row in options.budget):
        return "not in the budget"
    return None


@dataclass
class _Seen:
    """The inputs of a matrix in one pass: a copy, and what tells whether another matrix has got the same."""

    key: tuple[Any, ...]
    given: torch.Tensor
    rows: torch.Tensor


class _Run:
    """Hidden states on their way through the blocks, and what has become of these.

    Parameters
    ----------
    options
        Of the call.
    hidden
        What the first block gets, by batch.
    valid
        Which places of it are no padding.
    training
        How many batches the layers are fitted to; the others are kept back.
    skipped
        Why matrices are left alone; more are entered here.
    """

    def __init__(
        self,
        options: _Options,
        hidden: list[torch.Tensor],
        valid: list[torch.Tensor | None],
        training: int,
        skipped: dict[str, str],
    ) -> None:
        self._options = options
        self._own = hidden
        # The stream of the dense model, once it is another one.
        self._dense: list[torch.Tensor] | None = None
        self._valid = valid
        self._training = training
        self._counts = {} if options.budget is None else {row.name: row.pruned for row in options.budget}
        self.skipped = skipped
        self.report: list[LayerFit] = []
        self.masks: dict[str, torch.Tensor] = {}
        self.factors: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    def compress(self, block: torch.nn.Module, sites: list[Site], calls: list[Call]) -> None:
        """Compress the matrices of a block, and send the hidden states through it."""
        sums = {site.name: (InputSums(), InputSums()) for site in sites}
        outputs = []
        for number, call in enumerate(calls):
            before = None
            if self._dense is not None:
                self._dense[number], before = self._pass(block, sites, self._dense[number], call, number)
            output, seen = self._pass(block, sites, self._own[number], call, number)
            outputs.append(output)
            self._add(sites, sums, seen, before, number)
        self._fit(sites, sums)
        if not self._options.sequential:
            self._own = outputs
            return
        if self._dense is None and self._options.toward == "dense":
            self._dense = outputs  # up to here both were the same
        self._own = [call_block(block, states, call) for states, call in zip(self._own, calls, strict=True)]

    def _pass(
        self, block: torch.nn.Module, sites: list[Site], hidden: torch.Tensor, call: Call, number: int
    ) -> tuple[torch.Tensor, dict[str, list[_Seen]]]:
        """Run a block, and return its output and what each matrix has seen."""
        seen: dict[str, list[_Seen]] = {}
        copies: dict[tuple[Any, ...], torch.Tensor] = {}
        valid = self._valid[number]

        def see(site: Site, x: torch.Tensor) -> None:
            version = id(site) if x.is_inference() else x._version
            key = (x.data_ptr(), tuple(x.shape), x.stride(), version)
            if key not in copies:
                rows = x.detach().reshape(-1, x.shape[-1])
                padded = valid is not None and len(rows) == valid.numel() and site.expert is None
                copies[key] = rows[valid.reshape(-1).to(rows.device)] if padded and valid is not None else rows.clone()
            seen.setdefault(site.name, []).append(_Seen(key, x, copies[key]))

        with watched(sites, see):
            output = call_block(block, hidden, call)
        return output, seen

    def _add(
        self,
        sites: list[Site],
        sums: dict[str, tuple[InputSums, InputSums]],
        seen: Mapping[str, list[_Seen]],
        dense: Mapping[str, list[_Seen]] | None,
        number: int,
    ) -> None:
        """Add what the matrices have seen of a batch; those that see the same share a sum."""
        part = 0 if number < self._training else 1
        tokens = self._own[number].shape[:-1].numel()
        groups: dict[tuple[int, tuple[Any, ...]], list[Site]] = {}
        for site in sites:
            keys = tuple(each.key for each in seen.get(site.name, []))
            if keys:
                # Those that have shared a sum so far, or have not begun one yet, and have got the same now.
                before = sums[site.name][part]
                groups.setdefault((id(before) if before.rows else 0, keys), []).append(site)
        taken: set[int] = set()
        for members in groups.values():
            found = sums[members[0].name][part]
            if id(found) in taken:
                found = copy.deepcopy(found)
            taken.add(id(found))
            for site in members:
                sums[site.name] = (found, sums[site.name][1]) if part == 0 else (sums[site.name][0], found)
        for members in groups.values():
            first = members[0]
            others = [] if dense is None else dense.get(first.name, [])
            mine = seen[first.name]
            whole = first.expert is None and all(each.given.shape[:-1].numel() == tokens for each in (*mine, *others))
            for at, each in enumerate(mine):
                paired = whole and len(others) == len(mine)
                sums[first.name][part].add(each.rows, others[at].rows if paired else None, self._options.threads)

    def _fit(self, sites: list[Site], sums: Mapping[str, tuple[InputSums, InputSums]]) -> None:
        pools = self._pools(sites, sums)
        made: dict[int, tuple[InputMoments, reconstruct.Factor]] = {}
        for site in sites:
            training, kept_back = sums[site.name]
            pool = pools.get(site.tensor)
            if not training.rows and pool is None:
                self.skipped[site.name] = "has seen no inputs"
                continue
            if pool is not None:
                moments = _borrowing(training, pool, site.inputs)
                factor = self._factor(moments)
            else:
                if id(training) not in made:
                    moments = training.moments()
                    made[id(training)] = moments, self._factor(moments)
                moments, factor = made[id(training)]
            self._replace(site, moments, factor, training.rows, kept_back.moments() if kept_back.rows else None)

    def _factor(self, moments: InputMoments) -> reconstruct.Factor:
        options = self._options
        rows = moments.rows / len(moments.own)
        damping, diagonal = damping_for(options.method, options.refit, options.damping, rows)
        return reconstruct.Factor(moments.own, damping, diagonal=diagonal, threads=options.threads)

    def _pools(self, sites: list[Site], sums: Mapping[str, tuple[InputSums, InputSums]]) -> dict[str, Array]:
        """The mean over the inputs of all experts of each stack."""
        totals: dict[str, Array] = {}
        rows: dict[str, int] = {}
        for site in sites:
            found = sums[site.name][0]
            if site.expert is not None and found.rows:
                totals[site.tensor] = totals[site.tensor] + found.sums() if site.tensor in totals else found.sums()
                rows[site.tensor] = rows.get(site.tensor, 0) + found.rows
        return {tensor: total / rows[tensor] for tensor, total in totals.items()}

    def _replace(
        self,
        site: Site,
        moments: InputMoments,
        factor: reconstruct.Factor,
        rows: int,
        kept_back: InputMoments | None,
    ) -> None:
        """Fit a matrix, put the result in its place, and note what that changes."""
        options = self._options
        dense = site.matrix.double().cpu().numpy().copy()  # not what is written to below
        target = _target(dense, moments, factor)
        mask, rank = None, None
        if options.rank is not None:
            left, right = reconstruct.lowrank(target, factor, options.rank)
            new, rank = left @ right, options.rank
            self.factors[site.name] = tuple(torch.from_numpy(f).to(site.parameter) for f in (left, right))
        else:
            pruned = options.pruned_of(site, self._counts) if options.groups is None else 0
            fit = reconstruct.prune(
                target.astype(np.float32),
                factor,
                sparsity=None if options.groups else min(1.0, (pruned + 0.5) / dense.size),
                pattern=options.groups,
                method=options.method,
                refit=options.refit,
                threads=options.threads,
            )
            new, mask = fit.weights, fit.mask
            self._keep_mask(site, mask)
        site.matrix.copy_(torch.from_numpy(np.ascontiguousarray(new)))
        written = site.matrix.double().cpu().numpy()
        self.report.append(
            LayerFit(
                site.name,
                (dense.shape[0], dense.shape[1]),
                rows,
                0 if mask is None else int(mask.size - np.count_nonzero(mask)),
                rank,
                None if mask is None else _error(dense, dense * mask, moments),
                _error(dense, written, moments),
                None if kept_back is None else _error(dense, written, kept_back),
                _reason_of_rows(rows, site),
            )
        )

    def _keep_mask(self, site: Site, mask: Any) -> None:
        stored = torch.from_numpy(np.ascontiguousarray(mask.T if site.transposed else mask)).to(site.parameter.device)
        if site.expert is None:
            self.masks[site.tensor] = stored
            return
        if site.tensor not in self.masks:
            self.masks[site.tensor] = torch.ones_like(site.parameter, dtype=torch.bool)
        self.masks[site.tensor][site.expert] = stored


def _borrowing(own: InputSums, pool: Array, inputs: int) -> InputMoments:
    """The moment of an expert; where it has few rows, with as many from the mean of its stack as are missing."""
    lacking = max(0, FEW_ROWS_PER_INPUT * inputs - own.rows)
    total = own.sums() + lacking * pool if own.rows else pool * lacking
    mean = total / (own.rows + lacking)
    return InputMoments(own.rows, mean, mean, mean)


def _target(dense: Array, moments: InputMoments, factor: reconstruct.Factor) -> Array:
    """The weights that, applied to what comes now, are closest to the dense ones applied to what came."""
    if moments.cross is moments.own:
        return dense
    damped = factor.damped()
    right = dense @ (moments.cross + damped - moments.own)
    solved = torch.cholesky_solve(torch.from_numpy(right.T.copy()), torch.linalg.cholesky(torch.from_numpy(damped)))
    found: Array = np.ascontiguousarray(solved.numpy().T)
    return found


def _error(dense: Array, new: Array, moments: InputMoments) -> float:
    """Mean squared distance of the outputs from the dense model's, over the mean square of these."""
    whole = float(np.vdot(dense @ moments.dense, dense))
    if moments.cross is moments.own:
        change = dense - new
        distance = float(np.vdot(change @ moments.own, change))
    else:
        distance = whole - 2 * float(np.vdot(dense @ moments.cross, new)) + float(np.vdot(new @ moments.own, new))
    # Rounding may leave a distance of nothing below zero.
    return max(distance, 0.0) / whole if whole > 0 else 0.0


def _reason_of_rows(rows: int, site: Site) -> str | None:
    if rows >= FEW_ROWS_PER_INPUT * site.inputs:
        return None
    seen = f"has seen {rows} inputs for {site.inputs} dimensions"
    return seen if site.expert is None else f"{seen}; the mean of its stack makes up for the rest"


def _few(report: Sequence[LayerFit]) -> str:
    """What is to be said against the data; empty where nothing is."""
    few = [row for row in report if row.rows_per_input < FEW_ROWS_PER_INPUT]
    if not few:
        return ""
    least = min(few, key=lambda row: row.rows_per_input)
    return (
        f"{len(few)} of {len(report)} matrices have seen fewer than {FEW_ROWS_PER_INPUT} inputs per dimension "
        f"({least.name}: {least.rows_per_input:.2g}): use more data, or strong damping"
    )
