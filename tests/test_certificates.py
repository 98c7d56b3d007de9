"""Certificates: no bound is ever exceeded."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import mpfast
from mpfast import masks
from mpfast.masks import BOUND, EXACT, RemovedWeights, margin_safe, worst_cross_entropy


def cross_entropy(logits: np.ndarray, label: np.ndarray) -> np.ndarray:
    top = logits.max(axis=1, keepdims=True)
    return np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0] - logits[np.arange(len(logits)), label]


def test_worst_cross_entropy_is_reached_and_never_exceeded() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        logits = rng.normal(0, 3, (1, 5))
        label = rng.integers(0, 5, 1)
        eta = rng.exponential(0.5)
        loss = cross_entropy(logits, label)
        bound = worst_cross_entropy(loss, eta)
        worst = logits + eta
        worst[0, label] -= 2 * eta
        assert cross_entropy(worst, label) - loss == pytest.approx(bound, abs=1e-9)
        assert worst_cross_entropy(logits=logits, labels=label, eta=eta) == pytest.approx(bound, abs=1e-9)
        moved = logits + rng.uniform(-eta, eta, logits.shape)
        assert cross_entropy(moved, label) - loss <= bound + 1e-12
        assert bound <= 2 * eta + 1e-12
    assert np.isfinite(worst_cross_entropy(800.0, 1.0))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("margin", [5.0, 15.0, 30.0, 36.0, 38.0, 60.0, 700.0])
@pytest.mark.parametrize("eta", [0.1, 5.0, 20.0, 50.0, 400.0])
def test_a_loss_that_was_rounded_still_gives_a_bound(margin: float, eta: float, dtype: Any) -> None:
    """Of two classes the increase is log(1 + e^(2 eta - margin)) - log(1 + e^-margin), known without rounding."""
    exact = np.logaddexp(0, 2 * eta - margin) - np.logaddexp(0, -margin)
    from_logits = worst_cross_entropy(logits=[[margin, 0.0]], labels=[0], eta=eta)[0]
    assert from_logits == pytest.approx(exact, rel=1e-12)
    assert worst_cross_entropy(logits=[[0.0, -margin]], labels=[0], eta=eta)[0] == from_logits  # log-probabilities
    rounded = np.log(1 + np.exp(dtype(-margin), dtype=dtype), dtype=dtype)
    assert exact <= worst_cross_entropy(rounded, eta) <= 2 * eta
    assert worst_cross_entropy(dtype(0), eta) == 2 * eta


def test_worst_cross_entropy_of_what_does_not_fit() -> None:
    for arguments in ({}, {"loss": 1.0, "logits": [[1.0, 0.0]], "labels": [0]}):
        with pytest.raises(ValueError, match="either loss, or logits and labels"):
            worst_cross_entropy(**arguments, eta=1.0)
    for labels in (None, [0, 1], [0.5], [[0]]):
        with pytest.raises(ValueError, match="labels must be integers"):
            worst_cross_entropy(logits=[[1.0, 0.0]], labels=labels, eta=1.0)
    for labels in ([2], [-100]):
        with pytest.raises(ValueError, match=r"labels must lie in \[0, 2\)"):
            worst_cross_entropy(logits=[[1.0, 0.0]], labels=labels, eta=1.0)


def test_margin_safe() -> None:
    logits = [[3.0, 1.0, 0.0], [1.0, 0.9, 0.0]]
    assert margin_safe(logits, 0.5).tolist() == [True, False]
    assert margin_safe(logits, [1.0, 0.01]).tolist() == [False, True]
    with pytest.raises(ValueError, match="two at least"):
        margin_safe(logits[0], 0.5)


def test_one_layer() -> None:
    rng = np.random.default_rng(1)
    W = rng.standard_normal((20, 30))
    mask = masks.magnitude(W, 0.6)
    removed = RemovedWeights(W, mask, "fc")
    X = rng.standard_normal((50, 4, 30))
    for tokens in X:
        removed.add(tokens, 2.0)
    found = removed.certificate("bound")
    R = W * ~mask
    shifts = np.abs(X @ R.T).max(axis=(1, 2))
    assert found.shift_mean == (pytest.approx(shifts.mean()), EXACT)
    assert found.shift_max.value == pytest.approx(shifts.max())
    assert found.budget == (pytest.approx(4 * shifts.mean()), BOUND)
    for weaker in (found.moment_bound, found.row_bound, found.induced_bound):
        assert weaker.kind == BOUND
        assert weaker.value >= shifts.mean()
    assert found.random_sign_bound.kind == "assuming random signs"
    assert found.gaussian_bound.kind.startswith("assuming")
    assert found.break_even_l2.value * found.norm_squared.value == pytest.approx(found.budget.value)
    assert found.certified(l2=1.01 * found.break_even_l2.value)
    assert not found.certified(l2=0.99 * found.break_even_l2.value)
    assert found.certified(l1=1.01 * found.break_even_l1.value)
    assert found.sparsity == pytest.approx(0.6)
    row = found.to_dict()
    assert row["budget_kind"] == BOUND
    assert row["sigma_plus"] == mpfast.spectrum(W).edge.sigma_plus
    assert found.gaussian_bound.value / found.shift_max.value > 0.1
    proxy = removed.certificate()
    assert proxy.budget.kind == "proxy"
    assert not proxy.certified(l2=1e9)


@pytest.mark.slow
def test_bounds_under_assumptions_hold_when_these_do() -> None:
    """200 draws each at delta = 0.1: the union bounds fail far less often than 20 times."""
    rng = np.random.default_rng(2)
    X = rng.standard_normal((30, 40))
    nothing = np.zeros((25, 40), np.bool_)
    failures = {"signs": 0, "noise": 0}
    size = np.abs(rng.standard_normal((25, 40)))
    for _ in range(200):
        signs = RemovedWeights(size * rng.choice([-1, 1], size.shape), nothing)
        noise = RemovedWeights(rng.standard_normal((25, 40)), nothing)
        for x in X:
            signs.add(x)
            noise.add(x)
        found = signs.certificate(delta=0.1)
        failures["signs"] += found.shift_max.value > found.random_sign_bound.value
        found = noise.certificate(delta=0.1)
        failures["noise"] += found.shift_max.value > found.gaussian_bound.value
    assert failures["signs"] <= 20
    assert failures["noise"] <= 20


def test_random_signs_are_bounded_over_all_places_and_not_over_outputs_alone() -> None:
    """One output, 3000 places: the largest of so many sums is beyond what one is with probability 0.95, every time."""
    rng = np.random.default_rng(3)
    X = rng.standard_normal((3000, 500))
    nothing = np.zeros((1, 500), np.bool_)
    for _ in range(10):
        removed = RemovedWeights(rng.choice([-1.0, 1.0], (1, 500)), nothing)
        for places in X.reshape(10, 300, 500):
            removed.add(places)
        found = removed.certificate(delta=0.05)
        assert found.shift_max.value <= found.random_sign_bound.value
        # Hoeffding's bound for a single sum, which a union over the one output would leave it at.
        single = math.sqrt(2 * math.log(2 / 0.05)) * math.sqrt(float((X**2).sum(axis=1).max()))
        assert found.shift_max.value > single


def test_errors() -> None:
    removed = RemovedWeights(np.eye(3), np.eye(3, dtype=np.bool_))
    with pytest.raises(ValueError, match="no sample"):
        removed.certificate()
    removed.add(np.ones(3))
    assert removed.certificate().gaussian_bound.value == 0
    with pytest.raises(ValueError, match="delta"):
        removed.certificate(delta=0)
    with pytest.raises(ValueError, match="lipschitz"):
        removed.certificate("surely")
    for inputs in (np.ones(4), np.ones((0, 3)), np.ones((2, 3)) * 1j, np.ones((1, 2, 3))):
        with pytest.raises(ValueError, match=r"inputs of layer must be real, \(places, 3\)"):
            removed.add(inputs)
    with pytest.raises(ValueError, match="non-finite"):
        removed.add([1.0, np.nan, 0.0])
    for lipschitz in (-1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="lipschitz must be"):
            removed.add(np.ones(3), lipschitz)
