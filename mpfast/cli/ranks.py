"""The command that says to which rank layers can be cut for an error of their outputs."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mpfast.cli.arrangement import Arrangement
from mpfast.cli.columns import RANKS
from mpfast.cli.conditions import conditions, violations
from mpfast.cli.console import check_files, fail, print_lines, reports_errors, terminal_width, write_document
from mpfast.cli.options import (
    BaseOption,
    CsvOption,
    DeviceOption,
    EmbeddingsOption,
    ExcludeOption,
    FailOnOption,
    IncludeOption,
    JsonOption,
    ModelArgument,
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
from mpfast.cli.tables import Line, arranged_lines, plain, printable, skipped_lines, text_cells
from mpfast.models import LayerRank, ModelRanks, RankRow, ranks
from mpfast.support import counted, write_text_atomically

__all__ = ["ranks_command"]

_ERRORS = [0.05, 0.1, 0.2]


def _shares(values: list[float]) -> list[float]:
    for value in values:
        if not 0 <= value < 1:
            meant = f"; {value:g} % is {value / 100:g}" if 1 <= value < 100 else ""
            raise typer.BadParameter(f"must lie in [0, 1), not {value:g}{meant}")
    return values


@reports_errors
def ranks_command(
    model: ModelArgument,
    moments: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Second moments of the inputs, as mpfast moments writes them."),
    ] = None,
    error: Annotated[
        list[float],
        typer.Option(metavar="SHARE", help="A relative error, 0 to 1; may be repeated.", callback=_shares),
    ] = _ERRORS,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    embeddings: EmbeddingsOption = False,
    base: BaseOption = None,
    method: SpectraOption = "auto",
    tol: TolOption = 5e-3,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    json_file: JsonOption = None,
    csv_file: CsvOption = None,
    sort: Annotated[str | None, sort_option(RANKS.sortable)] = None,
    reverse: ReverseOption = False,
    top: TopOption = None,
    progress: ProgressOption = True,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    fail_on: FailOnOption = None,
    strict: StrictOption = False,
) -> None:
    """Say to which rank each layer can be cut for a relative error: of its weights and, with --moments, its outputs.

    Errors are norm over norm. A rank pays, in entries of two factors, up to the one in the column "pays". Below the
    table stands the share of all entries that would stay, layers that do not pay being kept as they are. With --base,
    ranks are those of the difference, as for a LoRA adapter. An error of every layer is none of the model: look at the
    compressed model before you trust it.
    """
    files = {"--json": json_file, "--csv": csv_file}
    require_one_standard_output(files)
    wanted = conditions(fail_on, RANKS)
    check_files(files, reads=(model, moments, base))
    found = ranks(
        model,
        moments,
        errors=error,
        base=base,
        include=include or None,
        exclude=exclude or None,
        embeddings=embeddings,
        method=method,
        tol=tol,
        seed=seed,
        device=device,
        threads=threads,
        progress=progress and not quiet,
    )
    write_document(found.to_document(), json_file)
    if csv_file == "-":
        typer.echo(found.to_csv(), nl=False)
    elif csv_file is not None:
        write_text_atomically(csv_file, found.to_csv())
    if "-" not in (json_file, csv_file) and not quiet:
        arrangement = Arrangement(sort, reverse, top)
        print_lines(_lines(found, arrangement, width=terminal_width(), verbose=verbose))
    broken = found.non_finite[:1]
    findings = [f"NaN or infinities in {one.name}, which has no ranks: {one.reason}" for one in broken]
    findings += violations(wanted, ((row.name, asdict(row)) for row in found))
    if findings:
        fail(findings)


def _lines(found: ModelRanks, arrangement: Arrangement, *, width: int | None, verbose: bool) -> list[Line]:
    """Lay out the ranks: a column for each error, of the weights and, where there are moments, of the outputs."""
    kinds = ("weights", "outputs") if found.has_moments else ("weights",)
    headers = ["layer", "shape", "pays", *(f"{kind} {error:.3g}" for kind in kinds for error in found.errors)]

    def cells(row: RankRow) -> Line:
        return _cells(row, found)

    totals = [
        plain(f"{found.share(number, outputs=kind == 'outputs'):7.1%} of the entries stay at {error:.3g} of {kind}")
        for kind in kinds
        for number, error in enumerate(found.errors)
        if len(found)
    ]
    reasons = Counter(row.reason for row in found if row.reason is not None)
    lacking = [
        plain(f"{counted(count, 'matrix', 'matrices')} without ranks of outputs: {printable(reason)}")
        for reason, count in reasons.items()
    ]
    return [
        *(arranged_lines(headers, found, cells, arrangement, width) if len(found) else [plain("no matrices")]),
        plain(),
        *skipped_lines(found.skipped, verbose),
        *lacking,
        *totals,
        plain(f"{counted(len(found), 'matrix', 'matrices')} of {printable(found.source)}"),
    ]


def _cells(row: RankRow, found: ModelRanks) -> Line:
    texts = [_text(rank) for rank in row.weights]
    if found.has_moments:
        texts += [_text(rank) for rank in row.outputs] or ["-"] * len(found.errors)
    return text_cells(row.name, row.shape, str(row.paying_rank), *texts)


def _text(rank: LayerRank) -> str:
    return f"{rank.rank} ±{rank.rank_error:.0f}" if rank.rank_error >= 0.5 else str(rank.rank)
