"""What the caller of `mpfast.spectrum` asked for, checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from mpfast.support import InvalidValueError, check_seed, check_tolerance, positive_integer, thread_count

__all__ = ["Request", "SpectrumMethod"]

#: How a spectrum is computed.
SpectrumMethod = Literal["auto", "exact", "lanczos"]


@dataclass(frozen=True)
class Request:
    """What the caller of `mpfast.spectrum` asked for; see there."""

    method: SpectrumMethod = "auto"
    tol: float = 5e-3
    probes: int | None = None
    steps: int | None = None
    seed: int = 0
    threads: int | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        words = get_args(SpectrumMethod)
        if self.method not in words:
            listed = f"{', '.join(map(repr, words[:-1]))} or {words[-1]!r}"
            raise InvalidValueError("method", f"must be {listed}, not {self.method!r}")
        check_tolerance(self.tol)
        for name in ("probes", "steps", "threads"):
            value = getattr(self, name)
            if value is not None:
                positive_integer(value, name)
        check_seed(self.seed)

    @property
    def thread_count(self) -> int:
        """Threads for the core; 0 means its default."""
        return thread_count(self.threads)

    @property
    def fixed(self) -> bool:
        """Whether the amount of work is given rather than the accuracy."""
        return self.probes is not None or self.steps is not None
