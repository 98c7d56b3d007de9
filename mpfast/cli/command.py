"""How commands take what they are given, and how they show their help."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from mpfast.cli.configuration import ALTERNATIVES, blame, remember_configured
from mpfast.cli.examples import EXAMPLES

__all__ = ["Command", "Group"]


class Group(TyperGroup):
    """The commands; panels in the help, plain text in errors."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Show the commands in panels."""
        self.rich_markup_mode = "rich"
        _hide_types_of_switches(self.get_params(ctx))
        super().format_help(ctx, formatter)


class Command(TyperCommand):
    """A command with panels and examples in its help, whose options a configuration file can set.

    None of its values is empty: that is a shell's variable not set, and would be the path ``.``.
    """

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Show the options in panels, and the examples below them."""
        self.rich_markup_mode = "rich"
        _hide_types_of_switches(self.get_params(ctx))
        # The lines of a docstring are no lines of the terminal.
        self.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in (self.help or "").split("\n\n"))
        super().format_help(ctx, formatter)
        _print_examples(str(self.name))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line; wrong usage where a value is empty, before it becomes a path."""
        given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        parameters: list[Any] = list(self.get_params(ctx))
        for param in parameters:
            value = given.get(param.name or "")
            if value == "" or (isinstance(value, list | tuple) and "" in value):
                raise typer.BadParameter("is empty; is a variable of the shell not set?", ctx=ctx, param=param)
        configured = _without_alternatives(ctx.default_map or {}, given)
        ctx.default_map = configured
        remember_configured(ctx, configured.keys() - given.keys())
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            error.message = blame(error.message, str(error.param.name) if error.param is not None else "")
            raise

    def invoke(self, ctx: Any) -> Any:
        """Run the command; wrong usage names the file where an option of a file is wrong."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = blame(error.message)
            raise


def _hide_types_of_switches(params: Iterable[Any]) -> None:
    """Show no type of options that take no value, as some versions of typer do."""
    for param in params:
        if getattr(param, "is_flag", False) and param.metavar is None:
            param.metavar = ""


def _without_alternatives(configured: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Leave out what the command line says in another way."""
    said = {name for names in ALTERNATIVES if not names.isdisjoint(given) for name in names}
    return {name: value for name, value in configured.items() if name not in said}


def _print_examples(name: str) -> None:
    from rich.console import Console
    from rich.console import Group as Stack
    from rich.panel import Panel
    from rich.text import Text

    lines = [
        text
        for what, line in EXAMPLES[name]
        for text in (Text(f"# {what}", style="dim"), Text(f"mpfast {name} {line}".rstrip(), style="cyan"))
    ]
    Console().print(Panel(Stack(*lines), title="Examples", title_align="left", border_style="dim"))
