"""Whole groups of inputs that go, and products of low rank, against plain NumPy and brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mpfast import _core, reconstruct

from .refits import damped, exact_refit, problem, relative_error

Array = NDArray[Any]


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
