"""A pass of Olive that prunes a model of transformers, with data or without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from olive.common.config_utils import validate_config
from olive.data.config import DataConfig
from olive.model import HfModelHandler
from olive.passes import Pass
from olive.passes.olive_pass import PassConfigParam
from olive.passes.pytorch.common import inherit_hf_from_hf

from mpfast.integrations.torch.whole_models import reconstruct_model
from mpfast.models import DEFAULT_FIT, DEFAULT_STEPS, Budget, prune
from mpfast.support import InvalidTypeError, InvalidValueError

__all__ = ["PACKAGE_CONFIG", "MPFastPrune"]

#: The file that tells Olive of the pass, for ``olive run --package-config``.
PACKAGE_CONFIG = str(Path(__file__).with_name("package_config.json"))


class MPFastPrune(Pass):
    """Prune a model of transformers; with data, what is kept is refitted to what the layers see, block by block.

    Olive's own pass SparseGPT knows five families of models and one sparsity for all layers; this one goes by what
    `mpfast.integrations.torch.reconstruct_model` does, and without data by `mpfast.prune`. Olive is told of it by
    ``olive run --package-config FILE``, `PACKAGE_CONFIG` being the file, or by ``olive.workflows.run(...,
    package_config=FILE)``. The zeros stay zeros in what later passes make of the model, as far as these keep weights.

    Parameters
    ----------
    sparsity : float, optional
        Share of the entries of the pruned layers that go. Or `pattern`, ``"2:4"``, n of every m consecutive inputs
        stay; or `budget`, a file of a budget (``.json``), or beside `sparsity` the name of one of
        `mpfast.models.METHODS` that shares it out.
    method : str, optional
        What goes: without data one of `mpfast.models.METHODS`, with data one of `mpfast.models.FITTED_METHODS`. Default
        the best that was measured.
    refit, damping
        With data, as in `reconstruct_model`.
    include, exclude : str or list of str, optional
        Names of tensors, as in `mpfast.analyze`.
    data_config : DataConfig or dict, optional
        Olive's data: batches that the model is called with, of the kind it is to do well on.

    Raises
    ------
    TypeError
        The model is no HfModelHandler.
    ValueError
        An option is out of range or does not go with another, the model has an adapter, or as the functions above.
    """

    @classmethod
    def _default_config(cls, accelerator_spec: Any) -> dict[str, Any]:
        def option(kind: Any, description: str) -> Any:
            return PassConfigParam(type_=kind, default_value=None, description=description)

        names = str | list[str]
        return {
            "sparsity": option(float, "Share of the entries that go."),
            "pattern": option(str, "n:m, n of every m consecutive inputs stay."),
            "budget": option(str, "File of a budget (.json), or the name of what shares the sparsity out."),
            "method": option(str, "What chooses the entries."),
            "refit": option(int, "Steps of the refit, with data."),
            "damping": option(float, "Share of the mean of the diagonal that is added to second moments, with data."),
            "include": option(names, "Patterns of names of tensors to prune."),
            "exclude": option(names, "Patterns of names of tensors to leave dense."),
            "data_config": option(DataConfig | dict, "Data to fit the layers to."),
        }

    def _run_for_config(self, model: Any, config: Any, output_model_path: str) -> Any:
        if not isinstance(model, HfModelHandler):
            advice = "put it before the passes that convert the model"
            raise InvalidTypeError("model", f"must be an HfModelHandler, not {type(model).__name__}", advice)
        if model.adapter_path:
            raise InvalidValueError("model", "has an adapter", "merge it first")
        network = model.load_model(cache_model=False).eval()
        _prune(network, config)
        network.save_pretrained(output_model_path)
        model.save_metadata(output_model_path)
        return inherit_hf_from_hf(model, output_model_path)


@torch.no_grad()
def _prune(network: torch.nn.Module, config: Any) -> None:
    """Prune a model in place."""
    budget = config.budget
    if budget is not None and budget.endswith(".json"):
        budget = Budget.from_json(budget)
    named = {"include": config.include, "exclude": config.exclude}
    asked = {"sparsity": config.sparsity, "pattern": config.pattern, "budget": budget}
    if config.data_config is None:
        if config.refit is not None or config.damping is not None:
            raise InvalidValueError("refit and damping", "are of fits to data", "give a data_config")
        result = prune(network, method=config.method, progress=False, **asked, **named)
        assert result.masks is not None, "a model in memory has its masks in memory"
        for name, mask in result.masks.items():
            network.get_parameter(name).mul_(mask)
        return
    data = validate_config(config.data_config, DataConfig).to_data_container().create_dataloader()
    reconstruct_model(
        network,
        [batch for batch, _ in data],  # Olive's batches come with labels
        method=config.method or DEFAULT_FIT,
        refit=DEFAULT_STEPS if config.refit is None else config.refit,
        damping=config.damping,
        inplace=True,
        **asked,
        **named,
    )
