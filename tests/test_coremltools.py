"""coremltools itself: its pruner goes by our budget, and zeros of any origin take no space in what it saves."""

from __future__ import annotations

import re

import pytest

import mpfast
from mpfast.models import exporters

from .tiny_models import linear_modules, spread_budget, tiny

torch = pytest.importorskip("torch")
coremltools = pytest.importorskip("coremltools")
pytestmark = pytest.mark.slow


def pruned_by(model, budget, path):
    """What coremltools makes of a model and a budget's file."""
    pruning = pytest.importorskip("coremltools.optimize.torch.pruning")
    path.write_text(budget.export("core-ml"))
    pruner = pruning.MagnitudePruner(model, pruning.MagnitudePrunerConfig.from_yaml(str(path)))
    pruner.prepare(inplace=True)
    pruner.step()
    return pruner.finalize(inplace=True)


@pytest.mark.parametrize("budgeted", ["body", "whole"])
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_every_layer_loses_what_the_budget_says(kind, budgeted, tmp_path):
    model = tiny(kind, num_hidden_layers=3)
    budget = spread_budget(getattr(model, model.base_model_prefix) if budgeted == "body" else model)
    pruned_by(model, budget, tmp_path / "config.yaml")
    prefix = f"{model.base_model_prefix}." if budgeted == "body" else ""
    wanted = {f"{prefix}{row.module}": row.pruned for row in budget}
    for name, module in linear_modules(model).items():
        assert int((module.weight == 0).sum()) == wanted.get(name, 0), name


@pytest.mark.parametrize("pattern", ["1:4", "2:4"])
def test_the_pattern_counts_what_stays(pattern, tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(64, 32))
    budget = mpfast.prune(dict(model.state_dict()), pattern=pattern).budget
    pruned_by(model, budget, tmp_path / "config.yaml")
    kept = (model[0].weight != 0).reshape(-1, 4).sum(1)
    assert set(kept.tolist()) == {int(pattern[0])}


def size_of(path):
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def test_zeros_take_no_space_in_what_is_saved(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.ReLU(), torch.nn.Linear(512, 256)).eval()
    masks = mpfast.masks.magnitude({"0": model[0].weight.detach(), "2": model[2].weight.detach()}, 0.7)
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_submodule(name).weight.mul_(mask)
    shape = coremltools.TensorType(shape=(1, 256))
    traced = torch.jit.trace(model, torch.randn(1, 256))
    dense = coremltools.convert(traced, inputs=[shape], minimum_deployment_target=coremltools.target.iOS17)
    optimize = coremltools.optimize.coreml
    # What is zero already, and nothing else.
    config = optimize.OpThresholdPrunerConfig(threshold=1e-12, minimum_sparsity_percentile=0.01)
    sparse = optimize.prune_weights(dense, optimize.OptimizationConfig(global_config=config))
    dense.save(str(tmp_path / "dense.mlpackage"))
    sparse.save(str(tmp_path / "sparse.mlpackage"))
    operations = sparse._mil_program.functions["main"].operations
    stored = [op for op in operations if op.op_type == "constexpr_sparse_to_dense"]
    assert len(stored) == 2
    kept = sorted(int(mask.sum()) for mask in masks.values())
    # Of a weight, two bytes if it is kept (a float16 that is not zero) and a bit in any case.
    assert sorted(len(op.nonzero_data.val) for op in stored) == pytest.approx(kept, rel=1e-3)
    entries = sum(mask.numel() for mask in masks.values())
    saved = size_of(tmp_path / "dense.mlpackage") - size_of(tmp_path / "sparse.mlpackage")
    assert saved == pytest.approx(2 * (entries - sum(kept)) - entries / 8, rel=0.02)


def test_what_it_does_not_prune_is_refused():
    with pytest.raises(ValueError, match=r"core_ml\(\): budget has .*experts.*, a stack of experts"):
        exporters.core_ml(spread_budget(tiny("moe", num_hidden_layers=1)))
    configs = exporters.core_ml(spread_budget(tiny("llama", num_hidden_layers=2)))["module_name_configs"]
    name = next(key for key in configs if "layers\\.1\\.mlp\\.up_proj" in key)
    assert re.fullmatch(name, "model.layers.1.mlp.up_proj")
    assert not re.fullmatch(name, "model.layers.11.mlp.up_proj")
