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
