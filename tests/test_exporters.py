"""What other tools make of a budget: every layer gets what the budget asks for it, and no other does."""

from __future__ import annotations

import dataclasses
import json
import re

import numpy as np
import pytest

import mpfast
from mpfast.models import Budget, LayerBudget, exporters
from mpfast.models.alphapruning import LINEAR_ORDERS
from mpfast.models.module_names import module_patterns

from .references import run_python
from .tiny_models import GROUPED, MODELS, SIZES, linear_modules, spread_budget, tiny


def ranked(budget):
    """The budget with a rank of its own for every layer."""
    rows = [dataclasses.replace(row, rank=1 + number) for number, row in enumerate(budget)]
    return dataclasses.replace(budget, layers=tuple(rows))


def by_hand(*names, dense=()):
    rows = tuple(
        LayerBudget(
            f"{name}.weight", "linear", (16, 16), "float32", 16 * (1 + number), (1 + number) / 16, rank=1 + number
        )
        for number, name in enumerate(names)
    )
    return Budget(rows, "by hand", 0.5, None, "nowhere", dense=tuple((f"{name}.weight", (16, 16)) for name in dense))


# Names that end alike, numbers of which one begins as another, and a layer that stays dense.
ALIKE = ["0", "10", "block.0", "block.10", "block.1.fc", "block.11.fc", "fc", "head.fc"]


@pytest.mark.parametrize("wrapper", ["", "module.", "base.model."])
def test_a_pattern_matches_one_module(wrapper):
    patterns = module_patterns(ALIKE, ["dense.fc", "a.block.0"])
    for name, pattern in patterns.items():
        found = [
            other for other in [*ALIKE, "dense.fc", "a.block.0"] if re.match(f"(.*\\.)?({pattern})$", wrapper + other)
        ]
        assert found == [name]
    assert list(patterns) == sorted(ALIKE, key=lambda name: (-len(name), name))


def test_the_name_of_the_body_is_no_part_of_a_pattern():
    assert module_patterns(["bert.encoder.layer.0.out", "classifier"]) == {
        "bert.encoder.layer.0.out": r"encoder\.layer\.0\.out",
        "classifier": "classifier",
    }
    # Of two bodies, each is part; so is one of the two halves of a model.
    for names in (["text.h.0.fc", "vision.h.0.fc"], ["encoder.h.0.fc"], ["h.0.fc"], ["0.h.0.fc"]):
        assert list(module_patterns(names).values()) == [
            re.escape(name) for name in sorted(names, key=lambda n: -len(n))
        ]


PEFT_CASES = [("llama", "LlamaModel"), ("bert", "BertModel"), ("moe", "Qwen3MoeModel")]


