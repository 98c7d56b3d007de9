"""Options and the closing table of the benchmark suite."""

from __future__ import annotations

from typing import Any

import pytest

from mpfast import bench as benchmarking

_ROWS: list[benchmarking.Row] = []
_ACCURACY: list[dict[str, Any]] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--short", action="store_true", help="small matrices: about a minute in all")


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["mpfast"] = benchmarking.machine()


@pytest.fixture
def rows() -> list[benchmarking.Row]:
    """Collects the rows of all cases for the table printed at the end."""
    return _ROWS


@pytest.fixture
def accuracy() -> list[dict[str, Any]]:
    """Collects the rows of the families for the table printed at the end."""
    return _ACCURACY


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _ACCURACY:
        terminalreporter.section("sigma_plus: error seen and error reported")
        terminalreporter.write_line(benchmarking.accuracy_markdown(_ACCURACY))
    if _ROWS:
        terminalreporter.section("time, ratio and error")
        terminalreporter.write_line(benchmarking.markdown(_ROWS))
