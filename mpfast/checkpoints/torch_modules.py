"""What a live PyTorch model says of its tensors: by the classes of its modules, buffers, parametrisations and hooks.

PyTorch is not imported: whoever has a module has imported it.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from mpfast.checkpoints.base import Role, TensorInfo
from mpfast.checkpoints.config_json import checked_config
from mpfast.checkpoints.families import Family, family_of
from mpfast.checkpoints.fused import consecutive, fused_parts
from mpfast.checkpoints.parameter_roles import LAYERS, parameter_role, role_of
from mpfast.support import InvalidValueError

__all__ = ["TorchModules"]

_SOURCE = "module class"
_CONVOLUTIONS = {"Conv1d": 1, "Conv2d": 2, "Conv3d": 3}
_TRANSPOSED = {"ConvTranspose1d": 1, "ConvTranspose2d": 2, "ConvTranspose3d": 3}
_NORMALISATIONS = {"LayerNorm", "RMSNorm", "_NormBase", "GroupNorm", "PReLU", "LocalResponseNorm", "_BatchNorm"}
_GATES = {"LSTM": ("input", "forget", "cell", "output"), "GRU": ("reset", "update", "new")}
# Subclasses with a forward pass of their own that is their parent's written otherwise.
_AS_THEIR_PARENT = {"transformers.models.falcon.modeling_falcon.FalconLinear"}
_computing = threading.Lock()


class TorchModules:
    """What a live model says of the entries of its ``state_dict``.

    Attributes
    ----------
    roles : dict of str to Role
        By the names of the state dictionary.
    computed : dict of str to function
        Weights that a parametrisation computes, by the names that they have in the model.
    config : mapping or None
        Of a model of transformers, as in its ``config.json``.
    adapters : dict of str to mapping
        Of a model with PEFT's adapters, as in the ``adapter_config.json`` of each, by the name of the adapter.
    """

    def __init__(self, model: Any) -> None:
        self.roles: dict[str, Role] = {}
        self.computed: dict[str, Callable[[], Any]] = {}
        self.config = _config_of(model)
        self.adapters = _adapters_of(model)
        self._family = family_of(self.config)
        heads = _output_embeddings(model)
        for name, module in model.named_modules(remove_duplicate=False):
            prefix = f"{name}." if name else ""
            if ".parametrizations." in f".{prefix}":  # what computes a weight has none
                continue
            own = self._of_module(name, module, module is heads)
            if not _computes_as_its_class(module):
                own = {key: replace(role, input_axes=(), parts=(), unsplit="") for key, role in own.items()}
            own |= {
                key: Role("buffer", reason="buffer: no weight", source=_SOURCE)
                for key, buffer in module._buffers.items()
                if buffer is not None
            }
            self.roles |= {prefix + key: role for key, role in own.items()}
            self._parametrised(module, prefix, own)
            self._hooked(module, prefix, own)
            self._others(module, prefix)

    def _of_module(self, name: str, module: Any, is_head: bool) -> dict[str, Role]:
        """Roles of the parameters that belong to a module of a known class itself, by their names in it."""
        classes = {base.__name__ for base in type(module).__mro__}
        weight = _shape(module, "weight")
        if "Linear" in classes and len(weight) == 2:
            return {"weight": self._linear(name, weight, 1, is_head)}
        if "Conv1D" in classes and hasattr(module, "nf") and len(weight) == 2:  # of transformers: (in, out)
            return {"weight": self._linear(name, weight, 0, is_head)}
        if classes & {"Embedding", "EmbeddingBag"} and len(weight) == 2:
            return {"weight": Role("embedding", (1,), source=_SOURCE)}
        for known, kind in ((_CONVOLUTIONS, "conv"), (_TRANSPOSED, "conv_transposed")):
            if classes & known.keys() and len(weight) > 2:
                axes = (0,) if kind == "conv_transposed" else tuple(range(1, len(weight)))
                return {"weight": Role(kind, axes, source=_SOURCE, groups=int(getattr(module, "groups", 1)))}
        if "Bilinear" in classes and len(weight) == 3:
            return {"weight": Role("linear", (1, 2), source=_SOURCE)}
        if classes & {"MultiheadAttention"}:
            return _attention(module)
        if classes & {"RNNBase", "RNNCellBase"}:
            return _recurrent(module, classes)
        if classes & _NORMALISATIONS:
            reason = "normalisation: multiplied entry by entry"
            return {key: Role("vector", reason=reason, source=_SOURCE) for key in module._parameters}
        if hasattr(module, "is_transposed") and hasattr(module, "num_experts"):
            return self._experts(module)
        return {}

    def _linear(self, name: str, shape: tuple[int, ...], inputs: int, is_head: bool) -> Role:
        split = fused_parts(f"{name}.weight", shape, (inputs,), self.config, self._family)
        kind = "head" if is_head else "linear"
        return Role(kind, (inputs,), source=_SOURCE, parts=split.parts, unsplit=split.reason)

    def _experts(self, module: Any) -> dict[str, Role]:
        """Stacks of transformers' experts, whose classes say how they are stored."""
        inputs = (1,) if module.is_transposed else (2,)
        layout = "gate, up" if getattr(module, "is_concatenated", True) else "gate and up alternating"
        family = Family(fused={"gate_up_proj": layout})
        found = {}
        for key, parameter in module._parameters.items():
            if parameter is not None and parameter.dim() == 3:
                shape = tuple(parameter.shape)
                parts = fused_parts(key, shape, inputs, None, family).parts
                found[key] = Role("experts", inputs, source=_SOURCE, parts=parts)
        return found

    def _parametrised(self, module: Any, prefix: str, own: Mapping[str, Role]) -> None:
        """Weights that ``torch.nn.utils.parametrize`` computes; masks and lengths are known by their names, too."""
        for key, steps in (getattr(module, "parametrizations", None) or {}).items():
            called = f"{prefix}{key}"
            inner = f"{prefix}parametrizations.{key}"
            names = [f"{inner}.{name}" for name in steps._parameters if steps._parameters[name] is not None]
            masks = [f"{inner}.{at}.mask" for at, step in enumerate(steps) if _is_mask(step)]
            for name in names:
                self.roles[name] = Role("part", reason=f"part of the parametrised {called}", source=_SOURCE, of=called)
            for name, _ in steps.named_parameters():  # those of the steps themselves
                self.roles.setdefault(
                    f"{inner}.{name}",
                    Role("part", reason=f"part of the parametrised {called}", source=_SOURCE, of=called),
                )
            for name, _ in steps.named_buffers():
                self.roles[f"{inner}.{name}"] = Role(
                    "buffer", reason=f"part of the parametrised {called}", source=_SOURCE
                )
            if not names:
                continue
            role = own.get(key) or _by_name(called, _shape(module, key))
            if role is None:
                continue
            if len(masks) == len(steps) == len(names) == 1:
                self.roles[names[0]] = replace(role, called=called, masked_by=masks[0])
                self.roles[masks[0]] = Role("mask", reason=f"mask of {called}", source=_SOURCE, of=names[0])
                continue
            what = ", ".join(type(step).__name__.lstrip("_") for step in steps)
            fixed = f"computed by a parametrisation ({what}): remove it first (torch.nn.utils.parametrize)"
            shape = _shape(module, key)
            # Of weight normalisation the directions, which have the shape of the weight.
            main = next(
                (name for name in names if tuple(steps._parameters[name.rpartition(".")[2]].shape) == shape), names[0]
            )
            self.roles[main] = replace(role, called=called, shape=shape, fixed=fixed)
            self.computed[called] = _parametrisation(steps, called)

    def _hooked(self, module: Any, prefix: str, own: Mapping[str, Role]) -> None:
        """Weights that a hook computes before every forward pass: pruned, weight-normed and spectrally normed ones."""
        for hook in module._forward_pre_hooks.values():
            key = getattr(hook, "_tensor_name", None) or getattr(hook, "name", None)
            if not isinstance(key, str) or key in module._parameters:
                continue
            called = f"{prefix}{key}"
            role = own.get(key) or _by_name(called, _shape(module, key))
            if role is None:
                continue
            if hasattr(hook, "apply_mask") and f"{key}_mask" in module._buffers:
                stored, mask = f"{called}_orig", f"{called}_mask"
                self.roles[stored] = replace(role, called=called, masked_by=mask)
                self.roles[mask] = Role("mask", reason=f"mask of {called}", source=_SOURCE, of=stored)
                continue
            if not hasattr(hook, "compute_weight"):
                continue
            if not _shape(module, key):
                continue
            stored = next((f"{key}{end}" for end in ("_v", "_orig") if f"{key}{end}" in module._parameters), "")
            if not stored:
                continue
            fixed = f"computed by {type(hook).__name__}: remove it first"
            self.roles[prefix + stored] = replace(role, called=called, shape=_shape(module, key), fixed=fixed)
            for other in (f"{key}_g",):
                if other in module._parameters:
                    reason = f"lengths of the weight-normed {called}"
                    self.roles[prefix + other] = Role("part", reason=reason, source=_SOURCE, of=prefix + stored)
            self.computed[called] = _hook(module, hook, called)

    def _others(self, module: Any, prefix: str) -> None:
        """Matrices among the parameters that neither the module's class nor a mask or a hook says anything of."""
        infos = {
            f"{prefix}{key}": TensorInfo(f"{prefix}{key}", _shape(module, key), str(value.dtype).rpartition(".")[2])
            for key, value in module._parameters.items()
            if value is not None
        }
        for name, info in infos.items():
            mask, lengths = f"{name.removesuffix('_orig')}_mask", f"{name.removesuffix('_v')}_g"
            paired = mask.removeprefix(prefix) in module._buffers or lengths in infos
            if len(info.shape) >= 2 and name not in self.roles and not paired:
                self.roles[name] = parameter_role(info, infos, self.config)


