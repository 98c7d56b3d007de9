"""Published numbers: the examples of arXiv 2606.02608 and of the sources it rests on, to the digits given."""

from __future__ import annotations

import math

import numpy as np
import pytest

import mpfast
from mpfast import MarchenkoPastur, shrink
from mpfast.spectra import berlyand2026, fit_values, metrics, sigma_plus, tracy_widom_threshold
from mpfast.spectra.measured import Spectrum

from .references import singular_values


def deterministic_plus_random(seed: int, N: int = 1000) -> np.ndarray:
    """The paper's "R + S" example: unit noise plus a deterministic matrix whose values reach 5.787e5."""
    i = np.arange(1, N + 1)[:, None]
    j = np.arange(1, N + 1)[None, :]
    S = np.tan(np.pi / 2 + 1 / (j + 1)) + np.cos(i) * np.log(i + j + 1) + np.sin(j) * np.cos(i / j)
    return S + np.random.default_rng(seed).standard_normal((N, N))


def spiked(m: int, n: int, seed: int, theta: tuple[float, ...]) -> np.ndarray:
    rng = np.random.default_rng(seed)
    W = rng.standard_normal((m, n)) / math.sqrt(max(m, n))
    if theta:
        U = np.linalg.qr(rng.standard_normal((m, len(theta))))[0]
        V = np.linalg.qr(rng.standard_normal((n, len(theta))))[0]
        W = W + (U * np.array(theta)) @ V.T
    return W


def bema_with_ranks_from_zero(values: np.ndarray, shape: tuple[int, int], alpha: float = 0.25) -> float:
    """Variance by the published convention: quantiles at i/p instead of (i + 1/2)/p."""
    return berlyand2026.fit(values, shape, alpha, 0.1).variance


@pytest.mark.parametrize(
    ("g", "quantiles"),
    [
        (1.0, [0.02472498, 0.15625253, 0.65277594, 1.61139969, 2.59457121]),
        (0.5, [0.20888989, 0.39825377, 0.83046588, 1.48592161, 2.09269484]),
        (0.25, [0.39788076, 0.57662855, 0.91600407, 1.36548068, 1.75142283]),
    ],
)
def test_quantiles_of_the_marchenko_pastur_law(g, quantiles):
    law = MarchenkoPastur(1.0, (int(400 * g), 400)).eigenvalues()
    np.testing.assert_allclose(law.ppf([0.1, 0.25, 0.5, 0.75, 0.9]), quantiles, atol=5.1e-9)


@pytest.mark.parametrize(
    ("g", "ratio"),
    [(1, 2.117), (0.75, 1.759), (0.5, 1.388), (1 / 3, 1.124), (0.25, 0.983), (0.1, 0.694), (0.05, 0.571)],
)
def test_size_of_the_published_slip_of_precedence(g, ratio):
    """``**4/3`` for ``**(4/3)`` multiplies the Tracy-Widom term by this much."""
    q = 60_000
    shape = (round(g * q), q)
    edge_level = sigma_plus(1.0, shape)
    published = berlyand2026.published_threshold(1.0, shape, 0.1) ** 2 - edge_level**2
    correct = tracy_widom_threshold(1.0, shape, 0.1) ** 2 - edge_level**2
    # The published code's quantile at .9 is 4e-5 off as well.
    assert published / correct == pytest.approx(ratio, abs=7e-4)


@pytest.mark.parametrize(
    ("shape", "ratio"),
    [
        ((768, 768), 0.9817),
        ((768, 2304), 0.9935),
        ((768, 3072), 0.9949),
        ((4096, 4096), 0.9940),
        ((4096, 14336), 0.9981),
    ],
)
def test_published_threshold_lies_below_the_edge(shape, ratio):
    threshold = berlyand2026.published_threshold(1.0, shape, 0.8)
    assert threshold / sigma_plus(1.0, shape) == pytest.approx(ratio, abs=5.1e-5)


