"""The Marchenko-Pastur and Tracy-Widom laws against quadrature, published values and simulation."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, optimize, special

from mpfast import MarchenkoPastur, TracyWidom
from mpfast.spectra import MarchenkoPasturEigenvalues, fit_values, largest_value_pvalue, tracy_widom_threshold

SHAPES = [(100, 100), (50, 100), (300, 100), (10, 999), (1, 5), (3, 100_000)]


@pytest.mark.parametrize("shape", SHAPES)
def test_density_integrates_to_the_distribution_function(shape):
    law = MarchenkoPastur(0.7, shape)
    low, high = law.support
    for share in (0.05, 0.3, 0.5, 0.8, 0.99):
        s = low + share * (high - low)
        # With s = centre - radius cos(t) the square roots at both edges disappear.
        top = math.acos(1 - 2 * share)
        mass, _ = integrate.quad(
            lambda t: float(law.pdf(low + (high - low) * (1 - math.cos(t)) / 2)) * (high - low) * math.sin(t) / 2,
            0,
            top,
            epsabs=1e-12,
        )
        assert law.cdf(s) == pytest.approx(mass, abs=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
def test_moments_of_the_eigenvalue_law(shape):
    """Mean v and variance g v^2, from 20000 mid-point quantiles."""
    law = MarchenkoPastur(2.5, shape).eigenvalues()
    x = law.ppf((np.arange(20000) + 0.5) / 20000)
    assert x.mean() == pytest.approx(2.5, rel=1e-4)
    assert x.var() == pytest.approx(min(shape) / max(shape) * 2.5**2, rel=1e-3)


@given(g=st.floats(1e-6, 1), u=st.floats(0, 1))
def test_quantiles_invert_the_distribution_function(g, u):
    q = 1_000_000
    law = MarchenkoPastur(1.0, (max(1, round(g * q)), q))
    s = float(law.ppf(u))
    slack = 1e-12 * law.support[1]
    assert law.support[0] - slack <= s <= law.support[1] + slack
    assert float(law.cdf(s)) == pytest.approx(u, abs=1e-9)


@given(p=st.integers(1, 10**7), q=st.integers(1, 10**7), v=st.floats(1e-12, 1e12))
def test_the_law_is_symmetric_in_the_shape_and_scales_with_the_root_of_the_variance(p, q, v):
    law, turned, unit = MarchenkoPastur(v, (p, q)), MarchenkoPastur(v, (q, p)), MarchenkoPastur(1.0, (p, q))
    assert law.sigma_plus == pytest.approx(turned.sigma_plus, rel=1e-15)
    np.testing.assert_array_equal(law.ppf([0.1, 0.9]), turned.ppf([0.1, 0.9]))
    np.testing.assert_allclose(law.ppf([0.1, 0.9]), math.sqrt(v) * unit.ppf([0.1, 0.9]), rtol=1e-12)


def test_limits_of_the_ratio():
    u = np.linspace(0.01, 0.99, 50)
    square = MarchenkoPastur(1.0, (1000, 1000))
    angle = 2 * np.arcsin(np.sqrt(square.eigenvalues().ppf(u)) / 2)
    np.testing.assert_allclose((angle + np.sin(angle)) / np.pi, u, atol=1e-12)  # quarter circle
    narrow = MarchenkoPastur(1.0, (1, 10**10)).eigenvalues()  # semicircle of radius 2 sqrt(g)
    phi = np.arccos(np.clip(-(narrow.ppf(u) - 1) / 2e-5, -1, 1))
    np.testing.assert_allclose((phi - np.sin(2 * phi) / 2) / np.pi, u, atol=1e-4)


def test_nothing_outside_the_support():
    law = MarchenkoPastur(1.0, (25, 100))
    np.testing.assert_array_equal(law.cdf([-1, 0, 4.9, 5, 15, 15.1, np.inf]), [0, 0, 0, 0, 1, 1, 1])
    np.testing.assert_array_equal(law.pdf([-1, 0, 4.9, 15.1]), 0)
    eigen = law.eigenvalues()
    np.testing.assert_array_equal(eigen.cdf([-1, 0.2, 2.3]), [0, 0, 1])
    np.testing.assert_array_equal(eigen.pdf([-1, 0, 0.2, 2.3]), 0)


def test_density_at_the_hard_edge_of_square_matrices():
    law = MarchenkoPastur(1.0, (100, 100))
    assert law.pdf(0.0) == pytest.approx(float(law.pdf(1e-9)), rel=1e-6)


def test_rvs_follow_the_law():
    law = MarchenkoPastur(3.0, (200, 500))
    draws = np.sort(law.rvs(20000, seed=1))
    distance = np.abs(law.cdf(draws) - (np.arange(20000) + 0.5) / 20000).max()
    assert distance < 1.63 / math.sqrt(20000)  # Kolmogorov, 1 %
    assert law.rvs((3, 4), seed=1).shape == (3, 4)
    np.testing.assert_array_equal(law.rvs(5, seed=7), law.rvs(5, seed=7))


@pytest.mark.parametrize(
    ("variance", "shape"), [(0.0, (2, 2)), (-1, (2, 2)), (math.nan, (2, 2)), (1, (0, 2)), (1, (1, 2, 3))]
)
def test_impossible_parameters(variance, shape):
    with pytest.raises(ValueError, match=r"variance|shape"):
        MarchenkoPastur(variance, shape)


@pytest.mark.parametrize("u", [-0.1, 1.1, [0.5, 2]])
def test_probabilities_outside_0_1(u):
    with pytest.raises(ValueError, match=r"MarchenkoPastur(Eigenvalues)?\.ppf\(\): u must lie in"):
        MarchenkoPastur(1.0, (2, 3)).ppf(u)
    with pytest.raises(ValueError, match=r"TracyWidom\.ppf\(\): u must lie strictly between 0 and 1"):
        TracyWidom().ppf(u)


def fredholm_cdf(s: float) -> float:
    """det(1 - Ai(x + y + s)) on (0, 16) by Gauss-Legendre quadrature (Ferrari and Spohn 2005; Bornemann 2010)."""
    t, w = np.polynomial.legendre.leggauss(80)
    x, w = 8 * (t + 1), 8 * w
    # The kernel lives on (0, inf); beyond 16 it has underflowed for s > -9.
    kernel = 0.5 * special.airy((x[:, None] + x[None, :]) / 2 + s)[0]
    root = np.sqrt(w)
    return float(np.linalg.det(np.eye(80) - root[:, None] * kernel * root[None, :]))


def test_tracy_widom_table_against_the_fredholm_determinant():
    s = np.linspace(-7.9, 7.9, 80)
    exact = np.array([fredholm_cdf(float(x)) for x in s])
    np.testing.assert_allclose(TracyWidom().cdf(s), exact, atol=1e-6)


@pytest.mark.parametrize(
    ("level", "quantile"),
    [
        (0.001, -4.65420),
        (0.01, -3.89543),
        (0.05, -3.18038),
        (0.1, -2.78243),
        (0.2, -2.28316),
        (0.5, -1.26858),
        (0.8, -0.16531),
        (0.9, 0.45014),
        (0.95, 0.97932),
        (0.975, 1.45377),
        (0.99, 2.02345),
        (0.995, 2.42233),
        (0.999, 3.27220),
        (1 - 1e-4, 4.35942),
        (1 - 1e-5, 5.34430),
        (1 - 1e-6, 6.25635),
    ],
)
def test_tracy_widom_quantiles(level, quantile):
    tail = min(level, 1 - level)
    assert TracyWidom().ppf(level) == pytest.approx(quantile, abs=2e-5 if tail > 5e-4 else 2e-3)
    solved = optimize.brentq(lambda s: float(TracyWidom().cdf(s)) - level, -9, 9, xtol=1e-12)
    assert TracyWidom().ppf(level) == pytest.approx(solved, abs=1e-8)


def test_tracy_widom_tails_are_monotone_and_complementary():
    s = np.linspace(-30, 30, 4001)
    law = TracyWidom()
    assert (np.diff(law.cdf(s)) >= 0).all()
    np.testing.assert_allclose(law.cdf(s) + law.sf(s), 1, rtol=1e-15)
    assert 0 < law.sf(20.0) < 1e-12


@pytest.mark.parametrize("shape", [(150, 150), (100, 300)])
def test_largest_noise_value_exceeds_the_threshold_as_often_as_promised(shape):
    """Johnstone's law without finite-size shifts is conservative: 10 % nominal is 6 to 10 % at this size."""
    rng = np.random.default_rng(5)
    threshold = tracy_widom_threshold(1.0, shape, 0.1)
    largest = np.array([np.linalg.norm(rng.standard_normal(shape), 2) for _ in range(400)])
    assert 0.02 <= np.mean(largest > threshold) <= 0.13
    pvalues = np.array([largest_value_pvalue(s, 1.0, shape) for s in largest])
    assert np.mean(pvalues < 0.1) == pytest.approx(np.mean(largest > threshold))


