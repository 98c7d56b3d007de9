"""What results of whole models share: they are sequences of rows, and JSON documents."""

from __future__ import annotations

import json
import os
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, overload

from mpfast.checkpoints import check_target
from mpfast.models.provenance import Provenance
from mpfast.support import check_path, front_door, return_or_write

__all__ = ["Rows", "json_text"]

Row = TypeVar("Row")


class Rows(Sequence[Row]):
    """An immutable sequence of the rows of a result; the result is one of its dataclasses."""

    provenance: Provenance | None

    @abstractmethod
    def _rows(self) -> tuple[Row, ...]:
        """Return the field that the rows are."""

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Row, ...]: ...
    def __getitem__(self, index: int | slice) -> Row | tuple[Row, ...]:
        return self._rows()[index]

    def __len__(self) -> int:
        return len(self._rows())

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows())

    @abstractmethod
    def _sources(self) -> tuple[str, ...]:
        """Return what the result was made from, as paths where it was files: they are not written over."""

    def _return_or_write(self, text: str, path: str | os.PathLike[str] | None) -> str | None:
        if path is not None:
            made = self.provenance
            reads = (*self._sources(), *((made.source, made.base) if made is not None else ()))
            check_target(check_path(path, "path"), reads=reads)
        return return_or_write(text, path)

    @abstractmethod
    def to_document(self) -> dict[str, Any]:
        """Return what `to_json` writes, as dictionaries and lists."""

    @overload
    def to_json(self, path: None = None) -> str: ...
    @overload
    def to_json(self, path: str | os.PathLike[str]) -> None: ...
    @front_door
    def to_json(self, path: str | os.PathLike[str] | None = None) -> str | None:
        """Return the result as JSON text, or write it to `path`, whole or not at all.

        NaN becomes ``null`` and an infinity the string ``"inf"`` or ``"-inf"``: JSON has neither.

        Raises
        ------
        OSError
            `path` cannot be written, or is what was read, or holds no text; the file is left as it was.
        """
        return self._return_or_write(json_text(self.to_document()), path)


def json_text(document: dict[str, Any]) -> str:
    """Return a document as JSON text; NaN and infinities are no part of it."""
    return json.dumps(document, indent=1, allow_nan=False) + "\n"
