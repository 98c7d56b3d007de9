"""Commands about mpfast itself: bench and info."""

from __future__ import annotations

import platform
from typing import Annotated

import numpy as np
import typer

from mpfast import _core
from mpfast.arrays import cuda_status
from mpfast.cli.configuration import configuration_in_force
from mpfast.cli.console import check_files, reports_errors, terminal_width, write_document
from mpfast.cli.options import JsonOption
from mpfast.cli.tables import benchmark_table
from mpfast.models import installed_version
from mpfast.support import write_text_atomically


@reports_errors
def bench_command(
    cases: Annotated[list[str] | None, typer.Argument(metavar="CASE", help="Cases to run.", show_default="all")] = None,
    full: Annotated[bool, typer.Option("--full", help="The published sizes: many minutes.")] = False,
    json_file: JsonOption = None,
) -> None:
    """Time mpfast against LAPACK, SciPy and others on this machine, with the error of each.

    Ratios are taken within one run: "x ours" is how many times longer a contender took than mpfast.
    """
    check_files({"--json": json_file})
    from rich.console import Console

    from mpfast.bench import Row, build, case_names, machine, measure, missing_cases, to_json

    unknown = [name for name in cases or () if name not in (*case_names(), *missing_cases())]
    if unknown:
        there = ", ".join(case_names())
        raise typer.BadParameter(f"no benchmark is called {unknown[0]!r}; there are {there}", param_hint="CASE")
    rows: list[Row] = []
    notes = [f"{name}: not run, needs {why}" for name, why in missing_cases().items() if not cases]
    for name in cases or case_names():
        typer.echo(f"{name} ...", err=True)
        case = build(name, full=full)
        rows += measure(case)
        notes += [f"{name}: {c.name} not run, needs {c.requires}" for c in case.contenders if not c.available]
    if json_file == "-":
        typer.echo(to_json(rows), nl=False)
        return
    if json_file is not None:
        write_text_atomically(json_file, to_json(rows))
    console = Console(highlight=False, width=terminal_width() or 110)
    console.print(benchmark_table(rows))
    for line in (*notes, ", ".join(f"{key} {value}" for key, value in machine().items())):
        console.print(line, soft_wrap=True)


@reports_errors
def info_command(ctx: typer.Context, json_file: JsonOption = None) -> None:
    """Show versions and what the native core uses on this machine."""
    facts = {
        "mpfast": installed_version(),
        "Python": f"{platform.python_version()} on {platform.platform()}",
        "NumPy": np.__version__,
        "BLAS": _core.blas(),
        "SIMD": _core.isa(),
        "threads": str(_core.default_threads()),
        "CUDA": cuda_status(),
        "options": configuration_in_force(ctx) or "of the command line alone",
    }
    check_files({"--json": json_file})
    document = {"schema": "mpfast.info/1", **{key.lower(): value for key, value in facts.items()}}
    typed = {"threads": _core.default_threads(), "options": configuration_in_force(ctx)}
    if write_document({**document, **typed}, json_file):
        return
    for name, value in facts.items():
        typer.echo(f"{name:8} {value}")
