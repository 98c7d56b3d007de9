"""Figures; needs matplotlib, which is an optional extra."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mpfast.results import Analysis
    from mpfast.spectrum import Spectrum


def _axes(ax: Axes | None, function: str) -> Axes:
    """Return what to draw on, by default the current axes."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(f"{function}() needs matplotlib: pip install 'mpfast[plot]'") from error
    return plt.gca() if ax is None else ax


def plot_spectrum(spectrum: Spectrum, ax: Axes | None = None) -> Axes:
    """Draw the density of the singular values, the fitted law, its edge and the values above it.

    Parameters
    ----------
    spectrum
        What to draw.
    ax
        Axes to draw on; default the current ones. ``show()`` is never called.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    ImportError
        matplotlib is missing.
    """
    ax = _axes(ax, "Spectrum.plot")
    edge = spectrum.edge
    top = 1.6 * edge.sigma_plus if edge.sigma_plus > 0 else 1.0
    s = np.linspace(0, top, 400)
    ax.fill_between(s, spectrum.density(s), alpha=0.3, label="measured")
    if edge.variance > 0:
        ax.plot(s, edge.law.pdf(s), label="Marchenko-Pastur")
    ax.axvline(edge.sigma_plus, linestyle="--", linewidth=1, color="0.3", label=r"$\sigma_+$")
    above = spectrum.outliers[(spectrum.outliers > edge.threshold) & (spectrum.outliers <= top)]
    ax.plot(above, np.zeros_like(above), "v", clip_on=False, label="spikes")
    ax.set_xlabel("singular value")
    ax.set_ylabel("density")
    ax.set_title(f"{spectrum.shape[0]} x {spectrum.shape[1]}: {edge.spikes} spikes, fit {edge.verdict}")
    ax.legend()
    return ax


def plot_analysis(analysis: Analysis, ax: Axes | None = None) -> Axes:
    """Draw, layer by layer, the largest singular value and the edge it is measured against; see `Analysis.plot`."""
    ax = _axes(ax, "Analysis.plot")
    rows = range(len(analysis))
    largest = [row.histogram.spikes[0] if row.histogram and row.histogram.spikes else np.nan for row in analysis]
    ax.vlines(rows, [row.sigma_plus for row in analysis], largest, color="0.75", lw=1)
    ax.plot(rows, largest, ".", color="C1", label="largest singular value")
    ax.errorbar(
        rows,
        [row.sigma_plus for row in analysis],
        yerr=[row.sigma_plus_error for row in analysis],
        fmt=".",
        color="C0",
        label="edge sigma+",
    )
    ax.set(xlabel="layer", ylabel="singular value", yscale="log")
    ax.legend(frameon=False)
    return ax
