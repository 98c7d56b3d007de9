"""Certificates of a pruned PyTorch model, layer by layer in an order for which the bounds may be added up."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mpfast.integrations.torch.layers import input_rows, watch_input
from mpfast.integrations.torch.magnification import is_last, magnification_behind, what_changes
from mpfast.masks import (
    BOUND,
    ESTIMATE,
    EXACT,
    PROXY,
    Labelled,
    LayerCertificate,
    RemovedWeights,
    margin_safe,
    worst_cross_entropy,
)
from mpfast.support import ConvergenceWarning, InvalidValueError, front_door, summary_of_unmet, warn_caller

__all__ = ["ModelCertificate", "certify"]

Array = NDArray[np.float64]
Factor = Callable[[str, Any], float]

_LAYERS = (torch.nn.Linear, torch.nn.Conv2d)


@dataclass(frozen=True)
class ModelCertificate:
    """What pruning did to a model on the samples it was shown, and what it can have done at most.

    Attributes
    ----------
    layers : tuple of LayerCertificate
        In the order in which they are pruned.
    order : str
        ``"input_to_output"``: each layer sees the activations of the pruned layers before it, and what comes after is
        dense. ``"output_to_input"``: the other way round. Only within one order may the budgets be added up.
    eta : Labelled
        Mean over samples of the sum of the layers' eta: how far a logit moves.
    budget : Labelled
        Sum of the layers' budgets: how much the mean cross-entropy changes.
    margin_safe : Labelled
        Share of the samples whose prediction cannot have changed by `eta`.
    realised_eta : array
        ``||z_dense - z_pruned||_inf`` per sample, by two forward passes.
    realised_margin_safe : Labelled
        Share of the samples whose prediction cannot change by that.
    changed : Labelled
        Share of the predictions that have changed.
    attribution : dict of str to float
        Mean shift of the logits by each layer when the layers are pruned one by one; their sum bounds the mean of
        `realised_eta`.
    loss_change, worst_loss_change : Labelled, optional
        Change of the mean cross-entropy, and the worst that `realised_eta` would allow, where labels were given.
    """

    layers: tuple[LayerCertificate, ...]
    order: str
    eta: Labelled
    budget: Labelled
    margin_safe: Labelled
    realised_eta: Array
    realised_margin_safe: Labelled
    changed: Labelled
    attribution: dict[str, float]
    loss_change: Labelled | None
    worst_loss_change: Labelled | None

    def to_rows(self) -> list[dict[str, Any]]:
        """One dictionary per layer, for a table."""
        return [layer.to_dict() for layer in self.layers]


@torch.no_grad()
@front_door
def certify(
    model: torch.nn.Module,
    masks: Mapping[str, Any],
    batches: Iterable[torch.Tensor],
    *,
    labels: Iterable[torch.Tensor] | None = None,
    order: str = "input_to_output",
    lipschitz: str | Factor = "unscaled",
    delta: float = 0.05,
) -> ModelCertificate:
    """Certify the pruning of a model on some samples.

    Parameters
    ----------
    model : Module
        The dense model, from a batch (samples first) to logits (samples, classes). A copy of it is put in evaluation
        and given the samples one by one.
    masks : mapping of str to array
        From parameter name to mask, of Linear and Conv2d weights (groups = 1) that each run once per forward pass: of
        these classes themselves, without hooks or parametrizations, their weights used by no other module.
    batches : iterable of Tensor
    labels : iterable of Tensor, optional
        True classes, batch by batch.
    order : str
        In which the layers are pruned: ``"input_to_output"`` or ``"output_to_input"``.
    lipschitz : str or callable
        What the network after a layer magnifies by. ``"unscaled"``: 1, and the result is only a proxy.
        ``"product"``: the product of what each module magnifies by, a bound; for Sequential models of modules that
        `magnification` knows.
        ``"jacobian"``: that of the derivative at the sample, an estimate; a backward pass per class and layer. Or a
        function of (parameter name, sample) that returns a bound.
    delta : float
        As in `RemovedWeights.certificate`.

    Raises
    ------
    ValueError
        An option is unknown, a mask does not fit, there is no sample, a layer computes something else than its class
        says, the model does not repeat itself, or a magnification is not known.

    Warns
    -----
    ConvergenceWarning
        Once, as `RemovedWeights.certificate`.
    """
    if order not in ("input_to_output", "output_to_input"):
        raise InvalidValueError("order", f"must be 'input_to_output' or 'output_to_input', not {order!r}")
    if not callable(lipschitz) and lipschitz not in ("unscaled", "product", "jacobian"):
        raise InvalidValueError("lipschitz", f"must be unscaled, product, jacobian or a function, not {lipschitz!r}")
    _check_layers(model, masks)
    dense = copy.deepcopy(model).eval()
    pruned = _pruned(dense, masks)
    samples = [sample for batch in batches for sample in batch.split(1)]
    if not samples:
        raise InvalidValueError("", "there is no sample")
    _check_evaluation(dense, samples[0])
    names = _in_order_of_execution(dense, [name.removesuffix(".weight") for name in masks], samples[0])
    if order == "output_to_input":
        names = names[::-1]
    # Before a layer the network is as pruned as the order says, behind it the other way round.
    before, behind = (pruned, dense) if order == "input_to_output" else (dense, pruned)
    removed = {name: RemovedWeights(dense.get_submodule(name).weight, masks[f"{name}.weight"], name) for name in names}
    products = {name: magnification_behind(behind, name) for name in names} if lipschitz == "product" else {}
    for sample in samples:
        seen = _inputs(before, names, sample)
        for name in names:
            factor = 1.0
            if callable(lipschitz):
                factor = float(lipschitz(f"{name}.weight", sample))
            elif lipschitz == "product":
                factor = products[name]
            elif lipschitz == "jacobian":
                factor = _jacobian_norm(dense, pruned, order, name, names, sample)
            rows = torch.cat(list(input_rows(dense.get_submodule(name), seen[name]))).double()
            removed[name].add(rows.cpu().numpy(), factor)
    kind = {"unscaled": "unscaled", "product": BOUND, "jacobian": ESTIMATE}.get(str(lipschitz), BOUND)
    layers = tuple(
        weights.summary(kind if callable(lipschitz) or not is_last(dense, name) else EXACT, delta=delta)
        for name, weights in removed.items()
    )
    unmet = {layer.name: layer.unmet_tolerance for layer in layers}
    warn_caller("certify", summary_of_unmet(unmet), ConvergenceWarning)
    return _summed_up(dense, pruned, layers, order, samples, labels, _attribution(dense, pruned, names, samples))


def _check_layers(model: torch.nn.Module, masks: Mapping[str, Any]) -> None:
    """Raise ValueError unless each mask is for the weight of a layer that does with it what its class says."""
    for name, mask in masks.items():
        module = model.get_submodule(name.removesuffix(".weight")) if name.endswith(".weight") else None
        if not isinstance(module, _LAYERS):
            raise InvalidValueError(name, "is not the weight of a Linear or Conv2d")
        own_class = type(module) not in _LAYERS
        changed = what_changes(module) or ("with a class of its own" if own_class else "")
        if changed:
            raise InvalidValueError(
                f"masks[{name!r}]",
                f"is for a {type(module).__name__} {changed}: what its weights do to the output is not known",
                "" if own_class else "make masks and parametrizations permanent, and remove hooks, first",
            )
        if isinstance(module, torch.nn.Conv2d) and module.groups != 1:
            raise InvalidValueError(name, "belongs to a grouped convolution")
        if torch.as_tensor(mask).shape != module.weight.shape:
            raise InvalidValueError(f"the mask of {name}", "has not its shape")
        others = _sharing(model, module.weight) - {name}
        if others:
            raise InvalidValueError(f"masks[{name!r}]", f"is for a weight that is also {', '.join(sorted(others))}")


def _pruned(model: torch.nn.Module, masks: Mapping[str, Any]) -> torch.nn.Module:
    result = copy.deepcopy(model)
    for name, mask in masks.items():
        weight = result.get_parameter(name)
        weight.mul_(torch.as_tensor(mask).to(weight.device))
    return result


def _sharing(model: torch.nn.Module, weight: torch.Tensor) -> set[str]:
    """Names of all parameters and buffers that lie in the memory of a weight."""
    place = weight.untyped_storage().data_ptr()
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name for name, tensor in named if tensor.untyped_storage().data_ptr() == place}


def _check_evaluation(model: torch.nn.Module, sample: torch.Tensor) -> None:
    """Raise ValueError unless the whole model is in evaluation and computes the same twice."""
    training = [name or "itself" for name, module in model.named_modules() if module.training]
    if training:
        raise InvalidValueError("model", f"stays in training after eval(): {training[0]}")
    first, second = (model(sample) for _ in range(2))
    # Sums in another order are what some kernels of a GPU differ by from one run to the next.
    slack = float(first.abs().max()) * torch.finfo(first.dtype).eps ** 0.5
    if float((first - second).abs().max()) > slack:
        raise InvalidValueError("model", "computes something else each time, in evaluation too")


def _in_order_of_execution(model: torch.nn.Module, names: list[str], sample: torch.Tensor) -> list[str]:
    order: list[str] = []
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: order.append(name)) for name in names
    ]
    model(sample)
    for hook in hooks:
        hook.remove()
    if sorted(order) != sorted(names):
        raise InvalidValueError("", "every pruned layer must run exactly once in a forward pass")
    return order


def _inputs(model: torch.nn.Module, names: list[str], sample: torch.Tensor) -> dict[str, torch.Tensor]:
    seen: dict[str, torch.Tensor] = {}

    def see(name: str, x: torch.Tensor) -> None:
        seen[name] = x.detach()

    hooks = [watch_input(model.get_submodule(name), partial(see, name)) for name in names]
    model(sample)
    for handle in hooks:
        handle.remove()
    return seen


def _jacobian_norm(
    dense: torch.nn.Module, pruned: torch.nn.Module, order: str, name: str, names: list[str], sample: torch.Tensor
) -> float:
    """Largest absolute row sum of the derivative of the logits by the output of a layer."""
    # The network with this layer's predecessors pruned and its successors dense, or the other way round.
    at = names.index(name)
    mixed = copy.deepcopy(dense)
    for other in names[: at + 1]:
        mixed.get_submodule(other).weight.copy_(pruned.get_submodule(other).weight)
    taken: list[torch.Tensor] = []

    def hook(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        taken.append(output.detach().requires_grad_(True))
        return taken[0]

    handle = mixed.get_submodule(name).register_forward_hook(hook)
    with torch.enable_grad():
        logits = mixed(sample)
        rows = [
            float(torch.autograd.grad(logit, taken[0], retain_graph=True)[0].abs().sum())
            for logit in logits.reshape(-1)
        ]
    handle.remove()
    return max(rows)


def _attribution(
    dense: torch.nn.Module, pruned: torch.nn.Module, names: list[str], samples: list[torch.Tensor]
) -> dict[str, float]:
    mixed = copy.deepcopy(dense)
    before = _logits(mixed, samples)
    result = {}
    for name in names:
        mixed.get_submodule(name).weight.copy_(pruned.get_submodule(name).weight)
        after = _logits(mixed, samples)
        result[name] = float((after - before).abs().amax(dim=1).double().mean())
        before = after
    return result


def _logits(model: torch.nn.Module, samples: list[torch.Tensor]) -> torch.Tensor:
    """Of each sample by itself, as the layers have been looked at: a batch may change what a module does."""
    return torch.cat([model(sample) for sample in samples])


def _summed_up(
    dense: torch.nn.Module,
    pruned: torch.nn.Module,
    layers: tuple[LayerCertificate, ...],
    order: str,
    samples: list[torch.Tensor],
    labels: Iterable[torch.Tensor] | None,
    attribution: dict[str, float],
) -> ModelCertificate:
    old, new = (_logits(model, samples).double().cpu() for model in (dense, pruned))
    realised = (old - new).abs().amax(dim=1).numpy()
    eta = np.sum([layer.eta for layer in layers], axis=0)
    kinds = {layer.budget.kind for layer in layers}
    kind = next(kind for kind in (PROXY, ESTIMATE, BOUND) if kind in kinds)
    loss_change = worst = None
    if labels is not None:
        truth = torch.cat(list(labels)).cpu()
        worst = Labelled(
            float(worst_cross_entropy(logits=old.numpy(), labels=truth.numpy(), eta=realised).mean()), BOUND
        )
        losses = [torch.nn.functional.cross_entropy(z, truth, reduction="none").numpy() for z in (old, new)]
        loss_change = Labelled(float(losses[1].mean() - losses[0].mean()), EXACT)
    return ModelCertificate(
        layers,
        order,
        eta=Labelled(float(eta.mean()), kind),
        budget=Labelled(sum(layer.budget.value for layer in layers), kind),
        margin_safe=Labelled(float(margin_safe(old.numpy(), eta).mean()), kind),
        realised_eta=realised,
        realised_margin_safe=Labelled(float(margin_safe(old.numpy(), realised).mean()), EXACT),
        changed=Labelled(float((old.argmax(dim=1) != new.argmax(dim=1)).double().mean()), EXACT),
        attribution=attribution,
        loss_change=loss_change,
        worst_loss_change=worst,
    )
