"""The command line. Results go to standard output, the rest to standard error."""

from mpfast.cli.app import main

__all__ = ["main"]
