"""The blocks of a checkpoint reconstructed one after the other, each kept in a file, and given out again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mpfast.checkpoints import content_hash, stored
from mpfast.integrations.torch.block_streams import Call, calls_of, undisturbed
from mpfast.integrations.torch.fit_options import FitOptions
from mpfast.integrations.torch.hidden_states import HiddenStates
from mpfast.integrations.torch.kept_blocks import BlockRecord, KeptBlocks, StoredTensor
from mpfast.integrations.torch.layer_fits import BlockFit, LayerFit, fit_block
from mpfast.integrations.torch.sites import Site
from mpfast.integrations.torch.skeletons import Skeleton
from mpfast.integrations.torch.stand_ins import BlockOutput, check_calls, standing_in
from mpfast.integrations.torch.whole_models import kept_back
from mpfast.models import NewTensor
from mpfast.support import give_back_freed_memory, logger

__all__ = ["BlockByBlock", "KeptTensors"]


@dataclass
class BlockByBlock:
    """Takes the hidden states through the blocks, and keeps what becomes of these.

    Attributes
    ----------
    skeleton
        The model.
    blocks
        By name.
    chosen
        What is compressed of each.
    options, counts
        Of the call.
    kept
        Where the results go, and where those of an earlier try are.
    """

    skeleton: Skeleton
    blocks: Mapping[str, torch.nn.Module]
    chosen: Mapping[str, list[Site]]
    options: FitOptions
    counts: Mapping[str, int] | None
    kept: KeptBlocks

    def run(self, batches: list[Any], progress: Callable[[int, int], None] | None) -> list[str]:
        """Do all blocks, and return their names in the order in which they are called."""
        with undisturbed(self.skeleton.model):
            with (
                self.skeleton.outside(list(self.blocks)),
                standing_in(self.blocks, self.skeleton.loaded) as output,
            ):
                hidden, calls, valid = calls_of(self.skeleton.model, self.blocks, batches)
            check_calls(calls)
            states = HiddenStates(self.options, hidden, valid, len(batches) - kept_back(self.options, len(batches)))
            del hidden
            order = list(calls[0])
            for number, name in enumerate(order):
                self._block(number, name, states, [each.pop(name) for each in calls], output)
                if progress is not None:
                    progress(number + 1, len(order))
        return order

    def _block(self, number: int, name: str, states: HiddenStates, calls: Sequence[Call], output: BlockOutput) -> None:
        block = self.blocks[name]
        give_back_freed_memory()
        if number in self.kept:
            logger.info("reconstruct_checkpoint: %s: was done", name)
            with self.skeleton.loaded(name) as tensors, output.checked(name, block):
                self.kept.check_source(number, name, _hash_of(tensors))
                states.pass_dense(block, calls)
        else:
            self._compress(number, name, states, calls, output)
        if self.options.sequential:
            with self.skeleton.loaded(name, self.kept.weights(number)):
                states.advance(block, calls)

    def _compress(
        self, number: int, name: str, states: HiddenStates, calls: Sequence[Call], output: BlockOutput
    ) -> None:
        """Fit a block and keep what becomes of it: nothing of that stays in memory."""
        block = self.blocks[name]
        with self.skeleton.loaded(name) as tensors, output.checked(name, block):
            sites = [self._bound(site, tensors) for site in self.chosen[name]]
            self.skeleton.check_way_back({site.tensor for site in sites}, tensors)
            dense = _hash_of(tensors)
            sums = states.collect(block, sites, calls)
            fitted = fit_block(sites, sums, self.options, self.counts)
            self.kept.write(number, *self._results(fitted, tensors, dense))

    def _bound(self, site: Site, tensors: Mapping[str, torch.Tensor]) -> Site:
        """A matrix with the weights that its block has now."""
        return Site(site.name, site.tensor, tensors[site.tensor], site.expert, site.transposed, site.module)

    def _results(
        self, fitted: BlockFit, tensors: Mapping[str, torch.Tensor], dense: str
    ) -> tuple[dict[str, StoredTensor], BlockRecord]:
        """What has become of the tensors of the checkpoint."""
        rows: dict[str, list[LayerFit]] = {}
        for row in fitted.report:
            rows.setdefault(row.name.rpartition("[")[0] if row.name.endswith("]") else row.name, []).append(row)
        written = self.skeleton.stored(rows, tensors)
        masks = {
            name: fitted.masks.get(name, torch.ones(()).bool().expand(tensor.shape)) for name, tensor in tensors.items()
        }
        keeps = self.skeleton.stored_masks(rows, masks) if fitted.masks else {}
        results = {
            name: StoredTensor(
                self.skeleton.stored_type(name),
                stored(tensor, name),
                stored(keeps[name], name) if name in keeps else None,
            )
            for name, tensor in written.items()
        }
        own = {live: self.skeleton.alone(live) for live, found in rows.items() if len(found) == 1}
        fits = {name: rows[live][0] for live, name in own.items() if name is not None}
        return results, BlockRecord(fitted.report, fitted.skipped, fits, dense)


def _hash_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """Hash of the weights of a block."""
    state = hashlib.sha256()
    for name, tensor in tensors.items():
        state.update(name.encode())
        state.update(content_hash(stored(tensor, name)).encode())
    return state.hexdigest()


class KeptTensors:
    """Gives out the tensors of all finished blocks."""

    def __init__(self, kept: KeptBlocks, records: Sequence[BlockRecord]) -> None:
        self._kept = kept
        self._records = records
        self._place = {name: number for number in range(len(records)) for name in kept.weights(number)}

    def inputs(self, roles: Mapping[str, Any], sites: Mapping[str, Site]) -> dict[str, tuple[int, ...]]:
        """Axes along the inputs: of a matrix that is stored as it is in the model by that, else by its role."""
        found = {}
        for name, number in self._place.items():
            row = self._records[number].fits.get(name)
            site = None if row is None else sites.get(row.name)
            found[name] = roles[name].input_axes if site is None else (0,) if site.transposed else (1,)
        return found

    def tensor(self, name: str) -> NewTensor:
        """Return what is written in the place of a tensor."""
        number = self._place[name]
        new = self._kept.tensor(number, name)
        row = self._records[number].fits.get(name)
        if row is None:
            return NewTensor(new.weights, new.mask)
        return NewTensor(new.weights, new.mask, row.masked_error, row.error, row.heldout_error)
