"""The edges of quantised weights without the rounding: of formats whose decoders tell how much that is."""

from __future__ import annotations

import numpy as np
import pytest

import mpfast
from mpfast.arrays import QuantisedArray
from mpfast.checkpoints.quantised import bitsandbytes, compressed_tensors, mlx
from mpfast.spectra import critical_signal, low_rank, quantization_noise
from tests.quantised_encoders import group, packed

SHAPE = (1024, 1536)


def weights():
    rng = np.random.default_rng(0)
    W = rng.standard_normal(SHAPE) + low_rank(SHAPE, critical_signal(SHAPE) * np.linspace(2, 6, 6), rng)
    return W.astype(np.float32)


@pytest.fixture(scope="module")
def dense():
    W = weights()
    return W, mpfast.spectrum(W, method="exact").edge.sigma_plus


def symmetric(W, bits, width):
    """compressed-tensors, with the largest of a group at the last code."""
    groups = W.reshape(len(W), -1, width)
    half = 2 ** (bits - 1)
    scales = np.abs(groups).max(axis=-1) / (half - 1)
    codes = np.clip(np.rint(groups / scales[..., None]), -half, half - 1).astype(int).reshape(W.shape)
    parts = {
        "l.weight_packed": packed(codes + half, bits),
        "l.weight_scale": scales,
        "l.weight_shape": np.array(W.shape),
    }
    return compressed_tensors.decoder_of_packs(group(parts, {"quant_method": "compressed-tensors"}))


def from_end_to_end(W, bits, width):
    """Transformers' metal: codes from the smallest of a group to the largest."""
    groups = W.reshape(len(W), -1, width)
    low, high = groups.min(axis=-1), groups.max(axis=-1)
    scales = (high - low) / (2**bits - 1)
    codes = np.rint((groups - low[..., None]) / scales[..., None]).astype(int).reshape(W.shape)
    parts = {"l.weight": packed(codes, bits).view(np.uint32), "l.scales": scales, "l.qbiases": low}
    return mlx.decoder(group(parts, {"quant_method": "metal", "bits": bits, "group_size": width}))


def edges(decoder):
    """Return the edge of what comes out of the codes, and that without the rounding."""
    array = QuantisedArray(decoder)
    spectrum = mpfast.spectrum(np.asarray(array), method="exact")
    return spectrum.edge.sigma_plus, quantization_noise(spectrum, array.rounding()).sigma_plus


# How much rounding moves the edge follows from its variance over that of the noise. Of what is left after that is taken
# out, a fifth of a percent, a part is that rounding is not quite independent of what it rounds.
@pytest.mark.parametrize(("bits", "width", "moved"), [(8, 128, 0), (4, 32, 0.0055), (4, 128, 0.0073), (3, 128, 0.0403)])
def test_edge_of_the_dense_weights_comes_back(dense, bits, width, moved):
    W, truth = dense
    found, corrected = edges(symmetric(W, bits, width))
    assert found / truth - 1 == pytest.approx(moved, rel=0.15, abs=1e-4)
    assert corrected == pytest.approx(truth, rel=2e-3)
    found, corrected = edges(from_end_to_end(W, bits, width))
    assert found > truth
    assert corrected == pytest.approx(truth, rel=2e-3)


def test_rounding_to_a_table_is_its_error(dense):
    functional = pytest.importorskip("bitsandbytes.functional")
    torch = pytest.importorskip("torch")
    W, _ = dense
    codes, state = functional.quantize_4bit(torch.from_numpy(W), blocksize=64, quant_type="nf4")
    parts = {"l.weight": codes.numpy()}
    parts |= {f"l.weight.{word}": part.numpy() for word, part in state.as_dict(packed=True).items()}
    array = QuantisedArray(bitsandbytes.four_bits(group(parts, {"quant_method": "bitsandbytes"})))
    # Normal numbers are not spread evenly within the cells of the table.
    error = np.mean(np.square(np.asarray(array) - W, dtype=np.float64))
    assert array.rounding() == pytest.approx(error, rel=0.15)


def test_rounding_of_mlx_is_open(dense):
    mx = pytest.importorskip("mlx.core")
    W, _ = dense
    quantised = mx.quantize(mx.array(W), group_size=64, bits=4)
    parts = {f"l.{word}": np.array(part) for word, part in zip(("weight", "scales", "biases"), quantised, strict=True)}
    array = QuantisedArray(mlx.decoder(group(parts, quantization={"bits": 4, "group_size": 64})))
    # Its grids begin at the end that is farther from zero and may stop short of the other one.
    variance = np.var(np.asarray(array), dtype=np.float64)
    scales = np.square(parts["l.scales"], dtype=np.float64)
    assert variance - np.var(W, dtype=np.float64) < 0.5 * np.mean(scales) / 12
    assert array.rounding() is None
