"""What the charts of a page draw beside the histogram of a layer."""

from __future__ import annotations

from typing import Any

from mpfast.models.html_report.numbers import shortened
from mpfast.models.layer_report import LayerReport

__all__ = ["picture_of", "whole_picture_of"]

# Heights of the law are told as shares of its peak, of a thousand: less than what a chart can show.
_STEPS = 1000


def picture_of(layer: LayerReport) -> dict[str, Any] | None:
    """Return where the picture of a layer ends, how many values lie beyond, and the law; None without a histogram."""
    picture = layer.picture
    if picture is None:
        return None
    told: dict[str, Any] = {"end": shortened(picture.end, 6), "beyond": picture.beyond, "law": None}
    if picture.law is not None:
        s, density = picture.law
        peak = float(density.max())
        heights = (_STEPS * density / peak).round().astype(int).tolist() if peak > 0 else [0] * len(density)
        told["law"] = {**shortened({"low": float(s[0]), "high": float(s[-1]), "peak": peak}, 6), "heights": heights}
    return told


def whole_picture_of(layer: LayerReport) -> dict[str, Any] | None:
    """Return the same with the histogram, and with what the fit says of it."""
    told = picture_of(layer)
    if told is None or layer.histogram is None:
        return None
    shown = {
        **layer.histogram.to_dict(),
        "spikes": [value for value in layer.histogram.spikes if value > layer.threshold],
        "edge": layer.sigma_plus,
        "threshold": layer.threshold,
    }
    return told | dict(shortened(shown, 6))
