"""ModelOpt itself: its sparse modules with our masks, and our mode among its own."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

import mpfast
from mpfast import masks, reconstruct

from .tiny_models import spread_budget, tiny

torch = pytest.importorskip("torch")
pytest.importorskip("modelopt")
mto = pytest.importorskip("modelopt.torch.opt")
mts = pytest.importorskip("modelopt.torch.sparsity.weight_sparsity")
ours = importlib.import_module("mpfast.integrations.modelopt")
pytestmark = pytest.mark.slow


def small_model():
    torch.manual_seed(0)
    layers = [torch.nn.Linear(32, 48), torch.nn.ReLU(), torch.nn.Linear(48, 64), torch.nn.Linear(64, 16)]
    return torch.nn.Sequential(*layers)


def rows(count=600):
    return torch.randn(count, 32, generator=torch.Generator().manual_seed(1))


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters() if parameter.ndim > 1}


def test_masks_hold_are_saved_restored_and_exported(tmp_path):
    model = small_model()
    dense = weights(model)
    wanted = masks.magnitude({name: dense[name] for name in ("0.weight", "3.weight")}, 0.6)
    ours.apply_masks(model, wanted)
    for name, mask in wanted.items():
        module = model.get_submodule(name.removesuffix(".weight"))
        assert torch.equal(module.weight, torch.where(mask, dense[name], 0.0))
    assert torch.equal(model[2].weight, dense["2.weight"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(rows()).square().mean().backward()
    optimizer.step()
    assert not model[0].weight[~wanted["0.weight"]].any()
    assert (model[0].weight[wanted["0.weight"]] != dense["0.weight"][wanted["0.weight"]]).any()
    output = model(rows())
    mto.save(model, tmp_path / "model.pt")
    restored = mto.restore(small_model(), tmp_path / "model.pt")
    assert torch.equal(restored(rows()), output)
    exported = mts.export(restored)
    assert type(exported[0]) is torch.nn.Linear
    assert torch.equal(exported[0].weight != 0, wanted["0.weight"])
    assert torch.equal(exported(rows()), output)


def test_what_masks_leave_is_of_modelopts_own_mode():
    """So that it is restored without mpfast."""
    model = small_model()
    ours.apply_masks(model, masks.magnitude({"0.weight": model[0].weight.detach()}, 0.5))
    assert [name for name, _ in mto.modelopt_state(model)["modelopt_state_dict"]] == ["sparse_magnitude"]


def test_convolutions_and_masks_that_come_later():
    model = torch.nn.ModuleDict({"conv": torch.nn.Conv2d(16, 16, 3), "fc": torch.nn.Linear(16, 16)})
    mask = torch.rand(16, 16, 3, 3, generator=torch.Generator().manual_seed(0)) > 0.5
    ours.apply_masks(model, {"conv": mask.numpy()})
    assert torch.equal(model["conv"].weight != 0, mask)
    ours.apply_masks(model, {"conv.weight": ~mask})
    assert torch.equal(model["conv"].weight != 0, ~mask)
    with pytest.raises(ValueError, match="ModelOpt's rules have left out fc"):
        ours.apply_masks(model, {"fc": torch.ones(16, 16, dtype=torch.bool)})


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({}, ValueError, "masks are empty"),
        ({"7.weight": torch.ones(2, 2, dtype=torch.bool)}, KeyError, "no module '7'"),
        ({"1": torch.ones(2, 2, dtype=torch.bool)}, ValueError, "1 is a ReLU"),
        ({"0.weight": torch.ones(2, 2, dtype=torch.bool)}, ValueError, "boolean of shape"),
        ({"0.weight": torch.ones(48, 32)}, ValueError, "boolean of shape"),
    ],
)
def test_masks_that_do_not_fit_are_refused(given, error, message):
    model = small_model()
    with pytest.raises(error, match=message):
        ours.apply_masks(model, given)
    assert type(model[0]) is torch.nn.Linear


@pytest.mark.parametrize("options", [{}, {"pattern": "2:4 sparsity"}, {"pattern": "4:8"}, {"sparsity": 0.7}])
def test_the_mode_prunes_and_refits_to_what_the_layers_see(options):
    model = small_model()
    dense = weights(model)
    inputs = {"0": rows(), "2": model[:2](rows()).detach(), "3": model[:3](rows()).detach()}
    config = {"data_loader": list(rows().split(100)), "collect_func": lambda batch: batch, "damping": 0.01, **options}
    mts.sparsify(model, "mpfast", config)
    pattern = options.get("pattern", None if "sparsity" in options else "2:4")
    for name, x in inputs.items():
        weight = dense[f"{name}.weight"].numpy()
        C = x.double().T.numpy() @ x.double().numpy() / len(x)
        share = (int(0.7 * weight.size) + 0.5) / weight.size
        groups = pattern and tuple(map(int, pattern.removesuffix(" sparsity").split(":")))
        wanted = {"pattern": groups} if pattern else {"sparsity": share}
        fit = reconstruct.prune(weight, reconstruct.Factor(C, 0.01), refit=4, **wanted)
        found = model.get_submodule(name).weight.detach().numpy()
        assert np.count_nonzero(found == 0) == np.count_nonzero(~fit.mask)
        error = ((weight - found) @ C * (weight - found)).sum() / (weight @ C * weight).sum()
        # Sums in other orders may turn a choice between equals; the error hardly changes.
        assert error == pytest.approx(fit.error, rel=0.02)


def test_the_mode_meets_a_budget_and_goes_through_files(tmp_path):
    model = tiny("llama", num_hidden_layers=2)
    budget = spread_budget(model)
    tokens = torch.randint(0, 96, (16, 24), generator=torch.Generator().manual_seed(0))
    config = {"forward_loop": lambda model: model(tokens), "budget": budget}
    mts.sparsify(model, "mpfast", config)
    for row in budget:
        assert int((model.get_submodule(row.module).weight == 0).sum()) == row.pruned, row.name
    output = model(tokens).logits
    mto.save(model, tmp_path / "model.pt")
    restored = mto.restore(tiny("llama", num_hidden_layers=2), tmp_path / "model.pt")
    torch.testing.assert_close(restored(tokens).logits, output, atol=0, rtol=0)
    exported = mts.export(restored)
    assert {row.tensor: row.shape for row in mpfast.analyze(exported, progress=False)}.keys() >= {
        row.name for row in budget
    }


def test_options_are_checked():
    loop = {"forward_loop": lambda model: model(rows())}
    for config, message in (
        ({}, "no data_loader and no forward_loop"),
        ({**loop, "pattern": "9:4"}, "must be n:m"),
        ({**loop, "pattern": "2:4", "sparsity": 0.5}, "pass one of"),
        ({**loop, "budget": spread_budget(tiny("llama", num_hidden_layers=1))}, "make it of this model"),
    ):
        with pytest.raises(ValueError, match=message):
            mts.sparsify(small_model(), "mpfast", config)
    model = small_model()
    budget = mpfast.models.share_out(model, 0.5, method="uniform", progress=False)
    with pytest.raises(ValueError, match=r"budget has 0, which is none of ModelOpt's sparse modules"):
        mts.sparsify(model, [("mpfast", {"nn.Linear": {"*": None, "2": {}}})], {**loop, "budget": budget})
