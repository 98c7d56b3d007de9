"""A sparsity mode of ModelOpt: layers pruned and refitted by `mpfast.reconstruct` to the inputs that they see."""

from __future__ import annotations

from typing import Any

import torch
from modelopt.torch.opt.config import get_kwargs_for_create_model_with_rules
from modelopt.torch.opt.searcher import BaseSearcher
from modelopt.torch.sparsity.weight_sparsity.mode import SparseMagnitudeModeDescriptor, SparsityModeRegistry
from modelopt.torch.sparsity.weight_sparsity.module import SpDMRegistry
from modelopt.torch.sparsity.weight_sparsity.searcher import BaseSparseSearcher
from pydantic import create_model

from mpfast.integrations.torch.calibration import SecondMoments
from mpfast.integrations.torch.fit_options import FitOptions
from mpfast.integrations.torch.input_sums import InputSums
from mpfast.integrations.torch.layer_counts import as_budget, pruned_entries
from mpfast.integrations.torch.layer_fits import fit_block
from mpfast.integrations.torch.sites import Site
from mpfast.models import DEFAULT_FIT, DEFAULT_STEPS
from mpfast.support import InvalidValueError, floor_count, thread_count, warn_caller

__all__ = ["MPFastMode", "MPFastSearcher"]

_OWN_OPTIONS = {
    "pattern": None,
    "sparsity": None,
    "budget": None,
    "method": DEFAULT_FIT,
    "refit": DEFAULT_STEPS,
    "damping": None,
    "threads": None,
}
_RULES = {"nn.Linear": {"*": {}, "*lm_head*": None}, "nn.Conv2d": {"*": None}}
_Config: Any = create_model(
    "MPFastConfig",
    **get_kwargs_for_create_model_with_rules(
        registry=SpDMRegistry, default_rules=_RULES, doc='Configuration for the ``"mpfast"`` mode.'
    ),
)


class MPFastSearcher(BaseSparseSearcher):
    """What the mode ``"mpfast"`` does to the layers that its rules choose; see `MPFastMode`."""

    _options: FitOptions

    @property
    def default_search_config(self) -> dict[str, Any]:
        """ModelOpt's options, and ours."""
        return {**super().default_search_config, **_OWN_OPTIONS}

    def sanitize_search_config(self, config: dict[str, Any] | None) -> dict[str, Any]:
        """Check options: not by the rule of ModelOpt's own searchers, which know 2:4 alone."""
        found: dict[str, Any] = BaseSearcher.sanitize_search_config(self, config)
        self._options = self._options_of(found)
        return found

    def _options_of(self, config: dict[str, Any]) -> FitOptions:
        budget = None if config["budget"] is None else as_budget(config["budget"])
        pattern = config["pattern"]
        if pattern is None and budget is None and config["sparsity"] is None:
            pattern = "2:4"
        threads = torch.get_num_threads() if config["threads"] is None else config["threads"]
        return FitOptions(
            config["sparsity"],
            pattern.removesuffix(" sparsity") if isinstance(pattern, str) else pattern,  # as ModelOpt writes it
            rank=None,
            budget=budget,
            bits=None,
            group=None,
            method=config["method"],
            refit=config["refit"],
            damping=config["damping"],
            sequential=False,
            toward="own",
            heldout=0.0,
            threads=thread_count(threads),
        )

    def _check_weight_size(self, weight: torch.Tensor, mod_name: str) -> bool:
        groups = self._options.groups
        if groups is not None and weight.shape[1] % groups[1]:
            text = f"{mod_name} stays dense: its {weight.shape[1]} inputs are no multiple of {groups[1]}"
            warn_caller("MPFastMode", text)
            return False
        return True

    def _compute_mask(self, module: Any) -> torch.Tensor:
        raise AssertionError("run_search sets all masks")

    @torch.no_grad()
    def run_search(self) -> None:
        """Collect what the layers see, prune and refit them, and set their masks."""
        if self.forward_loop is None:
            raise InvalidValueError("config", "has no data_loader and no forward_loop", "the layers are fitted to data")
        options = self._options
        modules: dict[str, Any] = {
            name: module
            for name, module in self._named_sparsifiable_modules()
            if isinstance(module, torch.nn.Linear)  # what convolutions see is more than rows
        }
        counts = self._counts(options, modules)
        if not counts:
            raise InvalidValueError("", "no layer is left to prune")
        with SecondMoments(self.model, include=counts.__contains__, folds=1, threads=options.threads) as moments:
            self.forward_loop(self.model)
        unseen = [name for name in counts if name not in moments]
        if unseen:
            warn_caller(
                "MPFastMode", f"{len(unseen)} layers have seen no inputs and stay dense, among them {unseen[0]}"
            )
        sums: dict[str, InputSums] = {}
        sites = []
        for name in counts:
            if name in moments:
                weight = modules[name]._parameters["weight"]
                sites.append(Site(f"{name}.weight", f"{name}.weight", weight))
                first = moments.shared.get(name, name)
                if first not in sums:
                    sums[first] = InputSums.of(moments[first].cpu().numpy() * moments.rows[first], moments.rows[first])
                sums[name] = sums[first]
        by_tensor = {f"{name}.weight": (found, InputSums()) for name, found in sums.items()}
        fitted = fit_block(sites, by_tensor, options, {f"{name}.weight": count for name, count in counts.items()})
        for name, module in modules.items():
            module.set_mask(fitted.masks.get(f"{name}.weight"))

    def _counts(self, options: FitOptions, modules: dict[str, Any]) -> dict[str, int]:
        if options.budget is None:
            return {name: floor_count(options.share, module.weight.numel()) for name, module in modules.items()}
        counts = pruned_entries(options.budget, self.model)
        if (missing := next((name for name in counts if name not in modules), None)) is not None:
            advice = "change the rules of the mode, or leave it out of the budget"
            raise InvalidValueError("budget", f"has {missing}, which is none of ModelOpt's sparse modules", advice)
        return counts


