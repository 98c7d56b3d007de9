"""The block Lanczos run and the quadrature on top of it, against full decompositions."""

from __future__ import annotations

import numpy as np
import pytest

from mpfast import _core
from mpfast.spectra.synthetic import family, low_rank

from .references import singular_values


def diagonal_run(eigenvalues, width, seed=0, stream=0, threads=1):
    return _core.lanczos_run_operator(lambda X: X * eigenvalues, len(eigenvalues), width, seed, stream, threads)


def test_probes_are_a_pure_function_of_their_indices():
    block = _core.probe_block(1001, 5, seed=7, stream=2)
    assert np.array_equal(block[:3, :100], _core.probe_block(100, 3, seed=7, stream=2))
    assert not np.array_equal(block, _core.probe_block(1001, 5, seed=7, stream=3))
    assert not np.array_equal(block, _core.probe_block(1001, 5, seed=8, stream=2))


def test_probes_look_gaussian_and_never_vanish():
    x = _core.probe_block(20000, 8, seed=1, stream=0).astype(float).ravel()
    assert (x != 0).all()
    # Sum of 63 signs: mean 0, variance 63, kurtosis 3 - 2/63; four standard errors of 160,000 draws each.
    assert abs(x.mean()) < 4 * np.sqrt(63 / x.size)
    assert x.var() == pytest.approx(63, rel=4 * np.sqrt(2 / x.size))
    assert (x**4).mean() / x.var() ** 2 == pytest.approx(3 - 2 / 63, abs=4 * np.sqrt(24 / x.size))


def test_probes_are_not_numpys_stream_of_the_same_seed():
    ours = _core.probe_block(4096, 1, seed=0, stream=0)[0].astype(float)
    theirs = np.random.default_rng(0).standard_normal(4096)
    assert abs(np.corrcoef(ours, theirs)[0, 1]) < 4 / np.sqrt(4096)


def test_ritz_values_are_lower_bounds_and_residuals_bound_the_error():
    lam = np.sort(np.random.default_rng(3).random(300))[::-1] ** 2
    run = diagonal_run(lam, 4)
    previous = np.zeros(4)
    for _ in range(6):
        run.advance(3)
        theta, residual, _ = run.ritz()
        rounding = 1e-13
        assert (theta <= lam[: len(theta)] + rounding).all()
        assert (theta[: len(previous)] >= previous - rounding).all()
        nearest = np.abs(theta[:, None] - lam[None, :]).min(axis=1)
        assert (nearest <= residual + rounding).all()
        previous = theta


def test_weights_reproduce_the_moments_of_every_probe():
    lam = np.linspace(0.1, 2, 200)
    width, steps = 3, 5
    run = diagonal_run(lam, width, seed=11)
    run.advance(steps)
    theta, _, weight = run.ritz()
    x = _core.probe_block(200, width, 11, 0).astype(float)
    for power in range(2 * steps):
        # Block Gauss quadrature is exact to degree 2k - 1.
        assert weight @ theta**power == pytest.approx((x**2) @ lam**power, rel=1e-10)


