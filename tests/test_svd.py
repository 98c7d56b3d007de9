"""`svd` and `lowrank.factor` against full decompositions."""

from __future__ import annotations

import itertools
import re
import warnings

import numpy as np
import pytest

import mpfast
from mpfast import lowrank
from mpfast.spectra import krylov_search, ritz_errors
from mpfast.spectra.synthetic import family, low_rank
from mpfast.support.errors import ConvergenceWarning

from .references import singular_values

SHAPES = [(700, 900), (900, 700), (2000, 640), (640, 2000)]


def check_triplets(W, result, k, tol=1e-5):
    s = singular_values(W)
    u, vh = np.asarray(result.U, dtype=float), np.asarray(result.Vh, dtype=float)
    assert u.shape == (W.shape[0], k)
    assert vh.shape == (k, W.shape[1])
    np.testing.assert_allclose(result.s, s[:k], rtol=tol)
    # Vectors are stored in fp32 for fp32 input: orthonormal to a few of its roundings, relative to sqrt(length).
    slack = 1e-5 if W.dtype != np.float64 else 1e-10
    np.testing.assert_allclose(u.T @ u, np.eye(k), atol=slack)
    np.testing.assert_allclose(vh @ vh.T, np.eye(k), atol=slack)
    exact = W.astype(float)
    actual = np.maximum(
        np.linalg.norm(exact @ vh.T - u * result.s, axis=0), np.linalg.norm(exact.T @ u - vh.T * result.s, axis=0)
    )
    np.testing.assert_allclose(actual, result.residuals, atol=slack * s[0])
    assert (np.abs(result.s - s[:k]) <= result.residuals + slack * s[0]).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_leading_triplets_of_spikes_and_bulk_edge(shape, dtype):
    W = family("spikes40", shape, 1).astype(dtype)
    check_triplets(W, mpfast.svd(W, 60), 60)


@pytest.mark.parametrize("name", ["gauss", "power_law", "student_t3", "lognormal_columns"])
def test_other_families(name):
    W = family(name, (800, 600), 2).astype(np.float32)
    check_triplets(W, mpfast.svd(W, 10), 10)


@pytest.mark.parametrize("k", [1, 5, 30])
def test_small_matrices_take_the_dense_path(k):
    W = family("gauss", (30, 80), 3)
    check_triplets(W, mpfast.svd(W, k), k)


def test_unpacks_as_three():
    U, s, Vh = mpfast.svd(np.diag([3.0, 2.0, 1.0]), 2)
    np.testing.assert_allclose(s, [3, 2])
    np.testing.assert_allclose(np.abs(U @ np.diag(s) @ Vh), np.diag([3.0, 2.0, 0.0]), atol=1e-12)


def test_diagonal_matrices_have_no_invisible_coordinates():
    values = np.linspace(1, 2, 1500)
    result = mpfast.svd(np.diag(values), 5)
    np.testing.assert_allclose(result.s, values[::-1][:5], rtol=1e-5)


@pytest.mark.parametrize("shape", [(900, 1400), (300, 500)])
def test_until_mp_edge_returns_every_value_above_the_edge(shape):
    W = family("spikes40", shape, 4).astype(np.float32)
    result = mpfast.svd(W, until="mp_edge")
    above = singular_values(W) > result.edge.sigma_plus
    assert len(result.s) == above.sum()
    check_triplets(W, result, len(result.s))


def test_until_mp_edge_on_pure_noise_returns_next_to_nothing():
    result = mpfast.svd(family("gauss", (700, 1100), 5).astype(np.float32), until="mp_edge")
    assert len(result.s) <= 3
    assert np.asarray(result.U).shape == (700, len(result.s))


def test_rank_deficient_input_gives_orthonormal_vectors():
    W = low_rank((800, 700), np.array([5.0, 3.0, 1.0]), np.random.default_rng(6))
    with pytest.warns(ConvergenceWarning, match="may be rounding"):
        result = mpfast.svd(W, 6)
    np.testing.assert_allclose(result.s[:3], [5, 3, 1], rtol=1e-8)
    assert (result.s[3:] < 1e-6).all()
    np.testing.assert_allclose(result.U.T @ result.U, np.eye(6), atol=1e-8)


