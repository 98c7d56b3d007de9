"""Exceptions and warnings that are mpfast's own."""

from __future__ import annotations

__all__ = ["CheckpointError", "ConvergenceWarning"]


class CheckpointError(ValueError):
    """A checkpoint file is malformed, truncated or of a kind that is not read.

    Attributes
    ----------
    tensor : str or None
        Name of the tensor at fault, where there is one.
    offset : int or None
        Byte offset in the file where the trouble is, where there is one.
    """

    def __init__(self, message: str, *, tensor: str | None = None, offset: int | None = None) -> None:
        super().__init__(message)
        self.tensor = tensor
        self.offset = offset


class ConvergenceWarning(UserWarning):
    """The wanted tolerance was not met within the budget of work."""
