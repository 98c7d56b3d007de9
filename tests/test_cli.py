"""The command line, run as a user runs it: output, exit codes, files, Ctrl-C."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")

from mpfast.spectra.synthetic import low_rank

from .references import run_python


def mpfast(*arguments, **options):
    return run_python("-m", "mpfast", *map(str, arguments), **options)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("models") / "model.npz"
    np.savez(
        path,
        **{
            "fc.weight": (rng.standard_normal((150, 200)) + low_rank((150, 200), np.array([70.0]), rng)).astype("f4"),
            "out.weight": 3 * rng.standard_normal((90, 150)).astype("f4"),
            "fc.bias": np.zeros(150, "f4"),
        },
    )
    return path


@pytest.fixture
def matrix(tmp_path):
    rng = np.random.default_rng(3)
    path = tmp_path / "w.npy"
    np.save(path, rng.standard_normal((200, 300)) + low_rank((200, 300), np.array([80.0, 60.0]), rng))
    return path


def test_analyze_prints_a_table(model):
    run = mpfast("analyze", model)
    assert (run.returncode, run.stderr) == (0, "")
    header, fc, out, *rest = run.stdout.splitlines()
    columns = ["layer", "shape", "sigma+", "spikes", "signals", "uneven", "KS", "noise", "share", "eff.rank"]
    assert header.split() == [*columns, "hill_alpha", "stable"]
    assert fc.split()[:2] == ["fc.weight", "150x200"]
    assert fc.split()[3:5] == ["1", "1"]
    assert fc.split()[7] == "even"
    assert out.split()[:2] == ["out.weight", "90x150"]
    assert float(out.split()[2]) == pytest.approx(3 * (90**0.5 + 150**0.5), rel=0.03)
    text = "\n".join(rest)
    assert "fc.bias: vector or scalar" in text
    assert "even: fc.weight and 1 more (numbers of the first): Even noise and 1 signal." in text
    assert "2 matrices (noise: 2 even)" in text
    assert str(model) in text


def test_analyze_writes_json_and_csv(model, tmp_path):
    run = mpfast("analyze", model, "--json", tmp_path / "a.json", "--csv", tmp_path / "a.csv")
    assert run.returncode == 0
    document = json.loads((tmp_path / "a.json").read_text())
    assert [row["name"] for row in document["layers"]] == ["fc.weight", "out.weight"]
    assert document["skipped"][0]["name"] == "fc.bias"
    assert (tmp_path / "a.csv").read_text().count("\n") == 3
    piped = mpfast("analyze", model, "--json", "-")
    assert json.loads(piped.stdout)["layers"][0]["sigma_plus"] == document["layers"][0]["sigma_plus"]
    assert mpfast("analyze", model, "--csv", "-").stdout.startswith("name,kind,")
    assert mpfast("analyze", model, "--html", "-").stdout.startswith("<!DOCTYPE html>")


def test_analyze_options(model):
    assert "fc.weight" not in mpfast("analyze", model, "--include", "out.*").stdout.splitlines()[1]
    rows = mpfast("analyze", model, "--sort", "sigma_plus").stdout.splitlines()
    assert rows[1].startswith("out.weight")
    assert "fc.bias (150 float32)" in mpfast("analyze", model, "--verbose").stdout
    assert (
        mpfast("analyze", model, "--spectra", "exact", "--tol", "0.01", "--seed", "3", "--threads", "1").returncode == 0
    )


def test_warnings_that_differ_in_numbers_are_told_once(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "m.npz"
    np.savez(path, **{f"w{i}": np.cumsum(rng.standard_normal((100, 200)), axis=1) for i in range(4)})
    brief = mpfast("analyze", path).stdout
    assert brief.count("is not Marchenko-Pastur") == 1
    assert "! 4 tensors (w0, ...): the bulk is not Marchenko-Pastur" in brief
    assert "--verbose lists all" in brief
    assert mpfast("analyze", path, "--verbose").stdout.count("is not Marchenko-Pastur") > 1


def test_spectrum(matrix):
    run = mpfast("spectrum", matrix)
    assert (run.returncode, run.stderr) == (0, "")
    assert re.search(r"edge sigma\+ +31\.\d+", run.stdout)
    assert re.search(r"spikes +2 above the threshold, 2 above the edge: 8\d\.\d+ 6\d\.\d+", run.stdout)
    assert "# found   | Marchenko-Pastur" in run.stdout
    document = json.loads(mpfast("spectrum", matrix, "--json", "-").stdout)
    assert document["schema"] == "mpfast.spectrum/1"
    assert len(document["spectrum"]["values"]) == 200
    assert document["summary"]["spikes"] == 2


def test_info_and_version():
    lines = dict(line.split(maxsplit=1) for line in mpfast("info").stdout.splitlines())
    assert lines.keys() == {"mpfast", "Python", "NumPy", "BLAS", "SIMD", "threads", "CUDA", "options"}
    assert lines["SIMD"] in ("baseline", "avx2", "avx512")
    assert lines["NumPy"] == np.__version__
    for option in ("--version", "-V"):
        assert mpfast(option).stdout == f"mpfast {lines['mpfast']}\n"


@pytest.mark.slow
def test_bench_runs_chosen_cases(tmp_path):
    run = mpfast("bench", "n_m", "--json", tmp_path / "b.json")
    assert run.returncode == 0, run.stderr
    assert "mpfast.masks.n_m" in run.stdout
    assert "read-only pass" in run.stdout
    rows = json.loads((tmp_path / "b.json").read_text())["rows"]
    assert rows[0]["ratio"] == 1
    assert rows[0]["error"] == 0
    assert all(row["seconds"] > 0 for row in rows)


def test_no_arguments_and_help():
    for arguments in ((), ("--help",), ("-h",)):
        run = mpfast(*arguments)
        assert run.returncode in (0, 2)
        assert {"analyze", "spectrum", "bench", "info"} <= set((run.stdout + run.stderr).split())
    assert mpfast("--help").returncode == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("analyse",),
        ("analyze",),
        ("analyze", "x", "--tol", "-1"),
        ("analyze", "x", "--tol", "small"),
        ("analyze", "x", "--spectra", "svd"),
        ("analyze", "x", "--sort", "alpha"),
        ("analyze", "x", "--threads", "0"),
        ("analyze", "x", "--seed", "-1"),
        ("analyze", "x", "--json", "-", "--csv", "-"),
        ("info", "extra"),
        ("bench", "speed"),
    ],
)
def test_wrong_usage_exits_with_2(arguments):
    run = mpfast(*arguments)
    assert run.returncode == 2, run.stdout + run.stderr
    assert run.stdout == ""
    assert "Traceback" not in run.stderr


@pytest.mark.slow
def test_a_users_mistake_is_one_line_and_exit_1(model, tmp_path):
    (tmp_path / "empty").mkdir()
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"\x00" * 100)
    cut = tmp_path / "cut.npy"
    np.save(cut, np.eye(5))
    cut.write_bytes(cut.read_bytes()[:150])
    integers = tmp_path / "integers.npy"
    np.save(integers, np.arange(12).reshape(3, 4))
    for arguments, message in (
        (("analyze", tmp_path / "missing.safetensors"), "no such file"),
        (("analyze", bad), "header"),
        (("analyze", tmp_path / "empty"), "holds no .safetensors file"),
        (("analyze", model, "--json", tmp_path / "no" / "a.json"), "no such directory"),
        (("spectrum", cut), "no valid .npy file"),
        (("spectrum", model), "mpfast analyze reads checkpoints"),
        (("spectrum", tmp_path), f"{tmp_path}: is a directory"),
        (("spectrum", integers), "cast it"),
        (("spectrum", tmp_path / "missing.npy"), "no such file"),
    ):
        run = mpfast(*arguments)
        assert run.returncode == 1, arguments
        assert run.stdout == ""
        last = run.stderr.splitlines()[-1]
        assert last.startswith("mpfast: error: ")
        assert message in last
        assert "Traceback" not in run.stderr


def test_names_cannot_send_escape_sequences_to_the_terminal(tmp_path):
    path = tmp_path / "m.npz"
    np.savez(path, **{"w\x1b[31m": np.random.default_rng(0).standard_normal((40, 60))})
    run = mpfast("analyze", path)
    assert "\x1b" not in run.stdout
    assert "w\\x1b[31m" in run.stdout


@pytest.mark.slow
def test_a_locale_that_cannot_spell_the_output(model):
    run = mpfast("analyze", model, "--spectra", "lanczos", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert run.returncode == 0, run.stderr


def test_a_closed_pipe_is_no_error(model):
    command = f"{sys.executable} -m mpfast analyze {model} | head -n 1"
    run = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False, cwd=model.parent
    )
    assert run.stdout.startswith("layer")
    assert "Traceback" not in run.stderr


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_leaves_no_file(tmp_path):
    path = tmp_path / "big.npy"
    np.save(path, np.random.default_rng(0).standard_normal((4000, 4000), dtype=np.float32))
    target = tmp_path / "out.json"
    process = subprocess.Popen(
        [sys.executable, "-m", "mpfast", "spectrum", str(path), "--spectra", "exact", "--json", str(target)],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    time.sleep(1.5)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (130, "mpfast: interrupted\n")
    assert [p.name for p in tmp_path.iterdir()] == ["big.npy"]
