"""Says what is missing where Olive is; imported before everything that needs it."""

import importlib.util

from mpfast.support import package_missing

if importlib.util.find_spec("olive") is None:
    raise package_missing("mpfast.integrations.olive", "olive-ai")
