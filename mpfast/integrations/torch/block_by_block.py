"""The blocks of a checkpoint reconstructed one after the other, each kept in a file, and given out again."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mpfast.checkpoints import content_hash, stored
from mpfast.integrations.torch.block_streams import Call, calls_of, undisturbed
from mpfast.integrations.torch.fit_options import FitOptions
from mpfast.integrations.torch.hidden_states import HiddenStates
from mpfast.integrations.torch.kept_blocks import BlockRecord, KeptBlocks, StoredTensor, UnfinishedBlock
from mpfast.integrations.torch.layer_fits import BlockFit, LayerFit, fit_block
from mpfast.integrations.torch.sites import Site
from mpfast.integrations.torch.skeletons import Skeleton
from mpfast.integrations.torch.stand_ins import BlockOutput, check_calls, standing_in
from mpfast.integrations.torch.whole_models import kept_back
from mpfast.models import NewTensor
from mpfast.support import arrays_given_back, give_back_freed_memory, logger

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
        with undisturbed(self.skeleton.model), arrays_given_back():
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
            there = _BlockTensors(self.skeleton, tensors, self.kept.begin(number), sites)
            fitted = fit_block(sites, sums, self.options, self.counts, there.fitted)
            there.unfinished.finish(BlockRecord(fitted.report, fitted.skipped, self._fits(fitted), dense))

    def _bound(self, site: Site, tensors: Mapping[str, torch.Tensor]) -> Site:
        """A matrix with the weights that its block has now."""
        return Site(site.name, site.tensor, tensors[site.tensor], site.expert, site.transposed, site.module)

    def _fits(self, fitted: BlockFit) -> dict[str, LayerFit]:
        """By tensor of the checkpoint, the row of the matrix that it is."""
        own = {row.name: self.skeleton.alone(row.name) for row in fitted.report if not row.name.endswith("]")}
        return {name: row for row in fitted.report if (name := own.get(row.name)) is not None}


class _BlockTensors:
    """The tensors of a loaded block: what is fitted of them is written, and goes.

    Parameters
    ----------
    skeleton, tensors
        The model, and the block's tensors by their live names.
    unfinished
        Where they go.
    sites
        All matrices that are to be fitted.
    """

    def __init__(
        self, skeleton: Skeleton, tensors: dict[str, torch.Tensor], unfinished: UnfinishedBlock, sites: Iterable[Site]
    ) -> None:
        self.unfinished = unfinished
        self._skeleton = skeleton
        self._tensors = tensors
        self._left = Counter(skeleton.names.first_of(site.tensor) for site in sites)
        self._changed: set[str] = set()

    def fitted(self, site: Site, fitted: BlockFit, changed: bool) -> None:
        """Take note of a matrix that has its new weights, or was left alone; write what waited for it."""
        first = self._skeleton.names.first_of(site.tensor)
        self._left[first] -= 1
        if changed:
            self._changed.add(site.tensor)
        if self._left[first]:
            return
        together = self._skeleton.names.made_with(first)
        rows = self._changed.intersection(together)
        if rows:
            self.unfinished.write(self._results(rows, fitted.masks))
        for name in together:
            fitted.masks.pop(name, None)
        self._skeleton.unload(together, self._tensors)

    def _results(self, rows: set[str], found: Mapping[str, torch.Tensor]) -> dict[str, StoredTensor]:
        """What has become of the tensors of the checkpoint that these are made into."""
        masks = {
            name: found.get(name, torch.ones(()).bool().expand(tensor.shape)) for name, tensor in self._tensors.items()
        }
        keeps = self._skeleton.stored_masks(rows, masks) if found else {}
        return {
            name: StoredTensor(
                self._skeleton.stored_type(name),
                stored(tensor, name),
                stored(keeps[name], name) if name in keeps else None,
            )
            for name, tensor in self._skeleton.stored(rows, self._tensors).items()
        }


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
