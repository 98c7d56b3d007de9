"""Factors of updates are known by their names, and are no layers."""

from __future__ import annotations

import numpy as np
import pytest

import mpfast

from .named_tensors import kinds, weight


def test_lora_factors_are_left_out_of_pruning_and_budgets():
    pair = {"q.lora_A.weight": weight(8, 64), "q.lora_B.weight": weight(64, 8)}
    with pytest.raises(ValueError, match=r"no layer is left to prune.*factor of the LoRA update of q"):
        mpfast.prune(pair, sparsity=0.5)
    with pytest.raises(ValueError, match="no layer is left"):
        mpfast.analyze(pair).budget(0.5)
    model = {**pair, "w.weight": weight(64, 64)}
    analysis = mpfast.analyze(model)
    assert {row.name: row.kind for row in analysis} == {"q.lora": "lora", "w.weight": "linear"}
    assert [row.name for row in analysis.budget(0.5)] == ["w.weight"]
    result = mpfast.prune(model, sparsity=0.5)
    assert [row.name for row in result.budget] == ["w.weight"]
    assert {t.name for t in result.skipped} == set(pair)


@pytest.mark.parametrize(
    ("first", "second", "product"),
    [
        ("u.lora_down.weight", "u.lora_up.weight", "u.lora"),
        ("u.lora.down.weight", "u.lora.up.weight", "u.lora"),
        ("u.lora_embedding_A.default", "u.lora_embedding_B.default", "u.lora.default"),
        ("u.lora_linear_layer.down.weight", "u.lora_linear_layer.up.weight", "u.lora"),
        ("u.to_q_lora.down.weight", "u.to_q_lora.up.weight", "u.to_q_lora"),
        ("u.qkv_lora1.down.weight", "u.qkv_lora1.up.weight", "u.qkv_lora1"),
        ("u.lora_a.weight", "u.lora_b.weight", "u.lora"),
        ("u/lora_A/weight", "u/lora_B/weight", "u/lora"),
    ],
)
def test_pairs_of_other_tools_are_products_too(first, second, product):
    A, B = weight(4, 64), weight(48, 4, seed=1)
    (row,) = mpfast.analyze({first: A, second: B})
    assert (row.name, row.shape, row.spikes) == (product, (48, 64), 4)
    # kohya and diffusers multiply by 1 where no alpha is stored; the others have it in a file that is not there.
    assert any("without the scale" in text for text in row.warnings) == ("down" not in first)
    assert row.fro_norm == pytest.approx(np.linalg.norm(B @ A), rel=1e-5)
    conv = mpfast.analyze({first: A.reshape(4, 16, 2, 2), second: B.reshape(48, 4, 1, 1)})
    assert conv[0].fro_norm == pytest.approx(row.fro_norm, rel=1e-12)


@pytest.mark.parametrize("word", ["exploration", "floral", "explora", "pylorax", "lorax", "loraless"])
def test_words_that_hold_the_letters_of_lora_are_no_factors(word):
    """The layers of a bottleneck go down and up as well."""
    model = {f"{word}.down.weight": weight(16, 64), f"{word}.up.weight": weight(64, 16)}
    assert kinds({name: array.shape for name, array in model.items()}) == dict.fromkeys(model, "linear")
    assert {row.name for row in mpfast.analyze(model)} == set(model)


@pytest.mark.parametrize(
    ("extra", "end"), [("lora_E", ""), ("lora_E.default", ""), ("lora_diag.weight", ".weight"), ("lora_E", ".weight")]
)
def test_pairs_with_a_factor_between_them_are_no_products(extra, end):
    adapter = ".default" if ".default" in extra else ""
    first, second = ("lora_down", "lora_up") if "diag" in extra else ("lora_A", "lora_B")
    model = {f"q.{first}{adapter}{end}": weight(8, 64), f"q.{second}{adapter}{end}": weight(48, 8)}
    assert [row.kind for row in mpfast.analyze(model)] == ["lora"]
    analysis = mpfast.analyze({**model, f"q.{extra}": weight(8, 8), "fc.weight": weight(32, 32)})
    assert [row.name for row in analysis] == ["fc.weight"]
    reasons = {tensor.name: tensor.reason for tensor in analysis.skipped}
    assert all(f"with q.{extra} among its factors" in reasons[name] for name in model)


def test_adapters_of_other_kinds_are_refused_alone_and_left_out_beside_others():
    adapter = {"q.vera_A": weight(16, 64), "q.hra_u": weight(64, 16), "k.diff": weight(32, 32)}
    adapter |= {f"v.{word}.weight": weight(16, 16) for word in ("a1", "a2", "b1", "b2")}
    with pytest.raises(ValueError, match=r"no layer is left to prune.*merge it into its base"):
        mpfast.prune(adapter, sparsity=0.5)
    result = mpfast.prune({**adapter, "fc.weight": weight(32, 32), "a1.weight": weight(32, 32)}, sparsity=0.5)
    assert [row.name for row in result.budget] == ["fc.weight", "a1.weight"]


def test_factors_stored_the_other_way_round_are_no_layers():
    """MLX: A (n, r), B (r, m)."""
    model = {"u.lora_a": weight(64, 4), "u.lora_b": weight(4, 64, seed=1), "w.weight": weight(64, 64)}
    assert [row.name for row in mpfast.analyze(model)] == ["w.weight"]
    assert {t.name for t in mpfast.prune(model, sparsity=0.5, method="magnitude").skipped} == {"u.lora_a", "u.lora_b"}
