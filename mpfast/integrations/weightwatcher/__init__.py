"""WeightWatcher's table, its calls and its pictures, made with mpfast; WeightWatcher itself is not needed."""

from mpfast.integrations.weightwatcher.layers import WatchedLayer
from mpfast.integrations.weightwatcher.plot import plot_esd
from mpfast.integrations.weightwatcher.table import DIFFERENCES, describe, details, esd, summary

__all__ = ["DIFFERENCES", "WatchedLayer", "describe", "details", "esd", "plot_esd", "summary"]
