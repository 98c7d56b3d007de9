"""Figures; needs matplotlib, which is an optional extra."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpfast.spectra.picture import Drawable, Histogram, Picture
from mpfast.support import package_missing

if TYPE_CHECKING:
    from matplotlib.axes import Axes


__all__ = ["current_axes", "draw_picture", "plot_spectrum"]


def current_axes(ax: Axes | None) -> Axes:
    """Return what to draw on, by default the current axes."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise package_missing("plot()", "matplotlib", extra="plot") from error
    return plt.gca() if ax is None else ax


def plot_spectrum(spectrum: Drawable, ax: Axes | None = None) -> Axes:
    """Draw a spectrum; see `mpfast.Spectrum.plot`."""
    ax = current_axes(ax)
    size = f"{spectrum.shape[0]} x {spectrum.shape[1]}"
    fit = None if spectrum.of_outputs else spectrum.edge
    draw_picture(ax, Picture.of(Histogram.of(spectrum), spectrum.shape, fit))
    if fit is None:
        ax.set(xlabel="singular value of the outputs", title=f"{size}: outputs")
    else:
        ax.set_title(f"{size}: {fit.spikes} spikes, fit {fit.verdict}")
    return ax


def draw_picture(ax: Axes, picture: Picture | None) -> None:
    """Draw a picture; None is that of a matrix that is zero."""
    ax.set(xlabel="singular value", ylabel="density of all singular values")
    if picture is None:
        ax.text(0.5, 0.5, "all singular values are zero", transform=ax.transAxes, ha="center", va="center")
        return
    ax.stairs(picture.density, picture.edges, fill=True, color="C0", alpha=0.35, label="singular values")
    if picture.law is not None:
        ax.plot(*picture.law, color="C0", linewidth=1.6, label="law of even noise")
    if picture.sigma_plus is not None:
        ax.axvline(picture.sigma_plus, linestyle="--", linewidth=1, color="0.3", label=r"edge $\sigma_+$")
    if len(picture.marked):
        shown = len(picture.marked)
        label = "spikes" if shown == picture.spikes else f"{shown} of {picture.spikes} spikes"
        ax.plot(picture.marked, [0.0] * shown, "v", color="C1", ms=4, clip_on=False, zorder=5, label=label)
    if picture.beyond:
        text = f"{picture.beyond} more to the right \N{RIGHTWARDS ARROW}"
        ax.text(0.99, 0.03, text, transform=ax.transAxes, ha="right", va="bottom", fontsize="small")
    ax.set(xlim=(0.0, picture.end), ylim=(0.0, None))
    ax.legend(frameon=False)
