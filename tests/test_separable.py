"""The law of noise of uneven rows and columns: its edge, its quantiles, its fluctuations."""

from __future__ import annotations

import math

import numpy as np
import pytest

import mpfast
from mpfast.spectra import SeparableLaw, separable_edge

from .references import singular_values

EVEN = (np.ones(300), np.full(500, 2.0))
LINEAR = (np.linspace(0.5, 2, 300), np.linspace(0.25, 4, 500))
TWO_LEVELS = (np.repeat([1.0, 9.0], [250, 50]), np.ones(400))
ONE_HUGE_ROW = (np.r_[np.ones(299), 100.0], np.ones(500))
GEOMETRIC = (np.geomspace(0.1, 10, 256), np.geomspace(0.01, 100, 1024))


# Of a golden-section search on the same two equations, and finite differences for the scale.
@pytest.mark.parametrize(
    ("profile", "sigma_plus", "scale", "a", "b"),
    [
        (EVEN, 56.11767403, 37.1359, 0.5635083, 0.2182458),
        (LINEAR, 72.97368082, 85.2495, 0.3451240, 0.1467584),
        (TWO_LEVELS, 82.87299833, 140.252, 0.0820348, 0.2900367),
        (ONE_HUGE_ROW, 234.25205574, 2370.3, 0.0095719, 0.0480718),
        (GEOMETRIC, 451.50155436, 6923.4, 0.0816755, 0.0057525),
    ],
)
def test_edge_of_known_profiles(profile, sigma_plus, scale, a, b):
    found = separable_edge(*profile)
    assert found.sigma_plus == pytest.approx(sigma_plus, rel=1e-7)
    assert found.scale == pytest.approx(scale, rel=1e-3)
    assert (found.a, found.b) == pytest.approx((a, b), rel=1e-5)
    # The transposed matrix has the same singular values.
    turned = separable_edge(*profile[::-1])
    assert turned.sigma_plus == pytest.approx(found.sigma_plus, rel=1e-13)
    assert turned.scale == pytest.approx(found.scale, rel=1e-9)


@pytest.mark.parametrize("shape", [(300, 500), (1, 5), (5, 1), (2000, 9000)])
def test_edge_of_even_noise_is_the_closed_form(shape):
    found = separable_edge(np.full(shape[0], 4.0), np.full(shape[1], 0.5))
    assert found.sigma_plus == pytest.approx(mpfast.spectra.sigma_plus(2.0, shape), rel=1e-12)
    # Of the largest of its fluctuations nine in ten are below the threshold.
    square = mpfast.spectra.tracy_widom_threshold(2.0, shape, beta=0.1) ** 2
    level = float(mpfast.TracyWidom().ppf(0.9))
    assert found.sigma_plus**2 + level * found.scale == pytest.approx(square, rel=1e-9)


@pytest.mark.parametrize("sd", [0.5, 2.0])
def test_minimum_is_where_a_fine_scan_finds_it(sd):
    rng = np.random.default_rng(0)
    x, y = np.exp(sd * rng.standard_normal(60)), np.exp(sd * rng.standard_normal(90))
    found = separable_edge(x, y)

    def square(a):
        total = float(np.sum(x * a / (1 - x * a)))
        low, high = 0.0, 1 / y.max()
        for _ in range(200):
            b = 0.5 * (low + high)
            low, high = (b, high) if np.sum(y * b / (1 - y * b)) < total else (low, b)
        return total / (a * b)

    scan = [square(share / x.max()) for share in np.linspace(1e-3, 0.999, 999)]
    assert found.sigma_plus**2 == pytest.approx(square(found.a), rel=1e-9)
    assert found.sigma_plus**2 <= min(scan) * (1 + 1e-12)
    assert found.sigma_plus**2 == pytest.approx(min(scan), rel=1e-3)


@pytest.mark.parametrize("exponent", [-300, -1, 1, 300])
def test_edge_scales_with_the_variances(exponent):
    unit = 2.0**exponent
    found, scaled = separable_edge(*LINEAR), separable_edge(LINEAR[0] * unit, LINEAR[1])
    assert scaled.sigma_plus == pytest.approx(found.sigma_plus * math.sqrt(unit), rel=1e-14)


def test_rows_without_noise_change_nothing():
    found = separable_edge(*LINEAR)
    with_dead = separable_edge(np.r_[LINEAR[0], np.zeros(40)], LINEAR[1])
    assert with_dead.sigma_plus == pytest.approx(found.sigma_plus, rel=1e-13)


