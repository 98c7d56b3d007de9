"""Options that several commands share, each stated once."""

from __future__ import annotations

import enum
from typing import Annotated

import typer


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
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="Number of threads in all.", show_default="all cores")]
ProgressOption = Annotated[bool, typer.Option(help="Show a progress bar on a terminal.")]
JsonOption = Annotated[
    str | None,
    typer.Option("--json", metavar="FILE", help="Write JSON to FILE; - prints it instead of the table."),
]
