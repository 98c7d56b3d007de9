"""The spectrum of a layer's outputs: what a rank leaves of them, against the full decomposition of W C^(1/2)."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

import mpfast
from mpfast import _core, lowrank, reconstruct
from mpfast.spectra.probe_noise import jackknife_error

from .references import bfloat16_bits, from_bfloat16_bits, least_rank, root_of, singular_values

ERRORS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)


def layer(m, n, rows, seed=0, dtype=np.float64):
    """Weights, and the second moment of inputs that have a mean and whose variances fall like a power."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, n)) * np.arange(1, n + 1) ** -0.7 + 0.3
    return rng.standard_normal((m, n)).astype(dtype), x.T @ x / rows


def outputs(W, C):
    """Singular values of W C^(1/2), by full decompositions."""
    return singular_values(np.asarray(W, np.float64) @ root_of(C))


# The root of a second moment ------------------------------------------------------------------------------------------


@given(st.integers(1, 90), st.integers(1, 120), st.integers(0, 50))
@settings(max_examples=40)
def test_a_root_times_its_transpose_is_the_matrix(n, rows, seed):
    x = np.random.default_rng(seed).standard_normal((rows, n)) + 0.5
    scale = np.sqrt((x**2).mean(axis=0))
    C = (x / scale).T @ (x / scale) / rows
    root, rest = _core.semidefinite_root(C, 1)
    assert root.shape == (n, min(n, rows))
    # n roundings of entries near 1, eight times for the growth of a factorisation.
    assert np.abs(root @ root.T - C).max() <= 8 * n * 2.0**-52
    assert rest <= 8 * n * 2.0**-52


def test_a_root_is_the_same_for_any_number_of_threads():
    _, C = layer(1, 700, 500)
    scale = np.sqrt(np.diag(C))
    C = np.ascontiguousarray(C / scale / scale[:, None])
    roots = [_core.semidefinite_root(C, threads)[0] for threads in (1, 2, 3)]
    np.testing.assert_array_equal(roots[0], roots[1])
    np.testing.assert_array_equal(roots[0], roots[2])
    assert roots[0].shape == (700, 500)


def test_a_negative_eigenvalue_stays_as_a_rest():
    assert _core.semidefinite_root(np.array([[1.0, 2.0], [2.0, 1.0]]), 1)[1] == 3.0


def test_sums_in_single_precision_leave_a_root_of_about_the_rank():
    """Rounding makes eigenvalues negative; what they belong to is left out, and no more than it is missing."""
    x = np.random.default_rng(0).standard_normal((200, 300)).astype(np.float32)
    C = (x.T @ x / np.float32(200)).astype(np.float64)
    scale = np.sqrt(np.diag(C))
    root, rest = _core.semidefinite_root(np.ascontiguousarray(C / scale / scale[:, None]), 1)
    assert root.shape[1] == 200
    assert rest < 1e-5


# The spectrum ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("m", "n", "rows"),
    [(40, 60, 200), (60, 40, 200), (60, 40, 10), (40, 60, 10), (40, 60, 50), (1, 1, 5), (1, 7, 5), (7, 1, 3)],
)
def test_all_values_are_those_of_the_full_decomposition(m, n, rows):
    W, C = layer(m, n, rows)
    found = mpfast.spectrum(W, inputs=C)
    wanted = outputs(W, C)
    assert found.method == "exact"
    assert found.shape == (m, n)
    # As roots of eigenvalues: zeros come out at some 2^-26 of the largest.
    np.testing.assert_allclose(found.values, wanted, rtol=1e-9, atol=4e-8 * wanted[0])
    for error in ERRORS:
        at = found.rank_for_error(error)
        assert (at.rank, at.rank_error) == (least_rank(wanted, error), 0)
        np.testing.assert_allclose(at.error, np.linalg.norm(wanted[at.rank :]) / np.linalg.norm(wanted), atol=1e-6)


