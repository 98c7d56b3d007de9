"""Budgets: exact totals, bounds, groups; the file; and what other tools make of the exports."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mpfast
from mpfast.masks.allocation import allocate, gaussian_shares
from mpfast.models import EXPORTERS, METHODS, exporters
from mpfast.models.budget import Budget
from mpfast.support.checks import floor_count
from mpfast.support.errors import InvalidValueError

layers = st.lists(
    st.tuples(st.floats(-1, 2), st.integers(1, 5000), st.floats(0, 0.5), st.floats(0.5, 1)), min_size=1, max_size=12
)


@given(layers, st.floats(0, 1))
def test_allocations_are_exact_and_within_bounds(layers, share):
    wishes, sizes, floors, ceilings = zip(*layers, strict=True)
    fewest = sum(math.ceil(size * floor - 1e-9) for size, floor in zip(sizes, floors, strict=True))
    most = sum(math.floor(size * ceiling + 1e-9) for size, ceiling in zip(sizes, ceilings, strict=True))
    if any(math.ceil(s * f - 1e-9) > math.floor(s * c + 1e-9) for _, s, f, c in layers):
        return
    pruned = fewest + round(share * (most - fewest))
    counts = allocate(wishes, sizes, pruned, floors=floors, ceilings=ceilings)
    assert sum(counts) == pruned
    for count, (_, size, floor, ceiling) in zip(counts, layers, strict=True):
        assert floor * size - 1e-6 <= count <= ceiling * size + 1e-6


def test_allocations_keep_the_differences_of_the_wishes():
    counts = allocate([0.1, 0.3, 0.35], [1000, 1000, 2000], 2000)
    sparsities = np.array(counts) / [1000, 1000, 2000]
    np.testing.assert_allclose(np.diff(sparsities), [0.2, 0.05], atol=1e-3)


def test_layers_of_a_group_get_one_sparsity():
    counts = allocate([0.1, 0.5, 0.9], [100, 300, 100], 250, groups=["a", "a", "b"])
    assert counts[0] / 100 == pytest.approx(counts[1] / 300, abs=0.01)
    assert sum(counts) == 250


def test_impossible_allocations():
    with pytest.raises(ValueError, match="allow 0 to 50 pruned entries of 100, not 60"):
        allocate([0.5], [100], 60, ceilings=0.5)
    with pytest.raises(ValueError, match="floor <= ceiling"):
        allocate([0.5], [100], 60, floors=0.6, ceilings=0.5)
    with pytest.raises(ValueError, match="floor <= ceiling"):
        allocate([0.5], [100], 60, floors=math.nan)


def test_floor_count_of_decimals():
    assert [floor_count(0.1 * k, 10) for k in range(11)] == list(range(11))
    assert floor_count(1.0, 3) == 3


def test_gaussian_shares_foretell_a_global_cut():
    rng = np.random.default_rng(0)
    model = {f"{i}.weight": (0.5 + i) * rng.standard_normal((200, 300)) for i in range(4)}
    kept = mpfast.masks.magnitude(model, 0.6)
    found = [1 - mask.mean() for mask in kept.values()]
    np.testing.assert_allclose(gaussian_shares([0.5, 1.5, 2.5, 3.5], [60000] * 4, 0.6), found, atol=0.01)


@pytest.fixture(scope="module")
def analysis():
    rng = np.random.default_rng(1)
    model = {}
    for i in range(3):
        for kind, shape in (("attn.q", (96, 64)), ("mlp.up", (128, 64))):
            signal = 30 * np.outer(rng.standard_normal(shape[0]), rng.standard_normal(shape[1])) / math.sqrt(shape[0])
            model[f"blocks.{i}.{kind}.weight"] = (1 + i) * rng.standard_normal(shape) + (i == 1) * signal
    model["embed_tokens.weight"] = rng.standard_normal((300, 64))
    return mpfast.analyze(model)


OF_SPECTRA = [name for name, method in METHODS.items() if set(method.needs) <= {"spectra"}]


@pytest.mark.parametrize("method", [*OF_SPECTRA, lambda row: row.bulk_fraction])
@pytest.mark.parametrize("sparsity", [0.0, 0.15, 0.35, 0.5, 0.8, 1.0])
def test_budgets_of_an_analysis(analysis, method, sparsity):
    budget = analysis.budget(sparsity, method=method)
    assert budget.pruned == floor_count(sparsity, 3 * (96 * 64 + 128 * 64))
    assert [row.name for row in budget] == [row.name for row in analysis if row.kind != "embedding"]
    assert budget.entries == sum(row.size for row in budget)
    assert Budget.from_json(budget.to_json()) == budget


def test_bounds_exclusions_and_groups(analysis):
    budget = analysis.budget(
        0.5, floor={"*attn*": 0.3}, ceiling=0.7, exclude=["*.0.mlp*"], groups={"q": "*attn*"}, embeddings=True
    )
    by_name = {row.name: row for row in budget}
    assert "blocks.0.mlp.up.weight" not in by_name
    assert "embed_tokens.weight" in by_name
    attention = {round(row.sparsity, 3) for name, row in by_name.items() if "attn" in name}
    assert len(attention) == 1
    assert min(attention) >= 0.3
    assert max(row.sparsity for row in budget) <= 0.7
    assert budget.pruned == floor_count(0.5, budget.entries)


def test_bad_budgets(analysis, tmp_path):
    with pytest.raises(ValueError, match="method must be"):
        analysis.budget(0.5, method="guess")
    with pytest.raises(ValueError, match="sparsity must lie"):
        analysis.budget(-0.1)
    with pytest.raises(ValueError, match="no layer is left"):
        analysis.budget(0.5, exclude="*")
    with pytest.raises(ValueError, match="schema"):
        Budget.from_json("{}")
    with pytest.raises(ValueError, match="lacks the field 'pruned'"):
        Budget.from_json('{"schema": "mpfast.budget/1", "layers": [{"shape": [1]}]}')
    (tmp_path / "budget.json").write_text(analysis.budget(0.5).to_json())
    assert Budget.from_json(tmp_path / "budget.json") == analysis.budget(0.5)
    with pytest.raises(ValueError, match=r"Budget.export\(\): format must be one of json, torch-ao-pruning"):
        analysis.budget(0.5).export("toml")


def test_every_format_of_the_list_is_written(analysis):
    budget = analysis.budget(0.5)
    texts = [budget.export(name) for name in EXPORTERS]
    assert texts[0] == budget.to_json()
    assert all(text.endswith("\n") for text in texts)
    assert len(set(texts)) == len(texts)


def test_errors_of_input_are_values(analysis):
    with pytest.raises(InvalidValueError) as caught:
        analysis.budget(0.5, method="guess")
    error = caught.value
    assert (error.function, error.argument) == ("Analysis.budget", "method")
    assert error.fact == f"must be one of {', '.join(METHODS)} or a function of a layer, not 'guess'"
    assert str(error) == f"Analysis.budget(): {error.message}"
    with pytest.raises(InvalidValueError) as caught:
        mpfast.prune({"w": np.ones((8, 8))}, sparsity=0.5, method="guess")
    assert (caught.value.function, caught.value.argument) == ("prune", "method")


def test_methods_share_out_by_what_they_say(analysis):
    """At a sparsity whose regime looks at the edges, spectral_budget is sigma_plus; the Hill exponent is another."""
    sparsities = {name: [row.pruned for row in analysis.budget(0.3, method=name)] for name in OF_SPECTRA}
    assert sparsities["spectral_budget"] == sparsities["sigma_plus"] != sparsities["hill"]
    assert len({row.sparsity for row in analysis.budget(0.25, method="uniform")}) == 1


def test_a_tensor_of_which_one_part_could_not_be_analysed():
    rng = np.random.default_rng(0)
    fused = rng.standard_normal((96, 32)).astype(np.float32)
    broken = fused.copy()
    broken[70, 3] = np.nan
    layers = {"a": rng.standard_normal((64, 64)).astype(np.float32)}
    whole, partly = (
        mpfast.analyze({**layers, "h.qkv": tensor}, progress=False).budget(0.5, method="magnitude")
        for tensor in (fused, broken)
    )
    for layer, other in zip(whole.layers, partly.layers, strict=True):
        assert layer.sparsity == pytest.approx(other.sparsity, abs=0.01)


def test_patterns_that_match_nothing_are_pointed_out(analysis):
    for options, message in (
        ({"exclude": "fc9"}, "exclude='fc9' matches none"),
        ({"ceiling": {"fc9": 0.9}}, "ceiling='fc9' matches none"),
        ({"groups": {"all": ["fc9"]}}, "group 'all'='fc9' matches none"),
    ):
        with pytest.warns(UserWarning, match=message) as caught:
            analysis.budget(0.5, **options)
        assert caught[0].filename == __file__  # the caller's line


def test_output_heads_stay_dense_unless_asked_for():
    rng = np.random.default_rng(0)
    model = {name: rng.standard_normal((64, 64)) for name in ("a.weight", "lm_head.weight", "embed.weight")}
    analysis = mpfast.analyze(model, progress=False)
    assert [row.name for row in analysis.budget(0.5)] == ["a.weight"]
    assert len(analysis.budget(0.5, embeddings=True)) == 3
    for options in ({}, {"include": "*"}):
        assert [row.name for row in mpfast.prune(model, sparsity=0.5, **options).budget] == ["a.weight"]
    assert [row.name for row in mpfast.compress(model, rank=4).layers] == ["a.weight"]


def test_a_callable_without_spectra_has_no_ranks(analysis):
    rows = [row.__class__(**{**row.__dict__, "rank": None}) for row in analysis.budget(0.5)]
    budget = Budget(tuple(rows), "magnitude", 0.5, None, "nowhere")
    for export in (exporters.peft, exporters.axolotl):
        with pytest.raises(ValueError, match="no ranks"):
            export(budget)


def test_a_tensor_without_entries_has_no_budget():
    row = {"name": "a", "kind": "linear", "shape": [0, 4], "dtype": "float32", "pruned": 0, "sparsity": 0}
    document = {"schema": "mpfast.budget/1", "layers": [row], "method": "m", "sparsity": 0, "source": "s"}
    with pytest.raises(ValueError, match="shape must be that of a tensor with entries"):
        Budget.from_json(json.dumps(document))


def small_layer(scale=1e-3):
    """Three layers of which one has much smaller entries: a cut of all together would take it whole."""
    rng = np.random.default_rng(3)
    model = {f"{i}.weight": rng.standard_normal((64, 96)).astype(np.float32) for i in range(3)}
    model["1.weight"] *= np.float32(scale)
    return {**model, "embed.weight": rng.standard_normal((50, 64)).astype(np.float32), "bias": np.ones(10, np.float32)}


@pytest.mark.parametrize("method", ["magnitude", "spectral_budget"])
@pytest.mark.parametrize(("sparsity", "ceiling"), [(0.4, 0.9), (0.7, 0.9), (0.8, 0.9), (0.9, 0.95)])
def test_no_layer_is_emptied_unless_the_ceiling_is_lifted(method, sparsity, ceiling):
    model = small_layer()
    size = 64 * 96
    for budget in (
        mpfast.analyze(model).budget(sparsity, method=method),
        mpfast.prune(model, sparsity=sparsity, method=method).budget,
    ):
        assert budget.pruned == floor_count(sparsity, 3 * size)
        assert max(row.pruned for row in budget) == floor_count(ceiling, size)
    with pytest.warns(UserWarning, match=r"budget\(\): nothing is left of 1\.weight; a lower ceiling keeps"):
        assert mpfast.analyze(model).budget(sparsity, method="magnitude", ceiling=1).layers[1].sparsity == 1
    with pytest.warns(UserWarning, match=r"prune\(\): nothing is left of 1\.weight"):
        assert mpfast.prune(model, sparsity=sparsity, method="magnitude", ceiling=1).budget[1].sparsity == 1


def test_what_a_full_layer_cannot_give_the_others_do_by_magnitude():
    """By hand: the layer at its ceiling loses its smallest entries, the others those of a cut of their own."""
    model = small_layer()
    result = mpfast.prune(model, sparsity=0.5, method="magnitude", ceiling=0.6)
    others = {name: model[name] for name in ("0.weight", "2.weight")}
    left = floor_count(0.5, 3 * 64 * 96) - floor_count(0.6, 64 * 96)
    scores = np.sort(np.abs(np.concatenate([other.ravel() for other in others.values()])))
    for name, weight in others.items():
        np.testing.assert_array_equal(result.masks[name], np.abs(weight) > scores[left - 1])
    small = np.sort(np.abs(model["1.weight"]).ravel())
    np.testing.assert_array_equal(
        result.masks["1.weight"], np.abs(model["1.weight"]) > small[floor_count(0.6, 64 * 96) - 1]
    )


def test_a_ceiling_that_nothing_comes_near_changes_nothing():
    rng = np.random.default_rng(0)
    model = {f"{i}.weight": rng.standard_t(4, (80, 96)) for i in range(4)}
    kept = mpfast.masks.magnitude(model, 0.6)
    for ceiling in (None, 0.62, 1):  # the second is counted, the others are foretold
        found = mpfast.prune(model, sparsity=0.6, method="magnitude", ceiling=ceiling).masks
        assert all(np.array_equal(found[name], kept[name]) for name in model)


def test_ceilings_that_cannot_be():
    model = small_layer()
    for options in ({"ceiling": 0.4}, {"ceiling": 1.5}, {"ceiling": 0.9, "method": "uniform"}):
        with pytest.raises(ValueError, match=r"prune\(\): ceiling"):
            mpfast.prune(model, sparsity=0.5, **options)
    with pytest.raises(ValueError, match=r"prune\(\): ceiling goes with sparsity"):
        mpfast.prune(model, pattern="2:4", ceiling=0.9)


def test_the_share_of_the_whole_model_is_told():
    model = small_layer()
    whole = sum(tensor.size for tensor in model.values())
    result = mpfast.prune({**model, "ids": np.arange(5)}, sparsity=0.5)
    assert (result.sparsity, result.model_share) == (0.5, pytest.approx(3 * 64 * 96 / 2 / whole))
    assert mpfast.analyze(model).budget(0.5).model_entries == whole
    assert [name for name, _ in result.budget.dense] == ["embed.weight"]
    assert Budget.from_json(result.budget.to_json()).dense == result.budget.dense


def test_masks_of_a_state_dictionary_warn_of_what_prune_protects():
    model = small_layer()
    message = r"prunes embed\.weight and 1 more, which prune\(\) leaves dense \(embedding or output head\)"
    for function in (mpfast.masks.magnitude, mpfast.masks.spectral_budget):
        options = {"signal": "entry_std"} if function is mpfast.masks.spectral_budget else {}
        with pytest.warns(UserWarning, match=message) as caught:
            function(model, 0.5, **options)
        assert caught[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            function({name: model[name] for name in ("0.weight", "1.weight")}, 0.5, **options)
            function({"bias": model["bias"], "norm": model["bias"]}, 0.5, **options)
