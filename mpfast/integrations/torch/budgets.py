"""Budgets of live models by name: what a method needs is collected from the batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mpfast.checkpoints import MIN_SIDE, NameFilter, as_stored, name_filter, open_checkpoint, roles_of
from mpfast.integrations.torch.block_streams import blocks_of, undisturbed
from mpfast.integrations.torch.calibration import SecondMoments
from mpfast.integrations.torch.gradients import output_gradients
from mpfast.integrations.torch.sites import sites_of
from mpfast.models import Budget, method_named, share_out

__all__ = ["budget_by_name"]


def budget_by_name(
    name: str,
    model: torch.nn.Module,
    batches: Sequence[Any],
    sparsity: float,
    where: tuple[NameFilter | None, NameFilter | None, str | Sequence[str]],
    threads: int,
) -> Budget:
    """Share a sparsity out over the matrices in a model's blocks, see `reconstruct_model`.

    `where` are its `include`, `exclude` and `blocks`. Second moments, where the method needs them, are those of the
    dense model, of all blocks at once; experts of a stack have none, and are in no budget of such a method.
    """
    method = method_named(name, " or a Budget", "budget")
    tensors = _tensors(model, *where)
    known: dict[str, Any] = {}
    if "moments" in method.needs:
        known["moments"] = _moments(model, batches, tensors, threads)
    if "gradients" in method.needs:
        modules = {tensor.rpartition(".")[0] for tensor in tensors}
        known["gradients"] = output_gradients(model, batches, include=modules.__contains__)
    return share_out(
        model, sparsity, method=name, include=tensors.__contains__, threads=threads, progress=False, **known
    )


def _tensors(
    model: torch.nn.Module, include: NameFilter | None, exclude: NameFilter | None, blocks: str | Sequence[str]
) -> set[str]:
    """The tensors that are compressed."""
    roles = roles_of(as_stored(open_checkpoint(model)))
    wanted, unwanted = name_filter(include, "include"), name_filter(exclude, "exclude")
    found = set()
    for prefix, block in blocks_of(model, blocks).items():
        for site in sites_of(block, prefix, roles)[0]:
            called = (site.tensor, site.tensor.rpartition(".")[0])
            left_out = (wanted and not any(map(wanted, called))) or (unwanted and any(map(unwanted, called)))
            if not left_out and min(site.matrix.shape) >= MIN_SIDE:
                found.add(site.tensor)
    return found


def _moments(
    model: torch.nn.Module, batches: Sequence[Any], tensors: set[str], threads: int
) -> Mapping[str, torch.Tensor]:
    modules = {tensor.rpartition(".")[0] for tensor in tensors}
    with undisturbed(model), SecondMoments(model, include=modules.__contains__, threads=threads) as moments:
        for batch in batches:
            mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
            moments.valid = mask.bool() if isinstance(mask, torch.Tensor) else None
            if isinstance(batch, Mapping):
                model(**batch)
            else:
                model(batch)
    return moments
