"""Which tensors are weight matrices."""

from __future__ import annotations

import numpy as np
import pytest

import mpfast
from mpfast.checkpoints import TensorInfo
from mpfast.layers import as_layer, as_matrix


@pytest.mark.parametrize(
    ("name", "shape", "kind", "matrix"),
    [
        ("encoder.layer.0.query.weight", (384, 1536), "linear", (384, 1536)),
        ("embeddings.word_embeddings.weight", (30522, 384), "embedding", (30522, 384)),
        ("transformer.wte.weight", (100, 64), "embedding", (100, 64)),
        ("tok_embeddings.weight", (100, 64), "embedding", (100, 64)),
        ("vit.pos_embed", (1, 197, 64), "embedding", (197, 64)),
        ("conv1.weight", (64, 3, 7, 7), "conv", (64, 147)),
        ("stem.weight", (64, 3, 7, 7), "conv", (64, 147)),
        ("video.weight", (16, 3, 3, 7, 7), "conv", (16, 441)),
        ("wav2vec.conv.0.weight", (32, 16, 10), "conv", (32, 160)),
        ("conv/kernel", (3, 3, 16, 32), "conv", (144, 32)),
    ],
)
def test_matrices(name, shape, kind, matrix):
    layer = as_layer(TensorInfo(name, shape, "float32"))
    assert (layer.kind, layer.shape, layer.tensor_shape) == (kind, matrix, shape)
    assert layer.size == np.prod(shape)


@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        ((64,), "float32", "vector or scalar"),
        ((), "float32", "vector or scalar"),
        ((64, 0), "float32", "empty"),
        ((64, 64), "int64", "integer or boolean"),
        ((64, 64), "bool", "integer or boolean"),
        ((64, 64), "uint8", "integer or boolean"),
        ((64, 64), "float8_e4m3fn", "float8"),
        ((64, 64), "float4_e2m1fn", "packed float4"),
        ((64, 64), "complex64", "complex"),
        ((64, 64), "str32", "not supported"),
        ((64, 7), "float32", "too small"),
        ((8, 64, 64), "float32", "3-D tensor"),
        ((2,) * 6, "float32", "6-D tensor"),
    ],
)
def test_reasons(shape, dtype, reason):
    found = as_layer(TensorInfo("w", shape, dtype))
    assert isinstance(found, str)
    assert reason in found


def test_convolutions_unfold_without_a_copy():
    tensor = np.random.default_rng(0).standard_normal((16, 8, 3, 3))
    layer = as_layer(TensorInfo("conv.weight", tensor.shape, "float64"))
    matrix = as_matrix(tensor, layer)
    assert np.shares_memory(matrix, tensor)
    np.testing.assert_array_equal(matrix, tensor.reshape(16, 72))


def test_bits_of_bfloat16_are_read_as_such():
    values = np.random.default_rng(0).standard_normal((40, 60)).astype(np.float32)
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    layer = as_layer(TensorInfo("w", (40, 60), "bfloat16"))
    spectrum = mpfast.spectrum(as_matrix(bits, layer))
    widened = (bits.astype(np.uint32) << 16).view(np.float32)
    assert spectrum.dtype == "bfloat16"
    np.testing.assert_allclose(spectrum.values, mpfast.spectrum(widened).values, rtol=1e-12)
