"""The distribution of a layer's singular values, as much of it as a chart shows."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from mpfast.spectra import Spectrum

__all__ = ["Histogram"]

HISTOGRAM_BINS = 48
SPIKES_KEPT = 32


@dataclass(frozen=True, slots=True)
class Histogram:
    """The distribution of a layer's singular values.

    A model may have tens of thousands of layers: the numbers are held as bytes, a third of what tuples of them take.

    Attributes
    ----------
    low, high : float
        Where the bins begin and end, singular-value scale; they are equally wide.
    shares : tuple of float
        Share of the singular values in each bin.
    spikes : tuple of float
        The largest singular values that are known one by one, descending.
    """

    low: float
    high: float
    _shares: bytes
    _spikes: bytes

    @classmethod
    def from_numbers(cls, low: float, high: float, shares: Iterable[float], spikes: Iterable[float]) -> Histogram:
        """Make one of its attributes."""
        return cls(low, high, array("d", shares).tobytes(), array("d", spikes).tobytes())

    @classmethod
    def of(cls, spectrum: Spectrum) -> Histogram | None:
        """Summarise a spectrum; None where it is all zero."""
        top = max(spectrum.edge.threshold, spectrum.edge.sigma_plus, float(spectrum.quantile(0.98)))
        if not 0 < top < math.inf:
            return None
        edges = np.linspace(0.0, 1.1 * top, HISTOGRAM_BINS + 1)
        cdf = np.asarray(spectrum.cdf(edges), dtype=np.float64)
        shares = np.diff(np.concatenate([[0.0], cdf[1:]]))
        known = spectrum.values if spectrum.values is not None else spectrum.outliers
        return cls.from_numbers(0.0, float(edges[-1]), shares.round(7).tolist(), known[:SPIKES_KEPT].tolist())

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
