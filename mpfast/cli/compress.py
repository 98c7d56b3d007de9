"""The command that writes low-rank factors."""

from __future__ import annotations

from typing import Annotated

import typer

from mpfast.checkpoints import DENSE_TYPES
from mpfast.cli.console import check_files, print_lines, reports_errors, terminal_width, write_document
from mpfast.cli.options import (
    BaseOption,
    DequantizeOption,
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
    energy: Annotated[
        float | None, typer.Option(help="As few as hold this share of the squared norm, in (0, 1].", show_default=False)
    ] = None,
    error: Annotated[
        float | None, typer.Option(help="As few as leave this relative error, in [0, 1).", show_default=False)
    ] = None,
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
    base: BaseOption = None,
    base_id: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What the adapter calls its base (org/name).", show_default="nothing"),
    ] = None,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    embeddings: EmbeddingsOption = False,
    dequantize: DequantizeOption = None,
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
    """Write a copy of a model with matrices of lower rank, or a LoRA adapter of the difference to --base.

    Without --base, one of --rank, --energy and --error says how much stays. MODEL is never changed.
    """
    require_out_or_dry_run(out, dry_run)
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
        print_lines(compress_lines(result, width=terminal_width(), verbose=verbose))
