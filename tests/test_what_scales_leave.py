"""What scales of rows and columns leave uneven: how far it moves the fitted edge, and who is told of it."""

from __future__ import annotations

import math
import warnings
from statistics import NormalDist

import numpy as np
import pytest

import mpfast
from mpfast.spectra import SeparableLaw, Spectrum, spectrum_of_each, uneven_family
from mpfast.spectra.noise import NEGLIGIBLE, fit_shift

SHAPE = (120, 150)


def profile(side: int, spread: float) -> np.ndarray:
    """Log-normal variances, by quantiles, of geometric mean 1."""
    normal = NormalDist()
    return np.exp(spread * np.array([normal.inv_cdf((i + 0.5) / side) for i in range(side)]))


def edge_of_law(rows: np.ndarray, columns: np.ndarray) -> float:
    p = min(len(rows), len(columns))
    values = SeparableLaw(rows, columns).ppf((np.arange(p) + 0.5) / p)
    return Spectrum.from_values(values, (len(rows), len(columns))).edge.sigma_plus


@pytest.mark.parametrize("aspect", [1.0, 1.3, 4.0])
@pytest.mark.parametrize(("short", "long"), [(0.3, 0.0), (0.0, 0.3), (0.2, 0.2)])
def test_the_fitted_edge_moves_as_the_profile_says(aspect, short, long):
    """Against the fit to the exact law of such noise, within 0.015 of the variances of the logarithms."""
    p, q = 200, int(200 * aspect)
    rows, columns = profile(p, short), profile(q, long)
    moved = edge_of_law(rows, columns) / edge_of_law(np.ones(p), np.ones(q)) - 1
    assert fit_shift(rows, columns) == pytest.approx(moved, abs=0.015 * (short**2 + long**2))
    assert fit_shift(columns, rows) == fit_shift(rows, columns)


def unsettled() -> np.ndarray:
    """Scales so different that three rounds do not find them."""
    rng = np.random.default_rng(0)
    W = np.exp(3 * rng.standard_normal((SHAPE[0], 1))) * rng.standard_normal(SHAPE)
    W *= np.exp(3 * rng.standard_normal(SHAPE[1]))
    W[:, :3] *= 1e3
    return W


def test_the_error_holds_how_far_the_fit_has_moved():
    W = uneven_family("t3", (440, 1760), 70001, 2.0)
    exact, measured = (mpfast.spectrum(W, method=method, noise="auto") for method in ("exact", "lanczos"))
    assert exact.noise.settled
    assert exact.noise.left >= NEGLIGIBLE
    assert 0 < exact.noise.left_in_fit < exact.noise.left
    edge = exact.edge
    assert edge.sigma_plus_error == pytest.approx(exact.noise.left_in_fit * edge.sigma_plus, rel=1e-12)
    assert measured.edge.sigma_plus_error > measured.noise.left_in_fit * measured.edge.sigma_plus


def test_profiles_of_earlier_records_hold_all_that_is_left():
    found = mpfast.spectrum(uneven_family("t3", (440, 1760), 70001, 2.0), method="exact", noise="auto")
    record = found.to_dict()
    assert Spectrum.from_dict(record).noise.left_in_fit == found.noise.left_in_fit
    del record["noise"]["left_in_fit"]
    edge = Spectrum.from_dict(record).edge
    assert edge.sigma_plus_error == pytest.approx(found.noise.left * edge.sigma_plus, rel=1e-12)


@pytest.mark.parametrize("noise", ["uneven", "auto"])
def test_scales_that_do_not_settle_are_warned_of(noise):
    W = unsettled()
    with pytest.warns(mpfast.ConvergenceWarning, match=r"^spectrum\(\): .*did not settle.*move the edge by") as caught:
        found = mpfast.spectrum(W, noise=noise)
    assert len(caught) == 1
    left = f"{100 * found.noise.left:.1f} %"
    assert left in str(caught[0].message)
    assert any(left in text for text in found.edge.warnings)
    assert (found.noise.settled, found.edge.verdict) == (False, "poor")
    assert found.edge.sigma_plus_error >= found.noise.left * found.edge.sigma_plus


def test_whoever_takes_scales_out_warns_of_them():
    W = unsettled()
    with pytest.warns(mpfast.ConvergenceWarning, match=r"^svd\(\): .*did not settle"):
        mpfast.svd(W, 2, noise="uneven")
    with pytest.warns(mpfast.ConvergenceWarning, match=r"^spectrum_of_each\(\): 2 layers did not settle, .*W\[0\]"):
        spectrum_of_each(np.stack([W, W]), noise="auto")


def test_nobody_is_warned_of_scales_that_are_even_settled_or_given():
    W = unsettled()
    ones = np.ones(SHAPE[0]), np.ones(SHAPE[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error", mpfast.ConvergenceWarning)
        assert mpfast.spectrum(W).edge.unevenness > 1
        assert not mpfast.spectrum(W, noise=ones).noise.settled
        assert mpfast.spectrum(uneven_family("both", SHAPE, 0), noise="uneven").noise.settled


def test_an_even_profile_moves_nothing():
    assert fit_shift(np.ones(7), np.ones(9)) == 0.0
    assert math.isclose(fit_shift(np.full(7, 2.0), np.ones(9)), 0.0, abs_tol=1e-15)
