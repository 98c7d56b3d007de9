"""When a layer's spectrum is alarming: by what it was in the last measurements of the same layer."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mpfast.integrations.monitor.log import Measurement
from mpfast.support import InvalidValueError, front_door

__all__ = ["ALARMS", "Alarm", "Thresholds", "alarms_of"]

#: The kinds of alarms.
ALARMS = ("non_finite", "stable_rank", "spikes", "spectral_norm")

# Counts of single spikes double without a reason.
_LEAST_RISE = 8


class Alarm(NamedTuple):
    """What is wrong with a layer: its step, its name, one of `ALARMS`, and a sentence."""

    step: int
    layer: str
    kind: str
    text: str


@dataclass(frozen=True)
class Thresholds:
    """What is compared with the median of the last measurements of a layer.

    Attributes
    ----------
    stable_rank : float
        Alarm where the stable rank falls below this share of the median.
    spikes, spectral_norm : float
        Alarm where the number of spikes (and by 8 at least), the largest singular value, exceed so many times the
        median.
    window : int
        Number of measurements that the median is of; there is no alarm before there are three.
    """

    stable_rank: float = 0.5
    spikes: float = 2.0
    spectral_norm: float = 2.0
    window: int = 5

    @front_door
    def __post_init__(self) -> None:
        if not 0 <= self.stable_rank < 1:
            raise InvalidValueError("stable_rank", f"must lie in [0, 1), not {self.stable_rank!r}")
        for name in ("spikes", "spectral_norm"):
            if not getattr(self, name) > 1:
                raise InvalidValueError(name, f"must be more than 1, not {getattr(self, name)!r}")
        if not self.window >= 3:
            raise InvalidValueError("window", f"must be 3 at least, not {self.window!r}")


def alarms_of(found: Measurement, earlier: Sequence[Measurement], limits: Thresholds) -> list[Alarm]:
    """Return the alarms of one measurement; `earlier` are those of the same layer, the oldest first."""
    window = earlier[-limits.window :]
    if len(window) < 3:
        return []
    usual = {
        name: statistics.median(float(getattr(one, name)) for one in window)
        for name in ("stable_rank", "spikes", "spectral_norm")
    }
    texts = {}
    if found.stable_rank < limits.stable_rank * usual["stable_rank"]:
        texts["stable_rank"] = f"the stable rank fell to {found.stable_rank:.3g} from {usual['stable_rank']:.3g}"
    if found.spikes > max(limits.spikes * usual["spikes"], usual["spikes"] + _LEAST_RISE - 1):
        texts["spikes"] = f"spikes rose to {found.spikes} from {usual['spikes']:g}"
    if found.spectral_norm > limits.spectral_norm * usual["spectral_norm"] > 0:
        norms = f"{found.spectral_norm:.3g} from {usual['spectral_norm']:.3g}"
        texts["spectral_norm"] = f"the largest singular value rose to {norms}"
    return [Alarm(found.step, found.layer, kind, text) for kind, text in texts.items()]
