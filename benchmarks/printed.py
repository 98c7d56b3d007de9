"""What the scripts of this folder print: the machine in a line, and their tables, or write them to a file."""

from __future__ import annotations

import sys
from pathlib import Path

from mpfast.bench import machine


def machine_line() -> str:
    """Return what machine and versions the figures are of."""
    return ", ".join(f"{key} {value}" for key, value in machine().items())


def print_or_write(text: str, out: Path | None) -> None:
    """Write to a file, or to standard output where there is none."""
    if out is None:
        sys.stdout.write(text)
    else:
        out.write_text(text, encoding="utf-8")
