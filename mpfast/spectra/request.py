"""What the caller of `mpfast.spectrum` asked for, checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpfast.support import InvalidValueError, check_seed, check_tolerance, float_array, positive_integer, thread_count

__all__ = ["NoiseModel", "Request", "SpectrumMethod", "checked_scales"]

#: How a spectrum is computed.
SpectrumMethod = Literal["auto", "exact", "lanczos"]
#: What the noise is taken for; or the scales of rows and columns themselves.
NoiseModel = Literal["even", "uneven", "auto"]


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
    noise: NoiseModel | Sequence[ArrayLike] = "even"

    def __post_init__(self) -> None:
        words = get_args(SpectrumMethod)
        if self.method not in words:
            listed = f"{', '.join(map(repr, words[:-1]))} or {words[-1]!r}"
            raise InvalidValueError("method", f"must be {listed}, not {self.method!r}")
        check_noise(self.noise)
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


def check_noise(noise: object) -> None:
    """Raise ValueError unless this is a model of the noise, or a pair of scales as far as can be told without W."""
    words = get_args(NoiseModel)
    if isinstance(noise, str) and noise in words:
        return
    if isinstance(noise, str) or not isinstance(noise, tuple | list) or len(noise) != 2:
        listed = ", ".join(map(repr, words))
        raise InvalidValueError("noise", f"must be {listed} or a pair (row_scale, col_scale), not {noise!r:.60}")


def checked_scales(noise: Sequence[ArrayLike], shape: tuple[int, int]) -> list[NDArray[np.float64]]:
    """Return given scales of rows and columns as arrays of geometric mean 1; infinite for what is to be left out.

    Raises
    ------
    ValueError
        They are not m and n positive numbers, none is finite, or a variance is no float64.
    """
    scales = []
    for scale, name, count in zip(noise, ("row_scale", "col_scale"), shape, strict=True):
        values = float_array(scale, "noise")
        if values.shape != (count,):
            raise InvalidValueError(
                "noise", f"has a {name} of shape {values.shape}, but W has shape {shape}", f"give {count} numbers"
            )
        live = np.isfinite(values)
        if not (values > 0).all() or not live.any():
            raise InvalidValueError("noise", f"needs a {name} of positive numbers, infinite for what is left out")
        values /= np.exp(np.log(values[live]).mean())
        with np.errstate(over="ignore"):
            variances = values[live] ** 2
        if not (np.isfinite(variances) & (variances > 0)).all():
            raise InvalidValueError(
                "noise", f"has a {name} from {values.min():.3g} to {values[live].max():.3g}: a square is no float64"
            )
        scales.append(values)
    return scales
