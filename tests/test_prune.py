"""Pruned checkpoints: the right weights, nothing else touched, nothing half-written."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import random
import shutil
import textwrap
from functools import partial

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mpfast
from mpfast import CheckpointError, _core, masks
from mpfast.arrays.bfloat16 import narrowed
from mpfast.checkpoints.mask_files import MaskFile
from mpfast.checkpoints.safetensors import SafetensorsFile
from mpfast.models.budget import Budget

from .references import run_python

LAYERS = ("blocks.0.attn.weight", "blocks.0.mlp.weight", "blocks.1.attn.weight", "blocks.1.mlp.weight")


def weights(seed=0, size=64):
    rng = np.random.default_rng(seed)
    found = {"embed.weight": rng.standard_normal((200, size), dtype=np.float32)}
    for number, name in enumerate(LAYERS):
        shape = (size, size) if "attn" in name else (4 * size, size)
        found[name] = (1 + number) * rng.standard_normal(shape, dtype=np.float32)
        found[name.replace("weight", "bias")] = rng.standard_normal(shape[0], dtype=np.float32)
    found["steps"] = np.arange(5)
    return found


@pytest.fixture
def model(tmp_path):
    """A model directory of two shards with an index, a configuration and a tokenizer."""
    directory = tmp_path / "model"
    (directory / "tokenizer").mkdir(parents=True)
    tensors = weights()
    parts = {"model-1.safetensors": list(tensors)[:5], "model-2.safetensors": list(tensors)[5:]}
    for file, names in parts.items():
        save_file({name: tensors[name] for name in names}, directory / file, {"format": "pt", "part": file})
    index = {"metadata": {}, "weight_map": {name: file for file, names in parts.items() for name in names}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "config.json").write_text('{"a": 1}')
    (directory / "tokenizer" / "vocab.txt").write_text("a b c")
    (directory / "pytorch_model.bin").write_bytes(b"stale")
    (directory / ".git").mkdir()
    (directory / ".git" / "config").write_text("private")
    return directory


def all_tensors(directory):
    found = {}
    for path in sorted(directory.glob("model*.safetensors")):
        found |= load_file(path)
    return found


def digest(directory):
    state = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        if path.is_file() and path.name != ".mpfast.json":  # which says when
            state.update(path.name.encode() + path.read_bytes())
    return state.hexdigest()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"sparsity": 0.37, "method": "magnitude"}, lambda W: masks.magnitude(W, 0.37)),
        ({"sparsity": 0.5}, lambda W: masks.magnitude(W, 0.5, scope="row")),
        ({"sparsity": 0.5, "method": "spectral_budget"}, lambda W: masks.spectral_budget(W, 0.5)),
        ({"sparsity": 0.1, "method": "spectral_budget"}, lambda W: masks.spectral_budget(W, 0.1)),
        ({"sparsity": 0.6, "method": "hill"}, lambda W: masks.spectral_budget(W, 0.6, signal="hill")),
        ({"sparsity": 0.25, "method": "uniform"}, lambda W: masks.magnitude(W, 0.25, scope="layer")),
        ({"pattern": "2:4"}, lambda W: {name: masks.n_m(w, 2, 4) for name, w in W.items()}),
        ({"sparsity": 0.0, "method": "magnitude"}, lambda W: masks.magnitude(W, 0.0)),
        ({"sparsity": 1.0, "method": "magnitude"}, lambda W: masks.magnitude(W, 1.0)),
    ],
)
def test_the_weights_that_the_masks_in_memory_prune_are_zero(model, tmp_path, options, expected):
    before = digest(model)
    result = mpfast.prune(model, tmp_path / "out", **options)
    dense, pruned = all_tensors(model), all_tensors(tmp_path / "out")
    wanted = expected({name: dense[name] for name in LAYERS})
    stored = MaskFile(tmp_path / "out" / "masks.safetensors")
    assert list(dense) == list(pruned)
    assert set(stored) == set(LAYERS) == {row.name for row in result.budget}
    for name in dense:
        keep = wanted.get(name, np.ones(dense[name].shape, bool))
        np.testing.assert_array_equal(pruned[name], dense[name] * keep)
        if name in stored:
            np.testing.assert_array_equal(stored[name], keep)
    assert digest(model) == before
    assert Budget.from_json(tmp_path / "out" / "budget.json") == result.budget
    found = mpfast.verify(tmp_path / "out")
    assert found.ok, found.problems
    assert (found.layers, found.untouched) == (4, len(dense) - 4)


def test_options_that_do_not_go_together(model):
    with pytest.raises(ValueError, match="chosen by magnitude"):
        mpfast.prune(model, pattern="2:4", method="hill")
    with pytest.raises(ValueError, match="pattern must be"):
        mpfast.prune(model, pattern=(2, 4))
    with pytest.raises(ValueError, match=r"or a Budget, as Budget\.from_json reads, not 'budget\.json'"):
        mpfast.prune(model, budget="budget.json")
    with pytest.raises(TypeError, match="Budget"):
        mpfast.prune(model, budget=0.5)
    with pytest.warns(UserWarning, match="exclude='blocks' matches none"):
        mpfast.prune(model, sparsity=0.5, method="magnitude", exclude="blocks")


def test_layout_and_companions(model, tmp_path):
    mpfast.prune(model, tmp_path / "out", sparsity=0.5, method="magnitude")
    written = sorted(
        str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()
    )
    assert written == [
        ".mpfast.json",
        "budget.json",
        "config.json",
        "masks.safetensors",
        "model-1.safetensors",
        "model-2.safetensors",
        "model.safetensors.index.json",
        "tokenizer/vocab.txt",
    ]
    for file in ("model-1.safetensors", "model-2.safetensors"):
        assert SafetensorsFile(tmp_path / "out" / file).header == SafetensorsFile(model / file).header


def test_bfloat16_and_ties(tmp_path):
    rng = np.random.default_rng(0)
    bits = {name: narrowed(rng.standard_normal((96, 80))) for name in ("a.weight", "b.weight")}
    header, data = {}, b""
    for name, array in bits.items():
        header[name] = {"dtype": "BF16", "shape": [96, 80], "data_offsets": [len(data), len(data) + array.nbytes]}
        data += array.tobytes()
    text = json.dumps(header).encode()
    (tmp_path / "m.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    result = mpfast.prune(tmp_path / "m.safetensors", tmp_path / "out", sparsity=0.41, method="magnitude")
    keep = [np.empty((96, 80), bool), np.empty((96, 80), bool)]
    matrices = [_core.Matrix(array, "bfloat16") for array in bits.values()]
    _core.prune_smallest(matrices, [1.0, 1.0], keep, int(0.41 * 2 * 96 * 80), 1)
    found = MaskFile(tmp_path / "out" / "masks.safetensors")
    pruned = SafetensorsFile(tmp_path / "out" / "m.safetensors")
    for name, mask in zip(bits, keep, strict=True):
        np.testing.assert_array_equal(found[name], mask)
        np.testing.assert_array_equal(pruned.read(name), bits[name] * mask)
    assert result.budget.pruned == int(0.41 * 2 * 96 * 80)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@pytest.mark.parametrize("size", [40, 1100])
def test_a_search_of_matrices_one_at_a_time_finds_the_same_cut(dtype, size):
    rng = np.random.default_rng(size)
    arrays = [np.round(rng.standard_normal((size, size)), 2).astype(dtype) for _ in range(3)]
    matrices = [_core.Matrix(array, dtype) for array in arrays]
    for scales, pruned in itertools.product(([1.0, 0.5, 3.0], [1.0] * 3), (0, 1, size * size, 3 * size * size)):
        together = [np.empty((size, size), bool) for _ in arrays]
        assert _core.prune_smallest(matrices, scales, together, pruned, 2) is None
        search = _core.CutSearch(3 * size * size, pruned, [(dtype, scale) for scale in scales])
        while not search.done:
            for k in (2, 0, 1):
                assert search.count(matrices[k], scales[k], 1 + k) is None
            search.narrow()
        for k in range(3):
            keep = np.empty((size, size), bool)
            search.write(matrices[k], scales[k], keep, 2)
            np.testing.assert_array_equal(keep, together[k])


def test_a_search_that_missed_a_matrix_says_so():
    search = _core.CutSearch(100, 10, [("float32", 1.0)])
    with pytest.raises(RuntimeError, match="counted once"):
        search.narrow()
    with pytest.raises(RuntimeError, match="not done"):
        search.write(_core.Matrix(np.ones((10, 10), np.float32), "float32"), 1.0, np.empty((10, 10), bool), 1)


def test_models_in_memory():
    model = weights()
    before = {name: array.copy() for name, array in model.items()}
    result = mpfast.prune(model, sparsity=0.5, method="magnitude")
    expected = masks.magnitude({name: model[name] for name in LAYERS}, 0.5)
    for name in LAYERS:
        np.testing.assert_array_equal(result.masks[name], expected[name])
    assert result.out is None
    for name, array in model.items():
        np.testing.assert_array_equal(array, before[name])


def test_a_module_is_written_as_one_file(tmp_path):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(32, 48), torch.nn.BatchNorm1d(48), torch.nn.Linear(48, 16))
    model.half()
    result = mpfast.prune(model, tmp_path / "out", sparsity=0.5, method="magnitude")
    assert all(isinstance(mask, torch.Tensor) for mask in result.masks.values())
    written = load_file(tmp_path / "out" / "model.safetensors")
    state = model.state_dict()
    assert list(written) == list(state)
    for name, tensor in state.items():
        keep = result.masks.get(name, torch.ones_like(tensor, dtype=torch.bool))
        np.testing.assert_array_equal(written[name], (tensor * keep).numpy())


def test_a_budget_decides_layer_by_layer(model, tmp_path):
    budget = mpfast.analyze(model).budget(0.4, ceiling={"*attn*": 0.2}, exclude="blocks.1.attn.weight")
    result = mpfast.prune(model, tmp_path / "out", budget=budget)
    assert [row.pruned for row in result.budget] == [row.pruned for row in budget]
    assert "blocks.1.attn.weight" in {tensor.name for tensor in result.skipped}
    assert mpfast.verify(tmp_path / "out").ok


def test_a_budget_keeps_its_pattern():
    model = {name: tensor for name, tensor in weights().items() if name in LAYERS}
    budget = mpfast.prune(model, pattern="2:4").budget
    again = mpfast.prune(model, budget=budget)
    assert again.budget == budget
    for mask in again.masks.values():
        np.testing.assert_array_equal(np.count_nonzero(mask.reshape(-1, 4), axis=1), 2)
    row = dataclasses.replace(budget[0], pruned=budget[0].pruned - 1)
    with pytest.raises(ValueError, match="pattern 2:4 does not prune"):
        mpfast.prune(model, budget=dataclasses.replace(budget, layers=(row,)))


def test_an_index_of_other_files_is_not_copied(tmp_path):
    """Beside one file with all weights, as some publishers put it, lies the index of the same model in shards."""
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    save_file(weights(), directory / "consolidated.safetensors")
    index = {"weight_map": dict.fromkeys(weights(), "model-1.safetensors")}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    mpfast.prune(directory / "consolidated.safetensors", tmp_path / "out", sparsity=0.5, method="magnitude")
    assert mpfast.verify(tmp_path / "out").ok


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "one of sparsity, pattern, budget and masks"),
        ({"sparsity": 0.5, "pattern": "2:4"}, ValueError, "one of sparsity"),
        ({"sparsity": 1.5}, ValueError, "sparsity must lie"),
        ({"sparsity": 0.5, "threads": 0}, ValueError, r"prune\(\): threads must be a positive integer"),
        ({"sparsity": 0.5, "method": "guess"}, ValueError, "method must be"),
        ({"pattern": "4:2"}, ValueError, "1 <= n < m"),
        ({"sparsity": 0.5, "include": "embed.nothing"}, ValueError, "matches none"),
        ({"pattern": "3:7"}, ValueError, "no layer is left"),
    ],
)
def test_bad_options(model, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        mpfast.prune(model, tmp_path / "out", **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_layer_that_is_not_finite(tmp_path):
    tensors = weights()
    tensors[LAYERS[2]][3, 5] = np.nan
    save_file(tensors, tmp_path / "m.safetensors")
    for options in ({"sparsity": 0.5, "method": "magnitude"}, {"pattern": "2:4"}):
        with pytest.raises(ValueError, match=r"blocks.1.attn.weight has 1 non-finite entry .* \(3, 5\)"):
            mpfast.prune(tmp_path / "m.safetensors", tmp_path / "out", **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.safetensors"]


def test_an_existing_directory_is_kept_unless_told_otherwise(model, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    with pytest.raises(FileExistsError, match="not mpfast's"):
        mpfast.prune(model, tmp_path / "out", sparsity=0.5)
    assert (tmp_path / "out" / "precious").exists()
    with pytest.raises(FileExistsError, match="not marked"):
        mpfast.prune(model, tmp_path / "out", sparsity=0.5, overwrite=True)
    for forged in ("{}", '{"schema": "other/1"}', "mpfast.output/1"):
        (tmp_path / "out" / ".mpfast.json").write_text(forged)
        with pytest.raises(FileExistsError, match="not marked"):
            mpfast.prune(model, tmp_path / "out", sparsity=0.5, overwrite=True)
    assert (tmp_path / "out" / "precious").read_text() == "x"
    shutil.rmtree(tmp_path / "out")
    mpfast.prune(model, tmp_path / "out", sparsity=0.3)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        mpfast.prune(model, tmp_path / "out", sparsity=0.5)
    mpfast.prune(model, tmp_path / "out", sparsity=0.5, overwrite=True)
    assert mpfast.verify(tmp_path / "out").ok
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]


@pytest.mark.parametrize("write", [partial(mpfast.prune, sparsity=0.5), partial(mpfast.compress, rank=2)])
def test_overwriting_never_takes_the_source_along(write, model, tmp_path, monkeypatch):
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    (tmp_path / "link").symlink_to(model)
    for out in (model, tmp_path, tmp_path / "link", f"{model}/../"):
        with pytest.raises(FileExistsError, match=r"lies there|is a symbolic link to"):
            write(model, out, overwrite=True)
    other = tmp_path / "other"
    other.mkdir()
    (other / "linked.safetensors").symlink_to(next(model.glob("*.safetensors")))
    with pytest.raises(FileExistsError, match="lies there"):
        write(other / "linked.safetensors", other, overwrite=True)
    (tmp_path / "elsewhere").symlink_to(other)
    shutil.rmtree(other)
    other.mkdir()
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match=rf"elsewhere: is a symbolic link to {other}"):
            write(model, tmp_path / "elsewhere", overwrite=overwrite)
    assert (list(other.iterdir()), (tmp_path / "elsewhere").is_symlink()) == ([], True)
    assert not list(tmp_path.glob(".*"))
    monkeypatch.chdir(other)
    with pytest.raises(FileExistsError, match="lies there"):
        write(model, ".", overwrite=True)
    assert {path: path.read_bytes() for path in before} == before


def test_a_full_disk_leaves_nothing(model, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        mpfast.prune(model, tmp_path / "out", sparsity=0.5, method="magnitude")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


KILLED = """
    import os, signal, sys, threading
    import mpfast
    calls, last = 0, int(sys.argv[3])
    def count(frame, event, argument):
        global calls
        calls += 1
        if calls == last:
            os.kill(os.getpid(), signal.SIGKILL)
    threading.setprofile(count)
    sys.setprofile(count)
    mpfast.prune(sys.argv[1], sys.argv[2], sparsity=0.5, method="magnitude")
    sys.setprofile(None)
    print(calls)
