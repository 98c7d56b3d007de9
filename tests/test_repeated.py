"""Matrices with few distinct singular values, where a block of probes sees each at most as often as it is wide."""

from __future__ import annotations

import numpy as np
import pytest

import mpfast
from mpfast.spectra.repeated import atoms_of, closeness


def orthonormal(rng, rows, columns):
    basis = np.linalg.qr(rng.standard_normal((max(rows, columns), min(rows, columns))))[0]
    return basis if rows >= columns else basis.T


def with_values(rng, values):
    p = len(values)
    return orthonormal(rng, p, p) * values @ orthonormal(rng, p, p)


def cosines(p):
    return np.cos(2 * np.pi * np.outer(np.arange(p), np.arange(2 * p)) / (2 * p))


def bfloat16(W):
    return (W.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)


# Every family with the number of rows it is tried at: p from 1025 on, where `auto` estimates.
FAMILIES = {
    "orthogonal": lambda rng: orthonormal(rng, 1030, 2060),
    "tall orthogonal": lambda rng: orthonormal(rng, 2000, 1100),
    "rows of zeros": lambda rng: np.pad(orthonormal(rng, 1040, 1300), ((0, 60), (0, 0))),
    "permutation": lambda rng: np.eye(1100)[rng.permutation(1100)],
    "identity": lambda rng: np.eye(1050, 1600),
    "two values": lambda rng: with_values(rng, np.repeat([1.0, 0.5], 550)),
    "two values, uneven": lambda rng: with_values(rng, np.repeat([1.0, 0.1], [110, 990])),
    "half of them zero": lambda rng: orthonormal(rng, 1100, 550) @ orthonormal(rng, 550, 1100),
    "five values": lambda rng: with_values(rng, np.repeat([1.0, 0.8, 0.5, 0.3, 0.1], 220)),
    "cosines": lambda rng: cosines(1100),
    "equal blocks": lambda rng: np.kron(np.eye(220), rng.standard_normal((5, 8))),
    "many equal blocks": lambda rng: np.kron(np.eye(55), rng.standard_normal((20, 30))),
    "orthogonal and a spike": lambda rng: (
        orthonormal(rng, 1100, 1500) + 3 * np.outer(orthonormal(rng, 1100, 1), orthonormal(rng, 1500, 1))
    ),
    "orthogonal and a mean": lambda rng: orthonormal(rng, 1100, 1100) + 1.0,
    "ones and the identity": lambda rng: np.ones((1100, 1200)) + np.eye(1100, 1200),
    "two values and a dominant spike": lambda rng: (
        with_values(rng, np.repeat([1.0, 0.5], 550))
        + 1e4 * np.outer(orthonormal(rng, 1100, 1), orthonormal(rng, 1100, 1))
    ),
    "bfloat16 orthogonal": lambda rng: bfloat16(orthonormal(rng, 1100, 1500)),
    "identity and a little noise": lambda rng: np.eye(1100, 1500) + 2e-5 * rng.standard_normal((1100, 1500)),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_default_call_is_right(name, dtype, recwarn):
    """As the full decomposition, within three of its own errors or 1e-6; ranks and the median within 1 %."""
    W = FAMILIES[name](np.random.default_rng(7)).astype(dtype)
    found, exact = mpfast.spectrum(W), mpfast.spectrum(W, method="exact")
    error = abs(found.edge.sigma_plus - exact.edge.sigma_plus)
    assert error <= max(3 * found.edge.sigma_plus_error, 1e-6 * exact.edge.sigma_plus)
    assert found.edge.spikes == exact.edge.spikes
    assert found.edge.spikes_above_edge == exact.edge.spikes_above_edge
    assert float(found.quantile(0.5)) == pytest.approx(float(exact.quantile(0.5)), rel=0.01)
    for measure in ("entropy_rank", "stable_rank", "nuclear_rank"):
        assert found.metrics()[measure] == pytest.approx(exact.metrics()[measure], rel=0.01)
    assert not [w for w in recwarn if issubclass(w.category, mpfast.ConvergenceWarning)]


@pytest.mark.filterwarnings("ignore::mpfast.ConvergenceWarning")
@pytest.mark.parametrize("name", FAMILIES)
def test_an_estimate_carries_an_error_that_covers(name):
    """Lanczos alone: the multiplicities are a sample's, and the error bar says so (five of them: one in 10^6).

    Where the run was too short for all distinct values the result says that.
    """
    W = FAMILIES[name](np.random.default_rng(8)).astype(np.float32)
    found, exact = mpfast.spectrum(W, method="lanczos"), mpfast.spectrum(W, method="exact")
    error = abs(found.edge.sigma_plus - exact.edge.sigma_plus)
    covered = error <= max(5 * found.edge.sigma_plus_error, 1e-6 * exact.edge.sigma_plus)
    assert covered or "not all of the distinct ones were found" in found.unmet_tolerance


@pytest.mark.parametrize("name", ["orthogonal", "rows of zeros", "two values, uneven", "half of them zero", "cosines"])
def test_number_and_trace_tell_two_multiplicities(name):
    """No estimate is left where two values have a known number and a known sum of squares."""
    W = FAMILIES[name](np.random.default_rng(9)).astype(np.float32)
    found = mpfast.spectrum(W, method="lanczos")
    exact = np.linalg.svd(W.astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(found.values, exact, atol=3e-6 * exact[0])
    assert found.edge.sigma_plus_error == 0


def test_a_noise_bulk_shows_no_equal_values():
    rng = np.random.default_rng(3)
    for shape in ((1100, 1100), (1100, 30000)):
        run = mpfast.spectrum(rng.standard_normal(shape, dtype=np.float32), method="lanczos")
        theta = np.sort(run.ritz**2)[::-1]
        assert closeness([(theta, theta, np.ones((16, len(theta))))]) > 1e-2


def test_masses_are_those_of_the_probes():
    """Three values; each probe's mass on each, and ghosts of no mass between them do not count."""
    theta = np.array([4.0, 4.0, 2.0, 1.7, 1.0, 1.0])
    weight = np.array([[30.0, 10, 20, 1e-9, 25, 15], [20.0, 20, 30, 0, 20, 10]])
    atoms = atoms_of([(theta, np.array([0.0, 0, 0, 0.5, 0, 0]), weight, 3, True)])
    np.testing.assert_allclose(atoms.theta, [4, 2, 1])
    np.testing.assert_allclose(atoms.weight, [[40, 20, 40], [40, 30, 30]])
    measure = atoms.measure(100, 2.0)
    assert measure.weights.sum() == pytest.approx(1)
    assert float(measure.quantile(0.9)) == 4.0
    assert float(measure.cdf(3.9)) == pytest.approx(0.6, abs=0.02)
    assert atoms.measure(100, 1.0, dropped=1).nodes.tolist().count(1.0) == 40


def second_differences(n):
    return 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)


def first_differences(n):
    return np.eye(n) - np.roll(np.eye(n), 1, axis=1)


def permuted(W, rng):
    return W[rng.permutation(len(W))][:, rng.permutation(len(W))]


def rotated(W, rng):
    return orthonormal(rng, *W.shape) @ W @ orthonormal(rng, *W.shape)


@pytest.mark.parametrize("dress", [lambda W, rng: W, permuted, rotated], ids=["plain", "permuted", "rotated"])
@pytest.mark.parametrize("make", [second_differences, first_differences])
def test_eigenvalues_that_lie_closer_than_ritz_values_converge(make, dress):
    """At the ends of a Toeplitz spectrum a Ritz value stands for several, and has the mass of all of them.

    The edge is unbiased: of ten runs with other probes none is four errors off, nor the mean one and a half.
    """
    W = dress(make(1200), np.random.default_rng(7)).astype(np.float32)
    edge = mpfast.spectrum(W, method="exact").edge.sigma_plus
    found = [mpfast.spectrum(W, method="lanczos", seed=seed).edge for seed in range(10)]
    z = np.array([(fit.sigma_plus - edge) / fit.sigma_plus_error for fit in found])
    assert np.abs(z).max() < 4
    assert abs(z.mean()) < 1.5
