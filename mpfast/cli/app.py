"""What all commands share: the application, options, errors and printing.

Each command imports what it needs when it runs: `mpfast --help` loads neither NumPy nor the native core.
"""

from __future__ import annotations

import enum
import functools
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ParamSpec

import typer

if TYPE_CHECKING:
    from mpfast.tables import Line

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="mpfast",
    help="Marchenko-Pastur edges of neural-network weight matrices, in seconds and with error bars.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain text, which narrow terminals and pipes show, too
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

            message = printable(_message(error)) or type(error).__name__
            typer.echo(f"mpfast: error: {message}", err=True)
            raise typer.Exit(EXIT_FAILED) from None

    return guarded


def _message(error: BaseException) -> str:
    """Say what the system refused as we say the rest: the file, then what is wrong with it."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}"
    return str(error)


class Method(str, enum.Enum):
    """How the spectrum is computed."""

    auto = "auto"
    exact = "exact"
    lanczos = "lanczos"


def _tolerance(value: float) -> float:
    if not 0 < value < 1:
        raise typer.BadParameter("must be between 0 and 1")
    return value


TolOption = Annotated[
    float,
    typer.Option(help="Wanted relative standard error of the edge.", callback=_tolerance, show_default=True),
]
SeedOption = Annotated[int, typer.Option(min=0, max=2**64 - 1, help="Seed of the random probes.")]
DeviceOption = Annotated[
    str | None, typer.Option(help="cpu, cuda (every GPU) or cuda:N.", show_default="cpu", metavar="DEVICE")
]
MethodOption = Annotated[Method, typer.Option(help="How the spectrum is computed.")]
IncludeOption = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Only tensors whose whole name matches; may be repeated."),
]
ExcludeOption = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Not the tensors whose whole name matches; may be repeated."),
]
WorkersOption = Annotated[int | None, typer.Option(min=1, help="Number of threads in all.", show_default="all cores")]
ProgressOption = Annotated[bool, typer.Option(help="Show a progress bar on a terminal.")]
JsonOption = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", help="Write JSON to FILE; - prints it instead of the table."),
]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mpfast {version()}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Marchenko-Pastur edges of neural-network weight matrices, in seconds and with error bars."""


def version() -> str:
    """Version of the installed package."""
    try:
        return metadata.version("mpfast")
    except metadata.PackageNotFoundError:
        return "unknown (not installed)"


def require_directory(file: str | None) -> None:
    """Fail before the work rather than after it where the result could not be written."""
    if file is None or file == "-":
        return
    path = Path(file).resolve()
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{file}: no such directory")
    if path.is_dir():
        raise IsADirectoryError(f"{file}: is a directory")
    # A file is replaced by renaming; a device or a pipe is written to.
    if not os.access(path.parent if path.is_file() or not path.exists() else path, os.W_OK):
        raise PermissionError(f"{file}: permission denied")


def terminal_width() -> int | None:
    """Columns of the terminal; None where standard output is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def print_lines(lines: Sequence[Line]) -> None:
    """Print lines, in colour on a terminal."""
    if not sys.stdout.isatty():
        typer.echo("\n".join("".join(text for text, _ in line) for line in lines))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    for line in lines:
        console.print(Text.assemble(*line), soft_wrap=True)
