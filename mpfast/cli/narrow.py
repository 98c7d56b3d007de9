"""The command that writes a smaller model of the same family."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mpfast.checkpoints import DENSE_TYPES
from mpfast.cli.arrangement import Arrangement
from mpfast.cli.columns import NARROWED
from mpfast.cli.conditions import conditions, violations
from mpfast.cli.console import check_files, fail, print_lines, reports_errors, terminal_width, write_document
from mpfast.cli.options import (
    DampingOption,
    DequantizeOption,
    DryRunOption,
    FailOnOption,
    JsonOption,
    ModelArgument,
    OutOption,
    OverwriteOption,
    QuietOption,
    ReverseOption,
    StrictOption,
    ThreadsOption,
    TopOption,
    VerboseOption,
    require_out_or_dry_run,
    sort_option,
)
from mpfast.cli.tables import ERROR_COLUMNS, Line, arranged_lines, plain, printable, sentences
from mpfast.models import NarrowedLayer, NarrowResult, narrow, provenance_of

__all__ = ["narrow_command"]


def _number_or_share(text: str | None) -> str | None:
    if text is not None and _parsed(text) is None:
        raise typer.BadParameter(f"must be a positive integer, or a share between 0 and 1, not {text!r}")
    return text


def _parsed(text: str) -> int | float | None:
    """What the text says; None where that is neither a positive integer nor a share."""
    if text.isdecimal():
        return int(text) or None
    try:
        share = float(text)
    except ValueError:
        return None
    return share if 0 < share < 1 else None


@reports_errors
def narrow_command(
    model: ModelArgument,
    moments: Annotated[
        Path,
        typer.Option(metavar="FILE", help="What the layers see, from mpfast moments.", show_default=False),
    ],
    out: OutOption = None,
    neurons: Annotated[
        str | None,
        typer.Option(
            metavar="N|SHARE",
            help="Neurons that stay in every feed-forward layer: 1024, or 0.75 of them.",
            callback=_number_or_share,
            show_default="all",
        ),
    ] = None,
    heads: Annotated[
        str | None,
        typer.Option(
            metavar="N|SHARE",
            help="Heads of keys and values that stay, each with the heads of queries that it serves.",
            callback=_number_or_share,
            show_default="all",
        ),
    ] = None,
    damping: DampingOption = None,
    dequantize: DequantizeOption = None,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    threads: ThreadsOption = None,
    json_file: JsonOption = None,
    sort: Annotated[str | None, sort_option(NARROWED.sortable)] = None,
    reverse: ReverseOption = False,
    top: TopOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    fail_on: FailOnOption = None,
    strict: StrictOption = False,
) -> None:
    """Write a smaller model: the same with fewer neurons and attention heads, which loads as MODEL does.

    Those go whose loss the others make up for best, and what reads them is refitted. MODEL, a directory with a
    config.json, is never changed.
    """
    require_out_or_dry_run(out, dry_run)
    wanted = conditions(fail_on, NARROWED)
    check_files({"--json": json_file}, reads=(model, moments), out=out)
    if neurons is None and heads is None:
        raise typer.BadParameter("pass --neurons, --heads or both")
    result = narrow(
        model,
        out,
        moments=moments,
        neurons=None if neurons is None else _parsed(neurons),
        heads=None if heads is None else _parsed(heads),
        damping=damping,
        dequantize=None if dequantize is None else DENSE_TYPES[dequantize],
        threads=threads,
        overwrite=overwrite,
    )
    chosen = {"moments": str(moments), "neurons": neurons, "heads": heads, "damping": damping, "dequantize": dequantize}
    if not write_document(result.to_document(provenance_of(model, **chosen)), json_file) and not quiet:
        print_lines(_lines(result, Arrangement(sort, reverse, top), width=terminal_width()))
    findings = violations(wanted, ((layer.name, asdict(layer)) for layer in result.layers))
    if findings:
        fail(findings)


def _lines(result: NarrowResult, arrangement: Arrangement, *, width: int | None) -> list[Line]:
    """Lay out what is left of each matrix that reads, the new sizes, and the total."""
    errors = [column for column in ERROR_COLUMNS if any(getattr(layer, column) is not None for layer in result.layers)]

    def cells(layer: NarrowedLayer) -> Line:
        figures = ((f"{100 * getattr(layer, column):.2f}%", "") for column in errors)
        return [(printable(layer.name), "cyan"), (f"{len(layer.kept)} of {layer.units} {layer.kind}", ""), *figures]

    headers = ("layer", "stay", *(ERROR_COLUMNS[column] for column in errors))
    where = "nothing written (dry run)" if result.out is None else f"written to {result.out}"
    sizes = ", ".join(f"{name} {value}" for name, value in result.settings.items())
    return [
        *arranged_lines(headers, result.layers, cells, arrangement, width),
        plain(),
        *sentences("not copied:", result.not_copied),
        plain(sizes),
        plain(f"{result.entries:,} of {result.entries_before:,} entries of the model ({100 * result.ratio:.1f}%)"),
        plain(f"{printable(where)} in {result.seconds:.2f} s"),
    ]
