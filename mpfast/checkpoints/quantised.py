"""Which tensors of a checkpoint are quantised weights, and which are their scales, zero points and the like.

No list of formats: a module that holds a tensor of a packed type is quantised, and what else it holds belongs to that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from mpfast.checkpoints.base import TensorInfo

__all__ = ["companions_of", "parent_of"]

_PACKED = re.compile(r"(float[864]_|q?u?int(2|3|4|8|16|32)$|quint)")
# Codes in types that most often hold indices: packed where the name, the configuration or a scale beside them says so.
_PACKED_IF_SAID = re.compile(r"(u?int64|bool)$")
# Integers that are no weights, whatever the module holds beside them.
_INDEX = re.compile(
    r"(^|_)(bias|mask|ids|position_index|index|num_batches_tracked|steps?|count|positions|labels|tokens|lengths?)$"
)
# What stands for the weight itself. Names that end so belong to the stem before: experts.gate_up_proj_blocks.
_WEIGHTS = (
    "weight",
    "qweight",
    "weight_packed",
    "blocks",
    "qdata",
    "weight_qdata",
    "W_q",
    "codes",
    "weight_sf_packed",
    "comfy_quant",
    "Qidxs",
    "dense_weights",
    "weight_bits",
    "q_weight",
)
_COMPANIONS = (
    "weight_scale_inv",
    "weight_scale_2",
    "weight_scale",
    "weight_scales",
    "weight_global_scale",
    "scale_inv",
    "scale",
    "scales",
    "input_scale",
    "input_global_scale",
    "activation_scale",
    "scale_weight",
    "scale_input",
    "weight_zero_point",
    "zero_point",
    "zero_points",
    "zeros",
    "qzeros",
    "g_idx",
    "perm",
    "weight_shape",
    "SCB",
    "weight_format",
    "absmax",
    "quant_map",
    "nested_absmax",
    "nested_quant_map",
    "biases",
    "qbiases",
    "qscales",
    "wscales",
    "wzeros",
    "smooth_factor",
    "smooth_factor_orig",
    "proj_down",
    "proj_up",
    "lora_down",
    "lora_up",
    "svdquant_lora_a",
    "svdquant_lora_b",
    "pre_quant_scale",
    "k_scale",
    "v_scale",
    "q_scale",
    "prob_output_scale",
    "amax",
    "weight_sf",
    "weight_sf_rowmajor",
    "codebook",
    "codebooks",
    "row_offsets",
    "q_scale_max",
    "q_scale_f",
)
# Longest first: weight_scale_inv ends in scale_inv, too.
_WORDS = tuple(sorted({*_WEIGHTS, *_COMPANIONS}, key=lambda word: -len(word)))


def parent_of(name: str) -> tuple[str, str]:
    """Split a name into that of its module and its own part; Keras and Flax separate them by slashes."""
    cut = max(name.rfind("."), name.rfind("/"))
    return name[: max(cut, 0)], name[cut + 1 :]


def companions_of(tensors: Iterable[TensorInfo], *, quantised: bool = False) -> tuple[dict[str, str], list[str]]:
    """Return the companions, each with the quantised weight that it belongs to, and every tensor of a packed type.

    The latter are the quantised weights where they have companions, or the configuration says that there are some
    (`quantised`); by itself such a tensor may be anything.
    """
    infos = {info.name: info for info in tensors}
    scaled = {
        parent_of(name)[0]
        for name, info in infos.items()
        if info.dtype.startswith(("float", "bfloat")) and _word_of(parent_of(name)[1]) in _COMPANIONS
    }
    packed = [
        info.name
        for info in infos.values()
        if _may_be_weight(info, said=quantised or parent_of(info.name)[0] in scaled)
    ]
    by_module: dict[str, list[str]] = {}
    by_stem: dict[str, str] = {}
    for name in packed:
        by_module.setdefault(parent_of(name)[0], []).append(name)
        by_stem.setdefault(_stem(name), name)
        by_stem.setdefault(name, name)
    found = {}
    for name in infos:
        if name not in packed:
            weight = _weight_of(name, infos, by_module, by_stem)
            if weight is not None:
                found[name] = weight
    return found, packed


def _may_be_weight(info: TensorInfo, *, said: bool) -> bool:
    base = parent_of(info.name)[1]
    if 0 in info.shape or _INDEX.search(base) or _word_of(base) in _COMPANIONS:
        return False
    if not _PACKED.match(info.dtype) and not (said and _PACKED_IF_SAID.match(info.dtype)):
        return False
    return len(info.shape) >= 2 or (len(info.shape) == 1 and _word_of(base) in _WEIGHTS)


def _word_of(base: str) -> str:
    """The word of the lists that a name is or ends in; empty where it is none."""
    return next((word for word in _WORDS if base == word or base.lstrip("_") == word or base.endswith(f"_{word}")), "")


def _stem(name: str) -> str:
    """What a quantised weight and its companions have in common: the module, or the name before the word."""
    module, base = parent_of(name)
    word = _word_of(base)
    if not word:
        return name
    before = base[: len(base) - len(word)].strip("_")
    if not before:
        return module
    return f"{name[: len(name) - len(base)]}{before}"


def _weight_of(
    name: str, infos: Mapping[str, TensorInfo], by_module: Mapping[str, list[str]], by_stem: Mapping[str, str]
) -> str | None:
    module, base = parent_of(name)
    if re.search("(^|_)bias$", base):
        return None
    stem = _stem(name)
    if stem != name and stem in by_stem and (stem or _word_of(parent_of(by_stem[stem])[1])):
        return by_stem[stem]
    above = module
    while above:  # bitsandbytes: l.weight, l.weight.quant_state.bitsandbytes__nf4
        if above in by_stem and by_stem[above] == above:
            return above
        above = parent_of(above)[0]
    if not module or module not in by_module:
        return None
    beside = infos.get(f"{module}.weight")
    if beside is not None and len(beside.shape) >= 2 and not _PACKED.match(beside.dtype):
        return None  # the weight of the module is a plain one
    # A module with several weights, each with a word at its end, has companions by stem only.
    shared = [weight for weight in by_module[module] if _stem(weight) in (module, weight)]
    if _word_of(base) in _COMPANIONS and by_module[module]:
        shared = shared or by_module[module]
    return shared[0] if shared else None
