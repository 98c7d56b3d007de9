"""The command that writes a pruned model, and the one that checks it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mpfast.checkpoints import DENSE_TYPES
from mpfast.cli.arrangement import Arrangement
from mpfast.cli.columns import PRUNED
from mpfast.cli.conditions import conditions, violations
from mpfast.cli.console import (
    check_files,
    fail,
    message_of,
    print_lines,
    reports_errors,
    terminal_width,
    told_of,
    warn,
    write_document,
)
from mpfast.cli.options import (
    CeilingOption,
    DampingOption,
    DequantizeOption,
    DeviceOption,
    DryRunOption,
    EmbeddingsOption,
    ExcludeOption,
    FailOnOption,
    GradientsOption,
    IncludeOption,
    JsonOption,
    ModelArgument,
    OutOption,
    OverwriteOption,
    ProgressOption,
    QuietOption,
    RepackOption,
    ReverseOption,
    SeedOption,
    SparsityOption,
    StrictOption,
    ThreadsOption,
    TolOption,
    TopOption,
    VerboseOption,
    require_out_or_dry_run,
    sort_option,
    word_option,
)
from mpfast.cli.tables import printable, prune_lines
from mpfast.models import (
    DEFAULT_FIT,
    DEFAULT_METHOD,
    DEFAULT_STEPS,
    FITTED_METHODS,
    METHODS,
    Budget,
    Verification,
    noted_source,
    prune,
    verify,
)
from mpfast.support import LARGEST_GROUP, counted, parsed_pattern

__all__ = ["prune_command", "verify_command"]


def _pattern(text: str | None) -> str | None:
    if text is not None and parsed_pattern(text) is None:
        raise typer.BadParameter(f"must be of the form 2:4, n of m, with 1 <= n < m <= {LARGEST_GROUP}")
    return text


@reports_errors
def prune_command(
    model: ModelArgument,
    out: OutOption = None,
    sparsity: SparsityOption = None,
    method: Annotated[
        str | None,
        word_option(
            {**METHODS, **FITTED_METHODS},
            "METHOD",
            "How they are chosen, with --sparsity or --moments.",
            show_default=f"{DEFAULT_METHOD}, {DEFAULT_FIT} with --moments",
        ),
    ] = None,
    pattern: Annotated[
        str | None, typer.Option(metavar="N:M", help="Keep n of every m along a row.", callback=_pattern)
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|METHOD",
            help="Sparsity per layer, from mpfast budget; or the METHOD that shares --sparsity out.",
            show_default="uniform with --moments",
        ),
    ] = None,
    masks: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Prune what these masks drop, as a pruned model has them.")
    ] = None,
    moments: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="What the layers see, from mpfast moments: the kept weights are refitted."),
    ] = None,
    gradients: GradientsOption = None,
    refit: Annotated[
        int | None, typer.Option(min=0, metavar="STEPS", help="Of the refit.", show_default=str(DEFAULT_STEPS))
    ] = None,
    damping: DampingOption = None,
    ceiling: CeilingOption = None,
    dequantize: DequantizeOption = None,
    repack: RepackOption = False,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    embeddings: EmbeddingsOption = False,
    tol: TolOption = 5e-3,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    json_file: JsonOption = None,
    sort: Annotated[str | None, sort_option(PRUNED.sortable)] = None,
    reverse: ReverseOption = False,
    top: TopOption = None,
    progress: ProgressOption = True,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    fail_on: FailOnOption = None,
    strict: StrictOption = False,
) -> None:
    """Write a copy of a model with the weights that matter least set to zero, its masks and its budget.

    One of --sparsity, --pattern, --budget FILE and --masks says how much goes. With --moments, the weights that stay
    make up for those that go. MODEL is never changed.
    """
    require_out_or_dry_run(out, dry_run)
    budget_file = None if budget is None or budget in METHODS else Path(budget)
    check_files({"--json": json_file}, reads=(model, budget_file, masks, moments, gradients), out=out)
    wanted = conditions(fail_on, PRUNED)
    if sparsity is not None and budget_file is not None and not budget_file.exists():
        raise typer.BadParameter(f"--budget {budget} is neither a file nor one of {', '.join(METHODS)}")
    if sum(option is not None for option in (sparsity, pattern, budget_file, masks)) != 1:
        raise typer.BadParameter("pass one of --sparsity, --pattern, --budget FILE and --masks")
    if budget in METHODS and method in METHODS:
        raise typer.BadParameter(f"--budget {budget} and --method {method} both share the sparsity out")
    if sparsity is None and moments is None and method is not None:
        raise typer.BadParameter("--method goes with --sparsity: patterns and budgets prune by magnitude")
    if moments is None and (refit is not None or damping is not None):
        raise typer.BadParameter("--refit and --damping go with --moments")
    if gradients is not None and (sparsity is None or moments is None):
        raise typer.BadParameter("--gradients goes with --sparsity and --moments")
    result = prune(
        model,
        out,
        sparsity=sparsity,
        method=method,
        pattern=pattern,
        budget=budget if budget_file is None else _budget(budget_file),
        masks=masks,
        moments=moments,
        gradients=gradients,
        refit=refit,
        damping=damping,
        include=include or None,
        exclude=exclude or None,
        embeddings=embeddings,
        dequantize=None if dequantize is None else DENSE_TYPES[dequantize],
        repack=repack,
        ceiling=ceiling,
        tol=tol,
        seed=seed,
        device=device,
        threads=threads,
        overwrite=overwrite,
        progress=progress and not quiet,
    )
    if not write_document(result.to_document(), json_file) and not quiet:
        arrangement = Arrangement(sort, reverse, top)
        print_lines(prune_lines(result, arrangement, width=terminal_width(), verbose=verbose))
    findings = violations(wanted, ((row.name, asdict(row)) for row in result.budget))
    if findings:
        fail(findings)


def _budget(file: Path) -> Budget:
    try:
        return Budget.from_json(file)
    except ValueError as error:
        raise ValueError(f"{file}: {message_of(error)}") from None


@reports_errors
def verify_command(
    outs: Annotated[
        list[Path], typer.Argument(metavar="OUT", help="Directories that prune, compress or narrow wrote.")
    ],
    source: Annotated[
        Path | None, typer.Option(metavar="MODEL", help="The dense model.", show_default="the one that OUT names")
    ] = None,
    json_file: JsonOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    strict: StrictOption = False,
) -> None:
    """Check what was pruned (counts, pattern, zeros), compressed (ranks, distances) or narrowed (sizes, rows).

    All else is compared with the source bit by bit. The exit status is 1 where anything is wrong with one of them.
    """
    if source is not None and len(outs) > 1:
        raise typer.BadParameter("--source takes one OUT: each has a source of its own")
    check_files({"--json": json_file}, reads=(*outs, source, *map(noted_source, outs)))
    told = json_file == "-" or quiet
    documents, findings = [], []
    for out in outs:
        try:
            found = verify(out, source)
        except (ValueError, TypeError, OSError) as error:
            if len(outs) == 1:
                raise
            findings.append(told_of(out, outs, message_of(error)))
            continue
        documents.append(found.to_document(out))
        _tell(out, found, told=told, quiet=quiet)
        if not found.ok:
            findings.append(f"{out}: {counted(len(found.problems), 'problem')}")
    several = {"schema": "mpfast.verifications/1", "verifications": documents}
    write_document(several if len(outs) > 1 else documents[0], json_file)
    if findings:
        fail(findings)


def _tell(out: Path, found: Verification, *, told: bool, quiet: bool) -> None:
    """Print what was found, unless a document tells it; what was not compared is a warning anyhow."""
    for problem in found.problems if not told else ():
        typer.echo(printable(problem))
    for missed in found.not_compared:
        warn(f"not compared: {missed}")
        if not quiet:
            typer.echo(printable(f"not compared: {missed}"), err=True)
    if found.command in ("compress", "narrow"):
        what = "rank" if found.command == "compress" else "inputs"
        done = f"{counted(found.layers, 'matrix', 'matrices')} of the {what} that the mark says"
    elif found.layers == 1:
        done = "1 pruned tensor as its mask says"
    else:
        done = f"{found.layers} pruned tensors as their masks say"
    if found.ok and not told:
        typer.echo(printable(f"{out}: {done}, {counted(found.untouched, 'other')} bitwise untouched"))
