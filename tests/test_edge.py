"""Fitting a spectrum: estimators, counts, verdicts, warnings, bad options."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

import mpfast
from mpfast.spectra import fit_values, sigma_plus
from mpfast.spectra.distribution import Measure
from mpfast.spectra.edge import EdgeFit
from mpfast.spectra.probe_noise import expected_error, jackknife_error, likely_error
from mpfast.spectra.synthetic import family, low_rank

from .references import singular_values


def noise(shape, seed=0, variance=1.0):
    return math.sqrt(variance) * np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("estimator", ["bema", "median", "residual"])
@pytest.mark.parametrize("shape", [(300, 300), (200, 900), (900, 200)])
def test_estimators_find_the_variance_under_spikes(estimator, shape):
    W = noise(shape, variance=0.3) + low_rank(shape, np.linspace(40, 90, 6), np.random.default_rng(1))
    fit = mpfast.spectrum(W).fit(estimator)
    # Six spikes of 200 or 300 values shift the central ranks: BEMA and the median come out up to 4 % high.
    assert fit.variance == pytest.approx(0.3, rel=0.01 if estimator == "residual" else 0.04)
    assert fit.sigma_plus == pytest.approx(sigma_plus(fit.variance, shape))
    assert fit.estimator == estimator
    assert fit.spikes == fit.spikes_above_edge == 6
    assert fit.bulk_fraction == 1 - 6 / min(shape)
    assert fit.trace_ratio == pytest.approx(1, abs=0.04)
    assert fit.verdict in ("good", "fair")
    assert fit.law == mpfast.MarchenkoPastur(fit.variance, shape)


def test_exact_values_have_no_error_and_lanczos_values_do():
    W = noise((400, 500))
    assert mpfast.spectrum(W, method="exact").edge.sigma_plus_error == 0
    measured = mpfast.spectrum(W, method="lanczos").edge
    truth = mpfast.spectrum(W, method="exact").edge
    assert 0 < measured.sigma_plus_error < 0.01 * measured.sigma_plus
    assert abs(measured.sigma_plus - truth.sigma_plus) < 4 * measured.sigma_plus_error
    assert measured.ks >= measured.ks_floor > 0


@pytest.mark.parametrize("scale", [1e-150, 1e-20, 1.0, 1e20, 1e150])
def test_scaling_the_matrix_scales_the_fit(scale):
    W = noise((150, 260)) + low_rank((150, 260), np.array([60.0]), np.random.default_rng(1))
    base, scaled = mpfast.spectrum(W).edge, mpfast.spectrum(W * scale).edge
    assert scaled.sigma_plus == pytest.approx(base.sigma_plus * scale, rel=1e-9)
    assert (scaled.spikes, scaled.verdict) == (base.spikes, base.verdict)
    assert scaled.ks == pytest.approx(base.ks, abs=1e-9)


def test_transposing_the_matrix_changes_nothing():
    W = family("spikes40", (300, 700), 3)
    for method in ("exact", "lanczos"):
        a, b = mpfast.spectrum(W, method=method).edge, mpfast.spectrum(W.T, method=method).edge
        assert a.sigma_plus == pytest.approx(b.sigma_plus, rel=1e-10)
        assert a.spikes == b.spikes


def test_fit_options_reach_the_result():
    spectrum = mpfast.spectrum(noise((200, 300)))
    fit = spectrum.fit(alpha=0.1, beta=0.01)
    assert (fit.alpha, fit.beta) == (0.1, 0.01)
    assert fit.threshold > spectrum.edge.threshold
    assert spectrum.edge is spectrum.edge


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "mean"}, "estimator must be one of 'bema', 'bema-counted', 'median', 'residual', not 'mean'"),
        ({"alpha": 0.5}, "alpha must lie in"),
        ({"alpha": 0}, "alpha must lie in"),
        ({"beta": 1}, "beta must lie in"),
        ({"beta": math.nan}, "beta must lie in"),
        ({"compat": "2025"}, "compat must be None or 'berlyand2026'"),
        ({"compat": "berlyand2026", "estimator": "median"}, "knows only estimator='bema'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        mpfast.spectrum(noise((30, 40))).fit(**options)


def test_the_published_code_needs_all_values():
    with pytest.raises(ValueError, match="needs an exact spectrum"):
        mpfast.spectrum(noise((200, 300)), method="lanczos").fit(compat="berlyand2026")


def test_fit_values_takes_any_order_and_checks_their_number():
    values = singular_values(noise((80, 120)))
    shuffled = np.random.default_rng(0).permutation(values)
    assert fit_values(shuffled, (80, 120)) == fit_values(values, (120, 80)).__class__.from_dict(
        fit_values(values, (80, 120)).to_dict()
    )
    with pytest.raises(ValueError, match="expected 80 singular values"):
        fit_values(values[:-1], (80, 120))


def test_round_trip_through_json():
    fit = mpfast.spectrum(family("power_law", (300, 400), 1)).edge
    assert EdgeFit.from_dict(json.loads(json.dumps(fit.to_dict()))) == fit


class TestWarnings:
    def of(self, W, **options):
        return " | ".join(mpfast.spectrum(W, **options).edge.warnings)

    def test_none_on_clean_noise(self):
        assert self.of(noise((300, 400))) == ""

    def test_small(self):
        assert "only 30 singular values" in self.of(noise((30, 90)))

    def test_sparse(self):
        W = noise((300, 400))
        W[::2] = 0
        assert "50% of the singular values are zero" in self.of(W)

    def test_repeated_rows(self):
        W = noise((300, 400))
        W[10:20] = W[0]
        assert "3% of the singular values are zero, for rows or columns are zero, repeated" in self.of(W)

    def test_continuum(self):
        values = np.linspace(30, 200, 60)
        W = 0.3 * noise((300, 400)) + low_rank((300, 400), values, np.random.default_rng(2))
        fit = mpfast.spectrum(W).edge
        text = f"{fit.spikes_above_edge} singular values above sigma_plus (20%, counted), {fit.spikes} of them above"
        assert f"a continuum above the edge: {text}" in self.of(W)

    def test_both_counts_of_a_continuum_are_said(self):
        """They differ where a value lies between the edge and the threshold: 42 and 41 here."""
        fit = mpfast.spectrum(np.vstack([noise((150, 400))] * 2)).edge
        assert fit.spikes_above_edge > fit.spikes
        text = " ".join(fit.warnings)
        assert f"{fit.spikes_above_edge} singular values above sigma_plus" in text
        assert f"{fit.spikes} of them above the threshold" in text

    def test_not_marchenko_pastur(self):
        W = noise((300, 400)) * np.exp(2 * np.random.default_rng(4).standard_normal(400))
        text = self.of(W)
        assert "the bulk is not Marchenko-Pastur" in text
        assert "the noise is not homogeneous" in text

    def test_fused_parts(self):
        parts = [noise((200, 200), seed, variance) for seed, variance in ((0, 1.0), (1, 1.0), (2, 25.0))]
        assert "fused query, key and value" in self.of(np.vstack(parts))
        assert "fused" not in self.of(noise((600, 200)))


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (2, 2), (5, 3)])
def test_tiny_matrices(shape):
    fit = mpfast.spectrum(noise(shape)).edge
    assert np.isfinite(fit.sigma_plus)
    assert fit.sigma_plus >= 0
    assert 0 <= fit.spikes <= min(shape)
    assert "small" in fit.warnings[0]


@pytest.mark.parametrize("method", ["exact", "lanczos"])
def test_a_zero_matrix(method):
    spectrum = mpfast.spectrum(np.zeros((70, 90)), method=method)
    fit = spectrum.edge
    assert (fit.sigma_plus, fit.spikes, fit.verdict) == (0, 0, "poor")
    assert "zero" in fit.warnings[0]
    assert spectrum.metrics()["spectral_norm"] == 0


@pytest.mark.parametrize("method", ["exact", "lanczos"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("shape", [(200, 150), (600, 900)])
@pytest.mark.filterwarnings("ignore::mpfast.ConvergenceWarning")
def test_rounding_is_no_spectrum(shape, dtype, method):
    rng = np.random.default_rng(2)
    W = (rng.standard_normal((shape[0], 5)) @ rng.standard_normal((5, shape[1]))).astype(dtype)
    fit = mpfast.spectrum(W, method=method).edge
    assert (fit.spikes, fit.spikes_above_edge, len(fit.warnings)) == (5, 5, 1)
    assert "of rank 5 but for rounding: there is no noise to fit" in fit.warnings[0]
    assert len(mpfast.svd(W, until="mp_edge").s) == 5
    assert mpfast.lowrank.factor(W)[0].shape[1] == 5


def rounded_low_rank(rank, shape, dtype="float32"):
    rng = np.random.default_rng(rank)
    return (rng.standard_normal((shape[0], rank)) @ rng.standard_normal((rank, shape[1]))).astype(dtype)


def equal_rows(shape, kept, seed=0, dtype="float64"):
    """The rows after the first ``kept`` are all the first row, as those of tokens that were never trained."""
    W = noise(shape, seed)
    W[kept:] = W[0]
    return W.astype(dtype)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize(("shape", "kept"), [((400, 256), 1), ((400, 256), 20), ((2000, 384), 30), ((256, 400), 20)])
def test_rows_that_are_equal_have_the_rank_that_numpy_gives(shape, kept, scale, dtype):
    for seed in range(3):
        W = (scale * equal_rows(shape, kept, seed)).astype(dtype)
        fit = mpfast.spectrum(W).edge
        assert fit.spikes == fit.spikes_above_edge == kept == np.linalg.matrix_rank(W.astype(np.float64))
        assert fit.warnings[-1].startswith(f"of rank {kept} but for rounding")


@pytest.mark.parametrize("method", ["exact", "lanczos"])
def test_an_edge_at_the_level_of_rounding_is_known_to_be_no_more(method):
    """The noise is anything from zero to it: the error is all of it, whichever way the values were computed."""
    checkerboard = (np.indices((1060, 1200)).sum(0) % 2).astype(np.float32)
    zero_rows = noise((1100, 1200)).astype(np.float32)
    zero_rows[275:] = 0
    for W, rank in ((checkerboard, 2), (zero_rows, 275), (equal_rows((1100, 1200), 20), 20)):
        spectrum = mpfast.spectrum(W, method=method)
        assert spectrum.edge.sigma_plus_error == spectrum.edge.sigma_plus == spectrum.rounding
        assert 0 < spectrum.rounding < 1e-6 * spectrum.ritz[0]
        assert spectrum.edge.spikes == rank
        assert spectrum.edge.warnings[0].startswith(f"of rank {rank} but for rounding")
        assert spectrum.unmet_tolerance == ""


@pytest.mark.parametrize("method", ["exact", "lanczos"])
@pytest.mark.parametrize("kept", [1, 20])
def test_a_rank_that_a_run_has_found_whole_is_counted(kept, method):
    """Also where the basis is not three times as large: 63 values of the distribution were taken for spikes."""
    spectrum = mpfast.spectrum(equal_rows((400, 256), kept), method=method)
    assert (spectrum.edge.spikes, spectrum.edge.spikes_estimated) == (kept, False)
    assert spectrum.edge.sigma_plus == spectrum.rounding


@pytest.mark.parametrize("rank", [1, 30, 60])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rounded_entries_that_look_like_noise_are_rounding(rank, dtype):
    """The rounding of a product follows the law as well as any noise; its size tells."""
    for shape in ((600, 700), (700, 300)):
        fit = mpfast.spectrum(rounded_low_rank(rank, shape, dtype)).edge
        assert fit.warnings[0].startswith(f"of rank {rank} but for rounding")


@pytest.mark.parametrize(
    ("dtype", "share"), [("float64", 1e-7), ("float32", 1e-7), ("float32", 1e-5), ("float16", 1e-3)]
)
def test_noise_beside_a_low_rank_stays_a_spectrum(dtype, share):
    """What rounds to spacings of 2^-52, 2^-23 or 2^-10 adds at most .3 of these, in quadrature."""
    W = rounded_low_rank(30, (600, 700), "float64")
    size = share * math.sqrt((W**2).mean())
    edge = mpfast.spectrum((W + size * noise(W.shape)).astype(dtype)).edge
    assert edge.sigma_plus == pytest.approx(size * (math.sqrt(600) + math.sqrt(700)), rel=0.1)
    assert (edge.spikes, edge.sigma_plus_error) == (30, 0)


def test_noise_at_the_level_of_rounding_is_noise():
    W = np.random.default_rng(3).standard_normal((300, 400)).astype(np.float32)
    W[3, 5] = 1e12  # beside it, all others would be rounding
    assert mpfast.spectrum(W).edge.sigma_plus == pytest.approx(math.sqrt(300) + math.sqrt(400), rel=0.02)


@pytest.mark.parametrize("method", ["exact", "lanczos"])
def test_a_matrix_of_rank_one(method):
    rng = np.random.default_rng(1)
    spectrum = mpfast.spectrum(np.outer(rng.standard_normal(200), rng.standard_normal(300)), method=method)
    assert spectrum.edge.sigma_plus < 1e-3 * spectrum.fro_norm
    assert spectrum.edge.spikes_above_edge >= 1
    assert spectrum.metrics()["stable_rank"] == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("steps", [None, 12])
def test_one_probe_does_not_know_its_error(steps):
    assert mpfast.spectrum(noise((300, 400)), probes=1, steps=steps).edge.sigma_plus_error == math.inf


def test_the_published_code_says_what_it_cannot_fit():
    with pytest.raises(ValueError, match="no central values to fit among 1"):
        mpfast.spectrum(noise((1, 40))).fit(compat="berlyand2026")
    with pytest.raises(ValueError, match="a matrix that is not zero"):
        mpfast.spectrum(np.zeros((30, 40))).fit(compat="berlyand2026")


def measured(sigmas, settling):
    """A Lanczos spectrum whose fit, and those without one probe each, are such multiples of sqrt(q)."""

    def measure(level):
        return Measure(np.array([level]), np.array([1.0]))

    return mpfast.Spectrum(
        shape=(300, 400),
        dtype="float64",
        method="lanczos",
        fro_norm=math.sqrt(300.0),
        measure=measure(float(np.mean(sigmas))),
        probes=len(sigmas),
        replicates=tuple(map(measure, sigmas)),
        settling=settling,
    )


@pytest.mark.parametrize("probes", [4, 8, 32])
def test_the_error_bar_of_few_probes_is_that_of_students_law(probes):
    """A jackknife of b values, widened by what that law of b - 1 degrees asks for one or for two standard errors."""
    stats = pytest.importorskip("scipy.stats")
    sigmas = 1 + 0.01 * np.random.default_rng(probes).standard_normal(probes)
    deviations = sigmas - sigmas.mean()
    jackknife = math.sqrt((probes - 1) / probes * (deviations**2).sum())
    widened = jackknife_error(sigmas) / jackknife
    one, two = (stats.t.ppf(stats.norm.cdf(k), probes - 1) / k for k in (1, 2))
    assert one < widened < two


def test_what_is_known_of_noise_says_nothing_of_other_bulks():
    sigmas = 1 + 0.01 * np.random.default_rng(1).standard_normal(8)
    fit = measured(sigmas, 0.0).fit("median")
    assert fit.ks > 0.02
    assert fit.sigma_plus_error / fit.sigma_plus == pytest.approx(jackknife_error(sigmas) / sigmas.mean(), rel=1e-9)


@pytest.mark.parametrize("probes", [4, 8, 32])
@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0])
def test_what_is_known_of_probes_steadies_the_error_bar(probes, ratio):
    """It counts as three probes more: bars scatter less from run to run, and follow noise that is not the usual."""
    rng = np.random.default_rng(0)
    means = [rng.standard_normal(probes) * math.sqrt(probes) for _ in range(400)]  # the mean of each is of variance 1
    replicates = [(each.sum() - each) / (probes - 1) for each in means]
    alone = np.array([jackknife_error(list(each)) for each in replicates])
    known = np.array([jackknife_error(list(each), ratio) for each in replicates])
    assert known.std() / known.mean() < alone.std() / alone.mean()
    weight = 3 / (probes + 2)
    truth = math.sqrt(1 - weight + weight * ratio**2)
    assert np.sqrt((known**2).mean()) == pytest.approx(truth * math.sqrt((probes + 4) / (probes + 2)), rel=0.05)


@pytest.mark.parametrize("aspect", [1.0, 1.5, 4.0])
def test_probes_scatter_an_edge_as_expected(aspect):
    """The relative error of a noise bulk's edge, over 40 seeds: the less, the farther W is from square."""
    shape = (256, int(256 * aspect))
    W = noise(shape)
    edges = [mpfast.spectrum(W, method="lanczos", probes=8, seed=seed).edge.sigma_plus for seed in range(40)]
    assert np.std(edges) / np.mean(edges) == pytest.approx(expected_error(shape, 8), rel=0.35)
    assert expected_error(shape, 8) < likely_error(shape, 8) < 2 * expected_error(shape, 8)


@pytest.mark.parametrize("settling", [0.002, 0.05])
def test_the_error_bar_holds_what_a_finite_run_may_still_move(settling):
    """Half of what the last two steps changed, in quadrature with what the probes scatter."""
    sigmas = 1 + 0.01 * np.random.default_rng(1).standard_normal(8)
    still, moving = (measured(sigmas, move).fit("median") for move in (0.0, settling))
    extra = math.sqrt(moving.sigma_plus_error**2 - still.sigma_plus_error**2)
    assert extra == pytest.approx(0.5 * settling * moving.sigma_plus, rel=1e-9)
