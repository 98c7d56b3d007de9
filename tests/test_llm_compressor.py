"""llm-compressor itself runs the recipe of a budget, and our modifiers, on tiny models.

It pins other versions of transformers than the rest of the tests need, so it has an environment of its own, which
``.ci/run nightly`` makes; elsewhere this is skipped.
"""

from __future__ import annotations

import importlib

import pytest

import mpfast
from mpfast import reconstruct

from .tiny_models import MODELS, linear_modules, spread_budget, tiny

llmcompressor = pytest.importorskip("llmcompressor")
torch = pytest.importorskip("torch")
pytestmark = pytest.mark.slow


def any_tokenizer():
    """A tokenizer, which it asks for although the samples are tokens already."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="a")


def saved(kind, path, **changes):
    """A tiny model that llm-compressor can look up where it came from."""
    made = tiny(kind, **{"num_hidden_layers": 3, **changes})
    made.save_pretrained(path)
    return type(made).from_pretrained(path)


def samples(count=8, length=24):
    torch.manual_seed(1)
    tokens = torch.randint(0, 96, (count, 1, length))
    return [{"input_ids": one, "attention_mask": torch.ones_like(one)} for one in tokens]


def run(model, recipe, pipeline="basic", count=8, length=24, **options):
    loader = torch.utils.data.DataLoader(samples(count, length), batch_size=None)
    llmcompressor.oneshot(
        model=model, dataset=loader, processor=any_tokenizer(), recipe=recipe, pipeline=pipeline, **options
    )


def zeros_of(model):
    return {name: int((module.weight == 0).sum()) for name, module in linear_modules(model).items()}


def modules_of(row):
    """The linear modules that a row of a budget is: one, or what becomes of a stack of experts."""
    if len(row.shape) == 2:
        return [row.module]
    experts, _, name = row.module.rpartition(".")
    parts = ("gate_proj", "up_proj") if name == "gate_up_proj" else (name,)
    return [f"{experts}.{number}.{part}" for number in range(row.shape[0]) for part in parts]


@pytest.mark.parametrize("budgeted", ["live", "files", "body"])
@pytest.mark.parametrize("kind", MODELS)
def test_the_recipe_prunes_what_the_budget_says(kind, budgeted, tmp_path):
    model = saved(kind, tmp_path / "model")
    sources = {"live": model, "files": tmp_path / "model", "body": getattr(model, model.base_model_prefix)}
    budget = spread_budget(sources[budgeted])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(budget.export("llm-compressor"))
    run(model, str(recipe))
    zeros = {name: float((module.weight == 0).double().mean()) for name, module in linear_modules(model).items()}
    wanted = {name: row.sparsity for row in budget for name in modules_of(row)}
    if budgeted == "body":
        wanted = {f"{model.base_model_prefix}.{name}": share for name, share in wanted.items()}
    assert wanted.keys() <= zeros.keys()
    for name, share in zeros.items():
        # A thousandth is the rounding of the recipe; SparseGPT cuts at an entry, the entry itself and ties included.
        assert share == pytest.approx(wanted.get(name, 0.0), abs=0.004), name


@pytest.mark.parametrize("budgeted", ["live", "files", "body"])
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", ["MPFastModifier", "MPFastSparseGPTModifier"])
def test_a_modifier_prunes_what_the_budget_says(name, kind, budgeted, tmp_path):
    ours = importlib.import_module("mpfast.integrations.llmcompressor")
    model = saved(kind, tmp_path / "model")
    sources = {"live": model, "files": tmp_path / "model", "body": getattr(model, model.base_model_prefix)}
    budget = spread_budget(sources[budgeted])
    run(model, getattr(ours, name)(budget=budget))
    found = zeros_of(model)
    prefix = f"{model.base_model_prefix}." if budgeted == "body" else ""
    left = set(found)
    for row in budget:
        modules = [f"{prefix}{module}" for module in modules_of(row)]
        left -= set(modules)
        # SparseGPT cuts some columns at a time, at an entry, the entry itself and ties included; ours is exact.
        slack = 0 if name == "MPFastModifier" else 0.004 * row.size
        assert abs(sum(found[module] for module in modules) - row.pruned) <= slack, row.name
        assert max(abs(found[module] - row.pruned / len(modules)) for module in modules) <= slack + 1, row.name
    assert all(found[module] == 0 for module in left)


def inputs_of(model, name):
    """Rows that a module sees of the samples."""
    rows = []
    module = model.get_submodule(name)
    handle = module.register_forward_pre_hook(
        lambda _, args: rows.append(args[0].detach().reshape(-1, args[0].shape[-1]))
    )
    with torch.no_grad():
        for batch in samples(count=16):
            model(**batch)
    handle.remove()
    return torch.cat(rows).double().numpy()


@pytest.mark.parametrize("pipeline", ["basic", "sequential", "independent"])
@pytest.mark.parametrize("pattern", [None, "2:4"])
def test_weights_are_those_of_reconstruct(pipeline, pattern, tmp_path):
    """Fitted to the inputs of the dense model in the basic pipeline, of the pruned one in the sequential one."""
    ours = importlib.import_module("mpfast.integrations.llmcompressor")
    model = saved("llama", tmp_path / "model")
    dense = saved("llama", tmp_path / "dense")
    options = {"pattern": pattern} if pattern else {"sparsity": 0.4}
    modifier = ours.MPFastModifier(damping=0.01, **options)
    run(model, modifier, pipeline, count=16)
    names = [name for name in linear_modules(dense) if name != "lm_head"]
    assert [row.name for row in modifier.report] == [f"{name}.weight" for name in names]
    assert modifier.unseen == ()
    assert not (model.lm_head.weight == 0).any()
    seen_by = dense if pipeline == "basic" else model
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.2.self_attn.k_proj"):
        rows = inputs_of(seen_by, name)
        weight = dense.get_submodule(name).weight.detach().numpy()
        share = (int(0.4 * weight.size) + 0.5) / weight.size
        C = rows.T @ rows / len(rows)
        factor = reconstruct.Factor(C, 0.01)
        wanted = {"pattern": (2, 4)} if pattern else {"sparsity": share}
        fit = reconstruct.prune(weight, factor, refit=4, **wanted)
        found = model.get_submodule(name).weight.detach().numpy()
        # The masks may differ where scores are equal up to the rounding of the sums; the errors hardly.
        error = ((weight - found) @ C * (weight - found)).sum() / (weight @ C * weight).sum()
        assert error == pytest.approx(fit.error, rel=0.02), name
        row = next(row for row in modifier.report if row.name == f"{name}.weight")
        assert row.error == pytest.approx(error, rel=1e-3)
        assert row.rows == len(rows)


def test_a_recipe_names_it_and_says_it_again(tmp_path):
    importlib.import_module("mpfast.integrations.llmcompressor")
    model = saved("llama", tmp_path / "model", num_hidden_layers=2)
    budget = spread_budget(model)
    budget.to_json(tmp_path / "budget.json")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"prune_stage:\n  prune_modifiers:\n    MPFastModifier: {{budget: {tmp_path}/budget.json}}\n")
    run(model, str(recipe))
    found = zeros_of(model)
    assert {row.module: found[row.module] for row in budget} == {row.module: row.pruned for row in budget}
    from llmcompressor.core import active_session

    written = active_session().get_serialized_recipe()
    again = saved("llama", tmp_path / "again", num_hidden_layers=2)
    (tmp_path / "written.yaml").write_text(written)
    run(again, str(tmp_path / "written.yaml"))
    assert zeros_of(again) == found


def test_a_budget_in_memory_is_written_into_the_recipe():
    ours = importlib.import_module("mpfast.integrations.llmcompressor")
    budget = spread_budget(tiny("llama", num_hidden_layers=1))
    text = ours.MPFastModifier(budget=budget).model_dump()["budget"]
    assert mpfast.Budget.from_json(text) == budget


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "pass one of sparsity, pattern, rank and budget"),
        ({"sparsity": 0.5, "pattern": "2:4"}, "pass one of"),
        ({"sparsity": 1.5}, r"must lie in \[0, 1\]"),
        ({"pattern": "9:4"}, "must be n:m"),
        ({"sparsity": 0.5, "method": "guess"}, "must be one of obs"),
        ({"budget": "here", "targets": ["Linear"]}, "no such file|No such file"),
        ({"sparsity": 0.5, "sparsities": 1}, "sparsities"),
    ],
)
def test_options_are_checked_when_it_is_made(options, message):
    ours = importlib.import_module("mpfast.integrations.llmcompressor")
    with pytest.raises((ValueError, OSError), match=message):
        ours.MPFastModifier(**options)


def test_a_budget_of_another_model_is_refused(tmp_path):
    ours = importlib.import_module("mpfast.integrations.llmcompressor")
    model = saved("llama", tmp_path / "model", num_hidden_layers=2)
    for other in (spread_budget(tiny("llama", num_hidden_layers=3)), spread_budget(tiny("bert", num_hidden_layers=1))):
        with pytest.raises(ValueError, match="make it of the linear layers of this model"):
            run(model, ours.MPFastModifier(budget=other))
    with pytest.raises(ValueError, match="ignore is said by the budget"):
        ours.MPFastSparseGPTModifier(budget=other, ignore=["lm_head"])
    with pytest.raises(ValueError, match="do not go with a budget"):
        ours.MPFastModifier(budget=other, ignore=["lm_head"])


def test_experts_that_no_sample_goes_to_stay_dense(tmp_path):
    ours = importlib.import_module("mpfast.integrations.llmcompressor")
    model = saved("moe", tmp_path / "model", num_hidden_layers=1)
    modifier = ours.MPFastModifier(sparsity=0.5)
    with pytest.warns(UserWarning, match="have seen no inputs and stay dense"):
        run(model, modifier, count=1, length=1, moe_calibrate_all_experts=False)
    # One token goes to two of four experts, each of three matrices.
    assert len(modifier.unseen) == 6
    assert all(name.startswith("model.layers.0.mlp.experts.") for name in modifier.unseen)
    found = zeros_of(model)
    assert all(found[name] == 0 for name in modifier.unseen)
    assert all(found[row.name.removesuffix(".weight")] == row.pruned > 0 for row in modifier.report)


def test_a_tied_head_is_refused(tmp_path):
    ours = importlib.import_module("mpfast.integrations.llmcompressor")
    model = saved("llama", tmp_path / "model", num_hidden_layers=1, tie_word_embeddings=True)
    with pytest.raises(ValueError, match="lm_head shares its weight"):
        run(model, ours.MPFastModifier(sparsity=0.5, ignore=[]))
