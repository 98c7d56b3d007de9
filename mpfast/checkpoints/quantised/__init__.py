"""Quantised weights: what is stored of each, and how its numbers come out of that."""

from mpfast.checkpoints.quantised.group import Group, NotDecodedError, groups_of
from mpfast.checkpoints.quantised.scaled_codes import ScaledCodes

__all__ = ["Group", "NotDecodedError", "ScaledCodes", "groups_of"]
