"""Masks layer by layer, and what is written with them: weights, masks and the budget."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.arrays import like
from mpfast.checkpoints import (
    MASKS_FILE,
    Checkpoint,
    CheckpointOutput,
    Layer,
    SafetensorsWriter,
    fingerprint,
    mask_writer,
    packed,
    prefetched,
)
from mpfast.models.budget import Budget
from mpfast.models.budget_row import LayerBudget
from mpfast.models.layer_report import LayerReport
from mpfast.models.mask_plans import MaskPlan, stored_rows
from mpfast.support import Workers, staged_directory

__all__ = ["BUDGET_FILE", "MaskingPass", "content_hash", "write_pruned"]

#: Name of the budget that is written beside the weights.
BUDGET_FILE = "budget.json"
# Entries masked and written at a time.
CHUNK_ENTRIES = 4 << 20


@dataclass
class MaskingPass:
    """Goes through the layers once, in the order of the checkpoint.

    Attributes
    ----------
    checkpoint, layers
        What is pruned.
    plan
        Gives out the masks.
    reports
        Spectra by the layers' names, as far as they were taken; they are noted in the budget.
    masks
        Where the masks are kept, by name, in the model's framework; None where they need not be.
    """

    checkpoint: Checkpoint
    layers: Sequence[Layer]
    plan: MaskPlan
    reports: Mapping[str, LayerReport]
    masks: dict[str, Any] | None

    def run(
        self, output: CheckpointOutput | None = None, mask_file: SafetensorsWriter | None = None
    ) -> tuple[LayerBudget, ...]:
        """Hash and write one layer in the background while the mask of the next is made."""
        rows: list[LayerBudget] = []
        # One mask is written while the next is made; fresh pages for every layer would cost more than the masks.
        spare = [np.empty(max(layer.size for layer in self.layers), np.bool_) for _ in range(2)]
        with Workers(1) as hasher, Workers(1) as writer:
            writing: Future[None] | None = None
            names = prefetched((layer.name for layer in self.layers), self.checkpoint)
            for layer, name in zip(self.layers, names, strict=True):
                tensor = self.checkpoint.read(name)
                entries = stored_rows(tensor, layer)
                content = hasher.submit(content_hash, entries)
                keep = spare[len(rows) % 2][: layer.size].reshape(entries.shape)
                self.plan.mask(layer, entries, keep)
                if self.masks is not None:
                    self.masks[layer.name] = like(keep.reshape(layer.tensor_shape).copy(), tensor)
                rows.append(self._row(layer, int(keep.size - np.count_nonzero(keep)), content.result()))
                if writing is not None:
                    writing.result()
                writing = writer.submit(self._write, layer, entries, keep, output, mask_file)
            if writing is not None:
                writing.result()
        return tuple(rows)

    def _write(
        self,
        layer: Layer,
        entries: NDArray[Any],
        keep: NDArray[np.bool_],
        output: CheckpointOutput | None,
        mask_file: SafetensorsWriter | None,
    ) -> None:
        if mask_file is not None:
            mask_file.write(layer.name, packed(keep))
        if output is not None:
            output.write(layer.name, masked_chunks(entries, keep))
        self.checkpoint.release(layer.name)

    def _row(self, layer: Layer, pruned: int, content: str) -> LayerBudget:
        report = self.reports.get(layer.name)
        return LayerBudget(
            layer.name,
            layer.kind,
            layer.tensor_shape,
            layer.dtype,
            pruned=pruned,
            sparsity=pruned / layer.size,
            sigma_plus=None if report is None else report.sigma_plus,
            sigma_plus_error=None if report is None else report.sigma_plus_error,
            rank=None if report is None else report.spikes,
            content=content,
        )


def write_pruned(
    masking: MaskingPass, out: str | os.PathLike[str], budget: Budget, key: list[Any], *, overwrite: bool
) -> Budget:
    """Write the pruned checkpoint, its masks and its budget, all or nothing; return the budget with its rows.

    Parameters
    ----------
    masking
        The pass over the layers; it is run here.
    out, overwrite
        As in `mpfast.prune`.
    budget
        Without rows.
    key
        What the result depends on: files that a killed run with the same key had finished are kept.
    """
    checkpoint = masking.checkpoint
    with staged_directory(out, overwrite=overwrite) as staging:
        shapes = {layer.name: layer.tensor_shape for layer in masking.layers}
        with CheckpointOutput(checkpoint, staging, fingerprint(checkpoint, "prune", key)) as output:
            with mask_writer(staging / MASKS_FILE, shapes) as mask_file:
                written = replace(budget, layers=masking.run(output, mask_file))
            output.finish()
        (staging / BUDGET_FILE).write_text(written.to_json(), encoding="utf-8")
    return written


def content_hash(entries: NDArray[Any]) -> str:
    """Return the hash of a contiguous tensor's bytes, as a budget gives it."""
    return f"sha256:{hashlib.sha256(entries.reshape(-1).view(np.uint8).data).hexdigest()}"


def masked_chunks(entries: NDArray[Any], keep: NDArray[np.bool_]) -> Iterator[memoryview]:
    """Yield the bytes of the entries that are kept, zeros for the others."""
    bits = entries.reshape(-1).view(f"u{entries.itemsize}")
    flat = keep.reshape(-1)
    for at in range(0, bits.size, CHUNK_ENTRIES):
        dense = bits[at : at + CHUNK_ENTRIES]
        yield np.multiply(dense, flat[at : at + CHUNK_ENTRIES], dtype=dense.dtype).view(np.uint8).data
