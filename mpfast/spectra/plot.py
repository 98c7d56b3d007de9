"""Figures; needs matplotlib, which is an optional extra."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpfast.support import package_missing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mpfast.spectra.edge import EdgeFit


__all__ = ["current_axes", "plot_spectrum"]


Array = NDArray[np.float64]


class Drawable(Protocol):
    """What a figure needs to know of a spectrum; see `mpfast.Spectrum`."""

    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def outliers(self) -> Array: ...
    @property
    def edge(self) -> EdgeFit: ...
    @property
    def of_outputs(self) -> bool: ...
    def quantile(self, u: ArrayLike) -> Array: ...
    def density(self, s: ArrayLike) -> Array: ...


def current_axes(ax: Axes | None) -> Axes:
    """Return what to draw on, by default the current axes."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise package_missing("plot()", "matplotlib", extra="plot") from error
    return plt.gca() if ax is None else ax


def plot_spectrum(spectrum: Drawable, ax: Axes | None = None) -> Axes:
    """Draw the density of the singular values, the fitted law, its edge and the values above it.

    Of a spectrum of outputs, which no law is fitted to, the density alone.

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
    ax = current_axes(ax)
    if spectrum.of_outputs:
        top = float(spectrum.quantile(0.99)) or 1.0
        s = np.linspace(0, top, 400)
        ax.fill_between(s, spectrum.density(s), alpha=0.3)
        ax.set_xlabel("singular value of the outputs")
        ax.set_ylabel("density")
        ax.set_title(f"{spectrum.shape[0]} x {spectrum.shape[1]}: outputs")
        return ax
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
