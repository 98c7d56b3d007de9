"""The HTML report, and results that are kept from one analysis to the next."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace

import numpy as np
import pytest

import mpfast
from mpfast.models import DIFF_COLUMNS, diff_figures, row_figures
from mpfast.models.html_report.columns import COMPARISON_COLUMNS, LAYER_COLUMNS
from mpfast.models.html_report.heat_map import short_types
from mpfast.spectra import Histogram, Picture

from .pages import HOSTILE, deep_model, page_data


@pytest.fixture(scope="module")
def analysis():
    return mpfast.analyze(deep_model())


def test_histograms_sum_to_one(analysis):
    for row in analysis:
        assert 0.9 < sum(row.histogram.shares) <= 1 + 1e-6
        assert row.histogram.spikes[0] == max(row.histogram.spikes)
    assert Histogram.of(mpfast.spectrum(np.zeros((20, 30)))) is None


def pages(analysis):
    rng = np.random.default_rng(1)
    other = {name: tensor + 0.1 * rng.standard_normal(tensor.shape) for name, tensor in deep_model().items()}
    yield analysis.to_html()
    yield analysis.compare(mpfast.analyze(other)).to_html()
    yield mpfast.diff(deep_model(), other).to_html()


def test_pages_are_self_contained_and_run_no_script_but_their_own(analysis):
    for page in pages(analysis):
        loads = re.findall(r"""(?:src|href)\s*=\s*"(?!#)|url\(|@import|https?://(?!www\.w3\.org/2000/svg)""", page)
        assert not loads
        assert page.count("</script>") == 2  # a name cannot end the data
        assert not re.search(r"<[^>]*\s(on\w+|style)=", page.partition('id="data"')[0])
        (script,) = re.findall(r'<script type="module">(.*?)</script>', page, re.DOTALL)
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function", script)
        (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
        policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1]
        digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
        assert policy.startswith("default-src 'none'; ")
        assert policy.endswith("style-src 'sha256-{}'; script-src 'sha256-{}'".format(*digests))


