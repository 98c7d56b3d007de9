"""Options from mpfast.toml and from [tool.mpfast] in pyproject.toml."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")
if sys.version_info < (3, 11):
    pytest.importorskip("tomli")
from safetensors.numpy import save_file
from typer.main import get_command

from mpfast.cli.app import app, main
from mpfast.cli.configuration import settable


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Run the command line in this process, in a folder of its own: exit status, standard output, standard error."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    tensors = {f"layers.{i}.fc.weight": rng.standard_normal((48, 64)).astype(np.float32) for i in range(3)}
    save_file(tensors, tmp_path / "model.safetensors")

    def call(*arguments):
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return end.value.code or 0, captured.out, " ".join(captured.err.split())

    return call


def options_of(text):
    return json.loads(text)["provenance"]["options"]


def test_options_come_from_the_file_and_the_command_line_wins(run, tmp_path):
    (tmp_path / "mpfast.toml").write_text(
        'seed = 7\ninclude = "layers.[01].*"\n[analyze]\ntol = 0.01\nspectra = "exact"\n[budget]\nseed = 8\n'
    )
    code, out, _ = run("analyze", "model.safetensors", "--json", "-")
    found = options_of(out)
    assert (code, len(json.loads(out)["layers"])) == (0, 2)
    assert (found["seed"], found["tol"], found["method"]) == (7, 0.01, "exact")
    code, out, _ = run("analyze", "model.safetensors", "--json", "-", "--seed", "3", "--include", "layers.2.*")
    assert (options_of(out)["seed"], [row["name"] for row in json.loads(out)["layers"]]) == (3, ["layers.2.fc.weight"])
    assert options_of(run("budget", "model.safetensors", "--sparsity", "0.5", "--json", "-")[1])["seed"] == 8
    assert "seed" not in options_of(run("inspect", "model.safetensors", "--json", "-")[1])


def test_a_projects_file_has_a_table_of_its_own(run, tmp_path):
    (tmp_path / "pyproject.toml").write_text(
        '[tool.mpfast]\nseed = 5\n[tool.mpfast.analyze]\nfail-on = ["spikes >= 0"]\n'
    )
    code, out, err = run("analyze", "model.safetensors", "--json", "-")
    assert (code, options_of(out)["seed"], "spikes >= 0: layers.0.fc.weight" in err) == (1, 5, True)
    # A file of our own goes first, and one that says nothing of mpfast is no configuration.
    (tmp_path / "mpfast.toml").write_text("seed = 6\n")
    assert options_of(run("analyze", "model.safetensors", "--json", "-")[1])["seed"] == 6
    (tmp_path / "mpfast.toml").unlink()
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "mpfast-user"\n')
    assert options_of(run("analyze", "model.safetensors", "--json", "-")[1])["seed"] == 0


def test_the_nearest_file_above_holds(run, tmp_path, monkeypatch):
    (tmp_path / "mpfast.toml").write_text("seed = 5\n")
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    model = tmp_path / "model.safetensors"
    assert options_of(run("analyze", model, "--json", "-")[1])["seed"] == 5
    # The root of a project ends the search.
    (tmp_path / "a" / "pyproject.toml").write_text("[project]\n")
    assert options_of(run("analyze", model, "--json", "-")[1])["seed"] == 0
    assert options_of(run("--config", tmp_path / "mpfast.toml", "analyze", model, "--json", "-")[1])["seed"] == 5


def test_one_can_do_without_and_see_which_is_in_force(run, tmp_path):
    (tmp_path / "mpfast.toml").write_text("seed = 5\n")
    assert options_of(run("--no-config", "analyze", "model.safetensors", "--json", "-")[1])["seed"] == 0
    assert run("--no-config", "--config", "mpfast.toml", "info")[0] == 2
    assert json.loads(run("info", "--json", "-")[1])["options"] == str(tmp_path / "mpfast.toml")
    assert json.loads(run("--no-config", "info", "--json", "-")[1])["options"] is None


def test_what_the_command_line_says_in_another_way_is_not_looked_at(run, tmp_path):
    (tmp_path / "mpfast.toml").write_text("[prune]\nsparsity = 0.5\n[compress]\nrank = 2\n")
    assert "(50.00%)" in run("prune", "model.safetensors", "--dry-run")[1]
    assert "(75.00%)" in run("prune", "model.safetensors", "--dry-run", "--pattern", "1:4")[1]
    assert run("compress", "model.safetensors", "--dry-run")[0] == 0
    assert run("compress", "model.safetensors", "--dry-run", "--error", "0.9")[0] == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sede = 1", "mpfast.toml: sede: there is no such option; the nearest is 'seed'"),
        ("fail_on = 'ks > 1'", "mpfast.toml: fail_on: there is no such option; the nearest is 'fail-on'"),
        ("[analyse]\nseed = 1", "mpfast.toml: analyse: there is no such command; the nearest is 'analyze'"),
        ("[analyze]\nsparsity = 0.5", "mpfast.toml: analyze.sparsity: there is no such option"),
        ("strict = 1", "mpfast.toml: strict: must be true or false, not 1"),
        ("seed = true", "mpfast.toml: seed: must be a text or a number, not True"),
        ("seed = [1, 2]", "mpfast.toml: seed: takes one value, not [1, 2]"),
        ("base = ''", "mpfast.toml: base: is empty"),
        ("include = ['*', '']", "mpfast.toml: include: is empty"),
        ("cache = 2020-01-01", "mpfast.toml: cache: must be a text or a number"),
        ("seed = ", "mpfast.toml: is no TOML: "),
        ("out = 'there'", "mpfast.toml: out: --out is said on the command line alone"),
        ("json = 'there'", "mpfast.toml: json: --json is said on the command line alone"),
        ("[prune]\noverwrite = true", "mpfast.toml: prune.overwrite: --overwrite is said on the command line alone"),
        ("tol = 'small'", "mpfast.toml says so"),
        ("tol = 2", "mpfast.toml says so"),
        ("[analyze]\nsort = 'alpha'", "mpfast.toml says so"),
        ("fail-on = 'spikes'", "mpfast.toml says so"),
        ("fail-on = ['ks > 1', 'loss > 1']", "mpfast.toml says so"),
        ("top = 0", "mpfast.toml says so"),
        ("threads = -1", "mpfast.toml says so"),
        ("include = 'none.*'", "mpfast.toml says so"),
    ],
)
def test_what_cannot_be_is_wrong_usage_with_the_place(run, tmp_path, text, message):
    (tmp_path / "mpfast.toml").write_text(text)
    code, out, err = run("analyze", "model.safetensors")
    assert (code, out) == (2, "")
    assert message in err


def test_the_file_is_named_for_its_own_options_alone(run, tmp_path):
    (tmp_path / "mpfast.toml").write_text("base = 'missing.safetensors'\n[prune]\npattern = '2:4'\ndamping = 0.1\n")
    code, _, err = run("analyze", "model.safetensors")
    assert (code, "missing.safetensors" in err, "mpfast.toml says so" in err) == (1, True, True)
    code, _, err = run("analyze", "model.safetensors", "--base", "model.safetensors", "--fail-on", "spikes")
    assert (code, "mpfast.toml" in err) == (2, False)
    code, _, err = run("prune", "model.safetensors", "--dry-run")
    assert (code, "--damping go with --moments" in err, "mpfast.toml says so" in err) == (2, True, True)


def test_a_file_that_is_named_must_be_there(run, tmp_path):
    assert run("--config", "missing.toml", "info")[0] == 2
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    code, _, err = run("--config", "pyproject.toml", "info")
    assert (code, "pyproject.toml: has no table [tool.mpfast]" in err) == (2, True)


def test_every_option_can_be_set_but_those_that_write_or_connect():
    for name, command in get_command(app).commands.items():
        long = {option[2:] for param in command.params for option in param.opts if option.startswith("--")}
        said = {"out", "json", "csv", "html", "overwrite", "dry-run", "dask", "help"}
        assert set(settable(command)) == long - said, name
