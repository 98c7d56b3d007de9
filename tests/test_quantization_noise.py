"""The rounding of quantised weights beside their noise."""

from __future__ import annotations

import math

import numpy as np
import pytest

import mpfast
from mpfast.spectra import critical_signal, grid_variance, low_rank, quantization_noise

SHAPE = (512, 768)


def weights():
    rng = np.random.default_rng(0)
    return rng.standard_normal(SHAPE) + low_rank(SHAPE, critical_signal(SHAPE) * np.linspace(2, 6, 6), rng)


def quantised(W, bits, group):
    """Symmetric rounding of groups of a row; the values that come back, and the scales."""
    groups = W.reshape(-1, group)
    scale = np.abs(groups).max(axis=1, keepdims=True) / (2 ** (bits - 1) - 1)
    return (np.round(groups / scale) * scale).reshape(W.shape), scale


# Rounding of 1, 4 and 17 % of the spread moves the variance by its square over 12; what is left after the correction is
# that rounding is not quite independent of what it rounds.
@pytest.mark.parametrize(("bits", "before", "after"), [(8, 1e-3, 1e-4), (4, 0.02, 1e-3), (3, 0.08, 5e-3)])
def test_edge_of_the_weights_comes_back(bits, before, after):
    W = weights()
    rounded, scale = quantised(W, bits, 128)
    truth, spectrum = mpfast.spectrum(W).edge, mpfast.spectrum(rounded)
    found = quantization_noise(spectrum, grid_variance(scale))
    moved = spectrum.edge.sigma_plus / truth.sigma_plus - 1
    assert 0 < moved < before
    assert abs(found.sigma_plus / truth.sigma_plus - 1) < after
    assert found.share == pytest.approx(1 - (truth.sigma_plus / spectrum.edge.sigma_plus) ** 2, abs=2 * after)


def test_two_bits_have_no_corrected_edge():
    rounded, scale = quantised(weights(), 2, 64)
    found = quantization_noise(mpfast.spectrum(rounded), grid_variance(scale))
    assert found.share > 0.25
    assert found.sigma_plus is None


def test_uneven_noise_is_compared_by_its_energy():
    W = np.random.default_rng(1).standard_normal(SHAPE) * np.exp(0.5 * np.random.default_rng(2).standard_normal(768))
    spectrum = mpfast.spectrum(W, noise="auto")
    energy = spectrum.edge.variance * spectrum.noise.noise_mass
    found = quantization_noise(spectrum, 0.01 * energy / W.size)
    assert found.share == pytest.approx(0.01)
    assert found.sigma_plus == pytest.approx(math.sqrt(0.99) * spectrum.edge.sigma_plus)


@pytest.mark.parametrize("scale", [[], [-1.0], [np.nan], [np.inf]])
def test_what_is_no_scale_is_refused(scale):
    with pytest.raises(ValueError, match="scale must be"):
        grid_variance(scale)


def test_what_is_no_number_is_refused():
    found = mpfast.spectrum(weights())
    with pytest.raises(ValueError, match="variance must be"):
        quantization_noise(found, np.array([0.1, 0.2]))
    with pytest.raises(TypeError, match="variance must be"):
        quantization_noise(found, "small")
    with pytest.raises(TypeError, match="scale must be"):
        grid_variance("small")


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="variance must be"):
        quantization_noise(mpfast.spectrum(weights()), -1.0)
    with pytest.raises(ValueError, match="no noise"):
        quantization_noise(mpfast.spectrum(np.zeros((70, 80))), 1.0)
