"""The command line. Results go to standard output, the rest to standard error."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from mpfast.cli import matrices, models, tools  # register the commands
from mpfast.cli.app import app

__all__ = ["app", "main", "matrices", "models", "tools"]


def main(arguments: Sequence[str] | None = None) -> Any:
    """Run the command line; ends with `SystemExit`: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        # A layer's name or "±" must not end the program where the locale cannot spell it.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    return app(args=None if arguments is None else list(arguments), prog_name="mpfast")
