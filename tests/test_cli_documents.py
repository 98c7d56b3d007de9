"""Documents of the command line: their schemas, several in one, and what made them."""

from __future__ import annotations

import json
from functools import partial
from importlib.resources import files

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")
from safetensors.numpy import save_file

import mpfast

from .command_line import matrices, run_main


@pytest.fixture
def run(capsys, monkeypatch):
    """Run the command line in this process: exit status, standard output, standard error."""
    monkeypatch.setenv("COLUMNS", "200")

    return partial(run_main, capsys)


@pytest.fixture
def model(tmp_path):
    save_file(matrices(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.fixture
def broken(tmp_path):
    damaged = np.ones((32, 32), np.float32)
    damaged[3, 5] = np.nan
    save_file(matrices(**{"layers.1.fc.weight": damaged}), tmp_path / "broken.safetensors")
    return tmp_path / "broken.safetensors"


def test_a_document_of_several_analyses_is_named(run, model, tmp_path):
    several = tmp_path / "two.json"
    run("analyze", model, model, "-q", "--json", several)
    for pair in ((several, model), (model, several), (several, several)):
        code, _, err = run("diff", *pair)
        assert code == 1
        assert f"{several}: this is not JSON of the schema mpfast.analysis/1, but of 'mpfast.analyses/1'" in err


def test_several_models_in_one_call(run, tmp_path, model, broken):
    code, out, err = run("analyze", model, broken, tmp_path / "missing.npz", "--json", tmp_path / "all.json")
    assert code == 1
    assert err.splitlines()[0].startswith(f"mpfast: error: {broken}: NaN or infinities")
    assert "missing.npz: no such file" in err.splitlines()[1]
    assert str(model) in out
    assert str(broken) in out
    document = json.loads((tmp_path / "all.json").read_text())
    assert document["schema"] == "mpfast.analyses/1"
    assert [len(entry["layers"]) for entry in document["analyses"]] == [3, 2]
    assert [entry["source"] for entry in document["analyses"]] == [str(model), str(broken)]
    rows = run("analyze", model, model, "--csv", "-")[1].splitlines()
    assert rows[0].startswith("source,name,")
    assert len(rows) == 7
    assert run("analyze", model, model, "--html", tmp_path / "page.html")[0] == 2


def schema(name):
    return json.loads((files("mpfast.models") / "schemas" / f"{name}.json").read_text())


def test_every_document_keeps_to_its_schema(run, tmp_path, model, broken):
    jsonschema = pytest.importorskip("jsonschema")
    np.save(tmp_path / "w.npy", np.random.default_rng(0).standard_normal((90, 120)))
    save_file({name: 1.5 * tensor for name, tensor in matrices().items()}, tmp_path / "tuned.safetensors")
    mpfast.analyze(model).to_json(tmp_path / "a.json")
    mpfast.analyze({"zero.weight": np.zeros((64, 64)), "fc.weight": np.eye(64)}).to_json(tmp_path / "odd.json")
    mpfast.compress(model, tmp_path / "small", rank=4)
    pair = {"lora_unet_q.lora_down.weight": np.ones((4, 32)), "lora_unet_q.lora_up.weight": np.ones((24, 4))}
    save_file(pair, tmp_path / "lora.safetensors")
    calls = {
        "analysis": [
            ("analyze", model),
            ("analyze", broken),
            ("analyze", model, "--base", tmp_path / "tuned.safetensors"),
        ],
        "analyses": [("analyze", model, broken)],
        "budget": [("budget", model, "--sparsity", "0.5")],
        "prune": [
            ("prune", model, "-o", tmp_path / "out", "--sparsity", "0.5"),
            ("prune", model, "--dry-run", "--pattern", "2:4"),
        ],
        "verify": [("verify", tmp_path / "out"), ("verify", tmp_path / "small")],
        "compress": [("compress", model, "--dry-run", "--rank", "4")],
        "resize": [("resize", tmp_path / "lora.safetensors", "--dry-run", "--rank", "2")],
        "diff": [("diff", model, tmp_path / "tuned.safetensors"), ("diff", tmp_path / "a.json", tmp_path / "a.json")],
        "inspect": [("inspect", model)],
        "inventories": [("inspect", model, broken)],
        "verifications": [("verify", tmp_path / "out", tmp_path / "small")],
        "spectrum": [("spectrum", tmp_path / "w.npy")],
        "ranks": [("ranks", model), ("ranks", model, "--base", tmp_path / "tuned.safetensors"), ("ranks", broken)],
        "info": [("info",)],
    }
    with_provenance = 0
    for name, arguments in calls.items():
        jsonschema.Draft202012Validator.check_schema(schema(name))
        for call in arguments:
            code, out, err = run(*call, "--json", "-")
            assert code == int(broken in call and call[0] != "inspect"), err
            document = json.loads(out, parse_constant=lambda constant: pytest.fail(constant))
            jsonschema.validate(document, schema(name), cls=jsonschema.Draft202012Validator)
            found = document.get("provenance") or {}
            with_provenance += found.get("version") == mpfast.__version__
    assert with_provenance == 17
    for file in ("a.json", "odd.json"):
        jsonschema.validate(json.loads((tmp_path / file).read_text()), schema("analysis"))
    jsonschema.validate(json.loads((tmp_path / "out" / "budget.json").read_text()), schema("budget"))
    published = {entry.name.removesuffix(".json") for entry in (files("mpfast.models") / "schemas").iterdir()}
    assert published == {
        *calls,
        "benchmark",
        "moments",
        "narrow",
        "plot",
        "quantize",
    }  # of these there are tests elsewhere


@pytest.mark.parametrize(
    ("several", "one", "key"),
    [
        ("analyses", "analysis", "analysis"),
        ("inventories", "inspect", "inventory"),
        ("verifications", "verify", "verification"),
    ],
)
def test_a_document_of_several_holds_documents_of_one(several, one, key):
    whole, single = schema(several), schema(one)
    assert whole["$defs"][key]["properties"] == single["properties"]
    assert whole["properties"][several]["items"] == {"$ref": f"#/$defs/{key}"}
    assert {name: whole["$defs"][name] for name in single["$defs"]} == single["$defs"]


def test_the_provenance_says_what_made_a_document(tmp_path, model, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    found = mpfast.analyze(model, include=["layers.*"], seed=7).provenance
    assert found.time == "1970-01-02T00:00:00Z"
    assert (found.source, found.options["include"], found.options["seed"]) == (str(model), ["layers.*"], 7)
    again = mpfast.Analysis.from_json(mpfast.analyze(model).to_json())
    assert again.provenance.source_hash == found.source_hash
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(model.read_bytes())
    assert mpfast.inspect(copy).provenance.source_hash == found.source_hash
    save_file(matrices(seed=1), copy)  # another model of the same names, shapes and size
    assert mpfast.inspect(copy).provenance.source_hash != found.source_hash
    budget = mpfast.analyze(model, base=copy).budget(0.5, ceiling=0.7)
    assert budget.provenance.base == str(copy)
    assert budget.provenance.options["budget"]["ceiling"] == 0.7
    assert mpfast.analyze(matrices()).provenance.source_hash is None
