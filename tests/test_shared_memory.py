"""Several names of one memory are one layer, and what others see as well stays whole."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file

import mpfast

from .named_tensors import weight


def test_one_array_under_two_names_is_one_layer(tmp_path):
    W, other = weight(96, 64), weight(64, 64, seed=1)
    model = {"head.out.weight": W, "embed.weight": W, "a.weight": other, "b.weight": other, "c.weight": other.copy()}
    analysis = mpfast.analyze(model)
    assert [row.name for row in analysis] == ["embed.weight", "a.weight", "c.weight"]
    reasons = {t.name: t.reason for t in analysis.skipped}
    assert reasons == {"head.out.weight": "the same tensor as embed.weight", "b.weight": "the same tensor as a.weight"}
    result = mpfast.prune(model, tmp_path / "out", sparsity=0.5, method="uniform")
    assert set(result.masks) == {"a.weight", "c.weight"}
    written = load_file(tmp_path / "out" / "model.safetensors")
    np.testing.assert_array_equal(written["a.weight"], other * result.masks["a.weight"])
    np.testing.assert_array_equal(written["b.weight"], written["a.weight"])
    np.testing.assert_array_equal(written["head.out.weight"], W)


def torch_tensor(array):
    return pytest.importorskip("torch").from_numpy(array)


def same(array):
    return array


IN_MEMORY = [same, torch_tensor]


@pytest.mark.parametrize("framework", IN_MEMORY)
def test_one_memory_seen_otherwise_is_one_layer_and_stays_whole(framework, tmp_path):
    """An embedding and a head that is stored transposed: what is pruned in one would not be in the other."""
    W = framework(weight(96, 64))
    model = {
        "head.kernel": W.T,
        "embed.weight": W,
        "head.alias": W.T,
        "flat": W.reshape(64, 96),
        "rows": W.reshape(1, 96, 64),
        "a.weight": framework(weight(64, 64, seed=1)),
    }
    analysis = mpfast.analyze(model)
    assert [row.name for row in analysis] == ["embed.weight", "a.weight"]
    assert "shares memory with head.kernel and 3 more" in analysis[0].warnings
    assert {t.name: t.reason for t in analysis.skipped} == {
        "head.kernel": "the same tensor as embed.weight, transposed",
        "head.alias": "the same tensor as embed.weight, transposed",
        "flat": "the same tensor as embed.weight, in another shape or order",
        "rows": "the same tensor as embed.weight, in another shape or order",
    }
    result = mpfast.prune(model, tmp_path / "out", sparsity=0.5, method="magnitude", embeddings=True)
    assert [row.name for row in result.budget] == ["a.weight"]
    written = load_file(tmp_path / "out" / "model.safetensors")
    np.testing.assert_array_equal(written["head.kernel"], np.asarray(W).T)
    np.testing.assert_array_equal(written["embed.weight"], np.asarray(W))
    assert mpfast.verify(tmp_path / "out", model).ok
    factored = mpfast.compress(model, tmp_path / "factored", rank=4, embeddings=True)
    assert [row.name for row in factored.layers] == ["a.weight"]


@pytest.mark.parametrize("framework", IN_MEMORY)
@pytest.mark.parametrize(
    ("view", "meets"),
    [
        (lambda W: W[:64], True),
        (lambda W: W[:, 8:40], True),
        (lambda W: W[::2].T, True),
        (lambda W: W.reshape(-1), True),
        (lambda W: W.reshape(-1)[100:200], True),
        (lambda W: W + 0, False),
    ],
)
def test_views_of_a_part_are_analysed_and_stay_whole(framework, view, meets):
    W = framework(weight(96, 64))
    model = {"a.weight": W[:80], "b.weight": view(W), "c.weight": framework(weight(64, 64, seed=1))}
    analysis = mpfast.analyze(model)
    assert {"a.weight", "c.weight"} <= {row.name for row in analysis}
    assert {row.name for row in analysis if any("shares memory" in text for text in row.warnings)} == (
        {row.name for row in analysis if row.name[0] in "ab"} if meets else set()
    )
    result = mpfast.prune(model, sparsity=0.5, method="magnitude")
    reasons = {t.name: t.reason for t in result.skipped}
    assert ("a.weight" in {row.name for row in result.budget}) is not meets
    if meets:
        assert reasons["a.weight"] == (
            "shares memory with b.weight, which would change as well: make copies of them first"
        )
        with pytest.raises(ValueError, match="no layer is left to prune"):
            mpfast.prune({"a.weight": model["a.weight"], "b.weight": model["b.weight"]}, sparsity=0.5)


@pytest.mark.parametrize("framework", IN_MEMORY)
def test_parts_of_one_memory_that_do_not_meet_are_layers(framework):
    """Rows, columns and every second row of one matrix: interleaved, without an entry in common."""
    W = framework(weight(96, 128))
    model = {"a": W[:32, :64], "b": W[:32, 64:], "c": W[32::2, :64], "d": W[33::2, :64], "e": W[32:, 64:]}
    assert [row.name for row in mpfast.prune(model, sparsity=0.5, method="magnitude").budget] == list(model)
    assert not any("memory" in text for row in mpfast.analyze(model) for text in row.warnings)


def test_a_file_of_torch_knows_what_shares_memory(tmp_path):
    torch = pytest.importorskip("torch")
    W = torch.randn(64, 96)
    torch.save({"a.weight": W, "b.weight": W.T, "c.weight": W[:32], "d.weight": torch.randn(32, 32)}, tmp_path / "m.pt")
    assert [row.name for row in mpfast.analyze(tmp_path / "m.pt")] == ["a.weight", "c.weight", "d.weight"]
    result = mpfast.prune(tmp_path / "m.pt", sparsity=0.5, method="magnitude")
    assert [row.name for row in result.budget] == ["d.weight"]
