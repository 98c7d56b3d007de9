"""Projections that hold several matrices: what the configuration accounts for, and what is said where it does not."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import mpfast
from mpfast.checkpoints import Views, layer_part, open_checkpoint, roles_of, select_layers


def saved(directory, name, shape, config):
    directory.mkdir(exist_ok=True)
    save_file({name: np.random.default_rng(0).standard_normal(shape)}, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(config))
    return directory


HEADS = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.mark.parametrize(
    ("name", "shape", "config", "reason"),
    [
        ("l.qkv_proj.weight", (144, 64), {**HEADS, "model_type": "phi3"}, "its 144 outputs are not the 128 of 4 heads"),
        ("l.wqkv.weight", (128, 48), {**HEADS, "model_type": "internlm2"}, "its 48 inputs are not the 64"),
        ("l.qkv_proj.weight", (128, 64), {"hidden_size": 64, "model_type": "phi3"}, "does not say how many heads"),
        (
            "l.query_key_value.weight",
            (192, 64),
            {**HEADS, "model_type": "another"},
            "not known of the model_type 'another'",
        ),
        ("l.gate_up_proj.weight", (97, 64), {**HEADS, "model_type": "phi3"}, "its 97 outputs have no halves"),
        ("l.gate_up_proj.weight", (96, 64), {}, "without the model_type"),
        ("m.experts.gate_up_proj", (2, 48, 96), {**HEADS, "model_type": "mixtral"}, "neither of its sides is the 64"),
        (
            "l.wqkv.weight",
            (144, 64),
            {**HEADS, "num_key_value_heads": 3, "model_type": "internlm2"},
            "4 heads are not shared out over 3",
        ),
    ],
)
def test_what_the_configuration_does_not_account_for_stays_whole_and_says_so(name, shape, config, reason, tmp_path):
    rows = mpfast.analyze(saved(tmp_path / "m", name, shape, config))
    assert {row.shape for row in rows} == {shape[-2:]}
    for row in rows:
        (text,) = [text for text in row.warnings if text.startswith("several matrices are seen as one: ")]
        assert reason in text
    asked = mpfast.analyze(tmp_path / "m", views=Views(qkv="fused"))
    assert not any("seen as one" in text for row in asked for text in row.warnings)


def test_a_shape_suggests_nothing_where_it_is_known_what_a_matrix_is():
    """A projection to keys may have three times as many inputs as outputs."""
    W = np.random.default_rng(0).standard_cauchy((64, 192))
    hint = "the shape suggests fused"
    assert any(hint in text for text in mpfast.spectrum(W).fit().warnings)
    for name in ("model.layers.0.self_attn.k_proj.weight", "blk.0.attn_k.weight"):
        (row,) = mpfast.analyze({name: W})
        assert not any(hint in text for text in row.warnings)
    (row,) = mpfast.analyze({"own": W})
    assert any(hint in text for text in row.warnings)


def test_projections_that_models_of_remote_code_fuse():
    """InternLM2: for every head of keys, the queries that share it, it and its values."""
    rows = np.arange(128)
    weights = {"l.wqkv.weight": np.repeat(rows[:, None], 64, axis=1).astype(np.float64)}
    config = {**HEADS, "model_type": "internlm2"}
    checkpoint = open_checkpoint(weights)
    checkpoint.config = config
    layers, *_ = select_layers(checkpoint, None, None, Views())
    found = {layer.name[14:-1]: layer_part(weights["l.wqkv.weight"], layer)[:, 0] for layer in layers}
    grouped = rows.reshape(2, 4, 16)
    np.testing.assert_array_equal(found["query"], grouped[:, :2].reshape(-1))
    np.testing.assert_array_equal(found["key"], grouped[:, 2].reshape(-1))
    np.testing.assert_array_equal(found["value"], grouped[:, 3].reshape(-1))
    assert {role.unsplit for role in roles_of(checkpoint).values()} == {""}
