"""How much work a spectrum is worth: all singular values, or how many probes.

See ``docs/numerics.md`` for the measurements behind the constants.
"""

from __future__ import annotations

from mpfast.operators import Source
from mpfast.spectra.probe_noise import expected_error, likely_error
from mpfast.spectra.probe_runs import INITIAL_STEPS
from mpfast.spectra.request import Request
from mpfast.spectra.session import MARGIN

__all__ = ["EXACT_UP_TO", "LANCZOS_FROM", "MAX_PROBES", "exact_is_cheaper", "exact_is_possible", "first_probes"]

# Up to here every singular value is computed: it costs less than an estimate of their distribution, or hardly more.
EXACT_UP_TO = 384
# Work up to which every singular value is computed where an estimate would not be sure: an 8192 x 8192 matrix.
EXACT_FLOPS = 5.6e12
# The smallest p a block Krylov space is worth the name for.
LANCZOS_FROM = 64
MAX_PROBES = 512
# Probes times p: keeps the Kolmogorov noise 0.87 sqrt(2 / (p b)) of the measured distribution below 0.016.
PROBE_MASS = 6144
# Share of `tol` that is expected of the first probes.
EXPECTED = 0.6
# Times in units of a multiply-add of an exact reduction, as measured for p of 512 to 896 (within a quarter): of an
# exact Gram matrix; of an estimate a fixed part, one for each probe (Ritz values, quadratures), and a product.
EXACT_GRAM = 1.36
LANCZOS_FIXED, LANCZOS_PROBE, LANCZOS_PRODUCT = 5.4e8, 8.8e7, 1.47


def exact_is_possible(source: Source) -> bool:
    """Whether all singular values take some ten seconds at most."""
    p, q = min(source.shape), max(source.shape)
    return 2.0 * q * p * p + 8.0 * p**3 <= EXACT_FLOPS


def first_probes(shape: tuple[int, int], request: Request) -> int:
    """Probes to start with: for `tol`, which then nearly always holds, and for a usable distribution."""
    tol = request.tol
    counts: list[int] = [4, *range(8, MAX_PROBES, 8)]
    for count in counts:
        meets = expected_error(shape, count) <= EXPECTED * tol and likely_error(shape, count) <= MARGIN * tol
        if meets and count * min(shape) >= PROBE_MASS:
            return count
    return MAX_PROBES


def exact_is_cheaper(source: Source, probes: int) -> bool:
    """Whether all singular values cost less than ``probes`` probes, in time and within a sane amount of memory."""
    p, q = min(source.shape), max(source.shape)
    if p <= EXACT_UP_TO:
        return True
    exact = EXACT_GRAM * 2.0 * q * p * p + 8.0 * p**3
    products = 2.0 * q * p * INITIAL_STEPS * probes
    lanczos = LANCZOS_FIXED + LANCZOS_PROBE * probes + LANCZOS_PRODUCT * products
    return exact < lanczos and 8 * p * p < 2**32