def test_same_bits_for_any_number_of_threads_and_block_width_is_free():
    W = family("spikes40", (600, 700), 7).astype(np.float32)
    a, b = (mpfast.svd(W, 45, threads=t) for t in (1, 3))
    np.testing.assert_allclose(a.s, b.s, rtol=1e-12)
    for block in (1, 3, 16):
        np.testing.assert_allclose(mpfast.svd(W, 20, block=block).s, a.s[:20], rtol=1e-5)


def test_large_dynamic_range_in_fp32():
    rng = np.random.default_rng(8)
    values = np.concatenate([[1e6], np.linspace(200, 100, 9)])
    W = (low_rank((700, 800), values, rng) + rng.standard_normal((700, 800))).astype(np.float32)
    result = mpfast.svd(W, 10)
    np.testing.assert_allclose(result.s, singular_values(W)[:10], rtol=1e-4)


def test_factor_is_the_truncation():
    W = family("spikes40", (300, 400), 9)
    A, B = lowrank.factor(W, 12)
    u, s, vh = np.linalg.svd(W, full_matrices=False)
    np.testing.assert_allclose(A @ B, (u[:, :12] * s[:12]) @ vh[:12], atol=1e-6 * s[0])
    A, B = lowrank.factor(W)
    assert A.shape[1] == mpfast.spectrum(W).edge.spikes_above_edge
    with pytest.raises(ValueError, match="rank must be"):
        lowrank.factor(W, "all")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "give either k"),
        ({"k": 3, "until": "mp_edge"}, "give either k"),
        ({"until": "edge"}, "until must be"),
        ({"k": 0}, "k must be"),
        ({"k": 6}, "k must be"),
        ({"k": 2, "tol": 2}, "tol must be"),
        ({"k": 2, "block": 40}, "block must be"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        mpfast.svd(np.eye(5), **arguments)


def test_nonfinite_entries_are_located():
    W = np.ones((600, 700), dtype=np.float32)
    W[3, 5] = np.inf
    with pytest.raises(ValueError, match=r"svd\(\): W has 1 .*\(3, 5\)"):
        mpfast.svd(W, 2)


def test_a_flat_spectrum_warns_rather_than_pretends():
    # All singular values equal: nothing separates the k-th from the next, yet every Ritz value is exact.
    q = np.linalg.qr(np.random.default_rng(10).standard_normal((640, 640)))[0]
    try:
        result = mpfast.svd(q, 3)
    except ConvergenceWarning:
        return
    np.testing.assert_allclose(result.s, 1, rtol=1e-8)


def orthonormal(n, k, seed):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((n, k)))[0]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("copies", [3, 5, 20, 40])
def test_equal_singular_values_are_all_found(copies, dtype):
    # A Krylov space shows no more copies of one singular value than its block is wide.
    rest = np.linspace(5, 1, 100 - copies)
    s = np.concatenate([np.full(copies, 10.0), rest])
    W = ((orthonormal(600, 100, 1) * s) @ orthonormal(500, 100, 2).T).astype(dtype)
    for k in (1, 2, copies, copies + 5):
        found = mpfast.svd(W, k)
        np.testing.assert_allclose(found.s, s[:k], rtol=1e-5)
        # Equal singular values leave the vectors free, but they must be singular vectors, and orthonormal.
        np.testing.assert_allclose(found.U.T @ found.U, np.eye(k), atol=1e-4)
        np.testing.assert_allclose(W @ found.Vh.T, found.U * found.s, atol=1e-3)


