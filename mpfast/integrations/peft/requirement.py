"""Says what is missing where PEFT is; imported before everything that needs it."""

import importlib.util

from mpfast.support import package_missing

if importlib.util.find_spec("peft") is None:
    raise package_missing("mpfast.integrations.peft", "peft")
