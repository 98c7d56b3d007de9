"""The command that fits the edge of every matrix of a model."""

from __future__ import annotations

import contextlib
import importlib
from pathlib import Path
from typing import Annotated, Any

import typer

from mpfast.checkpoints import ConvView, ExpertsView, QkvView, Views
from mpfast.cli.console import print_lines, reports_errors, require_directory, terminal_width
from mpfast.cli.options import (
    BaseOption,
    DeviceOption,
    ExcludeOption,
    IncludeOption,
    JsonOption,
    MethodOption,
    ModelArgument,
    ProgressOption,
    SeedOption,
    ThreadsOption,
    TolOption,
    VerboseOption,
    word_option,
)
from mpfast.cli.tables import analysis_lines
from mpfast.models import SORT_COLUMNS, Analysis, analyze, sorted_rows

__all__ = ["analyze_command"]


@reports_errors
def analyze_command(
    model: ModelArgument,
    json_file: JsonOption = None,
    csv_file: Annotated[
        str | None,
        typer.Option("--csv", metavar="FILE", help="Write CSV to FILE; - prints it instead of the table."),
    ] = None,
    html_file: Annotated[
        str | None,
        typer.Option("--html", metavar="FILE", help="Write a page for any browser to FILE; - prints it instead."),
    ] = None,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    base: BaseOption = None,
    conv: Annotated[ConvView, typer.Option(help="Convolutions as one matrix, or one per position.")] = "im2col",
    qkv: Annotated[QkvView, typer.Option(help="Fused query, key and value as three matrices or one.")] = "split",
    experts: Annotated[ExpertsView, typer.Option(help="A stack of experts as matrices or as one.")] = "split",
    method: MethodOption = "auto",
    tol: TolOption = 5e-3,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the layers' results in DIR, and resume from there.")
    ] = None,
    dask: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Spread the layers over the Dask cluster of this scheduler.")
    ] = None,
    sort: Annotated[
        str | None,
        word_option(
            SORT_COLUMNS,
            "COLUMN",
            "Order of the rows, by a column as the JSON calls it; numbers run downwards.",
            show_default="order of MODEL",
        ),
    ] = None,
    progress: ProgressOption = True,
    verbose: VerboseOption = False,
) -> None:
    """Fit the Marchenko-Pastur edge of every weight matrix of a model.

    The table shows, per matrix: the edge sigma+ with its standard error where it is an estimate, the number
    of singular values above it that noise does not explain (spikes), the share that noise does (bulk), the
    distance between spectrum and fitted law (KS) with a verdict, the Hill exponent and the stable rank.
    """
    files = (json_file, csv_file, html_file)
    if files.count("-") > 1:
        raise typer.BadParameter("only one of --json -, --csv - and --html - can have standard output")
    for file in files:
        require_directory(file)
    with contextlib.nullcontext() if dask is None else _dask_client(dask) as client:
        analysis = analyze(
            model.absolute() if dask else model,
            include=include or None,
            exclude=exclude or None,
            base=base.absolute() if base and dask else base,
            views=Views(conv, qkv, experts),
            method=method,
            tol=tol,
            seed=seed,
            device=device,
            threads=threads,
            cache=cache,
            client=client,
            progress=progress,
        )
    _write(analysis, *files)
    if "-" not in files:
        rows = analysis.layers if sort is None else sorted_rows(analysis, sort)
        print_lines(analysis_lines(analysis, rows, width=terminal_width(), verbose=verbose))


def _dask_client(address: str) -> Any:
    try:
        distributed = importlib.import_module("distributed")
    except ImportError:
        raise ImportError("--dask needs Dask: pip install 'mpfast[dask]'") from None
    return distributed.Client(address)


def _write(analysis: Analysis, json_file: str | None, csv_file: str | None, html_file: str | None) -> None:
    """Write the analysis in every form that a file is named for; ``-`` is standard output."""
    forms = ((analysis.to_json, json_file), (analysis.to_csv, csv_file), (analysis.to_html, html_file))
    for write, file in forms:
        if file == "-":
            typer.echo(write(), nl=False)
        elif file is not None:
            write(file)
