"""Benchmark cases and the stopwatch, behind ``mpfast bench`` and the suite in ``benchmarks/``."""

from mpfast.bench.cases import build, case_names, find_minilm, missing_cases
from mpfast.bench.timing import Case, Contender, Row, accuracy_markdown, machine, markdown, measure, to_json

__all__ = [
    "Case",
    "Contender",
    "Row",
    "accuracy_markdown",
    "build",
    "case_names",
    "find_minilm",
    "machine",
    "markdown",
    "measure",
    "missing_cases",
    "to_json",
]
