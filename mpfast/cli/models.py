"""Commands on whole models: analyze, budget, prune, verify, compress."""

from __future__ import annotations

import contextlib
import enum
import importlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mpfast.cli.console import print_lines, reports_errors, require_directory, terminal_width
from mpfast.cli.options import (
    DeviceOption,
    ExcludeOption,
    IncludeOption,
    JsonOption,
    Method,
    MethodOption,
    ProgressOption,
    SeedOption,
    ThreadsOption,
    TolOption,
)

if TYPE_CHECKING:
    from mpfast.models import Analysis, LayerReport


ModelArgument = Annotated[
    Path,
    typer.Argument(metavar="MODEL", help="A safetensors, NumPy, PyTorch or ONNX file, or a model directory."),
]
OutOption = Annotated[
    Path | None, typer.Option("-o", "--out", metavar="OUT", help="Directory to write.", show_default=False)
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Report, but write nothing.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace OUT if it exists, with all that it holds.")]
EmbeddingsOption = Annotated[bool, typer.Option("--embeddings", help="Embeddings and output heads, too.")]
VerboseOption = Annotated[bool, typer.Option("-v", "--verbose", help="Name every tensor that was skipped.")]


class Sort(str, enum.Enum):
    """Order of the rows: by a column, numbers downwards."""

    order = "order"
    name = "name"
    size = "size"
    sigma = "sigma"
    spikes = "spikes"
    bulk = "bulk"
    ks = "ks"
    alpha = "alpha"
    rank = "rank"


class Conv(str, enum.Enum):
    """Views of a convolution."""

    im2col = "im2col"
    positions = "positions"


class Qkv(str, enum.Enum):
    """Views of a fused projection."""

    in_three = "split"
    fused = "fused"


class Experts(str, enum.Enum):
    """Views of a stack of experts."""

    apart = "split"
    stack = "stack"


@reports_errors
def analyze_command(
    model: ModelArgument,
    json_file: JsonOption = None,
    csv_file: Annotated[
        str | None,
        typer.Option("--csv", metavar="FILE", help="Write CSV to FILE; - prints it instead of the table."),
    ] = None,
    html_file: Annotated[
        str | None,
        typer.Option("--html", metavar="FILE", help="Write a page for any browser to FILE; - prints it instead."),
    ] = None,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    base: Annotated[
        Path | None, typer.Option(metavar="MODEL", help="What MODEL was tuned from: analyse the difference.")
    ] = None,
    conv: Annotated[Conv, typer.Option(help="Convolutions as one matrix, or one per position.")] = Conv.im2col,
    qkv: Annotated[Qkv, typer.Option(help="Fused query, key and value as three matrices or one.")] = Qkv.in_three,
    experts: Annotated[Experts, typer.Option(help="A stack of experts as matrices or as one.")] = Experts.apart,
    method: MethodOption = Method.auto,
    tol: TolOption = 5e-3,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    cache: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the layers' results in DIR, and resume from there.")
    ] = None,
    dask: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Spread the layers over the Dask cluster of this scheduler.")
    ] = None,
    sort: Annotated[Sort, typer.Option(help="Order of the rows; numbers run downwards.")] = Sort.order,
    progress: ProgressOption = True,
    verbose: VerboseOption = False,
) -> None:
    """Fit the Marchenko-Pastur edge of every weight matrix of a model.

    The table shows, per matrix: the edge sigma+ with its standard error where it is an estimate, the number
    of singular values above it that noise does not explain (spikes), the share that noise does (bulk), the
    distance between spectrum and fitted law (KS) with a verdict, the Hill exponent alpha and the stable rank.
    """
    files = (json_file, csv_file, html_file)
    if files.count("-") > 1:
        raise typer.BadParameter("only one of --json -, --csv - and --html - can have standard output")
    for file in files:
        require_directory(file)
    from mpfast.checkpoints import Views
    from mpfast.models import analyze

    with contextlib.nullcontext() if dask is None else _dask_client(dask) as client:
        analysis = analyze(
            model.absolute() if dask else model,
            include=include or None,
            exclude=exclude or None,
            base=base.absolute() if base and dask else base,
            views=Views(conv.value, qkv.value, experts.value),
            method=method.value,
            tol=tol,
            seed=seed,
            device=device,
            threads=threads,
            cache=cache,
            client=client,
            progress=progress,
        )
    for file, write in zip(files, (analysis.to_json, analysis.to_csv, analysis.to_html), strict=True):
        if file == "-":
            typer.echo(write(), nl=False)
        elif file is not None:
            write(file)
    if "-" not in files:
        from mpfast.cli.tables import analysis_lines

        print_lines(analysis_lines(analysis, _sorted(analysis, sort), width=terminal_width(), verbose=verbose))


def _dask_client(address: str) -> Any:
    try:
        distributed = importlib.import_module("distributed")
    except ImportError:
        raise ImportError("--dask needs Dask: pip install 'mpfast[dask]'") from None
    return distributed.Client(address)


