"""What a fit of weights to a second moment says and takes: errors, types, dead inputs, bad arguments.

Kernels work in single precision on weights near 1. A sum over `n` columns is then wrong by some ``sqrt(n) 2^-24`` of
the terms' size: 1e-5 for what is compared entry by entry here, with a condition of C + damping of some hundreds.
"""

from __future__ import annotations

import contextlib
import sys
import types
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import mpfast
from mpfast import reconstruct

from .references import bfloat16_bits, from_bfloat16_bits
from .refits import correlated, problem, relative_error

Array = NDArray[Any]


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
