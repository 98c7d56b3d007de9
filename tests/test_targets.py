"""No file that is written takes the place of one that is read, or of one that mpfast does not write."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import mpfast
from mpfast.checkpoints import InputSum, check_target, write_moments

pytest.importorskip("typer")
pytest.importorskip("rich")

from mpfast.cli import main


def matrix(seed=0):
    return np.random.default_rng(seed).standard_normal((64, 48), dtype=np.float32)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Two files of weights, a model directory, and what commands read besides, in the working directory."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("a", "b")):
        save_file({"fc.weight": matrix(seed)}, f"{name}.safetensors")
    Path("model").mkdir()
    save_file({"fc.weight": matrix()}, "model/model.safetensors")
    Path("model/config.json").write_text("{}")
    Path("model/tokenizer.json").write_text("{}")
    Path("texts.txt").write_text("A text.")
    budget = mpfast.Budget.from_json(mpfast.analyze("a.safetensors", progress=False).budget(0.5).to_json())
    budget.to_json("budget.json")
    mpfast.analyze("a.safetensors", progress=False).to_json("analysis.json")
    return tmp_path


def contents(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    return ended.value.code


A = "a.safetensors"
READING = [
    (["analyze", A, "--json"], A),
    (["analyze", A, "--csv"], A),
    (["analyze", A, "--html"], A),
    (["analyze", A, "--base", "b.safetensors", "--json"], "b.safetensors"),
    (["inspect", A, "--json"], A),
    (["budget", A, "--sparsity", "0.5", "-o"], A),
    (["budget", A, "--sparsity", "0.5", "--json"], A),
    (["diff", A, "b.safetensors", "--json"], A),
    (["diff", A, "b.safetensors", "--json"], "b.safetensors"),
    (["diff", "analysis.json", "analysis.json", "--json"], "analysis.json"),
    (["prune", A, "--dry-run", "--sparsity", "0.5", "--json"], A),
    (["prune", A, "--dry-run", "--budget", "budget.json", "--json"], "budget.json"),
    (["compress", A, "--dry-run", "--rank", "2", "--json"], A),
    (["moments", "model", "--texts", "texts.txt", "-o", "m.safetensors", "--json"], "texts.txt"),
    (["moments", "model", "--texts", "texts.txt", "-o"], "texts.txt"),
    (["moments", "model", "--texts", "texts.txt", "-o"], "model/model.safetensors"),
    # What lies beside the weights of a model is read, too, or goes along with a copy.
    (["analyze", "model", "--json"], "model/config.json"),
    (["analyze", "model/model.safetensors", "--csv"], "model/tokenizer.json"),
    (["prune", "model", "--dry-run", "--sparsity", "0.5", "--json"], "model/tokenizer.json"),
]


class TestWhatIsRead:
    @pytest.mark.parametrize(("command", "file"), READING)
    def test_is_not_written_over_under_any_name(self, command, file, here, capsys):
        before = contents(here)
        Path("link.json").symlink_to(here / file)
        os.link(file, "hard.json")
        Path("folder").symlink_to(here / Path(file).parent)
        for name in (file, here / file, f"model/../{file}", "link.json", "hard.json", f"folder/{Path(file).name}"):
            assert run(*command, name) == 1
            told = capsys.readouterr().err
            assert f"error: {name}: not written, for it " in told
            assert (Path(file).name if "belongs" not in told else "model") in told
        for name in ("link.json", "hard.json", "folder"):
            Path(name).unlink()
        assert contents(here) == before

    def test_nor_by_what_was_read_into_memory(self, here):
        found = mpfast.analyze("model", progress=False)
        before = contents(here)
        writers = [
            found.to_json,
            found.to_csv,
            found.to_html,
            found.budget(0.5).to_json,
            mpfast.inspect("model").to_json,
        ]
        for write in [*writers, mpfast.diff("model", A).to_json]:
            for file in ("model/config.json", "model/model.safetensors"):
                with pytest.raises(FileExistsError, match=r"not written, for it .* which is read"):
                    write(file)
        assert contents(here) == before

    def test_nor_what_it_was_compared_with(self, here):
        Path("base").mkdir()
        save_file({"fc.weight": matrix(5)}, "base/model.safetensors")
        Path("base/config.json").write_text("{}")
        found = mpfast.analyze(A, base="base", progress=False)
        compared = mpfast.diff("analysis.json", "analysis.json")
        for write, file in ((found.to_json, "base/config.json"), (compared.to_json, "analysis.json")):
            before = Path(file).read_bytes()
            with pytest.raises(FileExistsError, match=r"not written, for it .* which is read"):
                write(file)
            assert Path(file).read_bytes() == before

    def test_a_report_of_ours_beside_the_weights_is_replaced(self, here):
        for _ in range(2):
            found = mpfast.analyze("model", progress=False)
            found.to_json("model/report.json")
            found.to_csv("model/report.csv")
            found.to_html("model/report.html")
            found.budget(0.5).to_json("model/budget.json")

    def test_the_source_that_an_output_names(self, here):
        mpfast.prune("model", "out", sparsity=0.5, method="magnitude", progress=False)
        for file in ("out/config.json", "model/config.json", "model/model.safetensors", "out/masks.safetensors"):
            before = Path(file).read_bytes()
            assert run("verify", "out", "--json", file) == 1
            assert Path(file).read_bytes() == before

    def test_a_model_in_the_cache_of_hugging_face(self, here, monkeypatch):
        snapshot = here / "hub" / "models--org--name" / "snapshots" / "1"
        snapshot.mkdir(parents=True)
        (snapshot.parents[1] / "refs").mkdir()
        (snapshot.parents[1] / "refs" / "main").write_text("1")
        save_file({"fc.weight": matrix()}, snapshot / "model.safetensors")
        (snapshot.parents[1] / "blobs").mkdir()
        blob = snapshot.parents[1] / "blobs" / "c"
        blob.write_text("{}")
        (snapshot / "config.json").symlink_to(blob)
        monkeypatch.setenv("HF_HUB_CACHE", str(here / "hub"))
        for file in (snapshot / "config.json", blob):
            assert run("analyze", "org/name", "--json", file) == 1
        assert blob.read_text() == "{}"


class TestWhatIsThere:
    @pytest.mark.parametrize("file", ["b.safetensors", "x.npy", "x.npz", "x.onnx", "x.pt", "m.safetensors.index.json"])
    def test_a_checkpoint_is_no_older_report(self, file, here, capsys):
        beginnings = {"x.onnx": b"\x08\x07\x12\x07pytorch", "x.pt": b"\x80\x02}q\x00.", "x.npz": b"PK\x03\x04\x14\x00"}
        if file.endswith("index.json"):
            Path(file).write_text('{"weight_map": {}}')
        elif file == "x.npy":
            np.save(file, matrix())
        elif file in beginnings:
            Path(file).write_bytes(beginnings[file])
        before = contents(here)
        for option in ("--json", "--csv", "--html"):
            assert run("analyze", A, option, file) == 1
            assert f"{file}: not replaced" in capsys.readouterr().err
        assert contents(here) == before

    def test_texts_and_empty_files_are_replaced(self, here):
        Path("report.json").write_text('{"old": "ü"}')
        Path("empty").write_text("")
        for file in ("report.json", "report.json", "empty"):
            assert run("analyze", A, "--json", file) == 0
            assert json.loads(Path(file).read_text())["schema"] == "mpfast.analysis/1"

    def test_moments_replace_moments_alone(self, here):
        sums = [InputSum(["fc"], [3], [np.eye(4)])]
        for _ in range(2):
            write_moments("moments.safetensors", sums, {}, {})
        for file in (A, "texts.txt"):
            with pytest.raises(FileExistsError, match="not what mpfast writes there"):
                write_moments(file, sums, {}, {})

    def test_devices_take_whatever_comes(self, here):
        check_target("/dev/null", reads=["/dev/null"])
        assert run("analyze", A, "--json", "/dev/null", "--csv", "/dev/null") == 0


class TestTwoOfOneCommand:
    @pytest.mark.parametrize(
        "command",
        [
            ["analyze", A, "--json", "x", "--csv", "x"],
            ["analyze", A, "--csv", "x", "--html", "./x"],
            ["budget", A, "--sparsity", "0.5", "-o", "x", "--json", "model/../x"],
            ["moments", "model", "--texts", "texts.txt", "-o", "x", "--json", "x"],
        ],
    )
    def test_are_not_one_file(self, command, here, capsys):
        assert run(*command) == 2
        assert "are one file" in capsys.readouterr().err
        assert not Path("x").exists()
        Path("x").symlink_to("y")
        assert run(*command) == 2

    def test_and_none_lies_in_the_directory_that_is_written(self, here, capsys):
        prune = ["prune", A, "--sparsity", "0.5", "--method", "magnitude", "-o", "out"]
        assert run(*prune) == 0
        before = contents(here / "out")
        assert run(*prune, "--overwrite", "--json", "out/budget.json") == 2
        assert "lies in out, which -o writes as a whole" in capsys.readouterr().err
        assert contents(here / "out") == before
