"""Exceptions and warnings of the package."""

from __future__ import annotations

__all__ = ["CheckpointError", "ConvergenceWarning"]


class CheckpointError(ValueError):
    """A checkpoint is malformed or truncated.

    Attributes
    ----------
    tensor
        Name of the tensor concerned, or None.
    offset
        Byte offset in the file where the trouble is, or None.
    """

    def __init__(self, message: str, *, tensor: str | None = None, offset: int | None = None) -> None:
        super().__init__(message)
        self.tensor = tensor
        self.offset = offset


class ConvergenceWarning(UserWarning):
    """A tolerance was not met within the budget; the message says what was reached."""
