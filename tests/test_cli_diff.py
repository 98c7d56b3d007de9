"""A base and its counterparts by name, and the differences of checkpoints and of analyses."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")
from safetensors.numpy import save_file

import mpfast
from mpfast.checkpoints import TensorInfo, counterparts

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


@pytest.mark.parametrize("prefix", ["module.", "base_model.model.", "_orig_mod.module."])
def test_a_base_is_found_behind_a_prefix(run, tmp_path, model, prefix):
    wrapped = tmp_path / "wrapped.safetensors"
    save_file({prefix + name: 1.1 * tensor for name, tensor in matrices().items()}, wrapped)
    for tuned, base in ((wrapped, model), (model, wrapped)):
        code, _, err = run("analyze", tuned, "--base", base, "--json", tmp_path / "d.json")
        assert (code, err) == (0, "")
        found = mpfast.Analysis.from_json(tmp_path / "d.json")
        assert len(found) == 3
        ratio = found[0].fro_norm / np.linalg.norm(matrices()["layers.0.fc.weight"])
        assert ratio == pytest.approx(0.1, rel=1e-5)


def test_a_base_of_which_nothing_matches_is_an_error(run, tmp_path, model):
    other = tmp_path / "other.safetensors"
    save_file({"out.kernel": np.eye(16, dtype=np.float32)}, other)
    code, out, err = run("analyze", model, "--base", other)
    assert (code, out) == (1, "")
    assert "base has none of the names of the model: for example, the model has 'layers.0.fc.weight'" in err
    with pytest.raises(ValueError, match=r"compress\(\): base has none of the names"):
        mpfast.compress(model, base=other)
    save_file({name: np.eye(5, dtype=np.float32) for name in matrices()}, other)
    assert "of another shape, (5, 5)" in run("analyze", model, "--base", other)[2]


def test_an_adapter_needs_the_names_of_its_base(tmp_path, model):
    """What analyze and diff pair by themselves, PEFT would not find in the base."""
    signal = np.outer(np.arange(48), np.ones(64)).astype(np.float32)
    tuned = {f"module.{name}": tensor + (signal if tensor.ndim == 2 else 0) for name, tensor in matrices().items()}
    assert mpfast.analyze(tuned, base=model)
    with pytest.raises(ValueError, match=r"base calls 'layers\.0\.fc\.weight' what the model calls 'module\.layers"):
        mpfast.compress(tuned, tmp_path / "adapter", base=model, rank=1)


def test_prefixes_pair_the_names_that_agree_most():
    base = {"a.fc": np.zeros((4, 4)), "b.fc": np.zeros((6, 6)), "head": np.zeros((2, 2))}
    tuned = {"x.a.fc": np.ones((4, 4)), "x.b.fc": np.ones((6, 6)), "fc": np.ones((9, 9)), "head": np.ones((2, 2))}
    found = {row.other: row.name for row in mpfast.diff(base, tuned)}
    assert found == {"x.a.fc": "a.fc", "x.b.fc": "b.fc", "head": "head"}
    # Where names agree as they are, nothing is stripped.
    same = {"a.fc": np.zeros((4, 4)), "x.a.fc": np.zeros((4, 4))}
    assert [(row.name, row.other) for row in mpfast.diff(same, dict(same))] == [(name, name) for name in same]


def counterparts_of(mine, others):
    sides = ([TensorInfo(name, shape, "float32") for name, shape in side.items()] for side in (mine, others))
    return counterparts(*sides)


@pytest.mark.parametrize(
    ("mine", "others"),
    [
        (("enc.fc.weight", "dec.fc.weight"), ("x.fc.weight",)),
        (("x.fc.weight",), ("enc.fc.weight", "dec.fc.weight")),
        (("fc.weight",), ("model.fc.weight", "ema.fc.weight")),
        (("enc.0.weight", "enc.0.bias", "dec.0.weight", "dec.0.bias"), ("x.0.weight", "x.0.bias")),
        (("enc.fc", "dec.fc"), ("x.fc",)),
        (("layers.0.fc.weight",), ("layers.1.fc.weight",)),
        (("enc.fc",), ("x.fc",)),
        ((), ("x.fc",)),
        (("enc.fc",), ()),
    ],
)
def test_names_that_fit_in_several_ways_are_not_paired(mine, others):
    assert counterparts_of(dict.fromkeys(mine, (64, 64)), dict.fromkeys(others, (64, 64))) == {}


def test_names_that_fit_in_one_way_are_paired():
    """The shapes tell towers apart, and two prefixes that mean the same pairs are one."""
    towers = {"enc.fc.weight": (8, 8), "dec.fc.weight": (9, 9)}
    assert counterparts_of(towers, {"x.fc.weight": (9, 9)}) == {"dec.fc.weight": "x.fc.weight"}
    whole = {"module.enc.fc.weight": (8, 8), "module.enc.out.weight": (8, 8), "module.scale": ()}
    bare = {name.removeprefix("module."): shape for name, shape in whole.items()}
    assert counterparts_of(whole, bare) == dict(zip(whole, bare, strict=True))
    assert counterparts_of({"fc.weight": ()}, {"w.fc.weight": ()}) == {"fc.weight": "w.fc.weight"}
    # A name that both have pairs with itself where a renaming is not known.
    both = {"head.weight": (5, 5), "enc.fc.weight": (8, 8), "dec.fc.weight": (8, 8), "dec.out.weight": (3, 3)}
    other = {"head.weight": (5, 5), "x.fc.weight": (8, 8)}
    assert counterparts_of(both, other) == {"head.weight": "head.weight"}


def test_a_base_that_fits_in_several_ways_is_an_error():
    W = np.eye(16, dtype=np.float32)
    with pytest.raises(ValueError, match="base fits the names of the model in several ways"):
        mpfast.analyze({"enc.fc.weight": W, "dec.fc.weight": W}, base={"x.fc.weight": W})


def test_a_layer_that_is_equal_to_its_base_has_no_verdict():
    analysis = mpfast.analyze(matrices(), base=matrices(**{"layers.1.fc.weight": np.ones((48, 64), np.float32)}))
    assert [row.verdict == "equal" for row in analysis] == [True, False, True]
    assert not analysis[0].warnings


def test_a_kept_report_of_zeros_is_no_report_of_a_difference(tmp_path):
    zeros = {"fc.weight": np.zeros((64, 64))}
    for _ in range(2):
        assert mpfast.analyze(zeros, cache=tmp_path)[0].verdict == "none"
        assert mpfast.analyze({"fc.weight": np.eye(64)}, base={"fc.weight": np.eye(64)}, cache=tmp_path)[0].verdict == (
            "equal"
        )


def test_diff_of_checkpoints(run, tmp_path, model):
    before = matrices()
    after = {f"module.{name}": tensor.copy() for name, tensor in before.items()}
    after["module.layers.1.fc.weight"] *= np.float32(1.25)
    after["module.layers.2.fc.weight"][4, 7] += np.float32(0.5)
    after["module.extra.weight"] = np.ones((3, 3), np.float32)
    save_file(after, tmp_path / "after.safetensors")
    files = ("--json", tmp_path / "d.json", "--html", tmp_path / "d.html")
    code, out, _ = run("diff", model, tmp_path / "after.safetensors", *files)
    assert "<title>mpfast: " in (tmp_path / "d.html").read_text(encoding="utf-8")
    assert run("diff", model, model, "--html", "-", "--json", "-")[0] == 2
    assert run("diff", model, model, "--html", "-")[1].startswith("<!DOCTYPE html>")
    assert code == 0
    assert "2 of 4 tensors changed" in out
    assert "2 tensors equal in both" in out
    assert "module.extra.weight: only in B" in out
    rows = {row["name"]: row for row in json.loads((tmp_path / "d.json").read_text())["layers"]}
    assert rows["layers.1.fc.weight"]["change"] == pytest.approx(0.25, rel=1e-6)
    weight = before["layers.2.fc.weight"].astype(float)
    assert rows["layers.2.fc.weight"]["change"] == pytest.approx(0.5 / np.linalg.norm(weight), rel=1e-5)
    assert rows["layers.2.fc.weight"]["largest"] == pytest.approx(0.5, rel=1e-5)
    assert rows["layers.0.fc.weight"]["equal"] is True
    code, _, err = run("diff", model, tmp_path / "after.safetensors", "--fail-on", "change > 0.2")
    assert (code, "layers.1.fc.weight has 0.25" in err) == (1, True)
    assert run("diff", model, model, "--fail-on", "change > 0")[0] == 0


def test_diff_fails_on_weights_that_are_no_numbers(run, tmp_path, model):
    save_file(matrices(**{"layers.1.fc.weight": np.full((48, 64), np.nan, np.float32)}), tmp_path / "after.safetensors")
    code, out, err = run("diff", model, tmp_path / "after.safetensors")
    assert code == 1
    assert "layers.1.fc.weight" in out
    assert "layers.1.fc.weight: has NaN or infinite entries" in err
    assert run("diff", tmp_path / "after.safetensors", tmp_path / "after.safetensors")[0] == 0


def test_layers_of_other_names_are_not_paired(run, tmp_path):
    W = np.random.default_rng(0).standard_normal((48, 64)).astype(np.float32)
    save_file({"a.weight": W, "b.weight": W}, tmp_path / "model.safetensors")
    save_file({"z.weight": W}, tmp_path / "base.safetensors")
    assert run("analyze", tmp_path / "model.safetensors", "--base", tmp_path / "base.safetensors")[0] == 1
    assert run("diff", tmp_path / "model.safetensors", tmp_path / "base.safetensors")[0] == 1


def test_diff_of_odd_values():
    plain = {"a": np.zeros((8, 8)), "b": np.ones((8, 8))}
    odd = {"a": np.ones((8, 8)), "b": np.full((8, 8), np.nan)}
    rows = list(mpfast.diff(plain, odd))
    assert rows[0].change == np.inf
    assert np.isnan(rows[1].change)
    assert not rows[1].equal
    assert json.loads(mpfast.diff(plain, odd).to_json())["layers"][1]["change"] is None
    assert [row.equal for row in mpfast.diff(odd, odd)] == [True, True]
    assert [row.change for row in mpfast.diff(odd, odd)] == [0.0, 0.0]


def test_diff_of_analyses(run, tmp_path, model):
    mpfast.analyze(model).to_json(tmp_path / "a.json")
    stronger = {f"m.{name}": 2 * tensor for name, tensor in matrices().items()}
    stronger["m.layers.0.fc.weight"] = stronger["m.layers.0.fc.weight"] + np.float32(2)
    mpfast.analyze(stronger).to_json(tmp_path / "b.json")
    code, out, _ = run("diff", tmp_path / "a.json", tmp_path / "b.json", "--json", "-")
    document = json.loads(out)
    assert (code, document["of"], document["changed"]) == (0, "analyses", 3)
    assert document["layers"][1]["sigma_plus"] == pytest.approx(1.0, rel=1e-3)
    assert document["layers"][1]["change"] == pytest.approx(1.0, rel=1e-5)
    assert document["layers"][0]["spikes"] == 1
    assert run("diff", tmp_path / "a.json", tmp_path / "a.json", "--fail-on", "change > 0")[0] == 0
    assert "3 matrices equal in both" in run("diff", tmp_path / "a.json", tmp_path / "a.json")[1]
    code, _, err = run("diff", tmp_path / "a.json", model)
    assert (code, "b must be an analysis like the other" in err) == (1, True)