def test_nearly_equal_singular_values_are_told_apart():
    noise = 0.05 * np.random.default_rng(3).standard_normal((600, 500))
    W = 10 * orthonormal(600, 5, 1) @ orthonormal(500, 5, 2).T + noise
    np.testing.assert_allclose(mpfast.svd(W, 2).s, np.linalg.svd(W, compute_uv=False)[:2], rtol=1e-5)


@pytest.mark.parametrize("spread", [5e-4, 1e-3, 3e-3, 1e-2])
@pytest.mark.parametrize("count", [20, 40])
def test_the_first_of_many_values_close_to_one_another(spread, count):
    # A block shows a few of them at first, each somewhere among the rest, and far from everything else.
    s = np.concatenate([1 + spread * np.linspace(1, 0, count), np.linspace(0.5, 0.01, 600 - count)])
    W = ((orthonormal(700, 600, 6) * s) @ orthonormal(600, 600, 7).T).astype(np.float32)
    exact = np.linalg.svd(W.astype(np.float64), compute_uv=False)
    for k in (5, 10):
        np.testing.assert_allclose(mpfast.svd(W, k).s, exact[:k], rtol=1.5e-5)


@pytest.mark.parametrize("k", [2, 10, 40])
def test_of_an_orthogonal_matrix_as_many_triplets_as_asked_for(k):
    W = orthonormal(600, 600, 4).astype(np.float32)
    U, s, Vh = mpfast.svd(W, k)
    np.testing.assert_allclose(s, np.ones(k), rtol=1e-5)
    np.testing.assert_allclose(Vh @ Vh.T, np.eye(k), atol=1e-5)
    np.testing.assert_allclose(U @ np.diag(s) @ Vh @ Vh.T, W @ Vh.T, atol=1e-5)


def test_identical_blocks_are_all_counted_above_the_edge():
    rng = np.random.default_rng(5)
    block = rng.standard_normal((60, 50)) + 3 * np.outer(rng.standard_normal(60), rng.standard_normal(50))
    W = np.kron(np.eye(12), block)
    found = mpfast.svd(W, until="mp_edge")
    exact = np.linalg.svd(W, compute_uv=False)
    np.testing.assert_allclose(found.s, exact[exact > found.edge.sigma_plus], rtol=1e-5)
    assert len(found.s) >= 12


def graded(shape, end, seed=11):
    p = min(shape)
    return (orthonormal(shape[0], p, seed) * np.logspace(0, end, p)) @ orthonormal(shape[1], p, seed + 1).T


def true_residuals(W, result):
    """The larger of both, of what was returned, in longdouble: nothing of it is the reference's rounding."""
    W, u, vh = (np.asarray(x, dtype=np.longdouble) for x in (W, result.U, result.Vh))
    s = result.s.astype(np.longdouble)
    left, right = W @ vh.T - u * s, W.T @ u - vh.T * s
    return np.sqrt(np.maximum((left**2).sum(axis=0), (right**2).sum(axis=0))).astype(float)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("shape", "end", "k"),
    [
        ((90, 120), -10, 45),  # dense, far below s_1
        ((120, 90), -6, 90),  # dense, all of them
        ((80, 100), 0, 80),  # all equal
        ((300, 200), -3, 150),  # dense, by the squares
        ((300, 400), -8, 50),  # Krylov
        ((400, 300), -12, 20),
    ],
)
def test_residuals_are_those_of_what_is_returned(shape, end, k, dtype):
    W = graded(shape, end).astype(dtype)
    result = mpfast.svd(W, k)
    actual = true_residuals(W, result)
    assert (actual <= result.residuals).all()
    # 2^-50 s_1 is allowed for the products' rounding, which may as well have cancelled.
    assert (result.residuals <= actual + 2 * 2.0**-50 * result.s[0]).all()
    # LAPACK's values err by a few roundings of s_1 themselves.
    assert (np.abs(result.s - singular_values(W)[:k]) <= result.residuals + 8 * 2.0**-52 * result.s[0]).all()


