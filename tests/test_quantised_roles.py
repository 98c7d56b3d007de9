"""Quantised weights and their companions are told from others, and what does not go with them is refused."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from safetensors.numpy import save_file

import mpfast
from mpfast.checkpoints import roles_of
from mpfast.checkpoints.roles import quantised_weight

from .named_tensors import Named, weight

# Of each format of quantised weights: which tensors are packed, which belong to them, and which are neither.
QUANTISED = {
    "block float8": {
        "l.weight": ((256, 256), "float8_e4m3fn", "quantised"),
        "l.weight_scale_inv": ((2, 2), "float32", "companion"),
        "l.bias": ((256,), "float32", "vector"),
    },
    "float8 with a suffix nobody has seen": {
        "l.weight": ((256, 256), "float8_e5m2", "quantised"),
        "l.descale": ((256, 16), "float32", "companion"),
    },
    "GPTQ": {
        "q.qweight": ((64, 512), "int32", "quantised"),
        "q.qzeros": ((16, 64), "int32", "companion"),
        "q.scales": ((16, 512), "float16", "companion"),
        "q.g_idx": ((512,), "int32", "companion"),
        "norm.weight": ((512,), "float16", "vector"),
        "lm_head.weight": ((100, 64), "float16", "head"),
    },
    "compressed-tensors": {
        "q.weight_packed": ((64, 64), "int32", "quantised"),
        "q.weight_scale": ((64, 16), "bfloat16", "companion"),
        "q.weight_shape": ((2,), "int64", "companion"),
    },
    "MXFP4 stacks": {
        "m.experts.gate_up_proj_blocks": ((4, 64, 2, 16), "uint8", "quantised"),
        "m.experts.gate_up_proj_scales": ((4, 64, 2), "uint8", "companion"),
        "m.experts.gate_up_proj_bias": ((4, 64), "bfloat16", "vector"),
    },
    "stacks of float8": {
        "m.experts.down_proj": ((4, 64, 64), "float8_e4m3fn", "quantised"),
        "m.experts.down_proj_scale_inv": ((4, 16, 16), "float32", "companion"),
    },
    "bitsandbytes": {
        "q.weight": ((2048, 1), "uint8", "quantised"),
        "q.weight.absmax": ((64,), "float32", "companion"),
        "q.weight.nested_quant_map": ((16, 16), "float32", "companion"),
        "q.weight.quant_state.bitsandbytes__nf4": ((80,), "uint8", "companion"),
    },
    "MLX": {
        "l.weight": ((64, 32), "uint32", "quantised"),
        "l.scales": ((64, 16), "float16", "companion"),
        "l.biases": ((64, 16), "float16", "companion"),
    },
    "torchao": {
        "l._weight_qdata": ((64, 64), "int8", "quantised"),
        "l._weight_scale": ((64, 16), "float32", "companion"),
    },
    "SVDQuant": {
        "l.qweight": ((64, 32), "int8", "quantised"),
        "l.wscales": ((16, 64), "bfloat16", "companion"),
        "l.proj_down": ((64, 16), "bfloat16", "companion"),
        "l.proj_up": ((64, 16), "bfloat16", "companion"),
    },
    "HQQ": {"l.W_q": ((64, 64), "uint8", "quantised"), "l.scale": ((64, 16), "float16", "companion")},
    "SpQR": {
        "l.dense_weights": ((4096,), "int64", "quantised"),
        "l.scales": ((16, 256), "float32", "companion"),
        "o.weight": ((64, 64), "float32", "linear"),
    },
    "codes in int64": {
        "l.qweight": ((64, 64), "int64", "quantised"),
        "l.scales": ((16, 64), "float16", "companion"),
    },
    "bits": {"l.weight_bits": ((64, 64), "bool", "quantised"), "l.scales": ((16, 64), "float16", "companion")},
    "QuIP#": {"l.Qidxs": ((64, 64), "int64", "quantised"), "l.codebook": ((256, 8), "float32", "companion")},
    "VPTQ": {
        "l.indices": ((1, 64, 16), "int32", "quantised"),
        "l.res_indices": ((1, 64, 16), "uint16", "quantised"),
        "l.centroids.weight": ((1, 2048), "float16", "companion"),
        "l.res_centroids.weight": ((16, 2048), "float16", "companion"),
        "l.perm": ((64,), "uint16", "companion"),
        "l.weight_scale": ((64,), "float16", "companion"),
        "l.weight_bias": ((64,), "float16", "vector"),
    },
    "codes in a list of codebooks": {
        "l.codes": ((64, 16, 2), "int16", "quantised"),
        "l.codebooks.0": ((256, 8), "float16", "companion"),
        "l.codebooks.1": ((256, 8), "float16", "companion"),
    },
    "scales in a module of their own": {
        "l.weight": ((64, 64), "int8", "quantised"),
        "l.scale.weight": ((64, 16), "float32", "companion"),
        "l.zeros.weight": ((64, 16), "uint8", "companion"),
        "l.norm.weight": ((64,), "float32", "vector"),
        "l.out.weight": ((64, 64), "float32", "linear"),
    },
    "no module": {"weight": ((64, 64), "int8", "quantised"), "weight_scale": ((64, 16), "float32", "companion")},
    # Integers that make nothing quantised.
    "a causal mask": {
        "h.attn.bias": ((1, 1, 64, 64), "uint8", "buffer"),
        "h.attn.rel": ((64, 64), "float32", "unknown"),
        "h.attn.c.weight": ((64, 64), "float32", "linear"),
    },
    "positions": {
        "embeddings.position_ids": ((1, 64), "int32", "buffer"),
        "embeddings.position_embeddings": ((1, 64, 64), "float32", "embedding"),
    },
    "int64 and bool beside a plain weight": {
        "m.relation": ((64, 64), "int64", "buffer"),
        "m.tril": ((64, 64), "bool", "buffer"),
        "m.weight": ((64, 64), "float32", "linear"),
    },
    "LeViT": {
        "a.attention_biases": ((12, 49), "float32", "vector"),
        "a.attention_bias_idxs": ((49, 49), "int64", "buffer"),
        "a.qkv.weight": ((192, 64), "float32", "linear"),
    },
    "LeViT in int32": {
        "a.attention_biases": ((12, 49), "float32", "vector"),
        "a.attention_bias_idxs": ((49, 49), "int32", "buffer"),
    },
    "Swin": {
        "a.logit_scale": ((12, 1, 1), "float32", "unknown"),
        "a.relative_position_index": ((49, 49), "int64", "buffer"),
        "a.table": ((49, 49), "int64", "buffer"),
        "a.qkv.weight": ((192, 64), "float32", "linear"),
    },
    "a mask beside a learned scale": {
        "a.scale": ((1,), "float32", "vector"),
        "a.tril": ((64, 64), "bool", "buffer"),
        "a.rows": ((64, 64), "int64", "buffer"),
    },
    "a module that is called scale": {
        "a.scale.weight": ((64, 64), "float32", "linear"),
        "a.0.weight": ((64, 64), "float32", "linear"),
    },
    "indices without a codebook": {
        "a.indices": ((64, 64), "int32", "buffer"),
        "a.scale": ((64, 16), "float32", "unknown"),
    },
    "a table beside a plain weight": {
        "m.table": ((64, 64), "int32", "buffer"),
        "m.weight": ((64, 64), "float32", "linear"),
    },
    "arrays without modules": {"labels_x": ((64, 64), "int8", "buffer"), "w": ((64, 64), "float32", "linear")},
    "a float8 tensor by itself": {
        "a.weight": ((64, 64), "float32", "linear"),
        "b.weight": ((64, 64), "float8_e4m3fn", "buffer"),
    },
}


@pytest.mark.parametrize("case", QUANTISED)
def test_quantised_weights_and_their_companions(case):
    table = QUANTISED[case]
    found = roles_of(Named({name: entry[:2] for name, entry in table.items()}))
    assert {name: role.kind for name, role in found.items()} == {name: entry[2] for name, entry in table.items()}
    packed = [name for name, entry in table.items() if entry[2] == "quantised"]
    for role in found.values():
        if role.kind == "companion":
            assert role.of in packed
            assert role.of in role.reason
    weight = quantised_weight(Named({name: entry[:2] for name, entry in table.items()}))
    assert weight in packed if packed else weight is None


def test_the_configuration_says_that_a_checkpoint_is_quantised():
    tensors = {"l.weight": ((64, 64), "float8_e4m3fn"), "n.weight": ((64, 64), "float32")}
    assert quantised_weight(Named(tensors)) is None
    assert quantised_weight(Named(tensors, {"quantization_config": {"quant_method": "fp8"}})) == "l.weight"
    assert quantised_weight(Named({"n.weight": (64, 64)}, {"quantization_config": {"quant_method": "fp8"}})) is None


@pytest.mark.parametrize(
    "call",
    [
        lambda path, out: mpfast.analyze(path),
        lambda path, out: mpfast.analyze(path, base=path),
        lambda path, out: mpfast.inspect(path),
        lambda path, out: mpfast.prune(path, out, sparsity=0.5, method="magnitude"),
        lambda path, out: mpfast.prune(path, out, sparsity=0.5),
        lambda path, out: mpfast.compress(path, out, rank=4),
    ],
)
def test_a_configuration_that_speaks_of_quantisation_where_none_is_seen(call, tmp_path):
    """Of what was dequantised, or packed in a way that is not known; a file of tensors cannot tell."""
    save_file({"n.weight": weight(64, 64)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "new"}}')
    with pytest.warns(UserWarning, match=r"the configuration says that the weights are quantised \(new\), but no"):
        call(tmp_path, tmp_path.parent / f"{tmp_path.name}-out")
    save_file({"n.weight": weight(64, 64), "q.weight": np.ones((64, 64), np.int8)}, tmp_path / "model.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mpfast.analyze(tmp_path)


def test_quantised_checkpoints_are_neither_pruned_nor_factored():
    model = {"q.qweight": np.ones((64, 64), np.int32), "q.scales": weight(16, 64), "out.weight": weight(64, 64)}
    for change in (
        lambda: mpfast.prune(model, sparsity=0.5),
        lambda: mpfast.prune(model, sparsity=0.5, include="out.*"),
        lambda: mpfast.compress(model, rank=4),
    ):
        with pytest.raises(ValueError, match=r"model is quantised: q\.qweight is packed"):
            change()
    analysis = mpfast.analyze(model)
    assert [row.name for row in analysis] == ["out.weight"]
    assert {t.name: "quantised q.qweight" in t.reason for t in analysis.skipped}["q.scales"]
    difference = mpfast.analyze(model, base={name: array + 1 for name, array in model.items()})
    assert [row.name for row in difference] == ["out.weight"]


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_a_table_of_biases_with_its_indices_is_pruned_around(dtype):
    """LeViT and its kin: the biases are looked up and added."""
    model = {
        "a.attention_biases": weight(12, 49),
        "a.attention_bias_idxs": np.zeros((49, 49), dtype),
        "a.logit_scale": weight(12, 8),
        "a.qkv.weight": weight(192, 64),
    }
    result = mpfast.prune(model, sparsity=0.5, method="magnitude", include="a.[aq]*")
    assert [row.name for row in result.budget] == ["a.qkv.weight"]


@pytest.mark.parametrize("change", [lambda m: mpfast.prune(m, sparsity=0.5), lambda m: mpfast.compress(m, rank=4)])
def test_a_refusal_says_what_keeps_the_largest_tensor(change):
    tied = weight(64, 64)
    model = {"0.bias": weight(64), "0.weight": tied, "1.bias": weight(64), "1.weight": tied.T}
    with pytest.raises(ValueError, match=r"no layer is left to \w+; 0\.weight: shares memory with 1\.weight"):
        change(model)


def test_a_refusal_does_not_repeat_what_the_caller_left_out():
    model = {"large.weight": weight(64, 64), "small.weight": weight(64, 4), "small.bias": weight(64)}
    with pytest.raises(ValueError, match=r"no layer is left to prune; small\.weight: too small"):
        mpfast.prune(model, sparsity=0.5, include="small*")