def _adapters_of(model: Any) -> dict[str, Mapping[str, Any]]:
    """The configurations of PEFT's adapters, which its models and those of transformers hold."""
    configs = getattr(model, "peft_config", None)
    found = {}
    for name, config in configs.items() if isinstance(configs, Mapping) else ():
        to_dict = getattr(config, "to_dict", None)
        values = to_dict() if callable(to_dict) else None
        if isinstance(values, Mapping):
            found[str(name)] = values
    return found


def _config_of(model: Any) -> Mapping[str, Any] | None:
    to_dict = getattr(getattr(model, "config", None), "to_dict", None)
    if not callable(to_dict) or not hasattr(model.config, "model_type"):
        return None
    config = to_dict()
    return checked_config(config, f"{type(model).__name__}.config") if isinstance(config, Mapping) else None


def _computes_as_its_class(module: Any) -> bool:
    """Whether a module's forward pass is that of its class in PyTorch, or hands on to it and leaves the weight alone.

    What a subclass with a forward pass of its own does with the weight, along which axis, is not known.
    """
    if hasattr(module, "is_transposed"):  # experts of transformers, which say how they are stored
        return True
    for base in type(module).__mro__:
        if f"{base.__module__}.{base.__qualname__}" in _AS_THEIR_PARENT:
            return True
        if base.__module__.startswith("torch.") or (base.__name__ == "Conv1D" and hasattr(module, "nf")):
            return True
        for name in {"forward", "_conv_forward"} & base.__dict__.keys():
            code = getattr(base.__dict__[name], "__code__", None)
            if code is None or "__class__" not in code.co_freevars or name not in code.co_names:
                return False
            if "weight" in (*code.co_names, *code.co_varnames):
                return False
    return True