@pytest.mark.parametrize("budgeted", ["body", "whole"])
@pytest.mark.parametrize("adapted", ["body", "whole"])
@pytest.mark.parametrize(("kind", "body"), PEFT_CASES)
def test_peft_gives_every_layer_its_rank(kind, body, budgeted, adapted):
    """With and without a head, whichever of the two the budget was made from."""
    peft = pytest.importorskip("peft")
    model = tiny(kind)
    bodies = [getattr(model, model.base_model_prefix), model]
    budget = ranked(spread_budget(bodies[budgeted == "whole"]))
    pattern = json.loads(budget.export("peft"))["rank_pattern"]
    target = tiny(kind)
    target = target if adapted == "whole" else getattr(target, target.base_model_prefix)
    linear = linear_modules(target)
    stacks = sorted({".".join(row.module.split(".")[-2:]) for row in budget if len(row.shape) == 3})
    config = peft.LoraConfig(r=999, target_modules=list(linear), target_parameters=stacks or None, rank_pattern=pattern)
    wrapped = peft.get_peft_model(target, config).base_model.model
    ranks = {}
    for name, module in wrapped.named_modules():
        if hasattr(module, "lora_A") and "default" in getattr(module, "r", {}):
            parameter = getattr(module, "parameter_name", None)
            plain = name.replace(".base_layer", "")
            ranks[plain if parameter in (None, "weight") else f"{plain}.{parameter}"] = module.r["default"]
    wanted = {row.module: -(-row.rank // row.shape[0]) if len(row.shape) == 3 else row.rank for row in budget}
    prefix = f"{model.base_model_prefix}."
    for name, rank in ranks.items():
        names = {name, f"{prefix}{name}", name.removeprefix(prefix)}
        (asked,) = {wanted[other] for other in names if other in wanted} or {999}
        assert rank == asked, name
    found = {name.removeprefix(prefix) for name in ranks}
    heads = {"classifier", "lm_head"}
    assert {name.removeprefix(prefix) for name in wanted} - heads <= found


def test_peft_keeps_to_the_largest_rank_and_to_what_is_no_integer():
    budget = by_hand(*ALIKE)
    assert max(exporters.peft(budget, largest=3).values()) == 3
    for largest in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match=r"peft\(\): largest must be a positive integer"):
            exporters.peft(budget, largest=largest)


@pytest.mark.parametrize("kind", MODELS)
def test_a_torch_sparsifier_prunes_what_the_budget_says(kind):
    sparsifiers = pytest.importorskip("torch.ao.pruning")
    model = tiny(kind)
    budget = spread_budget(model, exclude=["*experts*"] if kind == "moe" else ())
    sparsifier = sparsifiers.WeightNormSparsifier()  # its own defaults are blocks of four
    sparsifier.prepare(model, json.loads(budget.export("torch-ao-pruning")))
    sparsifier.step()
    sparsifier.squash_mask()
    zeros = {name: int((module.weight == 0).sum()) for name, module in linear_modules(model).items()}
    rows = {row.module: row for row in budget}
    for name, count in zeros.items():
        assert count == (rows[name].pruned if name in rows else 0), name


def test_a_torch_sparsifier_keeps_the_pattern():
    torch = pytest.importorskip("torch")
    from torch.ao.pruning import WeightNormSparsifier

    model = torch.nn.Sequential(torch.nn.Linear(64, 32))
    budget = mpfast.prune(dict(model.state_dict()), pattern="1:4").budget
    sparsifier = WeightNormSparsifier()
    sparsifier.prepare(model, json.loads(budget.export("torch-ao-pruning")))
    sparsifier.step()
    sparsifier.squash_mask()
    kept = (model[0].weight != 0).reshape(-1, 4).sum(1)
    assert set(kept.tolist()) == {1}


def alphapruning_ratios(metric, epsilon, target, sizes):
    """AlphaPruning's mapping (arXiv 2410.10912, equation 3, and the normalisation after it), layer by layer."""
    ratios = (metric - metric.min()) / (metric.max() - metric.min()) * 2 * epsilon + 1 - epsilon
    return ratios * target * sizes.sum() / (sizes * ratios).sum()


def alphapruning_layers(model):
    """AlphaPruning's order: the linear layers of the blocks, block after block, as the modules are registered."""
    body = model.model
    blocks = body.decoder.layers if hasattr(body, "decoder") else body.layers
    return [module for block in blocks for module in linear_modules(block).values()]


def check_alphapruning(model, budget, path, **options):
    epsilon = exporters.alphapruning(budget, path, **options)
    modules = alphapruning_layers(model)
    sizes = np.array([module.weight.numel() for module in modules], float)
    names = {id(module): name for name, module in linear_modules(model).items()}
    rows = {row.module: row.sparsity for row in budget}
    asked = [rows.get(names[id(module)], 0.0) for module in modules]
    ratios = alphapruning_ratios(np.load(path), epsilon, budget.pruned / sizes.sum(), sizes)
    np.testing.assert_allclose(ratios, asked, atol=1e-6)  # what a metric in float64 gives, and the nudge of a flat one


def test_alphapruning_pairs_sparsities_with_their_layers(tmp_path):
    model = tiny("llama")
    budget = spread_budget(model)
    check_alphapruning(model, budget, tmp_path / "live.npy", order=model)
    names = [name for name in linear_modules(model) if name != "lm_head"]
    check_alphapruning(model, budget, tmp_path / "names.npy", order=names)
    check_alphapruning(model, budget, tmp_path / "names.npy", order=names)  # its own file is replaced
    np.save(tmp_path / "weights.npy", np.zeros((3, 4)))
    with pytest.raises(FileExistsError, match="not what mpfast writes there"):
        exporters.alphapruning(budget, tmp_path / "weights.npy", order=names)
    # From files, whose order is another one, by the type of the model.
    model.save_pretrained(tmp_path / "saved")
    filed = spread_budget(tmp_path / "saved")
    assert [row.module for row in filed] != names
    check_alphapruning(model, filed, tmp_path / "filed.npy")
    (tmp_path / "saved" / "config.json").unlink()
    with pytest.raises(ValueError, match=r"which no config.json beside it tells, is none of llama.*; pass order="):
        exporters.alphapruning(filed, tmp_path / "refused.npy")
    assert not (tmp_path / "refused.npy").exists()


def test_alphapruning_of_flat_budgets_and_dense_layers(tmp_path):
    model = tiny("llama", num_hidden_layers=2)
    flat = mpfast.analyze(model, progress=False).budget(0.5, method="uniform")
    check_alphapruning(model, flat, tmp_path / "flat.npy", order=model)
    part = spread_budget(model, exclude=["*.1.self_attn.*"])
    entries = sum(module.weight.numel() for module in alphapruning_layers(model))
    with pytest.warns(
        UserWarning,
        match=re.escape(
            f"4 linear layers of the blocks stay dense: run with --sparsity_ratio {part.pruned / entries:.6g}"
        ),
    ):
        check_alphapruning(model, part, tmp_path / "part.npy", order=model)


@pytest.mark.parametrize("kind", ["bert", "moe"])
def test_alphapruning_refuses_models_that_it_does_not_prune(kind, tmp_path):
    model = tiny(kind)
    with pytest.raises(ValueError, match=r"AlphaPruning|linear layers"):
        exporters.alphapruning(spread_budget(model), tmp_path / "metric.npy", order=model)
    with pytest.raises(TypeError, match="order must be a live model or names"):
        exporters.alphapruning(by_hand("layers.0.fc"), tmp_path / "metric.npy", order=3)


@pytest.mark.parametrize("kind", LINEAR_ORDERS)
def test_the_orders_of_linear_layers_are_those_of_transformers(kind):
    transformers = pytest.importorskip("transformers")
    settings = {**SIZES, "num_hidden_layers": 2, "ffn_dim": 64, "word_embed_proj_dim": 32, **GROUPED, "pad_token_id": 0}
    if kind in ("llama", "mistral", "phi3", "qwen2", "phi"):
        settings.pop("head_dim")
    config = transformers.AutoConfig.for_model(kind, **settings)
    model = transformers.AutoModelForCausalLM.from_config(config)
    inside = [name for name in linear_modules(model) if ".layers.1." in name]
    assert tuple(name.partition(".layers.1.")[2] for name in inside) == LINEAR_ORDERS[kind]


def axolotl_unfrozen(patterns, names):
    """Axolotl's rule (``utils/freeze.py``): a dot that no + follows is escaped, the pattern matches from the start."""
    rules = [re.compile(re.sub(r"\.(?!\+)", r"\\.", pattern)) for pattern in patterns]
    return [name for name in names if any(rule.match(name) for rule in rules)]


@pytest.mark.parametrize("wrapper", ["", "model."])
def test_axolotl_unfreezes_the_layers_chosen(wrapper):
    yaml = pytest.importorskip("yaml")
    names = ["h.1.fc", "h.10.fc", "h.11.fc", "h.2.fc", "h.1.fc2", "x.h.1.fc"]
    budget = by_hand(*names)
    patterns = yaml.safe_load(budget.export("axolotl"))["unfrozen_parameters"]
    live = [f"{wrapper}{row.name}" for row in budget] + [f"{wrapper}{row.name}_extra" for row in budget]
    # A quarter of four of one type is one; of the others, too.
    assert axolotl_unfrozen(patterns, live) == [f"{wrapper}{name}.weight" for name in ("h.2.fc", "h.1.fc2", "x.h.1.fc")]


def recipe_of(budget):
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load(budget.export("llm-compressor"))["pruning_stage"]


def compressed(recipe, names):
    """llm-compressor's pairing: of each group, every module that a target matches gets the group's one sparsity."""
    found = {}
    for group in recipe.values():
        (modifier,) = group.values()
        for target in modifier["targets"]:
            for name in names:
                if re.match(target.removeprefix("re:"), name):
                    assert name not in found, name
                    found[name] = modifier["sparsity"]
    return found


@pytest.mark.parametrize("kind", MODELS)
def test_the_recipe_gives_every_layer_its_sparsity(kind):
    model = tiny(kind)
    budget = spread_budget(model)
    names = list(dict(model.named_modules()))
    # The linear layers that it makes of a stack of experts.
    experts = {
        f"{row.module.rpartition('.')[0]}.{number}.{part}": row
        for row in budget
        if len(row.shape) == 3
        for number in range(row.shape[0])
        for part in (("gate_proj", "up_proj") if "gate_up" in row.name else ("down_proj",))
    }
    wanted = {row.module: row for row in budget if len(row.shape) == 2} | experts
    found = compressed(recipe_of(budget), [*names, *experts])
    assert found.keys() == wanted.keys()
    for name, row in wanted.items():
        # Down to whole thousandths, and one up where the total asks for it.
        assert -0.001 < row.sparsity - found[name] < 0.001, name
    matrices = {row.module: next(name for name, other in wanted.items() if other is row) for row in budget}
    pruned = sum(found[matrices[row.module]] * row.size for row in budget)
    assert abs(pruned - budget.pruned) <= 0.0005 * max(row.size for row in budget)


def test_the_recipe_keeps_as_many_of_a_group_as_the_pattern():
    budget = mpfast.prune({"fc.weight": np.random.default_rng(0).standard_normal((32, 64))}, pattern="1:4").budget
    (group,) = recipe_of(budget).values()
    assert group["SparseGPTModifier"]["mask_structure"] == "3:4"  # its first number is how many go
    with pytest.raises(ValueError, match=r"llm_compressor\(\): the budget prunes nothing"):
        exporters.llm_compressor(mpfast.analyze({"fc.weight": np.eye(32)}).budget(0.0))


def test_the_integration_loads_pytorchs_sparsifiers_when_they_are_asked_for():
    pytest.importorskip("torch")
    code = (
        "import sys; sys.modules['torch.ao.pruning'] = None; import mpfast.integrations.torch as ours\n"
        "print(ours.NOfM.__name__)\ntry: ours.SpectralSparsifier\nexcept ImportError: print('ImportError')"
    )
    assert run_python("-c", code).stdout.split() == ["NOfM", "ImportError"]
