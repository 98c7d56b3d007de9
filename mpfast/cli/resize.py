"""The command that gives the updates of an adapter fewer ranks."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mpfast.cli.arrangement import Arrangement
from mpfast.cli.columns import RESIZED
from mpfast.cli.conditions import conditions, violations
from mpfast.cli.console import check_files, fail, print_lines, reports_errors, terminal_width, write_document
from mpfast.cli.options import (
    DryRunOption,
    EnergyOption,
    ErrorOption,
    FailOnOption,
    JsonOption,
    OutOption,
    OverwriteOption,
    QuietOption,
    ReverseOption,
    StrictOption,
    TopOption,
    VerboseOption,
    require_out_or_dry_run,
    sort_option,
)
from mpfast.cli.tables import resize_lines
from mpfast.models import provenance_of, resize

__all__ = ["resize_command"]


@reports_errors
def resize_command(
    adapter: Annotated[
        Path,
        typer.Argument(metavar="ADAPTER", help="A LoRA adapter: a directory of PEFT, or a file of any dialect."),
    ],
    out: OutOption = None,
    rank: Annotated[
        int | None, typer.Option(min=1, metavar="R", help="At most so many ranks.", show_default=False)
    ] = None,
    energy: EnergyOption = None,
    error: ErrorOption = None,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    json_file: JsonOption = None,
    sort: Annotated[str | None, sort_option(RESIZED.sortable)] = None,
    reverse: ReverseOption = False,
    top: TopOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    fail_on: FailOnOption = None,
    strict: StrictOption = False,
) -> None:
    """Write a copy of a LoRA adapter with fewer ranks, in its own dialect.

    One of --rank, --energy and --error says how much of each update stays; errors are those of the updates, norm over
    norm. The scale of every update stays, for alpha follows the rank. ADAPTER is never changed.
    """
    require_out_or_dry_run(out, dry_run)
    wanted = conditions(fail_on, RESIZED)
    check_files({"--json": json_file}, reads=(adapter,), out=out)
    if sum(option is not None for option in (rank, energy, error)) != 1:
        raise typer.BadParameter("pass one of --rank, --energy and --error")
    result = resize(adapter, out, rank=rank, energy=energy, error=error, overwrite=overwrite)
    document = result.to_document(provenance_of(adapter, rank=rank, energy=energy, error=error))
    if not write_document(document, json_file) and not quiet:
        arrangement = Arrangement(sort, reverse, top)
        print_lines(resize_lines(result, arrangement, width=terminal_width(), verbose=verbose))
    findings = violations(wanted, ((layer.name, asdict(layer)) for layer in result.layers))
    if findings:
        fail(findings)
