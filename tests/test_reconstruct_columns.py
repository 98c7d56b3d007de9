"""Columns pruned and rounded one by one, against plain NumPy and every set of a group.

Kernels work in single precision on weights near 1. A sum over `n` columns is then wrong by some ``sqrt(n) 2^-24`` of
the terms' size: 1e-5 for what is compared entry by entry here, with a condition of C + damping of some hundreds.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mpfast import masks, reconstruct

from .refits import damped, problem, relative_error, surgeon, upper_factor

Array = NDArray[Any]


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
