"""Refits at the limits: moments of which single precision holds little, scales at the ends of float64, bad input.

What is refitted is never worse than the mask alone, says so where it cannot be done, or is of no importance to scale.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from mpfast import reconstruct


def near_singular(kind, inputs, rng):
    if kind == "hilbert":
        places = np.arange(inputs)
        return 1 / (places[:, None] + places + 1.0)
    if kind == "low rank":
        X = rng.standard_normal((50, max(1, inputs // 3))) @ rng.standard_normal((max(1, inputs // 3), inputs))
    elif kind == "repeated":
        X = np.repeat(rng.standard_normal((100, inputs // 2)), 2, axis=1)
    else:
        X = np.cumsum(rng.standard_normal((30, inputs)), axis=1)
    C = X.T @ X / len(X)
    return (C + C.T) / 2


def unless_refused(call, *args):
    """What a call returns, or None where it asks for more damping."""
    try:
        return call(*args)
    except ValueError as error:
        if "raise the damping" not in str(error):
            raise
        return None


class TestDelicateMoments:
    @pytest.mark.parametrize("kind", ["hilbert", "low rank", "repeated", "sums"])
    @pytest.mark.parametrize("damping", [0.0, 1e-13, 1e-10, 1e-7, 1e-5])
    @pytest.mark.parametrize("dtype", [np.float64, np.float32])
    def test_no_fit_is_worse_than_its_mask(self, kind, damping, dtype):
        """A hundredth more is for rounding of the weights to single precision and of C."""
        rng = np.random.default_rng(0)
        for inputs in (6, 64, 150):
            C = near_singular(kind, inputs, rng).astype(dtype)
            W = rng.standard_normal((20, inputs)).astype(np.float32)
            mask = rng.random(W.shape) < 0.5
            factor = reconstruct.Factor(C, damping)
            fits = [lambda W, factor, mask=mask: reconstruct.refit(W, factor, mask, steps=30)]
            for options in ({"refit": 0}, {}, {"method": "gradual"}, {"method": "admm"}):
                fits.append(partial(reconstruct.prune, sparsity=0.5, **options))
            for number, fit in enumerate(fits):
                found = unless_refused(fit, W, factor)
                if found is None:
                    continue
                assert np.isfinite(found.weights).all()
                # One sweep without a refit freezes what it has passed, and may lose by that in any precision.
                if number != 1 or factor.is_delicate:
                    assert found.error <= 1.01 * found.masked_error + 1e-9, (number, inputs)

    @pytest.mark.parametrize("kind", ["hilbert", "low rank", "repeated", "sums"])
    @pytest.mark.parametrize("options", [{}, {"group": 16}, {"pattern": "2:4"}], ids=str)
    def test_no_rounding_that_makes_up_for_itself_is_worse_than_rounding_alone(self, kind, options):
        """Alone: with uncorrelated inputs. A hundredth more is for rounding of errors and of C."""
        rng = np.random.default_rng(4)
        tried = 0
        for inputs, damping in ((64, 0.0), (64, 1e-13), (64, 1e-10), (160, 1e-7)):
            C = near_singular(kind, inputs, rng)
            W = rng.standard_normal((20, inputs)).astype(np.float32)
            factor = reconstruct.Factor(C, damping)
            fit = unless_refused(partial(reconstruct.quantize, bits=3, **options), W, factor)
            if fit is None or not factor.is_delicate:
                continue
            tried += 1
            alone = reconstruct.quantize(
                W, reconstruct.Factor(np.eye(inputs)), 3, group=options.get("group", 64), mask=fit.mask
            )
            change = W.astype(np.float64) - alone.weights
            error = np.trace(change @ C @ change.T) / np.trace(W @ C @ W.T.astype(np.float64))
            assert fit.error <= 1.01 * error + 1e-9
            scale, zero = (np.repeat(part, fit.grid.group, 1)[:, :inputs] for part in (fit.grid.scale, fit.grid.zero))
            steps = fit.weights / scale + zero
            # A quotient of single-precision numbers below 8.
            assert np.abs(steps - np.round(steps)).max() < 8 * 2**-22
        assert tried

    @pytest.mark.parametrize("kind", ["hilbert", "low rank", "repeated", "sums"])
    def test_dropped_inputs_are_made_up_for_or_refused(self, kind):
        rng = np.random.default_rng(1)
        for inputs, damping in ((64, 0.0), (64, 1e-12), (64, 1e-9), (64, 1e-4), (150, 0.0), (150, 1e-6)):
            factor = reconstruct.Factor(near_singular(kind, inputs, rng), damping)
            W = rng.standard_normal((20, inputs))
            fit = unless_refused(reconstruct.drop_inputs, W, factor, inputs // 2)
            assert fit is None or fit.error <= 1.01 * fit.masked_error

    def test_the_usual_damping_is_never_delicate(self):
        rng = np.random.default_rng(2)
        for kind in ("hilbert", "low rank", "repeated", "sums"):
            C = near_singular(kind, 200, rng)
            assert not reconstruct.Factor(C).is_delicate
            assert not reconstruct.Factor(C, 0, diagonal=0.3).is_delicate
            assert reconstruct.Factor(C, 1e-13).is_delicate

    def test_inputs_in_units_too_far_apart(self):
        C = np.diag(np.logspace(-100, 100, 16))
        W = np.random.default_rng(3).standard_normal((4, 16))
        with pytest.raises(ValueError, match=r"prune\(\): C is not positive definite .* raise the damping"):
            reconstruct.prune(W, reconstruct.Factor(C, 0), sparsity=0.5)


class TestScales:
    @pytest.mark.parametrize("exponent", [-1020, -600, 500, 990])
    def test_errors_do_not_know_the_scale_of_the_weights(self, exponent):
        rng = np.random.default_rng(4)
        W, X = rng.standard_normal((8, 24)), rng.standard_normal((200, 24)) @ rng.standard_normal((24, 24))
        C = X.T @ X / 200
        plain = reconstruct.prune(W, C, pattern="2:4")
        scaled = reconstruct.prune(W * 2.0**exponent, C, pattern="2:4")
        # At the lower end numbers have fewer bits.
        for found, expected in ((scaled.error, plain.error), (scaled.masked_error, plain.masked_error)):
            assert found == pytest.approx(expected, rel=1e-6)
        assert scaled.heldout(3 * C) == pytest.approx(plain.error, rel=1e-6)
        A, B = reconstruct.lowrank(W * 2.0**exponent, C, error=0.1)
        assert A.shape == reconstruct.lowrank(W, C, error=0.1)[0].shape
        assert np.isfinite(A).all()
        assert np.isfinite(B).all()

    @pytest.mark.parametrize("exponent", [-1030, 1000])
    def test_errors_do_not_know_the_scale_of_the_moment(self, exponent):
        rng = np.random.default_rng(5)
        W, C = rng.standard_normal((8, 16)), np.diag(rng.uniform(1, 2, 16))
        plain, scaled = (reconstruct.prune(W, moment, sparsity=0.5) for moment in (C, C * 2.0**exponent))
        assert scaled.error == pytest.approx(plain.error, rel=1e-6)
        assert scaled.heldout(C) == pytest.approx(plain.error, rel=1e-6)

    def test_what_no_number_holds_is_refused(self):
        with pytest.raises(ValueError, match="C has entries whose sum no number holds"):
            reconstruct.Factor(np.eye(16) * 1.7e308)
        for scale in (1e-60, 1e60):
            with pytest.raises(ValueError, match=r"quantize\(\): W is near .* single precision"):
                reconstruct.quantize(np.eye(16) * scale, np.eye(16), 4)

    def test_large_weights_stay_finite(self):
        """A refit may ask for more than the type has."""
        rng = np.random.default_rng(6)
        X = rng.standard_normal((100, 2)) @ rng.standard_normal((2, 12)) + 0.01 * rng.standard_normal((100, 12))
        W = (rng.uniform(0.9, 1, (6, 12)) * np.finfo(np.float32).max).astype(np.float32)
        fit = reconstruct.prune(W, X.T @ X / 100, sparsity=0.8)
        assert np.isfinite(fit.weights).all()


class TestBadInput:
    @pytest.mark.parametrize("method", ["obs", "gradual", "admm"])
    def test_more_than_the_diagonal_allows(self, method):
        """|C_ij| > sqrt(C_ii C_jj) is of no second moment, and errors would come out below zero."""
        W = np.ones((4, 8))
        for low, entry in ((1.0, 5.0), (0.0, 0.5)):
            C = np.diag(np.r_[low, np.ones(7)])
            C[0, 1] = C[1, 0] = entry
            with pytest.raises(ValueError, match="C is no second moment"):
                reconstruct.prune(W, C, sparsity=0.5, method=method)

    @pytest.mark.parametrize(
        ("call", "match"),
        [
            (lambda W, C: reconstruct.prune(W, C, sparsity=0.5, method=[]), "method must be 'obs', 'gradual', 'admm'"),
            (lambda W, C: reconstruct.quantize(W, C, None), "bits must be a positive integer, not None"),
            (lambda W, C: reconstruct.drop_inputs(W, C, 1, group=None), "group must be a positive integer, not None"),
            (lambda W, C: reconstruct.lowrank(W, C, error=True), "error must lie in"),
            (lambda W, C: reconstruct.lowrank_pooled([(W, C)], 0.5), "layers must be a mapping"),
            (lambda W, C: reconstruct.lowrank_pooled({"a": W}, 0.5), r"layers\['a'\] must be a pair of W and C"),
            (
                lambda W, C: reconstruct.lowrank_pooled({"a": (W, C * np.nan)}, 0.5),
                r"C of layers\['a'\] has 64 non-fin",
            ),
            (lambda W, C: reconstruct.lowrank_pooled({"a": (W, C)}, 0.5, gradients="a"), "gradients must be a mapping"),
        ],
    )
    def test_it_says_what_and_where(self, call, match):
        with pytest.raises((ValueError, TypeError), match=match):
            call(np.ones((4, 8)), np.eye(8))

    @pytest.mark.parametrize(("place", "match"), [("meta", "on the meta device"), ("sparse", "a sparse torch tensor")])
    def test_masks_without_entries(self, place, match):
        torch = pytest.importorskip("torch")
        mask = torch.ones(4, 8, dtype=torch.bool)
        mask = mask.to_sparse() if place == "sparse" else mask.to("meta")
        with pytest.raises((ValueError, TypeError), match=f"the mask of W is {match}"):
            reconstruct.refit(np.ones((4, 8)), np.eye(8), mask)
