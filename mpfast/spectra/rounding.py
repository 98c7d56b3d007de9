"""What of a spectrum is arithmetic: values that may be rounding alone, and squares that are no float64."""

from __future__ import annotations

import math

from mpfast.spectra.estimators import DEFAULT_ALPHA, GOOD_KS, SpectrumLike, bema, kolmogorov
from mpfast.spectra.marchenko_pastur import MarchenkoPastur, sigma_plus
from mpfast.support import InvalidValueError

__all__ = [
    "GRAM_RESOLUTION",
    "SMALLEST_OF_BULK",
    "SQUARES_RESOLUTION",
    "check_range",
    "has_variance",
    "rounding_level",
    "size_of_entries",
]

#: Part of `sigma_plus / p` that no value of a square bulk lies below: the smallest is about an eighth.
SMALLEST_OF_BULK = 1 / 64
# Relative distance of one number of a type to the next.
SPACING = {"float64": 2.0**-52, "float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}
# The rounding of entries of one size is noise with an edge of .14 to .29 spacings times that of the entries; BEMA finds
# less where rows differ.
ROUNDING_OF_ENTRIES = (1 / 12, 1 / 3)
#: Share of the largest singular value below which a computed one may be rounding, from the eigenvalues of a Gram
#: operator.
GRAM_RESOLUTION = 2.0**-22
#: The same for all eigenvalues of W^T W at once: zeros come out at up to 2.4 times 2^-26 s_1 (1000 x 20000).
SQUARES_RESOLUTION = 2.0**-24


def has_variance(source: SpectrumLike) -> bool:
    """Whether the variance, a square, and the sum of all squares are float64s."""
    size = size_of_entries(source)
    return size == 0 or (size > 1e-152 and source.fro_norm < 1e153)


def size_of_entries(source: SpectrumLike) -> float:
    """Root of the mean square of the entries."""
    rows, cols = source.shape
    return source.fro_norm / math.sqrt(rows * cols)


def check_range(source: SpectrumLike) -> None:
    """Raise ValueError where the variance would leave the range of float64."""
    if not has_variance(source):
        size = size_of_entries(source)
        raise InvalidValueError(
            "",
            f"the entries of W are about {size:.1g}, and a variance or the sum of all squares is no float64",
            "scale W",
        )


def rounding_level(source: SpectrumLike) -> float:
    """What a singular value may be for the rounding of the entries, or of the computation, alone.

    Smaller ones count for nothing: not for a rank, nor as a spectrum to fit. 0 for the zero matrix.
    """
    rows, cols = source.shape
    computed = source.resolution * float(source.ritz.max(initial=0.0))
    # The edge of noise of that variance; rounding's is some three times less, but differs from entry to entry.
    stored = SPACING.get(source.dtype, 0.0) * source.fro_norm * sigma_plus(1 / (rows * cols), source.shape)
    variance = bema(source, source.measure, DEFAULT_ALPHA)
    sigma = sigma_plus(variance, source.shape)
    if 0 < sigma < max(stored, computed):
        low, high = ROUNDING_OF_ENTRIES
        # A bulk that follows the law is what it is, however small; but so may the rounding of the entries.
        follows = kolmogorov(source, variance, DEFAULT_ALPHA) <= GOOD_KS
        if follows and not low * stored < sigma < high * stored:
            return min(computed, SMALLEST_OF_BULK * sigma / min(rows, cols))
    elif stored > computed and not _is_more_than_bulk(source, variance, stored):
        return computed
    return max(stored, computed)


def _is_more_than_bulk(source: SpectrumLike, variance: float, level: float) -> bool:
    """Whether no value of a bulk should lie below ``level``, or many more do than the law has there."""
    if variance <= 0:
        return True
    p = min(source.shape)
    share = float(MarchenkoPastur(variance, source.shape).cdf(level))
    below = float(source.measure.weights[source.measure.nodes <= level].sum())
    return p * share < 0.5 or below > share + GOOD_KS
