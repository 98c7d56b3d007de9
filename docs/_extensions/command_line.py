"""Directive ``command-line``: every command of mpfast with its arguments and options, as the program has them."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Iterator
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective


class CommandLine(SphinxDirective):
    """Writes a section per command."""

    def run(self) -> list[nodes.Node]:
        """Return the sections."""
        from mpfast.cli.app import app

        self.env.note_dependency(__file__)
        sections: list[nodes.Node] = []
        for command in app.registered_commands:
            section = nodes.section(ids=[f"mpfast-{command.name}"], names=[f"mpfast {command.name}"])
            section += nodes.title(text=f"mpfast {command.name}")
            section.extend(self.parse_text_to_nodes("\n".join(_lines(str(command.name), command.callback))))
            sections.append(section)
        return sections


def _lines(name: str, function: Any) -> Iterator[str]:
    from mpfast.cli.examples import EXAMPLES

    hints = typing.get_type_hints(function, include_extras=True)
    defaults = {key: entry.default for key, entry in inspect.signature(function).parameters.items()}
    # What has no help is the context, which is nothing that a user gives.
    entries = [
        (key, *typing.get_args(hints[key])[:2], defaults[key]) for key in defaults if typing.get_args(hints[key])
    ]
    arguments = [entry for entry in entries if type(entry[2]).__name__ == "ArgumentInfo"]
    options = [entry for entry in entries if entry not in arguments]
    usage = " ".join(f"{info.metavar}..." if _repeats(kind) else info.metavar for _, kind, info, _ in arguments)
    yield from ("```text", f"mpfast {name} [OPTIONS] {usage}".rstrip(), "```", "")
    yield from (" ".join(paragraph.split()) + "\n" for paragraph in (inspect.getdoc(function) or "").split("\n\n"))
    yield from ("```bash", *(f"mpfast {name} {line}  # {what}" for what, line in EXAMPLES[name]), "```", "")
    for key, kind, info, default in (*arguments, *options):
        spelling = info.metavar if (key, kind, info, default) in arguments else _spelling(key, kind, info)
        yield from (f"`{spelling}`", f": {_description(info, default)}", "")


def _repeats(kind: Any) -> bool:
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    return any(typing.get_origin(one) is list for one in kinds)


def _spelling(key: str, kind: Any, info: Any) -> str:
    # In an annotation Typer takes the first name for a default.
    first = [info.default] if isinstance(info.default, str) and info.default.startswith("-") else []
    names = ", ".join([*first, *(info.param_decls or ())]) or "--" + key.replace("_", "-")
    if kind is bool:
        return names
    if isinstance(kind, types.UnionType):
        kind = next(part for part in typing.get_args(kind) if part is not type(None))
    words = "|".join(typing.get_args(kind)) if typing.get_origin(kind) is typing.Literal else ""
    return f"{names} {info.metavar or words or {int: 'N', float: 'NUMBER'}.get(kind, 'TEXT')}"


def _description(info: Any, default: Any) -> str:
    if default is inspect.Parameter.empty:
        return f"{info.help} Required."
    default = info.show_default if isinstance(info.show_default, str) else default
    return info.help if default is None or isinstance(default, bool) else f"{info.help} Default: {default}."


def setup(app: Any) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("command-line", CommandLine)
    return {"parallel_read_safe": True}
