"""Adapters that start from the leading singular triplets of the weights, which the weights then lack."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from peft.tuners.lora import Linear, LoraLayer
from peft.tuners.lora.variants import DoraLinearVariant

from mpfast import reconstruct
from mpfast.checkpoints import MomentFile, Moments, content_hash, stored
from mpfast.models import damping_for
from mpfast.spectra import lowrank
from mpfast.support import (
    InvalidTypeError,
    InvalidValueError,
    MissingKeyError,
    argument_called,
    check_path,
    front_door,
    warn_caller,
)

__all__ = ["AdapterStart", "start_adapters"]

_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class AdapterStart:
    """What the adapter of a layer starts from.

    Attributes
    ----------
    name : str
        The module, as the base model calls it.
    rank : int
        Of the adapter.
    share : float
        Share of the squared norm of the weight that the adapter took over; with moments, of the mean square of the
        layer's outputs.
    """

    name: str
    rank: int
    share: float


@front_door
def start_adapters(
    model: torch.nn.Module,
    moments: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    *,
    adapter: str = "default",
    damping: float | None = None,
    tol: float = 1e-5,
    seed: int = 0,
    threads: int | None = None,
) -> tuple[AdapterStart, ...]:
    """Fill the LoRA matrices of a PEFT model with the leading part of each weight, and take that from the weight.

    The model computes what it did before, up to the rounding of its weights, and trains the directions that matter
    most. Without moments these are the leading singular triplets, as PiSSA has it (PEFT's ``"pissa"``, here by as many
    passes as the tolerance needs in place of a full decomposition or a set number of iterations). With moments they are
    the directions in which the layer's outputs are largest, which is what CorDA (PEFT's ``"corda"``, in its mode for
    instructions) is after; it weights by C, here it is C^(1/2), so that the adapter is the product of its rank that
    leaves the least of the outputs.

    Parameters
    ----------
    model : Module
        Of ``get_peft_model`` with a ``LoraConfig``, its adapter untrained; changed in place. Dropout in front of an
        adapter drops parts of what was the weight.
    moments : path or mapping, optional
        Second moments of the inputs of the base model's layers, (in, in) by the names of its modules: a file of
        ``mpfast moments``, `mpfast.integrations.torch.SecondMoments`, or arrays.
    adapter : str
        Which of the model's adapters.
    damping : float, optional
        Of the moments, as `mpfast.reconstruct.Factor`. Default by how much data they are of.
    tol, seed
        As in `mpfast.svd`; without moments.
    threads : int, optional
        Number of threads; the result does not depend on it.

    Returns
    -------
    tuple of AdapterStart
        One for each layer, in the order of the model.

    Raises
    ------
    TypeError
        `model` has no LoRA layers, or `moments` is nothing of the kind.
    KeyError
        There are no moments of a layer.
    ValueError
        A layer with this adapter is no plain LoRA or DoRA of a linear layer in floating point, shares its weight, has
        other adapters or a trained one, or a rank above its size; or moments are of other sizes or of other weights.
        The model is unchanged then.

    Warns
    -----
    UserWarning
        Moments of fewer than 4 inputs per dimension.
    ConvergenceWarning
        As `mpfast.svd`.

    Notes
    -----
    An adapter that started so goes with the weights that are left of the base. PEFT turns it into one for the base as
    it was, of twice the rank: save the adapter before the training, to a directory ``start``, and after it with
    ``save_pretrained(out, path_initial_model_for_weight_conversion="start")``. Of DoRA it loses the lengths then: keep
    the weights that are left, as ``model.unload().save_pretrained(...)`` writes them.

    References
    ----------
    Meng et al., arXiv 2404.02948 (PiSSA). Yang et al., arXiv 2406.05223 (CorDA).
    """
    layers = dict(_layers(model, adapter))
    inputs = None if moments is None else _checked_moments(moments, layers)
    warn_caller("start_adapters", inputs.warning if isinstance(inputs, Moments) else "")
    found = []
    with torch.no_grad():
        for name, layer in layers.items():
            weight = _as_rows(layer, layer.get_base_layer().weight)
            wide = weight.to(weight.dtype if weight.dtype == torch.float64 else torch.float32)
            rank = layer.r[adapter]
            moment = None if inputs is None else _float64(inputs[name])
            if moment is None:
                left, right = lowrank.factor(wide, rank, tol=tol, seed=seed, threads=threads)
            else:
                seen = inputs.rows_per_input[name] if isinstance(inputs, Moments) else None
                share, diagonal = damping_for("lowrank", 0, damping, seen)
                with argument_called(f"moments[{name!r}]", within="C"):
                    factor = reconstruct.Factor(moment, share, diagonal=diagonal, threads=threads)
                    left, right = reconstruct.lowrank(wide, factor, rank, threads=threads)
            taken = _filled(layer, adapter, left, right).to(wide)
            rest = wide - taken
            whole = _energy(wide, moment)
            found.append(AdapterStart(name, rank, 1 - _energy(rest, moment) / whole if whole else 0.0))
            weight.copy_(rest)  # last: `wide` may be the weight itself
    return tuple(found)


def _filled(layer: Any, adapter: str, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Put factors into an adapter, and return the update that it stands for then, its own rounding included."""
    scaling = layer.scaling[adapter]
    one, other = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    one.copy_(right / scaling**0.5)
    other.copy_(left / scaling**0.5)
    return scaling * (other.to(left) @ one.to(right))


