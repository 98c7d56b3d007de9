"""Certificates: no bound is ever exceeded."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import mpfast
from mpfast import masks
from mpfast.masks.certificates import BOUND, EXACT, RemovedWeights, margin_safe, worst_cross_entropy


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
        moved = logits + rng.uniform(-eta, eta, logits.shape)
        assert cross_entropy(moved, label) - loss <= bound + 1e-12
        assert bound <= 2 * eta + 1e-12
    assert worst_cross_entropy(0.0, 1.0) == 0
    assert np.isfinite(worst_cross_entropy(800.0, 1.0))


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


torch = pytest.importorskip("torch")

from mpfast.integrations.torch.certificates import certify, magnification  # noqa: E402


def random_network(seed: int) -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(seed)
    if seed % 3 == 0:
        model = torch.nn.Sequential(
            torch.nn.Conv2d(2, 6, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.MaxPool2d(2),
            torch.nn.Conv2d(6, 4, 3, stride=2, padding=1),
            torch.nn.LeakyReLU(0.2),
            torch.nn.Flatten(),
            torch.nn.Linear(16, 5),
        )
        return model, torch.randn(12, 2, 8, 8)
    depth = 2 + seed % 4
    parts: list[Any] = []
    for _ in range(depth):
        parts += [torch.nn.Linear(20, 20), torch.nn.ReLU()]
    if seed % 2:
        norm = torch.nn.BatchNorm1d(20)
        norm.running_var.uniform_(0.3, 2)
        norm.weight.data.uniform_(-1.5, 1.5)
        parts.insert(1, norm)
    nested = torch.nn.Sequential(torch.nn.Sequential(*parts), torch.nn.Linear(20, 5))
    return nested, torch.randn(12, 20)


@pytest.mark.parametrize("seed", range(24))
@pytest.mark.parametrize("order", ["input_to_output", "output_to_input"])
def test_no_certified_bound_is_ever_violated(seed: int, order: str) -> None:
    model, x = random_network(seed)
    y = torch.randint(0, 5, (len(x),))
    weights = {name: p.detach() for name, p in model.named_parameters() if p.dim() > 1}
    sparsity = [0.02, 0.1, 0.4, 0.8][seed % 4]
    found_masks = masks.magnitude(weights, sparsity)
    found = certify(model, found_masks, x.split(5), labels=y.split(5), order=order, lipschitz="product")
    assert found.budget.kind == BOUND
    eta = sum(layer.eta for layer in found.layers)
    slack = 1 + 1e-5
    assert (found.realised_eta <= eta * slack + 1e-6).all()
    assert found.loss_change is not None
    assert found.worst_loss_change is not None
    assert abs(found.loss_change.value) <= found.budget.value * slack
    assert found.loss_change.value <= found.worst_loss_change.value * slack + 1e-7
    assert found.changed.value <= 1 - found.realised_margin_safe.value
    assert found.realised_margin_safe.value >= found.margin_safe.value
    assert found.realised_eta.mean() <= sum(found.attribution.values()) * slack
    for layer in found.layers:
        assert found.attribution[layer.name] <= layer.eta.mean() * slack + 1e-7
        assert layer.shift_mean.value <= layer.moment_bound.value * slack
    # The elastic-net certificate: with a penalty above break-even, pruning lowers the regularised loss.
    removed = {name: weights[name] * ~found_masks[name] for name in weights}
    squares = sum(float((R.double() ** 2).sum()) for R in removed.values())
    l2 = 1.001 * found.budget.value / squares
    assert found.loss_change.value - l2 * squares < 0


def test_the_last_layer_is_exact_and_jacobians_are_estimates() -> None:
    model, x = random_network(1)
    last = "1.weight"
    mask = {last: masks.magnitude(model[1].weight.detach(), 0.5)}
    found = certify(model, mask, [x])
    assert found.layers[0].lipschitz == EXACT
    np.testing.assert_allclose(found.layers[0].eta, found.realised_eta, rtol=1e-5)
    every = masks.magnitude({n: p.detach() for n, p in model.named_parameters() if p.dim() > 1}, 0.05)
    estimate = certify(model, every, [x], lipschitz="jacobian")
    bound = certify(model, every, [x], lipschitz="product")
    assert estimate.budget.kind == "estimate"
    assert estimate.budget.value < bound.budget.value
    assert certify(model, every, [x]).budget.kind == "proxy"
    given = certify(model, every, [x], lipschitz=lambda name, sample: 3.0)
    assert given.layers[0].eta == pytest.approx(3 * certify(model, every, [x]).layers[0].eta)
    assert len(bound.to_rows()) == len(every)


def test_magnification_is_a_bound() -> None:
    torch.manual_seed(0)
    for module in (
        torch.nn.Linear(10, 7),
        torch.nn.GELU(),
        torch.nn.SiLU(),
        torch.nn.Sigmoid(),
        torch.nn.Tanh(),
        torch.nn.Sequential(torch.nn.Linear(10, 10), torch.nn.LeakyReLU(2.0)),
    ):
        a = 3 * torch.randn(500, 10)
        b = a + torch.randn(500, 10) * torch.logspace(-3, 1, 500)[:, None]
        growth = ((module(a) - module(b)).abs().amax(dim=1) / (a - b).abs().amax(dim=1)).max().detach()
        assert float(growth) <= magnification(module) * (1 + 1e-5)
    with pytest.raises(ValueError, match="LayerNorm"):
        magnification(torch.nn.LayerNorm(4))


def test_certify_errors() -> None:
    model, x = random_network(1)
    mask = {"1.weight": torch.ones(5, 20, dtype=torch.bool)}
    with pytest.raises(ValueError, match="order"):
        certify(model, mask, [x], order="any")
    with pytest.raises(ValueError, match="lipschitz"):
        certify(model, mask, [x], lipschitz="guess")
    with pytest.raises(ValueError, match="no sample"):
        certify(model, mask, [])
    with pytest.raises(ValueError, match="shape"):
        certify(model, {"1.weight": torch.ones(5, 2, dtype=torch.bool)}, [x])
    with pytest.raises(ValueError, match="not the weight"):
        certify(model, {"1.bias": torch.ones(5, dtype=torch.bool)}, [x])
    shared = torch.nn.Linear(20, 20)
    twice = torch.nn.Sequential(shared, torch.nn.ReLU(), shared)
    with pytest.raises(ValueError, match="exactly once"):
        certify(twice, {"0.weight": torch.ones(20, 20, dtype=torch.bool)}, [x])
