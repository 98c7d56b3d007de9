"""Every benchmark case, ours under pytest-benchmark and every contender in the same run.

    pytest benchmarks --benchmark-json=results.json

The JSON file holds, per case, the rows of the closing table under ``extra_info``.
"""

from __future__ import annotations

from dataclasses import asdict

import pytest

from mpfast import bench as benchmarking


@pytest.mark.parametrize("name", benchmarking.case_names())
def test_case(name: str, benchmark, request: pytest.FixtureRequest, rows: list[benchmarking.Row]) -> None:
    case = benchmarking.build(name, full=not request.config.getoption("--short"))
    measured = benchmarking.measure(case)
    rows.extend(measured)
    benchmark.extra_info["title"] = case.title
    benchmark.extra_info["rows"] = [asdict(row) for row in measured]
    benchmark.pedantic(case.contenders[0].run, rounds=5, warmup_rounds=1)
    for row in measured:
        # What is timed must be what it says: every row of ours carries the error it was measured with.
        assert row.contender != case.contenders[0].name or row.error is None or row.error < 0.02