@pytest.mark.parametrize(("m", "n", "rows"), [(700, 500, 2000), (500, 700, 2000), (300, 500, 120)])
def test_an_estimate_is_within_its_error_of_the_ranks(m, n, rows):
    W, C = layer(m, n, rows, dtype=np.float32)
    found = mpfast.spectrum(W, inputs=C, method="lanczos")
    wanted = outputs(W, C)
    assert found.method == "lanczos"
    assert not found.unmet_tolerance
    for error in ERRORS:
        at = found.rank_for_error(error)
        # Four standard errors, and one for whole numbers.
        assert abs(at.rank - least_rank(wanted, error)) <= 4 * at.rank_error + 1
        assert at.rank_error <= 5e-3 * min(m, n)
    np.testing.assert_allclose(found.fro_norm, np.linalg.norm(wanted), rtol=1e-3)
    assert mpfast.Spectrum.from_dict(found.to_dict()).rank_for_error(0.1) == found.rank_for_error(0.1)


def test_steps_are_added_until_the_ranks_stand_still():
    """Values that fall exponentially: twelve steps put the rank for 2 % more than two hundred too high."""
    p = 1536
    s = np.exp(-np.arange(p) / 150) + 1e-3
    W = scipy.sparse.diags(s).tocsr()
    found = mpfast.spectrum(W, inputs=np.eye(p), probes=24)
    early = mpfast.spectrum(W, inputs=np.eye(p), probes=24, steps=12)
    for error in (0.02, 0.1):
        wanted = least_rank(s, error)
        assert abs(found.rank_for_error(error).rank - wanted) <= 4 * found.rank_for_error(error).rank_error + 1
        assert abs(early.rank_for_error(error).rank - wanted) <= 4 * early.rank_for_error(error).rank_error + 1
    assert found.steps > early.steps
    assert early.rank_for_error(0.02).rank_error > found.rank_for_error(0.02).rank_error


def test_the_result_does_not_depend_on_the_number_of_threads():
    W, C = layer(300, 400, 600)
    one, two = (mpfast.spectrum(W, inputs=C, method="lanczos", threads=threads).to_dict() for threads in (1, 2))
    assert one == two


@pytest.mark.parametrize("kind", ["csr", "operator", "bfloat16", "float32 moment", "transposed", "torch"])
def test_whoever_has_the_matrix_multiplies(kind):
    W, C = layer(150, 100, 300)
    wanted = mpfast.spectrum(W, inputs=C).values
    given, moment, rtol = W, C, 1e-9
    if kind == "csr":
        given = scipy.sparse.csr_matrix(W)
    elif kind == "operator":
        given = scipy.sparse.linalg.aslinearoperator(W)
    elif kind == "bfloat16":
        bits = bfloat16_bits(W)
        given = _core.Matrix(bits, "bfloat16")
        wanted = outputs(from_bfloat16_bits(bits), C)
    elif kind == "float32 moment":
        moment, rtol = C.astype(np.float32), 1e-5
    elif kind == "transposed":
        given = np.asfortranarray(W)
    else:
        torch = pytest.importorskip("torch")
        given, moment = torch.from_numpy(W), torch.from_numpy(C)
    np.testing.assert_allclose(mpfast.spectrum(given, inputs=moment).values, wanted, rtol=rtol, atol=rtol * wanted[0])


def test_a_dask_array_is_multiplied_by_its_workers():
    array = pytest.importorskip("dask.array")
    W, C = layer(150, 100, 300)
    found = mpfast.spectrum(array.from_array(W, chunks=(40, 60)), inputs=C)
    np.testing.assert_allclose(found.values, mpfast.spectrum(W, inputs=C).values, rtol=1e-9)


def test_units_of_weights_and_inputs_do_not_matter():
    W, C = layer(70, 50, 200)
    found = mpfast.spectrum(1e200 * W, inputs=1e-300 * C)
    np.testing.assert_allclose(found.values, 1e50 * mpfast.spectrum(W, inputs=C).values, rtol=1e-9)
    assert mpfast.spectrum(W, inputs=0 * C).rank_for_error(0.1) == mpfast.spectrum(0 * W, inputs=C).rank_for_error(0.1)


