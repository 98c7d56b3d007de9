"""What tensors are to their model: a table of names, types and shapes, and which axis the inputs are."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mpfast
from mpfast import masks
from mpfast.checkpoints import Views, open_checkpoint, roles_of, select_layers
from mpfast.checkpoints.base import Role
from mpfast.checkpoints.roles import quantised_weight

from .named_tensors import Named, kinds, weight

# Name, shape, kind and the axes of the inputs, without a configuration.
ALONE = [
    ("a.q_proj.weight", (64, 32), "linear", (1,)),
    ("mlp/dense/kernel", (32, 64), "linear", (0,)),
    ("w", (64, 32), "linear", ()),
    ("rnn.weight_ih_l0_reverse", (64, 32), "linear", (1,)),
    ("attn.in_proj_weight", (96, 32), "linear", (1,)),
    ("h.0.attn.c_proj.weight", (32, 32), "linear", ()),
    ("shared.weight", (64, 32), "embedding", (1,)),
    ("emb.weight", (64, 32), "embedding", (1,)),
    ("block.relative_attention_bias.weight", (32, 8), "embedding", (1,)),
    ("embedding_hidden_mapping_in.weight", (64, 32), "linear", (1,)),
    ("time_embedding.linear_1.weight", (64, 32), "linear", (1,)),
    ("cls.predictions.decoder.weight", (64, 32), "head", (1,)),
    ("output.weight", (64, 32), "head", (1,)),
    ("layer.output.dense.weight", (64, 32), "linear", (1,)),
    ("experts.gate_up_proj_bias", (8, 64), "vector", ()),
    ("a.attn_mask", (64, 64), "buffer", ()),
    ("proj.weight", (64, 32, 1), "conv", (1, 2)),
    ("proj.weight", (64, 32, 7), "conv", (1, 2)),
    ("experts.up", (8, 64, 32), "experts", ()),
    ("up.conv_transpose.weight", (64, 32, 4, 4), "conv_transposed", (0,)),
    ("video.weight", (64, 32, 3, 3, 3), "conv", (1, 2, 3, 4)),
    ("conv/kernel", (3, 3, 16, 32), "conv", (0, 1, 2)),
    ("block/conv1d/kernel", (9, 16, 32), "conv", (0, 1)),
    ("proj/kernel", (3, 16, 32), "conv", (0, 1)),
    ("attention/query/kernel", (32, 8, 16), "linear", (0,)),
    ("attention/out/kernel", (8, 16, 32), "linear", (0, 1)),
    ("mixer/kernel", (32, 8, 16), "unknown", ()),
    ("a.lora_down.weight", (8, 64), "factor", ()),
    ("a.lora_embedding_B", (64, 8), "factor", ()),
    ("a.hada_w1_a", (64, 8), "factor", ()),
    # Adapters of other kinds.
    *((f"base_model.model.q.{word}", (64, 32), "factor", ()) for word in ("lora_E", "oft_blocks", "ia3_l", "diff")),
    ("base_model.vera_A.default", (64, 32), "factor", ()),
    ("q.oft_R.default.weight", (64, 32), "factor", ()),
    ("q.boft_R.default", (1, 4, 8, 8), "factor", ()),
    ("q.hra_u", (64, 32), "factor", ()),
    ("q.glora_A", (64, 32), "factor", ()),
    ("q.diff.weight", (64, 32), "linear", (1,)),
    ("road_net.0.weight", (64, 32), "linear", (1,)),
    # Parameters by themselves.
    ("backbone.layers.0.mixer.A_log", (1536, 16), "unknown", ()),
    ("mixer.D", (64, 32), "unknown", ()),
    ("mixer.dt_bias", (64, 32), "vector", ()),
    ("blocks.0.att.time_faaaa", (64, 64), "unknown", ()),
    ("blocks.0.att.time_decay", (64, 64), "unknown", ()),
    ("blocks.0.att.time_maa_w1", (64, 160), "unknown", ()),
    ("blocks.0.att.time_maa_w2", (8, 32, 64), "unknown", ()),
    ("blocks.0.ffn.time_mix_k", (1, 64, 64), "unknown", ()),
    ("blocks.0.attn.rel_pos_h", (27, 64), "unknown", ()),
    ("mask_decoder.mask_tokens.weight", (16, 256), "embedding", (1,)),
    ("mask_decoder.iou_token.weight", (16, 256), "embedding", (1,)),
    ("layer.0.rel_attn.v", (64, 16, 32), "unknown", ()),
    ("quantizer.codevectors", (1, 640, 128), "unknown", ()),
    ("image_encoder.pos_embed", (1, 64, 64, 768), "unknown", ()),
    ("optimizer.state.0.exp_avg", (64, 32), "buffer", ()),
    ("optimizer.state.0.exp_avg_sq", (64, 32), "buffer", ()),
    ("exp_avg.fc.weight", (64, 32), "buffer", ()),
    ("state.0.momentum_buffer", (64, 32), "buffer", ()),
    ("opt_state.0.mu.params.fc.kernel", (64, 32), "buffer", ()),
    # Matrices without a module of their own.
    ("visual.proj", (64, 32), "linear", ()),
    ("clip.text_projection", (64, 32), "linear", ()),
    ("projector.mm_input_projection_weight", (64, 32), "linear", ()),
    ("mlp/~/linear/w", (64, 32), "linear", ()),
    ("dense/kernel:0", (32, 64), "linear", (0,)),
    ("layer.W", (64, 32), "linear", ()),
    ("h.qkv", (96, 32), "linear", (1,)),
    ("weights.0", (64, 32), "linear", ()),
    ("block.0.experts.gate_up_proj", (8, 64, 32), "experts", ()),
    ("block.0.experts.mlp.w1", (64, 32), "unknown", ()),
    # No modules: arrays of the user's own.
    ("A_log", (64, 32), "linear", ()),
]


@pytest.mark.parametrize(("name", "shape", "kind", "axes"), ALONE)
def test_a_tensor_by_itself(name, shape, kind, axes):
    role = roles_of(Named({name: shape}))[name]
    assert (role.kind, role.input_axes) == (kind, axes)
    assert bool(role.reason) == (kind in ("vector", "buffer", "unknown", "factor"))


def test_arrays_by_names_without_modules_are_the_users_own():
    arrays = {"a": (64, 32), "first layer": (64, 32), "list.0": (64, 32), "stack": (8, 64, 32)}
    assert kinds(arrays) == {**dict.fromkeys(arrays, "linear"), "stack": "experts"}
    # Beside modules, a parameter at the top is one of the model.
    found = roles_of(Named({**arrays, "fc.weight": (64, 32)}))
    assert {name: role.kind for name, role in found.items()} == {
        **dict.fromkeys(arrays, "unknown"),
        "fc.weight": "linear",
    }
    assert "call it <module>.weight" in found["a"].reason


def test_parameters_that_are_no_matrices_stay_as_they_are():
    """A zero in the decay of a Mamba layer would be a decay of -1."""
    mixer = "backbone.layers.0.mixer"
    model = {f"{mixer}.A_log": weight(64, 16), f"{mixer}.in_proj.weight": weight(64, 32)}
    nested = {"model": model, "optimizer": {"state": {0: {"exp_avg": weight(64, 32), "exp_avg_sq": weight(64, 32)}}}}
    assert [row.name for row in mpfast.analyze(nested)] == [f"model.{mixer}.in_proj.weight"]
    result = mpfast.prune(nested, sparsity=0.5, method="magnitude")
    assert [row.name for row in result.budget] == [f"model.{mixer}.in_proj.weight"]
    reasons = {tensor.name: tensor.reason for tensor in result.skipped}
    assert "not known" in reasons[f"model.{mixer}.A_log"]
    assert "optimiser" in reasons["optimizer.state.0.exp_avg"]


def test_a_mask_says_that_a_parameter_is_a_matrix():
    found = roles_of(Named({"a.gain_orig": (64, 32), "a.gain_mask": (64, 32), "a.gain2": (64, 32)}))
    assert [role.kind for role in found.values()] == ["linear", "mask", "unknown"]


DBRX = {"model_type": "dbrx", "d_model": 64}


@pytest.mark.parametrize("experts", [{"moe_num_experts": 4}, {"ffn_config": {"moe_num_experts": 4}}])
def test_experts_that_lie_one_below_the_other(experts, tmp_path):
    names = {word: f"transformer.blocks.0.ffn.experts.mlp.{word}" for word in ("w1", "v1", "w2")}
    tensors = {name: weight(4 * 48, 64, seed=seed) for seed, name in enumerate(names.values())}
    model, out = tmp_path / "model", tmp_path / "out"
    model.mkdir()
    save_file(tensors, model / "model.safetensors")
    (model / "config.json").write_text(json.dumps({**DBRX, **experts}))
    rows = {row.name: row for row in mpfast.analyze(model)}
    assert set(rows) == {f"{name}[{e}]" for name in names.values() for e in range(4)}
    for name, tensor in tensors.items():
        for e in range(4):
            assert rows[f"{name}[{e}]"].shape == (48, 64)
            part = tensor[48 * e : 48 * (e + 1)]
            assert rows[f"{name}[{e}]"].fro_norm == pytest.approx(float(np.linalg.norm(part)), rel=1e-5)
    result = mpfast.prune(model, out, pattern="2:4")
    assert {row.name: row.input_axes for row in result.budget} == {
        names["w1"]: (1,),
        names["v1"]: (1,),
        names["w2"]: (0,),
    }
    pruned = load_file(out / "model.safetensors")
    assert along(pruned[names["w2"]] != 0, (0,))
    assert mpfast.verify(out).ok


@pytest.mark.parametrize("config", [None, {"model_type": "dbrx"}, {**DBRX, "moe_num_experts": 5}])
def test_experts_of_unknown_number_in_one_matrix(config):
    role = roles_of(Named({"ffn.experts.mlp.w2": (192, 64), "fc.weight": (64, 64)}, config))["ffn.experts.mlp.w2"]
    assert (role.kind, "config.json" in role.reason) == ("unknown", True)


def test_a_head_is_known_by_the_shape_of_the_embedding_of_tokens():
    table = {"model.decoder.embed_tokens.weight": (200, 64), "model.decoder.embed_positions.weight": (96, 64)}
    table |= {"proj_out.weight": (200, 64), "classifier.weight": (96, 64), "transpose.weight": (64, 200)}
    table |= {"model.decoder.layers.0.fc1.weight": (200, 64), "model.decoder.inner.fc.weight": (200, 64)}
    found = kinds(table)
    assert [name for name, kind in found.items() if kind == "head"] == ["proj_out.weight"]
    assert kinds({f"module.{name}": shape for name, shape in table.items()})["module.proj_out.weight"] == "head"


def test_the_bias_tells_convolutions_apart():
    assert kinds({"a.weight": (32, 16, 9), "a.bias": (32,)})["a.weight"] == "conv"
    assert kinds({"a.weight": (32, 16, 9), "a.bias": (32, 16)})["a.weight"] == "experts"
    assert kinds({"a.weight": (32, 16, 4, 4), "a.bias": (16,)})["a.weight"] == "conv_transposed"


def test_the_axis_of_the_inputs():
    assert Role("linear", (1,)).input_axis == 1
    assert Role("conv", (1, 2, 3)).input_axis == 1
    assert Role("conv", (0, 1, 2)).input_axis == 2
    assert Role("linear").input_axis is None


@pytest.mark.parametrize(
    ("tensors", "config", "axes"),
    [
        # GPT-2's own type, and a type that has the names but not the layout
        ({"h.c_fc.weight": (64, 64)}, {"model_type": "gpt2"}, (0,)),
        ({"h.c_fc.weight": (64, 64)}, {"model_type": "gpt_bigcode"}, (1,)),
        # the shape of a sibling
        ({"h.c_fc.weight": (64, 64), "h.c_attn.weight": (64, 192)}, None, (0,)),
        ({"h.c_fc.weight": (64, 64), "h.c_attn.weight": (192, 64)}, None, (1,)),
        # the length of a bias, its own or a sibling's
        ({"h.c_fc.weight": (64, 256), "h.c_fc.bias": (256,)}, None, (0,)),
        ({"h.c_fc.weight": (256, 64), "h.c_fc.bias": (256,)}, None, (1,)),
        ({"h.c_fc.weight": (64, 64), "h.c_proj.weight": (256, 64), "h.c_proj.bias": (64,)}, None, (0,)),
        ({"any.weight": (64, 256), "any.bias": (256,)}, None, (0,)),
        ({"h.c_fc.weight": (64, 64)}, None, ()),
        ({"h.c_fc.weight": (64, 64)}, {"n_embd": 64}, ()),
    ],
)
def test_orientation(tensors, config, axes):
    name = next(iter(tensors))
    assert roles_of(Named(tensors, config))[name].input_axes == axes


@pytest.mark.parametrize(
    ("name", "shape", "config", "axes"),
    [
        ("experts.gate_up_proj", (4, 64, 96), {"hidden_size": 64}, (1,)),
        ("experts.gate_up_proj", (4, 96, 64), {"hidden_size": 64}, (2,)),
        ("experts.down_proj", (4, 64, 48), {"hidden_size": 64}, (2,)),
        ("experts.down_proj", (4, 48, 64), {"hidden_size": 64}, (1,)),
        ("experts.gate_up_proj", (4, 64, 64), {"hidden_size": 64, "model_type": "gpt_oss"}, (1,)),
        ("experts.gate_up_proj", (4, 64, 64), {"hidden_size": 64, "model_type": "mixtral"}, (2,)),
        ("experts.gate_up_proj", (4, 64, 64), {"text_config": {"hidden_size": 64, "model_type": "llama4_text"}}, (1,)),
        ("experts.gate_up_proj", (4, 64, 64), {"hidden_size": 64}, ()),
        ("experts.gate_up_proj", (4, 64, 96), None, ()),
    ],
)
def test_orientation_of_stacks(name, shape, config, axes):
    assert roles_of(Named({name: shape}, config))[name].input_axes == axes


def parts_of(name, shape, config):
    layers, *_ = select_layers(Named({name: shape}, config), None, None, Views())
    return {layer.name.partition("[")[2]: (layer.shape, layer.index) for layer in layers}


def test_fused_projections_split_as_their_family_says():
    heads = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "model_type": "phi3"}
    assert parts_of("l.qkv_proj.weight", (128, 64), heads) == {
        "query]": ((64, 64), (slice(0, 64, None),)),
        "key]": ((32, 64), (slice(64, 96, None),)),
        "value]": ((32, 64), (slice(96, 128, None),)),
    }
    assert parts_of("l.gate_up_proj.weight", (96, 64), heads) == {
        "gate]": ((48, 64), (slice(0, 48, None),)),
        "up]": ((48, 64), (slice(48, 96, None),)),
    }
    oss = {"hidden_size": 64, "model_type": "gpt_oss"}
    found = parts_of("m.experts.gate_up_proj", (2, 64, 96), oss)
    assert list(found) == ["0,gate]", "0,up]", "1,gate]", "1,up]"]
    assert found["1,up]"] == ((64, 48), (1, slice(None), slice(1, 96, 2)))
    # Head by head, by quarters of the heads, or not known: whole.
    found = parts_of("l.query_key_value.weight", (192, 64), {**heads, "model_type": "gpt_neox"})
    assert found["key]"] == ((64, 64), (slice(None), slice(16, 32)))
    assert list(parts_of("l.query_key_value.weight", (192, 64), {**heads, "model_type": "another"})) == [""]
    assert list(parts_of("l.gate_up_proj.weight", (96, 64), None)) == [""]
    for kind in ("codegen", "moss"):
        config = {"n_embd": 64, "n_head": 4, "model_type": kind}
        found = parts_of("h.0.attn.qkv_proj.weight", (192, 64), config)
        assert found["value]"] == ((64, 64), (slice(None), slice(16, 32)))
    code = {"n_embd": 64, "n_head": 4, "model_type": "gpt_bigcode"}
    apart = parts_of("h.0.attn.c_attn.weight", (192, 64), {**code, "multi_query": False})
    assert apart["query]"] == ((64, 64), (slice(None), slice(0, 16)))
    whole = parts_of("h.0.attn.c_attn.weight", (96, 64), {**code, "multi_query": True})
    assert [shape for shape, _ in whole.values()] == [(64, 64), (16, 64), (16, 64)]


def test_the_experts_of_mixtral_on_disk_are_matrices():
    """One tensor per expert and projection: (out, in), as any Linear."""
    experts = "model.layers.0.block_sparse_moe.experts.3"
    table = {f"{experts}.w1.weight": (128, 64), f"{experts}.w2.weight": (64, 128), f"{experts}.w3.weight": (128, 64)}
    found = roles_of(Named(table, {"model_type": "mixtral", "hidden_size": 64, "intermediate_size": 128}))
    assert {(role.kind, role.input_axes) for role in found.values()} == {("linear", (1,))}
    # A vocabulary of the same size makes no head of what is in a block.
    assert {role.kind for role in roles_of(Named(table, {"vocab_size": 128, "hidden_size": 64})).values()} == {"linear"}


def along(keep, axes, n=2, m=4):
    others = [axis for axis in range(keep.ndim) if axis not in axes]
    rows = keep.transpose([*others, *axes]).reshape(-1, m)
    return bool((rows.sum(axis=1) == n).all())


def test_a_pattern_runs_along_the_inputs_and_is_checked_there(tmp_path):
    (tmp_path / "model").mkdir()
    config = {"model_type": "gpt_oss", "hidden_size": 64}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    tensors = {
        "m.experts.gate_up_proj": weight(3, 64, 48),
        "m.kernel": weight(64, 24, seed=1),
        "m.q.weight": weight(24, 64, seed=2),
        "conv.weight": weight(16, 8, 3, seed=3),
        "up.conv_transpose.weight": weight(32, 12, 3, seed=4),
        "loose": weight(64, 64, seed=5),
    }
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    result = mpfast.prune(tmp_path / "model", tmp_path / "out", pattern="2:4")
    axes = {row.name: row.input_axes for row in result.budget}
    assert axes == {
        "m.experts.gate_up_proj": (1,),
        "m.kernel": (0,),
        "m.q.weight": (1,),
        "conv.weight": (1, 2),
        "up.conv_transpose.weight": (0,),
    }
    pruned = load_file(tmp_path / "out" / "model.safetensors")
    for name, inputs in axes.items():
        keep = pruned[name] != 0
        assert along(keep, inputs), name
        np.testing.assert_array_equal(pruned[name], tensors[name] * keep)
    # By rows of the transposed array, what the masks of arrays do.
    expected = masks.n_m(np.ascontiguousarray(tensors["m.kernel"].T), 2, 4).T
    np.testing.assert_array_equal(pruned["m.kernel"] != 0, expected)
    assert [(t.name, "not known" in t.reason) for t in result.skipped] == [("loose", True)]
    assert mpfast.verify(tmp_path / "out").ok
    text = (tmp_path / "out" / "budget.json").read_text()
    record = json.loads(text)
    row = next(row for row in record["layers"] if row["name"] == "m.kernel")
    row["input_axes"] = [1]
    (tmp_path / "out" / "budget.json").write_text(json.dumps(record))
    assert any("groups of 4" in problem for problem in mpfast.verify(tmp_path / "out").problems)
    row["input_axes"] = [2]
    (tmp_path / "out" / "budget.json").write_text(json.dumps(record))
    with pytest.raises(mpfast.CheckpointError, match="input_axes"):
        mpfast.verify(tmp_path / "out")


def test_where_no_orientation_is_known_a_pattern_is_refused():
    with pytest.raises(ValueError, match=r"prune\(\): no layer is left.*whether this is stored as"):
        mpfast.prune({"w": weight(64, 64)}, pattern="2:4")
    model = {"a.kernel": weight(64, 64)}
    model["a.kernel"][5, 7] = np.nan
    with pytest.raises(ValueError, match=r"a\.kernel has 1 non-finite entry \(NaN or inf\), the first at \(5, 7\)"):
        mpfast.prune(model, pattern="2:4")


def test_a_directory_of_shards_has_one_set_of_roles(tmp_path):
    """The scale may lie in another file than the weight."""
    save_file({"q.weight": np.ones((64, 64), np.int8)}, tmp_path / "a.safetensors")
    save_file({"q.weight_scale": weight(64, 16)}, tmp_path / "b.safetensors")
    assert quantised_weight(open_checkpoint(tmp_path)) == "q.weight"


def test_config_files_are_read_strictly(tmp_path):
    save_file({"h.c_fc.weight": weight(64, 64)}, tmp_path / "model.safetensors")
    assert open_checkpoint(tmp_path).config is None
    for text, message in (("{", "no valid JSON"), ("[]", "holds list"), ('{"a": 1, "a": 2}', "occurs twice")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(mpfast.CheckpointError, match=message):
            mpfast.analyze(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "limit": Infinity}')  # as transformers writes it
    assert roles_of(open_checkpoint(tmp_path))["h.c_fc.weight"].source == "config.json"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"intermediate_size": "1536"}, "intermediate_size must be a whole number, or a list of them, not '1536'"),
        ({"hidden_size": 64.0}, "hidden_size must be a whole number.*, not 64.0"),
        ({"vocab_size": True}, "vocab_size must be a whole number"),
        ({"head_dim": -1}, "head_dim must be a whole number"),
        ({"num_kv_heads": [3, "3"]}, "num_kv_heads must be a whole number, or a list of them"),
        ({"text_config": {"num_experts": "8"}}, r"config\.json: text_config: num_experts must be a whole number"),
        ({"ffn_config": {"moe_num_experts": {}}}, r"config\.json: ffn_config: moe_num_experts must be a whole number"),
        ({"multi_query": "true"}, "multi_query must be true or false, not 'true'"),
        ({"model_type": 2}, "model_type must be a text, not 2"),
        ({"architectures": "BertModel"}, "architectures must be a list of texts, not 'BertModel'"),
        ({"quantization_config": "fp8"}, "quantization_config must be an object, not 'fp8'"),
    ],
)
def test_a_setting_that_cannot_be_is_no_setting_that_is_missing(config, message, tmp_path):
    save_file({"h.c_fc.weight": weight(64, 64)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    for call in (mpfast.inspect, mpfast.analyze):
        with pytest.raises(mpfast.CheckpointError, match=message):
            call(tmp_path)


def test_settings_that_may_be_missing_or_one_for_each_block(tmp_path):
    save_file({"h.c_fc.weight": weight(64, 64)}, tmp_path / "model.safetensors")
    said = {"n_inner": None, "num_kv_heads": [3, 4], "num_experts": 0, "quantization_config": None, "own": "64"}
    (tmp_path / "config.json").write_text(json.dumps(said))
    assert len(mpfast.analyze(tmp_path)) == 1
