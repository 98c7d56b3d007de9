"""What a reader of a fit should know: the warnings that go with it."""

from __future__ import annotations

import math

from mpfast.spectra.estimators import SpectrumLike
from mpfast.spectra.noise import FEWEST_VALUES, SETTLED, NoiseProfile, percent_of_edge
from mpfast.spectra.rounding import SMALLEST_OF_BULK

__all__ = ["PERHAPS_FUSED", "fit_warnings"]

#: Said of a matrix whose shape alone is known.
PERHAPS_FUSED = "the shape suggests fused query, key and value matrices: fit the three parts separately"

# Energy of the fitted noise over that of W, from where on the scales stand for single entries.
MORE_THAN_ALL = 1.25
# Kolmogorov distance with scales over the one without, from where on the scales have made the fit worse.
WORSE = 1.5


def fit_warnings(
    source: SpectrumLike,
    sigma: float,
    counts: tuple[int, int],
    estimated: bool,
    ks: float,
    verdict: str,
    trace_ratio: float,
) -> tuple[str, ...]:
    """Say what the fit does not; `counts` are those above the edge and, of these, above the threshold."""
    above, spikes = counts
    m, n = source.shape
    p = min(m, n)
    found = []
    if p < FEWEST_VALUES:
        found.append(f"small: only {p} singular values, the law is asymptotic")
    # A square bulk reaches down to zero, but not below the size of its smallest value, about sigma / (8 p).
    zeros = float(source.measure.cdf(SMALLEST_OF_BULK * sigma / p)) if sigma > 0 else 1.0
    if zeros > 0.01 and zeros * p >= 2:
        found.append(
            f"already sparse or rank deficient: {zeros:.0%} of the singular values are zero, for rows or columns are "
            "zero, repeated or made of others, which biases the fit; drop those first"
        )
    share = above / p
    if above > 20 and share > 0.05:
        counted = "estimated" if estimated else "counted"
        found.append(
            f"a continuum above the edge: {above} singular values above sigma_plus ({share:.0%}, {counted}), "
            f"{spikes} of them above the threshold, which `spikes` counts; these are not separate signals"
        )
    if verdict == "poor":
        found.append(f"the bulk is not Marchenko-Pastur (KS {ks:.2f}): sigma_plus describes it, no more")
    if verdict != "good" and (m == 3 * n or n == 3 * m):
        found.append(PERHAPS_FUSED)
    if math.isfinite(trace_ratio) and not 0.9 <= trace_ratio <= 1.1:
        found.append(
            f"the Frobenius norm implies {trace_ratio:.2f} times the fitted variance: the noise is not homogeneous"
        )
    found += [] if source.noise is None else _noise_warnings(source.noise, p, ks)
    return tuple(found)


def _noise_warnings(noise: NoiseProfile, p: int, ks: float) -> list[str]:
    """Say what the scales of rows and columns leave open."""
    found = []
    if noise.model == "even" and noise.unevenness is not None and noise.unevenness >= SETTLED:
        tells = f"{p} singular values are too few to tell" if p < FEWEST_VALUES else "noise='auto' tells which"
        found.append(
            "the energies of rows or columns differ: uneven noise would move the edge by "
            f"{percent_of_edge(noise.unevenness)}, or strong signals lie in few of them; {tells}"
        )
    if noise.complaint:
        found.append(noise.complaint)
    dead = noise.dead
    if dead:
        found.append(f"{dead} rows or columns are zero, or nearly, and left out")
    if noise.scaled and noise.even_ks is not None and ks > WORSE * noise.even_ks:
        found.append(
            f"the scales make the fit worse (KS {noise.even_ks:.3f} without, {ks:.3f} with them): rows or columns hold "
            "a fixed structure rather than noise"
        )
    if noise.scaled and noise.share > MORE_THAN_ALL:
        found.append(
            f"noise of these scales has {noise.share:.3g} times the energy of W: scales of rows and columns do not "
            "describe single huge entries"
        )
    return found
