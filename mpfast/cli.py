"""The command line: one function per command. Results go to standard output, the rest to standard error."""

from __future__ import annotations

import enum
import functools
import json
import math
import platform
import shutil
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

import typer

if TYPE_CHECKING:
    from mpfast.results import Analysis, LayerReport
    from mpfast.tables import Line

__all__ = ["app", "main"]

# Each command imports what it needs when it runs: `mpfast --help` loads neither NumPy nor the native core.

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="mpfast",
    help="Marchenko-Pastur edges of neural-network weight matrices, in seconds and with error bars.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Arguments = ParamSpec("Arguments")


def reports_errors(command: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Turn a user's mistake, a bad file or an interrupt into one line on standard error and an exit code."""

    @functools.wraps(command)
    def guarded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt:
            typer.echo("mpfast: interrupted", err=True)
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except BrokenPipeError:
            raise  # `mpfast ... | head`: click ends this quietly
        except (ValueError, TypeError, OSError, MemoryError, ImportError) as error:
            from mpfast.tables import printable

            message = printable(str(error)) or type(error).__name__
            typer.echo(f"mpfast: error: {message}", err=True)
            raise typer.Exit(EXIT_FAILED) from None

    return guarded


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


class Method(str, enum.Enum):
    """How the spectrum is computed."""

    auto = "auto"
    exact = "exact"
    lanczos = "lanczos"


def _tolerance(value: float) -> float:
    if not 0 < value < math.inf:
        raise typer.BadParameter("must be positive")
    return value


TolOption = Annotated[
    float,
    typer.Option(help="Wanted relative standard error of the edge.", callback=_tolerance, show_default=True),
]
SeedOption = Annotated[int, typer.Option(help="Seed of the random probes.")]
DeviceOption = Annotated[
    str | None, typer.Option(help="cpu, cuda (every GPU) or cuda:N.", show_default="cpu", metavar="DEVICE")
]
MethodOption = Annotated[Method, typer.Option(help="How the spectrum is computed.")]
JsonOption = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", help="Write JSON to FILE; - prints it instead of the table."),
]


@app.command("analyze")
@reports_errors
def analyze_command(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL", help="A .safetensors, .npz or .npy file, or a directory of safetensors shards."
        ),
    ],
    json_file: JsonOption = None,
    csv_file: Annotated[
        str | None,
        typer.Option("--csv", metavar="FILE", help="Write CSV to FILE; - prints it instead of the table."),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Only tensors whose whole name matches; may be repeated."),
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="GLOB", help="Not the tensors whose whole name matches; may be repeated."),
    ] = None,
    method: MethodOption = Method.auto,
    tol: TolOption = 5e-3,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Number of threads in all.", show_default="all cores")
    ] = None,
    sort: Annotated[Sort, typer.Option(help="Order of the rows; numbers run downwards.")] = Sort.order,
    progress: Annotated[bool, typer.Option(help="Show a progress bar on a terminal.")] = True,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Name every tensor that was skipped.")] = False,
) -> None:
    """Fit the Marchenko-Pastur edge of every weight matrix of a model.

    The table shows, per matrix: the edge sigma+ with its standard error where it is an estimate, the number
    of singular values above it that noise does not explain (spikes), the share that noise does (bulk), the
    distance between spectrum and fitted law (KS) with a verdict, the Hill exponent alpha and the stable rank.
    """
    if json_file == "-" and csv_file == "-":
        raise typer.BadParameter("--json - and --csv - cannot share standard output")
    for file in (json_file, csv_file):
        _require_directory(file)
    from mpfast.analysis import analyze

    analysis = analyze(
        model,
        include=include or None,
        exclude=exclude or None,
        method=method.value,
        tol=tol,
        seed=seed,
        device=device,
        workers=workers,
        progress=progress,
    )
    if json_file == "-":
        typer.echo(analysis.to_json(), nl=False)
    elif json_file is not None:
        analysis.to_json(json_file)
    if csv_file == "-":
        typer.echo(analysis.to_csv(), nl=False)
    elif csv_file is not None:
        analysis.to_csv(csv_file)
    if "-" not in (json_file, csv_file):
        from mpfast.tables import analysis_lines

        _print(analysis_lines(analysis, _sorted(analysis, sort), width=_terminal_width(), verbose=verbose))


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


