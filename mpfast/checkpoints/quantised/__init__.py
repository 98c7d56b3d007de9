"""Quantised weights: what is stored of each, and how its numbers come out of that."""

from mpfast.checkpoints.quantised.formats import QUANTISED_FORMATS, QuantisedFormat
from mpfast.checkpoints.quantised.group import Group, NotDecodedError, groups_of
from mpfast.checkpoints.quantised.reader import Dequantised, dequantised
from mpfast.checkpoints.quantised.scaled_codes import ScaledCodes

__all__ = [
    "QUANTISED_FORMATS",
    "Dequantised",
    "Group",
    "NotDecodedError",
    "QuantisedFormat",
    "ScaledCodes",
    "dequantised",
    "groups_of",
]
