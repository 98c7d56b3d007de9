"""llm-compressor: our masks, refitted weights and budgets as modifiers, which an import registers for its recipes."""

import mpfast.integrations.llmcompressor.requirement  # isort: skip  # before what needs it is imported

from mpfast.integrations.llmcompressor.modifier import MPFastModifier
from mpfast.integrations.llmcompressor.sparse_gpt import MPFastSparseGPTModifier

__all__ = ["MPFastModifier", "MPFastSparseGPTModifier"]
