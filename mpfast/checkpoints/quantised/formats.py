"""The formats of quantised weights that are read, and which one a weight is in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mpfast.arrays import Decoder
from mpfast.checkpoints.quantised import float8
from mpfast.checkpoints.quantised.group import Group, NotDecodedError

__all__ = ["QUANTISED_FORMATS", "QuantisedFormat", "decoder_of"]


@dataclass(frozen=True)
class QuantisedFormat:
    """A format of quantised weights.

    Attributes
    ----------
    description : str
        What it is, in a few words.
    methods : frozenset of str
        What the configuration calls the methods that store weights so, in lower case.
    recognises : function
        Whether the words and types of the parts are those of the format. Where the configuration names no method, they
        alone decide; what is missing or does not fit is for the decoder to say.
    decoder : function
        What the numbers come out by; raises NotDecodedError where a part is missing or does not fit. Nothing is read.
    """

    description: str
    methods: frozenset[str]
    recognises: Callable[[Group], bool]
    decoder: Callable[[Group], Decoder]


#: Every format, once. The first one that recognises a weight has it.
QUANTISED_FORMATS = (
    QuantisedFormat(
        "float8 with a scale for the matrix, each row or each block", float8.METHODS, float8.is_float8, float8.decoder
    ),
)


def decoder_of(group: Group) -> Decoder:
    """Return what the numbers of a quantised weight come out by.

    Raises
    ------
    NotDecodedError
        It is in no format of the list, or a part is missing or does not fit.
    """
    method = group.method.lower()
    for format in QUANTISED_FORMATS:
        if (not method or method in format.methods) and format.recognises(group):
            return format.decoder(group)
    raise NotDecodedError(f"is {group.info.dtype} in a format that is not read")
