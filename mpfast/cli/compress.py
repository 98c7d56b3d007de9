"""The command that writes low-rank factors."""

from __future__ import annotations

from typing import Annotated

import typer

from mpfast.cli.console import print_lines, reports_errors, require_directory, terminal_width, write_document
from mpfast.cli.options import (
    BaseOption,
    DeviceOption,
    DryRunOption,
    EmbeddingsOption,
    ExcludeOption,
    IncludeOption,
    JsonOption,
    ModelArgument,
    OutOption,
    OverwriteOption,
    QuietOption,
    SeedOption,
    StrictOption,
    ThreadsOption,
    VerboseOption,
    require_out_or_dry_run,
)
from mpfast.cli.tables import compress_lines
from mpfast.models import compress, provenance_of

__all__ = ["compress_command"]


def _rank(text: str) -> str:
    if text != "mp_edge" and not (text.isdecimal() and int(text) > 0):
        raise typer.BadParameter("must be mp_edge or a positive integer")
    return text


@reports_errors
def compress_command(
    model: ModelArgument,
    out: OutOption = None,
    rank: Annotated[
        str, typer.Option(help="Singular values kept: mp_edge, those above the noise, or a number.", callback=_rank)
    ] = "mp_edge",
    base: BaseOption = None,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    embeddings: EmbeddingsOption = False,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    json_file: JsonOption = None,
    strict: StrictOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Write a copy of a model with low-rank factors in the place of matrices, or a LoRA adapter of a difference."""
    require_out_or_dry_run(out, dry_run)
    require_directory(json_file)
    result = compress(
        model,
        out,
        rank=rank if rank == "mp_edge" else int(rank),
        base=base,
        include=include or None,
        exclude=exclude or None,
        embeddings=embeddings,
        seed=seed,
        device=device,
        threads=threads,
        overwrite=overwrite,
    )
    chosen = {"rank": rank, "include": include, "exclude": exclude, "embeddings": embeddings, "seed": seed}
    document = result.to_document(provenance_of(model, base, device=device, **chosen))
    if not write_document(document, json_file) and not quiet:
        print_lines(compress_lines(result, width=terminal_width(), verbose=verbose))
