"""The pictures of a layer's eigenvalues and its power law, in one call; they need matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mpfast.integrations.weightwatcher.columns import tail_of
from mpfast.integrations.weightwatcher.table import esd
from mpfast.spectra import PowerLaw, power_law
from mpfast.support import InvalidValueError, front_door, package_missing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_esd"]

Array = NDArray[np.float64]

_BINS = 100
# Below this share of the largest, an eigenvalue is rounding.
_ROUNDING = 2.0**-46
# So many places of xmin draw the two curves as well as all of them.
_PLACES = 200


@front_door
def plot_esd(
    model: Any, layer: int | str, *, randomize: bool = False, seed: int = 0, figure: Figure | None = None
) -> Figure:
    """Draw the eigenvalues of a layer and the power law fitted to their tail; ``show()`` is never called.

    Four panels: densities with both axes logarithmic, with the law; with none; of the logarithms; and the Kolmogorov
    distance and the exponent over where the tail could begin.

    Parameters
    ----------
    model, layer
        As in `esd`.
    randomize : bool
        Draw the eigenvalues of the matrices with their entries in random places, too.
    seed : int
        Of the random places.
    figure : matplotlib.figure.Figure, optional
        Figure to draw on; default a new one, which pyplot does not know.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    KeyError
        There is no such layer.
    ValueError
        It has no eigenvalue but zero.
    ImportError
        matplotlib is not installed.
    """
    eigenvalues = esd(model, layer)
    positive = eigenvalues[eigenvalues > _ROUNDING * eigenvalues[-1]]
    if not len(positive):
        raise InvalidValueError("layer", f"{layer!r} has no eigenvalue but zero")
    others = esd(model, layer, randomize=True, seed=seed) if randomize else None
    fit = tail_of(eigenvalues)
    figure = _new_figure() if figure is None else figure
    axes = figure.subplots(2, 2).ravel()
    logarithmic, linear, logarithms, search = axes
    _histogram(logarithmic, positive, np.geomspace(positive[0], positive[-1], _BINS + 1), others)
    logarithmic.set(xscale="log", yscale="log", xlabel="eigenvalue", ylabel="density")
    _histogram(linear, positive, np.linspace(0, positive[-1], _BINS + 1), others)
    linear.set(xlabel="eigenvalue", ylabel="density")
    logs = np.log10(positive)
    _histogram(
        logarithms,
        logs,
        np.linspace(logs[0], logs[-1], _BINS + 1),
        None if others is None else np.log10(others[others > _ROUNDING * others[-1]]),
    )
    logarithms.set(xlabel="log10 of the eigenvalue", ylabel="density")
    if fit is None:
        figure.suptitle(f"{layer}: no power law could be fitted")
        return figure
    _law(logarithmic, fit, fit.tail / len(positive))
    for ax, place in ((logarithmic, fit.xmin), (linear, fit.xmin), (logarithms, np.log10(fit.xmin))):
        ax.axvline(place, color="C3", linewidth=1, label="xmin")
    _search(search, positive, fit)
    logarithmic.legend(frameon=False, fontsize="small")
    figure.suptitle(f"{layer}: alpha {fit.alpha:.3f} ± {fit.sigma:.3f}, D {fit.D:.3f}, xmin {fit.xmin:.3g}")
    return figure


def _new_figure() -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise package_missing("plot_esd()", "matplotlib", extra="plot") from None
    return Figure(figsize=(10, 7), layout="constrained")


def _histogram(ax: Axes, values: Array, edges: Array, others: Array | None) -> None:
    """Bars of the densities of values, and the outline of those of others on the same scale."""
    for drawn, options in ((values, {"fill": True, "alpha": 0.5}), (others, {"label": "entries in random places"})):
        if drawn is not None:
            counts, _ = np.histogram(drawn, edges)
            ax.stairs(counts / len(drawn) / np.diff(edges), edges, **options)


def _law(ax: Axes, fit: PowerLaw, share: float) -> None:
    """The law with the area of its tail."""
    x = np.geomspace(fit.xmin, fit.xmax, 50)
    density = share * (fit.alpha - 1) / fit.xmin * (x / fit.xmin) ** -fit.alpha
    ax.plot(x, density, "--", color="C3", label=f"power law, alpha {fit.alpha:.2f}")


def _search(ax: Axes, values: Array, fit: PowerLaw) -> None:
    """Distance and exponent of the tails that begin at one value after the other."""
    starts = np.unique(values)[:-1]
    fits = [power_law(values, xmin=float(start)) for start in starts[:: max(1, len(starts) // _PLACES)]]
    ax.plot([one.xmin for one in fits], [one.D for one in fits], color="C0", label="D")
    ax.axvline(fit.xmin, color="C3", linewidth=1)
    ax.set(xscale="log", xlabel="xmin", ylabel="D")
    exponents = ax.twinx()
    exponents.plot([one.xmin for one in fits], [one.alpha for one in fits], color="C1")
    exponents.set_ylabel("alpha", color="C1")
    exponents.set_ylim(1, max(2 * fit.alpha, 3))
