"""Figures of whole models; they need matplotlib, which is an optional extra."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from mpfast.spectra import current_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mpfast.models.layer_report import LayerReport

__all__ = ["plot_analysis"]


def plot_analysis(layers: Sequence[LayerReport], ax: Axes | None = None) -> Axes:
    """Draw, layer by layer, the largest singular value and the edge it is measured against; see `Analysis.plot`."""
    ax = current_axes(ax)
    rows = range(len(layers))
    largest = [row.histogram.spikes[0] if row.histogram and row.histogram.spikes else np.nan for row in layers]
    ax.vlines(rows, [row.sigma_plus for row in layers], largest, color="0.75", lw=1)
    ax.plot(rows, largest, ".", color="C1", label="largest singular value")
    ax.errorbar(
        rows,
        [row.sigma_plus for row in layers],
        yerr=[row.sigma_plus_error for row in layers],
        fmt=".",
        color="C0",
        label="edge sigma+",
    )
    ax.set(xlabel="layer", ylabel="singular value", yscale="log")
    ax.legend(frameon=False)
    return ax
