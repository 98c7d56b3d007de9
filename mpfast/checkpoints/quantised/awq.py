"""AWQ, version gemm: ``W[n, k] = (code[k, n] - zero[g, n]) * scale[g, n]``, where g is k over the length of a group.

``qweight`` and ``qzeros`` hold four bits each, eight outputs in a word, in an order of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpfast.arrays import Decoder
from mpfast.checkpoints.quantised.affine import Affine, described, group_width
from mpfast.checkpoints.quantised.affine_parts import CodesOfZero, ScalesAcross, check_type, outputs_of
from mpfast.checkpoints.quantised.bit_streams import WORDS
from mpfast.checkpoints.quantised.gptq import AUTO_ROUND, auto_round_packing
from mpfast.checkpoints.quantised.group import Group, NotDecodedError, check_shape
from mpfast.support import short

__all__ = ["METHODS", "decoder", "is_awq"]

#: What configurations call the methods that store weights so.
METHODS = frozenset({"awq"}) | AUTO_ROUND
_BITS = 4
# In which four bits of a word, from the lowest, the eight outputs are.
_PLACES = np.array([0, 4, 1, 5, 2, 6, 3, 7], np.uint32)


def is_awq(group: Group) -> bool:
    """Whether the words of the parts are those of AWQ, and the configuration says that it is."""
    return group.codes == "qweight" and (group.method.lower() == "awq" or auto_round_packing(group) == "awq")


@dataclass(frozen=True)
class _Words:
    """Codes of (rows, columns), stored (columns, words of eight rows)."""

    group: Group
    word: str

    def read(self, matrix: int, rows: slice) -> NDArray[np.uint8]:
        """Return those of some rows."""
        chosen = np.arange(rows.start, rows.stop, rows.step or 1)
        words = self.group.read(self.word)[:, chosen // 8].view(np.uint32)
        codes: NDArray[np.uint8] = (words >> (_BITS * _PLACES[chosen % 8]) & (1 << _BITS) - 1).astype(np.uint8)
        return codes.T


def decoder(group: Group) -> Decoder:
    """Return the decoder; NotDecodedError where it is another version, or a part is missing or does not fit."""
    said = group.settings
    version = "gemm" if group.method.lower() in AUTO_ROUND else said.get("version", said.get("format", "gemm"))
    if said.get("backend") == "llm-awq":
        version = "llm-awq"
    if not isinstance(version, str) or version.lower() != "gemm":
        raise NotDecodedError(f"is stored as version {short(version)} of AWQ, where gemm is read")
    group.only("qweight", "qzeros", "scales")
    info = check_type(group, "qweight", *WORDS)
    if len(info.shape) != 2 or 0 in info.shape:
        raise NotDecodedError(f"has codes of the shape {info.shape}, where (inputs, words) is expected")
    inputs, words = info.shape
    groups, outputs = outputs_of(group, "scales")
    check_shape(group, "scales", (groups, 8 * words))
    # Where the configuration says that the grids are symmetric, zero points may be left out.
    symmetric = said.get("zero_point") is False and not group.has("qzeros")
    if not symmetric:
        check_type(group, "qzeros", *WORDS)
        check_shape(group, "qzeros", (groups, words))
    width = group_width(inputs, groups, said.get("group_size", said.get("q_group_size")))
    return Affine(
        (outputs, inputs),
        described(_BITS, width, inputs),
        _Words(group, "qweight"),
        ScalesAcross(group, "scales", width),
        float(1 << _BITS - 1) if symmetric else CodesOfZero(_Words(group, "qzeros"), width),
        # The ends of the grids are searched for, and most often cut entries off.
        nearest=False,
    )
