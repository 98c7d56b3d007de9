"""Tensors of PyTorch that share memory, have none, or are none."""

from __future__ import annotations

import io
import json
from collections import Counter

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mpfast
from mpfast.checkpoints import WHOLE, open_checkpoint, select_layers
from mpfast.checkpoints.safetensors import SafetensorsFile
from mpfast.checkpoints.torch_state import TorchState

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from mpfast.integrations.torch import prunable_modules  # noqa: E402


@pytest.mark.parametrize("from_file", [False, True])
def test_two_names_of_one_tensor_are_pruned_and_verified_together(from_file, tmp_path):
    weight = torch.randn(64, 64)
    model = {"a.weight": weight, "b.weight": weight, "c.weight": torch.randn(64, 64)}
    if from_file:
        torch.save(model, tmp_path / "model.pt")
        model = tmp_path / "model.pt"
    mpfast.prune(model, tmp_path / "out", sparsity=0.5, method="magnitude")
    written = load_file(tmp_path / "out" / "model.safetensors")
    np.testing.assert_array_equal(written["a.weight"], written["b.weight"])
    assert mpfast.verify(tmp_path / "out").ok
    assert mpfast.verify(tmp_path / "out", model).ok
    written["b.weight"][0, 0] += 1
    save_file(written, tmp_path / "out" / "model.safetensors")
    assert not mpfast.verify(tmp_path / "out").ok


@pytest.mark.parametrize("with_source", [True, False])
def test_verify_reads_each_tensor_once(with_source, tmp_path, monkeypatch):
    """Three names of one tensor among layers of the same shape: what was equal is told by hashes."""
    shared = torch.randn(64, 64)
    model = {f"{name}.weight": shared for name in "abc"} | {f"{name}.weight": torch.randn(64, 64) for name in "xyz"}
    torch.save(model, tmp_path / "model.pt")
    mpfast.prune(tmp_path / "model.pt", tmp_path / "out", sparsity=0.5, method="magnitude")
    (tmp_path / "model.pt").rename(tmp_path / "moved.pt")
    reads = Counter()

    def count(kind, method):
        original = getattr(kind, method)

        def counted(self, name):
            reads[self.source, name] += 1
            return original(self, name)

        monkeypatch.setattr(kind, method, counted)

    count(SafetensorsFile, "raw")
    count(SafetensorsFile, "read")
    count(TorchState, "read")
    found = mpfast.verify(tmp_path / "out", tmp_path / "moved.pt" if with_source else None)
    assert found.ok
    assert found.layers == 4
    assert set(reads.values()) == {1}
    assert len(reads) == 4 + 6 + (6 if with_source else 0)  # masks, output, source


def test_a_file_of_torch_is_read_whatever_its_name(tmp_path):
    torch.save({"fc.weight": torch.randn(32, 48)}, tmp_path / "model.safetensors")
    assert [row.name for row in mpfast.analyze(tmp_path / "model.safetensors")] == ["fc.weight"]


def test_tensors_without_a_memory_of_their_own_in_an_output(tmp_path):
    dense = torch.randn(64, 64)
    with pytest.raises(TypeError, match="sparse"):
        mpfast.prune({"s": dense.to_sparse(), "c": dense}, tmp_path / "out", sparsity=0.5, method="magnitude")
    lazy = nn.Sequential(nn.LazyLinear(16), nn.Linear(64, 64))
    result = mpfast.prune(lazy, tmp_path / "out", sparsity=0.5, method="magnitude")
    assert {tensor.name for tensor in result.skipped} == {"0.weight", "0.bias", "1.bias"}


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(64, 200, bias=False)
        self.tok = nn.Embedding(200, 64)
        self.tok.weight = self.out.weight
        self.fc = nn.Linear(64, 64)