"""


@pytest.mark.slow
def test_killed_at_any_moment_and_run_again(tmp_path, monkeypatch):
    tensors = {
        f"h.{i}.weight": np.random.default_rng(i).standard_normal((700, 700), dtype=np.float32) for i in range(12)
    }
    source = tmp_path / "model"
    source.mkdir()
    for part in range(4):
        names = list(tensors)[3 * part : 3 * part + 3]
        save_file({name: tensors[name] for name in names}, source / f"model-{part}.safetensors")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")  # the time that the budget notes
    before = digest(source)
    out = tmp_path / "out"
    script = textwrap.dedent(KILLED)
    # A moment is a number of calls and returns of Python functions, so that every run is killed while it works.
    whole = run_python("-c", script, str(source), str(tmp_path / "whole"), "0")
    assert whole.returncode == 0, whole.stderr
    expected = digest(tmp_path / "whole")
    generator = random.Random(0)
    for _ in range(20):
        run_python("-c", script, str(source), str(out), str(generator.randrange(1, int(whole.stdout))))
        assert digest(source) == before
        if out.exists():  # it was done by then
            assert digest(out) == expected
            shutil.rmtree(out)
    run = run_python("-c", script, str(source), str(out), "0")
    assert run.returncode == 0, run.stderr
    assert digest(out) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out", "whole"]


def test_what_another_job_left_is_not_used(model, tmp_path):
    staging = tmp_path / ".out.mpfast-partial"
    staging.mkdir()
    (staging / "model-1.safetensors").write_bytes(b"rubbish")
    (staging / ".progress.json").write_text(json.dumps({"job": "another", "done": ["model-1.safetensors"]}))
    (staging / "stray").mkdir()
    mpfast.prune(model, tmp_path / "out", sparsity=0.5, method="magnitude")
    assert mpfast.verify(tmp_path / "out").ok
    assert not (tmp_path / "out" / "stray").exists()


def damage(directory, name, change):
    file = next(p for p in directory.glob("model*.safetensors") if name in SafetensorsFile(p).spans)
    begin, _ = SafetensorsFile(file).spans[name]
    content = bytearray(file.read_bytes())
    content[begin + 400 : begin + 404] = change
    file.write_bytes(content)


def test_verify_finds_what_is_wrong(model, tmp_path):
    out = tmp_path / "out"
    mpfast.prune(model, out, pattern="2:4")
    damage(out, "blocks.1.mlp.bias", b"\x12\x34\x56\x78")
    damage(out, "blocks.0.mlp.weight", b"\x12\x34\x56\x3f")
    found = mpfast.verify(out)
    assert any("blocks.1.mlp.bias: is not pruned, but differs" in problem for problem in found.problems)
    assert any(problem.startswith("blocks.0.mlp.weight:") for problem in found.problems)
    document = json.loads((out / "budget.json").read_text())
    document["layers"][0]["pruned"] += 1
    (out / "budget.json").write_text(json.dumps(document))
    assert any("the budget" in problem for problem in mpfast.verify(out).problems)
    shutil.move(model, tmp_path / "moved")
    assert mpfast.verify(out).source is None
    assert mpfast.verify(out, tmp_path / "moved").source is not None
    with pytest.raises(FileNotFoundError):
        mpfast.verify(tmp_path / "moved")


def test_damaged_mask_files(tmp_path):
    save_file({"w": np.zeros(3, np.uint8)}, tmp_path / "a.safetensors")
    save_file({"w": np.zeros(3, np.uint8)}, tmp_path / "b.safetensors", {"format": "mpfast.masks/1", "shapes": "[]"})
    save_file(
        {"w": np.zeros(3, np.uint8)}, tmp_path / "c.safetensors", {"format": "mpfast.masks/1", "shapes": '{"w": [40]}'}
    )
    for name, message in (("a", "no mask file"), ("b", "damaged"), ("c", "do not have the sizes")):
        with pytest.raises(CheckpointError, match=message):
            MaskFile(tmp_path / f"{name}.safetensors")
