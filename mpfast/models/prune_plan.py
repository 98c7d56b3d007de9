"""Which layers `prune` prunes where moments decide, and by what plan the masks come about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mpfast.checkpoints import Checkpoint, Layer
from mpfast.models.bounds import Bounds
from mpfast.models.budget_fit import FittedBudget, plan_of_budget
from mpfast.models.layer_moments import LayerMoments
from mpfast.models.layer_report import LayerReport
from mpfast.models.mask_fit import FittedMasks
from mpfast.models.mask_plans import GivenMasks, LayerCuts, MaskPlan, Pattern, RowCuts, global_cut
from mpfast.models.methods import METHODS
from mpfast.models.prune_options import PruneOptions
from mpfast.models.shared_counts import Knowledge, shared_counts, spectra_of
from mpfast.support import floor_count

__all__ = ["dropped_share", "layers_with_moments", "plan_masks"]


def plan_masks(
    checkpoint: Checkpoint,
    layers: Sequence[Layer],
    options: PruneOptions,
    budget: FittedBudget | None,
    masks: FittedMasks | None,
    moments: LayerMoments | None,
    gradients: Mapping[str, Any],
) -> tuple[MaskPlan, Mapping[str, int], Mapping[str, LayerReport]]:
    """Return what decides what goes, how much of each layer where that is known before, and the spectra it took."""
    if masks is not None:
        return GivenMasks(masks), {}, {}
    if options.groups is not None:
        return Pattern(*options.groups, options.team), {}, {}
    if budget is not None:
        by_row = options.label in METHODS and METHODS[options.label].per_row
        plan, counts = plan_of_budget(budget, checkpoint, layers, per_row=by_row, threads=options.team)
        return plan, counts, {}
    method = options.sharing
    reports = _spectra(checkpoint, layers, options) if method.needs_spectra else {}
    if method.cuts_globally and not options.chooser:
        scales = method.scales([reports.get(layer.name) for layer in layers], options.target)
        pruned = floor_count(options.target, sum(layer.size for layer in layers))
        return global_cut(checkpoint, layers, scales, pruned, options.highest, options.team), {}, reports
    known = Knowledge(reports, moments, gradients, options.factor_damping)
    bounds = Bounds.checked(options.target, ceiling=options.highest)
    counts = shared_counts(method, checkpoint, layers, known, options.target, bounds, options.team)
    return (RowCuts if method.per_row else LayerCuts)(counts, options.team), counts, reports


def _spectra(checkpoint: Checkpoint, layers: Sequence[Layer], options: PruneOptions) -> dict[str, LayerReport]:
    return spectra_of(
        checkpoint,
        layers,
        tol=options.tol,
        seed=options.seed,
        device=options.device,
        threads=options.threads,
        progress=options.progress,
    )


def layers_with_moments(
    layers: list[Layer], skipped: dict[str, str], moments: LayerMoments, options: PruneOptions
) -> list[Layer]:
    """Return the layers but those without a moment, where it was left to the moments what goes, or how much.

    Those stay dense: the reasons go to `skipped`.
    """
    measured = "moments" in options.sharing.needs
    if options.given_budget is not None or not (options.chooser or measured):
        return layers
    reasons = {
        layer.name: moments.reason_against_one(layer) if measured else moments.reasons.get(layer.name, "")
        for layer in layers
    }
    skipped |= {name: f"no second moment: {reason}" for name, reason in reasons.items() if reason}
    return [layer for layer in layers if not reasons[layer.name]]


def dropped_share(masks: FittedMasks, layers: Sequence[Layer]) -> float:
    """Return the share of the entries of these layers that masks drop."""
    kept = sum(int(np.count_nonzero(masks.mask_of(layer))) for layer in layers)
    return 1 - kept / sum(layer.size for layer in layers)