def test_an_earlier_state_is_a_leading_block():
    lam = np.linspace(0, 1, 150)
    long, short = diagonal_run(lam, 4), diagonal_run(lam, 4)
    long.advance(9)
    short.advance(5)
    for a, b in zip(long.ritz(5), short.ritz(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


@pytest.mark.parametrize("rank", [1, 3, 9, 40])
def test_low_rank_is_found_and_ends_the_run(rank):
    values = np.linspace(5, 1, rank)
    u = np.linalg.qr(np.random.default_rng(0).standard_normal((500, rank)))[0]
    run = _core.lanczos_run_operator(lambda X: (X @ u * values) @ u.T, 500, 4, 0, 0, 1)
    run.advance(30)
    assert run.exhausted
    theta, _, _ = run.ritz()
    np.testing.assert_allclose(theta[:rank], values, rtol=1e-10)
    assert (theta[rank:] < 1e-10).all()


@pytest.mark.parametrize("nonzero", [0, 1, 3, 7])
def test_a_few_nonzero_coordinates_are_enough(nonzero):
    lam = np.zeros(500)
    lam[:nonzero] = np.arange(nonzero, 0, -1)
    run = diagonal_run(np.roll(lam, 77), 4)
    run.advance(10)
    theta, _, _ = run.ritz()
    np.testing.assert_allclose(theta[: min(nonzero, len(theta))], lam[: min(nonzero, len(theta))], atol=1e-10)


def test_zero_coordinates_are_counted_and_left_out():
    lam = np.linspace(1, 2, 400)
    lam[::4] = 0
    run = diagonal_run(lam, 4)
    run.advance(20)
    assert run.zero_coordinates == 100
    assert run.ritz()[0].min() > 0.9


def test_multiple_eigenvalues_up_to_the_block_width_are_found():
    lam = np.linspace(0, 1, 300)
    lam[:4] = 3.0
    run = diagonal_run(lam, 4)
    run.advance(12)
    theta, _, _ = run.ritz()
    np.testing.assert_allclose(theta[:4], 3.0, rtol=1e-8)
    assert theta[4] < 1.1


@pytest.mark.parametrize("shape", [(300, 200), (200, 300)])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_matrix_runs_agree_with_a_full_decomposition(shape, dtype):
    W = family("spikes40", shape, 1).astype(dtype)
    run = _core.lanczos_run(_core.Matrix(W, dtype), 8, 0, 0, 0, False, 2)
    run.advance(20)
    theta, residual, _ = run.ritz()
    s = singular_values(W)
    converged = residual < 1e-6 * theta[0]
    assert converged[:30].all()
    # Rounding of the products, relative to the largest value.
    rounding = 50 * np.finfo(dtype).eps
    np.testing.assert_allclose(theta[:30], s[:30] ** 2, atol=rounding * s[0] ** 2)
    trace, nonfinite, _, _ = run.stats
    assert trace == pytest.approx((W.astype(float) ** 2).sum(), rel=1e-6)
    assert nonfinite == 0


@pytest.mark.parametrize("shape", [(300, 170), (170, 300)])
@pytest.mark.parametrize("energies", [False, True])
def test_parts_of_a_run_are_runs_of_their_own(shape, energies):
    """Each has its own stream of probes and its own space; a pass multiplies for all of them."""
    W = np.random.default_rng(5).standard_normal(shape)
    matrix = _core.Matrix(W, "float64")
    run = _core.lanczos_run(matrix, 11, 3, 4, 0, True, 2, None, energies, 3)
    alone = [_core.lanczos_run(matrix, width, 3, 4 + part, 0, True, 1) for part, width in enumerate((4, 4, 3))]
    for steps in (4, 2):
        run.advance(steps)
        for each in alone:
            each.advance(steps)
    assert (run.width, run.steps, run.exhausted, run.parts) == (11, 6, False, [(6, False)] * 3)
    assert run.stats[0] == pytest.approx((W**2).sum(), rel=1e-12)
    assert (run.energies is not None) == energies
    for part, each in enumerate(alone):
        for found, expected in zip(run.ritz(part=part), each.ritz(), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)
        mine, theirs = run.ritz_vectors(2, part), each.ritz_vectors(2)
        np.testing.assert_allclose(np.abs((mine * theirs).sum(axis=1)), 1, rtol=1e-9)
    with pytest.raises(ValueError, match="no such part"):
        run.ritz(part=3)
    with pytest.raises(ValueError, match="no such part"):
        run.ritz_vectors(1, -1)


def test_parts_whose_spaces_close_at_different_steps():
    """Five vectors fill a space of rank 12 in three steps, four in as many and one more to see it."""
    W = low_rank((90, 60), np.linspace(3, 1, 12), np.random.default_rng(1))
    run = _core.lanczos_run(_core.Matrix(W, "float64"), 9, 0, 0, 0, True, 1, None, False, 2)
    run.advance(12)
    assert run.exhausted
    expected = singular_values(W)[:12]
    for part, (steps, closed) in enumerate(run.parts):
        assert closed
        theta = run.ritz(part=part)[0]
        assert len(theta) == steps * (5 - part)
        np.testing.assert_allclose(np.sqrt(theta[:12]), expected, rtol=1e-9)


def test_a_run_goes_on_after_a_part_was_interrupted():
    """The operator fails amid a run of two parts; what is then taken up again has the bits of a whole run."""
    A = np.diag(np.linspace(3, 1, 60))
    failing = [False]

    def apply(X):
        if failing[0]:
            raise KeyboardInterrupt
        return X @ A

    runs = [_core.lanczos_run_operator(apply, 60, 7, 0, 0, 1, 2) for _ in range(2)]
    runs[0].advance(5)
    runs[1].advance(2)
    failing[0] = True
    with pytest.raises(KeyboardInterrupt):
        runs[1].advance(1)
    failing[0] = False
    runs[1].advance(3)
    assert runs[0].parts == runs[1].parts == [(5, False)] * 2
    for part in range(2):
        for found, expected in zip(runs[1].ritz(part=part), runs[0].ritz(part=part), strict=True):
            np.testing.assert_array_equal(found, expected)
    runs[1].advance(2**63 - 1)
    assert runs[1].exhausted


@pytest.mark.parametrize("parts", [0, -1, 6])
def test_parts_that_a_run_cannot_have_are_refused(parts):
    with pytest.raises(ValueError, match="parts"):
        _core.lanczos_run(_core.Matrix(np.eye(20), "float64"), 5, 0, 0, 0, True, 1, None, False, parts)


def test_ritz_vectors_are_eigenvectors():
    W = family("power_law", (250, 400), 2)
    run = _core.lanczos_run(_core.Matrix(W, "float64"), 8, 0, 0, 0, False, 2)
    run.advance(20)
    theta, residual, _ = run.ritz()
    v = run.ritz_vectors(10)
    np.testing.assert_allclose(v @ v.T, np.eye(10), atol=1e-10)
    error = np.linalg.norm(W @ (W.T @ v.T) - v.T * theta[:10], axis=0)
    np.testing.assert_allclose(error, residual[:10], atol=1e-9 * theta[0])


@pytest.mark.parametrize("width", [1, 3, 8])
def test_single_ritz_values_are_those_of_the_decomposition(width):
    run = _core.lanczos_run(_core.Matrix(family("spikes40", (250, 400), 2), "float64"), width, 0, 0, 0, True, 1)
    run.advance(24)
    theta, residual, _ = run.ritz()
    numbers = [0, 3, 17, 23]
    np.testing.assert_allclose(run.values_at(numbers), theta[numbers], rtol=1e-8)
    for number in numbers:
        assert run.values_above(theta[number] * (1 - 1e-8)) == number + 1
    # Residuals of the others are rounding.
    for number in np.flatnonzero(residual > 1e-9 * theta[0])[:3]:
        np.testing.assert_allclose(run.residual_near(theta[number]), residual[number], rtol=1e-4)


def test_single_ritz_values_of_a_run_that_has_closed():
    run = diagonal_run(np.r_[np.full(4, 9.0), np.full(20, 1.0), np.zeros(40)], 4)
    run.advance(16)
    assert run.exhausted
    count = len(run.ritz()[0])
    np.testing.assert_allclose(
        run.values_at([0, 3, 4, 7, count - 1]), [9, 9, 1, 1, run.ritz()[0][-1]], rtol=1e-8, atol=1e-12
    )
    assert run.values_above(5.0) == 4
    assert run.residual_near(9.0) <= 1e-12


@pytest.mark.parametrize("number", [-1, 8])
def test_single_ritz_values_that_a_run_has_not(number):
    run = diagonal_run(np.arange(1.0, 21), 2)
    with pytest.raises(ValueError, match="first step"):
        run.values_at([0])
    run.advance(4)
    with pytest.raises(ValueError, match="number"):
        run.values_at([number])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_results_do_not_depend_on_the_number_of_threads(dtype):
    W = family("gauss", (500, 300), 4).astype(dtype)
    results = []
    for threads in (1, 2, 3, 7):
        run = _core.lanczos_run(_core.Matrix(W, dtype), 8, 5, 0, 0, False, threads)
        run.advance(8)
        results.append(run.ritz())
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert np.array_equal(a, b)


def measures_of(run, trace, shape, dropped=(-1,), threads=1):
    block = (*run.ritz(), run.steps, False)
    return _core.spectral_measures([block], trace, *shape, True, 256, list(dropped), threads)


def test_measures_without_a_probe_are_those_of_a_run_without_it_whatever_the_threads():
    lam = singular_values(family("gauss", (300, 900), 3)) ** 2
    run = diagonal_run(lam, 8)
    run.advance(12)
    dropped = (-1, *range(8))
    together = measures_of(run, lam.sum(), (300, 900), dropped, threads=3)
    theta, residual, weight = run.ritz()
    for probe, measure in zip(dropped, together, strict=True):
        kept = np.delete(weight, probe, axis=0) if probe >= 0 else weight
        block = (theta, residual, np.ascontiguousarray(kept), 12, False)
        (alone,) = _core.spectral_measures([block], lam.sum(), 300, 900, True, 256, [-1], 1)
        for a, b in zip(measure, alone, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    assert measures_of(run, lam.sum(), (300, 900), ()) == []


def test_measure_has_mass_one_and_the_exact_first_moment():
    lam = singular_values(family("power_law", (300, 900), 3)) ** 2
    run = diagonal_run(lam, 8)
    run.advance(12)
    ((nodes, weights, atoms, support),) = measures_of(run, lam.sum(), (300, 900))
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    assert weights @ nodes == pytest.approx(lam.mean(), rel=1e-10)
    assert (nodes >= 0).all()
    np.testing.assert_allclose(nodes[:atoms], lam[:atoms], rtol=1e-3)
    np.testing.assert_allclose(weights[:atoms], 1 / 300)
    assert 0 < support < lam[0]


@pytest.mark.parametrize("name", ["gauss", "spikes40", "power_law"])
def test_measure_follows_the_distribution_within_its_noise(name):
    p, q, width = 500, 1500, 16
    s = singular_values(family(name, (p, q), 8))
    run = diagonal_run(s**2, width)
    run.advance(14)
    ((nodes, weights, _atoms, _),) = measures_of(run, (s**2).sum(), (p, q))
    order = np.argsort(nodes)
    cdf = np.cumsum(weights[order]) - weights[order] / 2
    measured = np.interp(np.sort(s), np.sqrt(nodes[order]), cdf)
    ks = np.abs(measured - (np.arange(p) + 0.5) / p).max()
    # Mean Kolmogorov distance of p b probes' worth of mass is 0.87 sqrt(2 / (p b)); three times that is a bad day.
    assert ks < 3 * 0.87 * np.sqrt(2 / (p * width))


def test_bad_widths_are_refused():
    with pytest.raises(ValueError, match="block width"):
        diagonal_run(np.ones(10), 11)


def test_an_operator_of_the_wrong_shape_is_refused():
    run = _core.lanczos_run_operator(lambda X: X[:, :-1], 50, 2, 0, 0, 1)
    with pytest.raises(ValueError, match="wrong shape"):
        run.advance(2)


def test_an_exception_in_an_operator_comes_through():
    def broken(X):
        raise RuntimeError("no such file")

    run = _core.lanczos_run_operator(broken, 50, 2, 0, 0, 1)
    with pytest.raises(RuntimeError, match="no such file"):
        run.advance(2)


@pytest.mark.parametrize(("low", "share"), [(1.0, 1.0), (0.25, 0.5), (0.01, 0.3)])
def test_a_closed_run_on_repeated_eigenvalues_gives_each_its_share(low, share):
    """A block of 4 sees each eigenvalue 4 times, however often it occurs; the trace says that this is not all."""
    dim = 400
    high = round(share * dim)
    eigenvalues = np.where(np.arange(dim) < high, 1.0, low)
    run = diagonal_run(eigenvalues, 4)
    run.advance(20)
    assert run.exhausted
    block = (*run.ritz(), run.steps, True)
    for dropped in (-1, 0):
        ((nodes, weights, atoms, edge),) = _core.spectral_measures(
            [block], eigenvalues.sum(), dim, dim, True, 32, [dropped], 1
        )
        assert atoms == 0
        assert edge == pytest.approx(1)
        assert weights.sum() == pytest.approx(1)
        assert (weights >= 0).all()
        assert nodes @ weights == pytest.approx(eigenvalues.mean(), rel=1e-12)
        # The first moment alone says how a mass is shared by two eigenvalues.
        assert weights[nodes > 0.9].sum() == pytest.approx(share, abs=1e-12)


def test_a_closed_run_on_few_eigenvalues_says_that_the_rest_is_zero():
    eigenvalues = np.zeros(400)
    eigenvalues[:3] = 3, 2, 1
    run = diagonal_run(eigenvalues, 4)
    run.advance(20)
    block = (*run.ritz(), run.steps, True)
    ((nodes, weights, _, _),) = _core.spectral_measures([block], eigenvalues.sum(), 400, 400, True, 32, [-1], 1)
    np.testing.assert_allclose(nodes[:3], [3, 2, 1], rtol=1e-12)
    np.testing.assert_allclose(weights[:3], 1 / 400, rtol=1e-12)
    assert weights[nodes < 1e-6].sum() == pytest.approx(397 / 400)


def block_of_coefficients(alpha, beta):
    """What a run of one probe returns whose T is B^T B, B bidiagonal; nothing of it has converged."""
    B = np.diag(alpha) + np.diag(beta, 1)
    theta, vectors = np.linalg.eigh(B.T @ B)
    return theta[::-1], theta[::-1], vectors[:1, ::-1] ** 2, len(alpha), False


def noise_coefficients(p, q, steps, v):
    """Their expected values: E alpha_j^2 = v (q - j + 1), E beta_j^2 = v (p - j)."""
    j = np.arange(1, steps + 1)
    return np.sqrt(v * (q - j + 1)), np.sqrt(v * (p - j[:-1]))


def test_the_drift_of_a_finite_noise_matrix_is_taken_out_of_the_edge():
    p, q, v = 60, 80, 2.5
    block = block_of_coefficients(*noise_coefficients(p, q, 30, v))
    ((_, _, atoms, edge),) = _core.spectral_measures([block], v * p * q, p, q, True, 64, [-1], 1)
    assert atoms == 0
    # A Lanczos run of 19 steps in double: some hundred roundings.
    assert edge == pytest.approx(v * (np.sqrt(p) + np.sqrt(q)) ** 2, rel=1e-9)


def test_the_last_coefficients_of_a_run_are_not_used():
    """Its finite length distorts them: of 10 steps the first 6 count, and the one after that."""
    p, q, v = 60, 80, 2.5
    alpha, beta = noise_coefficients(p, q, 10, v)
    alpha[7:] *= 1.5
    beta[6:] *= 1.5
    block = block_of_coefficients(alpha, beta)
    ((_, _, _, edge),) = _core.spectral_measures([block], v * p * q, p, q, True, 64, [-1], 1)
    assert edge == pytest.approx(v * (np.sqrt(p) + np.sqrt(q)) ** 2, rel=1e-9)


def test_an_open_run_keeps_the_last_three_blocks_for_its_rule():
    """However small their residuals: what is left of W needs nodes of its own."""
    lam = np.geomspace(1, 1e-3, 300)
    run = diagonal_run(lam, 4)
    run.advance(8)
    theta, residual, weight = run.ritz()
    weight = np.full_like(weight, 1 / 300)  # no Ritz value stands for several eigenvalues, except for the last
    weight[:, -1] += 1 - weight.sum(axis=1)
    ((_, _, atoms, _),) = _core.spectral_measures(
        [(theta, np.zeros_like(residual), weight, 8, False)], lam.sum(), 300, 300, True, 64, [-1], 1
    )
    assert atoms == 4 * (8 - 3)