class MPFastMode(SparseMagnitudeModeDescriptor):
    """ModelOpt's mode ``"mpfast"``: masks by what the layers see, and the weights that are kept refitted to it.

    An import registers it, for ``modelopt.torch.sparsity.weight_sparsity.sparsify(model, "mpfast", config)`` and for
    ``modelopt.torch.opt.restore`` of what was saved. ModelOpt's own ``"sparsegpt"`` finds masks by data, 2:4 only, and
    leaves the weights as they were.

    Its configuration, ``sparsify(model, [("mpfast", rules)], config)``, are ModelOpt's rules by kind of module and
    wildcard: by default all Linear modules but those named ``*lm_head*``. Convolutions are left out in any case. The
    options of the search are those of ModelOpt (``data_loader``, ``collect_func``, ``forward_loop``, ...) and these:

    Parameters
    ----------
    pattern : str
        ``"2:4"``, n of every m consecutive inputs stay; the default. Or `sparsity`, the share of the entries of each
        layer that go; or `budget`, a `mpfast.Budget` or its file, which says how many entries of each layer go.
    method, refit, damping
        As in `mpfast.integrations.torch.reconstruct_model`, whose results are better where the model has blocks: here
        all layers are fitted at once to what they see in the dense model.
    threads : int, optional
        Of what the core does. Default those of PyTorch.

    Raises
    ------
    ValueError
        An option is out of range or does not go with another, there is no data, no layer is left, or the budget is of
        another model or of layers that the rules leave out.

    Warns
    -----
    UserWarning
        Of layers that have seen fewer than 4 inputs per dimension, or none, or whose inputs the pattern does not fit.
    """

    @property
    def name(self) -> str:
        """What it is asked for by."""
        return "mpfast"

    @property
    def config_class(self) -> Any:
        """Which modules it converts."""
        return _Config

    @property
    def search_algorithm(self) -> type[BaseSearcher]:
        """What finds masks and weights."""
        return MPFastSearcher


SparsityModeRegistry.register_mode(MPFastMode)
