"""The application and its commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from mpfast.cli.analyze import analyze_command
from mpfast.cli.budget import budget_command
from mpfast.cli.compress import compress_command
from mpfast.cli.diff import diff_command
from mpfast.cli.inspect import inspect_command
from mpfast.cli.moments import moments_command
from mpfast.cli.narrow import narrow_command
from mpfast.cli.plot import plot_command
from mpfast.cli.prune import prune_command, verify_command
from mpfast.cli.ranks import ranks_command
from mpfast.cli.resize import resize_command
from mpfast.cli.spectrum import spectrum_command
from mpfast.cli.tools import bench_command, info_command
from mpfast.models import installed_version

__all__ = ["app", "main"]


class Command(TyperCommand):
    """A command none of whose values is empty: that is a shell's variable not set, and would be the path ``.``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line; wrong usage where a value is empty, before it becomes a path."""
        given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        parameters: list[Any] = list(self.get_params(ctx))
        for param in parameters:
            value = given.get(param.name or "")
            if value == "" or (isinstance(value, list | tuple) and "" in value):
                raise typer.BadParameter("is empty; is a variable of the shell not set?", ctx=ctx, param=param)
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="mpfast",
    help="Marchenko-Pastur edges of neural-network weight matrices, in seconds and with error bars.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain text, which narrow terminals and pipes show, too
    context_settings={"help_option_names": ["-h", "--help"]},
)

# What most people come for first; help lists them in this order.
app.command("analyze", cls=Command, short_help="Fit the edge of every weight matrix of models.")(analyze_command)
app.command("budget", cls=Command, short_help="Share a sparsity out over the layers of a model.")(budget_command)
app.command("moments", cls=Command, short_help="Collect what the layers of a model see, from a text.")(moments_command)
app.command("prune", cls=Command, short_help="Write a copy of a model with weights set to zero.")(prune_command)
app.command("narrow", cls=Command, short_help="Write a smaller model, without some neurons and heads.")(narrow_command)
app.command("ranks", cls=Command, short_help="Say which rank leaves which error of outputs.")(ranks_command)
app.command("compress", cls=Command, short_help="Write low-rank factors, or a LoRA adapter.")(compress_command)
app.command("resize", cls=Command, short_help="Give a LoRA adapter fewer ranks.")(resize_command)
app.command("verify", cls=Command, short_help="Check a model that prune, compress or narrow wrote.")(verify_command)
app.command("spectrum", cls=Command, short_help="Report on one matrix.")(spectrum_command)
app.command("inspect", cls=Command, short_help="List the tensors of a model, from its headers.")(inspect_command)
app.command("diff", cls=Command, short_help="Compare two models, or two analyses.")(diff_command)
app.command("plot", cls=Command, short_help="Draw what a training monitor has written.")(plot_command)
app.command("bench", cls=Command, short_help="Time mpfast against others on this machine.")(bench_command)
app.command("info", cls=Command, short_help="Show versions, threads and GPUs.")(info_command)


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


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Marchenko-Pastur edges of neural-network weight matrices, in seconds and with error bars."""
