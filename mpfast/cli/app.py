"""The application and its commands.

Each command imports what it needs when it runs: `mpfast --help` loads no checkpoint reader and no estimator.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from mpfast.cli import matrices, models, tools
from mpfast.cli.console import version

__all__ = ["app", "main"]

app = typer.Typer(
    name="mpfast",
    help="Marchenko-Pastur edges of neural-network weight matrices, in seconds and with error bars.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain text, which narrow terminals and pipes show, too
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("spectrum", short_help="Report on one matrix.")(matrices.spectrum_command)
app.command("analyze", short_help="Fit the edge of every weight matrix of a model.")(models.analyze_command)
app.command("budget", short_help="Share a sparsity out over the layers of a model.")(models.budget_command)
app.command("prune", short_help="Write a copy of a model with weights set to zero.")(models.prune_command)
app.command("verify", short_help="Check a model that prune wrote.")(models.verify_command)
app.command("compress", short_help="Write low-rank factors, or a LoRA adapter.")(models.compress_command)
app.command("bench", short_help="Time mpfast against others on this machine.")(tools.bench_command)
app.command("info", short_help="Show versions, threads and GPUs.")(tools.info_command)


def main(arguments: Sequence[str] | None = None) -> Any:
    """Run the command line; ends with `SystemExit`: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        # A layer's name or "±" must not end the program where the locale cannot spell it.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    return app(args=None if arguments is None else list(arguments), prog_name="mpfast")


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
