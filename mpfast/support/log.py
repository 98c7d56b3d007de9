"""The logger of the package, silent unless the program listens to it."""

from __future__ import annotations

import logging

__all__ = ["logger"]

#: What whole-model functions do, at the level INFO, and layer by layer at DEBUG; warnings are Python's.
logger = logging.getLogger("mpfast")
logger.addHandler(logging.NullHandler())
