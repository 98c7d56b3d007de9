"""What every report has: tables, and the name of the processor."""

from __future__ import annotations

import platform
from pathlib import Path


def table(heads: list[str], lines: list[list[str]]) -> list[str]:
    cells = ["| " + " | ".join(line) + " |" for line in lines]
    return ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|", *cells, ""]


def processor() -> str:
    path = Path("/proc/cpuinfo")
    models = [line for line in path.read_text().splitlines() if line.startswith("model name")] if path.exists() else []
    return models[0].partition(":")[2].strip() if models else platform.processor() or platform.machine()
