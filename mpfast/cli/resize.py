"""The command that gives the updates of an adapter fewer ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mpfast.cli.console import check_files, print_lines, reports_errors, terminal_width, write_document
from mpfast.cli.options import (
    DryRunOption,
    JsonOption,
    OutOption,
    OverwriteOption,
    QuietOption,
    StrictOption,
    VerboseOption,
    require_out_or_dry_run,
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
    energy: Annotated[
        float | None, typer.Option(help="As few as hold this share of the squared norm, in (0, 1].", show_default=False)
    ] = None,
    error: Annotated[
        float | None, typer.Option(help="As few as leave this relative error, in [0, 1).", show_default=False)
    ] = None,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    json_file: JsonOption = None,
    strict: StrictOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Write a copy of a LoRA adapter with fewer ranks, in its own dialect.

    One of --rank, --energy and --error says how much of each update stays; errors are those of the updates, norm over
    norm. The scale of every update stays, for alpha follows the rank. ADAPTER is never changed.
    """
    require_out_or_dry_run(out, dry_run)
    check_files({"--json": json_file}, reads=(adapter,), out=out)
    if sum(option is not None for option in (rank, energy, error)) != 1:
        raise typer.BadParameter("pass one of --rank, --energy and --error")
    result = resize(adapter, out, rank=rank, energy=energy, error=error, overwrite=overwrite)
    document = result.to_document(provenance_of(adapter, rank=rank, energy=energy, error=error))
    if not write_document(document, json_file) and not quiet:
        print_lines(resize_lines(result, width=terminal_width(), verbose=verbose))
