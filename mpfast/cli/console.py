"""What all commands share: errors as one line and an exit code, and printing."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import re
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, ParamSpec

import typer

from mpfast.checkpoints import check_target, is_report
from mpfast.cli.configuration import blame
from mpfast.cli.tables import Line, printable
from mpfast.models import jsonable
from mpfast.support import InputError, logger, write_text_atomically

__all__ = [
    "check_files",
    "fail",
    "message_of",
    "print_lines",
    "reports_errors",
    "terminal_width",
    "told_of",
    "warn",
    "write_document",
    "write_text",
]

EXIT_FAILED = 1
EXIT_WRONG_USAGE = 2
EXIT_INTERRUPTED = 130

Arguments = ParamSpec("Arguments")


def reports_errors(command: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """Turn a user's mistake, a bad file or an interrupt into one line on standard error and an exit code.

    Warnings become one line each; with ``--strict`` any of them makes the command fail when it is done, with
    ``--quiet`` they are not shown. With ``--verbose`` the log is.
    """

    @functools.wraps(command)
    def guarded(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        quiet, strict = bool(kwargs.get("quiet")), bool(kwargs.get("strict"))
        with _told_warnings(quiet) as warned, _shown_log(bool(kwargs.get("verbose")) and not quiet):
            try:
                command(*args, **kwargs)
            except KeyboardInterrupt:
                typer.echo("mpfast: interrupted", err=True)
                raise typer.Exit(EXIT_INTERRUPTED) from None
            except BrokenPipeError:
                raise  # `mpfast ... | head`: click ends this quietly
            except (ValueError, TypeError, OSError, MemoryError, ImportError) as error:
                option = _option_of(error, kwargs)
                message = message_of(error) or type(error).__name__
                is_usage = isinstance(error, InputError) and option and not isinstance(kwargs[option], Path)
                fail([blame(message, option)], EXIT_WRONG_USAGE if is_usage else EXIT_FAILED)
        if strict and warned:
            fail([f"{len(warned)} {'warning' if len(warned) == 1 else 'warnings'}, and --strict was asked for"])

    return guarded


def _option_of(error: BaseException, options: Mapping[str, Any]) -> str:
    """Return the option that an error is about; empty where it is about none.

    It has a value that it cannot have, alone, with the others or with this model, or is a path that something is wrong
    with; that is no wrong usage, however the command names the file.
    """
    if isinstance(error, InputError):
        option = re.match(r"\w*", error.argument)
        return option[0] if option is not None and option[0] in options else ""
    # Of files and directories, messages say the path first.
    return next((name for name, value in options.items() if message_of(error).startswith(f"{value}: ")), "")


def fail(findings: Sequence[str], status: int = EXIT_FAILED) -> NoReturn:
    """Tell, one line each, why the command has failed, and end it."""
    for finding in findings:
        typer.echo(f"mpfast: error: {printable(finding)}", err=True)
    raise typer.Exit(status)


def warn(text: str) -> None:
    """Warn of something that the output tells, too, so that ``--strict`` sees it; it is not repeated."""
    warnings.warn(_Told(text), stacklevel=2)


class _Told(UserWarning):
    """A warning that is part of what the command prints."""


@contextlib.contextmanager
def _told_warnings(quiet: bool) -> Iterator[list[str]]:
    told: list[str] = []

    def tell(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        # What libraries say to their own developers is none of the user's business.
        if not issubclass(category, UserWarning):
            return
        told.append(str(message))
        if not quiet and not issubclass(category, _Told):
            # The function's name is that of a call which the user did not make.
            text = re.sub(r"^[\w.]+\(\): ", "", str(message))
            typer.echo(f"mpfast: warning: {printable(text)}", err=True)

    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=UserWarning)
        warnings.showwarning = tell
        yield told


@contextlib.contextmanager
def _shown_log(shown: bool) -> Iterator[None]:
    if not shown:
        yield
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("mpfast: %(message)s"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def message_of(error: BaseException) -> str:
    """Say what is wrong: of input, without the function that the user did not call; of the system, the file first."""
    if isinstance(error, InputError):
        return error.message
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror[0].lower()}{error.strerror[1:]}"
    return str(error)


def told_of(one: Path, several: Sequence[Path], text: str) -> str:
    """Say of which of several models a text is, where it does not say so itself."""
    return f"{one}: {text}" if len(several) > 1 and str(one) not in text else text


def write_document(document: Any, file: str | None) -> bool:
    """Write JSON to a file, ``-`` being standard output; return whether that has taken the place of a table."""
    if file is None:
        return False
    return write_text(json.dumps(jsonable(document), indent=1, allow_nan=False) + "\n", file)


def write_text(text: str, file: str) -> bool:
    """Write a text to a file, ``-`` being standard output; return whether that has taken the place of a table."""
    if file != "-":
        write_text_atomically(file, text)
        return False
    typer.echo(text, nl=False)
    return True


def check_files(
    files: Mapping[str, str | Path | None],
    *,
    reads: Iterable[Path | None] = (),
    out: Path | None = None,
    kinds: Mapping[str, Callable[[Path], bool]] | None = None,
) -> None:
    """Fail before the work rather than after it where a file could not be written, or would take another's place.

    Parameters
    ----------
    files
        What is to be written, by option; None and ``-`` are no files.
    reads
        All that the command reads.
    out
        The directory that the command writes, as a whole.
    kinds
        By option, whether a file is of the kind that is written; reports are, where nothing else is said.
    """
    wanted = {option: str(file) for option, file in files.items() if file is not None and str(file) != "-"}
    sources = [read for read in reads if read is not None]
    places: dict[Path, str] = {}
    for option, file in wanted.items():
        path = Path(file).resolve()
        if out is not None and out.resolve() in (path, *path.parents):
            raise typer.BadParameter(f"{option} {file} lies in {out}, which -o writes as a whole; name another file")
        _require_writable(file, path)
        if path.exists() and not path.is_file():
            continue  # a pipe, a device: whatever comes goes in
        other = next((known for known in places if _is_same(known, path)), None)
        if other is not None:
            raise typer.BadParameter(f"{places[other]} and {option} are one file, {file}; name two")
        places[path] = option
        check_target(file, reads=sources, is_ours=(kinds or {}).get(option, is_report))


def _is_same(one: Path, other: Path) -> bool:
    return one == other or (one.exists() and other.exists() and one.samefile(other))


def _require_writable(file: str, path: Path) -> None:
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
