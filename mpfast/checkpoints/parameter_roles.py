"""What one parameter is to its model, by the configuration, by shapes, and as the last resort by its name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mpfast.checkpoints.bare import bare, is_bare, is_structured, merged_experts, optimiser_state
from mpfast.checkpoints.base import OutputPart, Role, TensorInfo
from mpfast.checkpoints.config_json import setting
from mpfast.checkpoints.families import CONV1D, Family, family_of
from mpfast.checkpoints.fused import consecutive, fused_parts, is_fused_qkv
from mpfast.checkpoints.quantised_modules import parent_of

__all__ = ["LAYERS", "by_shape_and_name", "of_parameter", "parameter_role", "role_of", "unsupported_dtype"]

#: The kinds that are matrices.
LAYERS = frozenset({"linear", "conv", "conv_transposed", "embedding", "head", "experts", "lora"})

SUPPORTED_DTYPES = frozenset({"float64", "float32", "float16", "bfloat16"})
# A kernel of a 1-D convolution is rarely longer, a matrix that a law can be fitted to never narrower.
LONGEST_KERNEL = 8
_BIAS = re.compile(r"(^|_)bias(es|_[kv])?$")
_BUFFER = re.compile(
    r"(^|_)(mask|inv_freq|freqs_cis|position_ids|running_mean|running_var|num_batches_tracked|(cos|sin)_cached)$"
)
_EMBEDDING = re.compile(
    r"embed|wte|wpe|(^|[._])tok(en)?s?(_|$)|(^|_)emb($|_|\d)|^shared$|relative_(attention|position)_bias", re.IGNORECASE
)
# Linear layers beside embeddings: embedding_hidden_mapping_in, embeddings_project.
_NO_EMBEDDING = re.compile(r"mapping|proj|linear|dense|(^|_)fc\d*$", re.IGNORECASE)
_HEAD = re.compile(
    r"(^|[./])(lm_head|embed_out|output_projection|output_layer|logits_dense|cls[./]predictions[./]decoder)[./]|"
    r"^(model\.)?output\.weight$"
)
_MAYBE_HEAD = re.compile(r"(^|[./])(output|head|decoder|unembed|logits|ff_out)$")
# In a block, of which there are several.
_NUMBERED = re.compile(r"(^|[./])\d+([./]|$)")
_WRAPPER = re.compile(r"^((_orig_mod|module|model|base_model)\.)+")
# Tables of embeddings whose rows are no tokens.
_NO_TOKENS = re.compile(r"pos|type|segment|wpe|time|class|label|relative", re.IGNORECASE)
_TRANSPOSED = re.compile(r"(conv|de)_?transposed?|deconv|up_?conv|(^|[._])ups[._]", re.IGNORECASE)
_PYTORCH = re.compile(r"^((in|[qkv])_proj_)?weight$|^weight_(ih|hh|hr)(_l\d+(_reverse)?)?$")
_RECURRENT = re.compile(r"weight_(ih|hh)(?P<place>(_l\d+)?(_reverse)?)$")
_INTO_EXPERT = re.compile(r"(^|[._/])(gate_up_proj|gate_proj|up_proj|w1|w3|v1|wi|fc1|input_linear|mlp1)(_weight)?$")
_OUT_OF_EXPERT = re.compile(r"(^|[._/])(down_proj|w2|wo|fc2|output_linear|mlp2)(_weight)?$")
_ATTENTION_IN = re.compile(r"^(query|key|value|[qkv](_proj)?|(query|key|value)_(dense|proj))$")
_ATTENTION_OUT = re.compile(r"^(out|o|out_proj|o_proj|attention_output|output_dense|output)$")
_GATES = {4: ("input", "forget", "cell", "output"), 3: ("reset", "update", "new")}


def role_of(tensor: TensorInfo) -> Role:
    """Return the role of a tensor of which nothing else is known."""
    infos = {tensor.name: tensor}
    return tensor.known or of_parameter(tensor, infos, None, structured=is_structured(infos))


def parameter_role(info: TensorInfo, infos: Mapping[str, TensorInfo], config: Mapping[str, Any] | None) -> Role:
    """Return the role of a parameter of a live module whose class is not known, beside its others.

    The module has a forward pass of its own, so that a name does not say which axis the inputs are.
    """
    role = of_parameter(info, infos, config, structured=True)
    said = role.source != "name" or role.kind == "embedding" or _by_bias(info, infos) is not None
    if said or not role.input_axes:
        return role
    return replace(role, input_axes=(), parts=(), unsplit="")


def of_parameter(
    info: TensorInfo, infos: Mapping[str, TensorInfo], config: Mapping[str, Any] | None, *, structured: bool
) -> Role:
    """Decide by configuration, shape and name, and leave open what a parameter is that is not called as weights are."""
    role = optimiser_state(info) or by_shape_and_name(info, infos, config)
    if role.kind not in LAYERS or role.kind in ("embedding", "head") or not structured or not is_bare(info.name):
        return role
    return merged_experts(info, config) or bare(info) or role


def by_shape_and_name(info: TensorInfo, infos: Mapping[str, TensorInfo], config: Mapping[str, Any] | None) -> Role:
    """Decide by configuration, shape and name."""
    shape, (module, base) = info.shape, parent_of(info.name)
    if len(shape) < 2:
        return Role("vector", reason="vector or scalar (bias, normalisation)", source="shape")
    if 0 in shape:
        return Role("unknown", reason="empty", source="shape")
    reason = unsupported_dtype(info.dtype)
    if reason:
        return Role("buffer", reason=reason, source="type")
    if _BIAS.search(base):
        return Role("vector", reason="bias: added, not multiplied with")
    if _BUFFER.search(base):
        return Role("buffer", reason="buffer: no weight")
    convolution = "conv" in info.name.lower()
    if len(shape) == 2:
        return _matrix(info, infos, config)
    if base.partition(":")[0].endswith("kernel"):
        return _kernel(info, module, convolution)
    if len(shape) == 3 and shape[0] == 1 and not convolution:  # position embeddings (1, positions, width)
        if _is_embedding(info.name):
            return Role("embedding", (2,), source="name", rows=2)
        return Role("linear", source="shape", rows=2)
    # One bias per output, where a stack of experts would have one per output of each.
    bias = infos.get(f"{module}.bias" if module else "bias") if base == "weight" else None
    outputs = bias.shape[0] if bias is not None and len(bias.shape) == 1 else None
    short_last = len(shape) == 3 and (shape[2] < LONGEST_KERNEL or outputs == shape[0] != shape[1])
    if len(shape) in (4, 5) or (len(shape) == 3 and (convolution or short_last)):
        if outputs is not None and outputs != shape[0] and outputs == shape[1]:
            return Role("conv_transposed", (0,), source="shape")
        if _TRANSPOSED.search(info.name) and outputs != shape[0]:
            return Role("conv_transposed", (0,), source="name")
        return Role("conv", tuple(range(1, len(shape))), source="name" if convolution else "shape")
    if len(shape) == 3:
        return _experts(info, config)
    what = f"{len(shape)}-D tensor, neither a matrix, a convolution nor a stack of matrices: pass its slices"
    return Role("unknown", reason=what, source="shape")


def _matrix(info: TensorInfo, infos: Mapping[str, TensorInfo], config: Mapping[str, Any] | None) -> Role:
    """Decide what a tensor of two dimensions is, and which of them the inputs are."""
    family = family_of(config)
    kind, source = _kind_of_matrix(info, infos, config)
    if kind == "embedding":
        return Role(kind, (1,), source=source)
    inputs, how = _orientation(info, infos, config, family)
    role = Role(kind, inputs, source=how if kind == "linear" else source)
    if not inputs and is_fused_qkv(info.name) and max(info.shape) == 3 * min(info.shape):
        role = replace(role, input_axes=(int(info.shape[1] < info.shape[0]),), source="shape")
    split = fused_parts(info.name, info.shape, role.input_axes, config, family)
    parts = split.parts or _gates(info, infos)
    return replace(role, parts=parts, unsplit=split.reason) if parts or split.reason else role


def _kind_of_matrix(
    info: TensorInfo, infos: Mapping[str, TensorInfo], config: Mapping[str, Any] | None
) -> tuple[str, str]:
    if _HEAD.search(info.name):
        return "head", "name"
    if _is_embedding(info.name):
        return "embedding", "name"
    vocabulary, width = setting(config, "vocab_size"), setting(config, "hidden_size", "n_embd", "d_model")
    inside = _NUMBERED.search(info.name) is not None
    if vocabulary and width and vocabulary != width and info.shape == (vocabulary, width) and not inside:
        intermediate = setting(config, "intermediate_size", "n_inner", "d_ff", "ffn_dim")
        if vocabulary not in (intermediate, 3 * width, 4 * width):
            return "head", "config.json"
    module = parent_of(info.name)[0]
    # At the top of a model, where nothing but the head has as many rows as there are tokens.
    if module and not inside and "." not in _WRAPPER.sub("", module) and info.shape[0] > info.shape[1]:
        same = (other for other in infos.values() if other.shape == info.shape and other is not info)
        if any(_is_embedding(other.name) and not _NO_TOKENS.search(other.name) for other in same):
            return "head", "shape"
    if _MAYBE_HEAD.search(module):
        same = (other for other in infos.values() if sorted(other.shape) == sorted(info.shape))
        if any(_is_embedding(other.name) for other in same):
            return "head", "shape"
    return "linear", "name"


def _is_embedding(name: str) -> bool:
    """Whether the owner of a tensor, not what lies around it, is called as embeddings are."""
    module, base = parent_of(name)
    owner = base
    while (owner.isdigit() or owner in ("weight", "kernel", "bias")) and module:
        module, owner = parent_of(module)
    return _EMBEDDING.search(owner) is not None and _NO_EMBEDDING.search(owner) is None


def _orientation(
    info: TensorInfo, infos: Mapping[str, TensorInfo], config: Mapping[str, Any] | None, family: Family
) -> tuple[tuple[int, ...], str]:
    """Which axis of a matrix the inputs are, and how that is known."""
    base = parent_of(info.name)[1]
    typed = config is not None and isinstance(config.get("model_type"), str)
    if CONV1D.search(info.name) and typed:
        return ((0,) if family.conv1d else (1,)), "config.json"
    if base.partition(":")[0].endswith("kernel"):
        return (0,), "name"
    if not _PYTORCH.search(base):
        return (), "name"
    # As many entries as there are outputs: where the two axes differ, the bias tells them apart.
    told = _by_bias(info, infos) if base == "weight" else None
    if told is not None:
        return (told,), "name" if told == 1 else "shape"
    if not CONV1D.search(info.name):
        return (1,), "name"
    # Siblings are stored alike, and (d, 3 d) is (in, out) wherever it stands.
    siblings = [other for other in infos.values() if CONV1D.search(other.name) and len(other.shape) == 2]
    for other in siblings:
        shape = other.shape
        if "c_attn" in other.name and 3 * min(shape) == max(shape):
            return (int(shape[0] > shape[1]),), "shape"
    axes = [axis for other in siblings if (axis := _by_bias(other, infos)) is not None]
    return ((axes[0],), "shape") if axes else ((), "name")


def _by_bias(info: TensorInfo, infos: Mapping[str, TensorInfo]) -> int | None:
    """The axis of the inputs, where the bias beside a matrix has the length of the other one alone."""
    module = parent_of(info.name)[0]
    bias = infos.get(f"{module}.bias" if module else "bias")
    if bias is None or len(bias.shape) != 1 or len(info.shape) != 2:
        return None
    rows, cols = info.shape
    if rows == cols or bias.shape[0] not in (rows, cols):
        return None
    return 1 if bias.shape[0] == rows else 0


def _kernel(info: TensorInfo, module: str, convolution: bool) -> Role:
    """Flax and Keras: channels last; attention with an axis of its own for the heads."""
    shape, owner = info.shape, parent_of(module)[1]
    if len(shape) == 3 and _ATTENTION_IN.search(owner):
        return Role("linear", (0,))
    if len(shape) == 3 and _ATTENTION_OUT.search(owner):
        return Role("linear", (0, 1), rows=2)
    if len(shape) in (4, 5) or (len(shape) == 3 and (convolution or shape[0] < LONGEST_KERNEL)):
        source = "name" if convolution or len(shape) > 3 else "shape"
        return Role("conv", tuple(range(len(shape) - 1)), source=source, rows=len(shape) - 1)
    what = f"{len(shape)}-D kernel: a convolution or a projection with an axis of heads, neither name nor shape tells"
    return Role("unknown", reason=what, source="shape")


def _experts(info: TensorInfo, config: Mapping[str, Any] | None) -> Role:
    """Decide how a stack of experts is stored: by the model's width, or by its family where that does not tell."""
    family, width = family_of(config), setting(config, "hidden_size", "n_embd", "d_model")
    into, out_of = _INTO_EXPERT.search(info.name), _OUT_OF_EXPERT.search(info.name)
    inputs, source = {"out_in": (2,), "in_out": (1,)}.get(family.experts, ()), "config.json"
    if width in info.shape[1:] and info.shape[1] != info.shape[2] and bool(into) != bool(out_of):
        axis = 1 + info.shape[1:].index(width or 0)
        inputs, source = ((axis,) if into else (3 - axis,)), "shape"
    elif width and width not in info.shape[1:] and (into or out_of):
        reason = f"neither of its sides is the {width} of the model, as config.json has it"
        return Role("experts", source="shape", unsplit=reason if into else "")
    split = fused_parts(info.name, info.shape, inputs, config, family)
    return Role("experts", inputs, source=source if inputs else "shape", parts=split.parts, unsplit=split.reason)


