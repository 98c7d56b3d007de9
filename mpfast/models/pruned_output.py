"""Masks layer by layer, and what is written with them: weights, masks and the budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.arrays import like, like_stored
from mpfast.checkpoints import (
    MASKS_FILE,
    Checkpoint,
    CheckpointOutput,
    Layer,
    SafetensorsWriter,
    content_hash,
    mask_writer,
    packed,
    prefetched,
    read_layer,
)
from mpfast.models.budget import Budget
from mpfast.models.budget_row import LayerBudget, row_of
from mpfast.models.layer_report import LayerReport
from mpfast.models.mask_plans import MaskPlan, Refit, stored_rows
from mpfast.models.output_mark import mark_output
from mpfast.support import OutputDirectory, Workers

__all__ = ["BUDGET_FILE", "MaskingPass", "write_pruned"]

#: Name of the budget that is written beside the weights.
BUDGET_FILE = "budget.json"


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
    pattern
        Whether the masks have a pattern, whose axes the budget is to note.
    weights
        Where refitted weights are kept, by name, in the model's framework; None where they need not be.
    """

    checkpoint: Checkpoint
    layers: Sequence[Layer]
    plan: MaskPlan
    reports: Mapping[str, LayerReport]
    masks: dict[str, Any] | None
    pattern: bool = False
    weights: dict[str, Any] | None = None

    def run(
        self, output: CheckpointOutput | None = None, mask_file: SafetensorsWriter | None = None
    ) -> tuple[LayerBudget, ...]:
        """Hash and write one layer in the background while the mask of the next is made."""
        rows: list[LayerBudget] = []
        # One mask is written while the next is made; fresh pages for every layer would cost more than the masks.
        spare = [np.empty(max(layer.size for layer in self.layers), np.bool_) for _ in range(2)]
        with Workers(1) as hasher, Workers(1) as writer:
            writing: Future[None] | None = None
            names = prefetched((layer.file_name for layer in self.layers), self.checkpoint)
            for layer, _ in zip(self.layers, names, strict=True):
                tensor = read_layer(self.checkpoint, layer)
                entries = stored_rows(tensor, layer)
                content = hasher.submit(content_hash, entries)
                keep = spare[len(rows) % 2][: layer.size].reshape(entries.shape)
                refit = self.plan.mask(layer, entries, keep)
                new = None if refit is None else refit.rows
                written = None if new is None else hasher.submit(content_hash, new)
                if self.masks is not None:
                    self.masks[layer.name] = like(keep.reshape(layer.tensor_shape).copy(), tensor)
                if self.weights is not None and new is not None:
                    self.weights[layer.name] = like_stored(new.reshape(layer.tensor_shape), layer.dtype, tensor)
                row = self._row(layer, int(keep.size - np.count_nonzero(keep)), content.result())
                rows.append(
                    row if refit is None else _with_refit(row, refit, None if written is None else written.result())
                )
                if writing is not None:
                    writing.result()
                writing = writer.submit(self._write, layer, entries if new is None else new, keep, output, mask_file)
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
            mask_file.write(layer.file_name, packed(keep))
        if output is not None:
            for name in (layer.file_name, *layer.aliases):
                output.write_masked(name, entries, keep)
        self.checkpoint.release(layer.file_name)

    def _row(self, layer: Layer, pruned: int, content: str) -> LayerBudget:
        return row_of(
            layer,
            pruned,
            self.reports.get(layer.name),
            content=content,
            stored=layer.stored or None,
            input_axes=layer.input_axes if self.pattern else None,
        )


def _with_refit(row: LayerBudget, refit: Refit, written: str | None) -> LayerBudget:
    return replace(
        row,
        updated=refit.rows is not None,
        written=written,
        masked_error=refit.masked_error,
        error=refit.error,
        heldout_error=refit.heldout_error,
        reason=refit.reason,
    )


def write_pruned(
    masking: MaskingPass, place: OutputDirectory, budget: Budget, documents: Mapping[str, str] | None = None
) -> tuple[Budget, tuple[str, ...]]:
    """Write the pruned checkpoint, its masks and its budget, all or nothing.

    Parameters
    ----------
    masking
        The pass over the layers; it is run here.
    place
        Where to write.
    budget
        Without rows.
    documents
        Texts of other files that are written beside, by name.

    Returns
    -------
    budget : Budget
        With its rows.
    left : tuple of str
        What lies beside the weights and was not copied, and why.
    """
    checkpoint = masking.checkpoint
    with place.staged(resume=True) as staging:
        shapes = {layer.file_name: layer.tensor_shape for layer in masking.layers}
        with CheckpointOutput(checkpoint, staging) as output:
            with mask_writer(staging / MASKS_FILE, shapes) as mask_file:
                written = replace(budget, layers=masking.run(output, mask_file))
            left = output.finish()
        for name, text in {BUDGET_FILE: written.to_json(), **(documents or {})}.items():
            (staging / name).write_text(text, encoding="utf-8")
        known = {row.file_name: row.content for row in written if row.content is not None}
        mark_output(staging, "prune", checkpoint, known)
    return written, left