def test_far_tails_and_nan_come_without_a_warning():
    """F1 is 0 and 1 there to every digit of float64; a quantile of NaN is NaN."""
    law = TracyWidom()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(law.cdf([-1e3, 1e3]), [0, 1])
        np.testing.assert_array_equal(law.sf([-1e3, 1e3]), [1, 0])
        assert largest_value_pvalue(1e4, 1.0, (30, 40)) == 0
        np.testing.assert_array_equal(np.isnan(law.ppf([0.5, math.nan])), [False, True])


@pytest.mark.parametrize("law", [MarchenkoPastur, MarchenkoPasturEigenvalues])
def test_errors_name_the_law(law):
    with pytest.raises(ValueError, match=rf"^{law.__name__}\(\): variance must be positive"):
        law(0.0, (3, 4))
    with pytest.raises(ValueError, match=rf"^{law.__name__}\(\): shape must be two positive"):
        law(1.0, (0, 4))


def lower_share(x: float, p: int, q: int) -> float:
    """CDF of the unit law at x by Gauss-Legendre in the angle, in long double, over dyadic pieces towards phi = 0."""
    p, q, x = (np.longdouble(number) for number in (p, q, x))
    r = np.sqrt(p / q)
    gap = (q - p) / q / (1 + r)
    top = 2 * np.arctan2(np.sqrt(np.maximum(x - gap**2, 0)), np.sqrt((1 + r) ** 2 - x))
    nodes, weights = (part.astype(np.longdouble) for part in np.polynomial.legendre.leggauss(40))
    total = np.longdouble(0)
    for piece in range(120):
        high = top / np.longdouble(2) ** piece
        phi = high * (3 + nodes) / 4  # of [high / 2, high]
        y = gap**2 + 4 * r * np.sin(phi / 2) ** 2
        total += high / 4 * (weights @ (2 / np.longdouble(np.pi) * np.sin(phi) ** 2 / y))
    return float(total)