def _output_embeddings(model: Any) -> Any:
    """The output head of a language model of transformers."""
    get = getattr(model, "get_output_embeddings", None)
    if not callable(get):
        return None
    try:
        return get()
    except Exception:  # of a model without one, whatever its class raises
        return None


def _shape(module: Any, name: str) -> tuple[int, ...]:
    """Shape of a weight as the model computes with it; empty where it has none yet, or what is no plain tensor."""
    torch = sys.modules["torch"]
    parameter = module._parameters.get(name)
    if parameter is None:
        parameter = module.__dict__.get(name)
    if parameter is None:
        parameter = module._parameters.get(f"{name}_orig", module._parameters.get(f"{name}_v"))
    steps = getattr(module, "parametrizations", None) or {}
    if parameter is None and name in steps:
        parameter = _computed(steps[name], steps[name], name)
    if parameter is None or not isinstance(parameter, torch.Tensor):
        return ()
    if torch.nn.parameter.is_lazy(parameter):
        return ()
    return tuple(parameter.shape)


def _by_name(called: str, shape: tuple[int, ...]) -> Role | None:
    """The role of a computed weight whose module is of no known class; None where it is no layer."""
    role = role_of(TensorInfo(called, shape, "float32"))
    return role if role.kind in LAYERS else None


