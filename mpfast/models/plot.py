"""Figures of whole models; they need matplotlib, which is an optional extra."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mpfast.models.depth import by_place
from mpfast.models.layer_report import NUMBER_COLUMNS, LayerReport
from mpfast.spectra import current_axes
from mpfast.support import InvalidValueError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_analysis"]

# Of layers that carry no number in their name.
_NO_DEPTH = "-"


def plot_analysis(
    layers: Sequence[LayerReport], measure: str | Callable[[LayerReport], float], ax: Axes | None = None
) -> Axes:
    """Draw a measure as a heat map of depth by type of layer; see `Analysis.plot`."""
    if not callable(measure) and measure not in NUMBER_COLUMNS:
        names = ", ".join(NUMBER_COLUMNS)
        raise InvalidValueError("measure", f"must be a function of a layer or one of {names}, not {measure!r}")
    if not layers:
        raise InvalidValueError("", "there are no layers to draw")
    ax = current_axes(ax)
    cells = {
        place: [float(measure(row) if callable(measure) else row.to_dict()[measure]) for row in rows]
        for place, rows in by_place(layers).items()
    }
    types = list(dict.fromkeys(kind for kind, _ in cells))
    numbers = sorted({depth for _, depth in cells if depth is not None})
    depths: list[int | None] = [*numbers, *([None] if any(depth is None for _, depth in cells) else [])]
    means = np.full((len(types), len(depths)), np.nan)
    for (kind, depth), values in cells.items():
        at = types.index(kind), depths.index(depth)
        means[at] = np.mean(values)
        if len(values) > 1:
            ground = {"facecolor": "w", "alpha": 0.7, "linewidth": 0, "pad": 1}
            text = f"×{len(values)}"  # noqa: RUF001
            ax.text(*at[::-1], text, ha="center", va="center", fontsize="x-small", color="k", bbox=ground)
    ax.set_facecolor("0.85")  # where no layer is, as no colour of the scale
    image = ax.imshow(means, aspect="auto", cmap="Blues", interpolation="nearest")
    label = measure if isinstance(measure, str) else getattr(measure, "__name__", "measure")
    ax.figure.colorbar(image, ax=ax, label=label.replace("_", " "))
    ax.set_xticks(range(len(depths)), [_NO_DEPTH if depth is None else str(depth) for depth in depths])
    ax.set_yticks(range(len(types)), types)
    several = ", ×: mean of so many" if max(map(len, cells.values())) > 1 else ""  # noqa: RUF001
    ax.set(xlabel="depth", title=f"{len(layers)} layers{several}")
    return ax
