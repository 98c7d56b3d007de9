"""Hard thresholds and shrinkers of Gavish and Donoho."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

import mpfast
from mpfast import MarchenkoPastur, optimal_threshold, shrink
from mpfast.spectra.synthetic import low_rank


@pytest.mark.parametrize(
    ("shape", "factor"),
    [
        ((300, 300), 2.309401),
        ((200, 400), 1.978599),
        ((100, 300), 1.838544),
        ((400, 100), 1.758029),
        ((30, 300), 1.581648),
    ],
)
def test_published_factors(shape, factor):
    q = max(shape)
    assert optimal_threshold(shape, variance=0.25) == pytest.approx(factor * math.sqrt(q * 0.25), rel=1e-6)
    # A noise matrix of this variance has this median, so the median alone gives the same threshold.
    median = float(MarchenkoPastur(0.25, shape).ppf(0.5))
    assert optimal_threshold(shape, median=median) == pytest.approx(factor * math.sqrt(q * 0.25), rel=1e-6)


def test_exactly_one_of_variance_and_median():
    for given in ({}, {"variance": 1.0, "median": 1.0}):
        with pytest.raises(ValueError, match="either"):
            optimal_threshold((3, 4), **given)


@pytest.mark.parametrize("shape", [(400, 400), (300, 900)])
@pytest.mark.parametrize("loss", ["frobenius", "operator", "nuclear"])
def test_shrinker_inverts_the_spike_map_or_weighs_it_by_the_angles(shape, loss):
    p, q = min(shape), max(shape)
    g = p / q
    theta = np.array([1.3, 2.0, 5.0, 30.0])  # in units of sqrt(q v); all above g^(1/4)
    y = np.sqrt((theta**2 + 1) * (theta**2 + g)) / theta
    cos_u2 = (theta**4 - g) / (theta**4 + theta**2 * g)
    cos_v2 = (theta**4 - g) / (theta**4 + theta**2)
    wanted = {
        "operator": theta,
        "frobenius": theta * np.sqrt(cos_u2 * cos_v2),
        "nuclear": theta * (np.sqrt(cos_u2 * cos_v2) - np.sqrt((1 - cos_u2) * (1 - cos_v2))),
    }[loss]
    unit = math.sqrt(q * 0.5)
    np.testing.assert_allclose(shrink(y * unit, 0.5, shape, loss=loss), np.maximum(wanted, 0) * unit, rtol=1e-12)


def test_nothing_is_left_of_the_bulk():
    law = MarchenkoPastur(1.0, (50, 80))
    np.testing.assert_array_equal(shrink([0.0, law.support[0], law.sigma_plus], 1.0, (50, 80)), 0)


def test_frobenius_shrinkage_denoises_better_than_keeping_or_cutting():
    rng = np.random.default_rng(3)
    shape = (300, 500)
    signal = low_rank(shape, np.array([60.0, 40.0, 30.0]), rng)
    noisy = signal + rng.standard_normal(shape)
    U, s, Vh = np.linalg.svd(noisy, full_matrices=False)
    edge = mpfast.spectrum(noisy).edge
    loss = {
        "shrunk": np.linalg.norm((U * shrink(s, edge.variance, shape)) @ Vh - signal),
        "cut": np.linalg.norm((U * np.where(s > edge.threshold, s, 0)) @ Vh - signal),
        "kept": np.linalg.norm(noisy - signal),
    }
    assert loss["shrunk"] < 0.95 * loss["cut"] < 0.5 * loss["kept"]


def test_values_that_are_no_numbers():
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="NaN or infinite"):
            mpfast.shrink([3.0, value], 1.0, (10, 10))


def test_unknown_loss():
    with pytest.raises(ValueError, match="loss"):
        shrink([1.0], 1.0, (2, 2), loss="huber")


@pytest.mark.parametrize("loss", ["frobenius", "operator", "nuclear"])
def test_without_noise_every_value_is_its_own_estimate(loss):
    np.testing.assert_array_equal(shrink([3.0, 0.0], 0.0, (30, 40), loss=loss), [3, 0])


@pytest.mark.parametrize("variance", [-1.0, math.nan, math.inf])
def test_bad_variances(variance):
    with pytest.raises(ValueError, match=r"shrink\(\): variance must be finite"):
        shrink([1.0], variance, (2, 2))
    with pytest.raises(ValueError, match=r"optimal_threshold\(\): variance must be finite"):
        optimal_threshold((2, 2), variance=variance)
    with pytest.raises(ValueError, match=r"optimal_threshold\(\): median must be finite"):
        optimal_threshold((2, 2), median=variance)


@pytest.mark.parametrize("shape", [(300, 400), (1, 1_000_000), (50, 50)])
@pytest.mark.parametrize("exponent", [-1020, -500, 500, 980])
def test_thresholds_and_shrinkers_scale_with_the_matrix(shape, exponent):
    """W times 2^k is exact, so the results are too; nothing overflows on the way."""
    scale = math.ldexp(1.0, exponent // 2)
    variance = math.ldexp(1.0, exponent)
    edge = MarchenkoPastur(1.0, shape).sigma_plus
    s = edge * np.array([0.5, 1.001, 1.5, 30.0, 1e6])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wanted = optimal_threshold(shape, variance=1.0)
        assert optimal_threshold(shape, variance=variance) == pytest.approx(wanted * scale, rel=1e-14)
        assert optimal_threshold(shape, median=edge * scale) == pytest.approx(
            optimal_threshold(shape, median=edge) * scale, rel=1e-14
        )
        for loss in ("frobenius", "operator", "nuclear"):
            np.testing.assert_allclose(
                shrink(s * scale, variance, shape, loss=loss), shrink(s, 1.0, shape, loss=loss) * scale, rtol=1e-13
            )


@pytest.mark.parametrize("loss", ["frobenius", "operator", "nuclear"])
def test_a_value_far_above_the_noise_stays_as_it_is(loss):
    # y - f(y) is of order 1 / y in units of the noise edge: beyond 1e16 edges nothing of it is left.
    for value, variance in ((1e200, 1.0), (1e300, 1e-300), (1e-150, 5e-324)):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            np.testing.assert_allclose(shrink([value], variance, (30, 40), loss=loss), [value], rtol=1e-12)


def test_a_median_whose_square_is_no_float64():
    assert optimal_threshold((10, 20), median=1e200) == pytest.approx(1e200 * optimal_threshold((10, 20), median=1.0))
