"""llm-compressor's own SparseGPT with a sparsity for each layer, in one pass over the data."""

from __future__ import annotations

from typing import Any

import torch
from llmcompressor.modifiers.factory import ModifierFactory
from llmcompressor.modifiers.pruning.sparsegpt import SparseGPTModifier
from pydantic import PrivateAttr, field_serializer, model_validator

from mpfast.integrations.torch.layer_counts import as_budget, as_text, pruned_entries
from mpfast.support import InvalidValueError, parsed_pattern

__all__ = ["MPFastSparseGPTModifier"]

_SAID_BY_BUDGET = ("sparsity", "sparsity_profile", "mask_structure", "targets", "ignore")


class MPFastSparseGPTModifier(SparseGPTModifier):
    """``SparseGPTModifier`` of llm-compressor, whose sparsities are those of a budget, layer by layer.

    The recipe that `mpfast.Budget.export` writes says the same to llm-compressor alone, with a modifier for each
    distinct sparsity, rounded to three digits, and a pass over the data for each of them. Importing
    `mpfast.integrations.llmcompressor` registers this one for recipes.

    Parameters
    ----------
    budget : Budget or str
        A budget of the model or of its files, or the file that it is in. It says the layers, the sparsities and the
        pattern; everything else is as llm-compressor has it (``block_size``, ``dampening_frac``,
        ``offload_hessians``, ...). SparseGPT cuts 128 columns at a time, and so meets a share but for some entries.

    Raises
    ------
    ValueError
        `budget` is none, or an option is given that it says; when it starts: the budget is of another model.
    """

    sparsity: float | list[float] | None = None
    budget: Any

    _pruned: dict[str, int] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> MPFastSparseGPTModifier:
        given = [name for name in _SAID_BY_BUDGET if name in self.model_fields_set]
        if given:
            raise InvalidValueError(given[0], "is said by the budget", "leave it out")
        as_budget(self.budget)
        return self

    @field_serializer("budget")
    def _text_of_budget(self, budget: Any) -> Any:
        return as_text(budget)

    def on_initialize(self, state: Any, **kwargs: Any) -> bool:
        """Find the layers of the budget in the model."""
        budget = as_budget(self.budget)
        self._pruned = pruned_entries(budget, state.model)
        if budget.pattern is not None and (groups := parsed_pattern(budget.pattern)) is not None:
            # Of m consecutive weights, llm-compressor's first number is how many go, ours is how many stay.
            self._prune_n, self._prune_m = groups[1] - groups[0], groups[1]
        return True

    def on_calibration_start(self, state: Any, event: Any, **kwargs: Any) -> None:
        """Watch these layers."""
        for name, pruned in self._pruned.items():
            module = state.model.get_submodule(name)
            weight: torch.Tensor = module.weight
            self._module_names[module] = name
            self._module_sparsities[module] = pruned / weight.numel()
            self.register_hook(module, self.calibrate_module, "forward")


ModifierFactory.register("MPFastSparseGPTModifier", MPFastSparseGPTModifier)
