"""A progress bar over layers."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence

from mpfast.checkpoints import Layer
from mpfast.support import printable

__all__ = ["progress_bar"]


def _has_place() -> bool:
    """Whether a bar can be drawn: on a terminal, or in a notebook with the widgets that rich draws in."""
    if "ipykernel" in sys.modules:
        return importlib.util.find_spec("ipywidgets") is not None
    return sys.stderr is not None and sys.stderr.isatty()


@contextlib.contextmanager
def progress_bar(layers: Sequence[Layer], wanted: bool) -> Iterator[Callable[[Layer], None]]:
    """Yield a function to call after each layer; it counts entries, since the time goes with them."""
    if not wanted or not _has_place():
        yield lambda _: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        yield lambda _: None
        return
    columns = (
        BarColumn(),
        TextColumn("{task.fields[done]}/{task.fields[layers]} layers"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    # Drawn after each layer, and so without a thread, of which there may be none to be had.
    with Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False) as bar:
        task = bar.add_task("", total=sum(layer.size for layer in layers), done=0, layers=len(layers))
        done = 0

        def advance(layer: Layer) -> None:
            nonlocal done
            done += 1
            description = printable(layer.name).replace("[", "\\[")  # else rich takes "blocks[0]" for markup
            bar.update(task, advance=layer.size, done=done, description=description, refresh=True)

        yield advance
