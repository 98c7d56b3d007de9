"""The command that shares a sparsity out over the layers of a model."""

from __future__ import annotations

from typing import Annotated

import typer

from mpfast.cli.console import reports_errors, require_directory
from mpfast.cli.options import (
    DeviceOption,
    EmbeddingsOption,
    ExcludeOption,
    IncludeOption,
    ModelArgument,
    ProgressOption,
    SeedOption,
    ThreadsOption,
    TolOption,
    word_option,
)
from mpfast.models import DEFAULT_FORMAT, DEFAULT_METHOD, EXPORTERS, METHODS, analyze
from mpfast.support import write_text_atomically

__all__ = ["budget_command"]


@reports_errors
def budget_command(
    model: ModelArgument,
    sparsity: Annotated[float, typer.Option(min=0, max=1, help="Share of the entries to prune.", show_default=False)],
    out: Annotated[str, typer.Option("-o", "--out", metavar="FILE", help="File to write; - prints it.")] = "-",
    format: Annotated[str, word_option(EXPORTERS, "FORMAT", "What to write.")] = DEFAULT_FORMAT,
    method: Annotated[str, word_option(METHODS, "METHOD", "How the sparsity is shared out.")] = DEFAULT_METHOD,
    floor: Annotated[float, typer.Option(min=0, max=1, help="Smallest sparsity of a layer.")] = 0.0,
    ceiling: Annotated[float, typer.Option(min=0, max=1, help="Largest sparsity of a layer.")] = 1.0,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    embeddings: EmbeddingsOption = False,
    tol: TolOption = 5e-3,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    progress: ProgressOption = True,
) -> None:
    """Share a sparsity out over the layers of a model, from their spectra; for prune --budget or another tool."""
    require_directory(out)
    analysis = analyze(
        model,
        include=include or None,
        exclude=exclude or None,
        tol=tol,
        seed=seed,
        device=device,
        threads=threads,
        progress=progress,
    )
    budget = analysis.budget(sparsity, method=method, floor=floor, ceiling=ceiling, embeddings=embeddings)
    text = budget.export(format)
    if out == "-":
        typer.echo(text, nl=False)
    else:
        write_text_atomically(out, text)
        typer.echo(f"{out}: {budget.pruned:,} of {budget.entries:,} entries in {len(budget)} layers")
