"""Quantised weights: what is stored of each, and how its numbers come out of that."""

from mpfast.checkpoints.quantised.dense import DENSE_TYPES, DenseCopy, dense_copy
from mpfast.checkpoints.quantised.formats import QUANTISED_FORMATS, QuantisedFormat
from mpfast.checkpoints.quantised.group import Group, NotDecodedError, groups_of
from mpfast.checkpoints.quantised.masked import masked_codes, reason_against_masking, repackable
from mpfast.checkpoints.quantised.reader import Dequantised, QuantisedWeight, dequantised
from mpfast.checkpoints.quantised.scaled_codes import ScaledCodes

__all__ = [
    "DENSE_TYPES",
    "QUANTISED_FORMATS",
    "DenseCopy",
    "Dequantised",
    "Group",
    "NotDecodedError",
    "QuantisedFormat",
    "QuantisedWeight",
    "ScaledCodes",
    "dense_copy",
    "dequantised",
    "groups_of",
    "masked_codes",
    "reason_against_masking",
    "repackable",
]
