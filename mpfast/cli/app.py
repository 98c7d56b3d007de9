"""The application and its commands."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from mpfast.cli.analyze import analyze_command
from mpfast.cli.budget import budget_command
from mpfast.cli.command import Command, Group
from mpfast.cli.compress import compress_command
from mpfast.cli.configuration import configure
from mpfast.cli.diff import diff_command
from mpfast.cli.inspect import inspect_command
from mpfast.cli.moments import moments_command
from mpfast.cli.narrow import narrow_command
from mpfast.cli.plot import plot_command
from mpfast.cli.prune import prune_command, verify_command
from mpfast.cli.quantize import quantize_command
from mpfast.cli.ranks import ranks_command
from mpfast.cli.resize import resize_command
from mpfast.cli.spectrum import spectrum_command
from mpfast.cli.tools import bench_command, info_command
from mpfast.models import installed_version

__all__ = ["app", "main"]


app = typer.Typer(
    name="mpfast",
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # errors are plain text, which logs and narrow terminals show, too
    context_settings={"help_option_names": ["-h", "--help"]},
)

LOOK, SHRINK, COMPARE, TOOLS = "Look at models", "Make models smaller", "Check and compare", "About mpfast"


def _add(name: str, function: Callable[..., None], panel: str, short_help: str) -> None:
    app.command(name, cls=Command, short_help=short_help, rich_help_panel=panel)(function)


# What most people come for first; help lists them in this order.
_add("analyze", analyze_command, LOOK, "Fit the edge of every weight matrix of models.")
_add("ranks", ranks_command, LOOK, "Say which rank leaves which error of outputs.")
_add("spectrum", spectrum_command, LOOK, "Report on one matrix.")
_add("inspect", inspect_command, LOOK, "List the tensors of models, from their headers.")
_add("moments", moments_command, LOOK, "Collect what the layers of a model see, from a text.")
_add("plot", plot_command, LOOK, "Draw what a training monitor has written.")
_add("budget", budget_command, SHRINK, "Share a sparsity out over the layers of a model.")
_add("prune", prune_command, SHRINK, "Write a copy of a model with weights set to zero.")
_add("narrow", narrow_command, SHRINK, "Write a smaller model, without some neurons and heads.")
_add("quantize", quantize_command, SHRINK, "Store weights as packed integers.")
_add("compress", compress_command, SHRINK, "Write low-rank factors, or a LoRA adapter.")
_add("resize", resize_command, SHRINK, "Give a LoRA adapter fewer ranks.")
_add("verify", verify_command, COMPARE, "Check models that prune, compress or narrow wrote.")
_add("diff", diff_command, COMPARE, "Compare two models, or two analyses.")
_add("bench", bench_command, TOOLS, "Time mpfast against others on this machine.")
_add("info", info_command, TOOLS, "Show versions, threads and GPUs.")


def main(arguments: Sequence[str] | None = None) -> Any:
    """Run the command line; ends with `SystemExit`: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        # A layer's name or "±" must not end the program where the locale cannot spell it.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    return app(args=None if arguments is None else list(arguments), prog_name="mpfast")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mpfast {installed_version()}")
        raise typer.Exit


@app.callback(
    epilog="Exit status: 0 done, 1 a check or the work has failed, 2 called wrongly, 130 interrupted. "
    "`mpfast COMMAND --help` has examples."
)
def options(
    ctx: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Options for the commands, in TOML.",
            show_default="mpfast.toml, or [tool.mpfast] of pyproject.toml, of this directory or the nearest above",
        ),
    ] = None,
    no_config: Annotated[bool, typer.Option("--no-config", help="No options but those of the command line.")] = False,
    version: Annotated[
        bool,
        typer.Option("-V", "--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Marchenko-Pastur edges of neural-network weight matrices, in seconds and with error bars."""
    if config is not None and no_config:
        raise typer.BadParameter("pass either --config or --no-config")
    configure(ctx, config, wanted=not no_config)
