"""Which tensors are weight matrices."""

from __future__ import annotations

import numpy as np
import pytest

import mpfast
from mpfast.checkpoints.base import TensorInfo
from mpfast.checkpoints.difference import Difference
from mpfast.checkpoints.layers import Views, as_layer, as_layers, layer_matrix


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
    matrix = layer_matrix(tensor, layer)
    assert np.shares_memory(matrix, tensor)
    np.testing.assert_array_equal(matrix, tensor.reshape(16, 72))


def test_bits_of_bfloat16_are_read_as_such():
    values = np.random.default_rng(0).standard_normal((40, 60)).astype(np.float32)
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    layer = as_layer(TensorInfo("w", (40, 60), "bfloat16"))
    spectrum = mpfast.spectrum(layer_matrix(bits, layer))
    widened = (bits.astype(np.uint32) << 16).view(np.float32)
    assert spectrum.dtype == "bfloat16"
    np.testing.assert_allclose(spectrum.values, mpfast.spectrum(widened).values, rtol=1e-12)


def matrices(tensors, **views):
    """Every matrix of the tensors by name."""
    found = {}
    for name, tensor in tensors.items():
        for layer in as_layers(TensorInfo(name, tensor.shape, tensor.dtype.name), Views(**views)):
            found[layer.name] = layer_matrix(tensor, layer)
            assert found[layer.name].shape == layer.shape
            assert layer.tensor == name
    return found


def test_fused_projections_are_split():
    W = np.arange(3 * 16 * 16, dtype=np.float32).reshape(48, 16)
    found = matrices({"h.0.attn.qkv.weight": W, "h.0.attn.c_attn.weight": W.T, "h.0.mlp.up.weight": W})
    assert list(found) == [
        *(f"h.0.attn.qkv.weight[{part}]" for part in ("query", "key", "value")),
        *(f"h.0.attn.c_attn.weight[{part}]" for part in ("query", "key", "value")),
        "h.0.mlp.up.weight",
    ]
    for k, part in enumerate(("query", "key", "value")):
        np.testing.assert_array_equal(found[f"h.0.attn.qkv.weight[{part}]"], W[16 * k : 16 * k + 16])
        np.testing.assert_array_equal(found[f"h.0.attn.c_attn.weight[{part}]"], W[16 * k : 16 * k + 16].T)
    assert list(matrices({"h.0.attn.qkv.weight": W}, qkv="fused")) == ["h.0.attn.qkv.weight"]
    # Grouped-query projections and those that alternate head by head stay whole.
    for name, shape in (("a.qkv_proj.weight", (40, 16)), ("a.query_key_value.weight", (48, 16))):
        assert list(matrices({name: np.zeros(shape)})) == [name]


def test_stacks_of_experts():
    W = np.random.default_rng(0).standard_normal((3, 16, 24))
    found = matrices({"mlp.experts.up": W})
    assert list(found) == ["mlp.experts.up[0]", "mlp.experts.up[1]", "mlp.experts.up[2]"]
    np.testing.assert_array_equal(found["mlp.experts.up[1]"], W[1])
    np.testing.assert_array_equal(matrices({"w": W}, experts="stack")["w"], W.reshape(48, 24))


def test_convolutions_position_by_position():
    W = np.random.default_rng(0).standard_normal((16, 12, 2, 3))
    found = matrices({"conv.weight": W, "flax.kernel": W.transpose(2, 3, 1, 0)}, conv="positions")
    assert len(found) == 12
    np.testing.assert_array_equal(found["conv.weight[1,2]"], W[:, :, 1, 2])
    np.testing.assert_array_equal(found["flax.kernel[0,1]"], W[:, :, 0, 1].T)


def test_views_are_checked():
    with pytest.raises(ValueError, match="qkv must be one of split, fused"):
        Views(qkv="thirds")


def test_parts_of_tensors_are_analysed_and_budgeted_together():
    rng = np.random.default_rng(0)
    model = {"qkv.weight": rng.standard_normal((192, 64)), "experts": rng.standard_normal((2, 48, 64))}
    model["experts"][1, 3, 4] = np.nan
    analysis = mpfast.analyze(model)
    assert [row.name for row in analysis] == [f"qkv.weight[{p}]" for p in ("query", "key", "value")] + ["experts[0]"]
    assert [(tensor.name, tensor.shape) for tensor in analysis.skipped] == [("experts[1]", (48, 64))]
    expected = mpfast.spectrum(model["qkv.weight"][64:128])
    assert analysis[1].fro_norm == pytest.approx(expected.fro_norm)
    assert analysis[1].tensor == "qkv.weight"
    budget = analysis.budget(0.5, exclude="experts")
    assert [(row.name, row.pruned) for row in budget] == [("qkv.weight", 6144)]
    masks = mpfast.prune({"qkv.weight": model["qkv.weight"]}, budget=budget).masks
    assert int((~masks["qkv.weight"]).sum()) == 6144


def test_differences():
    rng = np.random.default_rng(0)
    base = {
        "a.weight": rng.standard_normal((64, 96), dtype=np.float32),
        "steps": np.arange(3),
        "b.weight": np.ones((9, 9)),
    }
    update = 0.01 * rng.standard_normal((64, 96), dtype=np.float32)
    tuned = {"a.weight": base["a.weight"] + update, "steps": np.arange(3), "new.weight": np.ones((20, 20))}
    analysis = mpfast.analyze(tuned, base=base)
    assert [row.name for row in analysis] == ["a.weight"]
    assert analysis[0].fro_norm == pytest.approx(np.linalg.norm(update), rel=1e-4)
    assert {tensor.name: tensor.reason[:12] for tensor in analysis.skipped} == {
        "steps": "integer or q",
        "new.weight": "the base has",
    }


def test_differences_of_bfloat16_are_exact():
    torch = pytest.importorskip("torch")
    W = torch.randn(40, 50).bfloat16()
    tuned = (W + 0.1).bfloat16()
    from mpfast.checkpoints.opening import open_checkpoint

    found = Difference(open_checkpoint({"w": tuned}), open_checkpoint({"w": W})).read("w")
    np.testing.assert_array_equal(found, (tuned.float() - W.float()).numpy())


def test_lora_pairs_are_seen_as_their_product():
    rng = np.random.default_rng(0)
    A, B = rng.standard_normal((4, 120), dtype=np.float32), rng.standard_normal((100, 4), dtype=np.float32)
    model = {
        "m.layers.0.q_proj.lora_A.weight": A,
        "m.layers.0.q_proj.lora_B.weight": B,
        "m.v.lora_A.default.weight": A,
        "m.v.lora_B.default.weight": B,
        "lonely.lora_A.weight": rng.standard_normal((16, 120)),
    }
    analysis = mpfast.analyze(model)
    assert {row.name: row.shape for row in analysis} == {
        "m.layers.0.q_proj.lora": (100, 120),
        "m.v.lora.default": (100, 120),
    }
    assert ["lonely" in tensor.reason for tensor in analysis.skipped] == [True]
    row = next(row for row in analysis if row.name == "m.v.lora.default")
    s = np.linalg.svd(B @ A, compute_uv=False)
    assert row.fro_norm == pytest.approx(np.linalg.norm(s), rel=1e-5)
    assert row.spikes == 4