BETAS = (0.05, 0.5, 0.8, 0.95)
R_PLUS_S = {
    0: {
        "inside": [4.05, 4.22, 4.52, 5.29, 5.40, 7.09],
        "v": 1.02459,
        "correct": [4.1236, 4.0656, 4.0394, 4.0162],
        "published": [4.1519, 4.0290, 3.9736, 3.9245],
        "spikes": 10,
    },
    1: {
        "inside": [4.26, 4.66, 5.49, 5.70, 7.04],
        "v": 1.01846,
        "correct": [4.0990, 4.0413, 4.0152, 3.9922],
        "published": [4.1270, 4.0049, 3.9498, 3.9011],
        "spikes": 10,
    },
    2: {"inside": [4.10, 4.31, 4.48, 5.24, 5.43, 7.02], "v": 1.02162, "spikes": 11},
}


@pytest.fixture(scope="module")
def r_plus_s():
    spectra = {}

    def spectrum_of(seed: int) -> Spectrum:
        if seed not in spectra:
            spectra[seed] = mpfast.spectrum(deterministic_plus_random(seed), method="exact")
        return spectra[seed]

    return spectrum_of


@pytest.mark.parametrize("seed", R_PLUS_S)
def test_r_plus_s_example(seed, r_plus_s):
    """Values from 1e-3 to 5.8e5: a Gram matrix in single precision, or a careless one in double, loses the bulk."""
    golden = R_PLUS_S[seed]
    spectrum = r_plus_s(seed)
    eigenvalues = np.sort(spectrum.values**2 / 1000)
    assert spectrum.values[0] == pytest.approx(5.787e5, abs=50)
    inside = eigenvalues[(eigenvalues > 4) & (eigenvalues < 8)]
    np.testing.assert_allclose(inside, golden["inside"], atol=5.1e-3)
    v = bema_with_ranks_from_zero(spectrum.values, (1000, 1000))
    assert v == pytest.approx(golden["v"], abs=5.1e-6)
    for beta, level in zip(BETAS, golden.get("correct", ()), strict=False):
        assert tracy_widom_threshold(v, (1000, 1000), beta) ** 2 / 1000 == pytest.approx(level, abs=5.1e-5)
    for beta, level in zip(BETAS, golden.get("published", ()), strict=False):
        fit = spectrum.fit(beta=beta, compat="berlyand2026")
        assert fit.threshold**2 / 1000 == pytest.approx(level, abs=5.1e-5)
    assert spectrum.fit(beta=0.1).spikes == golden["spikes"]


def test_r_plus_s_small_values_survive(r_plus_s):
    spectrum = r_plus_s(0)
    reference = singular_values(deterministic_plus_random(0))
    np.testing.assert_allclose(spectrum.values, reference, rtol=0, atol=1e-10 * reference[0])
    bulk = reference < 100
    np.testing.assert_allclose(spectrum.values[bulk], reference[bulk], atol=1e-5)


def test_published_alpha_curve(r_plus_s):
    """Edge of R + S, seed 1, with the published threshold at beta = 1/2 for three windows."""
    for alpha, level in ((0.05, 4.0287), (0.25, 4.0049), (0.45, 3.9918)):
        fit = r_plus_s(1).fit(alpha=alpha, beta=0.5, compat="berlyand2026")
        assert fit.threshold**2 / 1000 == pytest.approx(level, abs=5.1e-5)


