"""The command that stores the weights of a model as packed integers."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mpfast.cli.arrangement import Arrangement
from mpfast.cli.columns import QUANTIZED
from mpfast.cli.conditions import conditions, violations
from mpfast.cli.console import check_files, fail, print_lines, reports_errors, terminal_width, write_document
from mpfast.cli.options import (
    DampingOption,
    DryRunOption,
    ExcludeOption,
    FailOnOption,
    IncludeOption,
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
    word_option,
)
from mpfast.cli.tables import Line, arranged_lines, plain, printable, sentences, skipped_lines, text_cells
from mpfast.models import QUANTIZE_FORMATS, QuantizedLayer, QuantizeResult, provenance_of, quantize
from mpfast.support import counted

__all__ = ["quantize_command"]

_ERRORS = {"weight_error": "weights", "error": "outputs", "heldout_error": "held out"}


@reports_errors
def quantize_command(
    model: ModelArgument,
    out: OutOption = None,
    format: Annotated[
        str | None,
        word_option(
            QUANTIZE_FORMATS,
            "FORMAT",
            "compressed-tensors: packed, which transformers loads; Q4_0 and Q8_0: types of GGUF, for a GGUF file.",
            show_default="compressed-tensors",
        ),
    ] = None,
    bits: Annotated[int | None, typer.Option(min=2, max=8, metavar="N", help="Of a weight.", show_default="4")] = None,
    group: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Consecutive inputs of a row that share a scale.", show_default="64"),
    ] = None,
    moments: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What the layers see, from mpfast moments: the later weights make up for the earlier.",
            show_default="each weight to the nearest",
        ),
    ] = None,
    damping: DampingOption = None,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    threads: ThreadsOption = None,
    json_file: JsonOption = None,
    sort: Annotated[str | None, sort_option(QUANTIZED.sortable)] = None,
    reverse: ReverseOption = False,
    top: TopOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    fail_on: FailOnOption = None,
    strict: StrictOption = False,
) -> None:
    """Write a copy of a model whose linear layers are integers of few bits.

    MODEL, a directory with a config.json or a GGUF file, is never changed.
    """
    require_out_or_dry_run(out, dry_run)
    wanted = conditions(fail_on, QUANTIZED)
    check_files({"--json": json_file}, reads=(model, moments), out=out)
    if damping is not None and moments is None:
        raise typer.BadParameter("--damping goes with --moments")
    result = quantize(
        model,
        out,
        format=format,
        bits=bits,
        group=group,
        moments=moments,
        damping=damping,
        include=include or None,
        exclude=exclude or None,
        threads=threads,
        overwrite=overwrite,
    )
    chosen = {
        "format": format,
        "bits": bits,
        "group": group,
        "moments": None if moments is None else str(moments),
        "damping": damping,
        "include": include,
        "exclude": exclude,
    }
    if not write_document(result.to_document(provenance_of(model, **chosen)), json_file) and not quiet:
        print_lines(_lines(result, Arrangement(sort, reverse, top), width=terminal_width(), verbose=verbose))
    findings = violations(wanted, ((layer.name, asdict(layer)) for layer in result.layers))
    if findings:
        fail(findings)


def _lines(result: QuantizeResult, arrangement: Arrangement, *, width: int | None, verbose: bool) -> list[Line]:
    """Lay out what the rounding changes, matrix by matrix, what stayed and why, and the sizes."""
    errors = [column for column in _ERRORS if any(getattr(layer, column) is not None for layer in result.layers)]

    def cells(layer: QuantizedLayer) -> Line:
        return text_cells(layer.name, layer.shape, *(f"{100 * getattr(layer, column):.2f}%" for column in errors))

    headers = ("layer", "shape", *(_ERRORS[column] for column in errors))
    where = "nothing written (dry run)" if result.out is None else f"written to {result.out}"
    sizes = "" if result.bytes is None else f", {result.bytes / 1e6:.1f} MB of {result.bytes_before / 1e6:.1f}"
    matrices = counted(len(result.layers), "matrix", "matrices")
    return [
        *arranged_lines(headers, result.layers, cells, arrangement, width),
        plain(),
        *skipped_lines(result.skipped, verbose),
        *sentences("not copied:", result.not_copied),
        plain(f"{matrices} in {result.bits} bits, groups of {result.group} ({result.format}){sizes}"),
        plain(f"{printable(where)} in {result.seconds:.2f} s"),
    ]
