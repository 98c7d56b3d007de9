"""The HTML report, and results that are kept from one analysis to the next."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import numpy as np
import pytest

import mpfast
from mpfast.spectra import Histogram, Picture

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def analysis():
    rng = np.random.default_rng(0)
    model = {}
    for i in range(3):
        signal = 40 * np.outer(rng.standard_normal(96), rng.standard_normal(64)) / 96
        model[f"blocks.{i}.attn.weight"] = rng.standard_normal((96, 64)) + signal
        model[f"blocks.{i}.mlp.weight"] = rng.standard_normal((128, 64))
    model["head </script><b>&.weight"] = rng.standard_normal((32, 64))
    model["bias"] = np.zeros(3)
    return mpfast.analyze(model)


def test_histograms_sum_to_one(analysis):
    for row in analysis:
        assert 0.9 < sum(row.histogram.shares) <= 1 + 1e-6
        assert row.histogram.spikes[0] == max(row.histogram.spikes)
    assert Histogram.of(mpfast.spectrum(np.zeros((20, 30)))) is None


def test_reports_are_self_contained(analysis, tmp_path):
    analysis.to_html(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page == analysis.to_html()
    assert not re.search(r"""(src|href)\s*=|url\(|@import|https?://(?!www\.w3\.org/2000/svg)""", page)
    assert page.count("</script>") == 2  # a name cannot end the data
    found = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)
    data = json.loads(found[1])
    assert [layer["name"] for layer in data["layers"]] == [row.name for row in analysis]
    assert len(data["budget"]["methods"]["magnitude"]) == len(data["budget"]["steps"])


def test_reports_of_nothing():
    page = mpfast.analyze({"bias": np.zeros(3)}).to_html()
    assert '"budget":null' in page


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_a_browser_draws_the_report(analysis, tmp_path):
    clicks = """<script>
      document.querySelector('#layers th:nth-child(4)').click();
      document.querySelector('#layers tr.layer').click();
      document.getElementById('filter').dispatchEvent(new Event('input'));
      document.querySelectorAll('#layers tr.layer').forEach((row) => row.click());
      document.body.dataset.width = document.documentElement.scrollWidth <= window.innerWidth;
    </script></body>"""
    (tmp_path / "report.html").write_text(analysis.to_html().replace("</body>", clicks), encoding="utf-8")
    for width in ("1200", "380"):
        command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900", "--dump-dom"]
        done = subprocess.run(
            [*command, f"--user-data-dir={tmp_path / 'profile'}", (tmp_path / "report.html").as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
        )
        dom = done.stdout
        assert dom.count('<tr class="layer"') == len(analysis)
        assert dom.count("<svg") == len(analysis)
        assert dom.count('class="law"') == len(analysis)
        assert 'data-width="true"' in dom  # nothing sticks out sideways
        first = re.search(r'<tr class="layer"[^>]*><td>([^<]*)', dom)[1]
        most = max(analysis, key=lambda row: row.spikes)
        assert most.spikes == next(row.spikes for row in analysis if row.name == first.removesuffix(" !"))


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
    page = re.search(r'id="data">(.*?)</script>', analysis.to_html(), re.DOTALL)[1]
    (drawn,) = json.loads(page)["layers"]
    assert drawn["end"] == one.get_xlim()[1]
    np.testing.assert_array_equal(drawn["law"], one.lines[0].get_data())
    np.testing.assert_array_equal(other.lines[0].get_data(), one.lines[0].get_data())
    heights, edges = bars(one)
    # Areas are shares of all values; those that the picture does not show are counted.
    assert heights @ np.diff(edges) == pytest.approx(float(spectrum.cdf(edges[-1])), abs=1e-6)
    (text,) = (text.get_text() for text in one.texts)
    assert text.startswith(f"{np.count_nonzero(spectrum.values > one.get_xlim()[1])} more to the right")
    s, law = drawn["law"]
    assert np.trapezoid(law, s) == pytest.approx(spectrum.edge.bulk_fraction, abs=0.01)


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
