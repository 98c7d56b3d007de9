"""Options from a file: ``mpfast.toml``, or ``[tool.mpfast]`` in ``pyproject.toml``.

A key is an option as the command line spells it, without the dashes; at the top it is for every command that has the
option, in a table of a command's name for that one. What the command line says goes before what a file says.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Collection, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import typer

from mpfast.support import package_missing

__all__ = ["ALTERNATIVES", "blame", "configuration_in_force", "configure", "remember_configured", "settable"]

_OWN, _PROJECT = "mpfast.toml", "pyproject.toml"
_TABLE = "tool.mpfast"
_META = "mpfast.configuration"
# The file, and by parameter the options of the command at work that have their values from it.
_CONFIGURED: ContextVar[tuple[str, Mapping[str, str]]] = ContextVar("configured", default=("", {}))
#: Options of which one call takes one: where the command line has any of a group, a file's are not looked at.
ALTERNATIVES = (
    frozenset({"sparsity", "pattern", "budget", "masks"}),
    frozenset({"rank", "energy", "error"}),
)
# What is written or replaced, but for a cache, and whom a command connects to: a file that lies about must not say it.
_SAID_EACH_TIME = ("out", "json", "csv", "html", "overwrite", "dry-run", "dask")


def configure(ctx: Any, file: Path | None, wanted: bool) -> None:
    """Give the commands of a group the options of a configuration file.

    Parameters
    ----------
    ctx
        The group's context.
    file
        The file; None looks for one, from the working directory upwards.
    wanted
        Whether there is to be any.

    Raises
    ------
    typer.BadParameter
        The file is none, or says what cannot be.
    """
    found = (file or _nearest()) if wanted else None
    table = None if found is None else _table_of(found, given=file is not None)
    if found is not None and table is not None:
        ctx.default_map = _options(table, found, {name: settable(one) for name, one in ctx.command.commands.items()})
        ctx.meta[_META] = str(found)


def configuration_in_force(ctx: Any) -> str | None:
    """Return the path of the file whose options are in force; None where there is none."""
    path: str | None = ctx.meta.get(_META)
    return path


def remember_configured(ctx: Any, names: Collection[str]) -> None:
    """Take note of which parameters of the command at work have their values from the file."""
    options = {param.name: key for key, param in settable(ctx.command).items() if param.name in names}
    _CONFIGURED.set((configuration_in_force(ctx) or "", options))


def blame(message: str, name: str = "") -> str:
    """Return what is wrong, with the file that says so where it is an option of the file.

    Parameters
    ----------
    message
        What is wrong; it may name options as the command line spells them.
    name
        Of the parameter that it is about, if that is known.
    """
    file, configured = _CONFIGURED.get()
    named = set(re.findall(r"--([\w-]+)", message))
    found = name in configured or not named.isdisjoint(configured.values())
    return f"{message} ({file} says so)" if found else message


def settable(command: Any) -> dict[str, Any]:
    """Return by key the options of a command that a file can set."""
    found = {}
    for param in command.params:
        names = [name.removeprefix("--") for name in param.opts if name.startswith("--")]
        if names and names[0] not in (*_SAID_EACH_TIME, "help"):
            found[names[0]] = param
    return found


def _nearest() -> Path | None:
    """Return the first file from the working directory upwards; a project's file ends the search."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        for name in (_OWN, _PROJECT):
            if (folder / name).is_file():
                return folder / name
    return None


def _table_of(file: Path, given: bool) -> Mapping[str, Any] | None:
    """Return what a file says; None where it is a project's that says nothing of mpfast."""
    try:
        text = file.read_text("utf-8")
    except OSError as error:
        raise typer.BadParameter(f"{file}: cannot be read: {str(error.strerror).lower()}") from None
    except UnicodeDecodeError as error:
        raise typer.BadParameter(f"{file}: is no text in UTF-8: {error}") from None
    if file.name == _PROJECT and "mpfast" not in text and not given:
        return None  # the common case costs no parser
    parse = _parser(file)
    try:
        document: dict[str, Any] = parse(text)
    except ValueError as error:
        raise typer.BadParameter(f"{file}: is no TOML: {error}") from None
    if file.name != _PROJECT:
        return document
    tools = document.get("tool")
    table = tools.get("mpfast") if isinstance(tools, dict) else None
    if table is None and given:
        raise typer.BadParameter(f"{file}: has no table [{_TABLE}]")
    if table is not None and not isinstance(table, dict):
        raise typer.BadParameter(f"{file}: {_TABLE} must be a table")
    return table


def _parser(file: Path) -> Callable[[str], dict[str, Any]]:
    """Return what reads TOML: Python's own or, before 3.11, that of a package of the same interface."""
    if sys.version_info >= (3, 11):
        import tomllib

        return tomllib.loads
    try:
        import tomli
    except ModuleNotFoundError:
        raise typer.BadParameter(str(package_missing(f"{file}: reading it", "tomli", extra="cli"))) from None
    return tomli.loads  # type: ignore[no-any-return, unused-ignore]


def _options(
    table: Mapping[str, Any], file: Path, commands: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Return the options by command and parameter, as a command line would have them."""
    prefix = f"{_TABLE}." if file.name == _PROJECT else ""
    found: dict[str, dict[str, Any]] = {name: {} for name in commands}
    tables = {key: value for key, value in table.items() if isinstance(value, dict)}
    for key, value in table.items():
        if key in tables:
            continue
        having = [name for name, options in commands.items() if key in options]
        if not having:
            raise _unknown(f"{file}: {prefix}{key}", key, {key for options in commands.values() for key in options})
        for name in having:
            param = commands[name][key]
            found[name][param.name] = _as_given(f"{file}: {prefix}{key}", param, value)
    for name, options in tables.items():
        if name not in commands:
            raise _unknown(f"{file}: {prefix}{name}", name, set(commands), "command")
        for key, value in options.items():
            where = f"{file}: {prefix}{name}.{key}"
            if key not in commands[name]:
                raise _unknown(where, key, set(commands[name]))
            param = commands[name][key]
            found[name][param.name] = _as_given(where, param, value)
    return found


def _unknown(where: str, key: str, known: set[str], noun: str = "option") -> typer.BadParameter:
    if noun == "option" and key in _SAID_EACH_TIME:
        return typer.BadParameter(f"{where}: --{key} is said on the command line alone")
    near = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.0)
    return typer.BadParameter(f"{where}: there is no such {noun}; the nearest is {near[0]!r}")


def _as_given(where: str, param: Any, value: Any) -> Any:
    """Return a value as the command line would give it: a switch, a text, or texts where it may be repeated."""
    if param.is_flag:
        if not isinstance(value, bool):
            raise typer.BadParameter(f"{where}: must be true or false, not {value!r}")
        return value
    values = value if isinstance(value, list) else [value]
    if any(isinstance(one, bool) or not isinstance(one, str | int | float) for one in values):
        raise typer.BadParameter(f"{where}: must be a text or a number, not {value!r}")
    texts = [str(one) for one in values]
    if "" in texts:
        raise typer.BadParameter(f"{where}: is empty")  # a path would be the working directory
    if param.multiple:
        return texts
    if len(texts) != 1 or isinstance(value, list):
        raise typer.BadParameter(f"{where}: takes one value, not {value!r}")
    return texts[0]
