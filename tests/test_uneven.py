"""Scales of rows and columns: found, taken out, and without effect where there are none."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

import mpfast
from mpfast.spectra import NoiseProfile, uneven_family

from .references import singular_values

SHAPE = (300, 450)


def golden(kind):
    """The matrices of the golden values: the draws in this order."""
    rng = np.random.default_rng(7)
    m, n = SHAPE
    E = rng.standard_normal(SHAPE)
    x, y = np.exp(rng.standard_normal(m)), np.exp(rng.standard_normal(n))
    U = np.linalg.qr(rng.standard_normal((m, 5)))[0]
    V = np.linalg.qr(rng.standard_normal((n, 5)))[0]
    S = (U * np.array([6, 5, 4, 3, 2.0]) * (m * n) ** 0.25) @ V.T
    rows, columns = np.sqrt(x)[:, None], np.sqrt(y)
    return {
        "even": E,
        "signals": E + S,
        "columns": E * columns,
        "both": rows * E * columns,
        "all": rows * (E + S) * columns,
    }[kind]


@pytest.fixture(scope="module", params=["even", "signals", "columns", "both", "all"])
def case(request):
    return request.param, golden(request.param)


# Of a prototype that decomposes W anew in every round.
EVEN_FITS = {
    "even": (38.5479, 0, 0.0075),
    "signals": (38.8665, 5, 0.0088),
    "columns": (43.4184, 33, 0.0687),
    "both": (45.3211, 53, 0.1351),
    "all": (46.0355, 54, 0.1391),
}
UNEVEN_FITS = {
    "even": (38.5479, 38.6539, 0, 0.0075, 0),
    "signals": (38.8665, 38.9734, 5, 0.0088, 0),
    "columns": (39.2844, 39.3924, 0, 0.0063, 1),
    "both": (38.8192, 38.9260, 0, 0.0078, 2),
    "all": (39.1422, 39.2499, 5, 0.0074, 2),
}
VARIANCES = {
    "even": ((1, 1, 1), (1, 1, 1)),
    "signals": ((1, 1, 1), (1, 1, 1)),
    "columns": ((0.94136, 0.92685, 1.00704), (0.4366, 0.84275, 3.66938)),
    "both": ((0.64225, 1.20203, 5.25227), (0.42896, 0.81024, 3.59024)),
    "all": ((0.63904, 1.21767, 5.53339), (0.42899, 0.84128, 3.57686)),
}


def test_fits_of_even_and_uneven_noise(case):
    kind, W = case
    even = mpfast.spectrum(W).edge
    sigma_plus, spikes, ks = EVEN_FITS[kind]
    assert (even.sigma_plus, even.ks) == pytest.approx((sigma_plus, ks), rel=1e-4, abs=5e-5)
    assert even.spikes == spikes

    spectrum = mpfast.spectrum(W, noise="uneven")
    sigma_plus, threshold, spikes, ks, rounds = UNEVEN_FITS[kind]
    assert (spectrum.edge.sigma_plus, spectrum.edge.threshold) == pytest.approx((sigma_plus, threshold), rel=1e-4)
    assert spectrum.edge.ks == pytest.approx(ks, abs=5e-5)
    assert (spectrum.edge.spikes, spectrum.noise.rounds) == (spikes, rounds)
    rows, columns = VARIANCES[kind]
    assert spectrum.noise.row_scale[:3] ** 2 == pytest.approx(rows, rel=1e-4)
    assert spectrum.noise.col_scale[:3] ** 2 == pytest.approx(columns, rel=1e-4)


def test_spectrum_is_that_of_the_scaled_matrix(case):
    _, W = case
    found = mpfast.spectrum(W, noise="uneven")
    noise = found.noise
    scaled = W / noise.row_scale[:, None] / noise.col_scale
    assert found.values == pytest.approx(singular_values(scaled), rel=1e-10)
    assert found.fro_norm == pytest.approx(np.linalg.norm(scaled), rel=1e-12)
    assert np.log(noise.row_scale).mean() == pytest.approx(0, abs=1e-12)
    assert np.log(noise.col_scale).mean() == pytest.approx(0, abs=1e-12)
    assert (noise.model, noise.settled, noise.live) == ("uneven", True, SHAPE)
    # Of noise alone nearly everything is noise; what ends it in W is its separable law.
    assert found.edge.share == noise.share
    assert noise.share == pytest.approx(1 if found.edge.spikes == 0 else 0.84, abs=0.03)
    assert noise.edge_in_W == pytest.approx(noise.law.sigma_plus, rel=1e-12)
    assert 0 <= found.edge.strict <= found.edge.spikes


@pytest.mark.parametrize(
    ("family", "alone", "signals", "rounds"),
    [
        ("gauss", (0, 0, 0), (10, 10, 10), (0, 0, 0)),
        ("cols", (0, 0, 0), (10, 10, 10), (1, 1, 1)),
        ("rows", (0, 1, 0), (10, 10, 10), (1, 1, 1)),
        ("both", (0, 0, 0), (10, 10, 9), (2, 2, 2)),
        ("blocks", (0, 0, 0), (10, 10, 10), (1, 1, 1)),
        ("spread15", (0, 1, 0), (10, 10, 10), (1, 1, 1)),
        ("t3", (0, 0, 0), (10, 10, 10), (1, 1, 1)),
        ("outliers", (0, 1, 0), (10, 10, 10), (2, 2, 2)),
        ("spikes40", (37, 36, 37), (42, 41, 42), (0, 0, 0)),
        ("partly", (12, 12, 12), (21, 20, 21), (1, 1, 2)),
    ],
)
def test_signals_are_counted_whatever_the_scales(family, alone, signals, rounds):
    for seed in range(3):
        found = mpfast.spectrum(uneven_family(family, SHAPE, seed), noise="uneven")
        assert (found.edge.spikes, found.noise.rounds) == (alone[seed], rounds[seed])
        assert found.noise.settled
        found = mpfast.spectrum(uneven_family(family, SHAPE, seed, 2.0), noise="auto")
        assert (found.edge.spikes, found.noise.rounds) == (signals[seed], rounds[seed])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "alone", "signals"),
    [
        ("gauss", 1, 10), ("cols", 0, 10), ("rows", 1, 10), ("both", 0, 10), ("blocks", 0, 10), ("spread15", 0, 10),
        ("t3", 0, 10), ("outliers", 0, 10), ("spikes40", 39, 49), ("partly", 13, 22),
    ],
)  # fmt: skip
@pytest.mark.parametrize("method", ["exact", "lanczos"])
def test_signals_of_larger_matrices_are_counted(family, alone, signals, method):
    within = 0 if method == "exact" else 2 if family == "spikes40" else 1
    for strength, count in ((None, alone), (2.0, signals)):
        W = uneven_family(family, (768, 1024), 0, strength)
        found = mpfast.spectrum(W, noise="uneven", method=method)
        assert abs(found.edge.spikes - count) <= within
        assert found.edge.ks <= max(0.012, 1.5 * found.edge.ks_floor) or family == "spikes40"


def test_passes_alone_find_what_all_values_show():
    # 15 % spread: the fit of even noise is "good" and reports more than three times as many signals as there are.
    W = uneven_family("partly", (1100, 1100), 0).astype(np.float32)
    even, found = (mpfast.spectrum(W, method="lanczos", noise=noise) for noise in ("even", "auto"))
    exact = mpfast.spectrum(W, method="exact", noise="auto")
    assert found.method == "lanczos"
    assert found.noise.rounds == exact.noise.rounds == 1
    assert abs(found.edge.spikes - exact.edge.spikes) <= 1
    assert even.edge.spikes > 2 * exact.edge.spikes
    assert found.edge.sigma_plus == pytest.approx(exact.edge.sigma_plus, rel=0.01)
    assert found.edge.sigma_plus_error < 0.01 * found.edge.sigma_plus
    # Twelve passes a round, one to take signals away from the energies, and no run that is begun twice.
    assert found.passes <= 2 * 12 + 2 + 12


@pytest.mark.parametrize("seed", [0, 5])
@pytest.mark.parametrize(
    ("family", "shape", "strength", "least", "most"),
    [("cols", (2048, 2048), None, 0, 1), ("both", (1536, 2048), 1.3, 8, 10), ("partly", (1536, 1536), None, 13, 15)],
)
def test_signals_of_large_matrices_are_counted_by_passes(family, shape, strength, least, most, seed):
    W = uneven_family(family, shape, seed, strength).astype(np.float32)
    found = mpfast.spectrum(W, noise="auto")
    assert found.method == "lanczos"
    assert least <= found.edge.spikes <= most
    assert (found.edge.ks <= 0.01, found.edge.verdict, found.noise.settled) == (True, "good", True)
    assert found.passes <= 1.5 * 48


@pytest.mark.parametrize("seed", [20, 21])
def test_what_scales_leave_is_not_counted_in_large_matrices(seed):
    # One round leaves unevenness that moves the edge by .8 %, seven times the way to the threshold: 3 or 4 "signals".
    W = uneven_family("both", (1100, 1400), seed).astype(np.float32)
    found = mpfast.spectrum(W, noise="auto", method="lanczos", tol=2e-3)
    assert found.edge.spikes <= 1
    assert found.noise.left < 0.0062


def everything(spectrum):
    return json.dumps([spectrum.to_dict(), spectrum.edge.to_dict()])


@pytest.mark.parametrize("method", ["exact", "lanczos"])
def test_even_noise_is_measured_as_ever(method):
    W = uneven_family("gauss", SHAPE, 4).astype(np.float32)
    even, found = (mpfast.spectrum(W, method=method, noise=noise) for noise in ("even", "auto"))
    assert everything(found) == everything(even)
    assert (found.noise.model, found.noise.rounds, found.edge.warnings) == ("even", 0, ())


def test_strong_signals_alone_cost_one_pass():
    W = uneven_family("spikes40", (700, 900), 0).astype(np.float32)
    even, found = (mpfast.spectrum(W, method="lanczos", noise=noise) for noise in ("even", "auto"))
    assert even.edge.unevenness > 0.01
    assert any("noise='auto' tells which" in text for text in even.edge.warnings)
    assert not any("noise=" in text for text in found.edge.warnings)
    assert (found.noise.rounds, found.passes) == (0, even.passes + 1)
    assert found.noise.deflated > 20
    assert not found.noise.scaled
    assert (found.measure.nodes == even.measure.nodes).all()
    assert found.edge.sigma_plus == even.edge.sigma_plus


def test_gains_change_nothing():
    W = uneven_family("spikes40", SHAPE, 1)
    rng = np.random.default_rng(3)
    rows, columns = np.exp(0.5 * rng.standard_normal(SHAPE[0])), np.exp(0.5 * rng.standard_normal(SHAPE[1]))
    scaled = rows[:, None] * W * columns
    plain, folded = (mpfast.spectrum(matrix, noise="auto").edge.spikes for matrix in (W, scaled))
    assert abs(plain - folded) <= 2
    assert mpfast.spectrum(scaled).edge.spikes > plain + 10  # of even noise they would be signals


def test_transposing_changes_nothing():
    W = uneven_family("partly", SHAPE, 0)
    found, turned = (mpfast.spectrum(matrix, noise="auto") for matrix in (W, W.T))
    assert found.edge.spikes == turned.edge.spikes
    assert found.edge.sigma_plus == pytest.approx(turned.edge.sigma_plus, rel=1e-9)
    assert found.noise.row_scale == pytest.approx(turned.noise.col_scale, rel=1e-9)


@pytest.mark.parametrize("exponent", [-30, 1, 40])
def test_powers_of_two_scale_the_edge_to_the_bit(exponent):
    W = uneven_family("both", SHAPE, 0)
    found, scaled = (mpfast.spectrum(matrix, noise="uneven") for matrix in (W, W * 2.0**exponent))
    assert scaled.edge.sigma_plus == found.edge.sigma_plus * 2.0**exponent
    assert (scaled.noise.row_scale == found.noise.row_scale).all()


def test_permuted_rows_have_permuted_scales():
    W = uneven_family("both", SHAPE, 0)
    order = np.random.default_rng(0).permutation(SHAPE[0])
    found, permuted = (mpfast.spectrum(matrix, noise="uneven") for matrix in (W, W[order]))
    assert permuted.noise.row_scale == pytest.approx(found.noise.row_scale[order], rel=1e-9)
    assert permuted.edge.sigma_plus == pytest.approx(found.edge.sigma_plus, rel=1e-9)


# The second loses more rows than columns, so that the short side of what is live is the other one.
@pytest.mark.parametrize(("shape", "dead"), [(SHAPE, (7, 3)), ((300, 300), (9, 2)), ((300, 300), (2, 9))])
@pytest.mark.parametrize("method", ["exact", "lanczos"])
@pytest.mark.parametrize("transposed", [False, True])
def test_dead_rows_and_columns_are_left_out(shape, dead, method, transposed):
    W = uneven_family("both", shape, 0)
    padded = np.zeros((shape[0] + dead[0], shape[1] + dead[1]))
    padded[np.ix_(np.arange(shape[0]) + dead[0] - 1, np.arange(shape[1]) + 1)] = W
    padded[0, 3] = 1e-9
    W, padded = (W.T, padded.T) if transposed else (W, padded)
    found, among = (mpfast.spectrum(matrix, noise="uneven", method=method) for matrix in (W, padded))
    assert among.shape == among.edge.shape == among.noise.live == W.shape
    assert abs(among.edge.spikes - found.edge.spikes) <= (method == "lanczos")
    # Other sums of the same numbers; and of a run other probes.
    within = 1e-9 if method == "exact" else 3 * found.edge.sigma_plus_error / found.edge.sigma_plus
    assert among.edge.sigma_plus == pytest.approx(found.edge.sigma_plus, rel=within)
    assert among.noise.dead == sum(dead)
    assert (np.isinf(among.noise.row_scale).sum(), np.isinf(among.noise.col_scale).sum()) == (
        dead[::-1] if transposed else dead
    )
    assert any(f"{sum(dead)} rows or columns are zero" in text for text in among.edge.warnings)


@pytest.mark.parametrize("noise", ["uneven", "auto"])
def test_threads_change_no_bit(noise):
    W = uneven_family("both", (400, 500), 0, 2.0).astype(np.float32)
    one, three = (mpfast.spectrum(W, method="lanczos", noise=noise, threads=count) for count in (1, 3))
    assert everything(one) == everything(three)


def test_signals_in_few_columns_are_read_as_scale():
    # Ten directions in 22 columns: no method can tell them from columns of more noise, and the documentation says so.
    for seed in range(4):
        W = uneven_family("localcol", SHAPE, seed, 2.0)
        assert mpfast.spectrum(W, noise="uneven").edge.spikes < mpfast.spectrum(W).edge.spikes


def test_known_scales_are_taken_out():
    rng = np.random.default_rng(5)
    E = rng.standard_normal(SHAPE)
    rows, columns = np.exp(rng.standard_normal(SHAPE[0])), np.exp(rng.standard_normal(SHAPE[1]))
    found = mpfast.spectrum(rows[:, None] * E * columns, noise=(rows, columns))
    # Both scales are brought to a geometric mean of 1: the scaled matrix is E but for a factor.
    unit = math.exp(np.log(rows).mean() + np.log(columns).mean())
    assert found.values == pytest.approx(unit * singular_values(E), rel=1e-9)
    assert (found.noise.model, found.noise.rounds, found.noise.settled) == ("known", 0, True)
    assert found.noise.unevenness > 1
    assert found.edge.unevenness == found.noise.unevenness


def test_known_scales_of_wrong_values_may_leave_something():
    W = uneven_family("cols", SHAPE, 0)
    found = mpfast.spectrum(W, noise=(np.ones(SHAPE[0]), np.ones(SHAPE[1])))
    assert not found.noise.settled
    assert found.edge.verdict == "poor"
    assert any("do not make the noise even" in text for text in found.edge.warnings)
    assert found.edge.sigma_plus_error >= found.noise.left * found.edge.sigma_plus > 0


@pytest.mark.parametrize(
    "noise", ["odd", None, 3, (np.ones(300),), (np.ones(300), np.ones(300)), (np.zeros(300), np.ones(450))]
)
def test_what_is_no_model_of_noise_is_refused(noise):
    with pytest.raises(ValueError, match="noise"):
        mpfast.spectrum(np.ones(SHAPE), noise=noise)


@pytest.mark.parametrize(
    ("scale", "error", "reason"),
    [
        ("a", TypeError, "array of real numbers"),
        (np.ones(300) * 1j, TypeError, "array of real numbers"),
        (np.geomspace(1e-200, 1e200, 300), ValueError, "a square is no float64"),
    ],
)
def test_scales_that_are_no_variances_are_refused(scale, error, reason):
    with pytest.raises(error, match=rf"spectrum\(\): noise .*{reason}"):
        mpfast.spectrum(np.ones(SHAPE), noise=(scale, np.ones(450)))


def test_profile_survives_json():
    W = uneven_family("both", SHAPE, 0)
    W[4] = 0
    found = mpfast.spectrum(W, noise="uneven")
    again = mpfast.Spectrum.from_dict(json.loads(json.dumps(found.to_dict())))
    assert everything(again) == everything(found)
    assert isinstance(again.noise, NoiseProfile)
    assert np.isinf(again.noise.row_scale[4])


def test_spectra_of_the_first_schema_have_no_profile():
    record = mpfast.spectrum(uneven_family("gauss", SHAPE, 0)).to_dict()
    del record["noise"]
    assert mpfast.Spectrum.from_dict({**record, "schema": 1}).noise is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", "odd"),
        ("row_scale", [0.0]),
        ("row_scale", [None]),
        ("col_scale", [1.0] * 449),
        ("settled", 1),
        ("other", 1),
        ("rounds", -1),
    ],
)
def test_damaged_profiles_are_refused(field, value):
    record = mpfast.spectrum(uneven_family("gauss", SHAPE, 0)).to_dict()
    record["noise"][field] = value
    with pytest.raises(ValueError, match=field):
        mpfast.Spectrum.from_dict(record)


@pytest.mark.parametrize(
    "matrix", [np.zeros((70, 80)), np.ones((70, 80)), np.eye(80), np.outer(np.arange(1.0, 71), np.arange(1.0, 81))]
)
@pytest.mark.parametrize("noise", ["even", "auto", "uneven"])
def test_matrices_without_noise_have_no_scales_to_find(matrix, noise):
    found = mpfast.spectrum(matrix, noise=noise)
    assert found.noise is None or not found.noise.scaled
    assert found.edge.spikes == mpfast.spectrum(matrix).edge.spikes


def test_variances_beyond_float64_are_said():
    with pytest.raises(ValueError, match="is no float64"):
        mpfast.spectrum(np.diag([1e200, 1.0, 1.0]), noise="uneven")
    # Its values are known all the same, as ever.
    assert mpfast.spectrum(np.diag([1e200, 1.0, 1.0])).values[0] == pytest.approx(1e200)


@pytest.mark.parametrize("noise", ["even", "auto"])
def test_squares_whose_sum_is_beyond_float64_are_said(noise):
    W = 9e151 * uneven_family("cols", SHAPE, 0)
    with pytest.raises(ValueError, match="the sum of all squares is no float64"):
        _ = mpfast.spectrum(W, noise=noise).edge


def test_known_scales_bring_any_matrix_into_range():
    W = uneven_family("gauss", SHAPE, 0)
    rows = np.repeat([1e60, 1e-60], 150)
    found = mpfast.spectrum(rows[:, None] * W, noise=(rows, np.ones(450)))
    assert found.edge.sigma_plus == pytest.approx(mpfast.spectrum(W).edge.sigma_plus)


def test_single_huge_entries_are_not_described_by_scales():
    W = uneven_family("gauss", SHAPE, 0)
    W[5, 7] = 1e4
    edge = mpfast.spectrum(W, noise="auto").edge
    assert edge.share > 100
    assert any("times the energy of W" in text for text in edge.warnings)
    for family in ("cols", "both", "t3", "outliers"):
        edge = mpfast.spectrum(uneven_family(family, SHAPE, 0), noise="auto").edge
        assert not any("times the energy of W" in text for text in edge.warnings)


def test_few_values_do_not_tell_scales():
    W = uneven_family("cols", SHAPE, 0)[:63, :200]
    even, auto = (mpfast.spectrum(W, noise=noise).edge for noise in ("even", "auto"))
    assert auto == even
    assert any("63 singular values are too few to tell" in text for text in auto.warnings)
    assert mpfast.spectrum(W, noise="uneven").noise.scaled


def test_counting_without_the_signals_takes_their_bias_out():
    W = uneven_family("spikes40", SHAPE, 0)
    found = mpfast.spectrum(W)
    largest_noise = singular_values(uneven_family("gauss", SHAPE, 0))[0]
    plain, counted = found.fit(), found.fit("bema-counted")
    assert plain.sigma_plus > 1.05 * largest_noise
    assert counted.sigma_plus == pytest.approx(largest_noise, rel=0.02)
    assert counted.spikes >= plain.spikes
    assert counted.ks < plain.ks
    # Where nothing is counted nothing changes.
    gauss = mpfast.spectrum(uneven_family("gauss", SHAPE, 0))
    assert gauss.fit("bema-counted").sigma_plus == gauss.edge.sigma_plus
    measured = mpfast.spectrum(W, method="lanczos")
    assert measured.fit("bema-counted").sigma_plus == pytest.approx(counted.sigma_plus, rel=0.01)


def test_values_below_the_lower_edge_are_counted():
    values = mpfast.MarchenkoPastur(1.0, (200, 800)).ppf((np.arange(200) + 0.5) / 200)
    values[:3] = [1.0, 2.0, 3.0]
    fit = mpfast.spectra.fit_values(values, (200, 800))
    assert fit.sigma_minus == pytest.approx(math.sqrt(fit.variance) * (800**0.5 - 200**0.5))
    assert fit.below_edge == 3


def test_entries_that_nobody_sees_have_no_energies():
    linalg = pytest.importorskip("scipy.sparse.linalg")
    W = uneven_family("cols", SHAPE, 0)
    operator = linalg.aslinearoperator(W)
    for noise in ("even", "auto"):
        assert mpfast.spectrum(operator, noise=noise).noise is None
    assert mpfast.spectrum(operator).edge.unevenness is None
    with pytest.raises(ValueError, match="nobody sees the entries"):
        mpfast.spectrum(operator, noise="uneven")
    scales = mpfast.spectrum(W, noise="uneven").noise
    known = mpfast.spectrum(operator, noise=(scales.row_scale, scales.col_scale))
    assert (known.edge.spikes, known.noise.left, known.noise.settled) == (0, None, False)


@pytest.mark.parametrize("transposed", [False, True])
def test_triplets_of_the_scaled_matrix_approximate_the_signals(transposed):
    W = golden("all")
    W[2] = 0
    if transposed:
        W = W.T
    found = mpfast.svd(W, until="mp_edge", noise="uneven")
    noise = found.noise
    assert len(found.s) == found.edge.spikes_above_edge == 5
    rows, columns = (np.where(np.isfinite(scale), scale, 0.0) for scale in (noise.row_scale, noise.col_scale))
    scaled = W / noise.row_scale[:, None] / noise.col_scale
    assert found.s == pytest.approx(singular_values(scaled)[:5], rel=1e-5)
    # What is left is noise in which the scaled edge is the largest value, but for its fluctuation.
    rest = W - rows[:, None] * (found.U * found.s) @ found.Vh * columns
    assert singular_values(rest / noise.row_scale[:, None] / noise.col_scale)[0] < 1.02 * found.edge.sigma_plus
    assert mpfast.svd(W, 3, noise="uneven").s == pytest.approx(found.s[:3], rel=1e-5)


def test_triplets_of_even_noise_have_no_scales():
    W = golden("signals")
    plain, found = mpfast.svd(W, until="mp_edge"), mpfast.svd(W, until="mp_edge", noise="auto")
    assert plain.noise is None
    assert (plain.s == found.s).all()
