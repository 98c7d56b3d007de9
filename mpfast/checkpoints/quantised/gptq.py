"""GPTQ: ``W[n, k] = (code[k, n] - zero[g, n]) * scale[g, n]``, where g is the group of the input k.

``qweight`` holds the codes in words of 32 bits along the inputs, ``qzeros`` the zero points along the outputs, and
``g_idx`` the group of every input. Zero points are stored less one in the first version of the format, which is the one
where the configuration names none, and as they are in the second. AutoRound writes either.
"""

from __future__ import annotations

from typing import Any

from mpfast.arrays import Decoder
from mpfast.checkpoints.quantised.affine import Affine, described, group_width
from mpfast.checkpoints.quantised.affine_parts import (
    CodesOfZero,
    Indexed,
    ScalesAcross,
    Stream,
    StreamAcross,
    check_type,
    outputs_of,
)
from mpfast.checkpoints.quantised.bit_streams import WORDS, words_for
from mpfast.checkpoints.quantised.group import Group, NotDecodedError, check_shape
from mpfast.checkpoints.quantised.scaled_codes import Scales
from mpfast.support import short

__all__ = ["METHODS", "auto_round_packing", "decoder", "is_gptq"]

#: What AutoRound calls itself in configurations.
AUTO_ROUND = frozenset({"auto-round", "intel/auto-round", "auto_round"})
#: What configurations call the methods that store weights so.
METHODS = frozenset({"gptq"}) | AUTO_ROUND
# Five to seven bits lie in planes, which no configuration tells from a stream.
_BITS = (2, 3, 4, 8)
# What the zero points of each version are less than those that are subtracted.
_VERSIONS = {"gptq": 1, "gptq_v2": 0}


def is_gptq(group: Group) -> bool:
    """Whether the words of the parts are those of GPTQ; AWQ has the same ones."""
    return group.codes == "qweight" and auto_round_packing(group) != "awq"


def decoder(group: Group) -> Decoder:
    """Return the decoder; NotDecodedError where a part is missing or does not fit."""
    missing = _missing_from_zeros(group)
    group.only("qweight", "qzeros", "scales", "g_idx")
    info = check_type(group, "qweight", *WORDS)
    check_type(group, "qzeros", *WORDS)
    if len(info.shape) != 2 or 0 in info.shape:
        raise NotDecodedError(f"has codes of the shape {info.shape}, where (words, outputs) is expected")
    groups, outputs = outputs_of(group, "scales")
    check_shape(group, "qweight", (info.shape[0], outputs))
    bits = _bits(group, groups, outputs)
    said: Any = group.settings.get("group_size")
    if group.has("g_idx"):
        inputs = check_type(group, "g_idx", "int32", "int64").size
        check_shape(group, "g_idx", (inputs,))
        fitting = type(said) is int and said > 0 and -(-inputs // said) == groups
        width = int(said) if fitting else -(-inputs // groups)
    elif group.settings.get("desc_act") is True and groups > 1:
        raise NotDecodedError("has no g_idx, and the configuration says that inputs are in groups by it (desc_act)")
    else:
        inputs = info.shape[0] * 32 // bits
        width = group_width(inputs, groups, said)
    check_shape(group, "qweight", (words_for(inputs, bits), outputs))
    scales: Scales = ScalesAcross(group, "scales", width)
    zeros: Scales = CodesOfZero(StreamAcross(group, "qzeros", bits), width, bits, missing)
    if group.has("g_idx"):
        scales, zeros = (Indexed(part, group, "g_idx", groups) for part in (scales, zeros))
    return Affine(
        (outputs, inputs),
        described(bits, width, inputs),
        Stream(group, "qweight", bits, inputs, transposed=True),
        scales,
        zeros,
        nearest=group.method.lower() not in AUTO_ROUND,
    )


def auto_round_packing(group: Group) -> str:
    """Return how AutoRound packed the weights: "gptq", "gptq_v2", "awq", or what it calls another way.

    Empty where something else did.
    """
    if group.method.lower() not in AUTO_ROUND:
        return ""
    said = group.settings.get("packing_format", group.settings.get("backend"))
    if not isinstance(said, str):
        return "an unnamed packing"
    # auto_round:auto_gptq, auto_round:gptq:exllamav2, auto_round:gptqmodel, auto_round:tritonv2 and the like.
    words = said.lower().replace("autoround", "auto_round").replace("-", "_").split(":")
    for packing, names in _PACKINGS.items():
        if not names.isdisjoint(words):
            return packing
    own = words[0] == "auto_round" and set(words[1:]) <= {"exllamav2", "triton", "tritonv2"}
    return "gptq_v2" if own else said


_PACKINGS = {
    "awq": frozenset({"auto_awq", "awq"}),
    "gptq_v2": frozenset({"gptqmodel"}),
    "gptq": frozenset({"auto_gptq", "gptq"}),
}


def _missing_from_zeros(group: Group) -> int:
    """What has to be added to the zero points as they are stored."""
    version = auto_round_packing(group)
    if not group.method:
        raise NotDecodedError("has no configuration beside it, which says whether zero points are stored less one")
    if not version:
        version = group.settings.get("checkpoint_format", group.settings.get("format", "gptq"))
    if not isinstance(version, str) or version.lower() not in _VERSIONS:
        raise NotDecodedError(f"is packed as {short(version)}, where {' or '.join(_VERSIONS)} is read")
    return _VERSIONS[version.lower()]


def _bits(group: Group, groups: int, outputs: int) -> int:
    """How many bits a code has, by the zero points of all outputs; of several that fit, what the configuration says."""
    stored, said = group.parts["qzeros"].shape, group.settings.get("bits")
    fitting = [bits for bits in _BITS if stored == (groups, words_for(outputs, bits))]
    if said in fitting:
        return int(said)
    if len(fitting) != 1:
        raise NotDecodedError(f"has zero points of the shape {stored} for {outputs} outputs: not of {_BITS} bits")
    return fitting[0]
