"""Measures of a spectrum against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest

import mpfast
from mpfast.spectra.synthetic import family

from .references import singular_values


@pytest.fixture(scope="module")
def exact():
    W = family("power_law", (400, 700), 3)
    return singular_values(W), mpfast.spectrum(W, method="exact")


def test_definitions(exact):
    s, spectrum = exact
    measured, edge = spectrum.metrics(), spectrum.edge
    share = s**2 / (s**2).sum()
    entropy = -(share * np.log(share)).sum()
    spikes = s[s > edge.threshold]
    wanted = {
        "spectral_norm": s[0],
        "stable_rank": (s**2).sum() / s[0] ** 2,
        "entropy_rank": math.exp(entropy),
        "nuclear_rank": s.sum() ** 2 / (s**2).sum(),
        "entropy": entropy / math.log(400),
        "hill_alpha": 1 + 1 / np.mean(np.log(s[:20] ** 2 / s[20] ** 2)),
        "hill_alpha_half": 1 + 1 / np.mean(np.log(s[:200] ** 2 / s[200] ** 2)),
        "spike_mass": (spikes**2).sum() / (s**2).sum(),
        "s1_over_sigma_plus": s[0] / edge.sigma_plus,
        "mean_outlier_ratio": spikes.mean() / edge.sigma_plus,
    }
    assert measured.keys() == wanted.keys()
    assert measured.keys().isdisjoint(edge.to_dict())  # one name, and one place, for each number
    for name, value in wanted.items():
        assert measured[name] == pytest.approx(value, rel=1e-9), name


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gauss", "spikes40", "power_law", "lognormal_columns"])
def test_measured_spectra_come_close(name):
    W = family(name, (1500, 1300), 8).astype(np.float32)
    exact, measured = (mpfast.spectrum(W, method=method).metrics() for method in ("exact", "lanczos"))
    for key, tolerance in {
        "spectral_norm": 1e-3,
        "stable_rank": 1e-3,
        "nuclear_rank": 0.01,
        "entropy_rank": 0.02,
        "hill_alpha_half": 0.05,
        "s1_over_sigma_plus": 0.01,
        "spike_mass": 0.03,
    }.items():
        assert measured[key] == pytest.approx(exact[key], rel=tolerance, abs=0.002), key
    # The top of a smooth bulk is read off a distribution function: looser.
    assert measured["hill_alpha"] == pytest.approx(exact["hill_alpha"], rel=0.25)


def test_permuting_rows_and_scaling_leave_ratios_alone(exact):
    _, spectrum = exact
    W = family("power_law", (400, 700), 3)
    other = mpfast.spectrum(-1e-3 * W[::-1], method="exact").metrics()
    for key in ("stable_rank", "entropy_rank", "nuclear_rank", "hill_alpha", "spike_mass", "s1_over_sigma_plus"):
        assert other[key] == pytest.approx(spectrum.metrics()[key], rel=1e-9), key


def test_identity():
    measured = mpfast.spectrum(np.eye(50)).metrics()
    for key in ("stable_rank", "entropy_rank", "nuclear_rank"):
        assert measured[key] == pytest.approx(50)
    assert measured["entropy"] == pytest.approx(1)


def test_the_zero_matrix_has_the_same_measures(exact):
    measured = mpfast.spectrum(np.zeros((30, 40))).metrics()
    assert measured.keys() == exact[1].metrics().keys()
    assert measured["spectral_norm"] == measured["stable_rank"] == 0
    assert math.isnan(measured["hill_alpha"])


def entropy_of(W):
    """By NumPy's singular values and its rule for the rank."""
    s = singular_values(W)
    share = s[s > 0] ** 2 / (s**2).sum()
    rank = np.count_nonzero(s > s[0] * max(W.shape) * 2.0**-52)
    return -(share * np.log(share)).sum() / math.log(rank)


@pytest.mark.parametrize("rank", range(75, 101))
def test_entropy_of_every_rank_that_the_squares_may_decide(rank):
    # Zeros come out at some 1e-8 s_1 from W^T W: counted, 80 of 100 were 90, and the entropy 3 % low.
    rng = np.random.default_rng(rank)
    W = rng.standard_normal((100, rank)) @ rng.standard_normal((rank, 150))
    for turned in (W, W.T):
        assert mpfast.spectrum(turned, method="exact").metrics()["entropy"] == pytest.approx(entropy_of(W), rel=1e-6)


