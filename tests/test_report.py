"""The HTML report, and results that are kept from one analysis to the next."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import numpy as np
import pytest

import mpfast
from mpfast.models.histogram import Histogram

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
    assert changed[1:] == first[1:]
    for file in (tmp_path / "kept").iterdir():
        file.write_text("{")
    assert [row.sigma_plus for row in mpfast.analyze(model, cache=tmp_path / "kept")] == [
        row.sigma_plus for row in changed
    ]