def _sorted(analysis: Analysis, sort: Sort) -> Sequence[LayerReport]:
    """Return the rows in the order asked for; undefined values come last, equal ones keep their order."""
    if sort is Sort.order:
        return analysis.layers
    if sort is Sort.name:
        return sorted(analysis, key=lambda row: row.name)
    measures: dict[Sort, Callable[[LayerReport], float]] = {
        Sort.size: lambda row: math.prod(row.shape),
        Sort.sigma: lambda row: row.sigma_plus,
        Sort.spikes: lambda row: row.spikes,
        Sort.bulk: lambda row: row.bulk_fraction,
        Sort.ks: lambda row: row.ks,
        Sort.alpha: lambda row: row.hill_alpha,
        Sort.rank: lambda row: row.stable_rank,
    }
    measure = measures[sort]
    return sorted(analysis, key=lambda row: math.inf if math.isnan(measure(row)) else -measure(row))


class PruneMethod(str, enum.Enum):
    """How the weights that go are chosen."""

    spectral_budget = "spectral_budget"
    sigma_plus = "sigma_plus"
    hill = "hill"
    magnitude = "magnitude"
    uniform = "uniform"


class BudgetFormat(str, enum.Enum):
    """Whose format a budget is written in."""

    json = "json"
    torchao = "torchao"
    llm_compressor = "llm-compressor"
    peft = "peft"
    axolotl = "axolotl"


class BudgetMethod(str, enum.Enum):
    """How a sparsity is shared out."""

    spectral_budget = "spectral_budget"
    magnitude = "magnitude"
    uniform = "uniform"


@reports_errors
def budget_command(
    model: ModelArgument,
    sparsity: Annotated[float, typer.Option(min=0, max=1, help="Share of the entries to prune.", show_default=False)],
    out: Annotated[str, typer.Option("-o", "--out", metavar="FILE", help="File to write; - prints it.")] = "-",
    format: Annotated[BudgetFormat, typer.Option(help="Whose format to write.")] = BudgetFormat.json,
    method: Annotated[
        BudgetMethod, typer.Option(help="How the sparsity is shared out.")
    ] = BudgetMethod.spectral_budget,
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
    from mpfast.models import analyze
    from mpfast.support import write_text_atomically

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
    budget = analysis.budget(sparsity, method=method.value, floor=floor, ceiling=ceiling, embeddings=embeddings)
    text = budget.export(format.value)
    if out == "-":
        typer.echo(text, nl=False)
    else:
        write_text_atomically(out, text)
        typer.echo(f"{out}: {budget.pruned:,} of {budget.entries:,} entries in {len(budget)} layers")


def _pattern(text: str | None) -> str | None:
    from mpfast.models import parsed_pattern

    if text is not None and parsed_pattern(text) is None:
        raise typer.BadParameter("must be of the form 2:4, n of m, with 1 <= n <= m <= 64")
    return text


@reports_errors
def prune_command(
    model: ModelArgument,
    out: OutOption = None,
    sparsity: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of the entries to prune.", show_default=False)
    ] = None,
    method: Annotated[
        PruneMethod, typer.Option(help="How they are chosen, with --sparsity.")
    ] = PruneMethod.spectral_budget,
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
    if (out is None) != dry_run:
        raise typer.BadParameter("pass either -o OUT or --dry-run")
    if sum(option is not None for option in (sparsity, pattern, budget_file)) != 1:
        raise typer.BadParameter("pass one of --sparsity, --pattern and --budget")
    if sparsity is None and method is not PruneMethod.spectral_budget:
        raise typer.BadParameter("--method goes with --sparsity: patterns and budgets prune by magnitude")
    from mpfast.cli.tables import prune_lines
    from mpfast.models import Budget, prune

    budget = None
    if budget_file is not None:
        try:
            budget = Budget.from_json(budget_file)
        except ValueError as error:
            raise ValueError(f"{budget_file}: {error}") from None
    result = prune(
        model,
        out,
        sparsity=sparsity,
        method=method.value,
        pattern=pattern,
        budget=budget,
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


@reports_errors
def verify_command(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A directory that prune wrote.")],
    source: Annotated[
        Path | None, typer.Option(metavar="MODEL", help="The dense model.", show_default="the one its budget names")
    ] = None,
) -> None:
    """Check a pruned model: counts, pattern, zeros, and that all else is bitwise the source's."""
    from mpfast.cli.tables import counted
    from mpfast.models import verify

    found = verify(out, source)
    for problem in found.problems:
        typer.echo(problem)
    if found.source is None:
        typer.echo("the dense model is not at hand: only masks and zeros were checked", err=True)
    if not found.ok:
        raise ValueError(f"{out}: {counted(len(found.problems), 'problem')}")
    pruned = (
        "1 pruned tensor as its mask says" if found.layers == 1 else f"{found.layers} pruned tensors as their masks say"
    )
    typer.echo(f"{out}: {pruned}, {counted(found.untouched, 'other')} bitwise untouched")


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
    base: Annotated[
        Path | None,
        typer.Option(metavar="MODEL", help="What MODEL was tuned from: write a LoRA adapter of the difference."),
    ] = None,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    embeddings: EmbeddingsOption = False,
    dry_run: DryRunOption = False,
    overwrite: OverwriteOption = False,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    verbose: VerboseOption = False,
) -> None:
    """Write a copy of a model with low-rank factors in the place of matrices, or a LoRA adapter of a difference."""
    if (out is None) != dry_run:
        raise typer.BadParameter("pass either -o OUT or --dry-run")
    from mpfast.cli.tables import compress_lines
    from mpfast.models import compress

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
    print_lines(compress_lines(result, width=terminal_width(), verbose=verbose))
