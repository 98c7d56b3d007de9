"""The command that writes a pruned model, and the one that checks it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mpfast.cli.console import message_of, print_lines, reports_errors, terminal_width
from mpfast.cli.options import (
    DeviceOption,
    DryRunOption,
    EmbeddingsOption,
    ExcludeOption,
    IncludeOption,
    ModelArgument,
    OutOption,
    OverwriteOption,
    ProgressOption,
    SeedOption,
    SparsityOption,
    ThreadsOption,
    TolOption,
    VerboseOption,
    require_out_or_dry_run,
    word_option,
)
from mpfast.cli.tables import counted, printable, prune_lines
from mpfast.models import DEFAULT_METHOD, METHODS, Budget, parsed_pattern, prune, verify
from mpfast.support import LARGEST_GROUP

__all__ = ["prune_command", "verify_command"]


def _pattern(text: str | None) -> str | None:
    if text is not None and parsed_pattern(text) is None:
        raise typer.BadParameter(f"must be of the form 2:4, n of m, with 1 <= n <= m <= {LARGEST_GROUP}")
    return text


@reports_errors
def prune_command(
    model: ModelArgument,
    out: OutOption = None,
    sparsity: SparsityOption = None,
    method: Annotated[str, word_option(METHODS, "METHOD", "How they are chosen, with --sparsity.")] = DEFAULT_METHOD,
    pattern: Annotated[
        str | None, typer.Option(metavar="N:M", help="Keep n of every m along a row.", callback=_pattern)
    ] = None,
    budget_file: Annotated[
        Path | None, typer.Option("--budget", metavar="FILE", help="Sparsity per layer, from mpfast budget.")
    ] = None,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    embeddings: EmbeddingsOption = False,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    tol: TolOption = 5e-3,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    progress: ProgressOption = True,
    verbose: VerboseOption = False,
) -> None:
    """Write a copy of a model with the weights that matter least set to zero, its masks and its budget.

    One of --sparsity, --pattern and --budget says how much goes. MODEL is never changed.
    """
    require_out_or_dry_run(out, dry_run)
    if sum(option is not None for option in (sparsity, pattern, budget_file)) != 1:
        raise typer.BadParameter("pass one of --sparsity, --pattern and --budget")
    if sparsity is None and method != DEFAULT_METHOD:
        raise typer.BadParameter("--method goes with --sparsity: patterns and budgets prune by magnitude")
    result = prune(
        model,
        out,
        sparsity=sparsity,
        method=method,
        pattern=pattern,
        budget=None if budget_file is None else _budget(budget_file),
        include=include or None,
        exclude=exclude or None,
        embeddings=embeddings,
        tol=tol,
        seed=seed,
        device=device,
        threads=threads,
        overwrite=overwrite,
        progress=progress,
    )
    print_lines(prune_lines(result, width=terminal_width(), verbose=verbose))


def _budget(file: Path) -> Budget:
    try:
        return Budget.from_json(file)
    except ValueError as error:
        raise ValueError(f"{file}: {message_of(error)}") from None


@reports_errors
def verify_command(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A directory that prune wrote.")],
    source: Annotated[
        Path | None, typer.Option(metavar="MODEL", help="The dense model.", show_default="the one its budget names")
    ] = None,
) -> None:
    """Check a pruned model: counts, pattern, zeros, and that all else is bitwise the source's."""
    found = verify(out, source)
    for problem in found.problems:
        typer.echo(printable(problem))
    for note in found.notes:
        typer.echo(printable(note), err=True)
    for missed in found.not_compared:
        typer.echo(printable(f"not compared: {missed}"), err=True)
    if not found.ok:
        raise ValueError(f"{out}: {counted(len(found.problems), 'problem')}")
    pruned = (
        "1 pruned tensor as its mask says" if found.layers == 1 else f"{found.layers} pruned tensors as their masks say"
    )
    typer.echo(printable(f"{out}: {pruned}, {counted(found.untouched, 'other')} bitwise untouched"))