def test_a_head_that_is_the_embedding_stays_dense(tmp_path):
    model = Tied()
    result = mpfast.prune(model, tmp_path / "out", sparsity=0.5, method="magnitude")
    assert [row.name for row in result.budget] == ["fc.weight"]
    assert {t.name: t.reason for t in result.skipped}["out.weight"] == "the same tensor as tok.weight"
    # With embeddings both names get the pruned weight.
    mpfast.prune(model, tmp_path / "all", sparsity=0.5, method="magnitude", embeddings=True)
    written = load_file(tmp_path / "all" / "model.safetensors")
    assert (written["tok.weight"] == 0).any()
    np.testing.assert_array_equal(written["tok.weight"], written["out.weight"])
    torch.save(model.state_dict(), tmp_path / "m.pt")
    assert len(mpfast.analyze(tmp_path / "m.pt")) == 2
    assert set(prunable_modules(model)) == {"fc"}


def test_entries_that_are_no_tensors():
    class Extra(nn.Module):
        def __init__(self, state):
            super().__init__()
            self.fc = nn.Linear(32, 32)
            self.state = state

        def get_extra_state(self):
            return self.state

        def set_extra_state(self, state):
            pass

    for state in (("v", 1), io.BytesIO(b"x"), {"a": {"b": torch.zeros(2)}}, None, "v2"):
        analysis = mpfast.analyze(Extra(state))
        assert len(analysis) == 1
        assert {t.name: t.dtype for t in analysis.skipped}["_extra_state"] == type(state).__name__
    lazy = mpfast.analyze(nn.Sequential(nn.Linear(32, 32), nn.LazyLinear(8)))
    assert {t.name for t in lazy.skipped} == {"0.bias", "1.weight", "1.bias"}


def test_a_file_that_would_lack_something_is_not_written(tmp_path):
    class Extra(nn.Linear):
        def get_extra_state(self):
            return ("v", 1)

        def set_extra_state(self, state):
            pass

    for change in (
        lambda out: mpfast.prune(Extra(32, 32), out, sparsity=0.5, method="magnitude"),
        lambda out: mpfast.compress(Extra(32, 32), out, rank=2),
    ):
        with pytest.raises(ValueError, match=r"1 entries that no file of tensors holds, '_extra_state' \(tuple\)"):
            change(tmp_path / "out")
        assert change(None) is not None
    assert not (tmp_path / "out").exists()


def test_float8_beside_others_is_copied(tmp_path):
    state = {"a.weight": torch.randn(32, 32), "b.weight": torch.randn(32, 32).to(torch.float8_e4m3fn)}
    torch.save(state, tmp_path / "m.pt")
    for model in (state, tmp_path / "m.pt"):
        result = mpfast.prune(model, tmp_path / "out", sparsity=0.5, method="magnitude", overwrite=True)
        assert "float8" in {t.name: t.reason for t in result.skipped}["b.weight"]
        found = open_checkpoint(tmp_path / "out")
        assert found.tensors[1].dtype == "float8_e4m3fn"
        np.testing.assert_array_equal(found.read("b.weight"), state["b.weight"].view(torch.uint8).numpy())


def test_tensors_without_entries_of_their_own():
    state = {
        "a.weight": torch.randn(32, 32),
        "s.weight": torch.randn(32, 32).to_sparse(),
        "m.weight": torch.empty(32, 32, device="meta"),
    }
    analysis = mpfast.analyze(state)
    assert [row.name for row in analysis] == ["a.weight"]
    reasons = {t.name: t.reason for t in analysis.skipped}
    assert "sparse" in reasons["s.weight"]
    assert "meta device" in reasons["m.weight"]


def test_whole_views_of_a_state_dictionary_have_no_parts():
    layers, *_ = select_layers(open_checkpoint(nn.LSTM(24, 16).state_dict()), None, None, WHOLE)
    assert [layer.name for layer in layers] == ["weight_ih_l0", "weight_hh_l0"]
    assert json.dumps([layer.shape for layer in layers]) == "[[64, 24], [64, 16]]"