@pytest.mark.parametrize("shape", [(999_999, 1_000_000), (999, 1000), (99_999_999, 100_000_000), (50, 50), (7, 900)])
def test_quantiles_of_the_lower_tail_off_square(shape):
    p, q = shape
    u = np.array([1e-12, 1e-9, 1e-6, 1e-3, 0.1, 0.5, 0.9])
    x = MarchenkoPasturEigenvalues(1.0, shape).ppf(u)
    back = np.array([lower_share(float(value), p, q) for value in x])
    # A rounding of x near the edge is one of (x - edge)^(3/2); Newton stalled at 180 times u before.
    gap = (q - p) / q / (1 + math.sqrt(p / q))
    slack = 4 * 2.0**-52 * x / np.maximum(x - gap**2, 2.0**-52 * x) + 1e-13
    assert (np.abs(back - u) <= np.minimum(slack, 1e-3) * u).all()
    assert (np.abs(MarchenkoPasturEigenvalues(1.0, shape).cdf(x) - u) <= np.minimum(slack, 1e-3) * u).all()


@pytest.mark.parametrize("shape", [(200, 300), (1, 1_000_000), (40, 40)])
@pytest.mark.parametrize("exponent", [-1020, -600, -300, 300, 600, 980])
def test_laws_at_the_ends_of_the_range_of_float64(shape, exponent):
    """Scaling W by 2^k is exact, so nothing but the scale may change."""
    unit, scaled = MarchenkoPastur(1.0, shape), MarchenkoPastur(math.ldexp(1.0, exponent), shape)
    scale = math.ldexp(1.0, exponent // 2)
    s = np.concatenate([[0.0], np.linspace(*unit.support, 23), [2 * unit.sigma_plus]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_allclose(scaled.support, np.multiply(unit.support, scale), rtol=1e-15)
        np.testing.assert_allclose(scaled.pdf(s * scale) * scale, unit.pdf(s), rtol=1e-12)
        np.testing.assert_allclose(scaled.cdf(s * scale), unit.cdf(s), rtol=1e-12)
        np.testing.assert_allclose(
            scaled.ppf([0.0, 0.01, 0.5, 1.0]) / scale, unit.ppf([0.0, 0.01, 0.5, 1.0]), rtol=1e-14
        )
        np.testing.assert_allclose(scaled.rvs(5, seed=3) / scale, unit.rvs(5, seed=3), rtol=1e-14)
        if abs(exponent) < 1000:  # beyond, a density per unit of s^2 / q is no float64 itself
            density = scaled.eigenvalues().pdf(scaled.variance) * scaled.variance
            assert density == pytest.approx(unit.eigenvalues().pdf(1.0), rel=1e-12)
        threshold = tracy_widom_threshold(1.0, shape)
        assert tracy_widom_threshold(scaled.variance, shape) == pytest.approx(threshold * scale, rel=1e-14)
        for level in (0.5, 1.0, 1.01):
            ours = largest_value_pvalue(level * threshold * scale, scaled.variance, shape)
            assert ours == pytest.approx(largest_value_pvalue(level * threshold, 1.0, shape), rel=1e-9)
        assert scaled.cdf(1e300) == 1
        assert scaled.pdf(1e300) == 0


def test_tracy_widom_at_the_ends_of_its_tails():
    law = TracyWidom()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for u in (1e-300, 1e-100, 1e-30, 1e-16, 0.3):
            # The logit of 1e-300 is 690, and a quantile of 1e-15 relative changes it by a few 1e-15 of that.
            assert law.cdf(law.ppf(u)) == pytest.approx(u, rel=1e-10)
            assert law.sf(law.isf(u)) == pytest.approx(u, rel=1e-10)
        assert law.sf(law.ppf(1 - 1e-16)) == pytest.approx(2.0**-53, rel=1e-2)
        assert law.cdf([-np.inf, -1e300, 1e300, np.inf]).tolist() == [0, 0, 1, 1]
        # Johnstone's asymptotic form of 1 - F1, whose next term is of order s^(-3/2): 3 % at 12, 1 % at 25.
        for s in (12.0, 25.0, 60.0):
            tail = math.exp(-2 / 3 * s**1.5) / (4 * math.sqrt(math.pi) * s**0.75)
            assert law.sf(s) == pytest.approx(tail, rel=0.06)
        # Baik, Buckingham, DiFranco; zeta'(-1) = -0.1654211437.
        for s in (12.0, 25.0):
            lead = -11 / 48 * math.log(2) - 0.1654211437 / 2 - s**3 / 24 - s**1.5 / (3 * math.sqrt(2))
            assert math.log(law.cdf(-s)) == pytest.approx(lead - math.log(s) / 16, abs=0.02)
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        law.isf(0.0)


@pytest.mark.parametrize("beta", [1e-300, 1e-17, 1e-16, 1 - 2.0**-53])
def test_every_false_alarm_level_has_a_threshold(beta):
    fit = fit_values(MarchenkoPastur(1.0, (90, 120)).ppf((np.arange(90) + 0.5) / 90), (90, 120), beta=beta)
    assert 0 < fit.threshold < math.inf
    assert largest_value_pvalue(fit.threshold, fit.variance, (90, 120)) == pytest.approx(beta, rel=1e-6)


def test_a_pvalue_needs_noise():
    with pytest.raises(ValueError, match="variance must be positive"):
        largest_value_pvalue(1.0, 0.0, (3, 4))
