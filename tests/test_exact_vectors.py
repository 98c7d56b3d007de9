"""Vectors through the native core, singular, of eigenvalues and orthonormal, against NumPy in float64."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from mpfast import _core

# Backward stable: values err, and vectors miss orthonormality, by a modest multiple of p * eps; 1e-12 leaves an order.
VECTOR_TOLERANCE = 1e-12
BLOCKS = [(1, 1), (1, 9), (5, 5), (33, 40), (64, 64), (130, 131), (300, 2000), (700, 800)]


def block_of(shape: tuple[int, int], rank: int) -> NDArray[np.float64]:
    rng = np.random.default_rng(rank)
    return np.asarray(rng.standard_normal((shape[0], rank)) @ rng.standard_normal((rank, shape[1])))


def assert_orthonormal(rows: NDArray[np.float64]) -> None:
    np.testing.assert_allclose(rows @ rows.T, np.eye(len(rows)), atol=VECTOR_TOLERANCE)


@pytest.mark.parametrize("n", [1, 2, 33, 129, 500])
def test_eigenvectors_of_a_symmetric_matrix(n):
    a = block_of((n, n), n)
    a += a.T
    values, vectors = _core.symmetric_eigenvectors(a, 2)
    size = np.abs(np.linalg.eigvalsh(a)).max()
    np.testing.assert_allclose(values, np.linalg.eigvalsh(a), atol=VECTOR_TOLERANCE * size)
    np.testing.assert_allclose(vectors @ a, values[:, None] * vectors, atol=VECTOR_TOLERANCE * size)
    assert_orthonormal(vectors)
    np.testing.assert_array_equal(_core.symmetric_eigenvectors(np.triu(a), 1)[1], vectors)


@pytest.mark.parametrize(("n", "count"), [(1, 1), (2, 1), (33, 33), (129, 0), (129, 16), (500, 300)])
def test_the_largest_eigenvectors_of_a_symmetric_matrix(n, count):
    a = block_of((n, n), n)
    a += a.T
    values, vectors = _core.largest_eigenvectors(a, count, 2)
    reference = np.linalg.eigvalsh(a)
    size = np.abs(reference).max()
    assert vectors.shape == (count, n)
    np.testing.assert_allclose(values, reference[n - count :], atol=VECTOR_TOLERANCE * size)
    np.testing.assert_allclose(vectors @ a, values[:, None] * vectors, atol=VECTOR_TOLERANCE * size)
    assert_orthonormal(vectors)
    np.testing.assert_array_equal(_core.largest_eigenvectors(a, count, 1)[1], vectors)


def test_the_largest_eigenvectors_of_values_that_repeat():
    basis = np.linalg.qr(block_of((90, 90), 90))[0]
    a = (basis * np.repeat([0.0, 1.0, 4.0], 30)) @ basis.T
    values, vectors = _core.largest_eigenvectors(np.ascontiguousarray((a + a.T) / 2), 30, 1)
    np.testing.assert_allclose(values, 4.0)
    np.testing.assert_allclose(vectors @ a, 4 * vectors, atol=VECTOR_TOLERANCE * 4)
    assert_orthonormal(vectors)


@pytest.mark.parametrize("count", [-1, 6])
def test_only_as_many_eigenvectors_as_there_are(count):
    with pytest.raises(ValueError, match="count must be between"):
        _core.largest_eigenvectors(np.eye(5), count, 1)


@pytest.mark.parametrize(("shape", "exponent"), [((40, 12), 0), ((12, 40), 3), ((300, 257), -7)])
@pytest.mark.parametrize("size", [1.0, 1e-200, 1e200])
def test_the_gram_matrix_on_the_way_to_the_values_is_that_of_its_own(shape, exponent, size):
    matrix = _core.Matrix(block_of(shape, min(shape)) * size, "float64")
    exponent += _core.scale_exponent(matrix)
    gram = np.empty((min(shape), min(shape)))
    with_gram = _core.exact_values(matrix, 2, None, gram, exponent)
    np.testing.assert_array_equal(with_gram[0], _core.exact_values(matrix, 1)[0])
    np.testing.assert_array_equal(gram, _core.gram_matrix(matrix, exponent, 1)[0])


@pytest.mark.parametrize("shape", BLOCKS)
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_singular_decomposition_is_precise_to_a_rounding_of_the_largest(shape, share):
    k = shape[0]
    image = block_of(shape, max(1, round(share * k)))
    s, left, coefficients = _core.singular_decomposition(np.eye(k), image, 2)
    reference = np.linalg.svd(image, compute_uv=False)
    np.testing.assert_allclose(s, reference, atol=VECTOR_TOLERANCE * reference[0])
    np.testing.assert_allclose((coefficients.T * s) @ left, image, atol=VECTOR_TOLERANCE * reference[0])
    assert_orthonormal(left)
    assert_orthonormal(coefficients)
    basis = block_of((k, 50), k)
    alone, same_left, right = _core.singular_decomposition(basis, image, 1)
    np.testing.assert_array_equal(alone, s)
    np.testing.assert_array_equal(same_left, left)
    np.testing.assert_allclose(right, coefficients @ basis, atol=VECTOR_TOLERANCE * np.linalg.norm(basis))


@pytest.mark.parametrize("shape", [*BLOCKS, (40, 33), (800, 700)])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_orthonormal_rows_span_what_the_rows_span(shape, share):
    x = block_of(shape, max(1, round(share * min(shape))))
    q, r = _core.orthonormal_rows(x, 2)
    assert q.shape == (min(shape), shape[1])
    assert_orthonormal(q)
    np.testing.assert_array_equal(r, np.triu(r))
    np.testing.assert_allclose(q.T @ r, x.T, atol=VECTOR_TOLERANCE * np.linalg.norm(x))
    np.testing.assert_array_equal(_core.orthonormal_rows(x, 1)[0], q)


@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (3, 0, 2), (0, 2, 3), (300, 7, 600), (257, 400, 1030)])
def test_dense_product(m, k, n):
    rng = np.random.default_rng(m)
    a, b = rng.standard_normal((m, k)), rng.standard_normal((n, k)).T
    product = _core.dense_product(a, b, 2)
    np.testing.assert_allclose(product, a @ b, atol=VECTOR_TOLERANCE)
    np.testing.assert_array_equal(_core.dense_product(a, b, 1), product)


@pytest.mark.parametrize("function", ["symmetric_eigenvectors", "orthonormal_rows"])
def test_lapack_gets_no_nan(function):
    with pytest.raises(ValueError, match="must be finite"):
        getattr(_core, function)(np.full((3, 3), np.nan), 1)
    with pytest.raises(ValueError, match="image must be finite"):
        _core.singular_decomposition(np.eye(3), np.full((3, 3), np.inf), 1)
