"""The command that draws what a monitor has written."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mpfast.cli.console import check_files, reports_errors, write_document
from mpfast.cli.options import (
    ExcludeOption,
    IncludeOption,
    JsonOption,
    QuietOption,
    StrictOption,
    VerboseOption,
    word_option,
)
from mpfast.integrations.monitor import MEASURES, SpectralLog, chosen_layers, plot_log, read_log
from mpfast.support import counted, package_missing, printable

__all__ = ["plot_command"]

# What a picture says of itself, by its suffix, so that another one is not replaced.
_MARKS = {".png": {"Software": "mpfast"}, ".svg": {"Creator": "mpfast", "Date": None}}
_SIGNATURES = (b"\x89PNG", b"<?xml")


@reports_errors
def plot_command(
    logs: Annotated[list[Path], typer.Argument(metavar="LOG", help="What a SpectralMonitor wrote, a run each.")],
    metric: Annotated[str, word_option(MEASURES, "NAME", f"What is drawn: {', '.join(MEASURES)}.")] = "stable_rank",
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", metavar="FILE", help="PNG or SVG to write.", show_default="the first LOG as .png"),
    ] = None,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    json_file: JsonOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    strict: StrictOption = False,
) -> None:
    """Draw layers over steps, from the files of one or several runs; alarms are marked.

    Layers have colours, runs have kinds of lines. Needs matplotlib.
    """
    target = logs[0].with_suffix(".png") if out is None else out
    if target.suffix.lower() not in _MARKS:
        raise typer.BadParameter(f"{target}: must end in {' or '.join(_MARKS)}", param_hint="-o")
    # A log is no picture of ours, and so never replaced.
    check_files({"-o": target, "--json": json_file}, reads=logs, kinds={"-o": _is_picture_of_ours})
    if importlib.util.find_spec("matplotlib") is None:
        raise package_missing("mpfast plot", "matplotlib", extra="plot")
    from matplotlib.figure import Figure

    runs = {str(path): read_log(path) for path in logs}
    figure = Figure(figsize=(9, 5), layout="constrained")
    layers = chosen_layers(runs.values(), include or (), exclude or ())
    plot_log(runs, metric, include=include or (), exclude=exclude or (), ax=figure.add_subplot())
    figure.savefig(target, dpi=150, metadata=_MARKS[target.suffix.lower()])
    if not write_document(_document(target, metric, runs, layers), json_file) and not quiet:
        steps = [one.step for log in runs.values() for one in log.measurements]
        of_what = f"{counted(len(runs), 'run')}, steps {min(steps)} to {max(steps)}"
        typer.echo(printable(f"{target}: {metric} of {of_what}"))


def _document(out: Path, metric: str, runs: Mapping[str, SpectralLog], layers: Sequence[str]) -> dict[str, Any]:
    """Return what is drawn, run by run and layer by layer."""

    def drawn(log: SpectralLog, layer: str) -> dict[str, Any]:
        found = log.of(layer)
        return {
            "name": layer,
            "steps": [one.step for one in found],
            "values": [getattr(one, metric) for one in found],
            "alarms": [alarm["step"] for alarm in log.alarms if alarm["layer"] == layer],
        }

    return {
        "schema": "mpfast.plot/1",
        "out": str(out),
        "metric": metric,
        "runs": [
            {
                "log": name,
                "provenance": log.provenance.to_dict(),
                "layers": [drawn(log, layer) for layer in layers if layer in log.layers],
            }
            for name, log in runs.items()
        ],
    }


def _is_picture_of_ours(path: Path) -> bool:
    with path.open("rb") as file:
        first = file.read(4096)
    return first.startswith(_SIGNATURES) and b"mpfast" in first