@app.command("spectrum")
@reports_errors
def spectrum_command(
    file: Annotated[Path, typer.Argument(metavar="FILE.npy", help="One matrix, as numpy.save writes it.")],
    json_file: JsonOption = None,
    method: MethodOption = Method.auto,
    tol: TolOption = 5e-3,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Number of threads.", show_default="all cores")] = None,
) -> None:
    """Report on one matrix: edge, spikes, quality of the fit and a chart of the density."""
    _require_directory(json_file)
    if not file.exists():
        raise FileNotFoundError(f"{file}: no such file or directory")
    import time

    from mpfast.checkpoints.numpy_files import NpyFile
    from mpfast.files import write_text_atomically
    from mpfast.layers import Layer
    from mpfast.results import LayerReport, jsonable
    from mpfast.spectrum import spectrum
    from mpfast.tables import spectrum_lines

    checkpoint = NpyFile(file)
    (tensor,) = checkpoint.tensors
    started = time.perf_counter()
    found = spectrum(
        checkpoint.read(tensor.name), method=method.value, tol=tol, seed=seed, threads=threads, device=device
    )
    layer = Layer(tensor.name, "linear", tensor.shape, (tensor.shape[0], tensor.shape[1]), tensor.dtype)
    row = LayerReport.from_spectrum(layer, found, seconds=time.perf_counter() - started)
    if json_file is not None:
        document = {"schema": "mpfast.spectrum/1", "summary": row.to_dict(), "spectrum": found.to_dict()}
        text = json.dumps(jsonable(document), indent=1, allow_nan=False) + "\n"
        if json_file == "-":
            typer.echo(text, nl=False)
            return
        write_text_atomically(json_file, text)
    _print(spectrum_lines(checkpoint.source, row, found))


@app.command("bench")
@reports_errors
def bench_command(
    cases: Annotated[
        list[str] | None, typer.Argument(metavar="[CASE]...", help="Cases to run.", show_default="all")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="The published sizes: many minutes.")] = False,
    json_file: JsonOption = None,
) -> None:
    """Time mpfast against LAPACK, SciPy and others on this machine, with the error of each.

    Ratios are taken within one run: "x ours" is how many times longer a contender took than mpfast.
    """
    _require_directory(json_file)
    from rich.console import Console

    from mpfast import benchmarking
    from mpfast.files import write_text_atomically
    from mpfast.tables import benchmark_table

    rows: list[benchmarking.Row] = []
    notes = [f"{name}: not run, needs {why}" for name, why in benchmarking.missing_cases().items() if not cases]
    for name in cases or benchmarking.case_names():
        typer.echo(f"{name} ...", err=True)
        case = benchmarking.build(name, full=full)
        rows += benchmarking.measure(case)
        notes += [f"{name}: {c.name} not run, needs {c.requires}" for c in case.contenders if not c.available]
    if json_file == "-":
        typer.echo(benchmarking.to_json(rows), nl=False)
        return
    if json_file is not None:
        write_text_atomically(json_file, benchmarking.to_json(rows))
    console = Console(highlight=False, width=_terminal_width() or 110)
    console.print(benchmark_table(rows))
    for line in (*notes, ", ".join(f"{key} {value}" for key, value in benchmarking.machine().items())):
        console.print(line, soft_wrap=True)


@app.command("info")
@reports_errors
def info_command() -> None:
    """Show versions and what the native core uses on this machine."""
    import numpy as np

    from mpfast import _core
    from mpfast.devices import cuda_status

    facts = {
        "mpfast": _version(),
        "Python": f"{platform.python_version()} on {platform.platform()}",
        "NumPy": np.__version__,
        "BLAS": _core.blas(),
        "SIMD": _core.isa(),
        "threads": str(_core.default_threads()),
        "CUDA": cuda_status(),
    }
    for name, value in facts.items():
        typer.echo(f"{name:8} {value}")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mpfast {_version()}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Marchenko-Pastur edges of neural-network weight matrices, in seconds and with error bars."""


def _version() -> str:
    try:
        return metadata.version("mpfast")
    except metadata.PackageNotFoundError:
        return "unknown (not installed)"


def _require_directory(file: str | None) -> None:
    """Fail before the work rather than after it where the result could not be written."""
    if file is not None and file != "-" and not Path(file).resolve().parent.is_dir():
        raise FileNotFoundError(f"{file}: no such directory")


def _terminal_width() -> int | None:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _print(lines: Sequence[Line]) -> None:
    """Print lines, in colour on a terminal."""
    if not sys.stdout.isatty():
        typer.echo("\n".join("".join(text for text, _ in line) for line in lines))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    for line in lines:
        console.print(Text.assemble(*line), soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> Any:
    """Run the command line; ends with `SystemExit`: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        # A layer's name or "±" must not end the program where the locale cannot spell it.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    return app(args=None if arguments is None else list(arguments), prog_name="mpfast")
