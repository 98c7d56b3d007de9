"""Kept weights refitted, against exact least squares.

Kernels work in single precision on weights near 1. A sum over `n` columns is then wrong by some ``sqrt(n) 2^-24`` of
the terms' size: 1e-5 for what is compared entry by entry here, with a condition of C + damping of some hundreds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mpfast import reconstruct

from .refits import damped, exact_refit, problem, relative_error, scaled_rows

Array = NDArray[Any]


class TestLeastSquares:
    @pytest.mark.parametrize("shape", [(1, 1), (3, 5), (20, 64), (17, 300), (40, 400)])
    @pytest.mark.parametrize(("damping", "diagonal"), [(0.01, 0.0), (0.0, 0.3)])
    def test_many_steps_are_exact(self, shape, damping, diagonal):
        W, C = problem(*shape)
        H = damped(C, damping, diagonal)
        keep = np.random.default_rng(3).random(shape) < 0.4
        fit = reconstruct.refit(W, reconstruct.Factor(C, damping, diagonal=diagonal), keep, steps=200)
        best = scaled_rows(W, exact_refit(W, H, keep), C)
        assert relative_error(best, fit.weights, H) < 1e-4 * relative_error(W, best, H) + 1e-9
        assert (fit.weights[~keep] == 0).all()

    @settings(max_examples=30)
    @given(st.integers(1, 12), st.integers(1, 40), st.integers(0, 2**32), st.floats(0, 1), st.integers(1, 20))
    def test_scales_of_rows_never_raise_the_error(self, outputs, inputs, seed, share, samples):
        # Of fewer samples than inputs and with strong damping, where rows shrink most.
        rng = np.random.default_rng(seed)
        X, W = rng.standard_normal((samples, inputs)), rng.standard_normal((outputs, inputs))
        C, keep = X.T @ X / samples, rng.random((outputs, inputs)) < share
        factor = reconstruct.Factor(C, damping=0.01, diagonal=0.5)
        fit = reconstruct.refit(W, factor, keep, steps=100)
        V = exact_refit(W, damped(C, 0.01, 0.5), keep)
        for w, v, best in zip(W, fit.weights, V, strict=True):
            assert (w - v) @ C @ (w - v) <= (w - best) @ C @ (w - best) + 1e-4 * (w @ C @ w)

    def test_scales_are_limited_and_stay_away_without_damping(self):
        # One of four equal inputs stays. Strong damping leaves its weight alone, and 4 times that would be best.
        W, C, keep = np.ones((1, 4)), np.ones((4, 4)), np.array([[True, False, False, False]])
        fit = reconstruct.refit(W, reconstruct.Factor(C, damping=0, diagonal=1000), keep, steps=10)
        np.testing.assert_allclose(fit.weights, [[2, 0, 0, 0]], rtol=0.01)
        fit = reconstruct.refit(-W, reconstruct.Factor(C, damping=0, diagonal=0.3), keep, steps=10)
        np.testing.assert_allclose(fit.weights, [[-4, 0, 0, 0]], rtol=1e-5)
        W, C = problem(6, 20)
        keep = np.random.default_rng(1).random(W.shape) < 0.5
        fit = reconstruct.refit(W, reconstruct.Factor(C, damping=0), keep, steps=100)
        np.testing.assert_allclose(fit.weights, exact_refit(W, C, keep), atol=1e-3)

    @pytest.mark.parametrize("inputs", [100, 400, 1000])
    def test_four_steps_get_as_far_as_ten_with_the_diagonal(self, inputs):
        W, C = problem(60, inputs)
        H = damped(C)
        fit = reconstruct.prune(W, C, sparsity=0.6)
        keep, V = fit.mask, reconstruct.prune(W, C, sparsity=0.6, refit=0).weights
        best = relative_error(W, exact_refit(W, H, keep), C)
        residual = ((W - V) @ H) * keep
        direction = image = residual / np.diag(H)
        energy = (residual * image).sum(axis=1, keepdims=True)
        for _ in range(10):
            product = (direction @ H) * keep
            length = energy / (direction * product).sum(axis=1, keepdims=True)
            V, residual = V + length * direction, residual - length * product
            image, before = residual / np.diag(H), energy
            energy = (residual * image).sum(axis=1, keepdims=True)
            direction = image + energy / before * direction
        four, ten = fit.error, relative_error(W, scaled_rows(W, V, C), C)
        assert four < max(ten, 1.01 * best)

    def test_steps_lower_the_damped_error(self):
        W, C = problem(30, 200)
        H = damped(C)
        errors = [relative_error(W, reconstruct.prune(W, C, sparsity=0.6, refit=k).weights, H) for k in (0, 1, 2, 4)]
        assert errors == sorted(errors, reverse=True)

    @settings(max_examples=30)
    @given(st.integers(1, 12), st.integers(1, 40), st.integers(0, 2**32), st.floats(0, 1))
    def test_the_residual_is_orthogonal_to_what_stays(self, outputs, inputs, seed, share):
        W, C = problem(outputs, inputs, seed=seed % 1000)
        keep = np.random.default_rng(seed).random(W.shape) < share
        # Damping would scale the rows in the end: the moment itself has it.
        H = C + 1e-3 * np.diag(C).mean() * np.eye(inputs)
        fit = reconstruct.refit(W, reconstruct.Factor(H, damping=0), keep, steps=100)
        residual = ((W - fit.weights) @ H)[keep]
        scale = np.abs(W).max() * np.abs(H).max() * inputs
        assert np.abs(residual).max(initial=0) < 1e-5 * scale

    def test_it_takes_masks_of_any_framework(self):
        torch = pytest.importorskip("torch")
        W, C = problem(8, 30)
        keep = np.random.default_rng(0).random(W.shape) < 0.5
        expected = reconstruct.refit(W, C, keep)
        fit = reconstruct.refit(torch.from_numpy(W), torch.from_numpy(C), torch.from_numpy(keep))
        assert fit.weights.dtype == torch.float64
        assert fit.mask.dtype == torch.bool
        np.testing.assert_array_equal(fit.weights.numpy(), expected.weights)
