"""PEFT: which layers get an adapter, of which rank, and what it starts from."""

import mpfast.integrations.peft.requirement  # isort: skip  # before PyTorch is imported

from mpfast.integrations.peft.initial_adapters import AdapterStart, start_adapters
from mpfast.integrations.peft.rank_patterns import rank_pattern
from mpfast.integrations.peft.targets import target_modules

__all__ = ["AdapterStart", "rank_pattern", "start_adapters", "target_modules"]