# (m, n, seed, theta), (q v, sigma_+, error, bulk, K, mass, Hill(20), nuclear, entropy and stable rank),
# (threshold, K) at beta = .1, (published threshold, K) at beta = .8
SPIKED = [
    (
        (256, 256, 1, ()),
        (0.998248, 1.998247, 0.007065, 1, 0, 0, 7.24357, 183.811, 154.591, 65.1001),
        (2.005262, 0),
        (1.921323, 2),
    ),
    (
        (256, 1024, 1, ()),
        (0.999779, 1.499835, 0.007622, 1, 0, 0, 13.05224, 239.728, 225.907, 114.4151),
        (1.503026, 0),
        (1.483823, 1),
    ),
    (
        (1024, 256, 1, ()),
        (1.000040, 1.500030, 0.009703, 1, 0, 0, 11.66108, 239.665, 225.814, 116.3175),
        (1.503222, 0),
        (1.484016, 0),
    ),
    (
        (256, 1024, 2, (6, 4, 3, 2, 1, 0.5)),
        (1.018292, 1.513657, 0.007672, 0.980469, 5, 0.222036, 3.18748, 209.889, 150.455, 8.7806),
        (1.516878, 5),
        (1.497498, 5),
    ),
    (
        (768, 256, 3, (5, 3, 2)),
        (1.014948, 1.589096, 0.007975, 0.988281, 3, 0.142223, 3.84160, 216.659, 171.153, 11.1955),
        (1.592871, 3),
        (1.567402, 3),
    ),
    (
        (300, 300, 4, (8, 5, 2)),
        (1.013424, 2.013379, 0.004448, 0.99, 3, 0.254913, 3.42912, 180.381, 103.558, 5.9031),
        (2.019739, 3),
        (1.943788, 5),
    ),
]


@pytest.mark.parametrize(("recipe", "block", "correct", "published"), SPIKED)
def test_spiked_table(recipe, block, correct, published):
    m, n, seed, theta = recipe
    q = max(m, n)
    qv, sigma, error, bulk, spikes, mass, hill, nuclear, entropy, stable = block
    spectrum = mpfast.spectrum(spiked(m, n, seed, theta), method="exact")
    fixed = berlyand2026.fit(spectrum.values, (m, n), 0.25, 0.1, fixed_cdf=True)
    assert q * fixed.variance == pytest.approx(qv, abs=5.1e-7)
    edge_level = sigma_plus(fixed.variance, (m, n))
    assert edge_level == pytest.approx(sigma, abs=5.1e-7)
    assert fixed.error == pytest.approx(error, abs=5.1e-7)

    values = spectrum.values
    above = values > edge_level  # the table's block counts from the plain edge
    assert 1 - above.mean() == pytest.approx(bulk, abs=5.1e-7)
    assert above.sum() == spikes
    measured = spectrum.metrics()
    assert (values[above] ** 2).sum() / (values**2).sum() == pytest.approx(mass, abs=5.1e-7)
    assert measured["hill_alpha"] == pytest.approx(hill, abs=5.1e-6)
    assert measured["nuclear_rank"] == pytest.approx(nuclear, abs=5.1e-4)
    assert measured["entropy_rank"] == pytest.approx(entropy, abs=5.1e-4)
    assert measured["stable_rank"] == pytest.approx(stable, abs=5.1e-5)
    assert spectrum.edge.spikes == spikes

    threshold, count = correct
    level = tracy_widom_threshold(fixed.variance, (m, n), 0.1)
    assert level == pytest.approx(threshold, abs=5.1e-7)
    assert np.count_nonzero(values > level) == count
    fit = spectrum.fit(beta=0.8, compat="berlyand2026")
    assert fit.threshold == pytest.approx(published[0], abs=5.1e-7)
    assert fit.spikes == published[1]
    assert fit.sigma_plus == pytest.approx(sigma, abs=5.1e-7)


def test_mid_point_ranks_remove_the_bias_of_the_published_ones():
    """256 x 1024: ranks from zero make the variance .32 % too large; mid-points do not."""
    published, ours = [], []
    for seed in range(20):
        values = singular_values(np.random.default_rng(seed).standard_normal((256, 1024)))
        published.append(bema_with_ranks_from_zero(values, (256, 1024)))
        ours.append(fit_values(values, (256, 1024)).variance)
    assert np.mean(published) - np.mean(ours) == pytest.approx(0.0032, abs=2e-4)
    assert np.mean(ours) == pytest.approx(1, abs=3 * 0.0030 / math.sqrt(20))


