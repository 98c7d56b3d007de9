"""What made a result, from what: noted in every document that is written."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata
from typing import Any

from mpfast.checkpoints import content_sample_hash, path_of
from mpfast.support import Record

__all__ = ["Provenance", "called", "installed_version", "plain_options", "provenance_of"]


@dataclass(frozen=True)
class Provenance:
    """What made a result.

    Attributes
    ----------
    version : str
        Of mpfast.
    time : str
        When, in UTC: ``2026-11-29T12:00:00Z``; what ``SOURCE_DATE_EPOCH`` says, where that is set.
    options : dict
        What the function was called with, as JSON can hold it.
    source, base : str or None
        The checkpoint and the one it was compared with; the type's name of what is in memory.
    source_hash, base_hash : str or None
        ``"sha256-sample:<hex>"`` of their files, see `mpfast.checkpoints.content_sample_hash`; None of what is in
        memory.
    """

    version: str
    time: str
    options: Mapping[str, Any] = field(hash=False)
    source: str | None = None
    source_hash: str | None = None
    base: str | None = None
    base_hash: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON holds them."""
        return {
            "version": self.version,
            "time": self.time,
            "options": dict(self.options),
            "source": self.source,
            "source_hash": self.source_hash,
            "base": self.base,
            "base_hash": self.base_hash,
        }

    def now(self, **options: Any) -> Provenance:
        """Return the provenance of what is made of this now, with these options beside the others."""
        return replace(
            self, version=installed_version(), time=_now(), options={**self.options, **plain_options(options)}
        )

    @classmethod
    def from_record(cls, record: Record) -> Provenance:
        """Read what `to_dict` gave; ValueError names the field that is wrong."""
        options = record.get("options")
        if not isinstance(options, dict):
            raise record.refuse("options", "an object")
        texts = {name: record.optional_text(name) for name in ("source", "source_hash", "base", "base_hash")}
        return cls(record.text("version"), record.text("time"), options, **texts)


def provenance_of(model: Any, base: Any = None, **options: Any) -> Provenance:
    """Return the provenance of a result about `model`, and `base` where there is one, made now with these options."""
    return Provenance(
        installed_version(),
        _now(),
        plain_options(options),
        _source(model),
        _hash(model),
        None if base is None else _source(base),
        None if base is None else _hash(base),
    )


@functools.cache
def installed_version() -> str:
    """Version of the installed package, looked up once: it takes reading the list of all packages."""
    try:
        return metadata.version("mpfast")
    except metadata.PackageNotFoundError:
        return "unknown (not installed)"


def called(given: Any) -> str | None:
    """What a provenance calls something that was handed in: a file by its path, what is in memory by its type."""
    if given is None:
        return None
    return str(given) if path_of(given) is not None else type(given).__name__


def plain_options(value: Any) -> Any:
    """`value` as JSON can hold it: what is neither text nor number nor a list or mapping of such by its name."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain_options(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain_options(entry) for entry in value]
    return getattr(value, "__name__", type(value).__name__)


def _now() -> str:
    # Who wants the same bytes again sets the time, as for builds (reproducible-builds.org).
    given = os.environ.get("SOURCE_DATE_EPOCH", "")
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(given) if given.isdecimal() else None))


def _source(model: Any) -> str:
    path = path_of(model)
    return str(getattr(model, "source", type(model).__name__)) if path is None else str(path)


def _hash(model: Any) -> str | None:
    path = path_of(model)
    return None if path is None else content_sample_hash(path)
