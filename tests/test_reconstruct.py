"""Refitted weights against plain NumPy: factors, columns one by one, exact least squares, every set of a group.

Kernels work in single precision on weights near 1. A sum over `n` columns is then wrong by some ``sqrt(n) 2^-24`` of
the terms' size: 1e-5 for what is compared entry by entry here, with a condition of C + damping of some hundreds.
"""

from __future__ import annotations

import contextlib
import itertools
import pickle
import sys
import types
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import mpfast
from mpfast import _core, masks, reconstruct
from mpfast.reconstruct.device_factor import inverse_factor_by_torch

from .references import bfloat16_bits, from_bfloat16_bits

Array = NDArray[Any]


def correlated(inputs: int, samples: int = 2000, seed: int = 0) -> Array:
    """Second moment of inputs with a few strong directions and a decay, as layers have."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((inputs, inputs)) / np.sqrt(np.arange(1, inputs + 1))[:, None]
    X = rng.standard_normal((samples, inputs)) @ mixing
    return X.T @ X / samples


def problem(outputs: int, inputs: int, seed: int = 0) -> tuple[Array, Array]:
    return np.random.default_rng(seed + 1).standard_normal((outputs, inputs)), correlated(inputs, seed=seed)


def damped(C: Array, damping: float = 0.01, diagonal: float = 0.0) -> Array:
    return C + damping * np.diag(C).mean() * np.eye(len(C)) + diagonal * np.diag(np.diag(C))


def upper_factor(H: Array) -> Array:
    """U with U^T U = H^-1, by Cholesky, inverse, Cholesky, as SparseGPT has it."""
    return np.linalg.cholesky(np.linalg.inv(H)).T


def relative_error(W: Array, V: Array, C: Array) -> float:
    D = W - V
    return float(((D @ C) * D).sum() / ((W @ C) * W).sum())


def exact_refit(W: Array, H: Array, keep: Array) -> Array:
    V = np.zeros_like(W)
    for w, v, k in zip(W, V, keep, strict=True):
        v[k] = np.linalg.solve(H[np.ix_(k, k)], (H @ w)[k])
    return V


def scaled_rows(W: Array, V: Array, C: Array) -> Array:
    """Each row of V times what brings it nearest to that of W by C, between 0.5 and 2."""
    image = V @ C
    square = (image * V).sum(axis=1)
    scales = np.divide((image * W).sum(axis=1), square, out=np.ones(len(V)), where=square > 0)
    return V * np.clip(scales, 0.5, 2)[:, None]


def surgeon(
    W: Array, H: Array, *, pruned: int | None = None, keep: Array | None = None, grid: tuple[int, int] | None = None
) -> tuple[Array, Array]:
    """Columns one by one; `pruned` of the first 128 columns at a time, or a mask; a grid of (bits, group)."""
    U, V = upper_factor(H), W.copy()
    cols = W.shape[1]
    keep = np.ones(W.shape, bool) if keep is None else keep.copy()
    scale = zero = np.empty(0)
    for j in range(cols):
        if pruned is not None and j % 128 == 0:
            block = slice(j, min(j + 128, cols))
            count = pruned * block.stop // cols - pruned * j // cols
            score = np.abs(V[:, block] / np.diag(U)[block])
            chosen = np.ones(score.size, bool)
            chosen[np.argsort(score.ravel(), kind="stable")[:count]] = False
            keep[:, block] = chosen.reshape(score.shape)
        after = V[:, j]
        if grid is not None:
            bits, group = grid
            if j % group == 0:
                part = V[:, j : j + group]
                low, high = np.minimum(part.min(axis=1), 0), np.maximum(part.max(axis=1), 0)
                scale = (high - low) / (2**bits - 1)
                zero = np.round(-low / scale)
            after = (np.clip(np.round(after / scale + zero), 0, 2**bits - 1) - zero) * scale
        after = np.where(keep[:, j], after, 0.0)
        lost = (V[:, j] - after) / U[j, j]
        V[:, j:] -= lost[:, None] * U[j, j:]
        V[:, j] = after
    return V, keep


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


SHAPES = [(1, 1), (1, 300), (40, 1), (7, 20), (33, 128), (20, 129), (65, 500)]


class TestColumns:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.6, 1.0])
    def test_sparsegpt_column_by_column(self, shape, sparsity):
        W, C = problem(*shape)
        fit = reconstruct.prune(W, C, sparsity=sparsity, refit=0)
        V, keep = surgeon(W, damped(C), pruned=int(sparsity * W.size * (1 + 2.0**-50)))
        np.testing.assert_array_equal(fit.mask, keep)
        np.testing.assert_allclose(fit.weights, V, atol=2e-5 * np.abs(W).max())
        assert (fit.weights[~fit.mask] == 0).all()
        assert np.count_nonzero(~fit.mask) == int(sparsity * W.size * (1 + 2.0**-50))

    @pytest.mark.parametrize("shape", SHAPES)
    def test_a_given_mask(self, shape):
        W, C = problem(*shape)
        keep = np.random.default_rng(5).random(shape) < 0.5
        fit = reconstruct.refit(W, C, keep, steps=0)
        np.testing.assert_array_equal(fit.mask, keep)
        np.testing.assert_allclose(fit.weights, surgeon(W, damped(C), keep=keep)[0], atol=2e-5 * np.abs(W).max())

    def test_rows_that_matter_more_keep_more(self):
        """As if the rows were larger; the refit of a row does not know of it."""
        W, C = problem(20, 60)
        gradient = 4.0 ** np.random.default_rng(0).integers(-2, 3, 20)
        fit = reconstruct.prune(W, C, sparsity=0.5, gradients=gradient)
        larger = np.sqrt(gradient)[:, None]
        expected = reconstruct.prune(W * larger, C, sparsity=0.5)
        np.testing.assert_array_equal(fit.mask, expected.mask)
        np.testing.assert_allclose(fit.weights, expected.weights / larger, rtol=1e-4, atol=1e-5)
        kept = fit.mask.sum(axis=1)
        assert kept[gradient == gradient.max()].min() > kept[gradient == gradient.min()].max()
        with pytest.raises(ValueError, match=r"prune\(\): gradients must be finite, .* of shape \(20,\)"):
            reconstruct.prune(W, C, sparsity=0.5, gradients=np.ones(60))

    def test_nothing_pruned_is_nothing_changed(self):
        W, C = problem(6, 50)
        fit = reconstruct.prune(W, C, sparsity=0)
        np.testing.assert_array_equal(fit.weights, W)
        assert fit.weights is not W
        assert fit.error == fit.masked_error == 0

    @pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (1, 4), (3, 5), (4, 8)])
    def test_every_set_of_a_group(self, n, m):
        """What goes is the set that costs least given all to its right: of w_D M_DD w_D, M = (U_GG^T U_GG)^-1."""
        W, C = problem(9, 4 * m, seed=m)
        U, V, keep = upper_factor(damped(C)), W.copy(), np.ones(W.shape, bool)
        for start in range(0, W.shape[1], m):
            group = slice(start, start + m)
            M = np.linalg.inv(U[group, group].T @ U[group, group])
            for row in range(len(W)):
                costs = {
                    D: V[row, group][list(D)] @ M[np.ix_(D, D)] @ V[row, group][list(D)]
                    for D in itertools.combinations(range(m), m - n)
                }
                keep[row, [start + j for j in min(costs, key=costs.__getitem__)]] = False
            for j in range(start, start + m):
                lost = np.where(keep[:, j], 0.0, V[:, j]) / U[j, j]
                V[:, j:] -= lost[:, None] * U[j, j:]
                V[~keep[:, j], j] = 0
        fit = reconstruct.prune(W, C, pattern=f"{n}:{m}", refit=0)
        np.testing.assert_array_equal(fit.mask, keep)
        np.testing.assert_allclose(fit.weights, V, atol=2e-5 * np.abs(W).max())

    @pytest.mark.parametrize("pattern", ["8:16", "16:32", "1:64"])
    def test_long_groups(self, pattern):
        n, m = map(int, pattern.split(":"))
        W, C = problem(11, 3 * m)
        fit = reconstruct.prune(W, C, pattern=pattern)
        assert (fit.mask.reshape(11, -1, m).sum(axis=2) == n).all()
        assert fit.error < reconstruct.refit(W, C, masks.n_m(W, n, m)).error

    @pytest.mark.parametrize("shape", [(1, 1), (5, 64), (33, 200), (20, 300)])
    @pytest.mark.parametrize(("bits", "group"), [(1, 8), (3, 64), (4, 50), (8, 200), (4, 150)])
    def test_gptq_column_by_column(self, shape, bits, group):
        W, C = problem(*shape)
        fit = reconstruct.quantize(W, C, bits, group=group)
        V, _ = surgeon(W, damped(C), grid=(bits, min(group, shape[1])))
        # An entry on the verge of two grid points may fall to either, and its row then goes another way.
        same = np.isclose(fit.weights, V, atol=1e-4 * np.abs(W).max()).all(axis=1)
        assert same.mean() >= 0.9
        assert fit.error == pytest.approx(relative_error(W, V, C), rel=0.02, abs=1e-12)
        assert fit.mask.all()

    @pytest.mark.parametrize(("bits", "group"), [(2, 8), (4, 64), (4, None), (8, 32)])
    def test_a_symmetric_grid_has_its_zero_in_the_middle(self, bits, group):
        rng = np.random.default_rng(0)
        W, C = rng.standard_normal((6, 192)), np.diag(rng.uniform(1, 2, 192))  # nothing makes up for anything
        W[0] = 0
        fit = reconstruct.quantize(W.astype(np.float32), C, bits, group=group, symmetric=True)
        middle, parts = 2 ** (bits - 1), W.reshape(6, -1, group or 192)
        assert (fit.grid.zero == middle).all()
        step = np.maximum(parts.max(axis=2) / (middle - 1), parts.min(axis=2) / -middle)
        np.testing.assert_allclose(fit.grid.scale[1:], step[1:], rtol=1e-6)  # a row of zeros needs no step
        assert (fit.weights[0] == 0).all()
        change = np.abs(fit.weights.reshape(parts.shape) - parts)
        assert (change <= step[:, :, None] * (0.5 + 1e-5)).all()
        with pytest.raises(ValueError, match="bits must be at least 2"):
            reconstruct.quantize(W, C, 1, symmetric=True)

    def test_a_grid_of_the_whole_row_and_what_it_is(self):
        W, C = problem(10, 150)
        fit = reconstruct.quantize(W, C, 4, group=None)
        grid = fit.grid
        assert (grid.bits, grid.group, grid.scale.shape) == (4, 150, (10, 1))
        places = fit.weights / grid.scale + grid.zero
        np.testing.assert_allclose(places, np.round(places), atol=1e-4)
        assert places.min() > -0.5
        assert places.max() < 15.5
        np.testing.assert_allclose(grid.scale[:, 0], (W.max(axis=1) - W.min(axis=1)) / 15, rtol=1e-6)

    @pytest.mark.parametrize("options", [{"sparsity": 0.5}, {"pattern": "2:4"}, {"mask": True}])
    def test_rounded_and_pruned_together(self, options):
        W, C = problem(30, 192)
        if "mask" in options:
            options = {"mask": np.random.default_rng(0).random(W.shape) < 0.5}
        fit = reconstruct.quantize(W, C, 5, group=32, **options)
        assert (fit.weights[~fit.mask] == 0).all()
        # Rounding adds its own error to that of pruning.
        alone = reconstruct.refit(W, C, fit.mask, steps=0).error + reconstruct.quantize(W, C, 5, group=32).error
        assert fit.error < 1.5 * alone
        V, _ = surgeon(W, damped(C), keep=fit.mask, grid=(5, 32))
        assert fit.error == pytest.approx(relative_error(W, V, C), rel=0.02)

    def test_same_bits_for_any_number_of_threads(self):
        W, C = problem(700, 400)
        one = reconstruct.Factor(C, threads=1)
        calls = {
            "share": lambda threads: reconstruct.prune(W, one, sparsity=0.55, threads=threads),
            "pattern": lambda threads: reconstruct.prune(W, one, pattern="2:4", threads=threads),
            "gradual": lambda threads: reconstruct.prune(W, one, sparsity=0.55, method="gradual", threads=threads),
            "rounded": lambda threads: reconstruct.quantize(W, one, 3, sparsity=0.3, threads=threads),
        }
        for name, call in calls.items():
            first = call(1)
            for threads in (2, 3, 5):
                other = call(threads)
                np.testing.assert_array_equal(other.weights, first.weights, err_msg=name)
                np.testing.assert_array_equal(other.mask, first.mask, err_msg=name)
                assert other.error == first.error


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


class TestRounds:
    @pytest.mark.parametrize("options", [{"sparsity": 0.6}, {"pattern": "2:4"}])
    def test_rounds_lower_the_error(self, options):
        W, C = problem(80, 320)
        errors = {m: reconstruct.prune(W, C, method=m, **options).error for m in ("obs", "gradual", "admm")}
        assert errors["admm"] < errors["obs"]
        if "sparsity" in options:
            assert errors["gradual"] < errors["obs"]

    @pytest.mark.parametrize("method", ["gradual", "admm"])
    def test_counts_are_exact(self, method):
        W, C = problem(13, 60)
        for sparsity in (0.0, 0.37, 1.0):
            fit = reconstruct.prune(W, C, sparsity=sparsity, method=method)
            assert np.count_nonzero(~fit.mask) == int(sparsity * W.size)
            assert (fit.weights[~fit.mask] == 0).all()
        fit = reconstruct.prune(W, C, pattern=(3, 6), method=method)
        assert (fit.mask.reshape(13, -1, 6).sum(axis=2) == 3).all()


class TestFit:
    def test_errors_are_those_of_the_formula(self):
        W, C = problem(40, 700)
        other = correlated(700, seed=9)
        fit = reconstruct.prune(W, C, sparsity=0.5)
        assert fit.error == pytest.approx(relative_error(W, fit.weights, C), rel=1e-10)
        assert fit.masked_error == pytest.approx(relative_error(W, W * fit.mask, C), rel=1e-10)
        assert fit.heldout(other) == pytest.approx(relative_error(W, fit.weights, other), rel=1e-10)
        assert fit.heldout(reconstruct.Factor(other)) == fit.heldout(other)
        assert (fit.damping, fit.diagonal, fit.grid) == (0.01, 0.0, None)
        with pytest.raises(ValueError, match=r"heldout\(\): C is of 3 inputs, but W has 700"):
            fit.heldout(np.eye(3))

    def test_weights_may_be_overwritten_before_errors_are_asked_for(self):
        W, C = problem(10, 60)
        expected = reconstruct.prune(W, C, sparsity=0.5).error
        fit = reconstruct.prune(W, C, sparsity=0.5)
        W[:] = fit.weights
        assert fit.error == expected

    @pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
    def test_types_stay(self, dtype):
        W, C = problem(12, 90)
        W = W.astype(dtype)
        fit = reconstruct.prune(W, C, sparsity=0.5)
        assert fit.weights.dtype == dtype
        exact = reconstruct.prune(W.astype(np.float64), C, sparsity=0.5)
        np.testing.assert_array_equal(fit.mask, exact.mask)
        np.testing.assert_array_equal(fit.weights, exact.weights.astype(dtype))
        assert fit.error == pytest.approx(relative_error(W.astype(float), fit.weights.astype(float), C), rel=1e-10)

    def test_bfloat16_in_and_out(self):
        torch = pytest.importorskip("torch")
        W, C = problem(12, 90)
        bits = bfloat16_bits(W)
        tensor = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)
        fit = reconstruct.prune(tensor, torch.from_numpy(C), pattern="2:6")
        assert fit.weights.dtype == torch.bfloat16
        assert fit.weights.shape == tensor.shape
        exact = reconstruct.prune(from_bfloat16_bits(bits), C, pattern="2:6")
        np.testing.assert_array_equal(fit.mask.numpy(), exact.mask)
        assert torch.equal(fit.weights, torch.from_numpy(exact.weights).to(torch.bfloat16))
        rounded = fit.weights.double().numpy()
        assert fit.error == pytest.approx(relative_error(from_bfloat16_bits(bits), rounded, C), rel=1e-10)
        A, B = reconstruct.lowrank(tensor, C, 5)
        assert A.dtype == B.dtype == torch.bfloat16

    def test_arrays_of_cupy(self, monkeypatch):
        """By a stand-in for the module: to the host by get(), back by asarray() on the same device."""
        cupy = types.ModuleType("cupy")
        cupy.ndarray = type(
            "ndarray",
            (),
            {
                "__module__": "cupy",
                "__init__": lambda self, host: setattr(self, "host", host),
                "get": lambda self: self.host,
                "device": contextlib.nullcontext(),
            },
        )
        cupy.asarray = cupy.ndarray
        monkeypatch.setitem(sys.modules, "cupy", cupy)
        W, C = problem(6, 40)
        fit = reconstruct.prune(cupy.ndarray(W), cupy.ndarray(C), sparsity=0.5)
        expected = reconstruct.prune(W, C, sparsity=0.5)
        assert isinstance(fit.weights, cupy.ndarray)
        np.testing.assert_array_equal(fit.weights.get(), expected.weights)
        np.testing.assert_array_equal(fit.mask.get(), expected.mask)
        A, B = reconstruct.lowrank(cupy.ndarray(W), cupy.ndarray(C), 3)
        assert isinstance(A, cupy.ndarray)
        assert B.get().shape == (3, 40)
        np.testing.assert_array_equal(reconstruct.refit(cupy.ndarray(W), C, fit.mask).mask.get(), expected.mask)

    def test_bfloat16_of_ml_dtypes(self):
        ml_dtypes = pytest.importorskip("ml_dtypes")
        W, C = problem(5, 40)
        fit = reconstruct.prune(W.astype(ml_dtypes.bfloat16), C, sparsity=0.5)
        assert fit.weights.dtype == ml_dtypes.bfloat16
        assert fit.error < fit.masked_error

    @pytest.mark.parametrize("exponent", [-1000, -140, 120, 1000])
    def test_weights_of_any_scale(self, exponent):
        W, C = problem(6, 50)
        fit = reconstruct.prune(W * 2.0**exponent, C, sparsity=0.5)
        plain = reconstruct.prune(W, C, sparsity=0.5)
        np.testing.assert_array_equal(fit.mask, plain.mask)
        np.testing.assert_array_equal(fit.weights, plain.weights * 2.0**exponent)

    @pytest.mark.parametrize("layout", [np.asfortranarray, lambda a: np.repeat(a, 2, axis=1)[:, ::2]])
    def test_any_layout(self, layout):
        W, C = problem(9, 40)
        np.testing.assert_array_equal(
            reconstruct.prune(layout(W), C, sparsity=0.5).weights, reconstruct.prune(W, C, sparsity=0.5).weights
        )


class TestDeadInputs:
    def dead(self) -> tuple[Array, Array]:
        W, C = problem(20, 60)
        C[::7] = C[:, ::7] = 0
        return W, C

    @pytest.mark.parametrize("factor", [{}, {"damping": 0.0, "diagonal": 0.3}])
    def test_they_are_pruned_first_and_change_nothing(self, factor):
        W, C = self.dead()
        made = reconstruct.Factor(C, **factor)
        fit = reconstruct.prune(W, made, sparsity=0.5)
        assert np.count_nonzero(~fit.mask[:, ::7]) >= 0.9 * fit.mask[:, ::7].size
        alive = np.arange(60) % 7 != 0
        living = reconstruct.Factor(C[np.ix_(alive, alive)], **factor)
        smaller = reconstruct.refit(W[:, alive], living, fit.mask[:, alive], steps=50)
        assert fit.error == pytest.approx(smaller.error, rel=0.1)

    def test_kept_weights_of_dead_inputs_stay(self):
        W, C = self.dead()
        fit = reconstruct.refit(W, C, np.random.default_rng(0).random(W.shape) < 0.6)
        dead = fit.mask & (np.arange(60) % 7 == 0)
        np.testing.assert_allclose(fit.weights[dead], W[dead], rtol=1e-6)

    def test_no_input_at_all(self):
        W = np.random.default_rng(0).standard_normal((4, 8))
        fit = reconstruct.prune(W, np.zeros((8, 8)), sparsity=0.5)
        assert fit.error == fit.masked_error == 0
        np.testing.assert_array_equal(fit.mask, np.abs(W) >= np.median(np.abs(W)))

    def test_zero_weights(self):
        fit = reconstruct.prune(np.zeros((4, 8)), np.eye(8), sparsity=0.5)
        assert np.count_nonzero(~fit.mask) == 16
        assert fit.error == 0
        assert (reconstruct.quantize(np.zeros((4, 8)), np.eye(8), 4).weights == 0).all()


class TestStructured:
    @pytest.mark.parametrize("group", [1, 3, 8])
    def test_greedy_and_least_squares(self, group):
        """Against all candidates tried at every step, each with its least squares."""
        W, C = problem(10, 24, seed=group)
        H, alive = damped(C), np.ones(24, bool)
        for _ in range(2):
            costs = {}
            for start in range(0, 24, group):
                if not alive[start]:
                    continue
                keep = alive.copy()
                keep[start : start + group] = False
                costs[start] = relative_error(W, exact_refit(W, H, np.broadcast_to(keep, W.shape)), H)
            start = min(costs, key=costs.__getitem__)
            alive[start : start + group] = False
        fit = reconstruct.drop_inputs(W, C, 2, group=group)
        np.testing.assert_array_equal(fit.mask, np.broadcast_to(alive, W.shape))
        np.testing.assert_allclose(fit.weights, exact_refit(W, H, fit.mask), atol=1e-9)
        assert fit.error < fit.masked_error

    def test_none_and_nearly_all(self):
        W, C = problem(5, 12)
        np.testing.assert_array_equal(reconstruct.drop_inputs(W, C, 0).weights, W)
        fit = reconstruct.drop_inputs(W, C, 11)
        assert fit.mask.any(axis=0).sum() == 1
        np.testing.assert_allclose(fit.weights, exact_refit(W, damped(C), fit.mask), atol=1e-8)


class TestLowRank:
    @pytest.mark.parametrize("shape", [(20, 50), (50, 20), (1, 9), (30, 30)])
    def test_no_product_of_the_rank_is_better(self, shape):
        """The error is the tail of the singular values of W H^(1/2), by Eckart and Young."""
        W, C = problem(*shape)
        H = damped(C)
        values = np.linalg.svd(W @ np.linalg.cholesky(H), compute_uv=False) ** 2
        for rank in {1, min(shape) // 2 or 1, min(shape)}:
            A, B = reconstruct.lowrank(W, C, rank)
            assert (A.shape, B.shape) == ((shape[0], rank), (rank, shape[1]))
            assert relative_error(W, A @ B, H) == pytest.approx(values[rank:].sum() / values.sum(), abs=1e-10)
            np.testing.assert_allclose(np.linalg.norm(A, axis=0), np.linalg.norm(B, axis=1), rtol=1e-6)

    @pytest.mark.parametrize("error", [0.0, 0.01, 0.2, 1.0])
    def test_the_least_rank_for_an_error(self, error):
        W, C = problem(30, 40)
        A, B = reconstruct.lowrank(W, C, error=error)
        rank = A.shape[1]
        assert relative_error(W, A @ B, C) <= error + 1e-10
        if rank > 1:
            left, right = reconstruct.lowrank(W, C, rank - 1)
            assert relative_error(W, left @ right, C) > error

    def test_pooled_ranks(self):
        """The ranks are the ones that keep most for each parameter, within the budget."""
        layers = {f"layer {k}": problem(*shape, seed=k) for k, shape in enumerate([(20, 50), (50, 20), (30, 30)])}
        layers["layer 1"] = (3 * layers["layer 1"][0], layers["layer 1"][1])
        pooled = reconstruct.lowrank_pooled(layers, 0.5)
        used, cuts, kept = 0, [], []
        for name, (W, C) in layers.items():
            assert pooled[name] is not None
            rank = pooled[name][0].shape[1]
            used += rank * sum(W.shape)
            values = np.linalg.svd(W @ np.linalg.cholesky(damped(C)), compute_uv=False) ** 2 / sum(W.shape)
            kept.append(values[rank - 1])
            cuts.append(values[rank])
        total = sum(W.size for W, _ in layers.values())
        assert 0.5 * total - 2 * 70 < used <= 0.5 * total
        assert min(kept) > sorted(cuts)[0]
        gradients = {name: np.full(len(W), 1e6 if name == "layer 2" else 1e-6) for name, (W, _) in layers.items()}
        weighted = reconstruct.lowrank_pooled(layers, 0.5, gradients=gradients)
        assert weighted["layer 2"] is None

    def test_gradients_weigh_outputs(self):
        """The error that is least is the one of the loss, sum over outputs of gradient times squared change."""
        W, C = problem(20, 50)
        gradient = 10.0 ** np.random.default_rng(0).uniform(-1, 1, 20)
        A, B = reconstruct.lowrank_pooled({"a": (W, C)}, 0.5, gradients={"a": gradient})["a"]
        roots, H = np.sqrt(gradient)[:, None], damped(C)
        values = np.linalg.svd(roots * W @ np.linalg.cholesky(H), compute_uv=False) ** 2
        rank = A.shape[1]
        assert rank == 500 // 70
        lost = relative_error(roots * W, roots * (A @ B), H)
        assert lost == pytest.approx(values[rank:].sum() / values.sum(), rel=1e-9)

    def test_everything_is_dense(self):
        layers = {"a": problem(10, 10), "b": problem(8, 30)}
        assert reconstruct.lowrank_pooled(layers, 1.0) == {"a": None, "b": None}


class TestErrors:
    def test_options(self):
        W, C = problem(4, 8)
        wrong = [
            (reconstruct.prune, {}, "one of sparsity and pattern is needed"),
            (reconstruct.prune, {"sparsity": 0.5, "pattern": "2:4"}, "one of sparsity and pattern"),
            (reconstruct.prune, {"sparsity": 1.5}, r"sparsity must lie in \[0, 1\]"),
            (reconstruct.prune, {"pattern": "5:4"}, "pattern must be n:m"),
            (reconstruct.prune, {"pattern": (2, 3)}, "rows of 8 cannot be cut into groups of 3"),
            (reconstruct.prune, {"sparsity": 0.5, "method": "magic"}, "method must be 'obs', 'gradual', 'admm'"),
            (reconstruct.prune, {"sparsity": 0.5, "refit": -1}, "refit must be an integer"),
            (reconstruct.prune, {"sparsity": 0.5, "threads": 0}, "threads must be a positive integer"),
            (reconstruct.refit, {"mask": np.ones((4, 7), bool)}, "the mask of W must be boolean of shape"),
            (reconstruct.refit, {"mask": np.ones((4, 8), bool), "steps": 1.5}, "steps must be an integer"),
            (reconstruct.quantize, {"bits": 9}, "bits must be at most 8"),
            (reconstruct.quantize, {"bits": 0}, "bits must be a positive integer"),
            (reconstruct.quantize, {"bits": 4, "group": 6, "pattern": "2:4"}, "group must be a multiple of"),
            (reconstruct.quantize, {"bits": 4, "sparsity": 0.5, "pattern": "2:4"}, "exclude each other"),
            (reconstruct.drop_inputs, {"count": 8}, "count must be an integer between 0 and 7"),
            (reconstruct.drop_inputs, {"count": 1, "group": 3}, "group must divide the 8 inputs"),
            (reconstruct.lowrank, {}, "one of rank and error is needed"),
            (reconstruct.lowrank, {"rank": 5}, "rank must be at most"),
            (reconstruct.lowrank, {"error": -0.1}, r"error must lie in \[0, 1\]"),
        ]
        for function, options, text in wrong:
            with pytest.raises(ValueError, match=rf"{function.__name__}\(\): .*{text}"):
                function(W, C, **options)

    def test_shapes_and_entries(self):
        W, C = problem(4, 8)
        for function in (
            lambda w, c: reconstruct.prune(w, c, sparsity=0.5),
            lambda w, c: reconstruct.quantize(w, c, 4),
            lambda w, c: reconstruct.drop_inputs(w, c, 1),
            lambda w, c: reconstruct.lowrank(w, c, 1),
        ):
            with pytest.raises(ValueError, match=r"C is of 8 inputs, but W has 4"):
                function(W.T, C)
            with pytest.raises(ValueError, match="W must be 2-D"):
                function(W.reshape(4, 2, 2, 2), C)
            with pytest.raises(ValueError, match=r"W has 1 non-finite entry .* the first at \(2, 3\)"):
                function(np.where(np.arange(32).reshape(4, 8) == 19, np.nan, W), C)
            with pytest.raises(TypeError, match="W has dtype int64"):
                function(W.astype(np.int64), C)
            with pytest.raises(TypeError, match="C must be an array, not list"):
                function(W, C.tolist())

    def test_pooled_options(self):
        layers = {"a": problem(4, 8)}
        for share in (0, 1.5, True, "half"):
            with pytest.raises(ValueError, match="share must be a number"):
                reconstruct.lowrank_pooled(layers, share)
        with pytest.raises(ValueError, match=r"share is too small: one direction of every layer takes 37.50%"):
            reconstruct.lowrank_pooled(layers, 0.3)
        with pytest.raises(ValueError, match="layers is empty"):
            reconstruct.lowrank_pooled({}, 0.5)
        with pytest.raises(KeyError, match="gradients has none for 'a'"):
            reconstruct.lowrank_pooled(layers, 0.5, gradients={})
        with pytest.raises(ValueError, match=r"gradients\['a'\] must be finite"):
            reconstruct.lowrank_pooled(layers, 0.5, gradients={"a": np.ones(3)})
        with pytest.raises(ValueError, match=r"layers\['a'\] must be 2-D"):
            reconstruct.lowrank_pooled({"a": (np.ones(3), np.eye(3))}, 0.5)


def test_it_is_loaded_at_first_use():
    assert mpfast.reconstruct is reconstruct
    assert "reconstruct" in dir(mpfast)


# On any number of threads ---------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("size", [1, 2, 9])
def test_what_it_costs_to_remove_a_group(size: int) -> None:
    rng = np.random.default_rng(size)
    roots = rng.standard_normal((6, size, size + 3))
    B = roots @ roots.transpose(0, 2, 1)
    G = rng.standard_normal((6, size, size))
    G += G.transpose(0, 2, 1)
    costs = _core.removal_costs(B, G, 2)
    np.testing.assert_allclose(costs, np.trace(np.linalg.solve(B, G), axis1=1, axis2=2), rtol=1e-8, atol=1e-8)
    B[3] *= -1
    assert np.isnan(_core.removal_costs(B, G, 1)).tolist() == [number == 3 for number in range(6)]


@pytest.mark.parametrize("group", [1, 20])
def test_inputs_that_go_are_the_same_for_any_number_of_threads(group: int) -> None:
    W, C = problem(90, 300)
    one, many = (reconstruct.drop_inputs(W, C, 5, group=group, threads=threads) for threads in (1, 3))
    np.testing.assert_array_equal(one.mask, many.mask)
    np.testing.assert_array_equal(one.weights, many.weights)


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
