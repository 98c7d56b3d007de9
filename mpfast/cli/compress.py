"""The command that writes low-rank factors."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from mpfast.checkpoints import DENSE_TYPES
from mpfast.cli.arrangement import Arrangement
from mpfast.cli.columns import FACTORED
from mpfast.cli.conditions import conditions, violations
from mpfast.cli.console import check_files, fail, print_lines, reports_errors, terminal_width, write_document
from mpfast.cli.options import (
    BaseOption,
    DequantizeOption,
    DeviceOption,
    DryRunOption,
    EmbeddingsOption,
    EnergyOption,
    ErrorOption,
    ExcludeOption,
    FailOnOption,
    IncludeOption,
    JsonOption,
    ModelArgument,
    OutOption,
    OverwriteOption,
    QuietOption,
    ReverseOption,
    SeedOption,
    StrictOption,
    ThreadsOption,
    TopOption,
    VerboseOption,
    require_out_or_dry_run,
    sort_option,
    word_option,
)
from mpfast.cli.tables import compress_lines
from mpfast.models import COMPRESS_FORMATS, compress, provenance_of

__all__ = ["compress_command"]


def _rank(text: str | None) -> str | None:
    if text is not None and text != "mp_edge" and not (text.isdecimal() and int(text) > 0):
        raise typer.BadParameter("must be mp_edge or a positive integer")
    return text


@reports_errors
def compress_command(
    model: ModelArgument,
    out: OutOption = None,
    rank: Annotated[
        str | None,
        typer.Option(
            metavar="R",
            help="Singular values kept: a number or, with --base, mp_edge: those above the noise.",
            callback=_rank,
            show_default="mp_edge with --base",
        ),
    ] = None,
    energy: EnergyOption = None,
    error: ErrorOption = None,
    format: Annotated[
        str | None,
        word_option(
            COMPRESS_FORMATS,
            "FORMAT",
            "dense: truncated matrices, which load anywhere; factors: two for each, for "
            "mpfast.integrations.torch.load_factors; lora: an adapter, with --base.",
            show_default="dense, with --base lora",
        ),
    ] = None,
    base_id: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What the adapter calls its base (org/name).", show_default="nothing"),
    ] = None,
    dequantize: DequantizeOption = None,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    embeddings: EmbeddingsOption = False,
    base: BaseOption = None,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    json_file: JsonOption = None,
    sort: Annotated[str | None, sort_option(FACTORED.sortable)] = None,
    reverse: ReverseOption = False,
    top: TopOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    fail_on: FailOnOption = None,
    strict: StrictOption = False,
) -> None:
    """Write a copy of a model with matrices of lower rank, or a LoRA adapter of the difference to --base.

    Without --base, one of --rank, --energy and --error says how much stays. MODEL is never changed.
    """
    require_out_or_dry_run(out, dry_run)
    wanted = conditions(fail_on, FACTORED)
    check_files({"--json": json_file}, reads=(model, base), out=out)
    given = sum(option is not None for option in (rank, energy, error))
    if given > 1 or (given == 0 and base is None):
        raise typer.BadParameter("pass one of --rank, --energy and --error")
    if base_id is not None and base is None:
        raise typer.BadParameter("--base-id goes with --base")
    result = compress(
        model,
        out,
        rank=rank if rank is None or rank == "mp_edge" else int(rank),
        energy=energy,
        error=error,
        format=format,
        base=base,
        base_id=base_id,
        include=include or None,
        exclude=exclude or None,
        embeddings=embeddings,
        dequantize=None if dequantize is None else DENSE_TYPES[dequantize],
        seed=seed,
        device=device,
        threads=threads,
        overwrite=overwrite,
    )
    chosen = {
        "rank": rank,
        "energy": energy,
        "error": error,
        "format": format,
        "base_id": base_id,
        "include": include,
        "exclude": exclude,
        "embeddings": embeddings,
        "dequantize": dequantize,
        "seed": seed,
    }
    document = result.to_document(provenance_of(model, base, device=device, **chosen))
    if not write_document(document, json_file) and not quiet:
        arrangement = Arrangement(sort, reverse, top)
        print_lines(compress_lines(result, arrangement, width=terminal_width(), verbose=verbose))
    findings = violations(wanted, ((layer.name, asdict(layer)) for layer in result.layers))
    if findings:
        fail(findings)
