"""Estimators of second moments from few inputs, by parts of the data that are kept apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import isotonic_regression

from mpfast.spectra import clean, diagonal_weight, effective_rows, shrink_to_diagonal
from mpfast.spectra.second_moment import increasing


def population(d, seed=0):
    """A second moment whose eigenvalues fall like a power, as those of the inputs of layers do."""
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.standard_normal((d, d)))
    return (q / np.arange(1, d + 1)) @ q.T * d


def parts_of(x, folds):
    pieces = np.array_split(x, folds)
    return [piece.T @ piece / len(piece) for piece in pieces], [len(piece) for piece in pieces]


def sample(sigma, n, seed):
    return np.random.default_rng(seed).standard_normal((n, len(sigma))) @ np.linalg.cholesky(sigma).T


def stein_loss(estimate, sigma):
    """tr (E^-1 S) - log det (E^-1 S) - d: what it costs to divide by E."""
    ratio = np.linalg.solve(estimate, sigma)
    return np.trace(ratio) - np.linalg.slogdet(ratio)[1] - len(sigma)


@pytest.mark.parametrize("seed", range(5))
def test_cross_validated_eigenvalues_are_better_to_divide_by(seed):
    """With 1.5 inputs per dimension the sample has eigenvalues that are ten times too small."""
    sigma = population(60)
    parts, rows = parts_of(sample(sigma, 90, seed), 5)
    assert stein_loss(clean(parts, rows), sigma) < 0.5 * stein_loss(np.mean(parts, axis=0), sigma)


def test_few_inputs_leave_no_eigenvalue_at_zero():
    sigma = population(50)
    parts, rows = parts_of(sample(sigma, 40, 1), 4)
    assert np.linalg.eigvalsh(clean(parts, rows)).min() > 0.02 * np.linalg.eigvalsh(sigma).min()


def test_much_data_is_left_alone():
    """With 400 inputs per dimension eigenvalues are right to some sqrt(2 / n) each, and so is what is made of them."""
    sigma = population(20)
    parts, rows = parts_of(sample(sigma, 8000, 2), 4)
    mean = np.mean(parts, axis=0)
    root = np.linalg.inv(np.linalg.cholesky(mean))
    assert np.abs(np.linalg.eigvalsh(root @ clean(parts, rows) @ root.T) - 1).max() < 0.2
    assert diagonal_weight(parts, rows) == 0.005


def test_units_of_inputs_do_not_matter():
    sigma = population(12)
    x = sample(sigma, 40, 3)
    unit = np.exp(np.random.default_rng(4).standard_normal(12))
    plain, scaled = parts_of(x, 4), parts_of(x * unit, 4)
    np.testing.assert_allclose(clean(*scaled), unit * clean(*plain) * unit[:, None], rtol=1e-9)
    assert diagonal_weight(*scaled) == diagonal_weight(*plain)
    assert effective_rows(*scaled) == pytest.approx(effective_rows(*plain), rel=1e-9)


def test_the_weight_grows_as_data_gets_short():
    sigma = population(40)
    x = sample(sigma, 4000, 5)
    weights = [diagonal_weight(*parts_of(x[:n], 4)) for n in (40, 400, 4000)]
    assert weights == sorted(weights, reverse=True)
    assert weights[0] > 4 * weights[2]


def test_inputs_without_correlations_are_taken_as_such():
    parts = parts_of(np.random.default_rng(6).standard_normal((200, 50)), 4)
    assert diagonal_weight(*parts) == 0.95


@pytest.mark.parametrize("repeats", [1, 2, 5])
def test_effective_rows_count_what_is_new(repeats):
    """1225 correlations, four parts: the variance is known to some 3 %, being that of about 3 x 1225 numbers."""
    x = np.repeat(np.random.default_rng(7).standard_normal((2000, 50)), repeats, axis=0)
    assert effective_rows(*parts_of(x, 4)) == pytest.approx(2000, rel=0.15)


def test_inputs_that_are_always_zero_stay_so():
    x = np.random.default_rng(8).standard_normal((60, 10))
    x[:, 3] = 0
    parts = parts_of(x, 3)
    cleaned = clean(*parts)
    assert np.isfinite(cleaned).all()
    assert np.abs(cleaned[3]).max() <= 1e-15 * np.trace(cleaned)  # rounding of the eigenvectors
    assert np.isfinite([diagonal_weight(*parts), effective_rows(*parts)]).all()


def test_shrinking_keeps_the_diagonal():
    moment = population(8)
    shrunk = shrink_to_diagonal(moment, 0.25)
    np.testing.assert_allclose(shrunk, 0.75 * moment + 0.25 * np.diag(np.diag(moment)), rtol=1e-14, atol=1e-16)
    np.testing.assert_array_equal(shrunk.diagonal(), moment.diagonal())
    np.testing.assert_array_equal(shrink_to_diagonal(moment, 0), moment)


@settings(max_examples=60)
@given(st.lists(st.floats(-100, 100), min_size=1, max_size=30))
def test_increasing_is_isotonic_regression(values):
    np.testing.assert_allclose(increasing(np.array(values)), isotonic_regression(values).x, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: clean([np.eye(3)], [4]), r"clean\(\): parts must be two or more"),
        (lambda: clean([np.eye(3), np.eye(4)], [4, 4]), "differ in shape"),
        (lambda: clean([np.eye(3), np.eye(3)], [4]), "2 positive numbers"),
        (lambda: diagonal_weight([np.eye(3), np.eye(3)], [4, 0]), "2 positive numbers"),
        (lambda: effective_rows([np.eye(3), np.full((3, 3), np.nan)], [4, 4]), "NaN or infinite"),
        (lambda: shrink_to_diagonal(np.eye(3), 1.5), "weight must lie in"),
        (lambda: shrink_to_diagonal(np.ones((2, 3)), 0.5), "must be square"),
    ],
)
def test_what_is_no_moment_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_result_does_not_depend_on_threads():
    parts, rows = parts_of(sample(population(300), 400, 0), 4)
    np.testing.assert_array_equal(clean(parts, rows, threads=1), clean(parts, rows, threads=3))
    assert diagonal_weight(parts, rows, threads=1) == diagonal_weight(parts, rows, threads=3)
