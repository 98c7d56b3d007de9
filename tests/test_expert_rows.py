"""Mixtures of many experts: summed up in every report, with those that stand out named, and every row kept."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from safetensors.numpy import save_file

import mpfast
from mpfast import Analysis
from mpfast.models import FENCE, ExpertSummary, split_experts

from .pages import page_data

EXPERTS, BLOCKS = 12, 2
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


@pytest.fixture
def run(capsys):
    """Run the command line; return its exit code, output and error output."""
    main = pytest.importorskip("mpfast.cli").main

    def run(*arguments):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as error:
            code = error.code
        out, err = capsys.readouterr()
        return code or 0, out, err

    return run


def mixture(experts=EXPERTS):
    """Gaussian experts of one scale; one has four strong directions, one is a hundred times as large."""
    rng = np.random.default_rng(0)
    model = {}
    for block in range(BLOCKS):
        for projection in PROJECTIONS:
            shape = (32, 48) if projection == "down_proj" else (48, 32)
            for expert in range(experts):
                name = f"layers.{block}.mlp.experts.{expert}.{projection}.weight"
                model[name] = rng.standard_normal(shape)
        model[f"layers.{block}.attn.q_proj.weight"] = rng.standard_normal((32, 32))
    strong = model["layers.0.mlp.experts.5.up_proj.weight"]
    strong += 20 * np.linalg.qr(rng.standard_normal((48, 4)))[0] @ np.linalg.qr(rng.standard_normal((32, 4)))[0].T
    model["layers.1.mlp.experts.6.down_proj.weight"] *= 100
    return model


@pytest.fixture(scope="module")
def analysis():
    return mpfast.analyze(mixture())


def test_a_summary_holds_what_its_rows_say(analysis):
    others, summaries = split_experts(analysis.layers)
    assert [row.name for row in others] == [f"layers.{block}.attn.q_proj.weight" for block in range(BLOCKS)]
    assert [summary.name for summary in summaries] == [
        f"layers.{block}.mlp.experts.*.{projection}.weight" for block in range(BLOCKS) for projection in PROJECTIONS
    ]
    assert summaries == list(analysis.expert_summaries())
    for summary in summaries:
        pattern = re.compile(re.escape(summary.name).replace(r"\*", r"\d+"))
        rows = [row for row in analysis if pattern.fullmatch(row.name)]
        assert len(rows) == summary.experts == EXPERTS
        for measure in ("sigma_plus", "signals", "ks"):
            values = np.array([getattr(row, measure) for row in rows])
            np.testing.assert_allclose(getattr(summary, measure), np.percentile(values, [0, 25, 50, 75, 100]))
        assert sum(summary.verdicts.values()) == EXPERTS
    assert len(analysis) == BLOCKS * (3 * EXPERTS + 1)


def test_experts_that_stand_out_are_named(analysis):
    found = {(outlier.name, outlier.measure) for summary in analysis.expert_summaries() for outlier in summary.outliers}
    assert ("layers.0.mlp.experts.5.up_proj.weight", "signals") in found
    assert ("layers.1.mlp.experts.6.down_proj.weight", "sigma_plus") in found
    assert {name for name, measure in found if measure != "ks"} == {
        "layers.0.mlp.experts.5.up_proj.weight",
        "layers.1.mlp.experts.6.down_proj.weight",
    }
    for summary in analysis.expert_summaries():
        for outlier in summary.outliers:
            quartiles = getattr(summary, outlier.measure)
            reach = FENCE * (quartiles.third - quartiles.first)
            assert not quartiles.first - reach <= outlier.value <= quartiles.third + reach
            assert f".experts.{outlier.expert}." in outlier.name


def test_equal_experts_have_no_outliers():
    """Counts that differ by one, and edges that differ by rounding, are no news, however narrow the quartiles."""
    W = np.random.default_rng(0).standard_normal((48, 32))
    model = {f"experts.{e}.up.weight": W[np.random.default_rng(e).permutation(48)] for e in range(16)}
    (summary,) = mpfast.analyze(model).expert_summaries()
    assert summary.outliers == ()
    assert summary.sigma_plus.highest == pytest.approx(summary.sigma_plus.lowest, rel=1e-9)


def test_few_experts_are_reported_one_by_one():
    analysis = mpfast.analyze(mixture(experts=7))
    assert analysis.expert_summaries() == ()
    assert len(analysis.to_document(expert_rows="summary")["layers"]) == len(analysis)


@pytest.mark.parametrize("config", [None, {"model_type": "gpt_oss", "hidden_size": 32}])
def test_stacks_are_summed_up_by_their_parts(config, tmp_path):
    stack = np.random.default_rng(0).standard_normal((9, 32, 48))
    save_file({"m.experts.gate_up_proj": stack}, tmp_path / "model.safetensors")
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    names = [summary.name for summary in mpfast.analyze(tmp_path).expert_summaries()]
    part = "m.experts.gate_up_proj[*{}]"
    assert names == ([part.format("")] if config is None else [part.format(",gate"), part.format(",up")])


def test_every_row_is_kept_where_it_is_asked_for(analysis, tmp_path):
    assert Analysis.from_json(analysis.to_json()) == analysis
    short = json.loads(analysis.to_json(expert_rows="summary"))
    whole = json.loads(analysis.to_json())
    assert (short["expert_rows"], whole["expert_rows"]) == ("summary", "all")
    assert [len(found["layers"]) for found in (short, whole)] == [BLOCKS, len(analysis)]
    assert short["experts"] == whole["experts"]
    assert short["experts"][1]["outliers"][-1] == {
        "name": "layers.0.mlp.experts.5.up_proj.weight",
        "expert": 5,
        "measure": "signals",
        "value": 4.0,
    }
    analysis.to_json(tmp_path / "short.json", expert_rows="summary")
    with pytest.raises(ValueError, match=r"summaries of experts in place of their rows; write it with expert_rows"):
        Analysis.from_json(tmp_path / "short.json")
    assert analysis.to_csv().count("\n") == len(analysis) + 1
    for call in (analysis.to_json, analysis.to_html, analysis.to_document):
        with pytest.raises(ValueError, match=r"expert_rows must be one of summary, all, not 'some'"):
            call(expert_rows="some")


def test_pages_have_summaries(analysis):
    data = page_data(analysis.to_html())
    assert len(data["table"]["rows"]) == BLOCKS
    record = json.loads(data["document"])
    assert [row["name"] for row in record["experts"]] == [summary.name for summary in analysis.expert_summaries()]
    # Shares of a budget are those of the experts together.
    assert len(data["budget"]["names"]) == BLOCKS * 4
    whole = page_data(analysis.to_html(expert_rows="all"))
    assert len(whole["table"]["rows"]) == len(analysis)
    for page in (data, whole):
        shares = [share for steps in page["budget"]["methods"].values() for row in steps for share in row]
        assert all(0 <= share <= 1000 for share in shares)
    assert json.loads(page_data(mpfast.analyze({"a": np.eye(16)}).to_html())["document"])["experts"] == []


def test_the_command_line_prints_summaries(run, tmp_path):
    save_file(mixture(), tmp_path / "m.safetensors")
    code, out, _ = run(
        "analyze", tmp_path / "m.safetensors", "--json", tmp_path / "a.json", "--html", tmp_path / "a.html"
    )
    assert code == 0
    rows = [line for line in out.splitlines() if re.match(r"layers\.\d", line)]
    assert len(rows) == BLOCKS * 4
    assert re.search(r"layers\.0\.mlp\.experts\.\*\.up_proj\.weight.* 12 +48x32 ", out)
    assert re.search(r"  layers\.1\.mlp\.experts\.\*\.down_proj\.weight: .*6 \(sigma\+ \d+", out)
    assert len(json.loads((tmp_path / "a.json").read_text())["layers"]) == BLOCKS
    assert len(page_data((tmp_path / "a.html").read_text())["table"]["rows"]) == BLOCKS
    for verbose in ([], ["--verbose"]):
        code, out, _ = run("analyze", tmp_path / "m.safetensors", *verbose)
        assert len(out.splitlines()) < 60
    code, out, _ = run("analyze", tmp_path / "m.safetensors", "--expert-rows", "all", "--json", "-")
    assert Analysis.from_json(out).expert_summaries()
    code, out, _ = run("analyze", tmp_path / "m.safetensors", "--expert-rows", "all")
    assert len([line for line in out.splitlines() if re.match(r"layers\.\d", line)]) == BLOCKS * (3 * EXPERTS + 1)
    # Conditions look at every expert.
    code, *_ = run("analyze", tmp_path / "m.safetensors", "--fail-on", "sigma_plus > 500")
    assert code == 1


def test_summaries_of_what_is_not_defined():
    """A model equal to its base has no fits."""
    model = mixture()
    summaries = mpfast.analyze(model, base=model).expert_summaries()
    assert all(isinstance(summary, ExpertSummary) and summary.outliers == () for summary in summaries)
    assert {tuple(summary.verdicts) for summary in summaries} == {("equal",)}
