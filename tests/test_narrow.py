"""Neurons and heads taken out of models, which transformers loads as it loads the source."""

import json

import numpy as np
import pytest

import mpfast
from mpfast import reconstruct
from mpfast.checkpoints import WIDTHS

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.numpy")

from mpfast.integrations.torch import SecondMoments  # noqa: E402  # after what it needs is found

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 8, "vocab_size": 64}
GROUPED = {**SIZES, "num_key_value_heads": 4, "intermediate_size": 96}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64}
DISTIL = {"dim": 32, "n_layers": 2, "n_heads": 4, "vocab_size": 64, "hidden_dim": 96}
OWN = {
    "helium": {**SIZES, "intermediate_size": 96, "head_dim": 4, "num_key_value_heads": 8},
    # whose heads are of 128 or more where nothing is said; those of others are of hidden over heads
    **dict.fromkeys(("ernie4_5", "gemma", "gemma2", "gemma3_text", "ministral", "qwen3"), {**GROUPED, "head_dim": 4}),
    "gpt2": GPT2,
    "distilbert": DISTIL,
    "opt": {**SIZES, "ffn_dim": 96, "word_embed_proj_dim": 32},
    "electra": {**SIZES, "intermediate_size": 96, "embedding_size": 32},
}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def build(family, **options):
    """A small random model of a family, in float32."""
    torch.manual_seed(0)
    sizes = {**OWN.get(family, GROUPED if WIDTHS[family].heads else {**SIZES, "intermediate_size": 96}), **options}
    config = transformers.AutoConfig.for_model(family, **sizes, **TOKENS)
    model = transformers.AutoModel.from_config(config).eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():  # biases that are zero would be no test
            parameter += 0.05 * torch.randn(parameter.shape)
    return model


def tokens(seed=0, count=4):
    return torch.randint(3, 64, (count, 24), generator=torch.Generator().manual_seed(seed))


def collected(model, batches=8):
    with SecondMoments(model, folds=2) as moments, torch.no_grad():
        for seed in range(batches):
            model(input_ids=tokens(seed))
    return moments


def loaded(folder):
    model, info = transformers.AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


def expected(folder, out, result):
    """The source with zeros where units are gone, and the new weights where they stay: what the output must compute."""
    model = loaded(folder)
    state = dict(model.named_parameters())
    narrow = loaded(out)
    with torch.no_grad():
        for layer in result.layers:
            name = layer.name if layer.name in state else layer.name.split(".", 1)[1]
            whole, part = state[name], narrow.get_parameter(name)
            axis = 0 if whole.shape[1] == part.shape[1] else 1
            each = whole.shape[axis] // layer.units
            columns = torch.arange(whole.shape[axis]).reshape(layer.units, each)[list(layer.kept)].reshape(-1)
            whole.zero_().index_copy_(axis, columns, part)
    return model


@pytest.mark.parametrize("family", sorted(WIDTHS))
def test_output_computes_what_the_source_does_without_the_units(family, tmp_path):
    model = build(family)
    model.save_pretrained(tmp_path / "dense")
    heads = {"heads": 2} if WIDTHS[family].heads else {}
    moments = collected(model)
    result = mpfast.narrow(tmp_path / "dense", tmp_path / "out", moments=moments, neurons=64, **heads)
    assert len(result.layers) == (4 if heads else 2)
    narrow = loaded(tmp_path / "out")
    wanted = expected(tmp_path / "dense", tmp_path / "out", result)
    with torch.no_grad():
        found, before = (each(input_ids=tokens(99)).last_hidden_state for each in (narrow, wanted))
    # Single precision, sums of 96 in another order, through two blocks and their normalisations.
    torch.testing.assert_close(found, before, rtol=1e-4, atol=1e-4)
    assert sum(parameter.numel() for parameter in narrow.parameters()) < sum(p.numel() for p in model.parameters())


def test_weights_are_those_of_drop_inputs(tmp_path):
    model = build("llama")
    model.save_pretrained(tmp_path / "dense")
    moments = collected(model)
    result = mpfast.narrow(tmp_path / "dense", tmp_path / "out", moments=moments, neurons=64, heads=2, damping=0.01)
    source = safetensors.load_file(tmp_path / "dense" / "model.safetensors")
    written = safetensors.load_file(tmp_path / "out" / "model.safetensors")
    assert list(source) == list(written)
    for layer in result.layers:
        C = moments[layer.name.removesuffix(".weight")]
        group = 1 if layer.kind == "neurons" else 8
        fit = reconstruct.drop_inputs(source[layer.name], C, layer.units - len(layer.kept), group=group)
        columns = fit.mask[0]
        assert np.array_equal(written[layer.name], fit.weights[:, columns])
        assert layer.error == fit.error < layer.masked_error == fit.masked_error
        assert layer.heldout_error > 0
        block = layer.name.rsplit(".", 3)[0]
        if layer.kind == "neurons":
            for name in ("gate", "up"):
                name = f"{block}.mlp.{name}_proj.weight"
                assert np.array_equal(written[name], source[name][columns])
        else:
            keys = np.repeat(columns.reshape(4, 8)[:, 0], 4)
            for name, rows in (("q", columns), ("k", keys), ("v", keys)):
                name = f"{block}.self_attn.{name}_proj.weight"
                assert np.array_equal(written[name], source[name][rows])
    changed = {name for name in source if source[name].shape != written[name].shape}
    assert len(changed) == 2 * 7
    assert all(np.array_equal(source[name], written[name]) for name in source if name not in changed)
