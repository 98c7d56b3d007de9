"""Denoising, methods on singular vectors, and the randomness battery."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import mpfast
from mpfast import lowrank
from mpfast.spectra.singular_vectors import drop_bulk, haar_sparsify, randomness, sparsify_vectors


def spiked(rng: np.random.Generator, m: int = 200, n: int = 300, spikes: tuple[float, ...] = (3, 2, 1.5)) -> tuple:
    edge = np.sqrt(m) + np.sqrt(n)
    U = np.linalg.qr(rng.standard_normal((m, len(spikes))))[0]
    V = np.linalg.qr(rng.standard_normal((n, len(spikes))))[0]
    signal = (U * (edge * np.array(spikes))) @ V.T
    return signal + rng.standard_normal((m, n)), signal


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_denoise_against_the_full_svd(dtype: type) -> None:
    W, _ = spiked(np.random.default_rng(0))
    W = W.astype(dtype)
    U, s, Vh = np.linalg.svd(W.astype(np.float64), full_matrices=False)
    edge = mpfast.spectrum(W).edge
    for rule in lowrank.RULES:
        for bulk in (0.0, 0.3, 1.0):
            if rule in ("frobenius", "operator", "nuclear"):
                kept = mpfast.shrink(s, edge.variance, W.shape, loss=rule)
            else:
                level = {
                    "edge": edge.sigma_plus,
                    "threshold": edge.threshold,
                    "optimal": mpfast.optimal_threshold(W.shape, variance=edge.variance),
                }[rule]
                kept = np.where(s > level, s, 0)
            want = (U * np.where(kept > 0, kept, bulk * s)) @ Vh
            got = lowrank.denoise(W, rule, bulk=bulk)
            assert got.dtype == (np.float32 if dtype == np.float16 else dtype)
            assert np.linalg.norm(got - want) < 2e-4 * np.linalg.norm(want), (rule, bulk)


def test_shrinkage_is_closer_to_the_signal_than_truncation() -> None:
    rng = np.random.default_rng(1)
    for _ in range(5):
        W, signal = spiked(rng, spikes=(2, 1.5, 1.2, 1.1))
        error = {rule: np.linalg.norm(lowrank.denoise(W, rule) - signal) for rule in lowrank.RULES}
        assert error["frobenius"] < error["optimal"] <= 1.02 * error["edge"]
        A, B = lowrank.factor(W, shrinkage="frobenius")
        np.testing.assert_allclose(A @ B, lowrank.denoise(W, "frobenius"), atol=1e-4)
    A, B = lowrank.factor(W, 2, shrinkage="operator")
    s = np.linalg.svd(W, compute_uv=False)[:2]
    want = mpfast.shrink(s, mpfast.spectrum(W).edge.variance, W.shape, loss="operator")
    np.testing.assert_allclose(np.linalg.svd(A @ B, compute_uv=False)[:2], want, rtol=1e-4)


def test_denoise_errors() -> None:
    W = np.random.default_rng(2).standard_normal((50, 60))
    with pytest.raises(ValueError, match="rule"):
        lowrank.denoise(W, "best")
    with pytest.raises(ValueError, match="bulk"):
        lowrank.denoise(W, bulk=2)
    assert np.linalg.norm(lowrank.denoise(W)) <= np.linalg.norm(W) / 2


def test_drop_bulk() -> None:
    W, _ = spiked(np.random.default_rng(3), 60, 80)
    s = np.linalg.svd(W, compute_uv=False)
    np.testing.assert_allclose(drop_bulk(W, 0.0), W, atol=1e-12)
    below = int((s <= mpfast.spectrum(W).edge.sigma_plus).sum())
    half = np.linalg.svd(drop_bulk(W, 0.5), compute_uv=False)
    assert (half > 1e-9).sum() == 60 - below // 2
    np.testing.assert_allclose(half[: 60 - below // 2], s[: 60 - below // 2])
    with pytest.raises(ValueError, match="share"):
        drop_bulk(W, 1.5)


def test_haar_sparsify_sets_the_expected_share_to_zero() -> None:
    """Noise alone, power 0: depth 1 below the edge, where z = 0.5 sets 38.3 % of the entries to zero."""
    W = np.random.default_rng(4).standard_normal((300, 400)).astype(np.float32)
    changed = haar_sparsify(W, 0.5, power=0.0)
    assert changed.dtype == np.float32
    U, s, Vh = np.linalg.svd(W.astype(np.float64), full_matrices=False)
    edge = mpfast.spectrum(W, method="exact").edge.sigma_plus
    U2 = np.where((np.abs(U) < 0.5 / np.sqrt(300)) & (s < edge), 0, U)
    Vh2 = np.where((np.abs(Vh) < 0.5 / np.sqrt(400)) & (s < edge)[:, None], 0, Vh)
    np.testing.assert_allclose(changed, (U2 * s) @ Vh2, atol=1e-4)
    assert (U2 == 0).mean() == pytest.approx(0.383, abs=0.01)
    np.testing.assert_allclose(haar_sparsify(W, 0.0), W, atol=1e-4)
    np.testing.assert_allclose(sparsify_vectors(W, 0.0), W, atol=1e-4)
    # Spikes are left alone, whatever their vectors.
    spike = np.zeros((300, 400))
    spike[:10, :10] = 1e-3
    spike[0, 0] = 100
    strong = W + spike
    assert haar_sparsify(strong, 0.5)[0, 0] == pytest.approx(strong[0, 0], rel=1e-3)
    with pytest.raises(ValueError, match="z"):
        haar_sparsify(W, -1)
    with pytest.raises(ValueError, match="theta"):
        sparsify_vectors(W, -1)


def test_sparsify_vectors_formula() -> None:
    W, _ = spiked(np.random.default_rng(5), 50, 70)
    U, s, Vh = np.linalg.svd(W, full_matrices=False)
    edge = mpfast.spectrum(W, method="exact").edge.sigma_plus
    T = 0.2 * np.maximum(1 / 750, np.maximum(1 - s / edge, 0) ** 3)
    want = (np.where(np.abs(U) < T, 0, U) * s) @ np.where(np.abs(Vh) < T[:, None], 0, Vh)
    np.testing.assert_allclose(sparsify_vectors(W, 0.2, power=3), want, atol=1e-10)


def test_randomness_tells_structure_from_noise() -> None:
    pytest.importorskip("scipy")
    W, _ = spiked(np.random.default_rng(6), 120, 150, (4, 3))
    W[3, 4] += 60  # a localised one
    found = randomness(W, vectors=40, seed=1)
    assert found.above_edge.tolist() == [True] * 3 + [False] * 37
    assert found.permutation_p[:2].max() == pytest.approx(1 / 21)
    local = int(np.argmax(found.fourth_moment[0]))
    assert local < 3
    assert found.shapiro_p[0, local] < 1e-6
    assert found.peak[0, local] > 2
    assert found.score[local] < 0.1 * found.score[5:].mean()
    assert found.score.shape == (40,)
    assert 0.2 < np.median(found.dagostino_p[0, 3:]) < 0.8
    again = randomness(W, vectors=40, seed=1)
    np.testing.assert_array_equal(found.score, again.score)
    with pytest.raises(ValueError, match="20 rows"):
        randomness(np.ones((10, 30)))


def test_anderson_darling_is_scipy_s() -> None:
    stats = pytest.importorskip("scipy.stats")
    from mpfast.spectra.singular_vectors import anderson_darling

    u = np.random.default_rng(7).standard_normal(200)
    assert anderson_darling(stats, u) == pytest.approx(
        stats.anderson(u, "norm", method="interpolate").statistic, rel=1e-6
    )


def test_a_matrix_without_noise() -> None:
    """One entry: the bulk has variance 0, and what is left is the matrix, without a warning."""
    W = np.zeros((200, 300))
    W[3, 4] = 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for rule in ("frobenius", "operator", "nuclear"):
            np.testing.assert_allclose(lowrank.denoise(W, rule), W, atol=1e-13)
            A, B = lowrank.factor(W, 1, shrinkage=rule)
            np.testing.assert_allclose(A @ B, W, atol=1e-13)
        np.testing.assert_allclose(sparsify_vectors(W, 0.1), W, atol=1e-13)
        np.testing.assert_array_equal(sparsify_vectors(np.zeros((30, 40)), 0.1), 0)


def test_errors_name_the_function() -> None:
    with pytest.raises(ValueError, match=r"drop_bulk\(\): W must be 2-D"):
        drop_bulk(np.zeros((3, 4, 5)), 0.5)
    with pytest.raises(ValueError, match=r"randomness\(\): vectors must be a positive integer"):
        randomness(np.ones((30, 30)), vectors=0)
    with pytest.raises(ValueError, match=r"factor\(\): shrinkage must be None or one of"):
        lowrank.factor(np.ones((30, 30)), 2, shrinkage="huber")