def test_long_profiles_are_cut_into_groups():
    rng = np.random.default_rng(1)
    x, y = np.exp(0.5 * rng.standard_normal(600)), np.exp(0.5 * rng.standard_normal(900))
    # Ten times as many rows and columns of the same profile, of which the sums are ten times as large.
    few, many = separable_edge(x, y), separable_edge(np.repeat(x, 10), np.repeat(y, 10))
    assert many.sigma_plus == pytest.approx(math.sqrt(10) * few.sigma_plus, rel=1e-3)


@pytest.mark.parametrize(
    ("profile", "quartiles"),
    [
        (EVEN, (18.43, 28.18, 38.97)),
        (LINEAR, (18.00, 29.80, 44.91)),
        (TWO_LEVELS, (11.09, 18.78, 28.26)),
        (GEOMETRIC, (34.48, 77.34, 169.87)),
    ],
)
def test_quantiles_of_known_profiles(profile, quartiles):
    law = SeparableLaw(*profile)
    assert law.ppf([0.25, 0.5, 0.75]) == pytest.approx(quartiles, rel=5e-3)
    assert law.mass == pytest.approx(1, abs=4e-3)
    assert law.cdf(law.ppf([0.1, 0.6])) == pytest.approx([0.1, 0.6], abs=1e-9)
    turned = SeparableLaw(*profile[::-1])
    assert turned.ppf([0.25, 0.5, 0.75]) == pytest.approx(law.ppf([0.25, 0.5, 0.75]), rel=1e-3)


def test_density_of_even_noise_is_marchenko_and_pastur_s():
    law, reference = SeparableLaw(*EVEN), mpfast.MarchenkoPastur(2.0, (300, 500))
    inside = np.linspace(reference.support[0] * 1.3, reference.support[1] * 0.99, 50)
    assert law.pdf(inside) == pytest.approx(reference.pdf(inside), rel=5e-3)
    assert law.cdf(inside) == pytest.approx(reference.cdf(inside), abs=1e-3)
    assert (law.pdf([1.0, 60.0]) < 1e-5).all()
    assert law.cdf([0.0, law.sigma_plus, 1e3]).tolist() == [0, 1, 1]


def test_law_describes_a_draw_of_uneven_noise():
    rng = np.random.default_rng(2)
    x, y = np.exp(rng.standard_normal(300)), np.exp(rng.standard_normal(500))
    values = singular_values(np.sqrt(x)[:, None] * rng.standard_normal((300, 500)) * np.sqrt(y))
    law = SeparableLaw(x, y)
    ranks = (np.arange(300) + 0.5) / 300
    # Values of a matrix repel: their distribution scatters by about 1 / p, and the law is asymptotic.
    assert np.abs(law.cdf(values[::-1]) - ranks).max() < 0.015
    fluctuation = (values[0] ** 2 - law.edge.sigma_plus**2) / law.edge.scale
    assert -1.2 - 4 * 1.3 < fluctuation < -1.2 + 4 * 1.3  # mean and standard deviation of the Tracy-Widom law


@pytest.mark.parametrize("profile", [[], [[1.0]], [0.0, 0.0], [1.0, -1.0], [1.0, np.nan], [1.0, np.inf]])
def test_what_is_no_profile_is_refused(profile):
    with pytest.raises(ValueError, match=r"separable_edge\(\): x must be"):
        separable_edge(profile, [1.0])
    with pytest.raises(ValueError, match="y must be"):
        SeparableLaw([1.0], profile)


@pytest.mark.parametrize("largest", [1.7e308, 1.0, 1e-300])
@pytest.mark.parametrize("length", [1, 50, 5000])
def test_profiles_reach_from_one_end_of_float64_to_the_other(length, largest):
    even = separable_edge(np.full(length, largest), np.ones(30))
    assert even.sigma_plus == pytest.approx(math.sqrt(largest) * (math.sqrt(length) + math.sqrt(30)), rel=1e-9)
    wide = separable_edge(np.geomspace(1e-307, 1, length) * largest if length > 1 else [largest], np.ones(30))
    assert math.sqrt(largest) * math.sqrt(30) < wide.sigma_plus <= even.sigma_plus * (1 + 1e-9)


@pytest.mark.parametrize("profile", ["ab", [1 + 2j], np.array([1 + 2j]), [None], [True]])
def test_what_are_no_numbers_is_refused(profile):
    with pytest.raises(TypeError, match=r"separable_edge\(\): x must be an array of real numbers"):
        separable_edge(profile, [1.0])


def test_probabilities_outside_are_refused():
    with pytest.raises(ValueError, match="u must lie"):
        SeparableLaw(*TWO_LEVELS).ppf(1.5)
