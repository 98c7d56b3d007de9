"""How much a loss depends on the outputs of a model's layers: mean squares of its gradients in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from mpfast.checkpoints import NameFilter
from mpfast.integrations.torch.block_streams import first_tensor
from mpfast.integrations.torch.layers import watchable_modules
from mpfast.support import InvalidTypeError, InvalidValueError, check_seed, front_door

__all__ = ["output_gradients"]

#: From what the model returns and the batch to a number.
Loss = Callable[[Any, Any], torch.Tensor]


@front_door
def output_gradients(
    model: torch.nn.Module,
    batches: Iterable[Any],
    *,
    loss: Loss | None = None,
    include: NameFilter | None = None,
    exclude: NameFilter | None = None,
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """Mean squares of the gradients of a loss in the outputs of linear layers and convolutions: Gauss-Newton's weights.

    With them, ``w_ij^2 C_jj G_i`` is what an entry adds to the loss, to second order: ``method="gauss_newton"`` of
    `mpfast.models.share_out` and `mpfast.prune`, and `mpfast.reconstruct.lowrank_pooled` take them. A few thousand
    tokens are enough.

    Parameters
    ----------
    model : Module
        Run in evaluation mode; neither it nor the gradients of its parameters are changed.
    batches : iterable
        What the model is called with, ``model(**batch)`` for mappings. Places that are zero in ``attention_mask`` are
        padding, and not counted.
    loss : function, optional
        From what the model returns and the batch to a number. Default: where the model returns ``logits``, the
        cross-entropy of labels drawn from its own predictions; else a random direction of the first tensor that it
        returns, anew for every place.
    include, exclude : optional
        As in `prunable_modules`.
    seed : int
        Of the labels and directions.

    Returns
    -------
    dict of str to Tensor
        By module, (out,), float64, on the CPU.

    Raises
    ------
    ValueError
        There are no batches, no module is left, or the loss is not one finite number or depends on the outputs of none.
    TypeError
        `loss` is no function, or returns no tensor.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    >>> found = output_gradients(model, [torch.randn(20, 4)], loss=lambda output, _: output[:, 0].sum())
    >>> found["2"].tolist()
    [1.0, 0.0]
    """
    if loss is not None and not callable(loss):
        raise InvalidTypeError("loss", f"must be a function of output and batch, not {type(loss).__name__}")
    modules = watchable_modules(model, include, exclude)
    if not modules:
        raise InvalidValueError("", "no module is left to watch")
    generator = torch.Generator().manual_seed(check_seed(seed))
    watched = _Watched(modules)
    ran = False
    with _frozen(model), watched.open(), torch.enable_grad():
        for batch in batches:
            ran = True
            watched.valid = _valid(batch)
            output = model(**batch) if isinstance(batch, Mapping) else model(batch)
            value = _of_own_predictions(output, watched.valid, generator) if loss is None else loss(output, batch)
            _check_loss(value)
            value.backward()
    if not ran:
        raise InvalidValueError("batches", "are empty")
    return watched.means()


class _Watched:
    """Sums the squares of what flows back into the outputs of modules.

    Attributes
    ----------
    valid
        Which places of the batch are no padding; None where all are.
    """

    def __init__(self, modules: Mapping[str, torch.nn.Module]) -> None:
        self._modules = modules
        self._sums: dict[str, torch.Tensor] = {}
        self._rows: dict[str, int] = {}
        self.valid: torch.Tensor | None = None

    @contextmanager
    def open(self) -> Iterator[None]:
        """Watch while the context is open."""
        handles = [module.register_forward_hook(self._hook(name)) for name, module in self._modules.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def means(self) -> dict[str, torch.Tensor]:
        """Mean squares, of the modules that anything flowed back to."""
        return {name: total.cpu() / max(self._rows[name], 1) for name, total in self._sums.items()}

    def _hook(self, name: str) -> Callable[..., torch.Tensor]:
        def watch(module: torch.nn.Module, _given: Any, output: torch.Tensor) -> torch.Tensor:
            # Parameters are frozen: the graph begins at the first outputs.
            found = output if output.requires_grad else output.detach().requires_grad_()
            channels = isinstance(module, torch.nn.Conv2d)
            valid = self.valid

            def add(gradient: torch.Tensor) -> None:
                places = gradient.movedim(1, -1) if channels and gradient.dim() == 4 else gradient
                padded = valid is not None and valid.shape == places.shape[:-1]
                rows = places[valid.to(places.device)] if padded and valid is not None else places.flatten(0, -2)
                squares = rows.double().square().sum(0)
                self._sums[name] = self._sums[name] + squares if name in self._sums else squares
                self._rows[name] = self._rows.get(name, 0) + len(rows)

            found.register_hook(add)
            return found

        return watch


@contextmanager
def _frozen(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode, and no gradients of parameters."""
    training = {module: module.training for module in model.modules()}
    wanting = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    for parameter in wanting:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanting:
            parameter.requires_grad_()
        for module, mode in training.items():
            module.training = mode


def _valid(batch: Any) -> torch.Tensor | None:
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    return mask.bool() if isinstance(mask, torch.Tensor) else None


def _check_loss(value: Any) -> None:
    """Raise unless it is one finite number that gradients flow back from."""
    if not isinstance(value, torch.Tensor):
        raise InvalidTypeError("loss", f"must return a tensor of one number, not {type(value).__name__}")
    if value.numel() != 1:
        raise InvalidValueError("loss", f"must return one number, not shape {tuple(value.shape)}", "sum it")
    if not value.requires_grad:
        raise InvalidValueError("loss", "depends on no layer's outputs")
    if not bool(value.isfinite()):
        raise InvalidValueError("loss", f"is {value.item()}", "look at what the model makes of the batches")


def _of_own_predictions(output: Any, valid: torch.Tensor | None, generator: torch.Generator) -> torch.Tensor:
    """The cross-entropy of labels drawn from the model's logits, or random directions of what it returns, summed."""
    logits = getattr(output, "logits", None)
    tensor = logits if isinstance(logits, torch.Tensor) else first_tensor(output)
    places = tensor.float()
    if valid is not None and valid.shape == places.shape[:-1]:
        places = places[valid.to(places.device)]
    if tensor is not logits:
        return (places * torch.randn(places.shape, generator=generator).to(places.device)).sum()
    flat = places.reshape(-1, places.shape[-1])
    labels = torch.multinomial(flat.detach().softmax(-1).cpu(), 1, generator=generator)[:, 0]
    return torch.nn.functional.cross_entropy(flat, labels.to(flat.device), reduction="sum")
