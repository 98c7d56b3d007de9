"""Matrices that break careless numerics: zeros, duplicates, denormals, extremes of the range, one huge value.

References are NumPy's in float64 on a matrix scaled to order one. A Gram matrix in float64 gives the singular value s
with an error of about ``p eps s_1^2 / s``, and the bidiagonal route, taken where that would lose the lower quartile,
``p eps s_1``: hence absolute tolerances in units of the largest value.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import mpfast
from mpfast.spectra.synthetic import critical_signal, low_rank

SHAPE = (180, 130)
EPS = np.finfo(np.float64).eps
TYPES = {"float64": np.float64, "float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
SINGLE = np.finfo(np.float32).eps


def noise(shape=SHAPE, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def zero_rows(W):
    W[:40] = 0
    return W


def zero_columns(W):
    W[:, ::3] = 0
    return W


def one_entry(W):
    W[:] = 0
    W[17, 4] = 3
    return W


def equal_rows(W):
    W[90:] = W[:90]
    return W


def orthogonal(W):
    return np.linalg.qr(W)[0]


def rank_one(W):
    return np.outer(W[:, 0], W[0])


def huge_entry(W):
    W[3, 5] = 1e7
    return W


def huge_spike(W):
    return W + low_rank(W.shape, [1e6 * critical_signal(W.shape)], np.random.default_rng(1))


def scaled_rows(W):
    return W * np.logspace(-6, 6, W.shape[0])[:, None]


PATTERNS = {
    "all zero": np.zeros_like,
    "constant": np.ones_like,
    "zero rows": zero_rows,
    "zero columns": zero_columns,
    "one entry": one_entry,
    "equal rows": equal_rows,
    "equal singular values": orthogonal,
    "rank one": rank_one,
    "diagonal": lambda W: np.diag(np.arange(1.0, 131))[:130],
    "huge entry": huge_entry,
    "huge spike": huge_spike,
    "scaled rows": scaled_rows,
}


def reference(W):
    """Singular values in float64, of a matrix brought to order one first."""
    exact = np.asarray(W, dtype=np.float64)
    largest = np.abs(exact).max()
    if largest == 0:
        return np.zeros(min(W.shape))
    exponent = int(np.floor(np.log2(largest)))
    return np.ldexp(np.linalg.svd(np.ldexp(exact, -exponent), compute_uv=False), exponent)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_all_values_of_a_strange_matrix(pattern, dtype):
    W = PATTERNS[pattern](noise()).astype(dtype)
    truth = reference(W)
    spectrum = mpfast.spectrum(W, method="exact")
    # The root of the error of an eigenvalue, p eps s_1^2, bounds the error of a value that is zero.
    np.testing.assert_allclose(spectrum.values, truth, rtol=0, atol=np.sqrt(len(truth) * EPS) * truth[0])
    np.testing.assert_allclose(spectrum.values[0], truth[0], rtol=len(truth) * EPS)
    assert spectrum.fro_norm == pytest.approx(np.sqrt((truth**2).sum()), rel=1e-12, abs=0)
    edge = spectrum.edge
    assert edge.sigma_plus_error == (edge.sigma_plus if edge.sigma_plus <= spectrum.rounding else 0)
    assert np.isfinite(edge.sigma_plus)
    assert 0 <= edge.spikes <= min(W.shape)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_estimate_of_a_strange_matrix(pattern):
    """The Frobenius norm and the largest value, which a block Krylov space has first; nothing is NaN."""
    W = PATTERNS[pattern](noise()).astype(np.float32)
    truth = reference(W)
    spectrum = mpfast.spectrum(W, method="lanczos", probes=8, steps=8)
    assert spectrum.fro_norm == pytest.approx(np.sqrt((truth**2).sum()), rel=1e-5, abs=0)
    assert np.isfinite(spectrum.nodes).all()
    assert spectrum.weights.sum() == pytest.approx(1)
    assert np.isfinite(spectrum.edge.sigma_plus)
    if len(spectrum.outliers):
        # A Ritz value lies below the singular value it belongs to, but for single precision products.
        assert spectrum.outliers[0] <= truth[0] * (1 + 1e-5)


@pytest.mark.parametrize("pattern", [name for name in PATTERNS if name != "all zero"])
def test_the_leading_triplet_of_a_strange_matrix(pattern):
    W = PATTERNS[pattern](noise())
    truth = reference(W)
    U, s, Vh = mpfast.svd(W, 1)
    np.testing.assert_allclose(s[0], truth[0], rtol=1e-5)  # tol of svd
    assert np.linalg.norm(U[:, 0]) == pytest.approx(1, abs=1e-9)
    assert U[:, 0] @ W @ Vh[0] == pytest.approx(truth[0], rel=1e-5)


def test_no_triplets_of_zero():
    """The singular values of a zero matrix are zero, and any orthonormal vectors belong to them."""
    U, s, Vh = mpfast.svd(np.zeros(SHAPE), 2)
    np.testing.assert_array_equal(s, 0)
    np.testing.assert_allclose(U.T @ U, np.eye(2), atol=1e-12)
    np.testing.assert_allclose(Vh @ Vh.T, np.eye(2), atol=1e-12)


EXTREMES = [
    ("float64", 1e30),
    ("float64", 1e-30),
    ("float64", 1e120),
    ("float64", 1e-120),
    ("float32", 1e30),
    ("float32", 1e-30),
    ("float32", 1e-42),  # denormal
    ("float16", 1e4),
    ("float16", 1e-6),  # denormal
    ("bfloat16", 1e30),  # squares overflow single precision
    ("bfloat16", 1e-39),  # denormal
]


def scaled(dtype, size):
    """Noise of this size, rounded to the type; and the exact value of each entry divided by ``size``."""
    W = (noise() * size).astype(TYPES[dtype])
    return W, np.asarray(W, dtype=np.float64) / size


@pytest.mark.parametrize(("dtype", "size"), EXTREMES)
def test_scale_changes_nothing(dtype, size):
    W, unit = scaled(dtype, size)
    truth = np.linalg.svd(unit, compute_uv=False) * size
    exact = mpfast.spectrum(W, method="exact")
    np.testing.assert_allclose(exact.values, truth, rtol=0, atol=1e-12 * truth[0])
    estimate = mpfast.spectrum(W, method="lanczos", probes=16, steps=12)
    # Sixteen probes of 130 dimensions: 0.4 / sqrt(16 * 130) = 0.9 %, five times that.
    assert estimate.edge.sigma_plus == pytest.approx(exact.edge.sigma_plus, rel=0.045)
    assert estimate.fro_norm == pytest.approx(exact.fro_norm, rel=1e-5)
    _, s, _ = mpfast.svd(W, 2)
    np.testing.assert_allclose(s, truth[:2], rtol=1e-4)


@pytest.mark.parametrize(("dtype", "size"), EXTREMES)
def test_masks_keep_the_largest_of_extreme_entries(dtype, size):
    W, unit = scaled(dtype, size)
    mask = mpfast.masks.magnitude(W, 0.5)
    assert mask.sum() == W.size - W.size // 2
    assert np.abs(unit)[mask].min() >= np.abs(unit)[~mask].max()
    groups = mpfast.masks.n_m(W[:, :128], 2, 4)
    kept = np.abs(unit[:, :128]).reshape(-1, 4)
    chosen = groups.reshape(-1, 4)
    assert (chosen.sum(axis=1) == 2).all()
    largest = np.sort(kept, axis=1)[:, 2:].sum(axis=1)
    np.testing.assert_array_equal(np.sort(np.where(chosen, kept, 0), axis=1)[:, 2:].sum(axis=1), largest)


@pytest.mark.parametrize("size", [1e300, 1e-300, 1e-310])  # squares over- and underflow; denormal
def test_values_where_squares_are_no_numbers(size):
    W, unit = scaled("float64", size)
    spectrum = mpfast.spectrum(W, method="exact")
    # A denormal has fewer digits, so have singular values that are denormal.
    np.testing.assert_allclose(spectrum.values, np.linalg.svd(unit, compute_uv=False) * size, rtol=0, atol=1e-11 * size)
    with pytest.raises(ValueError, match=r"fit\(\): the entries of W are about"):
        spectrum.fit()
    with pytest.raises(ValueError, match="scale W"):
        mpfast.spectrum(W, method="lanczos")


@pytest.mark.parametrize(
    ("dtype", "size"), [("float64", 1e120), ("float32", 1e15), ("bfloat16", 1e-15), ("float32", 1e-15)]
)
def test_products_of_extreme_entries(dtype, size):
    W, unit = scaled(dtype, size)
    X = np.random.default_rng(1).standard_normal((130, 3))
    expected = unit.T @ (unit @ X)
    Z = np.asarray(mpfast.gram_product(W, X, side="right"), dtype=np.float64) / size / size
    # A few roundings of single precision in sums of 180 and 130 terms.
    np.testing.assert_allclose(Z, expected, rtol=0, atol=1e2 * SINGLE * np.abs(expected).max())


@pytest.mark.parametrize(("size", "limit"), [(1e30, np.inf), (1e-30, 0)])
def test_products_beyond_single_precision_are_no_numbers_that_mislead(size, limit):
    W, _ = scaled("float32", size)
    Z = mpfast.gram_product(W, np.ones((130, 2), np.float32), side="right")
    assert Z.dtype == np.float32
    np.testing.assert_array_equal(np.abs(Z), limit)


@pytest.mark.parametrize(("dtype", "size"), [("float32", 1e25), ("float32", 1e30), ("float64", 1e150)])
def test_one_huge_entry_that_no_sample_sees(dtype, size):
    W = noise((600, 520)).astype(dtype)
    W[301, 201] = size
    assert mpfast.svd(W, 2).s[0] == pytest.approx(size, rel=1e-5)
    estimate, exact = (mpfast.spectrum(W, method=method) for method in ("lanczos", "exact"))
    assert estimate.ritz[0] == pytest.approx(size, rel=1e-5)
    assert exact.values[0] == pytest.approx(size, rel=1e-5)


def test_entries_whose_squares_are_no_numbers_in_a_sparse_matrix():
    sparse = pytest.importorskip("scipy.sparse")
    for size in (1e-170, 1e170):
        with pytest.raises(ValueError, match=r"largest entry of W .* scale W"):
            mpfast.svd(sparse.csr_array(size * noise((50, 40))), 2)
    with pytest.raises(TypeError, match="float64"):
        mpfast.svd(sparse.csr_array(noise((50, 40)).astype(np.longdouble)), 2)


def test_ties_everywhere():
    """A matrix of one magnitude: the counts are exact, and the first entries go first."""
    W = np.where(noise() > 0, 0.5, -0.5).astype(np.float32)
    mask = mpfast.masks.magnitude(W, 0.25)
    assert mask.sum() == W.size - W.size // 4
    assert mpfast.masks.n_m(W[:, :128], 2, 4).sum() == W.shape[0] * 64


def test_one_value_above_all_others_in_bfloat16():
    """Products of a bfloat16 matrix are in single precision: a value 1e4 edges high must not drown the bulk."""
    W = (
        noise((400, 300)) + low_rank((400, 300), [1e4 * critical_signal((400, 300))], np.random.default_rng(2))
    ).astype(ml_dtypes.bfloat16)
    exact = mpfast.spectrum(W, method="exact").edge
    estimate = mpfast.spectrum(W, method="lanczos", tol=0.02).edge
    assert abs(estimate.sigma_plus - exact.sigma_plus) <= 5 * estimate.sigma_plus_error + 1e-3 * exact.sigma_plus