def test_files_hold_the_page(analysis, tmp_path):
    analysis.to_html(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == analysis.to_html()
    compared = analysis.compare(analysis)
    compared.to_html(tmp_path / "compared.html")
    assert (tmp_path / "compared.html").read_text(encoding="utf-8") == compared.to_html()


def test_rows_say_what_the_tables_elsewhere_say(analysis):
    data = page_data(analysis.to_html())
    fields = data["table"]["fields"]
    figures = row_figures(analysis)
    assert [column["heading"] for column in data["table"]["columns"]] == list(figures)
    for told, row in zip(data["table"]["rows"], analysis, strict=True):
        values = dict(zip(fields, told["values"], strict=True))
        assert values["name"] == row.name
        assert values["sigma_plus"] == pytest.approx(row.sigma_plus, rel=1e-7)
        assert told["cells"] == [figure(row) for heading, figure in figures.items() if heading != "layer"]


def test_every_heading_has_its_meaning(analysis):
    stored = replace(analysis[0], stored="fp8")
    assert set(row_figures([stored])) == set(LAYER_COLUMNS)
    assert {column.field for column in LAYER_COLUMNS.values()} <= set(stored.to_dict())
    for analyses in (True, False):
        assert set(diff_figures(analyses)) <= set(COMPARISON_COLUMNS)
    assert {column.field for column in COMPARISON_COLUMNS.values()} - {"name", "shape", "verdicts"} <= set(DIFF_COLUMNS)


def test_the_map_has_the_mean_of_all_layers_of_a_place():
    rng = np.random.default_rng(0)
    model = {f"h.{at}.{part}.weight": rng.standard_normal((32, 48)) for at in (0, 2) for part in ("q", "k")}
    model |= {f"h.2.mlp.experts.{e}.up.weight": rng.standard_normal((32, 48)) for e in range(9)}
    model["head.weight"] = rng.standard_normal((32, 48))
    analysis = mpfast.analyze(model)
    data = page_data(analysis.to_html())
    heat = data["heat"]
    assert heat["labels"] == ["q", "k", "mlp.experts.#.up", "head"]
    assert heat["blocks"] == [0, 2, None]
    # Experts that are summed up in the table are on the map one by one.
    assert len(data["table"]["rows"]) == 5
    assert sum(count for _, _, count, _ in heat["cells"]) == len(analysis) == 14
    at = [measure["name"] for measure in heat["measures"]].index("share of energy in the fitted noise")
    (cell,) = (cell for cell in heat["cells"] if cell[2] == 9)
    shares = [row.share for row in analysis if "experts" in row.name]
    assert (heat["types"][cell[0]], heat["blocks"][cell[1]]) == ("h.#.mlp.experts.#.up.weight", 2)
    np.testing.assert_allclose(cell[3][at], [np.mean(shares), min(shares), max(shares)], rtol=1e-3)
    for row in data["table"]["rows"]:
        assert any(row["place"] == cell[:2] for cell in heat["cells"])


def test_types_are_called_by_what_tells_them_apart():
    assert short_types(["a.#.q.weight", "a.#.k.weight", "embed.weight"]) == ["q", "k", "embed"]
    assert short_types(["m.block#.#.weight", "m.up#.#.weight"]) == ["block#", "up#"]
    assert short_types(["q.weight"]) == ["q.weight"]
    assert short_types(["a.#.b", "a.#.c", "b"]) == ["a.#.b", "a.#.c", "b"]  # b would be called twice
    assert short_types([]) == []


def test_two_thousand_layers_are_less_than_five_megabytes():
    """Rows of a trained model have about as many digits as this one, and half a dozen figures more that are not 0."""
    rng = np.random.default_rng(0)
    W = rng.standard_normal((96, 64)) + rng.standard_normal((96, 8)) @ rng.standard_normal((8, 64))
    W *= np.exp(0.4 * rng.standard_normal(64))
    (row,) = mpfast.analyze({"x.weight": W})
    layers = tuple(
        replace(row, name=f"model.layers.{at // 7}.self_attn.{'qkvogud'[at % 7]}_proj.weight") for at in range(2000)
    )
    analysis = mpfast.Analysis(layers, (), "model", 5e-3, 0, 1.0)
    assert len(analysis.to_html().encode()) < 5e6


def test_what_budgets_would_take_is_told_for_every_step(analysis):
    budget = page_data(analysis.to_html())["budget"]
    shares = budget["methods"]["magnitude"][budget["steps"].index(500)]
    for name, share in zip(budget["names"], shares, strict=True):
        assert share == pytest.approx(1000 * analysis.budget(0.5, method="magnitude")[name].sparsity, abs=0.5)


def test_reports_of_nothing():
    page = mpfast.analyze({"bias": np.zeros(3)}).to_html()
    assert page_data(page)["budget"] is None
    assert page_data(page)["heat"]["cells"] == []


def test_names_of_sources_and_layers_are_text(analysis):
    page = replace(analysis, source=HOSTILE).to_html()
    assert "<img" not in page
    assert page_data(page)["sources"] == {"model": HOSTILE}


def test_plots_are_drawn_on_the_axes_given(analysis):
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.switch_backend("Agg")
    _, ax = plt.subplots()
    assert analysis.plot(ax) is ax
    plt.close("all")


def test_results_are_kept_and_used_again(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    model = {"a.weight": rng.standard_normal((64, 96)), "qkv.weight": rng.standard_normal((96, 32), dtype=np.float32)}
    first = mpfast.analyze(model, cache=tmp_path / "kept")
    assert len(list((tmp_path / "kept").iterdir())) == 4

    def fail(*_, **__):
        raise AssertionError("analysed again")

    with monkeypatch.context() as patch:
        patch.setattr("mpfast.models.layer_job.measured_both", fail)
        again = mpfast.analyze(model, cache=tmp_path / "kept")
        with pytest.raises(AssertionError):
            mpfast.analyze(model, cache=tmp_path / "kept", seed=1)
    assert again.layers == first.layers
    model["a.weight"][3, 4] += 1e-9
    changed = mpfast.analyze(model, cache=tmp_path / "kept")
    assert changed[0].fro_norm != first[0].fro_norm
    assert changed.layers[1:] == first.layers[1:]
    for file in (tmp_path / "kept").iterdir():
        file.write_text("{")
    assert [row.sigma_plus for row in mpfast.analyze(model, cache=tmp_path / "kept")] == [
        row.sigma_plus for row in changed
    ]


def bars(ax):
    """Heights and places of the bars of a picture."""
    (found,) = ax.patches
    return found.get_data().values, found.get_data().edges


def test_all_pictures_of_a_layer_are_one(tmp_path):
    figure = pytest.importorskip("matplotlib.figure").Figure()
    rng = np.random.default_rng(0)
    W = rng.standard_normal((120, 160)) + 90 * np.outer(rng.standard_normal(120), rng.standard_normal(160)) / 120
    spectrum, analysis = mpfast.spectrum(W), mpfast.analyze({"fc.weight": W}, progress=False)
    one, other = spectrum.plot(figure.add_subplot()), analysis["fc.weight"].plot(figure.add_subplot())
    for mine, theirs in zip(bars(one), bars(other), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert one.get_xlim() == other.get_xlim()
    (drawn,) = (row["picture"] for row in page_data(analysis.to_html())["table"]["rows"])
    assert drawn["end"] == pytest.approx(one.get_xlim()[1], rel=1e-5)
    law = drawn["law"]
    heights = law["peak"] * np.array(law["heights"]) / 1000  # to a thousandth of the peak
    s = np.linspace(law["low"], law["high"], len(heights))
    np.testing.assert_allclose(s, one.lines[0].get_xdata(), rtol=1e-5)
    np.testing.assert_allclose(heights, one.lines[0].get_ydata(), atol=0.6e-3 * law["peak"])
    np.testing.assert_array_equal(other.lines[0].get_data(), one.lines[0].get_data())
    heights, edges = bars(one)
    # Areas are shares of all values; those that the picture does not show are counted.
    assert heights @ np.diff(edges) == pytest.approx(float(spectrum.cdf(edges[-1])), abs=1e-6)
    (text,) = (text.get_text() for text in one.texts)
    assert text.startswith(f"{np.count_nonzero(spectrum.values > one.get_xlim()[1])} more to the right")
    assert np.trapezoid(*other.lines[0].get_data()[::-1]) == pytest.approx(spectrum.edge.bulk_fraction, abs=0.01)


@pytest.mark.parametrize(
    ("spikes", "outside", "end", "beyond"),
    [
        ((), 0, 10.0, 0),
        ((12.0, 11.0), 2, 12.0, 0),
        ((90.0, 80.0, 12.0), 3, 25.0, 2),  # no wider than two and a half times the bars
        ((90.0, 80.0), 7, 10.0, 7),  # where the other five lie is not known
        ((90.0, 12.0), 7, 25.0, 1),  # the other five are below 12
        ((), 7, 10.0, 7),
    ],
)
def test_a_picture_knows_how_many_values_it_does_not_show(spikes, outside, end, beyond):
    shares = (1 - outside / 100,) + (0.0,) * 47
    picture = Picture.of(Histogram(0.0, 10.0, shares, spikes), (100, 200), None)
    assert (picture.end, picture.beyond) == (pytest.approx(1.02 * end), beyond)


def test_pictures_of_a_zero_matrix():
    figure = pytest.importorskip("matplotlib.figure").Figure()
    assert "zero" in mpfast.spectrum(np.zeros((20, 30))).plot(figure.add_subplot()).texts[0].get_text()
