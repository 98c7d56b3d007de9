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

__all__ = ["ModelCertificate", "certify", "magnification"]

Array = NDArray[np.float64]
Factor = Callable[[str, Any], float]

# How much the largest entry of a difference grows at most.
_GROWTH = {
    torch.nn.ReLU: 1.0,
    torch.nn.ReLU6: 1.0,
    torch.nn.Tanh: 1.0,
    torch.nn.Sigmoid: 0.25,
    torch.nn.GELU: 1.13,
    torch.nn.SiLU: 1.1,
    torch.nn.Identity: 1.0,
    torch.nn.Dropout: 1.0,
    torch.nn.Flatten: 1.0,
    torch.nn.MaxPool2d: 1.0,
    torch.nn.AvgPool2d: 1.0,
    torch.nn.AdaptiveAvgPool2d: 1.0,
    torch.nn.AdaptiveMaxPool2d: 1.0,
}


@front_door
def magnification(module: torch.nn.Module) -> float:
    """How much a module, in evaluation, magnifies the largest entry of a difference of its inputs, at most.

    Raises
    ------
    ValueError
        It is not known for this kind of module.
    """
    if isinstance(module, torch.nn.Sequential):
        product = 1.0
        for part in module:
            product *= magnification(part)
        return product
    if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
        weight = module.weight.detach().double()
        return float(weight.abs().reshape(len(weight), -1).sum(dim=1).max())
    if isinstance(module, torch.nn.LeakyReLU):
        return max(1.0, abs(float(module.negative_slope)))
    if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)) and module.running_var is not None:
        scale = 1 / (module.running_var.double() + module.eps).sqrt()
        return float((scale if module.weight is None else scale * module.weight.detach().double().abs()).max())
    if type(module) in _GROWTH:
        return _GROWTH[type(module)]
    raise InvalidValueError("", f"not known for {type(module).__name__}")


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