def _attention(module: Any) -> dict[str, Role]:
    """The projections of MultiheadAttention: one for queries, keys and values, or three."""
    found = {}
    width = int(module.embed_dim)
    parts = consecutive(("query", width), ("key", width), ("value", width))
    if _shape(module, "in_proj_weight"):
        found["in_proj_weight"] = Role("linear", (1,), source=_SOURCE, parts=parts)
    for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
        if _shape(module, name):
            found[name] = Role("linear", (1,), source=_SOURCE)
    for name in ("bias_k", "bias_v", "in_proj_bias"):
        found[name] = Role("vector", reason="bias: added, not multiplied with", source=_SOURCE)
    return found


def _recurrent(module: Any, classes: set[str]) -> dict[str, Role]:
    """The weights of recurrent layers, (gates x hidden, in); those of their projections have no gates."""
    labels = next((gates for kind, gates in _GATES.items() if classes & {kind, f"{kind}Cell"}), ())
    found = {}
    for name in module._parameters:
        if name.startswith(("weight_ih", "weight_hh", "weight_hr")):
            size = int(module.hidden_size)
            gates = () if name.startswith("weight_hr") else labels
            parts = consecutive(*((label, size) for label in gates))
            found[name] = Role("linear", (1,), source=_SOURCE, parts=parts)
    return found


def _is_mask(step: Any) -> bool:
    """Whether a step of a parametrisation is a mask that `hold` has put there."""
    return type(step).__name__ == "Mask" and type(step).__module__.startswith("mpfast.")


@contextlib.contextmanager
def _as_in_evaluation(steps: Any) -> Iterator[None]:
    """Keep steps from what they do in training only: spectral normalisation changes its vectors."""
    training = [module for module in steps.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True


def _computed(compute: Callable[[], Any], steps: Any, called: str) -> Any:
    """Run what computes a weight, by one thread at a time, without gradients and without a change to the model."""
    with _computing, _as_in_evaluation(steps), sys.modules["torch"].no_grad():
        try:
            return compute()
        except MemoryError:
            raise
        except Exception as error:  # whatever code of others raises
            kind = type(error).__name__
            raise InvalidValueError(called, f"cannot be computed by its parametrisation: {kind}: {error}") from error


def _parametrisation(steps: Any, called: str) -> Callable[[], Any]:
    return lambda: _computed(steps, steps, called)


def _hook(module: Any, hook: Any, called: str) -> Callable[[], Any]:
    """The weight as a hook would compute it next, spectral normalisation without its power iteration."""

    def compute() -> Any:
        if hasattr(hook, "n_power_iterations"):
            return hook.compute_weight(module, do_power_iteration=False)
        return hook.compute_weight(module)

    return lambda: _computed(compute, module, called)
