"""``spectral.jsonl``: a line of what made it, then a line for every measurement and every alarm."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mpfast.models import Provenance, jsonable
from mpfast.support import InputError, InvalidValueError, Record, check_path, front_door, parse_json

__all__ = ["MEASURES", "SCHEMA", "Measurement", "SpectralLog", "append_lines", "header_of", "is_log", "read_log"]

SCHEMA = "mpfast.spectral/1"
#: What is measured of a layer, see `mpfast.Spectrum`.
MEASURES = (
    "stable_rank",
    "spectral_norm",
    "fro_norm",
    "entropy_rank",
    "hill_alpha",
    "sigma_plus",
    "sigma_plus_error",
    "spikes",
)


@dataclass(frozen=True)
class Measurement:
    """One layer at one step; singular-value scale throughout, names as in `mpfast.models.LayerReport`."""

    step: int
    layer: str
    stable_rank: float
    spectral_norm: float
    fro_norm: float
    entropy_rank: float
    hill_alpha: float
    sigma_plus: float
    sigma_plus_error: float
    spikes: int
    seconds: float

    @classmethod
    def from_record(cls, record: Record) -> Measurement:
        """Read what a log holds; ValueError names the field that is wrong."""
        numbers = {name: _number(record, name) for name in (*MEASURES, "seconds") if name != "spikes"}
        return cls(record.integer("step"), record.text("layer"), spikes=record.integer("spikes"), **numbers)


@dataclass(frozen=True)
class SpectralLog:
    """What `read_log` found.

    Attributes
    ----------
    measurements : tuple of Measurement
        In the order of the steps.
    alarms : tuple of dict
        ``step``, ``layer``, ``alarm`` (the kind) and ``text``.
    skipped : dict of str to str
        Layers that were not measured, and why.
    provenance : Provenance
        Of the last run.
    """

    measurements: tuple[Measurement, ...]
    alarms: tuple[Mapping[str, Any], ...]
    skipped: Mapping[str, str]
    provenance: Provenance

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers measured, in the order of their first measurement."""
        return tuple(dict.fromkeys(one.layer for one in self.measurements))

    def of(self, layer: str) -> tuple[Measurement, ...]:
        """Return the measurements of one layer, by step."""
        return tuple(one for one in self.measurements if one.layer == layer)


def header_of(provenance: Provenance, skipped: Mapping[str, str]) -> dict[str, Any]:
    """Return the line that a run begins with."""
    return {"schema": SCHEMA, "provenance": provenance.to_dict(), "skipped": dict(skipped)}


def is_log(path: Path) -> bool:
    """Whether a file is empty, or begins as a log does."""
    with path.open("rb") as file:
        first = file.read(64)
    return not first or first.startswith(b'{"schema": "' + SCHEMA.encode())


def append_lines(path: Path, records: Iterable[Mapping[str, Any] | Measurement]) -> None:
    """Append lines; the rest of one that a killed run began gives way."""
    lines = [
        json.dumps(jsonable(asdict(entry) if isinstance(entry, Measurement) else entry), allow_nan=False)
        for entry in records
    ]
    with path.open("ab+") as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            file.seek(0)
            whole = file.read().rfind(b"\n") + 1
            if whole < size:
                file.truncate(whole)
        file.write("".join(f"{line}\n" for line in lines).encode())


@front_door
def read_log(path: str | os.PathLike[str]) -> SpectralLog:
    """Read the log of a `SpectralMonitor`.

    Where a run was resumed, what came before counts up to the step at which the later run began. The rest of a line
    that a killed run began is left out.

    Parameters
    ----------
    path : path
        The file.

    Returns
    -------
    SpectralLog

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        It is no such log, or a line is wrong: the message names it.
    """
    file = Path(check_path(path, "path"))
    text = file.read_text(encoding="utf-8", errors="replace")
    lines = text.split("\n")[:-1]  # what follows the last line end is no whole line
    measurements: list[Measurement] = []
    alarms: list[Mapping[str, Any]] = []
    header: Record | None = None
    begins = False
    for number, line in enumerate(lines, 1):
        where = f"{file}: line {number}"
        try:
            record = Record(parse_json(line), where)
            if record.has("schema"):
                header, begins = record, True
                if record.get("schema") != SCHEMA:
                    raise record.refuse("schema", SCHEMA)
                continue
            if header is None:
                raise InvalidValueError(where, f"must say that the schema is {SCHEMA}")
            if begins:
                step, begins = record.integer("step"), False
                measurements = [one for one in measurements if one.step < step]
                alarms = [one for one in alarms if one["step"] < step]
            if record.has("alarm"):
                texts = {name: record.text(name) for name in ("layer", "alarm", "text")}
                alarms.append({"step": record.integer("step"), **texts})
            else:
                measurements.append(Measurement.from_record(record))
        except InputError:
            raise
        except ValueError as error:
            raise InvalidValueError(where, f"is no JSON: {error}") from None
    if header is None:
        raise InvalidValueError("path", f"{file} holds no log of the schema {SCHEMA}")
    skipped = header.record("skipped")
    return SpectralLog(
        tuple(measurements),
        tuple(alarms),
        {name: skipped.text(name) for name in skipped},
        Provenance.from_record(header.record("provenance")),
    )


def _number(record: Record, name: str) -> float:
    value = record.get(name)
    if value is None:
        return math.nan
    return float(value) if value in ("inf", "-inf") else record.number(name)