def test_an_input_that_is_another_one_again_changes_nothing():
    W, C = layer(80, 60, 200)
    twice = np.append(np.arange(60), 7)
    repeated = np.hstack([W, np.zeros((80, 1))])
    found = mpfast.spectrum(repeated, inputs=C[np.ix_(twice, twice)])
    np.testing.assert_allclose(found.values[:60], outputs(W, C), rtol=1e-9)
    assert found.values[60] == 0


def test_it_has_no_edge():
    W, C = layer(80, 60, 200)
    found = mpfast.spectrum(W, inputs=C)
    for fit in (found.fit, lambda: found.edge):
        with pytest.raises(ValueError, match=r"not independent.*rank_for_error"):
            fit()
    metrics, plain = found.metrics(), mpfast.spectrum(W).metrics()
    assert set(plain) - set(metrics) == {"spike_mass", "s1_over_sigma_plus", "mean_outlier_ratio"}
    assert "outputs" in repr(found)
    assert found.rounding < 1e-6 * found.values[0]


def test_it_is_drawn_without_a_law():
    figure = pytest.importorskip("matplotlib.figure").Figure()
    W, C = layer(80, 60, 200)
    axes = mpfast.spectrum(W, inputs=C).plot(figure.add_subplot())
    assert not axes.lines


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda C: C[:10], "must be square"),
        (lambda C: C[:10, :10], "is of 10 inputs, but W has 50"),
        (lambda C: -C, "diagonal must not be negative"),
        (lambda C: C + np.triu(C, 1), "must be symmetric"),
        (lambda C: C - 0.5 * np.diag(np.diag(C)), "negative eigenvalue|no .C_ij. be above"),
        (lambda C: np.where(np.arange(50) == 3, np.nan, C), "non-finite"),
    ],
)
def test_what_is_no_second_moment_is_refused(change, said):
    W, C = layer(70, 50, 200)
    with pytest.raises(ValueError, match=said) as caught:
        mpfast.spectrum(W, inputs=change(C))
    assert str(caught.value).startswith("spectrum(): inputs")


def test_an_input_without_variance_has_no_covariance():
    W, C = layer(70, 50, 200)
    C[3, 3] = 0
    with pytest.raises(ValueError, match=r"no \|C_ij\| be above sqrt\(C_ii C_jj\)"):
        mpfast.spectrum(W, inputs=C)
    C[3], C[:, 3] = 0, 0
    np.testing.assert_allclose(mpfast.spectrum(W, inputs=C).values[:49], outputs(W, C)[:49], rtol=1e-7)


def test_weights_that_are_not_finite_are_refused():
    W, C = layer(70, 50, 200)
    W[3, 4] = np.nan
    with pytest.raises(ValueError, match=r"1 non-finite entry .* \(3, 4\)"):
        mpfast.spectrum(W, inputs=C)


def test_a_small_matrix_has_no_estimate():
    W, C = layer(40, 50, 200)
    with pytest.raises(ValueError, match="method='lanczos' needs"):
        mpfast.spectrum(W, inputs=C, method="lanczos")


# Ranks of any spectrum ------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 100), min_size=1, max_size=30), st.floats(0, 0.99))
def test_the_rank_is_the_least_that_leaves_the_error(values, error):
    found = mpfast.Spectrum.from_values(values, (len(values), 40)).rank_for_error(error)
    squares = np.sort(np.square(values))[::-1]
    tails = np.append(np.cumsum(squares[::-1])[::-1], 0)
    # Rounding of a sum of so many terms may go either way.
    slack = 1e-9 * tails[0]
    assert tails[found.rank] <= error**2 * tails[0] + slack
    assert found.rank == 1 or tails[found.rank - 1] >= error**2 * tails[0] - slack


