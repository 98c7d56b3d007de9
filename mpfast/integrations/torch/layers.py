"""Which modules of a PyTorch model have weights to prune, and how their inputs reach them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from mpfast.checkpoints import NameFilter, name_filter
from mpfast.support import InvalidTypeError, front_door

__all__ = [
    "check_module",
    "input_rows",
    "is_transposed",
    "prunable_modules",
    "takes",
    "watch_input",
    "watchable_modules",
]

CHUNK_ROWS = 4096


def check_module(model: Any) -> None:
    """Raise TypeError for what is no module."""
    if not isinstance(model, torch.nn.Module):
        raise InvalidTypeError("model", f"must be a torch.nn.Module, not {type(model).__name__}")


@front_door
def prunable_modules(
    model: torch.nn.Module, include: NameFilter | None = None, exclude: NameFilter | None = None
) -> dict[str, torch.nn.Module]:
    """Linear and Conv2d modules by name, in the order of the model; a shared module comes once.

    Those whose weight is an embedding, too, are left out: what is done to them would be done to that.

    Parameters
    ----------
    model : Module
    include, exclude : str, sequence of str or callable, optional
        Names as patterns (``"encoder.*"``) or a function of the name, as in `mpfast.analyze`.

    Raises
    ------
    TypeError
        `model` is no module.
    """
    check_module(model)
    wanted = name_filter(include, "include")
    unwanted = name_filter(exclude, "exclude")
    embeddings = (torch.nn.Embedding, torch.nn.EmbeddingBag)
    tied = {id(module.weight) for module in model.modules() if isinstance(module, embeddings)}
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))
        and id(module._parameters.get("weight")) not in tied
        and (wanted is None or wanted(name))
        and not (unwanted is not None and unwanted(name))
    }


def is_transposed(module: torch.nn.Module) -> bool:
    """Whether a module is a linear layer whose weight is stored as (in, out): the Conv1D of transformers."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def watchable_modules(
    model: torch.nn.Module, include: NameFilter | None = None, exclude: NameFilter | None = None
) -> dict[str, torch.nn.Module]:
    """As `prunable_modules`, with the linear layers whose weights are stored as (in, out)."""
    wanted, unwanted = name_filter(include, "include"), name_filter(exclude, "exclude")
    prunable = prunable_modules(model, include, exclude)
    return {
        name: module
        for name, module in model.named_modules()
        if name in prunable
        or (
            is_transposed(module) and (wanted is None or wanted(name)) and not (unwanted is not None and unwanted(name))
        )
    }


def watch_input(module: torch.nn.Module, see: Callable[[torch.Tensor], None]) -> Any:
    """Have ``see(x)`` called with what a Linear or Conv2d is called with, by position or by keyword, before it runs.

    Returns
    -------
    handle
        Its ``remove`` ends this.
    """

    def hook(module: torch.nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        x = args[0] if args else next(iter(keywords.values()), None)
        if isinstance(x, torch.Tensor):  # of anything else the module itself will complain
            see(x)

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def takes(module: torch.nn.Module, x: torch.Tensor) -> bool:
    """Whether a tensor has the size of a module's inputs; of any other the module itself will complain."""
    if isinstance(module, torch.nn.Conv2d):
        return x.dim() in (3, 4) and bool(x.shape[-3] == module.in_channels)
    weight: torch.Tensor = module.weight
    return x.dim() > 0 and bool(x.shape[-1] == weight.shape[0 if is_transposed(module) else 1])


def input_rows(module: torch.nn.Module, x: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the inputs of a layer as rows in the order of ``weight.reshape(out, -1)``, some thousands at a time.

    For a Linear these are the tokens; for a Conv2d (without groups) the patches, of which only those at hand are ever
    in memory.

    Parameters
    ----------
    module : Linear or Conv2d
    x : Tensor
        What the module is called with.
    """
    x = x.detach()
    if not isinstance(module, torch.nn.Conv2d):
        yield from x.reshape(-1, x.shape[-1]).split(CHUNK_ROWS)
        return
    x = _padded(module, x if x.dim() == 4 else x[None])
    (kh, kw), (sh, sw), (dh, dw) = (_pair(pair) for pair in (module.kernel_size, module.stride, module.dilation))
    height = (x.shape[2] - dh * (kh - 1) - 1) // sh + 1
    width = (x.shape[3] - dw * (kw - 1) - 1) // sw + 1
    for images in x.split(max(1, CHUNK_ROWS // (height * width))):
        step = max(1, CHUNK_ROWS // (len(images) * width))
        for top in range(0, height, step):
            bottom = min(top + step, height)
            part = images[:, :, top * sh : (bottom - 1) * sh + dh * (kh - 1) + 1]
            patches = torch.nn.functional.unfold(part, (kh, kw), dilation=(dh, dw), stride=(sh, sw))
            yield patches.transpose(1, 2).reshape(-1, patches.shape[1])


def _padded(conv: torch.nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    sides = list(conv._reversed_padding_repeated_twice)  # also what padding="same" comes to
    if not any(sides):
        return x
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    return torch.nn.functional.pad(x, sides, mode=mode)


def _pair(value: tuple[int, ...] | int) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
