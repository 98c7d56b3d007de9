"""The commands that write models, run as a user runs them."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")

from safetensors.numpy import load_file, save_file

from mpfast.models.budget import Budget
from mpfast.spectra.synthetic import low_rank

from .references import run_python


def mpfast(*arguments, **options):
    return run_python("-m", "mpfast", *map(str, arguments), **options)


@pytest.fixture
def model(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {
        "embed.weight": rng.standard_normal((200, 64)),
        "fc.weight": rng.standard_normal((150, 200)) + low_rank((150, 200), np.array([70.0]), rng),
        "out.weight": 3 * rng.standard_normal((88, 152)),
        "fc.bias": np.zeros(150),
    }
    save_file({name: tensor.astype(np.float32) for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.mark.slow
def test_prune_and_verify(model, tmp_path):
    out = tmp_path / "out"
    run = mpfast("prune", model, "-o", out, "--sparsity", "0.5")
    assert (run.returncode, run.stderr) == (0, "")
    assert "21,688 of 43,376 entries (50.00%) of 2 layers pruned by row" in run.stdout
    assert "embed.weight: embedding or output head" in run.stdout
    run = mpfast("verify", out)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout == f"{out}: 2 pruned tensors as their masks say, 2 others bitwise untouched\n"
    again = mpfast("prune", model, "-o", out, "--sparsity", "0.5")
    assert (again.returncode, again.stdout) == (1, "")
    assert "exists already" in again.stderr
    assert mpfast("prune", model, "-o", out, "--pattern", "2:4", "--overwrite").returncode == 0
    tensors = load_file(out / "model.safetensors")
    tensors["fc.weight"][0, 0] += 1
    save_file(tensors, out / "model.safetensors")
    run = mpfast("verify", out)
    assert run.returncode == 1
    assert "fc.weight: " in run.stdout
    assert run.stderr.endswith("out: 1 problem\n")


@pytest.mark.slow
def test_dry_runs_write_nothing(model, tmp_path):
    run = mpfast("prune", model, "--sparsity", "0.3", "--method", "uniform", "--dry-run")
    assert run.returncode == 0
    assert "nothing written (dry run)" in run.stdout
    assert mpfast("compress", model, "--dry-run", "--energy", "0.9").returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


@pytest.mark.slow
def test_budgets_go_from_one_command_to_the_other(model, tmp_path):
    run = mpfast("budget", model, "--sparsity", "0.4", "--ceiling", "0.5", "-o", tmp_path / "budget.json")
    assert run.returncode == 0
    budget = Budget.from_json(tmp_path / "budget.json")
    assert budget.pruned == int(0.4 * budget.entries)
    run = mpfast("prune", model, "-o", tmp_path / "out", "--budget", tmp_path / "budget.json")
    assert run.returncode == 0
    written = Budget.from_json(tmp_path / "out" / "budget.json")
    assert [row.pruned for row in written] == [row.pruned for row in budget]
    config = json.loads(mpfast("budget", model, "--sparsity", "0.4", "--format", "torch-ao-pruning").stdout)
    assert [entry["tensor_fqn"] for entry in config] == ["fc.weight", "out.weight"]


def test_compress(model, tmp_path):
    run = mpfast("compress", model, "-o", tmp_path / "out", "--rank", "8")
    checked = mpfast("verify", tmp_path / "out")
    assert (checked.returncode, "of the rank that the mark says" in checked.stdout) == (0, True)
    assert run.returncode == 0
    assert "2 matrices truncated; factors would take " in run.stdout
    assert load_file(tmp_path / "out" / "model.safetensors")["fc.weight"].shape == (150, 200)


def test_resize(tmp_path):
    rng = np.random.default_rng(0)
    A, B = rng.standard_normal((2, 48)), rng.standard_normal((40, 2))
    pair = {"unet.q.lora.down.weight": np.tile(A, (3, 1)), "unet.q.lora.up.weight": np.tile(B, (1, 3))}
    save_file(pair, tmp_path / "a.safetensors")
    run = mpfast("resize", tmp_path / "a.safetensors", "-o", tmp_path / "out", "--error", "0.01")
    assert (run.returncode, run.stderr) == (0, "")
    assert "1 update resized to 33.3% of its entries" in run.stdout
    assert load_file(tmp_path / "out" / "a.safetensors")["unet.q.lora.up.weight"].shape == (40, 2)


@pytest.mark.slow
def test_compress_to_factors_and_adapters(model, tmp_path):
    run = mpfast("compress", model, "-o", tmp_path / "factors", "--error", "0.8", "--format", "factors")
    assert run.returncode == 0
    assert "load_factors(model, OUT) loads them" in run.stdout
    tensors = load_file(model)
    tensors["fc.weight"] += np.outer(np.ones(150), np.ones(200)).astype(np.float32)
    tensors["fc.bias"] += 1
    save_file(tensors, tmp_path / "tuned.safetensors")
    run = mpfast(
        "compress", tmp_path / "tuned.safetensors", "--base", model, "-o", tmp_path / "lora", "--base-id", "a/b"
    )
    assert run.returncode == 0
    assert "differ from the base, and are not in the adapter:\n  fc.bias: vector or scalar" in run.stdout
    assert json.loads((tmp_path / "lora" / "adapter_config.json").read_text())["base_model_name_or_path"] == "a/b"


@pytest.mark.slow
def test_names_do_not_reach_the_terminal_as_they_are(tmp_path):
    """They come from files, and terminals obey escape sequences."""
    evil = "evil\x1b]0;pwned\x07.weight"
    rng = np.random.default_rng(0)
    save_file({evil: rng.standard_normal((1100, 1200)).astype(np.float32)}, tmp_path / "m.safetensors")
    runs = [
        mpfast(
            "prune", tmp_path / "m.safetensors", "-o", tmp_path / "out", "--sparsity", "0.5", "--method", "magnitude"
        ),
        mpfast("analyze", tmp_path / "m.safetensors", "--spectra", "lanczos", "--tol", "1e-5"),
        mpfast("prune", tmp_path / "m.safetensors", "--dry-run", "--sparsity", "0.5", "--exclude", evil),
        mpfast("compress", tmp_path / "m.safetensors", "--dry-run", "--rank", "2"),
    ]
    budget = json.loads((tmp_path / "out" / "budget.json").read_text())
    budget["layers"][0]["pruned"] -= 1
    (tmp_path / "out" / "budget.json").write_text(json.dumps(budget))
    runs.append(mpfast("verify", tmp_path / "out"))
    for run in runs:
        assert "\x1b" not in run.stdout + run.stderr
        assert "\x07" not in run.stdout + run.stderr
        assert "evil\\x1b]0;pwned\\x07.weight" in run.stdout + run.stderr


@pytest.mark.slow
def test_analyze_keeps_results_and_writes_a_page(model, tmp_path):
    options = ("--html", tmp_path / "report.html", "--cache", tmp_path / "kept", "--base", model)
    assert mpfast("analyze", model, *options[:4]).returncode == 0
    assert "<title>mpfast" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert len(list((tmp_path / "kept").iterdir())) == 3
    assert mpfast("analyze", model, *options).returncode == 0  # the differences are other matrices
    assert len(list((tmp_path / "kept").iterdir())) == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prune", "MODEL", "-o", "OUT", "--budget", "MODEL"], "model.safetensors: "),
        (["prune", "MODEL", "-o", "OUT", "--budget", "missing"], "missing: no such file"),
        (["prune", "MODEL", "-o", ".", "--sparsity", "0.5", "--overwrite"], "not replaced"),
        (["analyze", "MODEL", "--json", "/"], "/: is a directory"),
        (["prune", "MODEL", "-o", "/missing/OUT", "--sparsity", "0.5"], "no such directory"),
        (["prune", "nowhere", "-o", "OUT", "--sparsity", "0.5"], "no such file"),
        (["prune", "MODEL", "-o", "OUT", "--pattern", "3:7"], "error: no layer is left to prune; "),
        (["verify", "/"], "is this a directory that prune(), compress() or narrow() wrote?"),
        (["analyze", "MODEL", "--dask", "nonsense://x"], "nonsense"),
    ],
)
def test_mistakes_are_told_in_one_line(model, arguments, message):
    run = mpfast(*[str(model) if argument == "MODEL" else argument for argument in arguments])
    assert run.returncode == 1
    assert message in run.stderr
    assert run.stderr.count("\n") == 1
    assert "(): " not in run.stderr  # no function that the user did not call


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["prune", "MODEL", "--sparsity", "0.5"],
        ["prune", "MODEL", "-o", "OUT"],
        ["prune", "MODEL", "-o", "OUT", "--sparsity", "0.5", "--pattern", "2:4"],
        ["prune", "MODEL", "-o", "OUT", "--pattern", "4:2"],
        ["prune", "MODEL", "-o", "OUT", "--pattern", "2:4", "--method", "hill"],
        ["prune", "MODEL", "-o", "OUT", "--dry-run", "--sparsity", "0.5"],
        ["prune", "MODEL", "-o", "OUT", "--sparsity", "1.5"],
        ["compress", "MODEL", "-o", "OUT", "--rank", "0"],
        ["compress", "MODEL", "-o", "OUT"],
        ["compress", "MODEL", "-o", "OUT", "--rank", "2", "--error", "0.5"],
        ["compress", "MODEL", "-o", "OUT", "--rank", "2", "--format", "zip"],
        ["compress", "MODEL", "-o", "OUT", "--rank", "2", "--base-id", "a/b"],
        ["budget", "MODEL"],
        ["resize", "MODEL", "-o", "OUT"],
        ["resize", "MODEL", "-o", "OUT", "--rank", "2", "--energy", "0.5"],
        ["resize", "MODEL", "--rank", "2"],
    ],
)
def test_wrong_usage(model, arguments):
    assert mpfast(*[str(model) if argument == "MODEL" else argument for argument in arguments]).returncode == 2