def test_entropy_of_rank_deficient_matrices():
    rng = np.random.default_rng(4)
    duplicated = rng.standard_normal((100, 120))
    duplicated[50:70] = duplicated[:20]
    centred = rng.standard_normal((512, 512)) + 5
    centred -= centred.mean(axis=1, keepdims=True)
    # Of long rows the zeros are largest: 2.4 times 2^-26 s_1.
    long = rng.standard_normal((300, 20_000)) + 3
    long -= long.mean(axis=1, keepdims=True)
    long[150:160] = long[:10]
    low = rng.standard_normal((600, 480)) @ rng.standard_normal((480, 700))
    bidiagonal = rng.standard_normal((200, 60)) @ rng.standard_normal((60, 250))
    graded = np.linalg.qr(rng.standard_normal((200, 200)))[0] * np.logspace(0, -7, 200)
    for W in (duplicated, centred, long, low, bidiagonal, graded):
        spectrum = mpfast.spectrum(W, method="exact")
        assert spectrum.metrics()["entropy"] == pytest.approx(entropy_of(W), rel=1e-6)
        again = mpfast.Spectrum.from_dict(spectrum.to_dict())
        assert again.metrics()["entropy"] == spectrum.metrics()["entropy"]


def entropy_of_rank(W, rank):
    """By NumPy's singular values of the stored matrix, the first ``rank`` of them: the others are rounding."""
    s = singular_values(W)[:rank]
    share = s**2 / (s**2).sum()
    entropy = -(share * np.log(share)).sum()
    return math.exp(entropy), entropy / math.log(rank) if rank > 1 else 0.0


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("shape", "kept"), [((400, 256), 1), ((400, 256), 20), ((2000, 384), 30), ((1100, 1200), 275)])
def test_equal_rows_have_finite_measures(shape, kept, dtype):
    """Their zeros come out at any size down to the smallest number there is."""
    for seed in range(3 if shape[0] < 1000 else 1):
        W = np.random.default_rng(seed).standard_normal(shape).astype(dtype)
        W[kept:] = W[0]
        rank, entropy = entropy_of_rank(W, kept)
        for method in ("auto", "exact"):
            measured = mpfast.spectrum(W, method=method).metrics()
            assert measured["entropy_rank"] == pytest.approx(rank, rel=1e-4)
            assert measured["entropy"] == pytest.approx(entropy, rel=1e-4, abs=1e-9)
            assert measured["hill_alpha_half"] == 1  # half of the values reach down to zeros


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("method", ["auto", "exact"])
@pytest.mark.parametrize("make", ["product", "tiled", "repeated rows", "repeated columns", "zero columns"])
def test_entropy_of_stored_matrices_counts_no_rounding(make, method):
    rng = np.random.default_rng(1)

    def noise(*shape):
        return rng.standard_normal(shape)

    W, rank = {
        "product": lambda: (noise(1100, 300) @ noise(300, 1200), 300),
        "tiled": lambda: (np.tile(noise(550, 1200), (2, 1)), 550),
        "repeated rows": lambda: (np.repeat(noise(265, 1200), 4, axis=0), 265),
        "repeated columns": lambda: (np.repeat(noise(1100, 300), 4, axis=1), 300),
        "zero columns": lambda: (np.pad(noise(1100, 600), ((0, 0), (0, 600))), 600),
    }[make]()
    for turned in (W.astype(np.float32), W.T.astype(np.float32)):
        measured = mpfast.spectrum(turned, method=method).metrics()
        wanted = entropy_of_rank(W.astype(np.float32), rank)
        assert (measured["entropy_rank"], measured["entropy"]) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("rank", [30, 150, 300])
def test_entropy_of_products_is_that_before_rounding(rank):
    rng = np.random.default_rng(rank)
    W = rng.standard_normal((600, rank)) @ rng.standard_normal((rank, 700))
    wanted = mpfast.spectrum(W).metrics()["entropy"]
    assert wanted == pytest.approx(entropy_of_rank(W, rank)[1], rel=1e-6)
    for dtype in ("float32", "float16"):
        assert mpfast.spectrum(W.astype(dtype)).metrics()["entropy"] == pytest.approx(wanted, rel=1e-3)


def test_the_small_end_of_a_square_bulk_counts_for_the_rank():
    """Some of its values lie below the rounding of 16-bit entries; the bulk reaches down to zero by itself."""
    W = np.random.default_rng(2).standard_normal((600, 600)).astype(np.float32)
    W = (W.view(np.uint32) & 0xFFFF0000).view(np.float32)
    known = mpfast.Spectrum.from_values(singular_values(W), W.shape, dtype="bfloat16").metrics()["entropy"]
    assert known == pytest.approx(mpfast.spectrum(W).metrics()["entropy"], rel=1e-9)


def test_a_spectrum_of_given_values_counts_them_to_their_rounding():
    values = np.concatenate([np.full(40, 1.0), np.full(10, 1e-9)])
    metrics = mpfast.Spectrum.from_values(values, (50, 60)).metrics()
    assert metrics["entropy"] == pytest.approx(math.log(40) / math.log(50), rel=1e-9)