def _as_rows(layer: Any, weight: torch.Tensor) -> torch.Tensor:
    """A weight as (out, in), a view."""
    return weight.detach().T if layer.fan_in_fan_out else weight.detach()


def _energy(weight: torch.Tensor, moment: Any) -> float:
    """``tr W C W^T``; without C, ``tr W W^T``."""
    rows = weight.double()
    image = rows if moment is None else rows @ torch.from_numpy(moment).to(rows.device)
    return float((image * rows).sum())


def _float64(moment: Any) -> Any:
    """A copy of a moment: PyTorch warns of what it could not write to, as what lies in a file."""
    return np.array(moment.cpu().numpy() if isinstance(moment, torch.Tensor) else moment, dtype=np.float64)


def _layers(model: Any, adapter: str) -> Iterator[tuple[str, Any]]:
    """Yield the LoRA layers with an adapter by their names in the base model, each of them checked."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not isinstance(base, torch.nn.Module):
        raise InvalidTypeError("model", f"must be a torch.nn.Module, not {type(model).__name__}")
    lora = {name: module for name, module in base.named_modules() if isinstance(module, LoraLayer)}
    if not lora:
        raise InvalidTypeError("model", "has no LoRA layers", "peft.get_peft_model(model, LoraConfig(...)) makes them")
    uses = Counter(id(parameter) for _, parameter in base.named_parameters(remove_duplicate=False))
    chosen = {name: layer for name, layer in lora.items() if adapter in layer.r}
    if not chosen:
        raise InvalidValueError("adapter", f"{adapter!r} is none of the model's")
    for name, layer in chosen.items():
        if (reason := _reason_against(layer, adapter, uses)) is not None:
            raise InvalidValueError("model", f"{name}: {reason}")
        yield name, layer


def _reason_against(layer: Any, adapter: str, uses: Mapping[int, int]) -> str | None:
    """Why the adapter of a layer cannot start from its weight."""
    if type(layer) is not Linear:
        return f"is of PEFT's class {type(layer).__name__}, and adapters of plain linear layers alone can start so"
    weight = layer.get_base_layer().weight
    if weight.dtype not in _FLOATS or weight.device.type == "meta":
        where = "on the meta device" if weight.device.type == "meta" else str(weight.dtype).removeprefix("torch.")
        return f"its weight is {where}, and numbers in floating point are needed"
    if uses[id(weight)] > 1:
        return "shares its weight with another module, which would change, too"
    # The rows of what is left and of the adapter together have the lengths that DoRA began with.
    if not isinstance(variant := layer.lora_variant.get(adapter), DoraLinearVariant | None):
        return f"its adapter is neither plain LoRA nor DoRA but of PEFT's class {type(variant).__name__}"
    if len(layer.r) > 1:
        return "has other adapters, whose weights would change"
    if layer.merged or layer.lora_B[adapter].weight.any():
        return "its adapter is trained, or has started from something else"
    if not layer.scaling[adapter] > 0:
        return f"its adapter is scaled by {layer.scaling[adapter]}, and a positive scale is needed"
    if layer.r[adapter] > min(weight.shape):
        return f"has rank {layer.r[adapter]}, but its weight is {tuple(weight.shape)}"
    return None


def _checked_moments(given: Any, layers: Mapping[str, Any]) -> Mapping[str, Any]:
    """Moments of all layers, of their sizes and, where that is known, of their weights."""
    if isinstance(given, str | os.PathLike):
        given = MomentFile(check_path(given, "moments"))
    if not isinstance(given, Mapping):
        raise InvalidTypeError("moments", f"must be a file or a mapping, not {type(given).__name__}")
    watched = given.watched_weights() if isinstance(given, Moments) else {}
    for name, layer in layers.items():
        if name not in given:
            raise MissingKeyError("moments", f"has none for {name!r}")
        weight = layer.get_base_layer().weight.detach()
        shape = given.shape_of(name) if isinstance(given, Moments) else np.shape(given[name])
        inputs = _as_rows(layer, weight).shape[1]
        if shape != (inputs, inputs):
            raise InvalidValueError("moments", f"have shape {shape} for {name!r}, which has {inputs} inputs")
        before = watched.get(name)
        if before is None:
            continue
        brought = weight.cpu().to(getattr(torch, before.dtype))  # to the type in which it was watched
        if content_hash(stored(brought, name)) != before.hash:
            advice = "collect them anew, or pass a mapping of arrays if you know better"
            raise InvalidValueError("moments", f"were collected from other weights of {name!r}", advice)
    return given
