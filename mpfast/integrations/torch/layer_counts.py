"""A budget by the linear modules of a live model, in which an expert of a stack may have become one of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from mpfast.checkpoints import other_names, stacked_expert
from mpfast.models import Budget, LayerBudget, body_of
from mpfast.support import InvalidTypeError, InvalidValueError

__all__ = ["as_budget", "as_text", "pruned_entries"]


def as_budget(given: Any) -> Budget:
    """Return a budget, given it, its file or the text of that."""
    if isinstance(given, Budget):
        return given
    if not isinstance(given, str):
        raise InvalidTypeError("budget", f"must be a Budget or its file, not {type(given).__name__}")
    return Budget.from_json(given)


def as_text(given: Any) -> Any:
    """What a recipe says of a budget: its file as it was given, or all of it."""
    return given.to_json() if isinstance(given, Budget) else given


def pruned_entries(budget: Budget, model: torch.nn.Module) -> dict[str, int]:
    """Return how many entries of each linear module of a model go, by its name; of those alone of which any go.

    The names of a budget may be those of files, of a model with a head or of its body. What goes of a stack of experts
    is shared out evenly over the linear modules that it has become, as llm-compressor makes them.

    Raises
    ------
    InvalidValueError
        The model lacks a layer of the budget, or has it in another size.
    """
    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    body, live_body = body_of([*(row.name for row in budget), *(name for name, _ in budget.dense)]), body_of(linear)
    rows = {row.name.removeprefix(body): row for row in budget}
    stacks = [name for name, row in rows.items() if len(row.shape) == 3]
    members: dict[str, list[str]] = {}
    for name in linear:
        tensor = f"{name.removeprefix(live_body)}.weight"
        found = next((called for called in (tensor, *other_names(tensor)) if called in rows), None)
        if found is None and (expert := stacked_expert(tensor, stacks)) is not None:
            found = expert.stack
        if found is not None:
            members.setdefault(found, []).append(name)
    counts: Counter[str] = Counter()
    for called, row in rows.items():
        counts.update(_shared(row, {name: linear[name] for name in members.get(called, [])}))
    return {name: count for name, count in counts.items() if count}


def _shared(row: LayerBudget, modules: Mapping[str, torch.nn.Module]) -> dict[str, int]:
    """What goes of a row by the modules that it is, to the entry."""
    size = sum(module.weight.numel() for module in modules.values())
    if size != row.size:
        if row.pruned == 0:
            return {}
        fact = f"has {row.name} of {row.size} entries, and the model's linear modules of that name have {size}"
        raise InvalidValueError("budget", fact, "make it of this model, or of its files")
    counts, before = {}, 0
    for name, module in modules.items():
        after = before + module.weight.numel()
        counts[name] = row.pruned * after // size - row.pruned * before // size
        before = after
    return counts
