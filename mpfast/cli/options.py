"""Options that several commands share, each stated once, and how options take words of the library's lists."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer

from mpfast.checkpoints import DENSE_TYPES
from mpfast.spectra import SpectrumMethod

__all__ = [
    "BaseOption",
    "CeilingOption",
    "DampingOption",
    "DequantizeOption",
    "DeviceOption",
    "DryRunOption",
    "EmbeddingsOption",
    "ExcludeOption",
    "FailOnOption",
    "GradientsOption",
    "HtmlOption",
    "IncludeOption",
    "JsonOption",
    "MethodOption",
    "ModelArgument",
    "OutOption",
    "OverwriteOption",
    "ProgressOption",
    "QuietOption",
    "RepackOption",
    "SeedOption",
    "SparsityOption",
    "StrictOption",
    "ThreadsOption",
    "TolOption",
    "VerboseOption",
    "require_out_or_dry_run",
    "share_between_0_and_1",
    "word_option",
]


class Described(Protocol):
    """An entry of one of the library's lists."""

    @property
    def description(self) -> str:
        """What the entry is, in one sentence."""


def word_option(words: Iterable[str] | Mapping[str, Described], metavar: str, help: str, **settings: Any) -> Any:
    """Return an option that takes one word of a list which the library keeps.

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

    return typer.Option(metavar=metavar, callback=checked, help=help, **settings)


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


ModelArgument = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL", help="A checkpoint file, a model directory, or a Hugging Face id in the local cache."
    ),
]
BaseOption = Annotated[
    Path | None, typer.Option(metavar="MODEL", help="What MODEL was tuned from: the difference is taken.")
]
OutOption = Annotated[
    Path | None, typer.Option("-o", "--out", metavar="OUT", help="Directory to write.", show_default=False)
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Report, but write nothing.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace OUT if mpfast wrote all that it holds.")]
SparsityOption = Annotated[
    float | None,
    typer.Option(help="Share of the entries to prune, 0 to 1.", callback=share_between_0_and_1, show_default=False),
]
CeilingOption = Annotated[
    float | None,
    typer.Option(
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
EmbeddingsOption = Annotated[bool, typer.Option("--embeddings", help="Embeddings and output heads, too.")]
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
QuietOption = Annotated[
    bool, typer.Option("-q", "--quiet", help="Print errors only, and what - asks for; no table, warning or progress.")
]
StrictOption = Annotated[bool, typer.Option("--strict", help="Any warning makes the exit status 1.")]
FailOnOption = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-on",
        metavar="CONDITION",
        help="After the output, exit with status 1 if a row has COLUMN OP NUMBER, as in 'ks > 0.1', the columns being "
        "the numbers of the JSON and OP one of > >= < <= == !=; may be repeated.",
    ),
]
GradientsOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Mean squares of gradients in the layers' outputs, for gauss_newton."),
]
VerboseOption = Annotated[
    bool, typer.Option("-v", "--verbose", help="Name every tensor that was skipped, and log what is done.")
]
TolOption = Annotated[
    float,
    typer.Option(help="Wanted relative standard error of the edge.", callback=_tolerance, show_default=True),
]
SeedOption = Annotated[int, typer.Option(min=0, max=2**64 - 1, help="Seed of the random probes.")]
DeviceOption = Annotated[
    str | None, typer.Option(help="cpu, cuda (every GPU) or cuda:N.", show_default="cpu", metavar="DEVICE")
]
MethodOption = Annotated[SpectrumMethod, typer.Option(help="How the spectrum is computed.")]
IncludeOption = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Only tensors whose whole name matches; may be repeated."),
]
ExcludeOption = Annotated[
    list[str] | None,
    typer.Option(metavar="GLOB", help="Not the tensors whose whole name matches; may be repeated."),
]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="Number of threads in all.", show_default="all cores")]
ProgressOption = Annotated[bool, typer.Option(help="Show a progress bar on a terminal.")]
JsonOption = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", help="Write JSON to FILE; - prints it instead of the table."),
]
HtmlOption = Annotated[
    str | None,
    typer.Option("--html", metavar="FILE", help="Write a page for any browser to FILE; - prints it instead."),
]


def require_out_or_dry_run(out: Path | None, dry_run: bool) -> None:
    """Exit with wrong usage unless the user says either where to write, or not to."""
    if (out is None) != dry_run:
        raise typer.BadParameter("pass either -o OUT or --dry-run")
