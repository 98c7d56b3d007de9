"""Layers pruned and refitted by `mpfast.reconstruct` to the inputs that llm-compressor shows them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from compressed_tensors.utils import align_module_device, match_named_modules, update_offload_parameter
from llmcompressor.modifiers import Modifier
from llmcompressor.modifiers.factory import ModifierFactory
from pydantic import PrivateAttr, field_serializer, model_validator

from mpfast import _core
from mpfast.arrays import as_matrix
from mpfast.integrations.torch.fit_options import FitOptions
from mpfast.integrations.torch.input_sums import InputSums
from mpfast.integrations.torch.layer_counts import as_budget, as_text, pruned_entries
from mpfast.integrations.torch.layer_fits import LayerFit, few_inputs, fit_block
from mpfast.integrations.torch.shared_inputs import Input, SharedInputs, SharedSum
from mpfast.integrations.torch.sites import Site
from mpfast.support import InvalidValueError, floor_count, thread_count, warn_caller

__all__ = ["MPFastModifier"]

_HEADS = ["re:.*lm_head"]


class MPFastModifier(Modifier):
    """Prune linear layers, each refitted to what it sees: `mpfast.reconstruct.prune` as a step of llm-compressor.

    Importing `mpfast.integrations.llmcompressor` registers it for recipes. In the sequential pipeline, which is
    llm-compressor's choice for it, a layer sees what the compressed blocks before its own make of the samples. Padding
    counts like any other place of a sample, as for llm-compressor's own modifiers.

    Parameters
    ----------
    sparsity : float, optional
        Share of the entries of each layer that go. Or `pattern`, ``"2:4"``, n of every m consecutive inputs stay
        (llm-compressor's ``mask_structure`` counts those that go); or `budget`, a `mpfast.Budget` of the model or of
        its files, or the file that it is in, which says the layers, how many entries of each go, and the pattern.
    method, refit, damping
        As in `mpfast.integrations.torch.reconstruct_model`.
    targets, ignore : list of str, optional
        Modules as llm-compressor names them; of these the linear ones are pruned. Default all, ``["Linear"]``, but the
        output head of a language model, ``["re:.*lm_head"]``. Not with a budget.
    threads : int, optional
        Of what the core does. Default those of PyTorch.

    Attributes
    ----------
    report : tuple of LayerFit
        A row for each layer that was pruned, in the order of the model.
    unseen : tuple of str
        Layers that were to be pruned and have seen no inputs: experts that no sample went to.

    Raises
    ------
    ValueError
        Not exactly one of `sparsity`, `pattern` and `budget` is given, or an option is out of range; when it starts:
        no layer is left, one shares its weight with another module, or the budget is of another model.

    Warns
    -----
    UserWarning
        Of layers that have seen fewer than 4 inputs per dimension, or none.
    """

    requires_calibration_data: bool = True

    sparsity: float | None = None
    pattern: str | None = None
    budget: Any = None
    method: str = "obs"
    refit: int = 4
    damping: float | None = None
    targets: str | list[str] | None = None
    ignore: str | list[str] | None = None
    threads: int | None = None

    _options: Any = PrivateAttr(default=None)
    _pruned: dict[str, int] = PrivateAttr(default_factory=dict)
    _modules: dict[str, torch.nn.Module] = PrivateAttr(default_factory=dict)
    _seen: Any = PrivateAttr(default=None)
    _report: dict[str, LayerFit] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> MPFastModifier:
        budget = None if self.budget is None else as_budget(self.budget)
        if budget is not None and (self.targets is not None or self.ignore is not None):
            raise InvalidValueError("targets and ignore", "do not go with a budget, which says the layers")
        self._options = FitOptions(
            self.sparsity,
            self.pattern,
            rank=None,
            budget=budget,
            bits=None,
            group=None,
            method=self.method,
            refit=self.refit,
            damping=self.damping,
            sequential=True,
            toward="own",
            heldout=0.0,
            threads=thread_count(torch.get_num_threads() if self.threads is None else self.threads),
        )
        return self

    @field_serializer("budget")
    def _text_of_budget(self, budget: Any) -> Any:
        return as_text(budget)

    @property
    def report(self) -> tuple[LayerFit, ...]:
        """What was done to each layer."""
        return tuple(self._report[name] for name in self._pruned if name in self._report)

    @property
    def unseen(self) -> tuple[str, ...]:
        """Layers that have seen no inputs."""
        return tuple(name for name in self._pruned if name not in self._report)

    def on_initialize(self, state: Any, **kwargs: Any) -> bool:
        """Choose the layers."""
        budget = self._options.budget
        self._pruned = self._shares(state.model) if budget is None else pruned_entries(budget, state.model)
        self._modules = {name: state.model.get_submodule(name) for name in self._pruned}
        if not self._modules:
            raise InvalidValueError("", "no layer is left to prune")
        groups = self._options.groups
        uses = Counter(id(parameter) for _, parameter in state.model.named_parameters(remove_duplicate=False))
        for name, module in self._modules.items():
            if uses[id(module.weight)] > 1:
                raise InvalidValueError("model", f"{name} shares its weight with another module", "leave it out")
            if groups is not None and module.weight.shape[1] % groups[1]:
                fact = f"{name} has {module.weight.shape[1]} inputs, no multiple of {groups[1]}"
                raise InvalidValueError("pattern", fact, "leave it out by ignore=")
        return True

    def _shares(self, model: torch.nn.Module) -> dict[str, int]:
        """How many entries go of the layers that the options name."""
        targets, ignore = self.targets or ["Linear"], _HEADS if self.ignore is None else self.ignore
        chosen = match_named_modules(model, _listed(targets), _listed(ignore))
        linear = {name: module for name, module in chosen if isinstance(module, torch.nn.Linear)}
        return {name: floor_count(self._options.share, module.weight.numel()) for name, module in linear.items()}

    def on_calibration_start(self, state: Any, event: Any, **kwargs: Any) -> None:
        """Watch the layers."""
        self._seen = SharedInputs(self._count)
        names = {module: name for name, module in self._modules.items()}

        def see(module: torch.nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            x = args[0] if args else next(iter(keywords.values()))
            self._seen.see(names[module], Input(module, x, None))

        for module in names:
            self.register_hook(module, see, "forward_pre", with_kwargs=True)

    def _count(self, given: Input, found: SharedSum) -> None:
        """Add an input to the sum of the layers that share it."""
        rows = given.x.detach().reshape(-1, given.x.shape[-1])
        rows = rows.to("cpu", torch.float64 if rows.dtype == torch.float64 else torch.float32).contiguous()
        if not found.parts:
            found.parts, found.rows = [torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)], [0]
        found.rows[0] += len(rows)
        if len(rows):
            _core.add_gram(as_matrix(rows, name="x"), found.parts[0].numpy(), self._options.threads)

    @torch.no_grad()
    def on_sequential_epoch_end(self, state: Any, event: Any, modules: Any = None, **kwargs: Any) -> None:
        """Prune and refit the layers that have seen the samples since the last time."""
        self._seen.settle()
        sums: dict[int, InputSums] = {
            id(found): InputSums.of(found.parts[0].numpy(), found.rows[0]) for found in self._seen.distinct()
        }
        by_tensor = {f"{name}.weight": (sums[id(found)], InputSums()) for name, found in self._seen.sums.items()}
        names = [name for name in self._modules if name in self._seen.sums]
        self._seen = SharedInputs(self._count)
        sites = []
        for name in names:
            with align_module_device(self._modules[name]):
                weight = self._modules[name].weight.detach().clone()
            sites.append(Site(f"{name}.weight", f"{name}.weight", weight))
        counts = {f"{name}.weight": self._pruned[name] for name in names}
        fitted = fit_block(list(sites), by_tensor, self._options, counts)
        for name, site in zip(names, sites, strict=True):
            update_offload_parameter(self._modules[name], "weight", site.parameter)
        self._report |= {row.name.removesuffix(".weight"): row for row in fitted.report}

    def on_calibration_end(self, state: Any, event: Any, **kwargs: Any) -> None:
        """Stop watching."""
        self.remove_hooks()
        if self.unseen:
            text = f"{len(self.unseen)} layers have seen no inputs and stay dense, among them {self.unseen[0]}"
            warn_caller("MPFastModifier", text)
        warn_caller("MPFastModifier", few_inputs(self.report))


def _listed(names: str | list[str]) -> list[str]:
    return [names] if isinstance(names, str) else names


ModifierFactory.register("MPFastModifier", MPFastModifier)
