"""Layers over steps; needs matplotlib, which is an optional extra."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from typing import TYPE_CHECKING

from mpfast.integrations.monitor.log import MEASURES, SpectralLog
from mpfast.spectra import current_axes
from mpfast.support import InvalidValueError, front_door

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_log"]

# More names than this hide what is drawn.
_NAMED = 12


@front_door
def plot_log(
    log: SpectralLog, measure: str = "stable_rank", *, include: str | Iterable[str] = (), ax: Axes | None = None
) -> Axes:
    """Draw one measure of the layers over the steps; alarms are marked. ``show()`` is never called.

    Parameters
    ----------
    log : SpectralLog
        As `read_log` returns it.
    measure : str
        One of `MEASURES`.
    include : str or iterable of str
        Glob patterns of the layers to draw; default all.
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
    patterns = (include,) if isinstance(include, str) else tuple(include)
    layers = [name for name in log.layers if not patterns or any(fnmatch.fnmatchcase(name, one) for one in patterns)]
    if not layers:
        raise InvalidValueError("include", "matches no layer that was measured" if patterns else "finds no measurement")
    ax = current_axes(ax)
    marked = {(one["layer"], one["step"]) for one in log.alarms}
    for at, name in enumerate(layers):
        found = log.of(name)
        colour = f"C{at % 10}"
        steps, values = [one.step for one in found], [float(getattr(one, measure)) for one in found]
        label = name if len(layers) <= _NAMED else None
        ax.plot(steps, values, ".-", color=colour, linewidth=1, label=label)
        alarming = [one for one in found if (name, one.step) in marked]
        ax.plot([one.step for one in alarming], [getattr(one, measure) for one in alarming], "x", color="k")
    ax.set(xlabel="step", ylabel=measure.replace("_", " "), title=f"{len(layers)} layers, x: an alarm")
    if len(layers) <= _NAMED:
        ax.legend(frameon=False, fontsize="small")
    return ax
