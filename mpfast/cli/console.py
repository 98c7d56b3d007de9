"""What all commands share: errors as one line and an exit code, and printing."""

from __future__ import annotations

import functools
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, ParamSpec

import typer

from mpfast.cli.tables import Line, printable
from mpfast.support import InputError

__all__ = ["message_of", "print_lines", "reports_errors", "require_directory", "terminal_width", "version"]

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130

Arguments = ParamSpec("Arguments")


def reports_errors(command: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Turn a user's mistake, a bad file or an interrupt into one line on standard error and an exit code."""

    @functools.wraps(command)
    def guarded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        try:
            with warnings.catch_warnings():
                # What NumPy says of a division on the way is no word to the user of a command.
                warnings.simplefilter("ignore", RuntimeWarning)
                warnings.showwarning = _show_warning
                command(*args, **kwargs)
        except KeyboardInterrupt:
            typer.echo("mpfast: interrupted", err=True)
            raise typer.Exit(EXIT_INTERRUPTED) from None
        except BrokenPipeError:
            raise  # `mpfast ... | head`: click ends this quietly
        except (ValueError, TypeError, OSError, MemoryError, ImportError) as error:
            message = printable(message_of(error)) or type(error).__name__
            typer.echo(f"mpfast: error: {message}", err=True)
            raise typer.Exit(EXIT_FAILED) from None

    return guarded


def _show_warning(message: Warning | str, category: type[Warning], *place: Any, **options: Any) -> None:
    """Print a warning in one line, without the place in the code; names in it come from files."""
    typer.echo(f"mpfast: {category.__name__}: {printable(str(message))}", err=True)


def message_of(error: BaseException) -> str:
    """Say what is wrong: of input, without the function that the user did not call; of the system, the file first."""
    if isinstance(error, InputError):
        return error.message
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}"
    return str(error)


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
