"""Says what is missing where PyTorch is; imported before everything that needs it."""

import importlib.util

from mpfast.support import package_missing

if importlib.util.find_spec("torch") is None:
    raise package_missing("mpfast.integrations.torch", "torch", extra="torch")
