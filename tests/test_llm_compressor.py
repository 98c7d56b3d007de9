"""llm-compressor itself runs the recipe of a budget on tiny models: every layer gets the zeros that were asked for.

It pins other versions of transformers than the rest of the tests need, so it has an environment of its own, which
``.ci/run nightly`` makes; elsewhere this is skipped.
"""

from __future__ import annotations

import pytest

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


@pytest.mark.parametrize("budgeted", ["live", "files", "body"])
@pytest.mark.parametrize("kind", MODELS)
def test_the_recipe_prunes_what_the_budget_says(kind, budgeted, tmp_path):
    made = tiny(kind, num_hidden_layers=3)
    made.save_pretrained(tmp_path / "model")  # it looks up where a model came from
    model = type(made).from_pretrained(tmp_path / "model")
    sources = {"live": model, "files": tmp_path / "model", "body": getattr(model, model.base_model_prefix)}
    budget = spread_budget(sources[budgeted])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(budget.export("llm-compressor"))
    torch.manual_seed(1)
    samples = [
        {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)} for tokens in torch.randint(0, 96, (8, 1, 24))
    ]
    loader = torch.utils.data.DataLoader(samples, batch_size=None)
    llmcompressor.oneshot(model=model, dataset=loader, processor=any_tokenizer(), recipe=str(recipe), pipeline="basic")
    zeros = {name: float((module.weight == 0).double().mean()) for name, module in linear_modules(model).items()}
    wanted = {}
    for row in budget:
        if len(row.shape) == 2:
            wanted[row.module] = row.sparsity
            continue
        experts, _, name = row.module.rpartition(".")
        for number in range(row.shape[0]):
            for part in ("gate_proj", "up_proj") if name == "gate_up_proj" else (name,):
                wanted[f"{experts}.{number}.{part}"] = row.sparsity
    if budgeted == "body":
        wanted = {f"{model.base_model_prefix}.{name}": share for name, share in wanted.items()}
    assert wanted.keys() <= zeros.keys()
    for name, share in zeros.items():
        # A thousandth is the rounding of the recipe; SparseGPT cuts at an entry, the entry itself and ties included.
        assert share == pytest.approx(wanted.get(name, 0.0), abs=0.004), name
