"""Options that several commands share, each stated once, and how options take words of the library's lists."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer

from mpfast.checkpoints import DENSE_TYPES
from mpfast.spectra import SpectrumMethod

__all__ = [
    "CHOICE",
    "COMPUTATION",
    "OUTPUT",
    "STATUS",
    "BaseOption",
    "CeilingOption",
    "CsvOption",
    "DampingOption",
    "DequantizeOption",
    "DeviceOption",
    "DryRunOption",
    "EmbeddingsOption",
    "EnergyOption",
    "ErrorOption",
    "ExcludeOption",
    "FailOnOption",
    "GradientsOption",
    "HtmlOption",
    "IncludeOption",
    "JsonOption",
    "ModelArgument",
    "ModelsArgument",
    "OutOption",
    "OverwriteOption",
    "ProgressOption",
    "QuietOption",
    "RepackOption",
    "ReverseOption",
    "SeedOption",
    "SparsityOption",
    "SpectraOption",
    "StrictOption",
    "ThreadsOption",
    "TolOption",
    "TopOption",
    "VerboseOption",
    "require_one_standard_output",
    "require_out_or_dry_run",
    "share_between_0_and_1",
    "sort_option",
    "word_option",
]

# Panels of the help: what is looked at, how it is computed, what is told, and the exit status. What one command alone
# has stands above them.
CHOICE = "Which tensors"
COMPUTATION = "Computation"
OUTPUT = "Output"
STATUS = "Exit status"


class Described(Protocol):
    """An entry of one of the library's lists."""

    @property
    def description(self) -> str:
        """What the entry is, in one sentence."""


def word_option(words: Iterable[str] | Mapping[str, Described], metavar: str, help: str, **settings: Any) -> Any:
    """Return an option that takes one word of a list which the library keeps, and that a shell completes.

    Parameters
    ----------
    words
        The list; a mapping to entries with a description has its descriptions in the help.
    metavar
        What the help shows for the word.
    help
        What the word decides.
    **settings
        Of ``typer.Option``.
    """
    known = tuple(words)
    if isinstance(words, Mapping):
        help += " " + "; ".join(f"{word}: {entry.description}" for word, entry in words.items()).replace("`", "") + "."

    def checked(word: str | None) -> str | None:
        if word is not None and word not in known:
            raise typer.BadParameter(f"{word!r} is not one of {', '.join(known)}")
        return word

    return typer.Option(metavar=metavar, callback=checked, autocompletion=_starting(known), help=help, **settings)


def _starting(words: tuple[str, ...]) -> Callable[[str], list[str]]:
    def started(incomplete: str) -> list[str]:
        return [word for word in words if word.startswith(incomplete)]

    return started


def sort_option(columns: Iterable[str]) -> Any:
    """Return the option that says by which of the columns the rows of a table are put in order."""
    return word_option(
        columns,
        "COLUMN",
        "Order of the rows of the table, by a column as the JSON calls it; words run upwards, numbers downwards.",
        show_default="order of the file",
        rich_help_panel=OUTPUT,
    )


def _tolerance(value: float) -> float:
    if not 0 < value < 1:
        raise typer.BadParameter("must be between 0 and 1")
    return value


def share_between_0_and_1(value: float | None) -> float | None:
    """Return a share; wrong usage where it is none, or per cent."""
    if value is None or 0 <= value <= 1:
        return value
    meant = f"; {value:g} % is {value / 100:g}" if 1 < value <= 100 else ""
    raise typer.BadParameter(f"must lie between 0 and 1, not {value:g}{meant}")


_MODEL = "a checkpoint file, a model directory, or a Hugging Face id in the local cache"
ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL", help=f"{_MODEL[0].upper()}{_MODEL[1:]}.")]
ModelsArgument = Annotated[list[Path], typer.Argument(metavar="MODEL", help=f"Each {_MODEL}.")]

OutOption = Annotated[
    Path | None, typer.Option("-o", "--out", metavar="OUT", help="Directory to write.", show_default=False)
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Report, but write nothing.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace OUT if mpfast wrote all that it holds.")]
SparsityOption = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        help="Share of the entries to prune, 0 to 1.",
        callback=share_between_0_and_1,
        show_default=False,
    ),
]
CeilingOption = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        help="Largest sparsity of a layer; 1 lifts it.",
        callback=share_between_0_and_1,
        show_default="0.9, or half way from the target to 1 where that is more",
    ),
]
DampingOption = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        help="Of the mean of a moment's diagonal, added to it.",
        show_default="0.01 with much data, else 30 % of each entry",
    ),
]
EnergyOption = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        help="As few as hold this share of the squared norm, in (0, 1].",
        callback=share_between_0_and_1,
        show_default=False,
    ),
]
ErrorOption = Annotated[
    float | None,
    typer.Option(
        metavar="SHARE",
        help="As few as leave this relative error, in [0, 1).",
        callback=share_between_0_and_1,
        show_default=False,
    ),
]
GradientsOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Mean squares of gradients in the layers' outputs, for gauss_newton."),
]
DequantizeOption = Annotated[
    str | None,
    word_option(
        tuple(DENSE_TYPES),
        "TYPE",
        "Write a quantised model as a dense one of this type: bf16.",
        show_default="it is refused",
    ),
]
RepackOption = Annotated[
    bool, typer.Option("--repack", help="Write a quantised model in its own format: float8, MXFP4, NVFP4.")
]

IncludeOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GLOB", help="Only tensors whose whole name matches; may be repeated.", rich_help_panel=CHOICE
    ),
]
ExcludeOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="GLOB", help="Not the tensors whose whole name matches; may be repeated.", rich_help_panel=CHOICE
    ),
]
EmbeddingsOption = Annotated[
    bool, typer.Option("--embeddings", help="Embeddings and output heads, too.", rich_help_panel=CHOICE)
]
BaseOption = Annotated[
    Path | None,
    typer.Option(metavar="MODEL", help="What MODEL was tuned from: the difference is taken.", rich_help_panel=CHOICE),
]

SpectraOption = Annotated[
    SpectrumMethod, typer.Option("--spectra", help="How spectra are computed.", rich_help_panel=COMPUTATION)
]
TolOption = Annotated[
    float,
    typer.Option(
        metavar="SHARE",
        help="Wanted relative standard error of the edge.",
        callback=_tolerance,
        show_default=True,
        rich_help_panel=COMPUTATION,
    ),
]
SeedOption = Annotated[
    int,
    typer.Option(min=0, max=2**64 - 1, metavar="N", help="Seed of the random probes.", rich_help_panel=COMPUTATION),
]
DeviceOption = Annotated[
    str | None,
    typer.Option(
        metavar="DEVICE",
        help="cpu, cuda (every GPU) or cuda:N.",
        show_default="cpu",
        rich_help_panel=COMPUTATION,
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Number of threads in all.",
        show_default="all cores",
        rich_help_panel=COMPUTATION,
    ),
]

JsonOption = Annotated[
    str | None,
    typer.Option(
        "--json", metavar="FILE", help="Write JSON to FILE; - prints it instead of the table.", rich_help_panel=OUTPUT
    ),
]
CsvOption = Annotated[
    str | None,
    typer.Option(
        "--csv", metavar="FILE", help="Write CSV to FILE; - prints it instead of the table.", rich_help_panel=OUTPUT
    ),
]
HtmlOption = Annotated[
    str | None,
    typer.Option(
        "--html",
        metavar="FILE",
        help="Write a page for any browser to FILE; - prints it instead.",
        rich_help_panel=OUTPUT,
    ),
]
TopOption = Annotated[
    int | None,
    typer.Option(
        "--top",
        min=1,
        metavar="N",
        help="Only the first N rows of the table; JSON and CSV have all.",
        show_default="all",
        rich_help_panel=OUTPUT,
    ),
]
ReverseOption = Annotated[
    bool, typer.Option("--reverse", help="The rows of the table the other way round.", rich_help_panel=OUTPUT)
]
ProgressOption = Annotated[bool, typer.Option(help="Show a progress bar on a terminal.", rich_help_panel=OUTPUT)]
QuietOption = Annotated[
    bool,
    typer.Option(
        "-q",
        "--quiet",
        help="Print errors only, and what - asks for; no table, warning or progress.",
        rich_help_panel=OUTPUT,
    ),
]
VerboseOption = Annotated[
    bool,
    typer.Option(
        "-v",
        "--verbose",
        help="Name every tensor that was skipped, and log what is done.",
        rich_help_panel=OUTPUT,
    ),
]

StrictOption = Annotated[
    bool, typer.Option("--strict", help="Any warning makes the exit status 1.", rich_help_panel=STATUS)
]
FailOnOption = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-on",
        metavar="CONDITION",
        help="After the output, exit with status 1 if a row has COLUMN OP VALUE, as in 'ks > 0.1' and "
        "'verdict == none', the columns being the numbers and words of the JSON and OP one of > >= < <= == !=; may be "
        "repeated.",
        rich_help_panel=STATUS,
    ),
]


def require_out_or_dry_run(out: Path | None, dry_run: bool) -> None:
    """Exit with wrong usage unless the user says either where to write, or not to."""
    if (out is None) != dry_run:
        raise typer.BadParameter("pass either -o OUT or --dry-run")


def require_one_standard_output(files: Mapping[str, str | None]) -> None:
    """Exit with wrong usage where two options ask for standard output."""
    asking = [option for option, file in files.items() if file == "-"]
    if len(asking) > 1:
        raise typer.BadParameter(f"only one of {' - and '.join(files)} - can have standard output")
