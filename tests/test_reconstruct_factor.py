"""Factors of second moments against plain NumPy, and what is sent of them to other processes."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mpfast import _core, reconstruct
from mpfast.reconstruct.device_factor import inverse_factor_by_torch

from .refits import correlated, damped, problem

Array = NDArray[Any]


class TestFactor:
    @pytest.mark.parametrize("inputs", [1, 2, 7, 64, 129, 300, 1100])
    @pytest.mark.parametrize(("damping", "diagonal"), [(0.01, 0.0), (0.0, 0.3), (0.2, 0.1)])
    def test_it_is_the_root_of_the_inverse(self, inputs, damping, diagonal):
        C = correlated(inputs)
        factor = reconstruct.Factor(C, damping, diagonal=diagonal)
        H = damped(C, damping, diagonal)
        U = factor.upper.astype(np.float64)
        assert (np.tril(U, -1) == 0).all()
        # Computed in double and rounded to single; the unit is a power of two.
        product = U @ H @ U.T
        unit = product[0, 0]
        assert np.log2(unit) == pytest.approx(round(np.log2(unit)), abs=1e-5)
        condition = np.linalg.cond(U)
        np.testing.assert_allclose(product / unit, np.eye(inputs), atol=2**-22 * condition)
        np.testing.assert_allclose(factor.damped(), H, rtol=1e-14)

    def test_any_type_layout_and_framework(self):
        C = correlated(40).astype(np.float32)
        expected = reconstruct.Factor(C).upper
        for same in (C.astype(np.float64), np.asfortranarray(C), np.ascontiguousarray(C[::-1, ::-1])[::-1, ::-1]):
            np.testing.assert_allclose(reconstruct.Factor(same).upper, expected, rtol=1e-5, atol=1e-6)
        torch = pytest.importorskip("torch")
        np.testing.assert_array_equal(reconstruct.Factor(torch.from_numpy(C)).upper, expected)

    @pytest.mark.parametrize("exponent", [-300, -60, 60, 300])
    def test_its_scale_is_of_no_importance(self, exponent):
        C = correlated(33)
        W = np.random.default_rng(0).standard_normal((5, 33))
        plain = reconstruct.prune(W, C, sparsity=0.5)
        scaled = reconstruct.prune(W, C * 2.0**exponent, sparsity=0.5)
        np.testing.assert_array_equal(scaled.weights, plain.weights)
        assert scaled.error == pytest.approx(plain.error)

    @pytest.mark.parametrize("decades", [3, 6, 10])
    def test_the_units_of_the_inputs_are_of_no_importance(self, decades):
        """With inputs in other units, and weights in their inverse, outputs and damping by diagonal are the same."""
        W, C = problem(20, 90)
        units = 10 ** np.random.default_rng(0).uniform(-decades, decades, 90)
        plain, other = (
            reconstruct.Factor(moment, damping=0, diagonal=0.05) for moment in (C, C * units * units[:, None])
        )
        for options in ({"sparsity": 0.5}, {"pattern": "2:5"}, {"sparsity": 0.5, "method": "gradual"}):
            expected = reconstruct.prune(W, plain, **options)
            fit = reconstruct.prune(W / units, other, **options)
            assert fit.error == pytest.approx(expected.error, rel=1e-3)
            assert (fit.mask == expected.mask).mean() > 0.999

    def test_same_bits_for_any_number_of_threads(self):
        C = correlated(700)
        first = reconstruct.Factor(C, threads=1)
        for threads in (2, 3, 5):
            other = reconstruct.Factor(C, threads=threads)
            np.testing.assert_array_equal(other.upper, first.upper)
            np.testing.assert_array_equal(other.leading_part[0], first.leading_part[0])

    def test_the_leading_part_leaves_less(self):
        factor = reconstruct.Factor(correlated(400))
        basis, rest = factor.leading_part
        values = np.linalg.eigvalsh(factor.correlations.astype(np.float64))
        left = np.linalg.eigvalsh(factor.correlations - basis @ basis.T.astype(np.float64))
        # A projection takes from a semidefinite matrix what is semidefinite, and nearly all of the leading values.
        assert left[0] > -1e-4 * values[-1]
        assert left[-1] < 2 * values[-basis.shape[1]]
        assert 0 < rest < 1

    @pytest.mark.parametrize("inputs", [1, 7, 200])
    def test_by_torch_as_by_the_core(self, inputs):
        """What makes the factor on a GPU, here on the CPU."""
        torch = pytest.importorskip("torch")
        factor = reconstruct.Factor(correlated(inputs), diagonal=0.1)
        upper = inverse_factor_by_torch(torch, factor.damped_in_units(), "cpu").numpy()
        assert upper.dtype == np.float32
        assert upper.flags.c_contiguous
        np.testing.assert_allclose(upper, factor.upper, rtol=0, atol=1e-6 * np.abs(factor.upper).max())
        assert inverse_factor_by_torch(torch, np.diag(np.r_[-1.0, np.ones(inputs)]), "cpu") is None

    def test_what_is_no_second_moment(self):
        C = correlated(6)
        wrong = {
            "must be square": C[:, :5],
            "must be 2-D": C[0],
            "must be symmetric": C + np.triu(np.ones((6, 6)), 1),
            "diagonal must not be negative": -C,
            r"2 non-finite entries .* the first at \(1, 4\)": C.copy(),
        }
        wrong[r"2 non-finite entries .* the first at \(1, 4\)"][[1, 3], [4, 3]] = np.nan, np.inf
        for text, moment in wrong.items():
            with pytest.raises(ValueError, match=rf"Factor\(\): C .*{text}"):
                reconstruct.Factor(moment)
        with pytest.raises(TypeError, match="C has dtype int64"):
            reconstruct.Factor(np.eye(3, dtype=np.int64))
        for damping in (-0.1, np.nan, np.inf, "much", True, None):
            with pytest.raises(ValueError, match="damping must be a number"):
                reconstruct.Factor(C, damping)
        with pytest.raises(ValueError, match="diagonal must be a number"):
            reconstruct.Factor(C, diagonal=-1)

    def test_a_singular_moment_says_which_damping_to_raise(self):
        C = correlated(30, samples=10)
        with pytest.raises(
            ValueError, match=r"prune\(\): C is not positive definite with damping=0 .* raise the damping"
        ):
            reconstruct.prune(np.ones((2, 30)), reconstruct.Factor(C, damping=0), sparsity=0.5)
        fit = reconstruct.prune(np.random.default_rng(0).standard_normal((4, 30)), C, sparsity=0.5)
        assert 0 < fit.error < fit.masked_error

    def test_it_says_what_it_is(self):
        assert repr(reconstruct.Factor(np.eye(4), 0.02, diagonal=0.3)) == "Factor(4 inputs, damping=0.02, diagonal=0.3)"


@pytest.mark.parametrize("n", [1, 7, 130, 400])
def test_the_inverse_of_a_positive_matrix(n: int) -> None:
    H = damped(correlated(n, seed=n))
    inverse, pivot = _core.positive_inverse(H, 1)
    assert pivot == -1
    # Condition numbers of some hundreds, and n roundings.
    np.testing.assert_allclose(inverse @ H, np.eye(n), atol=1e-10)
    np.testing.assert_array_equal(inverse, inverse.T)
    np.testing.assert_array_equal(inverse, _core.positive_inverse(H, 3)[0])
    H[n // 2] = H[:, n // 2] = 0
    assert _core.positive_inverse(H, 1)[1] == n // 2


def test_pooled_factors_are_the_same_for_any_number_of_threads() -> None:
    layers = {"up": problem(90, 300), "down": problem(300, 90, 1)}
    one, many = (reconstruct.lowrank_pooled(layers, 0.5, threads=threads) for threads in (1, 3))
    for name in layers:
        for left, right in zip(one[name], many[name], strict=True):
            np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_factors_and_fits_can_be_sent_to_another_process(dtype):
    """With what they are made of, and not with what they have computed from it."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((400, 64))
    W = rng.standard_normal((24, 64)).astype(dtype)
    factor = reconstruct.Factor((X.T @ X / 400).astype(dtype), 0.02, diagonal=0.1)
    fit = reconstruct.quantize(W, factor, 4, pattern="2:4")
    content = pickle.dumps((factor, fit))
    there, found = pickle.loads(content)
    assert len(content) < 2 * (pickle.dumps(factor.moment).__len__() + 4 * W.nbytes)
    assert (there.damping, there.diagonal, there.inputs) == (0.02, 0.1, 64)
    np.testing.assert_array_equal(there.upper, factor.upper)
    np.testing.assert_array_equal(found.weights, fit.weights)
    np.testing.assert_array_equal(found.grid.scale, fit.grid.scale)
    assert (found.error, found.masked_error) == (fit.error, fit.masked_error)
    assert found.heldout(there) == fit.heldout(factor)
