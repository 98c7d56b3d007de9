"""Says what is missing where ModelOpt is; imported before everything that needs it."""

import importlib.util

from mpfast.support import package_missing

if importlib.util.find_spec("modelopt") is None:
    raise package_missing("mpfast.integrations.modelopt", "nvidia-modelopt")