def test_residuals_of_rotated_triplets_and_of_noise():
    W = np.random.default_rng(12).standard_normal((80, 100))
    result = mpfast.svd(W, 80)
    assert (true_residuals(W, result) <= result.residuals).all()
    W = family("spikes40", (400, 500), 13).astype(np.float32)
    result = mpfast.svd(W, 30)
    assert (true_residuals(W, result) <= result.residuals).all()


@pytest.mark.parametrize(("shape", "k"), [((90, 120), 90), ((120, 90), 45), ((300, 400), 300), ((400, 300), 100)])
def test_small_values_beside_a_large_one_are_right(shape, k):
    # A backward stable decomposition errs by a few roundings of s_1: 1e-15 / 1e-6 = 1e-9 of the last of these.
    W = graded(shape, -6)
    np.testing.assert_allclose(mpfast.svd(W, k).s, np.logspace(0, -6, min(shape))[:k], rtol=1e-8)


def test_a_krylov_space_that_rounding_has_spoilt_gives_way_to_all_of_w():
    # The squares of the last values are 1e-18 of the first: the Gram operator has lost them.
    s = np.concatenate([np.logspace(0, -9, 10), np.full(290, 1e-12)])
    W = (orthonormal(300, 300, 14) * s) @ orthonormal(400, 300, 15).T
    np.testing.assert_allclose(mpfast.svd(W, 10).s, s[:10], rtol=1e-5)


def test_values_that_rounding_has_lost_are_said_to_be():
    # 1e-14 s_1 is known to a few hundredths of it: LAPACK's own error, a rounding of s_1.
    with pytest.warns(ConvergenceWarning, match="was not met for rounding"):
        mpfast.svd(graded((90, 120), -14), 90)
    s = np.concatenate([np.logspace(0, -9, 10), np.full(1190, 1e-12)])
    W = (orthonormal(1200, 1200, 16) * s) @ orthonormal(1200, 1200, 17).T
    with pytest.warns(ConvergenceWarning, match="was not met for rounding"):
        mpfast.svd(W, 10)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("shape", [(300, 400), (90, 60), (1300, 1100)])