@front_door
@torch.no_grad()
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
        The dense model, from a batch (samples first) to logits (samples, classes). Put in evaluation while it runs.
    masks : mapping of str to array
        From parameter name to mask, of Linear and Conv2d weights (groups = 1) that each run once per forward pass.
    batches : iterable of Tensor
    labels : iterable of Tensor, optional
        True classes, batch by batch.
    order : str
        In which the layers are pruned: ``"input_to_output"`` or ``"output_to_input"``.
    lipschitz : str or callable
        What the network after a layer magnifies by. ``"unscaled"``: 1, and the result is only a proxy.
        ``"product"``: the product of what each module magnifies by, a bound; for Sequential models of known modules.
        ``"jacobian"``: that of the derivative at the sample, an estimate; a backward pass per class and layer. Or a
        function of (parameter name, sample) that returns a bound.
    delta : float
        As in `RemovedWeights.certificate`.

    Raises
    ------
    ValueError
        An option is unknown, a mask does not fit, there is no sample, or a magnification is not known.

    Warns
    -----
    ConvergenceWarning
        Once, as `RemovedWeights.certificate`.
    """
    if order not in ("input_to_output", "output_to_input"):
        raise InvalidValueError("order", f"must be 'input_to_output' or 'output_to_input', not {order!r}")
    if not callable(lipschitz) and lipschitz not in ("unscaled", "product", "jacobian"):
        raise InvalidValueError("lipschitz", f"must be unscaled, product, jacobian or a function, not {lipschitz!r}")
    dense = copy.deepcopy(model).eval()
    pruned = _pruned(dense, masks)
    samples = [sample for batch in batches for sample in batch.split(1)]
    if not samples:
        raise InvalidValueError("", "there is no sample")
    names = _in_order_of_execution(dense, [name.removesuffix(".weight") for name in masks], samples[0])
    if order == "output_to_input":
        names = names[::-1]
    # Before a layer the network is as pruned as the order says, behind it the other way round.
    before, behind = (pruned, dense) if order == "input_to_output" else (dense, pruned)
    removed = {name: RemovedWeights(dense.get_submodule(name).weight, masks[f"{name}.weight"], name) for name in names}
    products = {name: _magnification_behind(behind, name) for name in names} if lipschitz == "product" else {}
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
        weights.summary(kind if callable(lipschitz) or not _is_last(dense, name) else EXACT, delta=delta)
        for name, weights in removed.items()
    )
    unmet = {layer.name: layer.unmet_tolerance for layer in layers}
    warn_caller("certify", summary_of_unmet(unmet), ConvergenceWarning)
    return _summed_up(dense, pruned, layers, order, samples, labels, _attribution(dense, pruned, names, samples))


def _pruned(model: torch.nn.Module, masks: Mapping[str, Any]) -> torch.nn.Module:
    result = copy.deepcopy(model)
    for name, mask in masks.items():
        module = result.get_submodule(name.removesuffix(".weight")) if name.endswith(".weight") else None
        if not isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            raise InvalidValueError(name, "is not the weight of a Linear or Conv2d")
        if isinstance(module, torch.nn.Conv2d) and module.groups != 1:
            raise InvalidValueError(name, "belongs to a grouped convolution")
        tensor = torch.as_tensor(mask)
        if tensor.shape != module.weight.shape:
            raise InvalidValueError(f"the mask of {name}", "has not its shape")
        module.weight.mul_(tensor.to(module.weight.device))
    return result


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


def _flat(model: torch.nn.Module, prefix: str = "") -> list[tuple[str, torch.nn.Module]]:
    """Modules of nested Sequentials, in order."""
    if not isinstance(model, torch.nn.Sequential):
        return [(prefix, model)]
    return [pair for name, part in model.named_children() for pair in _flat(part, f"{prefix}.{name}".lstrip("."))]


def _magnification_behind(model: torch.nn.Module, name: str) -> float:
    parts = _flat(model)
    at = [part for part, _ in parts].index(name) if name in dict(parts) else None
    if at is None:
        raise InvalidValueError("lipschitz='product'", f"is for Sequential models, and {name} is not a part of one")
    return float(np.prod([magnification(part) for _, part in parts[at + 1 :]]))


def _is_last(model: torch.nn.Module, name: str) -> bool:
    """Whether nothing comes after a layer that could magnify: its factor is 1, exactly."""
    parts = _flat(model)
    return isinstance(model, torch.nn.Sequential) and parts[-1][0] == name


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
    inputs = torch.cat(samples)
    mixed = copy.deepcopy(dense)
    before = mixed(inputs)
    result = {}
    for name in names:
        mixed.get_submodule(name).weight.copy_(pruned.get_submodule(name).weight)
        after = mixed(inputs)
        result[name] = float((after - before).abs().amax(dim=1).double().mean())
        before = after
    return result


def _summed_up(
    dense: torch.nn.Module,
    pruned: torch.nn.Module,
    layers: tuple[LayerCertificate, ...],
    order: str,
    samples: list[torch.Tensor],
    labels: Iterable[torch.Tensor] | None,
    attribution: dict[str, float],
) -> ModelCertificate:
    inputs = torch.cat(samples)
    old, new = (model(inputs).double().cpu() for model in (dense, pruned))
    realised = (old - new).abs().amax(dim=1).numpy()
    eta = np.sum([layer.eta for layer in layers], axis=0)
    kinds = {layer.budget.kind for layer in layers}
    kind = next(kind for kind in (PROXY, ESTIMATE, BOUND) if kind in kinds)
    loss_change = worst = None
    if labels is not None:
        truth = torch.cat(list(labels)).cpu()
        losses = [torch.nn.functional.cross_entropy(z, truth, reduction="none").numpy() for z in (old, new)]
        loss_change = Labelled(float(losses[1].mean() - losses[0].mean()), EXACT)
        worst = Labelled(float(worst_cross_entropy(losses[0], realised).mean()), BOUND)
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
