"""Second moments of models of transformers from texts: the function and the command."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from mpfast.checkpoints import MomentFile, SafetensorsFile, content_sample_hash  # noqa: E402
from mpfast.integrations.torch import text_moments  # noqa: E402

from .references import run_python  # noqa: E402

WORDS = [f"w{number}" for number in range(40)]
TEXT = " ".join(np.random.default_rng(0).choice(WORDS, 1000))


def tokenizer_of(special):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: number for number, word in enumerate(["[UNK]", "[CLS]", "[SEP]", *WORDS])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 1), ("[SEP]", 2)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "llama"
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=43,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer_of(special=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "bert"
    torch.manual_seed(1)
    config = transformers.BertConfig(
        vocab_size=43,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    transformers.BertModel(config).save_pretrained(folder)
    tokenizer_of(special=True).save_pretrained(folder)
    return folder


def inputs_of(model, name, windows):
    """What a layer is handed for each window, as a matrix."""
    seen = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda _, given: seen.append(given[0][0].double()))
    with torch.no_grad():
        for window in windows:
            model(input_ids=torch.tensor([window]))
    hook.remove()
    return torch.cat(seen)


def test_a_language_model(llama):
    moments = text_moments(llama, [TEXT], tokens=1000, length=50)
    weights = {f"{name}.weight" for name in moments}
    assert weights < {info.name for info in SafetensorsFile(llama / "model.safetensors").tensors}
    assert len(moments) == 2 * 7
    assert len(moments.shared) == 2 * 3
    assert set(moments.rows.values()) == {1000}
    model = transformers.LlamaForCausalLM.from_pretrained(llama).float().eval()
    ids = tokenizer_of(special=False)(TEXT)["input_ids"]
    name = "model.layers.1.mlp.down_proj"
    x = inputs_of(model, name, [ids[at : at + 50] for at in range(0, 1000, 50)])
    # Single precision, twice, in other orders: attention of 50 tokens, 24 products.
    torch.testing.assert_close(moments[name], x.T @ x / 1000, rtol=1e-4, atol=1e-6 * float(x.square().max()))


def test_an_encoder_has_its_special_tokens_in_every_window(bert):
    moments = text_moments(bert, [TEXT], tokens=10**9, length=12)
    model = transformers.BertModel.from_pretrained(bert).float().eval()
    ids = tokenizer_of(special=False)(TEXT)["input_ids"]
    x = inputs_of(
        model, "encoder.layer.0.attention.self.query", [[1, *ids[at : at + 10], 2] for at in range(0, 1000, 10)]
    )
    name = "encoder.layer.0.attention.self.query"
    assert moments.rows[name] == len(x) == 1200
    torch.testing.assert_close(moments[name], x.T @ x / len(x), rtol=1e-4, atol=1e-6 * float(x.square().max()))


def test_fewer_tokens_come_from_all_over_the_text(llama):
    """The first half of the text is one word, and the second another."""
    text = " ".join(["w0"] * 500 + ["w1"] * 500)
    moments = text_moments(llama, [text], tokens=200, length=25, folds=2)
    name = "model.layers.0.self_attn.q_proj"
    assert moments.rows[name] == 200
    assert moments.fold_rows(name) == (100, 100)
    first, second = moments.fold(name, 0), moments.fold(name, 1)
    for part in (first, second):  # one input many times over, in single precision
        assert np.linalg.matrix_rank(part.numpy(), tol=1e-5 * np.trace(part.numpy())) == 1
    assert not torch.allclose(first, second)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 65}, "length is 65, and the model takes 64 tokens at most"),
        ({"texts": [" "]}, "texts have no token"),
        ({"tokens": 0}, "tokens"),
        ({"include": "nothing"}, "no module to watch"),
    ],
)
def test_what_cannot_be_run_says_why(llama, options, message):
    with pytest.raises(ValueError, match=message):
        text_moments(llama, **{"texts": [TEXT], "length": 20, **options})


def test_windows_without_room_for_a_token_are_refused(bert):
    with pytest.raises(ValueError, match="adds 2 tokens to each window"):
        text_moments(bert, [TEXT], length=2)


def test_what_is_no_model_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"no directory with a config\.json"):
        text_moments(tmp_path, [TEXT])
    with pytest.raises(FileNotFoundError):
        text_moments(tmp_path / "nothing", [TEXT])


def command(*arguments):
    return run_python("-m", "mpfast", "moments", *map(str, arguments))


def test_the_command_writes_a_file(llama, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    out = tmp_path / "moments.safetensors"
    run = command(llama, "--texts", tmp_path / "text.txt", "-o", out, "--tokens", 400, "--length", 50, "--folds", 3)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == f"{out}: 14 layers with 8 distinct inputs, 400 tokens, 16.7 to 25 per dimension"
    assert run.stderr == ""
    file = MomentFile(out)
    assert file.model.text("source_hash") == content_sample_hash(llama)
    assert len(file.fold_rows("model.layers.0.mlp.up_proj")) == 3
    wanted = text_moments(llama, [TEXT], tokens=400, length=50)
    for name in wanted:
        np.testing.assert_allclose(file[name], wanted[name].numpy(), rtol=1e-5, atol=1e-6)


def test_the_document_keeps_to_its_schema(llama, tmp_path):
    jsonschema = pytest.importorskip("jsonschema")
    (tmp_path / "text.txt").write_text(TEXT)
    run = command(
        llama, "--texts", tmp_path / "text.txt", "-o", tmp_path / "m.safetensors", "--length", 20, "--json", "-"
    )
    schema = json.loads((files("mpfast.models") / "schemas" / "moments.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    document = json.loads(run.stdout)
    jsonschema.validate(document, schema, cls=jsonschema.Draft202012Validator)
    assert document["rows"] == 1000
    assert document["distinct_inputs"] == 8
    (row,) = (row for row in document["layers"] if row["name"] == "model.layers.1.mlp.up_proj")
    assert row == {
        "name": "model.layers.1.mlp.up_proj",
        "weight": "model.layers.1.mlp.up_proj.weight",
        "inputs": 16,
        "rows": 1000,
        "rows_per_input": 62.5,
        "fold_rows": [250, 250, 250, 250],
        "shared_with": "model.layers.1.mlp.gate_proj",
    }


def test_the_command_warns_of_few_tokens(bert, tmp_path):
    (tmp_path / "text.txt").write_text("\n".join([TEXT[:40]] * 2))
    options = [
        "--texts",
        tmp_path / "text.txt",
        "-o",
        tmp_path / "m.safetensors",
        "--lines",
        "--strict",
        "--length",
        20,
    ]
    run = command(bert, *options)
    assert run.returncode == 1
    assert "warning: 7 of 7 layers have seen fewer than 4 inputs per dimension" in run.stderr
    assert Path(tmp_path / "m.safetensors").exists()


def test_the_command_says_what_is_missing(llama, tmp_path):
    run = command(llama, "--texts", tmp_path / "none.txt", "-o", tmp_path / "m.safetensors")
    assert (run.returncode, run.stderr.strip()) == (
        1,
        f"mpfast: error: {tmp_path / 'none.txt'}: no such file or directory",
    )


def test_a_file_that_is_no_text_is_named(llama, tmp_path):
    text = tmp_path / "latin.txt"
    text.write_bytes(b"caf\xe9")
    run = command(llama, "--texts", text, "-o", tmp_path / "m.safetensors")
    assert run.returncode == 1
    assert run.stderr.strip() == f"mpfast: error: {text}: is no text in UTF-8: byte 0xe9 at 3"


@pytest.mark.parametrize("device", ["nonsense", "meta", "cuda:77"])
def test_a_device_that_is_not_there(llama, device):
    with pytest.raises(ValueError, match=r"text_moments\(\): device "):
        text_moments(llama, ["some words"], device=device)


def test_without_transformers_it_says_what_to_install(llama, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "transformers" else found(name, *a)
    )
    with pytest.raises(ImportError, match=r'needs the package transformers \(extra "transformers"\)'):
        text_moments(llama, [TEXT])


def test_a_model_without_a_tokenizer_is_named(llama, tmp_path):
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_bytes((llama / name).read_bytes())
    with pytest.raises(ValueError, match=r"bare: transformers finds no tokenizer beside the model; tokenizer\.save_"):
        text_moments(folder, [TEXT])
