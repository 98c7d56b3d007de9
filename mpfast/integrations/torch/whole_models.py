"""Whole models compressed block by block, each layer fitted to what it sees in the compressed model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from mpfast import reconstruct
from mpfast.checkpoints import NameFilter, as_stored, open_checkpoint, roles_of
from mpfast.integrations.torch.block_streams import blocks_of, calls_of, undisturbed
from mpfast.integrations.torch.budgets import budget_by_name
from mpfast.integrations.torch.fit_options import FitOptions
from mpfast.integrations.torch.hidden_states import HiddenStates
from mpfast.integrations.torch.layer_fits import BlockFit, LayerFit, few_inputs, fit_block
from mpfast.integrations.torch.site_choice import chosen_sites
from mpfast.models import Budget
from mpfast.support import InvalidValueError, front_door, thread_count, warn_caller

__all__ = ["ReconstructedModel", "kept_back", "reconstruct_model", "team"]


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
    grids : dict of str to Grid
        With ``bits=``: what the weights of each matrix were rounded to, see `mpfast.reconstruct.Grid`; its rows and
        groups are those of the matrix as (out, in).
    """

    model: torch.nn.Module
    masks: dict[str, torch.Tensor]
    report: tuple[LayerFit, ...]
    skipped: dict[str, str]
    factors: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    grids: dict[str, reconstruct.Grid] = field(default_factory=dict)


@front_door
def reconstruct_model(
    model: torch.nn.Module,
    batches: Iterable[Any],
    *,
    sparsity: float | None = None,
    pattern: str | None = None,
    rank: int | None = None,
    budget: Budget | str | None = None,
    bits: int | None = None,
    group: int | None = 64,
    method: str = "obs",
    refit: int = 4,
    damping: float | None = None,
    include: NameFilter | None = None,
    exclude: NameFilter | None = None,
    blocks: str | Sequence[str] = "auto",
    sequential: bool = True,
    toward: str = "own",
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
    bits, group : int, optional
        Round the weights to whole numbers of so many bits, 1 to 8, with a scale and a zero for each `group` consecutive
        inputs of a row (None: for the row), alone or, in the same pass, what `sparsity`, `pattern` or `budget` leave;
        see `mpfast.reconstruct.quantize`. The weights keep their type: they are the numbers that a packed form would
        stand for, which `ReconstructedModel.grids` gives.
    method, refit
        As in `mpfast.reconstruct.prune`. With `bits` the method is ``"obs"``, and there is no refit after it.
    damping : float, optional
        Share of the mean of a moment's diagonal. Default as `mpfast.models.damping_for`, by how much it has seen.
    include, exclude : optional
        Names of tensors, as in `mpfast.analyze`.
    blocks : str or sequence of str
        ``"auto"``: the members of the largest list of modules; or patterns of their names, ``"encoder.layer.*"``.
    sequential : bool
        Whether a layer is fitted to what it gets in the compressed model; otherwise to its inputs in the dense one.
    toward : {"own", "dense"}
        What a layer's outputs are to be like where it is fitted in sequence: those that its dense weights would have
        with its inputs now, or those of the dense model, which is to make up for what the blocks before have changed.
        The latter kept less of both models that were measured, of one hardly anything: it fits few inputs too closely.
        Routed experts, which see other tokens than in the dense model, are always fitted toward their own.
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
        Not exactly one of `sparsity`, `pattern`, `rank` and `budget` is given, nor `bits`; an option is out of range or
        does not go with another; the blocks are none that follow each other; or no layer is left.
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
    named, own = (budget, None) if isinstance(budget, str) else (None, budget)
    if named is not None and sparsity is None:
        raise InvalidValueError("budget", f"{named!r} shares out a sparsity, which is not given", "pass sparsity=")
    workers = team(threads)
    options = FitOptions(
        sparsity, pattern, rank, own, bits, group, method, refit, damping, sequential, toward, heldout, workers
    )
    network = model if inplace else copy.deepcopy(model)
    given = list(batches)
    if named is not None and sparsity is not None:
        training = given[: len(given) - kept_back(options, len(given))]
        shared = budget_by_name(named, network, training, sparsity, (include, exclude, blocks), workers)
        options = replace(options, sparsity=None, budget=shared)
    found = blocks_of(network, blocks)
    counts = options.counts(dict(network.named_parameters()))
    roles = roles_of(as_stored(open_checkpoint(network)))
    chosen, skipped = chosen_sites(network, roles, found, include, exclude, options, counts)
    whole = BlockFit(skipped=skipped)
    with undisturbed(network):
        hidden, calls, valid = calls_of(network, found, given)
        states = HiddenStates(options, hidden, valid, len(given) - kept_back(options, len(given)))
        order = list(calls[0])
        for number, name in enumerate(order):
            sites, block_calls = chosen[name], [each.pop(name) for each in calls]
            sums = states.collect(found[name], sites, block_calls)
            whole.join(fit_block(sites, sums, options, counts))
            states.advance(found[name], block_calls)
            if progress is not None:
                progress(number + 1, len(order))
    warn_caller("reconstruct_model", few_inputs(whole.report))
    return ReconstructedModel(network, whole.masks, tuple(whole.report), whole.skipped, whole.factors, whole.grids)


def kept_back(options: FitOptions, batches: int) -> int:
    """How many of so many batches, the last ones, layers are not fitted to."""
    return min(batches - 1, max(1, int(options.heldout * batches))) if options.heldout and batches > 1 else 0


def team(threads: int | None) -> int:
    """How many threads the core is given: what is asked for, or as many as PyTorch has."""
    return thread_count(torch.get_num_threads() if threads is None else threads)
