"""Which tensors of a checkpoint are quantised weights, and which are their scales, zero points and the like.

No list of formats: a module that holds a tensor of a packed type is quantised, and what else it holds belongs to that.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping

from mpfast.checkpoints.base import TensorInfo

__all__ = ["companions_of", "parent_of", "stem_of"]

_PACKED = re.compile(r"(float[864]_|q?u?int(2|3|4|8|16|32)$|quint)")
# Codes in types that most often hold indices: packed where the name, the configuration or a scale beside them says so.
_PACKED_IF_SAID = re.compile(r"(u?int64|bool)$")
# Integers that are no weights, whatever the module holds beside them; but for indices into a codebook.
_INDEX = re.compile(
    r"(^|_)(bias|mask|ids|index|num_batches_tracked|steps?|count|positions|labels|tokens|lengths?|idxs?|indices)$"
)
_CODES = re.compile(r"(^|_)(idxs?|indices)$")
_CODEBOOKS = ("codebook", "codebooks", "centroids")
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
    "Qidxs",
    "dense_weights",
    "weight_bits",
    "q_weight",
    "indices",
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
    "input_scale_ub",
    "input_global_scale",
    "activation_scale",
    "output_zero_point",
    "output_scale",
    "input_zero_point",
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
    "comfy_quant",
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
    *_CODEBOOKS,
    "row_offsets",
    "q_scale_max",
    "q_scale_f",
)
# What is added to a weight or a product as well as to codes: says nothing about the integers beside it.
_ADDED = ("biases", "qbiases")
# What may be in a module of its own, below that of the weight; modules of factors have roles of their own.
_NESTED = frozenset(_COMPANIONS) - {"proj_down", "proj_up", "lora_down", "lora_up"}
# Longest first: weight_scale_inv ends in scale_inv, too.
_WORDS = tuple(sorted({*_WEIGHTS, *_COMPANIONS}, key=lambda word: -len(word)))


@functools.lru_cache(maxsize=1 << 10)  # of one tensor it is asked a dozen times in a row
def parent_of(name: str) -> tuple[str, str]:
    """Split a name into that of its module and its own part; Keras and Flax separate them by slashes."""
    cut = name.rfind(".")
    if "/" in name:
        cut = max(cut, name.rfind("/"))
    return name[:cut] if cut > 0 else "", name[cut + 1 :]


def companions_of(tensors: Iterable[TensorInfo], *, quantised: bool = False) -> tuple[dict[str, str], list[str]]:
    """Return the companions, each with the quantised weight that it belongs to, and every tensor of a packed type.

    The latter are the quantised weights where they have companions, or the configuration says that there are some
    (`quantised`); by itself such a tensor may be anything.
    """
    infos = {info.name: info for info in tensors}
    evidence = _Evidence(infos.values(), quantised)
    packed = [info.name for info in infos.values() if evidence.may_be_weight(info)]
    by_module: dict[str, list[str]] = {}
    by_stem: dict[str, str] = {}
    for name in packed:
        by_module.setdefault(parent_of(name)[0], []).append(name)
        by_stem.setdefault(stem_of(name), name)
        by_stem.setdefault(name, name)
    found = {}
    known = set(packed)
    for name in infos:
        if name not in known:
            weight = _weight_of(_place(name), infos, by_module, by_stem)
            if weight is not None:
                found[name] = weight
    return found, packed


class _Evidence:
    """What the tensors of a module say of the integers beside them.

    Attributes
    ----------
    scaled : set of str
        Modules with scales or the like, called so exactly.
    gridded : set of str
        Those in which these have two dimensions: a number per group of weights, which no other module has.
    coded : set of str
        Those with a codebook.
    """

    def __init__(self, infos: Iterable[TensorInfo], quantised: bool) -> None:
        self._said = quantised
        self.scaled: set[str] = set()
        self.gridded: set[str] = set()
        self.coded: set[str] = set()
        for info in infos:
            module, base = parent_of(_place(info.name))
            if not info.dtype.startswith(("float", "bfloat")):
                continue
            if base.lstrip("_") in _COMPANIONS and base.lstrip("_") not in _ADDED:
                self.scaled.add(module)
                if sum(extent > 1 for extent in info.shape) > 1:
                    self.gridded.add(module)
            if _word_of(base) in _CODEBOOKS:
                self.coded.add(module)

    def may_be_weight(self, info: TensorInfo) -> bool:
        """Whether a tensor is of a packed type, and neither an index nor a companion."""
        module, base = parent_of(_place(info.name))
        word = _word_of(base)
        index = _INDEX.search(base) and not (_CODES.search(base) and module in self.coded)
        if 0 in info.shape or index or word in _COMPANIONS:
            return False
        if not _PACKED.match(info.dtype):
            said = self._said or module in self.gridded or (module in self.scaled and word in _WEIGHTS)
            if not said or not _PACKED_IF_SAID.match(info.dtype):
                return False
        return len(info.shape) >= 2 or (len(info.shape) == 1 and word in _WEIGHTS)


def _place(name: str) -> str:
    """The name that a tensor would have without a module of its own: ``l.scale`` for ``l.scale.weight``."""
    module, base = parent_of(name)
    nested = base == "weight" or base.isdigit()
    return module if nested and _word_of(parent_of(module)[1]) in _NESTED else name


@functools.lru_cache(maxsize=1 << 12)  # thousands of experts have the same few
def _word_of(base: str) -> str:
    """The word of the lists that a name is or ends in; empty where it is none."""
    return next((word for word in _WORDS if base == word or base.lstrip("_") == word or base.endswith(f"_{word}")), "")


def stem_of(name: str) -> str:
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
    stem = stem_of(name)
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
    shared = [weight for weight in by_module[module] if stem_of(weight) in (module, weight)]
    if _word_of(base) in _COMPANIONS and by_module[module]:
        shared = shared or by_module[module]
    return shared[0] if shared else None