def test_shrinkage_of_the_spiked_example():
    m, n, seed, theta = SPIKED[3][0]
    values = singular_values(spiked(m, n, seed, theta))
    np.testing.assert_allclose(values[:5], [6.04439, 4.10746, 3.19419, 2.27918, 1.55734], atol=5.1e-6)
    # The published digits belong to the true variance 1/n, not to the fitted one.
    shrunk = shrink(values[:5], 1 / n, (m, n), loss="operator")
    np.testing.assert_allclose(shrunk, [5.9395, 3.9503, 2.9874, 1.9698, 0.9468], atol=5.1e-5)


def test_square_spike_map():
    """Population value theta + g0 / theta of a square matrix with entries of variance g0 / N."""
    N, g0 = 200, 1.7
    s = np.array([4.0, 9.0])
    theta = (s + np.sqrt(s**2 - 4 * g0)) / 2
    np.testing.assert_allclose(shrink(s, g0 / N, (N, N), loss="operator"), theta, rtol=1e-12)


def test_published_distribution_function_above_the_edge():
    """A lognormal spectrum: the published error of .75 is an artefact of a distribution function that falls to 0."""
    p, q = 768, 2304
    eigenvalues = np.sort(np.exp(np.random.default_rng(0).normal(-9.5, 2.2, p)))[::-1]
    values = np.sqrt(q * eigenvalues)
    spectrum = Spectrum.from_values(values, (p, q))
    fit = spectrum.fit(beta=0.8, compat="berlyand2026")
    assert fit.bulk_fraction == pytest.approx(0.73828, abs=5.1e-6)
    assert fit.ks == pytest.approx(0.748698, abs=5.1e-7)
    assert berlyand2026.fit(values, (p, q), 0.25, 0.1, fixed_cdf=True).error == pytest.approx(0.315159, abs=5.1e-7)
    assert spectrum.edge.verdict == "poor"
    assert spectrum.edge.ks == pytest.approx(0.315, abs=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "published", "correct"),
    [((256, 256), 2.5, 0.25), ((256, 1024), 0.85, 0.17), ((512, 1536), 0.85, 0.08)],
)
def test_false_spikes_on_pure_noise(shape, published, correct):
    """Twelve draws: the published beta = .8 finds spikes in noise, beta = .1 finds nearly none."""
    counts = {"published": 0, "correct": 0}
    for seed in range(12):
        values = singular_values(np.random.default_rng(seed).standard_normal(shape))
        counts["correct"] += fit_values(values, shape).spikes
        counts["published"] += fit_values(values, shape, beta=0.8, compat="berlyand2026").spikes
    # Poisson-like counts: within three of their standard deviations of twelve times the published mean.
    assert abs(counts["correct"] - 12 * correct) <= 3 * math.sqrt(12 * correct)
    assert abs(counts["published"] - 12 * published) <= 3 * math.sqrt(12 * published)


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "spread"), [((256, 256), 0.0071), ((256, 1024), 0.0030)])
def test_spread_and_fit_on_pure_noise(shape, spread):
    fits = [
        fit_values(singular_values(np.random.default_rng(seed).standard_normal(shape)), shape) for seed in range(40)
    ]
    v = np.array([fit.variance for fit in fits])
    assert v.std() == pytest.approx(spread, rel=0.4)
    # Eigenvalues are rigid: the distance is near 3/p, far below 1/sqrt(p).
    assert np.mean([fit.ks for fit in fits]) * min(shape) == pytest.approx(2.7, abs=0.8)
    assert {fit.verdict for fit in fits} == {"good"}


def test_hill_of_too_few_values():
    assert metrics.hill_alpha(Spectrum.from_values(np.array([2.0, 1.0]), (2, 5)), 1) == 99.0
