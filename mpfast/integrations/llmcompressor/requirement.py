"""Says what is missing where llm-compressor is; imported before everything that needs it."""

import importlib.util

from mpfast.support import package_missing

if importlib.util.find_spec("llmcompressor") is None:
    raise package_missing("mpfast.integrations.llmcompressor", "llmcompressor")