def test_values_that_may_be_rounding_are_said_to_be(shape, scale):
    rng = np.random.default_rng(9)
    W = scale * rng.standard_normal((shape[0], 5)) @ rng.standard_normal((5, shape[1]))
    level = re.escape(f"{max(shape) * 2.0**-52 * singular_values(W / scale)[0] * scale:.2g}")
    with pytest.warns(ConvergenceWarning, match=rf"5 of the 10 values may be rounding: they are below {level}, max"):
        found = mpfast.svd(W, 10)
    np.testing.assert_allclose(found.s[:5], scale * singular_values(W / scale)[:5], rtol=1e-9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mpfast.svd(W, 5)
        mpfast.svd(np.zeros(shape), 3)
        mpfast.svd(W, until="mp_edge")


@pytest.mark.parametrize("tol", [1e-8, 1e-10])
def test_a_tolerance_below_the_rounding_of_fp32_products_is_met(tol):
    W = np.random.default_rng(18).standard_normal((500, 700)).astype(np.float32)
    np.testing.assert_allclose(mpfast.svd(W, 10, tol=tol).s, singular_values(W)[:10], rtol=tol)


def test_further_runs_see_other_vectors(monkeypatch):
    # 80 equal values: a further run that repeated the probes of another would show the same 32 of their vectors.
    streams = []
    start = krylov_search.start_run

    def watched(source, width, seed, stream, *rest, **options):
        streams.append(stream)
        return start(source, width, seed, stream, *rest, **options)

    monkeypatch.setattr(krylov_search, "start_run", watched)
    s = np.concatenate([np.full(80, 10.0), np.linspace(1, 0.1, 520)])
    W = (orthonormal(700, 600, 19) * s) @ orthonormal(600, 600, 20).T
    found = mpfast.svd(W, 80, block=4)
    np.testing.assert_allclose(found.s, np.full(80, 10.0), rtol=1e-5)
    assert len(streams) == len(set(streams)) >= 3


BULK = np.linspace(1, 0.01, 400)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bound", [None, 1e-2, 1e-5])
@pytest.mark.parametrize(
    ("leading", "k"),
    [
        ([10, 7, 5, 3, 2], 5),  # gapped
        ([10, 7, 5, 3, 2], 8),  # down into the bulk, whose gaps are 0.25 %
        ([5, 4.99, 4.98, 3, 2.999], 5),  # close
        ([5, 5, 5, 3, 3, 2], 6),  # clusters
    ],
)
def test_angles_to_the_true_vectors_are_within_their_bounds(leading, k, bound, dtype):
    s = np.concatenate([leading, BULK])
    W = ((orthonormal(500, len(s), 1) * s) @ orthonormal(600, len(s), 2).T).astype(dtype)
    found = mpfast.svd(W, k, vectors_tol=bound)
    assert found.unmet_tolerance == ""
    # LAPACK's own vectors are off by roundings of s_1 over the gaps.
    slack = 10 * 2.0**-52 * 10 / 1e-3
    u, exact, vh = np.linalg.svd(W.astype(np.float64), full_matrices=False)
    starts = [0, *(i for i in range(1, k) if exact[i - 1] - exact[i] > 1e-5 * exact[i - 1]), k]
    for begin, end in itertools.pairwise(starts):
        for mine, true in ((found.U, u), (found.Vh.T, vh.T)):
            assert angle_between(mine[:, begin:end], true[:, begin:end]) <= found.angles[begin] + slack
    if bound is not None:
        assert found.angles.max() <= bound


def angle_between(A, B):
    """Largest angle of a vector in the span of A to that of B, both orthonormal."""
    A = np.linalg.qr(A.astype(np.float64))[0]
    return np.arcsin(min(np.linalg.norm(A - B @ (B.T @ A), 2), 1.0))


@pytest.mark.parametrize("shape", [(60, 80), (500, 600)])
def test_vectors_that_cannot_be_told_are_said_to_be_open(shape):
    s = np.concatenate([[5.0, 3.0, 3.0], np.linspace(1, 0.5, 40)])
    W = (orthonormal(shape[0], len(s), 1) * s) @ orthonormal(shape[1], len(s), 2).T
    with pytest.warns(mpfast.ConvergenceWarning, match=r"vectors_tol=0\.001 was not met: 1 of the 2 vectors"):
        found = mpfast.svd(W, 2, vectors_tol=1e-3)  # the second is any vector of a plane
    np.testing.assert_allclose(found.s, [5, 3], rtol=1e-8)
    assert found.angles[0] < 1e-3
    assert found.angles[1] == np.pi / 2
    assert mpfast.svd(W, 3, vectors_tol=1e-3).angles.max() < 1e-3


def test_angles_follow_from_residuals_and_gaps():
    s, residuals = np.array([10.0, 10.0, 4.0, 1.0]), np.array([3e-3, 4e-3, 1e-2, 0.0])
    found = ritz_errors.angles(s, residuals, 0.5, 1e-5)
    # By hand: the norm of both residuals of all of a group over the gap, less what a neighbour may be off by.
    expected = [np.sqrt(2) * 5e-3 / 5.99] * 2 + [np.sqrt(2) * 1e-2 / 3.0, 0.0]
    np.testing.assert_allclose(np.sin(found), expected, rtol=1e-12)
    assert ritz_errors.angles(s[:3], residuals[:3], 4.0, 1e-5)[2] == np.pi / 2
    assert len(ritz_errors.angles(s[:0], residuals[:0], 0.0, 1e-5)) == 0


@pytest.mark.parametrize("bad", [0, 1, -1e-3, "fine", True])
def test_a_tolerance_of_vectors_is_a_number_between_0_and_1(bad):
    with pytest.raises(ValueError, match=r"^svd\(\): vectors_tol must be between 0 and 1"):
        mpfast.svd(np.eye(9), 2, vectors_tol=bad)
