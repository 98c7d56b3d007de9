"""The command that fits the edge of every matrix of a model."""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mpfast.checkpoints import ConvView, ExpertsView, QkvView, Views, telling_reason
from mpfast.cli.analysis_table import analysis_lines
from mpfast.cli.arrangement import Arrangement
from mpfast.cli.columns import LAYERS
from mpfast.cli.conditions import Condition, conditions, violations
from mpfast.cli.console import (
    check_files,
    fail,
    message_of,
    print_lines,
    reports_errors,
    terminal_width,
    told_of,
    warn,
    write_document,
    write_text,
)
from mpfast.cli.options import (
    CHOICE,
    COMPUTATION,
    OUTPUT,
    STATUS,
    BaseOption,
    CsvOption,
    DeviceOption,
    ExcludeOption,
    FailOnOption,
    HtmlOption,
    IncludeOption,
    JsonOption,
    ModelsArgument,
    ProgressOption,
    QuietOption,
    ReverseOption,
    SeedOption,
    SpectraOption,
    StrictOption,
    ThreadsOption,
    TolOption,
    TopOption,
    VerboseOption,
    require_one_standard_output,
    sort_option,
)
from mpfast.models import (
    ANALYSES_SCHEMA,
    Analysis,
    ExpertRows,
    analyze,
    csv_of,
)
from mpfast.support import counted, package_missing

__all__ = ["analyze_command"]


@reports_errors
def analyze_command(
    models: ModelsArgument,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    base: BaseOption = None,
    conv: Annotated[
        ConvView, typer.Option(help="Convolutions as one matrix, or one per position.", rich_help_panel=CHOICE)
    ] = "im2col",
    qkv: Annotated[
        QkvView, typer.Option(help="Fused query, key and value as three matrices or one.", rich_help_panel=CHOICE)
    ] = "split",
    experts: Annotated[
        ExpertsView, typer.Option(help="A stack of experts as matrices or as one.", rich_help_panel=CHOICE)
    ] = "split",
    method: SpectraOption = "auto",
    tol: TolOption = 5e-3,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Keep the layers' results in DIR, and resume from there.",
            rich_help_panel=COMPUTATION,
        ),
    ] = None,
    dask: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Spread the layers over the Dask cluster of this scheduler.",
            rich_help_panel=COMPUTATION,
        ),
    ] = None,
    json_file: JsonOption = None,
    csv_file: CsvOption = None,
    html_file: HtmlOption = None,
    sort: Annotated[str | None, sort_option(LAYERS.sortable)] = None,
    reverse: ReverseOption = False,
    top: TopOption = None,
    expert_rows: Annotated[
        ExpertRows,
        typer.Option(
            help="Rows of experts in the table, the JSON and the page, where a block has 8 or more: summed up, or all. "
            "CSV has all.",
            rich_help_panel=OUTPUT,
        ),
    ] = "summary",
    progress: ProgressOption = True,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    fail_on: FailOnOption = None,
    strict: StrictOption = False,
    allow_nonfinite: Annotated[
        bool,
        typer.Option(
            "--allow-nonfinite",
            help="Matrices with NaN or infinities do not make the command fail.",
            rich_help_panel=STATUS,
        ),
    ] = False,
) -> None:
    """Fit the Marchenko-Pastur edge of every weight matrix of one or several models.

    The table shows, per matrix: the edge sigma+ with its standard error where it is an estimate, and the
    number of singular values that stand out of even noise (spikes); with scales of rows and columns taken
    out, how many could not come from independent entries and how many stand out of the bulk (signals); by
    what share uneven noise would move the edge; the distance between spectrum and law (KS), before and
    after; what the bulk is (even, uneven, nearly, none: noise); the energy in the fitted noise (share),
    the effective rank, the Hill exponent and the stable rank.

    The exit status is 1, after the output, where a matrix has NaN or infinities, where nothing was analysed,
    where a condition of --fail-on is met, and with --strict where there is a warning.
    """
    files = (json_file, csv_file, html_file)
    by_option = dict(zip(("--json", "--csv", "--html"), files, strict=True))
    require_one_standard_output(by_option)
    if html_file is not None and len(models) > 1:
        raise typer.BadParameter("--html takes one model: a page is about one")
    wanted = conditions(fail_on, LAYERS)
    check_files(by_option, reads=(*models, base))
    analyses: list[Analysis] = []
    findings: list[str] = []
    with contextlib.nullcontext() if dask is None else _dask_client(dask) as client:
        for model in models:
            try:
                found = analyze(
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
                    progress=progress and not quiet,
                )
            except (ValueError, TypeError, OSError) as error:
                if len(models) == 1:
                    raise
                findings.append(told_of(model, models, message_of(error)))
                continue
            analyses.append(found)
            findings += [told_of(model, models, text) for text in _findings(found, wanted, allow_nonfinite)]
    _write(analyses, len(models) > 1, expert_rows, *files)
    for found in analyses:
        for text in dict.fromkeys(text for row in found for text in row.warnings):
            warn(text)
        if "-" not in files and not quiet:
            arrangement = Arrangement(sort, reverse, top)
            print_lines(analysis_lines(found, arrangement, expert_rows, width=terminal_width(), verbose=verbose))
    if findings:
        fail(findings)


def _findings(found: Analysis, wanted: Sequence[Condition], allow_nonfinite: bool) -> list[str]:
    """Say what is wrong with a model."""
    told = []
    broken = found.non_finite
    if broken and not allow_nonfinite:
        more = f" and {counted(len(broken) - 1, 'more matrix', 'more matrices')}" if len(broken) > 1 else ""
        told.append(f"NaN or infinities in {broken[0].name}{more}: {broken[0].reason}")
    if not len(found) and not broken:
        reasons = {tensor.name: tensor.reason for tensor in found.skipped}
        sizes = {tensor.name: math.prod(tensor.shape) for tensor in found.skipped}
        told.append(f"nothing was analysed{telling_reason(reasons, sizes)}")
    return told + violations(wanted, ((row.name, row.to_dict()) for row in found))


def _dask_client(address: str) -> Any:
    try:
        distributed = importlib.import_module("distributed")
    except ImportError:
        raise package_missing("--dask", "dask", "distributed", extra="dask") from None
    return distributed.Client(address)


def _write(
    analyses: Sequence[Analysis],
    several: bool,
    expert_rows: ExpertRows,
    json_file: str | None,
    csv_file: str | None,
    html_file: str | None,
) -> None:
    """Write the analyses in every form that a file is named for; ``-`` is standard output."""
    documents = [found.to_document(expert_rows=expert_rows) for found in analyses]
    write_document({"schema": ANALYSES_SCHEMA, "analyses": documents} if several else documents[0], json_file)
    if csv_file is not None:
        write_text(csv_of([(found.source, found) for found in analyses], several), csv_file)
    if html_file is not None:
        write_text(analyses[0].to_html(expert_rows=expert_rows), html_file)
