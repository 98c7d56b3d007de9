"""How much work a spectrum is worth: all singular values, or how many probes.

See ``docs/numerics.md`` for the measurements behind the constants.
"""

from __future__ import annotations

import math

from mpfast.operators import Source
from mpfast.spectra.request import Request
from mpfast.spectra.session import INITIAL_STEPS, MAX_WIDTH

__all__ = ["EXACT_UP_TO", "LANCZOS_FROM", "MAX_PROBES", "exact_is_cheaper", "exact_is_possible", "first_probes"]

# Up to here every singular value costs no more than an estimate of their distribution.
EXACT_UP_TO = 1024
# Work up to which every singular value is computed where an estimate would not be sure: an 8192 x 8192 matrix.
EXACT_FLOPS = 5.6e12
# The smallest p a block Krylov space is worth the name for.
LANCZOS_FROM = 64
MAX_PROBES = 512
# Probes times p: keeps the Kolmogorov noise 0.87 sqrt(2 / (p b)) of the measured distribution below 0.007.
PROBE_MASS = 32768
# sd(sigma_plus) / sigma_plus = EDGE_NOISE / sqrt(p b) for a noise bulk; trained layers lie up to 60 % above.
EDGE_NOISE = 0.4


def exact_is_possible(source: Source) -> bool:
    """Whether all singular values take some ten seconds at most."""
    p, q = min(source.shape), max(source.shape)
    return 2.0 * q * p * p + 8.0 * p**3 <= EXACT_FLOPS


def first_probes(p: int, request: Request) -> int:
    """Probes to start with: for `tol` with some reserve, and for a usable distribution."""
    for_tol = (EDGE_NOISE / (0.75 * request.tol)) ** 2 / p
    wanted = max(for_tol, PROBE_MASS / p, 4.0)
    return min(4 * math.ceil(wanted / 4), MAX_PROBES)


def exact_is_cheaper(source: Source, probes: int) -> bool:
    """Whether all singular values cost less than ``probes`` probes, in time and within a sane amount of memory."""
    p, q = min(source.shape), max(source.shape)
    if p <= EXACT_UP_TO:
        return True
    # Multiply-adds: fp64 Gram and reduction, the latter about twice as slow; fp32 products on both sides.
    exact = 2.0 * q * p * p + 8.0 * p**3
    lanczos = 4.0 * q * p * INITIAL_STEPS * probes / 2 + 4.0 * p * (INITIAL_STEPS * min(probes, MAX_WIDTH)) ** 2
    return exact < lanczos and 8 * p * p < 2**32
