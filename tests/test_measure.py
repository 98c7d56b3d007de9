"""Distribution functions of discrete measures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mpfast.spectra.distribution import Measure

VALUES = arrays(np.float64, st.integers(1, 40), elements=st.floats(0, 1e6))


@given(VALUES)
def test_quantiles_at_mid_points_are_the_values(values):
    measure = Measure.from_values(values)
    u = (np.arange(len(values)) + 0.5) / len(values)
    np.testing.assert_allclose(measure.quantile(u), np.sort(values), rtol=1e-9, atol=1e-9 * max(values))


@given(VALUES, st.floats(0, 1e6))
def test_distribution_function_is_within_a_step_of_the_empirical_one(values, s):
    measure = Measure.from_values(values)
    below, upto = np.mean(values < s), np.mean(values <= s)
    slack = 1 / len(values) + 1e-12
    assert below - slack <= measure.cdf(s) <= upto + slack


@given(VALUES)
def test_distribution_function_is_monotone_from_0_to_1(values):
    measure = Measure.from_values(values)
    s = np.linspace(-1, values.max() + 1, 200)
    levels = measure.cdf(s)
    assert (np.diff(levels) >= -1e-15).all()
    assert (levels[0], levels[-1]) == (0, 1)


def test_moments_and_weights():
    values = np.array([3.0, 1.0, 2.0])
    measure = Measure.from_values(values)
    np.testing.assert_array_equal(measure.nodes, [3, 2, 1])
    assert measure.atoms == 3
    assert measure.moment(0) == pytest.approx(1)
    assert measure.moment(2) == pytest.approx((values**2).mean())


def test_nan_is_nowhere():
    measure = Measure.from_values([1.0, 2.0, 3.0])
    assert np.isnan(measure.cdf([np.nan])).all()
    assert np.isnan(measure.density([np.nan])).all()


def test_density_of_a_uniform_sample():
    measure = Measure.from_values(np.linspace(2, 4, 2001))
    np.testing.assert_allclose(measure.density([2.5, 3.0, 3.5]), 0.5, rtol=1e-2)
    np.testing.assert_array_equal(measure.density([0.0, 9.0]), 0)
    np.testing.assert_array_equal(Measure.from_values(np.ones(5)).density([1.0]), 0)
