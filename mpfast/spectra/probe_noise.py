"""How far probe vectors scatter an estimated edge: what is known of it before any of them is seen, and what they show.

See ``docs/numerics.md`` for the measurements behind the constants.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

__all__ = ["expected_error", "jackknife_error", "likely_error"]

# sd(sigma_plus) / sigma_plus = EDGE_NOISE (p / q)^0.75 / sqrt(p b) for b probes of a noise bulk. Trained layers lie up
# to 60 % above, a heavy continuum up to twice as high.
EDGE_NOISE = 0.48
# How many probes' worth that is taken for.
PRIOR_DEGREES = 3.0


def expected_error(shape: tuple[int, int], probes: int) -> float:
    """Relative standard error of the edge of a noise bulk, shape (m, n), with so many probes."""
    p, q = min(shape), max(shape)
    return EDGE_NOISE * math.pow(p / q, 0.75) / math.sqrt(p * probes)


def likely_error(shape: tuple[int, int], probes: int) -> float:
    """Relative error that 95 of 100 runs over a noise bulk report at most, with so many probes."""
    degrees = probes - 1
    # Wilson and Hilferty's quantile of the chi-squared distribution.
    spread = 2 / (9 * degrees)
    ratio = (1 - spread + 1.645 * math.sqrt(spread)) ** 3
    expected = expected_error(shape, probes)
    return _error_of(ratio * expected**2, degrees, expected)


def jackknife_error(replicates: Sequence[float], expected: float = 0.0) -> float:
    """Return one standard error of an estimate, of those without one probe each; 0 where there are none.

    The jackknife of few probes scatters itself. ``expected``, where it is given, is what the error of such estimates
    usually is, on the same scale: it counts as much as three further probes.
    """
    count = len(replicates)
    if count < 2:
        return 0.0
    values = np.asarray(replicates)
    return _error_of((count - 1) / count * float(((values - values.mean()) ** 2).sum()), count - 1, expected)


def _error_of(variance: float, degrees: float, expected: float) -> float:
    """One standard error, of a variance of so many degrees of freedom and what it is expected to be."""
    if expected > 0:
        variance = (degrees * variance + PRIOR_DEGREES * expected**2) / (degrees + PRIOR_DEGREES)
        degrees += PRIOR_DEGREES
    # For intervals of one and of two standard errors to cover what they should, Student's law asks for 1.08 and 1.21
    # times as much with 7 degrees of freedom, 1.02 and 1.04 with 31; this is between.
    return math.sqrt(variance * (degrees + 2) / degrees)