def test_without_inputs_it_is_the_error_of_the_matrix():
    W = np.random.default_rng(0).standard_normal((300, 200)) + 0.4
    exact, estimate = (mpfast.spectrum(W, method=method).rank_for_error(0.2) for method in ("exact", "lanczos"))
    assert exact.rank == least_rank(singular_values(W), 0.2)
    assert abs(estimate.rank - exact.rank) <= 4 * estimate.rank_error + 1


@pytest.mark.parametrize("error", [1, -0.1, float("nan"), "0.1", True, None])
def test_an_error_is_a_share(error):
    with pytest.raises(ValueError, match=r"error must be a number in \[0, 1\)"):
        mpfast.Spectrum.from_values([1.0], (1, 1)).rank_for_error(error)


def test_one_probe_does_not_say_how_far_others_would_scatter():
    W, C = layer(300, 200, 400)
    assert mpfast.spectrum(W, inputs=C, probes=1, steps=8).rank_for_error(0.1).rank_error == np.inf
    assert jackknife_error([3.0]) == 0


# Factors --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "n", "rows"), [(40, 60, 200), (60, 40, 200), (60, 40, 10)])
def test_factors_leave_what_the_spectrum_says(m, n, rows):
    W, C = layer(m, n, rows)
    found = mpfast.spectrum(W, inputs=C).rank_for_error(0.1)
    A, B = lowrank.factor(W, found.rank, second_moment=C)
    assert (A.shape, B.shape) == ((m, found.rank), (found.rank, n))
    root = root_of(C)
    left = np.linalg.norm((W - A @ B) @ root) / np.linalg.norm(W @ root)
    # What is measured is a root of what rounding leaves beside a total of 1.
    np.testing.assert_allclose(left, found.error, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(A), np.linalg.norm(B))
    other = np.matmul(*reconstruct.lowrank(W, reconstruct.Factor(C, damping=0), found.rank))
    np.testing.assert_allclose(A @ B, other, atol=1e-8 * np.abs(other).max())


def test_no_other_factors_of_that_rank_leave_less():
    """Against alternating least squares on the outputs, from many starts."""
    W, C = layer(12, 9, 100)
    A, B = lowrank.factor(W, 3, second_moment=C)
    best = np.trace((W - A @ B) @ C @ (W - A @ B).T)
    rng = np.random.default_rng(1)
    for _ in range(10):
        right = rng.standard_normal((3, 9))
        for _ in range(60):
            left = np.linalg.solve(right @ C @ right.T, right @ C @ W.T).T
            right = np.linalg.solve(left.T @ left, left.T @ W)
        change = W - left @ right
        assert np.trace(change @ C @ change.T) >= best * (1 - 1e-9)


def test_factors_come_in_the_callers_framework():
    torch = pytest.importorskip("torch")
    W, C = layer(30, 20, 100, dtype=np.float32)
    A, B = lowrank.factor(torch.from_numpy(W).bfloat16(), 4, second_moment=torch.from_numpy(C))
    assert (A.dtype, tuple(A.shape), tuple(B.shape)) == (torch.float32, (30, 4), (4, 20))
    assert lowrank.factor(W, 4, second_moment=C)[0].dtype == np.float32


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "rank must be a number beside second_moment"),
        ({"rank": 31}, "rank must be at most"),
        ({"rank": 3, "shrinkage": "frobenius"}, "do not go together"),
        ({"rank": 3, "second_moment": np.eye(5)}, "is of 5 inputs"),
    ],
)
def test_options_that_do_not_fit_a_second_moment_are_refused(options, said):
    W, C = layer(30, 20, 100)
    with pytest.raises(ValueError, match=said):
        lowrank.factor(W, **{"second_moment": C, **options})


def test_factors_are_the_same_for_any_number_of_threads():
    W, C = layer(300, 260, 400)
    one, two = (lowrank.factor(W, 20, second_moment=C, threads=threads) for threads in (1, 2))
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_array_equal(one[1], two[1])
    one, two = (reconstruct.lowrank(W, C, error=0.01, threads=threads) for threads in (1, 2))
    np.testing.assert_array_equal(one[0], two[0])