def _gates(info: TensorInfo, infos: Mapping[str, TensorInfo]) -> tuple[OutputPart, ...]:
    """The gates of a recurrent layer, as many as its square part has."""
    found = _RECURRENT.search(info.name)
    if found is None:
        return ()
    square = infos.get(f"{info.name[: found.start()]}weight_hh{found['place']}")
    if square is None or len(square.shape) != 2 or square.shape[0] != info.shape[0]:
        return ()
    labels = _GATES.get(square.shape[0] // max(square.shape[1], 1), ())
    if not labels or info.shape[0] % len(labels):
        return ()
    return consecutive(*((label, info.shape[0] // len(labels)) for label in labels))


def unsupported_dtype(dtype: str) -> str | None:
    """Say why tensors of a type are not read as weights; None where they are."""
    if dtype in SUPPORTED_DTYPES:
        return None
    if dtype.startswith("float8"):
        return "float8 without the scale that it was divided by: never cast; dequantise first"
    if dtype.startswith(("float4", "float6")):
        return "packed float4 and float6 are not supported: dequantise first"
    if dtype.startswith(("int", "uint", "bool", "qint", "quint")):
        return "integer or boolean dtype (an index, a mask, or quantised: dequantise first)"
    if dtype.startswith("complex"):
        return "complex dtype"
    return f"dtype {dtype} is not supported"
