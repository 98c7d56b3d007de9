"""Olive itself: our pass in its workflows, on tiny models."""

from __future__ import annotations

import importlib
import json

import pytest

import mpfast
from mpfast.integrations.torch import reconstruct_model

from .tiny_models import linear_modules, spread_budget, tiny

torch = pytest.importorskip("torch")
pytest.importorskip("olive")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """Nothing is sent anywhere."""
    monkeypatch.setenv("OLIVE_DISABLE_TELEMETRY", "1")


@pytest.fixture
def saved(tmp_path):
    """A model with a tokenizer, which Olive copies."""
    tokenizers = importlib.import_module("tokenizers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, pad_token="a").save_pretrained(tmp_path / "model")
    tiny("llama", num_hidden_layers=2).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def passed(saved, tmp_path, **config):
    """What our pass makes of a saved model, loaded by Olive and by transformers alike."""
    ours = importlib.import_module("mpfast.integrations.olive")
    passes = importlib.import_module("olive.passes.olive_pass")
    models = importlib.import_module("olive.model")
    handler = models.HfModelHandler(model_path=str(saved), task="text-generation")
    done = passes.create_pass_from_dict(ours.MPFastPrune, config, disable_search=True)
    output = done.run(handler, str(tmp_path / "out"))
    assert isinstance(output, models.HfModelHandler)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    loaded = dict(output.load_model().named_parameters())
    assert all(torch.equal(loaded[name], parameter) for name, parameter in model.named_parameters())
    return model


def tokens():
    generator = torch.Generator().manual_seed(0)
    return [{"input_ids": torch.randint(0, 96, (2, 24), generator=generator)} for _ in range(6)]


@pytest.fixture
def data():
    """Data of Olive's own kind, with labels beside the batches."""
    registry = importlib.import_module("olive.data.registry").Registry

    @registry.register_dataset("mpfast_tokens")
    def dataset(data_dir=None, **_):
        return [(batch, torch.zeros(1)) for batch in tokens()]

    @registry.register_dataloader("mpfast_as_it_is")
    def loader(dataset, **_):
        return dataset

    @registry.register_pre_process("mpfast_nothing")
    def process(dataset, **_):
        return dataset

    return {
        "name": "tokens",
        "type": "DataContainer",
        "load_dataset_config": {"type": "mpfast_tokens"},
        "pre_process_data_config": {"type": "mpfast_nothing"},
        "dataloader_config": {"type": "mpfast_as_it_is"},
    }


@pytest.mark.parametrize("options", [{"sparsity": 0.5}, {"pattern": "2:4"}, {"sparsity": 0.4, "budget": "uniform"}])
def test_without_data_it_is_prune(options, saved, tmp_path):
    model = passed(saved, tmp_path, exclude="*.0.*", **options)
    wanted = mpfast.prune(
        transformers.AutoModelForCausalLM.from_pretrained(saved), exclude="*.0.*", progress=False, **options
    ).masks
    for name, module in linear_modules(model).items():
        mask = wanted.get(f"{name}.weight", torch.ones_like(module.weight, dtype=torch.bool))
        assert torch.equal(module.weight != 0, mask), name


@pytest.mark.parametrize("options", [{"sparsity": 0.5}, {"pattern": "2:4", "refit": 2, "damping": 0.05}])
def test_with_data_it_is_reconstruct_model(options, saved, data, tmp_path):
    model = passed(saved, tmp_path, data_config=data, **options)
    dense = transformers.AutoModelForCausalLM.from_pretrained(saved)
    wanted = dict(reconstruct_model(dense, tokens(), **options).model.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, wanted[name], atol=1e-6, rtol=0)


def test_a_budget_is_met(saved, tmp_path):
    budget = spread_budget(saved)
    budget.to_json(tmp_path / "budget.json")
    model = passed(saved, tmp_path, budget=str(tmp_path / "budget.json"))
    rows = {row.module: row.pruned for row in budget}
    for name, module in linear_modules(model).items():
        assert int((module.weight == 0).sum()) == rows.get(name, 0), name


def test_a_workflow_finds_it(saved, tmp_path, monkeypatch):
    ours = importlib.import_module("mpfast.integrations.olive")
    workflows = importlib.import_module("olive.workflows")
    monkeypatch.chdir(tmp_path)
    config = {
        "input_model": {"type": "HfModel", "model_path": str(saved), "task": "text-generation"},
        "passes": {"prune": {"type": "MPFastPrune", "sparsity": 0.5}},
        "output_dir": str(tmp_path / "workflow"),
        "cache_dir": str(tmp_path / "cache"),
        "evaluate_input_model": False,
    }
    (tmp_path / "run.json").write_text(json.dumps(config))
    workflows.run(str(tmp_path / "run.json"), package_config=ours.PACKAGE_CONFIG)
    (weights,) = (tmp_path / "workflow").rglob("model.safetensors")
    model = transformers.AutoModelForCausalLM.from_pretrained(weights.parent)
    layers = [module.weight for name, module in linear_modules(model).items() if name != "lm_head"]
    assert sum(int((weight == 0).sum()) for weight in layers) == sum(weight.numel() for weight in layers) // 2


def test_what_does_not_go_together_is_refused(saved, tmp_path):
    with pytest.raises(ValueError, match="refit and damping are of fits to data"):
        passed(saved, tmp_path, sparsity=0.5, refit=2)
    with pytest.raises(ValueError, match="sparsity"):
        passed(saved, tmp_path)
