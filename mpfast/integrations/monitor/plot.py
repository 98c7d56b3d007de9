"""Layers over steps; needs matplotlib, which is an optional extra."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from mpfast.integrations.monitor.log import MEASURES, SpectralLog
from mpfast.spectra import current_axes
from mpfast.support import InvalidValueError, check_patterns, front_door, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["chosen_layers", "plot_log"]

# More names than this hide what is drawn.
_NAMED = 12
_LINES = ("-", "--", ":", "-.")


@front_door
def plot_log(
    log: SpectralLog | Mapping[str, SpectralLog],
    measure: str = "stable_rank",
    *,
    include: str | Iterable[str] = (),
    exclude: str | Iterable[str] = (),
    ax: Axes | None = None,
) -> Axes:
    """Draw one measure of the layers over the steps; alarms are marked. ``show()`` is never called.

    Parameters
    ----------
    log : SpectralLog or mapping of them
        As `read_log` returns it; or several runs by what they are called, laid over each other: a layer has one colour,
        a run one kind of line.
    measure : str
        One of `MEASURES`.
    include, exclude : str or iterable of str
        Glob patterns of the layers to draw, and not to draw; default all, and none.
    ax : matplotlib.axes.Axes, optional
        Axes to draw on; default the current ones.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ValueError
        There is no such measure, or no layer to draw.
    ImportError
        matplotlib is not installed.
    """
    if measure not in MEASURES:
        raise InvalidValueError("measure", f"must be one of {', '.join(MEASURES)}, not {measure!r}")
    runs = {"": log} if isinstance(log, SpectralLog) else dict(log)
    layers = chosen_layers(runs.values(), include, exclude)
    ax = current_axes(ax)
    named = len(layers) <= _NAMED
    for at, (title, run) in enumerate(runs.items()):
        line = _LINES[at % len(_LINES)]
        if len(runs) > 1:
            ax.plot([], [], line, color="0.3", label=printable(title))
        for number, name in enumerate(layers):
            _draw(ax, run, name, measure, line, f"C{number % 10}", printable(name) if named and not at else None)
    many = f"{len(layers)} layers" + (f", {len(runs)} runs" if len(runs) > 1 else "")
    ax.set(xlabel="step", ylabel=measure.replace("_", " "), title=f"{many}; x: an alarm")
    if named or len(runs) > 1:
        ax.legend(frameon=False, fontsize="small")
    return ax


def chosen_layers(
    runs: Iterable[SpectralLog], include: str | Iterable[str] = (), exclude: str | Iterable[str] = ()
) -> list[str]:
    """Return the layers of runs whose names match, in the order of their first measurement.

    Raises
    ------
    ValueError
        There is none.
    """
    wanted, unwanted = check_patterns(include, "include"), check_patterns(exclude, "exclude")
    measured = dict.fromkeys(name for run in runs for name in run.layers)
    layers = [name for name in measured if (not wanted or _matches(name, wanted)) and not _matches(name, unwanted)]
    if not layers and (wanted or not unwanted):
        found = "matches no layer that was measured" if wanted else "finds no measurement"
        raise InvalidValueError("include", found)
    if not layers:
        raise InvalidValueError("exclude", "leaves no layer that was measured")
    return layers


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _draw(ax: Axes, run: SpectralLog, name: str, measure: str, line: str, colour: str, label: str | None) -> None:
    found = run.of(name)
    ax.plot(
        [one.step for one in found],
        [float(getattr(one, measure)) for one in found],
        line,
        marker=".",
        color=colour,
        linewidth=1,
        label=label,
    )
    steps = {alarm["step"] for alarm in run.alarms if alarm["layer"] == name}
    alarming = [one for one in found if one.step in steps]
    ax.plot([one.step for one in alarming], [float(getattr(one, measure)) for one in alarming], "x", color="k")
