"""Weights that PyTorch computes from others, by masks and parametrisations, are read as the model computes them."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file

import mpfast

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn.utils import parametrizations, parametrize, prune  # noqa: E402

from mpfast.integrations.torch import hold  # noqa: E402


def parametrised():
    """Modules whose weight is not what is stored, with the weight that they compute with."""
    torch.manual_seed(0)
    pruned = nn.Linear(32, 48)
    prune.l1_unstructured(pruned, "weight", 0.3)
    held = hold(nn.Linear(32, 48), {"weight": torch.rand(48, 32) > 0.4})
    return {
        "pruned": pruned,
        "held": held,
        "normed": parametrizations.weight_norm(nn.Linear(32, 48)),
        "normed along inputs": parametrizations.weight_norm(nn.Conv1d(16, 32, 9), dim=1),
        "normed, old": nn.utils.weight_norm(nn.Linear(32, 48)),
        "spectral": parametrizations.spectral_norm(nn.Linear(32, 48)),
        "spectral, old": nn.utils.spectral_norm(nn.Linear(32, 48)),
        "orthogonal": parametrizations.orthogonal(nn.Linear(32, 48)),
    }


def matrix(weight):
    return weight.detach().reshape(len(weight), -1).double().numpy()


@pytest.mark.parametrize("case", parametrised())
def test_weights_are_read_as_the_model_computes_with_them(case):
    module = parametrised()[case]
    model = nn.ModuleDict({"x": module})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    (row,) = mpfast.analyze(model)
    # A step of power iteration that the forward pass takes in training is not taken here.
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    model.eval()
    if "old" in case:
        next(iter(module._forward_pre_hooks.values()))(module, None)
    assert (row.name, row.tensor_shape) == ("x.weight", tuple(module.weight.shape))
    assert row.fro_norm == pytest.approx(np.linalg.norm(matrix(module.weight)), rel=1e-5)


@pytest.mark.parametrize("case", ["pruned", "held", "normed", "normed along inputs", "normed, old"])
def test_so_are_their_state_dictionaries(case, tmp_path):
    module = parametrised()[case]
    model = nn.ModuleDict({"x": module})
    torch.save(model.state_dict(), tmp_path / "m.pt")
    (row,) = mpfast.analyze(tmp_path / "m.pt")
    assert (row.name, row.tensor_shape) == ("x.weight", tuple(module.weight.shape))
    assert row.fro_norm == pytest.approx(np.linalg.norm(matrix(module.weight)), rel=1e-5)


@pytest.mark.parametrize("live", [True, False])
@pytest.mark.parametrize("case", ["pruned", "held"])
def test_pruning_counts_what_a_mask_prunes_already(case, live, tmp_path):
    module = parametrised()[case]
    model = nn.Sequential(module, nn.Linear(48, 32))
    result = mpfast.prune(model if live else model.state_dict(), tmp_path / "out", sparsity=0.6, method="uniform")
    rows = {row.name: row for row in result.budget}
    assert set(rows) == {"0.weight", "1.weight"}
    assert rows["0.weight"].sparsity == pytest.approx(0.6, abs=1e-3)
    assert set(result.masks) == set(rows)
    assert isinstance(result.masks["0.weight"], torch.Tensor)
    assert mpfast.verify(tmp_path / "out").ok
    written = load_file(tmp_path / "out" / "model.safetensors")
    state = model.state_dict()
    assert list(written) == list(state)
    dense = module.weight.detach().clone()
    model.load_state_dict({name: torch.from_numpy(array) for name, array in written.items()})
    if case == "pruned":
        next(iter(module._forward_pre_hooks.values()))(module, None)
    assert float((module.weight == 0).float().mean()) == pytest.approx(0.6, abs=1e-3)
    assert module.weight.equal(dense * result.masks["0.weight"])
    budget = mpfast.analyze(model).budget(0.7)
    assert mpfast.prune(model, budget=budget).budget.pruned == budget.pruned


@pytest.mark.parametrize("case", ["normed", "normed, old", "spectral", "orthogonal"])
def test_what_cannot_be_set_to_zero_in_its_parts_stays(case):
    model = nn.Sequential(parametrised()[case], nn.Linear(48, 32))
    result = mpfast.prune(model, sparsity=0.5, method="magnitude")
    assert [row.name for row in result.budget] == ["1.weight"]
    assert "remove" in {t.name: t.reason for t in result.skipped}["0.weight"]


def test_the_difference_of_masked_models():
    base = nn.ModuleDict({"x": nn.Linear(32, 48)})
    tuned = nn.ModuleDict({"x": nn.Linear(32, 48)})
    difference = tuned.x.weight.detach() - base.x.weight.detach()
    keep = torch.rand(48, 32) > 0.5
    hold(tuned, {"x": keep})
    (row,) = mpfast.analyze(tuned, base=base)
    difference = torch.where(keep, difference, -base.x.weight.detach())
    assert row.name == "x.weight"
    assert row.fro_norm == pytest.approx(float(difference.norm()), rel=1e-5)


class Own(nn.Module):
    """A parametrisation by others."""

    def forward(self, w):
        if w.abs().max() > 1e6:
            raise RuntimeError("out of range")
        return w.T @ w


def test_parametrisations_by_others():
    model = nn.ModuleDict({"x": nn.Linear(32, 32), "y": nn.Linear(32, 32)})
    parametrize.register_parametrization(model.x, "weight", Own(), unsafe=True)
    rows = mpfast.analyze(model)
    assert [row.name for row in rows] == ["x.weight", "y.weight"]
    assert rows[0].fro_norm == pytest.approx(float(model.x.weight.norm()), rel=1e-5)


class Scale(nn.Module):
    """A parametrisation with a matrix of its own."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.rand(64, 64))

    def forward(self, w):
        return w * self.gain


def test_parameters_of_a_parametrisation_are_no_layers(tmp_path):
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    parametrize.register_parametrization(model[0], "weight", Scale())
    assert [row.name for row in mpfast.analyze(model)] == ["0.weight", "1.weight"]
    result = mpfast.prune(model, sparsity=0.5, method="magnitude")
    assert [row.name for row in result.budget] == ["1.weight"]
