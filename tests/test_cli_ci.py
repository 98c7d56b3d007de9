"""What a build relies on: exit codes, conditions, several models, comparisons, documents that keep to their schemas."""

from __future__ import annotations

import json
import logging
import os
import re
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")
from safetensors.numpy import save_file

import mpfast
from mpfast.checkpoints import TensorInfo, counterparts
from mpfast.cli.app import main
from mpfast.cli.conditions import Condition

from .references import run_python


@pytest.fixture
def run(capsys, monkeypatch):
    """Run the command line in this process: exit status, standard output, standard error."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments):
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return end.value.code or 0, captured.out, captured.err

    return call


def matrices(seed=0, **changes):
    rng = np.random.default_rng(seed)
    tensors = {f"layers.{i}.fc.weight": rng.standard_normal((48, 64)).astype(np.float32) for i in range(3)}
    return {**tensors, "norm.weight": np.ones(64, np.float32), **changes}


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


@pytest.fixture
def vectors(tmp_path):
    save_file({"norm.weight": np.ones(64, np.float32)}, tmp_path / "vectors.safetensors")
    return tmp_path / "vectors.safetensors"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_fail_after_the_output(run, tmp_path, value):
    damaged = np.ones((32, 32), np.float32)
    damaged[3, 5] = value
    path = tmp_path / "m.safetensors"
    save_file(matrices(**{"layers.1.fc.weight": damaged}), path)
    code, out, err = run("analyze", path, "--json", tmp_path / "a.json")
    assert code == 1
    assert "layers.0.fc.weight" in out
    assert err.startswith("mpfast: error: NaN or infinities in layers.1.fc.weight: has 1 non-finite entry")
    assert "(3, 5)" in err
    assert err.count("\n") == 1
    analysis = mpfast.Analysis.from_json(tmp_path / "a.json")
    assert [tensor.name for tensor in analysis.non_finite] == ["layers.1.fc.weight"]
    assert run("analyze", path, "--allow-nonfinite")[0] == 0
    assert run("budget", path, "--sparsity", "0.5")[0] == 1


def test_nothing_analysed_fails(run, vectors):
    code, out, err = run("analyze", vectors)
    assert (code, "no weight matrices found" in out) == (1, True)
    assert err == "mpfast: error: nothing was analysed; norm.weight: vector or scalar (bias, normalisation)\n"
    code, _, err = run("inspect", vectors)
    assert code == 1
    assert "nothing would be analysed" in err


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


@pytest.mark.parametrize(
    ("condition", "fails"),
    [
        ("ks > 0.9", False),
        ("ks>=0", True),
        ("spikes >= 10", False),
        ("bulk_fraction < .5", False),
        ("  sigma_plus  <  1e3 ", True),
        ("spikes != -1", True),
        ("fro_norm == inf", False),
        ("hill_alpha > 0", True),
    ],
)
def test_conditions_fail_after_the_output(run, model, condition, fails):
    code, out, err = run("analyze", model, "--fail-on", condition)
    assert "3 matrices" in out
    assert code == int(fails)
    assert err.startswith("mpfast: error: ") == fails
    if fails:
        assert "layers.0.fc.weight has" in err
        assert "and 2 more" in err


@pytest.mark.parametrize(
    "condition", ["ks", "ks > x", "ks > nan", "ks = 1", "> 1", "ks > 1 2", "name > 1", "kss > 1", "ks == even"]
)
def test_conditions_that_cannot_be_are_wrong_usage(run, model, condition):
    code, out, err = run("analyze", model, "--fail-on", condition)
    assert (code, out) == (2, "")
    if condition.startswith("kss"):
        assert "sigma_plus" in err
        assert "verdict" in err


def test_several_conditions_and_undefined_values(run, model):
    code, _, err = run("analyze", model, "--fail-on", "ks >= 0", "--fail-on", "spikes < 0", "--fail-on", "seconds >= 0")
    assert (code, err.count("\n")) == (1, 2)
    for symbol in (">", ">=", "<", "<=", "==", "!="):
        assert not Condition("ks", symbol, 0.0).holds(float("nan"))
        assert not Condition("ks", symbol, 0.0).holds(None)


@pytest.mark.parametrize(
    "arguments",
    [
        ["prune", "MODEL", "--sparsity", "0.5", "-o", ""],
        ["prune", "MODEL", "--dry-run", "--budget="],
        ["compress", "MODEL", "--rank", "2", "--out", ""],
        ["budget", "MODEL", "--sparsity", "0.5", "-o", ""],
        ["moments", "MODEL", "--texts", "", "-o", "m.safetensors"],
        ["analyze", "MODEL", "--cache", ""],
        ["analyze", "MODEL", "--json", ""],
        ["analyze", "MODEL", "--include", "*", "--include", ""],
        ["analyze", "MODEL", ""],
        ["inspect", ""],
        ["verify", ""],
    ],
)
def test_no_value_is_empty(run, model, tmp_path, monkeypatch, arguments):
    """An empty path would be the working directory."""
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*(model if argument == "MODEL" else argument for argument in arguments))
    assert (code, out) == (2, "")
    assert "is empty; is a variable of the shell not set?" in err
    assert list(tmp_path.iterdir()) == [model]


def test_a_document_of_several_analyses_is_named(run, model, tmp_path):
    several = tmp_path / "two.json"
    run("analyze", model, model, "-q", "--json", several)
    for pair in ((several, model), (model, several), (several, several)):
        code, _, err = run("diff", *pair)
        assert code == 1
        assert f"{several}: this is not JSON of the schema mpfast.analysis/1, but of 'mpfast.analyses/1'" in err


def test_what_verify_did_not_compare_is_a_warning(run, model, tmp_path):
    mpfast.prune(model, tmp_path / "out", sparsity=0.5, method="magnitude", progress=False)
    assert run("verify", tmp_path / "out", "--strict")[0] == 0
    model.unlink()
    code, _, err = run("verify", tmp_path / "out")
    assert (code, err.count("not compared: ")) == (0, len(err.splitlines()))
    told = len(err.splitlines())
    for quiet in ([], ["-q"]):
        code, _, err = run("verify", tmp_path / "out", "--strict", *quiet)
        assert code == 1
        assert f"{told} warning" in err.splitlines()[-1]
        assert "and --strict was asked for" in err


def test_strict_fails_on_any_warning(run, tmp_path, model):
    assert run("analyze", model, "--strict")[0] == 1  # fewer than 64 singular values: the fit says so
    large = tmp_path / "large.safetensors"
    save_file({"w": np.random.default_rng(0).standard_normal((200, 300)).astype(np.float32)}, large)
    assert run("analyze", large, "--strict")[0] == 0
    code, out, err = run("analyze", large, "--strict", "--exclude", "nothing*")
    assert code == 1
    assert "1 matrix" in out
    lines = err.splitlines()
    assert lines[0].startswith("mpfast: warning: exclude='nothing*' matches none")
    assert lines[1:] == ["mpfast: error: 1 warning, and --strict was asked for"]
    assert run("analyze", large, "--exclude", "nothing*")[0] == 0


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


def test_quiet_and_verbose(run, model):
    assert run("analyze", model, "-q", "--exclude", "nothing*") == (0, "", "")
    assert run("inspect", model, "--quiet") == (0, "", "")
    code, out, _ = run("analyze", model, "-q", "--json", "-")
    assert (code, len(json.loads(out)["layers"])) == (0, 3)
    _, _, err = run("analyze", model, "-v")
    assert f"mpfast: analyze: {model}: 3 matrices, 1 tensors skipped\n" in err


def test_the_logger_is_silent_unless_listened_to(model, caplog):
    with caplog.at_level(logging.DEBUG, logger="mpfast"):
        mpfast.analyze(model, progress=False)
    assert {record.name for record in caplog.records} == {"mpfast"}
    assert [record.levelname for record in caplog.records] == ["INFO", "DEBUG", "DEBUG", "DEBUG"]
    assert any(isinstance(handler, logging.NullHandler) for handler in logging.getLogger("mpfast").handlers)


def test_completion_knows_the_commands():
    environment = {**os.environ, "_MPFAST_COMPLETE": "complete_bash", "COMP_WORDS": "mpfast in", "COMP_CWORD": "1"}
    completed = run_python("-m", "mpfast", env=environment).stdout.split()
    assert {"inspect", "info"} <= set(completed)


def test_per_cent_are_told_from_shares(run, model, tmp_path):
    for arguments in (
        ("prune", model, "-o", tmp_path / "out", "--sparsity", "50"),
        ("budget", model, "--sparsity", "50"),
    ):
        code, _, err = run(*arguments)
        assert code == 2
        assert "50 % is 0.5" in re.sub(r"[\s│]+", " ", err)
    with pytest.raises(ValueError, match=r"sparsity must lie in \[0, 1\], not 50"):
        mpfast.prune(model, sparsity=50)


# Checkpoints against each other ---------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    "arguments",
    [
        ("analyze", "MODEL", "--include", "nothing*"),
        ("inspect", "MODEL", "--include", "nothing*"),
        ("prune", "MODEL", "--dry-run", "--sparsity", "0.5", "--exclude", "layers*", "--include", "nothing"),
        *[
            (*command, "--device", "xpu")
            for command in (
                ("analyze", "MODEL"),
                ("budget", "MODEL", "--sparsity", "0.5"),
                ("prune", "MODEL", "--dry-run", "--sparsity", "0.5"),
                ("compress", "MODEL", "--dry-run", "--rank", "2"),
            )
        ],
        ("analyze", "MODEL", "--threads", "99999999"),
        ("budget", "MODEL", "--sparsity", "0.5", "--ceiling", "0.2"),
        ("budget", "MODEL", "--sparsity", "0.5", "--floor", "0.8"),
        ("prune", "MODEL", "--dry-run", "--sparsity", "0.5", "--ceiling", "0.2"),
        ("prune", "MODEL", "--dry-run", "--pattern", "2:4", "--ceiling", "0.9"),
        ("prune", "MODEL", "--dry-run", "--pattern", "4:4"),
        ("compress", "MODEL", "--dry-run", "--rank", "mp_edge"),
        ("compress", "MODEL", "--dry-run", "--energy", "2"),
        ("compress", "MODEL", "--dry-run", "--error", "-1"),
        ("compress", "MODEL", "--dry-run", "--rank", "2", "--format", "lora"),
    ],
)
def test_an_option_that_cannot_be_is_wrong_usage_in_every_command(run, model, arguments):
    code, out, err = run(*(model if argument == "MODEL" else argument for argument in arguments))
    assert (code, out) == (2, "")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("analyze", "missing.npz"),
        ("diff", "MODEL", "missing.npz"),
        ("prune", "MODEL", "--dry-run", "--budget", "missing.json"),
        ("compress", "MODEL", "--dry-run", "--rank", "48"),  # no layer is worth it
        ("verify", "missing"),
    ],
)
def test_what_cannot_be_carried_out_has_failed(run, model, arguments):
    assert run(*(model if argument == "MODEL" else argument for argument in arguments))[0] == 1


def test_gradients_without_moments_are_wrong_usage(run, model):
    code, _, err = run("prune", model, "--dry-run", "--sparsity", "0.5", "--gradients", "gradients.safetensors")
    assert (code, "--gradients goes with --sparsity and --moments" in " ".join(err.split())) == (2, True)


def test_what_a_budget_would_not_look_at_is_wrong_usage(run, model):
    code, out, err = run("budget", model, "--sparsity", "0.5", "--moments", "moments.safetensors")
    assert (code, out, "method row does not look at moments" in err) == (2, "", True)


def test_a_budget_that_is_neither_a_file_nor_a_method_is_told_so(run, model):
    code, _, err = run("prune", model, "--dry-run", "--sparsity", "0.5", "--budget", "owll")
    assert (code, "--budget owll is neither a file nor one of uniform, row, " in " ".join(err.split())) == (2, True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("command", ["analyze", "inspect", "budget", "prune", "compress"])
def test_a_full_disk_is_named(run, model, command):
    more = {"budget": ["--sparsity", "0.5"], "prune": ["--dry-run", "--pattern", "2:4"]}
    more["compress"] = ["--dry-run", "--rank", "2"]
    code, _, err = run(command, model, *more.get(command, []), "--json", "/dev/full")
    assert (code, "/dev/full: no space left on device" in err) == (1, True)


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


def test_inspect_reads_headers_only(run, tmp_path):
    path = tmp_path / "sparse.safetensors"
    header = {
        "model.layers.0.mlp.experts.up_proj": {"dtype": "BF16", "shape": [4, 256, 128], "data_offsets": [0, 262144]},
        "lm_head.weight": {"dtype": "F16", "shape": [64, 32], "data_offsets": [262144, 266240]},
    }
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + 266240)
    code, out, _ = run("inspect", path)
    assert code == 0
    assert re.search(r"experts \(\w[\w. ]*\) +4$", out, re.MULTILINE)
    assert re.search(r"head \(\w[\w. ]*\) +1$", out, re.MULTILINE)
    assert "5 matrices would be analysed" in out
    rows = mpfast.inspect(path)
    assert rows.entries == 4 * 256 * 128 + 64 * 32
    assert rows.dtypes == {"bfloat16": 4 * 256 * 128, "float16": 64 * 32}


# What is no checkpoint ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 438007537\n",
            "Git LFS pointer to a file of 438,007,537 bytes",
        ),
        (b"<!DOCTYPE html>\n<html><head>", "a web page, not a checkpoint"),
        (b"\n  <HTML lang=en>", "a web page, not a checkpoint"),
        (b"GGUF\x03\x00\x00\x00", "the header needs 8 bytes at byte 8"),
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.gguf", "blob"])
def test_what_comes_in_the_place_of_weights_is_named(run, tmp_path, content, message, name):
    (tmp_path / name).write_bytes(content)
    code, out, err = run("analyze", tmp_path / name)
    assert (code, out) == (1, "")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("where", ["HF_HUB_CACHE", "HF_HOME", "HOME"])
def test_ids_of_the_hub_resolve_in_the_local_cache(run, tmp_path, monkeypatch, where):
    for name in ("HF_HUB_CACHE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(where, str(tmp_path / "there"))
    inside = {"HF_HUB_CACHE": "", "HF_HOME": "hub", "HOME": ".cache/huggingface/hub"}[where]
    folder = tmp_path / "there" / inside / "models--some-org--tiny.model"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0123abc")
    (folder / "snapshots" / "0123abc").mkdir(parents=True)
    save_file(matrices(), folder / "snapshots" / "0123abc" / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("analyze", "some-org/tiny.model")
    assert (code, "3 matrices" in out) == (0, True)
    assert len(mpfast.analyze("some-org/tiny.model", progress=False)) == 3
    code, _, err = run("analyze", "some-org/other")
    assert (code, "the cache" in err, "hf download some-org/other" in err) == (1, True, True)
    for revision in ("../../..", "/etc", "..", ""):
        (folder / "refs" / "main").write_text(revision)
        code, _, err = run("analyze", "some-org/tiny.model")
        assert (code, "has no snapshot" in err) == (1, True)
    # A path of that name goes first.
    (tmp_path / "some-org" / "tiny.model").mkdir(parents=True)
    save_file({"w": np.eye(16, dtype=np.float32)}, tmp_path / "some-org" / "tiny.model" / "model.safetensors")
    assert "1 matrix" in run("analyze", "some-org/tiny.model")[1]


def test_addresses_are_not_fetched(run):
    code, _, err = run("analyze", "https://huggingface.co/some-org/model")
    assert (code, "nothing is fetched from the network" in err) == (1, True)


# Documents ------------------------------------------------------------------------------------------------------------


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
