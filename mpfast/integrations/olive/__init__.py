"""Olive: pruning as one of its passes."""

import mpfast.integrations.olive.requirement  # isort: skip  # before what needs it is imported

from mpfast.integrations.olive.prune_pass import PACKAGE_CONFIG, MPFastPrune

__all__ = ["PACKAGE_CONFIG", "MPFastPrune"]
