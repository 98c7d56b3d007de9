"""What every picture of a spectrum shows, so that all pictures of one matrix are the same.

Heights are densities of all singular values: the area of the bars is the share of the values that lie in them, and the
law is drawn with the area of the bulk, ``bulk_fraction``, not with area 1.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpfast.spectra.edge import EdgeFit
from mpfast.spectra.marchenko_pastur import MarchenkoPastur

__all__ = ["Drawable", "Fitted", "Histogram", "Picture"]

Array = NDArray[np.float64]

HISTOGRAM_BINS = 48
SPIKES_KEPT = 32
_CURVE_POINTS = 80
# A picture reaches to its largest spike, but no further than so many times its bars: else these are too narrow to see.
_FURTHEST = 2.5
_MARGIN = 1.02


class Drawable(Protocol):
    """What a picture needs to know of a spectrum; see `mpfast.Spectrum`."""

    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def values(self) -> Array | None: ...
    @property
    def outliers(self) -> Array: ...
    @property
    def edge(self) -> EdgeFit: ...
    @property
    def of_outputs(self) -> bool: ...
    def quantile(self, u: ArrayLike) -> Array: ...
    def cdf(self, s: ArrayLike) -> Array: ...


@dataclass(frozen=True, slots=True, init=False)
class Histogram:
    """The distribution of a layer's singular values, as much of it as a chart shows.

    A model may have tens of thousands of layers: the numbers are held as bytes, a third of what tuples of them take.

    Parameters
    ----------
    low, high : float
        Where the bins begin and end, singular-value scale; they are equally wide.
    shares, spikes : iterable of float
        As the attributes.

    Attributes
    ----------
    low, high : float
    shares : tuple of float
        Share of the singular values in each bin.
    spikes : tuple of float
        The largest singular values that are known one by one, descending.
    """

    low: float
    high: float
    _shares: bytes
    _spikes: bytes

    def __init__(self, low: float, high: float, shares: Iterable[float], spikes: Iterable[float]) -> None:
        for name, value in (("low", low), ("high", high)):
            object.__setattr__(self, name, value)
        for name, values in (("_shares", shares), ("_spikes", spikes)):
            object.__setattr__(self, name, array("d", values).tobytes())

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of the singular values in each bin."""
        return tuple(array("d", self._shares))

    @property
    def spikes(self) -> tuple[float, ...]:
        """The largest singular values that are known one by one, descending."""
        return tuple(array("d", self._spikes))

    def to_dict(self) -> dict[str, Any]:
        """Return it as a dictionary of numbers and tuples."""
        return {"low": self.low, "high": self.high, "shares": self.shares, "spikes": self.spikes}

    @classmethod
    def of(cls, spectrum: Drawable) -> Histogram | None:
        """Summarise a spectrum; None where it is all zero."""
        top = float(spectrum.quantile(0.98))
        if not spectrum.of_outputs:
            top = max(spectrum.edge.threshold, spectrum.edge.sigma_plus, top)
        if not 0 < top < math.inf:
            return None
        edges = np.linspace(0.0, 1.1 * top, HISTOGRAM_BINS + 1)
        cdf = np.asarray(spectrum.cdf(edges), dtype=np.float64)
        shares = np.diff(np.concatenate([[0.0], cdf[1:]]))
        known = spectrum.values if spectrum.values is not None else spectrum.outliers
        return cls(0.0, float(edges[-1]), shares.round(7).tolist(), known[:SPIKES_KEPT].tolist())


class Fitted(Protocol):
    """What a picture needs to know of a fit: an `mpfast.EdgeFit` or a row of an analysis."""

    @property
    def variance(self) -> float: ...
    @property
    def sigma_plus(self) -> float: ...
    @property
    def threshold(self) -> float: ...
    @property
    def spikes(self) -> int: ...
    @property
    def bulk_fraction(self) -> float: ...


@dataclass(frozen=True)
class Picture:
    """What is drawn of a spectrum; singular-value scale.

    Attributes
    ----------
    edges : (bins + 1,) array
        Where bars begin and end.
    density : (bins,) array
        Their heights, the share of all singular values per unit.
    law : (array, array) or None
        The fitted law as a curve, its area being the share of the values that are no spikes; None where none is fitted.
    sigma_plus : float or None
        Its upper edge.
    marked : array
        The spikes that are known one by one and lie in the picture, descending.
    spikes : int
        Number of all spikes.
    end : float
        Where the picture ends on the right; on the left it begins at 0.
    beyond : int
        Number of singular values further right.
    """

    edges: Array
    density: Array
    law: tuple[Array, Array] | None
    sigma_plus: float | None
    marked: Array
    spikes: int
    end: float
    beyond: int

    @classmethod
    def of(cls, histogram: Histogram | None, shape: tuple[int, int], fit: Fitted | None) -> Picture | None:
        """Lay out a histogram, where there is one, and the fit to the same spectrum, where there is one."""
        if histogram is None:
            return None
        edges = np.linspace(histogram.low, histogram.high, len(histogram.shares) + 1)
        shares, known = np.asarray(histogram.shares), np.asarray(histogram.spikes, dtype=np.float64)
        outside = max(0, round(min(shape) * (1.0 - float(shares.sum()))))
        furthest = _FURTHEST * histogram.high
        # Values not known one by one are smaller than those that are. Where these all lie too far out, it is not known
        # how many of the others do not, and the picture ends with its bars.
        all_far = len(known) < outside and float(known.min(initial=math.inf)) > furthest
        largest = histogram.high if all_far else float(known.max(initial=0.0))
        end = _MARGIN * max(histogram.high, min(largest, furthest))
        beyond = outside if all_far else int(np.count_nonzero(known > end))
        if fit is None:
            return cls(edges, shares / np.diff(edges), None, None, known[:0], 0, end, beyond)
        marked = known[(known > fit.threshold) & (known <= end)]
        law = _curve(fit, shape) if fit.variance > 0 else None
        return cls(edges, shares / np.diff(edges), law, fit.sigma_plus, marked, fit.spikes, end, beyond)


def _curve(fit: Fitted, shape: tuple[int, int]) -> tuple[Array, Array]:
    law = MarchenkoPastur(fit.variance, shape)
    s = np.linspace(*law.support, _CURVE_POINTS)
    return s, fit.bulk_fraction * law.pdf(s)
