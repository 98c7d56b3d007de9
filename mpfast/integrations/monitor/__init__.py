"""Spectra of the weights while a model trains: the core of the callbacks, for any loop."""

from mpfast.integrations.monitor.alarms import ALARMS, Alarm, Thresholds
from mpfast.integrations.monitor.log import MEASURES, Measurement, SpectralLog, read_log
from mpfast.integrations.monitor.plot import chosen_layers, plot_log
from mpfast.integrations.monitor.spectral_monitor import SpectralMonitor

__all__ = [
    "ALARMS",
    "MEASURES",
    "Alarm",
    "Measurement",
    "SpectralLog",
    "SpectralMonitor",
    "Thresholds",
    "chosen_layers",
    "plot_log",
    "read_log",
]
