"""What global cuts of several sparsities would take of each layer, foretold from its spectrum."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from mpfast.checkpoints import stays_dense
from mpfast.models.budget_row import LayerBudget
from mpfast.models.budgeting import budget_from_reports
from mpfast.models.expert_summary import expert_of
from mpfast.models.layer_report import LayerReport
from mpfast.models.methods import METHODS

__all__ = ["STEPS", "budget_preview"]

#: The sparsities, of a thousand.
STEPS = tuple(range(50, 1000, 50))


def budget_preview(source: str, layers: Sequence[LayerReport], summed: Collection[str]) -> dict[str, Any] | None:
    """Share every one of these sparsities out over layers; None where nothing is to prune.

    Parameters
    ----------
    source, layers
        As in `mpfast.Analysis`.
    summed
        Names of expert summaries; all experts of one are told together.

    Returns
    -------
    dict
        ``steps``; ``names`` of layers; ``methods``: by name, per step, what goes of each layer, of a thousand.
    """
    if all(stays_dense(row.kind) or row.kind == "lora" for row in layers):
        return None
    methods = {}
    names: list[str] = []
    for method in (name for name, entry in METHODS.items() if entry.previewed):
        budgets = (budget_from_reports(layers, step / 1000, source=source, method=method) for step in STEPS)
        shares = [_shares(budget, summed) for budget in budgets]  # one budget in memory at a time
        methods[method] = [list(found.values()) for found in shares]
        names = list(shares[0])
    return {"steps": STEPS, "names": names, "methods": methods}


def _shares(budget: Iterable[LayerBudget], summed: Collection[str]) -> dict[str, int]:
    """What goes by name, of a thousand, one number for all experts whose matrices are summed up."""
    pruned: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for row in budget:
        expert = expert_of(row.name, row.kind)
        name = expert[0] if expert is not None and expert[0] in summed else row.name
        pruned[name] += row.pruned
        sizes[name] += row.size
    return {name: round(1000 * pruned[name] / size) for name, size in sizes.items()}
