"""Layer weights of the spectral budget."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mpfast.masks.regimes import BERLYAND2026, Regime, default_layer_type, layer_weights, regime_for


@pytest.mark.parametrize(
    ("sparsity", "beta", "vanishing", "weights"),
    [
        (0.25, 1.0, 0.5, [0.32918, 0.77639, 1.22361, 1.67082]),
        (0.5, 1.25, 0.7, [0.52084, 0.84028, 1.15972, 1.47916]),
        (0.65, 1.5, 0.85, [0.52648, 0.84216, 1.15784, 1.47352]),
    ],
)
def test_published_toy_example(sparsity, beta, vanishing, weights):
    rule = Regime(1.0, "sigma_plus", {"other": beta}, vanishing)
    np.testing.assert_allclose(layer_weights([1, 2, 3, 4], sparsity, rule), weights, atol=5.1e-6)


def test_published_regimes():
    for sparsity, signal, beta, vanishing in (
        (0.0, "hill", 0.5, 0.3),
        (0.20, "hill", 0.5, 0.3),
        (0.21, "sigma_plus", 1.0, 0.5),
        (0.40, "sigma_plus", 1.0, 0.5),
        (0.55, "sigma_plus", 1.25, 0.7),
        (0.56, "sigma_plus", 1.5, 0.85),
        (1.0, "sigma_plus", 1.5, 0.85),
    ):
        rule = regime_for(sparsity)
        assert (rule.signal, rule.beta["other"], rule.vanishing, rule.power) == (signal, beta, vanishing, 1)
    assert BERLYAND2026[-1].beta == {"attn": 1.0, "mlp": 2.0, "other": 1.5}


def test_layer_types_choose_the_strength():
    rule = BERLYAND2026[-1]
    names = ["blocks.0.attn.qkv", "blocks.0.mlp.fc1", "encoder.fc2", "bert.attention.key", "head"]
    types = [default_layer_type(name) for name in names]
    assert types == ["attn", "mlp", "mlp", "attn", "other"]
    z = (np.arange(5) - 2) / math.sqrt(2)
    fading = 1 - 0.6 / 0.85
    wanted = np.maximum(0.1, 1 + np.array([1.0, 2, 2, 1, 1.5]) * fading * z)
    np.testing.assert_allclose(layer_weights(np.arange(5), 0.6, rule, types), wanted)


def test_limits():
    rule = Regime(1.0, "sigma_plus", {"other": 3.0}, 0.5)
    assert layer_weights([1, 2, 30], 0.1, rule, smallest_weight=0.2).min() == 0.2
    np.testing.assert_array_equal(layer_weights([1, 2, 30], 0.5, rule), 1)  # faded to plain magnitude
    np.testing.assert_array_equal(layer_weights([7, 7, 7], 0.1, rule), 1)
    np.testing.assert_array_equal(layer_weights([math.nan, math.nan], 0.1, rule), 1)
    weights = layer_weights([1, math.nan, 3], 0.1, rule)
    assert weights[1] == 1
    assert weights[0] < 1 < weights[2]


def test_fading_power():
    linear, square = (Regime(1.0, "sigma_plus", {"other": 1.0}, 0.8, power) for power in (1, 2))
    a, b = layer_weights([1, 3], 0.4, linear), layer_weights([1, 3], 0.4, square)
    np.testing.assert_allclose(b - 1, (a - 1) / 2)


def test_no_regime_covers_it():
    with pytest.raises(ValueError, match=r"no regime covers a sparsity of 0\.9"):
        regime_for(0.9, BERLYAND2026[:2])


def test_a_misspelt_signal_is_no_other_one():
    with pytest.raises(ValueError, match="signal must be one of sigma_plus, hill, entry_std, not 'edge'"):
        Regime(1.0, "edge", {"other": 1.0}, 0.5)
    with pytest.raises(ValueError, match='beta needs a value for "other"'):
        Regime(1.0, "hill", {"mlp": 1.0}, 0.5)
    with pytest.raises(ValueError, match="must be positive"):
        Regime(0.5, "hill", {"other": 1.0}, 0.0)
