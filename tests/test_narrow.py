"""Neurons and heads taken out of models, which transformers loads as it loads the source."""

import json
from importlib.resources import files

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
    **{
        name: {**GROUPED, "head_dim": 4}
        for name in ("ernie4_5", "gemma", "gemma2", "gemma3_text", "ministral", "qwen3")
    },
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


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A directory and the moments of its model."""
    folder = tmp_path_factory.mktemp("llama") / "dense"
    model = build("llama")
    model.save_pretrained(folder)
    moments = collected(model)
    moments.save(folder.parent / "moments.safetensors")
    return folder, folder.parent / "moments.safetensors"


def test_shards_and_bfloat16_and_what_lies_beside_stay(tmp_path):
    model = build("llama").bfloat16()
    model.save_pretrained(tmp_path / "dense", max_shard_size="20KB")
    shards = sorted(path.name for path in (tmp_path / "dense").glob("*.safetensors"))
    assert len(shards) > 2
    (tmp_path / "dense" / "part").mkdir()
    for beside in ("tokenizer.json", "part/config.json"):
        (tmp_path / "dense" / beside).write_text('{"own": 1}')
    with SecondMoments(model) as moments, torch.no_grad():
        model(input_ids=tokens(count=16))
    result = mpfast.narrow(tmp_path / "dense", tmp_path / "out", moments=moments, neurons=0.7, heads=0.5)
    assert sorted(path.name for path in (tmp_path / "out").glob("*.safetensors")) == shards
    assert (tmp_path / "out" / "part" / "config.json").read_text() == '{"own": 1}'
    before, after = (json.loads((tmp_path / each / "config.json").read_text()) for each in ("dense", "out"))
    # 0.7 * 96 is nearest to 64 of the multiples of 32
    sizes = {"intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}
    assert (after, result.settings) == ({**before, **sizes}, sizes)
    narrow = loaded(tmp_path / "out")
    assert narrow.dtype == torch.bfloat16
    assert result.entries == sum(parameter.numel() for parameter in narrow.parameters())
    size = sum(parameter.nbytes for parameter in narrow.parameters())
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == size
    assert mpfast.verify(tmp_path / "out").ok


def test_verify_finds_what_was_changed(llama, tmp_path):
    folder, moments = llama
    out = tmp_path / "out"
    mpfast.narrow(folder, out, moments=moments, neurons=32)
    found = mpfast.verify(out)
    assert (found.ok, found.command, found.layers, found.untouched) == (True, "narrow", 2, 20 - 6)
    away = mpfast.verify(out, {"other.weight": np.zeros((4, 4), np.float32)})
    assert not away.ok
    weights = safetensors.load_file(out / "model.safetensors")
    for name, problem in {
        "layers.0.mlp.up_proj.weight": "without the rows that the mark names",
        "layers.1.mlp.down_proj.weight": "content hash",
        "norm.weight": "is not narrowed, but differs from the source",
    }.items():
        changed = {**weights, name: -weights[name]}
        safetensors.save_file(changed, out / "model.safetensors", {"format": "pt"})
        assert any(problem in text for text in mpfast.verify(out).problems), name
    safetensors.save_file(weights, out / "model.safetensors", {"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"intermediate_size": 96}))
    assert mpfast.verify(out).problems == ("config.json: intermediate_size is 96, not 32",)


@pytest.mark.parametrize(
    ("options", "fact"),
    [
        ({}, "nothing is to go"),
        ({"neurons": 96}, "leaves 96 of 96 neurons"),
        ({"neurons": 0}, "leaves 0 of 96 neurons"),
        ({"neurons": 1.5}, "a share between 0 and 1"),
        ({"neurons": 0.99}, "leaves 96 of 96 neurons"),
        ({"neurons": True}, "must be a number or a share"),
        ({"heads": 3}, "leave 6 heads of queries.*hidden size, 32.*let 1 or 2 heads"),
    ],
)
def test_sizes_that_cannot_be(llama, options, fact):
    folder, moments = llama
    with pytest.raises((ValueError, TypeError), match=fact):
        mpfast.narrow(folder, moments=moments, **options)


def test_models_that_cannot_be(llama, tmp_path):
    folder, moments = llama
    with pytest.raises(TypeError, match="must be a path"):
        mpfast.narrow({}, moments=moments, neurons=64)
    (tmp_path / "alone").mkdir()
    file = tmp_path / "alone" / "model.safetensors"
    file.write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"has no config\.json"):
        mpfast.narrow(file, moments=moments, neurons=64)
    config = json.loads((folder / "config.json").read_text())
    for change, options, fact in (
        ({"model_type": "mamba"}, {"neurons": 64}, "of the type 'mamba'.*known are"),
        ({"model_type": ["llama"]}, {"neurons": 64}, r"config\.json: model_type must be a text, not \['llama'\]"),
        ({"intermediate_size": "96"}, {"neurons": 64}, r"config\.json: intermediate_size must be a whole number"),
        (
            {"intermediate_size": [96, 96]},
            {"neurons": 64},
            "says intermediate_size in its config.json for each",
        ),
        ({"model_type": "gpt2"}, {"neurons": 64}, "no tensor that ends in mlp.c_proj.weight"),
        ({"intermediate_size": 128}, {"neurons": 64}, "96 inputs, but intermediate_size is 128.*must have one size"),
        ({"num_key_value_heads": 8}, {"heads": 4}, "16 outputs, but num_attention_heads is 8"),
        ({"num_key_value_heads": 3}, {"heads": 1}, "no whole groups"),
        ({"num_attention_heads": None}, {"heads": 2}, "has no num_attention_heads"),
    ):
        (tmp_path / "alone" / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ValueError, match=fact):
            mpfast.narrow(tmp_path / "alone", moments=moments, **options)
    with pytest.raises(ValueError, match=r"do not do for layers\.0\.mlp\.down_proj\.weight"):
        mpfast.narrow(folder, moments={"layers.1.mlp.down_proj": np.eye(96)}, neurons=64)


def test_writers_that_are_no_matrices_are_refused(llama, tmp_path):
    folder, moments = llama
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    tensors = safetensors.load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("mlp.up_proj.weight"))
    bias = name.replace("weight", "bias")
    for change, fact in (
        ({name: np.ones(tensors[name].shape, np.int32)}, f"{name}: is no matrix of floating-point numbers"),
        ({name: np.ones(tensors[name].size, np.float32)}, f"{name}: is no matrix of floating-point numbers"),
        ({bias: np.ones((tensors[name].shape[0], 1), np.float32)}, f"{bias}: is no vector"),
    ):
        safetensors.save_file(tensors | change, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match=fact):
            mpfast.narrow(tmp_path, moments=moments, neurons=64)


def test_heads_of_bert_stay(tmp_path):
    model = build("bert")
    model.save_pretrained(tmp_path / "dense")
    with pytest.raises(ValueError, match="no setting for the size of a head"):
        mpfast.narrow(tmp_path / "dense", moments=collected(model), heads=4)


def test_command(llama, tmp_path, capsys):
    pytest.importorskip("typer")
    jsonschema = pytest.importorskip("jsonschema")
    from mpfast.cli import main

    folder, moments = llama
    schema = json.loads((files("mpfast.models") / "schemas" / "narrow.json").read_text())

    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(["narrow", str(folder), "--moments", str(moments), *arguments])
        printed = capsys.readouterr()
        return ended.value.code, printed.out, printed.err

    code, out, _ = run("-o", str(tmp_path / "out"), "--neurons", "64", "--heads", "0.5")
    assert code == 0
    assert "2 of 4 heads" in out
    assert "intermediate_size 64, num_attention_heads 4, num_key_value_heads 2, head_dim 4" in out
    code, out, _ = run("--dry-run", "--neurons", "64", "--json", "-")
    document = json.loads(out)
    jsonschema.validate(document, schema, cls=jsonschema.Draft202012Validator)
    assert (document["out"], len(document["layers"][0]["kept"])) == (None, 64)
    assert run("--dry-run")[0] == 2
    assert run("--dry-run", "--neurons", "1.5")[0] == 2
    assert run("--dry-run", "--neurons", "96")[0] == 2
    assert loaded(tmp_path / "out").config.num_key_value_heads == 2
