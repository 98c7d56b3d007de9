"""Says what is missing where PyTorch is; imported before everything that needs it."""

import importlib.util

if importlib.util.find_spec("torch") is None:
    raise ImportError("mpfast.integrations.torch needs PyTorch: pip install 'mpfast[torch]'")
