"""Hidden states on their way through a model's blocks, the dense model's and the compressed one's side by side."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mpfast.integrations.torch.block_streams import Call, call_block
from mpfast.integrations.torch.fit_options import FitOptions
from mpfast.integrations.torch.input_sums import InputSums
from mpfast.integrations.torch.sites import Site, watched
from mpfast.support import give_back_freed_memory

__all__ = ["HiddenStates"]


@dataclass
class _Seen:
    """The inputs of a matrix in one pass: a copy, and what tells whether another matrix has got the same."""

    key: tuple[Any, ...]
    given: torch.Tensor
    rows: torch.Tensor


class HiddenStates:
    """What the next block gets, by batch: in the compressed model and, where that is asked for, in the dense one.

    A block takes two steps: `collect` (or `pass_dense`, where nothing is to be learnt of it) while its weights are the
    dense ones, and `advance` when they are the new ones. There are never more than two sets of hidden states, and one
    more batch of each.

    Parameters
    ----------
    options
        Of the call.
    hidden
        What the first block gets, by batch. The list is used up.
    valid
        Which places of it are no padding.
    training
        How many batches the layers are fitted to; the others are kept back.
    """

    def __init__(
        self, options: FitOptions, hidden: list[torch.Tensor], valid: Sequence[torch.Tensor | None], training: int
    ) -> None:
        self._options = options
        self._own = hidden
        # The stream of the dense model, once it is another one.
        self._dense: list[torch.Tensor] | None = None
        self._valid = valid
        self._training = training

    def collect(
        self, block: torch.nn.Module, sites: list[Site], calls: Sequence[Call]
    ) -> dict[str, tuple[InputSums, InputSums]]:
        """Run a dense block, and return what its matrices have seen of the batches to fit to and of those kept back."""
        sums = {site.name: (InputSums(), InputSums()) for site in sites}
        ahead = _Ahead(self)
        for number, call in enumerate(calls):
            before = None
            if self._dense is not None:
                output, before = self._watch(block, sites, self._dense[number], call, number)
                _replace(self._dense, number, output)
            output, seen = self._watch(block, sites, self._own[number], call, number)
            self._add(sites, sums, seen, before, number)
            ahead.take(number, output)
            del seen, before, output
            give_back_freed_memory()
        ahead.done()
        return sums

    def pass_dense(self, block: torch.nn.Module, calls: Sequence[Call]) -> None:
        """Run a dense block of which nothing is to be learnt."""
        ahead = _Ahead(self)
        for number, call in enumerate(calls):
            if self._dense is not None:
                _replace(self._dense, number, call_block(block, self._dense[number], call))
            elif ahead.wanted:
                ahead.take(number, call_block(block, self._own[number], call))
        ahead.done()

    def advance(self, block: torch.nn.Module, calls: Sequence[Call]) -> None:
        """Run the compressed block."""
        if self._options.sequential:
            for number, call in enumerate(calls):
                _replace(self._own, number, call_block(block, self._own[number], call))

    def _watch(
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


def _replace(states: list[torch.Tensor], number: int, output: torch.Tensor) -> None:
    """Put an output in the memory of what went into a block: new memory every time would leave holes between."""
    before = states[number]
    if (before.shape, before.dtype, before.device) == (output.shape, output.dtype, output.device):
        before.copy_(output)
    else:
        states[number] = output


class _Ahead:
    """What a dense block has made of the compressed model's hidden states, as far as that is of use.

    As long as both models are one, it is the dense model's stream; where every layer is fitted to the dense model's
    inputs, it is the stream itself.
    """

    def __init__(self, states: HiddenStates) -> None:
        self._states = states
        self._replaces = not states._options.sequential
        self._begins = states._dense is None and states._options.keeps_dense_stream
        self._outputs = [torch.empty_like(each) for each in states._own] if self._begins else []

    @property
    def wanted(self) -> bool:
        return self._replaces or self._begins

    def take(self, number: int, output: torch.Tensor) -> None:
        if self._replaces:
            _replace(self._states._own, number, output)
        elif self._begins:
            _replace(self._outputs, number, output)

    def done(self) -> None:
        if self._begins:
            self._states._dense = self._outputs
