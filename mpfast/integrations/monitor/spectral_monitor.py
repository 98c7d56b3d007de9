"""The monitor: when it measures, which layers, and what becomes of the numbers."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from mpfast.checkpoints import Layer, NameFilter
from mpfast.integrations.monitor.alarms import ALARMS, Alarm, Thresholds, alarms_of
from mpfast.integrations.monitor.live_layers import LiveLayers
from mpfast.integrations.monitor.log import MEASURES, Measurement, append_lines, header_of, is_log
from mpfast.integrations.monitor.processes import Verdict, heard, process_rank, tell
from mpfast.models import provenance_of
from mpfast.spectra import spectrum
from mpfast.support import (
    InputError,
    InvalidTypeError,
    InvalidValueError,
    check_path,
    check_seed,
    check_tolerance,
    front_door,
    logger,
    positive_integer,
    team_size,
    warn_caller,
)

__all__ = ["SpectralMonitor"]


class SpectralMonitor:
    """Spectra of the weights of a model that trains, measured every so many steps within a budget of time.

    A call measures layer after layer until its seconds are used up, and the next goes on from there, so that all have
    their turn; one layer at least is measured by each call, and none is begun that took longer the last time than what
    is left. Layers that do not train are left out. Numbers are those of even noise, see `mpfast.spectrum`, with the
    same seed every time, so that differences between two steps are clearer than the error bar of either.

    Where several processes train, every rank must call; rank 0 measures, writes, warns and alone knows `alarms` and
    `latest`. Parameters that ranks hold shares of are gathered one by one under FSDP2 (``fully_shard``); under FSDP1
    and DeepSpeed ZeRO-3, and where only some of the ranks share one, they are left out, and `skipped` says so. Layers
    have the names that they have without ``DistributedDataParallel`` or ``torch.compile``.

    Parameters
    ----------
    every : int
        Steps between two measurements.
    seconds : float or None
        Time for one measurement; None: all layers, whatever it takes.
    include, exclude : str, iterable of str or callable, optional
        Which tensors, as `mpfast.analyze`.
    to : path, callable or None
        A file to append to, in the form of `read_log`; or what is called with a dictionary for every line; or neither.
    scalars : iterable of str
        Which of `MEASURES` go to the logs of the trainer, as ``spectral/<layer>/<measure>``; the file has all.
    thresholds : Thresholds, optional
        What is alarming.
    stop_on : iterable of str
        Kinds of alarms, of `ALARMS`, that make `should_stop` true; by default NaN and infinities, from which no
        training comes back.
    tol, seed, threads, device
        As `mpfast.spectrum`; device ``"cpu"`` measures on the host what is on a GPU.

    Attributes
    ----------
    alarms : list of Alarm
        All there were.
    latest : dict of str to Measurement
        The last of every layer.
    skipped : dict of str to str
        Tensors of two axes or more that are not measured, and why.
    should_stop : bool
        Whether there was an alarm to stop on; the same on all ranks.

    Raises
    ------
    ValueError
        An option that cannot be, or `to` is another file.

    Examples
    --------
    >>> import numpy as np
    >>> monitor = SpectralMonitor(every=2, to=None)
    >>> weights = {"fc.weight": np.random.default_rng(0).standard_normal((32, 48))}
    >>> [bool(monitor.update(weights, step)) for step in (1, 2, 3, 4)]
    [False, True, False, True]
    >>> monitor.latest["fc.weight"].spikes
    0
    """

    @front_door
    def __init__(
        self,
        every: int = 500,
        *,
        seconds: float | None = 0.5,
        include: NameFilter = None,
        exclude: NameFilter = None,
        to: str | os.PathLike[str] | Callable[[Mapping[str, Any]], object] | None = "spectral.jsonl",
        scalars: Iterable[str] = ("stable_rank", "spectral_norm", "sigma_plus", "spikes"),
        thresholds: Thresholds | None = None,
        stop_on: Iterable[str] = ("non_finite",),
        tol: float = 5e-3,
        seed: int = 0,
        threads: int | None = None,
        device: str | None = None,
    ) -> None:
        self.every = positive_integer(every, "every")
        if seconds is not None and not 0 <= seconds < math.inf:
            raise InvalidValueError("seconds", f"must be a number from 0, or None, not {seconds!r}")
        self._seconds = math.inf if seconds is None else float(seconds)
        self._filters = (include, exclude)
        self._to: Path | Callable[[Mapping[str, Any]], object] | None = _target(to)
        self._scalars = _words(scalars, "scalars", MEASURES)
        self._stop_on = _words(stop_on, "stop_on", ALARMS)
        if thresholds is not None and not isinstance(thresholds, Thresholds):
            raise InvalidTypeError("thresholds", f"must be Thresholds, not {type(thresholds).__name__}")
        self._thresholds = thresholds or Thresholds()
        self._options: dict[str, Any] = {
            "tol": check_tolerance(tol),
            "seed": check_seed(seed),
            "threads": team_size(threads),
            "device": device,
        }
        self.alarms: list[Alarm] = []
        self.latest: dict[str, Measurement] = {}
        self.skipped: dict[str, str] = {}
        self.should_stop = False
        self._history: dict[str, deque[Measurement]] = {}
        self._took: dict[str, float] = {}
        self._next = ""
        self._steps = 0
        self._begun = False

    @front_door
    def update(self, model: Any, step: int | None = None) -> dict[str, float]:
        """Measure if it is time; call it after every step, on every rank.

        Parameters
        ----------
        model : module or mapping of arrays
            As `mpfast.analyze`, in memory.
        step : int, optional
            Number of the step, from 1; default one more than at the last call.

        Returns
        -------
        dict of str to float
            ``spectral/<layer>/<measure>`` for the layers measured, ``spectral/layers`` and ``spectral/seconds``;
            empty where it was not time, and on other ranks than 0.

        Raises
        ------
        RuntimeError
            On the other ranks, where rank 0 has raised something: all end, and none waits.
        """
        self._steps = self._steps + 1 if step is None else step
        return {} if self._steps % self.every else self.measure(model, self._steps)

    @front_door
    def measure(self, model: Any, step: int) -> dict[str, float]:
        """Measure now, whatever the clock says; as `update`."""
        if process_rank():
            self._follow(model)
            return {}
        try:
            found = self._lead(model, step)
        except Exception as error:  # the others wait
            tell(Verdict(self.should_stop, f"{type(error).__name__}: {error}"))
            raise
        tell(Verdict(self.should_stop, ""))
        return found

    def _lead(self, model: Any, step: int) -> dict[str, float]:
        """Measure what there is time for, tell the others what to gather, and write."""
        started = time.perf_counter()
        live = LiveLayers(model, *self._filters)
        self.skipped = live.skipped
        lines: list[Measurement | dict[str, Any]] = []
        measured: list[Measurement] = []
        for count, layer in enumerate(self._in_turn(live.layers)):
            left = self._seconds - (time.perf_counter() - started)
            if count and self._took.get(layer.name, 0.0) >= left:
                self._next = layer.name
                break
            if layer.name in live.gathered:
                tell(layer.name)
            found = self._measured(layer, live.matrix(layer), step)
            measured += [found] if isinstance(found, Measurement) else []
            lines += self._noted(found, step)
        else:
            self._next = ""
        self._write(model, lines)
        seconds = time.perf_counter() - started
        logger.info("spectral monitor: step %d: %d layers in %.2f s", step, len(measured), seconds)
        return self._as_scalars(measured, seconds)

    def _follow(self, model: Any) -> None:
        """Hand over shares of the layers that rank 0 names, until it has measured."""
        live = LiveLayers(model, *self._filters)
        self.skipped = live.skipped
        layers = {layer.name: layer for layer in live.layers}
        while isinstance(said := heard(), str):
            live.matrix(layers[said])
        self.should_stop = said.should_stop
        if said.failure:
            raise RuntimeError(f"the spectral monitor failed on rank 0: {said.failure}")

    def _in_turn(self, layers: list[Layer]) -> list[Layer]:
        at = next((at for at, layer in enumerate(layers) if layer.name == self._next), 0)
        return layers[at:] + layers[:at]

    def _measured(self, layer: Layer, matrix: Any, step: int) -> Measurement | Alarm:
        started = time.perf_counter()
        try:
            found = spectrum(matrix, **self._options)
        except InputError as error:
            if "non-finite" not in error.reason:
                raise
            return Alarm(step, layer.name, "non_finite", error.reason)
        finally:
            self._took[layer.name] = time.perf_counter() - started
        edge, metrics = found.edge, found.metrics()
        return Measurement(
            step=step,
            layer=layer.name,
            stable_rank=float(metrics["stable_rank"]),
            spectral_norm=float(metrics["spectral_norm"]),
            fro_norm=float(found.fro_norm),
            entropy_rank=float(metrics["entropy_rank"]),
            hill_alpha=float(metrics["hill_alpha"]),
            sigma_plus=float(edge.sigma_plus),
            sigma_plus_error=float(edge.sigma_plus_error),
            spikes=int(edge.spikes),
            seconds=self._took[layer.name],
        )

    def _noted(self, found: Measurement | Alarm, step: int) -> list[Measurement | dict[str, Any]]:
        """Keep what was found, and return the lines of it."""
        lines: list[Measurement | dict[str, Any]] = []
        raised = [found] if isinstance(found, Alarm) else []
        if isinstance(found, Measurement):
            earlier = self._history.setdefault(found.layer, deque(maxlen=self._thresholds.window))
            raised = alarms_of(found, tuple(earlier), self._thresholds)
            earlier.append(found)
            self.latest[found.layer] = found
            lines.append(found)
        for alarm in raised:
            self.alarms.append(alarm)
            self.should_stop = self.should_stop or alarm.kind in self._stop_on
            warn_caller("", f"step {step}: {alarm.layer}: {alarm.text}")
            lines.append({"step": step, "layer": alarm.layer, "alarm": alarm.kind, "text": alarm.text})
        return lines

    def _write(self, model: Any, lines: list[Measurement | dict[str, Any]]) -> None:
        if self._to is None or not lines:
            return
        entries: list[Measurement | dict[str, Any]] = list(lines)
        if not self._begun:
            options = {**self._options, "every": self.every, "seconds": self._seconds, "include": self._filters[0]}
            made = provenance_of(model, **options, exclude=self._filters[1])
            entries.insert(0, header_of(made, self.skipped))
        if isinstance(self._to, Path):
            append_lines(self._to, entries)
        else:
            for entry in entries:
                self._to(vars(entry) if isinstance(entry, Measurement) else entry)
        self._begun = True

    def _as_scalars(self, measured: list[Measurement], seconds: float) -> dict[str, float]:
        found = {
            f"spectral/{one.layer}/{name}": float(getattr(one, name)) for one in measured for name in self._scalars
        }
        return {**found, "spectral/layers": float(len(measured)), "spectral/seconds": seconds}


def _target(to: Any) -> Path | Callable[[Mapping[str, Any]], object] | None:
    if to is None or (callable(to) and not isinstance(to, os.PathLike)):
        return to
    path = Path(check_path(to, "to"))
    if not path.parent.is_dir():
        raise InvalidValueError("to", f"{path.parent} is no directory")
    if path.exists() and not (path.is_file() and is_log(path)):
        raise InvalidValueError("to", f"{path} is there and is no log of a SpectralMonitor", "name another file")
    return path


def _words(given: Iterable[str], argument: str, known: tuple[str, ...]) -> tuple[str, ...]:
    words = (given,) if isinstance(given, str) else tuple(given)
    for word in words:
        if word not in known:
            raise InvalidValueError(argument, f"must be of {', '.join(known)}, not {word!r}")
    return words
