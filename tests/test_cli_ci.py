"""The command line in CI: what fails, after which output, and what is only warned of."""

from __future__ import annotations

import json
import logging
import os
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")
from safetensors.numpy import save_file

import mpfast
from mpfast.cli.conditions import Condition

from .command_line import matrices, run_main
from .references import run_python


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
