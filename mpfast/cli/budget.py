"""The command that shares a sparsity out over the layers of a model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from mpfast.cli.columns import BUDGET
from mpfast.cli.conditions import conditions, violations
from mpfast.cli.console import check_files, fail, reports_errors
from mpfast.cli.options import (
    OUTPUT,
    CeilingOption,
    DeviceOption,
    EmbeddingsOption,
    ExcludeOption,
    FailOnOption,
    GradientsOption,
    IncludeOption,
    ModelArgument,
    ProgressOption,
    QuietOption,
    SeedOption,
    StrictOption,
    ThreadsOption,
    TolOption,
    VerboseOption,
    share_between_0_and_1,
    word_option,
)
from mpfast.models import DEFAULT_FORMAT, DEFAULT_METHOD, EXPORTERS, METHODS, SkippedTensor, analyze, share_out
from mpfast.support import counted, write_text_atomically

__all__ = ["budget_command"]


@reports_errors
def budget_command(
    model: ModelArgument,
    sparsity: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            help="Share of the entries to prune, 0 to 1.",
            callback=share_between_0_and_1,
            show_default=False,
        ),
    ],
    out: Annotated[str, typer.Option("-o", "--out", metavar="FILE", help="File to write; - prints it.")] = "-",
    format: Annotated[str, word_option(EXPORTERS, "FORMAT", "What to write.")] = DEFAULT_FORMAT,
    method: Annotated[str, word_option(METHODS, "METHOD", "How the sparsity is shared out.")] = DEFAULT_METHOD,
    moments: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What the layers see, from mpfast moments, for some methods.")
    ] = None,
    gradients: GradientsOption = None,
    floor: Annotated[
        float,
        typer.Option(metavar="SHARE", help="Smallest sparsity of a layer.", callback=share_between_0_and_1),
    ] = 0.0,
    ceiling: CeilingOption = None,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    embeddings: EmbeddingsOption = False,
    tol: TolOption = 5e-3,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    json_file: Annotated[
        str | None,
        typer.Option(
            "--json",
            metavar="FILE",
            help="Write the budget as JSON to FILE, too; - prints it alone.",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    progress: ProgressOption = True,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    fail_on: FailOnOption = None,
    strict: StrictOption = False,
) -> None:
    """Share a sparsity out over the layers of a model, for prune --budget or another tool."""
    wanted = conditions(fail_on, BUDGET)
    check_files({"--out": out, "--json": json_file}, reads=(model, moments, gradients))
    bounds: dict[str, Any] = {"floor": floor, "ceiling": ceiling, "embeddings": embeddings}
    options: dict[str, Any] = {
        "include": include or None,
        "exclude": exclude or None,
        "tol": tol,
        "seed": seed,
        "device": device,
        "threads": threads,
        "progress": progress and not quiet,
    }
    broken: tuple[SkippedTensor, ...] = ()
    if moments is None and gradients is None and {*METHODS[method].needs} <= {"spectra"}:
        analysis = analyze(model, **options)
        budget, broken = analysis.budget(sparsity, method=method, **bounds), analysis.non_finite
    else:
        budget = share_out(model, sparsity, method=method, moments=moments, gradients=gradients, **bounds, **options)
    text = budget.export(format)
    if json_file is not None and json_file != "-":
        budget.to_json(json_file)
    if out != "-":
        write_text_atomically(out, text)
        if not quiet and json_file != "-":
            share = f" ({100 * budget.model_share:.2f}% of the whole model's weights)" if budget.model_share else ""
            pruned = f"{budget.pruned:,} of {budget.entries:,} entries"
            typer.echo(f"{out}: {pruned} in {counted(len(budget), 'layer')}{share}")
    if "-" in (out, json_file):
        typer.echo(budget.to_json() if json_file == "-" else text, nl=False)
    findings = violations(wanted, ((row.name, asdict(row)) for row in budget))
    if broken:
        findings.insert(0, f"NaN or infinities in {broken[0].name}, which stays out: {broken[0].reason}")
    if findings:
        fail(findings)
