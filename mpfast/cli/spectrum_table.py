"""What is told of one matrix: figures, and a chart of its density in plain text."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from mpfast.cli.tables import Line, plain
from mpfast.models import LayerReport, distances, signals_range
from mpfast.spectra import Spectrum
from mpfast.support import percent, printable, with_error

__all__ = ["spectrum_lines"]

_SPIKES_SHOWN = 12
_CHART_BINS = 16
_CHART_WIDTH = 48


def spectrum_lines(source: str, row: LayerReport, spectrum: Spectrum) -> list[Line]:
    """Lay out what is known about one matrix: the edge, the spikes, the measures, a chart of the density.

    Parameters
    ----------
    source : str
        Where the matrix came from.
    row : LayerReport
        Its summary.
    spectrum : Spectrum
        For the spikes' values and the density.
    """
    figures = [
        ("matrix", f"{row.shape[0]} x {row.shape[1]} {row.dtype}, Frobenius norm {row.fro_norm:.6g}"),
        ("method", row.method),
        ("edge sigma+", with_error(row.sigma_plus, row.sigma_plus_error)),
        ("threshold", f"{row.threshold:.5g}"),
        ("noise", f"standard deviation {math.sqrt(row.variance):.5g} an entry"),
        ("spikes", _spikes_text(row, spectrum)),
        ("signals", f"{signals_range(row)} whatever the scales of rows and columns"),
        ("unevenness", f"{percent(row.unevenness)} of the edge, if all of it were noise"),
        ("share", f"{percent(row.share)} of the energy is fitted noise"),
        ("KS", f"{distances(row, 4)}"),
        ("verdict", f"{row.verdict}: {row.sentence}"),
        *((key.replace("_", " "), f"{value:.5g}") for key, value in row.metrics.items()),
    ]
    label_width = max(len(label) for label, _ in figures)
    lines = [[(printable(source), "cyan")]]
    for label, text in figures:
        lines.append([(f"  {label.ljust(label_width)}  ", "dim"), (text, "")])
    lines += [[("! ", "yellow"), (printable(warning), "")] for warning in row.warnings]
    return [*lines, plain(), *_chart_lines(row, spectrum)]


def _spikes_text(row: LayerReport, spectrum: Spectrum) -> str:
    known = spectrum.values if spectrum.values is not None else spectrum.outliers
    spikes = [float(value) for value in known if value > row.threshold]
    text = f"{row.spikes} above the threshold, {row.spikes_above_edge} above the edge"
    if spikes:
        shown = " ".join(f"{value:.5g}" for value in spikes[:_SPIKES_SHOWN])
        text += f": {shown}" + (" ..." if len(spikes) > _SPIKES_SHOWN else "")
    return text


def _chart_lines(row: LayerReport, spectrum: Spectrum) -> list[Line]:
    """Draw the share of singular values in equal bins up to just past the threshold, and the fitted law."""
    if not (row.sigma_plus > 0 and math.isfinite(row.threshold)):
        return []
    law = spectrum.edge.law
    low = 0.9 * float(law.support[0])
    bins = np.linspace(low, max(row.threshold, row.sigma_plus) * 1.05, _CHART_BINS + 1)
    found = _shares(spectrum, bins)
    expected = _shares(law, bins) * row.bulk_fraction
    scale = _CHART_WIDTH / max(float(found.max()), float(expected.max()), 1e-12)
    lines = [plain("  singular values      share   # found   | Marchenko-Pastur")]
    for left, right, share, law_share in zip(bins[:-1], bins[1:], found, expected, strict=True):
        bar = list(("#" * round(share * scale)).ljust(_CHART_WIDTH + 1))
        bar[round(law_share * scale)] = "|"
        lines.append(plain(f"{left:9.4g} to {right:<9.4g} {100 * share:5.1f}%  {''.join(bar).rstrip()}"))
    beyond = 1 - float(np.asarray(spectrum.cdf(bins[-1:]))[0])
    if beyond * min(row.shape) >= 0.5:
        lines.append(plain(f"   beyond {bins[-1]:<9.4g}   {100 * beyond:5.1f}%"))
    return lines


def _shares(measure: Any, bins: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Mass of a measure (anything with a `cdf`) in each bin."""
    return np.clip(np.diff(np.asarray(measure.cdf(bins), dtype=np.float64)), 0.0, 1.0)
