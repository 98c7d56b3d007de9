"""HTML pages in a browser: what they draw, with a mouse, a keyboard and on a phone, in light and in dark."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest

import mpfast

from .browser import BROWSER, Browser
from .documents import file_of_package
from .pages import HOSTILE, deep_model

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium")

CHECKS = (Path(__file__).parent / "accessible.js").read_text(encoding="utf-8")
AXE = file_of_package("axe_playwright_python", "axe.min.js")
OPEN_ALL = "document.querySelectorAll('tr.opens [aria-expanded=false]').forEach((line) => line.click())"
NAMES = "#layer-table tr.layer bdi"


def changed_model():
    rng = np.random.default_rng(1)
    return {name: tensor + 0.2 * rng.standard_normal(tensor.shape) for name, tensor in deep_model().items()}


def convolutions():
    rng = np.random.default_rng(0)
    model = {f"net.slice{at % 3}.{at}.weight": rng.standard_normal((24, 8, 3, 3)) for at in range(9)}
    return {**model, "net.up1.conv.weight": rng.standard_normal((32, 16, 3, 3))}


def mixture():
    rng = np.random.default_rng(0)
    return {
        f"layers.{block}.mlp.experts.{expert}.{part}.weight": rng.standard_normal((24, 32))
        for block in range(3)
        for expert in range(9)
        for part in ("gate_proj", "up_proj")
    } | {f"layers.{block}.attn.q_proj.weight": rng.standard_normal((32, 32)) for block in range(3)}


@pytest.fixture(scope="module")
def analysis():
    return mpfast.analyze(deep_model())


@pytest.fixture(scope="module")
def pages(analysis, tmp_path_factory):
    """Files of pages by what they are of."""
    made = {
        "deep": analysis,
        "convolutions": mpfast.analyze(convolutions()),
        "mixture": mpfast.analyze(mixture()),
        "nothing": mpfast.analyze({"bias": np.zeros(3)}),
        "analyses": analysis.compare(mpfast.analyze(changed_model())),
        "checkpoints": mpfast.diff(deep_model(), {**changed_model(), "new.weight": np.eye(16)}),
    }
    folder = tmp_path_factory.mktemp("pages")
    for name, found in made.items():
        found.to_html(folder / f"{name}.html")
    return {name: folder / f"{name}.html" for name in made}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.mark.parametrize("page", ["deep", "convolutions", "mixture", "nothing", "analyses", "checkpoints"])
@pytest.mark.parametrize("width", [1400, pytest.param(800, marks=pytest.mark.slow), 390])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_pages_are_for_everybody(browser, pages, page, width, dark):
    browser.open(pages[page], width, dark=dark)
    assert browser.do(CHECKS) == []
    browser.do(
        "document.getElementById('fold').textContent === 'Unfold all' && document.getElementById('fold').click()"
    )
    browser.do(OPEN_ALL)
    assert browser.do(CHECKS) == []
    assert browser.troubles() == []


@pytest.mark.slow
@pytest.mark.skipif(AXE is None, reason="the package axe-playwright-python is not there")
@pytest.mark.parametrize("page", ["deep", "mixture", "analyses", "checkpoints"])
@pytest.mark.parametrize("width", [1400, 390])
def test_axe_finds_no_violation(browser, pages, page, width):
    browser.open(pages[page], width)
    browser.do("document.querySelector('tr.opens button')?.click()")
    browser.do(AXE.read_text(encoding="utf-8"))
    found = browser.do("axe.run().then(({violations}) => violations.map(({id, nodes}) => [id, nodes[0].html]))")
    assert found == []


def test_everything_that_is_pressed_or_filled_in_has_a_name(browser, pages):
    browser.open(pages["deep"])
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "link", "searchbox", "combobox", "slider", "checkbox", "image", "grid", "gridcell", "region"}
    found = [node for node in nodes if not node["ignored"] and node["role"]["value"] in roles]
    assert {node["role"]["value"] for node in found} >= roles - {"image", "searchbox"}
    assert [node for node in found if not node["name"]["value"].strip()] == []


def test_names_are_text_and_no_script_runs_but_the_pages_own(browser, pages):
    browser.open(pages["deep"])
    assert HOSTILE.replace("\u202e", "\\u{202e}") in browser.texts(NAMES)
    assert browser.do("document.querySelectorAll('img, script').length") == 2
    browser.do("added = document.createElement('script'); added.textContent = 'window.ran = 1'")
    browser.do("document.body.append(added)")
    assert browser.do("window.ran") is None


def test_the_table_is_sorted_grouped_and_filtered(browser, pages, analysis):
    browser.open(pages["deep"])
    headings = browser.texts("tr.group button")
    assert len(headings) == 13  # twelve blocks, and what has none
    assert headings[3].startswith("block 3")
    assert browser.do("document.querySelectorAll('tr.layer').length") == len(analysis) == 38
    browser.fill("group", "none", "change")
    for heading in ("spikes", "share"):
        browser.do(
            f"[...document.querySelectorAll('thead button')].find((one) => one.textContent === '{heading}').click()"
        )
        figures = [(getattr(row, heading), row.name) for row in analysis]
        first = browser.texts(NAMES)[0]
        assert max(figures)[0] == next(figure for figure, name in figures if name == first)
        assert browser.texts("[aria-sort=descending]")[0].startswith(heading)
    browser.fill("filter", "MLP 7")
    assert browser.texts(NAMES) == ["model.blocks.7.mlp.up.weight"]
    assert browser.texts("#count")[0] == "1 of 38 rows"


def test_a_keystroke_makes_no_more_than_a_page_of_rows(browser, pages, analysis, tmp_path):
    """What a filter of 2000 layers takes is what 120 rows take, and going once through the names."""
    layers = tuple(
        mpfast.LayerReport.from_dict({**row.to_dict(), "name": f"model.layers.{at}.{row.name}"})
        for at, row in enumerate(analysis.layers * 55)
    )[:2000]
    mpfast.Analysis(layers, (), "many", 5e-3, 0, 1.0).to_html(tmp_path / "many.html")
    browser.open(tmp_path / "many.html")
    for text in ("", "q", "q.w", "no such layer"):
        browser.fill("filter", text)
        rows = sum(text in layer.name for layer in layers)
        assert browser.texts("#count")[0] == f"{rows:,} of 2,000 rows"
        assert browser.do("document.querySelectorAll('#layer-table tr').length") <= 2 * 120 + 2
    browser.fill("filter", "")
    browser.do("document.getElementById('more').click()")
    assert browser.do("document.querySelectorAll('tr.layer').length") > 600


def test_the_map_is_for_the_keyboard_too(browser, pages, analysis):
    browser.open(pages["deep"])
    browser.do("document.querySelector('#map-table td[tabindex=\"0\"]').focus()")
    assert browser.do("document.activeElement.getAttribute('aria-label')").startswith(
        "attn.q, block 0: signals over rank"
    )
    browser.press("ArrowRight")
    browser.press("ArrowDown")
    row = analysis["model.blocks.1.attn.k.weight"]
    read = browser.texts("#map-readout")[0]
    assert read == f"attn.k, block 1: signals over rank {float(f'{row.signals / 32:.4g}'):g}"
    browser.press("Enter")
    assert browser.texts(NAMES) == [row.name]
    assert browser.do("document.activeElement.textContent") == "attn.k, block 1 ✕"
    browser.press("Enter")
    assert len(browser.texts(NAMES)) == len(analysis)


def test_lines_open_by_the_keyboard_and_keep_it(browser, pages):
    browser.open(pages["deep"])
    browser.press("Tab")
    assert browser.do("document.activeElement.textContent") == "Skip to the table"
    browser.do("document.querySelector('tr.opens button').focus()")
    browser.press("Enter")
    assert browser.do("document.activeElement.getAttribute('aria-expanded')") == "true"
    assert "noise" in browser.texts("tr.detail")[0]
    assert browser.do("document.querySelectorAll('tr.detail svg[role=img]').length") == 1
    browser.press("Enter")
    assert browser.do("document.querySelectorAll('tr.detail').length") == 0


def test_charts_have_axes_a_legend_and_the_law_where_it_is(browser, pages, analysis):
    browser.open(pages["deep"])
    browser.do("document.querySelector('tr.opens button').click()")
    texts = browser.texts("tr.detail svg text")
    assert {"singular value", "density", "0"} <= set(texts)
    legend = browser.texts("tr.detail ul.legend")[0]
    assert "law of even noise" in legend
    assert f"its edge {analysis[0].sigma_plus:.4g}" in legend
    # From pixels back to singular values, by the labels of the axis.
    across = browser.do(
        "[...document.querySelectorAll('tr.detail .tick')].map((tick) => Number(tick.getAttribute('x1')))"
    )
    numbers = [float(text) for text in texts[: len(across)]]
    scale = (numbers[-1] - numbers[0]) / (across[-1] - across[0])
    edge = float(browser.do("document.querySelector('tr.detail [role=img] line.edge').getAttribute('x1')"))
    assert scale * (edge - across[0]) == pytest.approx(analysis[0].sigma_plus, rel=1e-4)
    law = browser.do("document.querySelector('tr.detail [role=img] path.law').getAttribute('d')")
    end = float(law.rpartition("L")[2].split()[0])
    assert scale * (end - across[0]) == pytest.approx(analysis[0].sigma_plus, rel=1e-2)


def test_two_layers_side_by_side(browser, pages, analysis):
    browser.open(pages["deep"])
    pair = [analysis[name] for name in ("model.blocks.2.attn.q.weight", "model.blocks.9.mlp.up.weight")]
    for side, row in zip("ab", pair, strict=True):
        browser.fill(f"pair-{side}", row.name)
    cells = browser.texts("#pair-table tbody :is(th, td)")
    figures = {heading: cells[4 * at + 1 : 4 * at + 4] for at, heading in enumerate(cells[::4])}
    assert figures["shape"] == ["48x64", "96x64", ""]
    assert float(figures["sigma+"][2]) == pytest.approx(pair[1].sigma_plus / pair[0].sigma_plus, rel=1e-2)
    drawn = browser.do("document.querySelectorAll('#pair-chart [role=img] path.law').length")
    assert drawn == 2
    browser.do("document.getElementById('pair-scaled').click()")
    edges = browser.do(
        "[...document.querySelectorAll('#pair-chart [role=img] line.edge')].map((line) => line.getAttribute('x1'))"
    )
    assert edges[0] == edges[1]


def saved(browser, button):
    """The text of the file that a button saves."""
    browser.do(
        "URL.createObjectURL = (blob) => { window.blob = blob; return '#saved'; }; URL.revokeObjectURL = () => {}"
    )
    browser.do(f"document.getElementById('{button}').click()")
    return browser.do("window.blob.text()")


def test_downloads_are_what_mpfast_reads(browser, pages, analysis):
    browser.open(pages["deep"])
    read = mpfast.Analysis.from_json(saved(browser, "json"))
    assert (read.source, read.seed, read.skipped) == (analysis.source, analysis.seed, analysis.skipped)
    for mine, theirs in zip(read, analysis, strict=True):
        assert (mine.name, mine.shape, mine.sentence) == (theirs.name, theirs.shape, theirs.sentence)
        for field, value in theirs.to_dict().items():
            if isinstance(value, float):
                assert mine.to_dict()[field] == pytest.approx(value, rel=1e-7, nan_ok=True)
    text = saved(browser, "csv")
    assert "\n'=sum().weight," in text
    lines = list(csv.DictReader(io.StringIO(text)))
    expected = list(csv.DictReader(io.StringIO(analysis.to_csv())))
    assert [line.keys() for line in lines] == [line.keys() for line in expected]
    for line, right in zip(lines, expected, strict=True):
        for field, text in right.items():
            try:
                value = float(text)
            except ValueError:
                assert line[field] == text
            else:
                assert (float(line[field]) if line[field] else math.nan) == pytest.approx(value, rel=1e-7, nan_ok=True)


def test_a_seed_that_javascript_cannot_hold_is_saved_as_it_is(browser, tmp_path):
    mpfast.analyze({"a.weight": np.eye(16)}, seed=2**63 + 1).to_html(tmp_path / "page.html")
    browser.open(tmp_path / "page.html")
    assert json.loads(saved(browser, "json"))["seed"] == 2**63 + 1


def test_comparisons_show_both_sides(browser, pages):
    browser.open(pages["analyses"])
    browser.do("document.querySelector('tr.opens button').click()")
    assert browser.do("document.querySelectorAll('tr.detail [role=img] path.law').length") == 2
    assert {"A", "B"} <= set(browser.texts(".sources dt"))
    browser.open(pages["checkpoints"])
    assert "change" in browser.texts("#layer-table thead button")
    assert "new.weight" in browser.texts("#skipped")[0]
    document = json.loads(saved(browser, "json"))
    assert document["schema"] == "mpfast.diff/1"
    assert len(document["layers"]) == 39


def test_a_phone_shows_names_whole_and_figures_below(browser, pages):
    browser.open(pages["deep"], 390)
    browser.do(
        "document.getElementById('fold').textContent === 'Unfold all' && document.getElementById('fold').click()"
    )
    name, figure = browser.box("tr.layer th"), browser.box("tr.layer td")
    assert name["width"] > 300
    assert figure["top"] >= name["bottom"] - 1
    assert browser.do("getComputedStyle(document.querySelector('tr.layer td'), '::before').content") == '"shape"'
    browser.do("scrollTo(0, 3000)")
    assert browser.do("document.getElementById('top').getBoundingClientRect().top") == 0


def test_headings_stay_while_rows_scroll(browser, pages):
    browser.open(pages["deep"], 1400)
    browser.do("document.querySelectorAll('tr.layer')[20].scrollIntoView()")
    bar, heading = browser.box("#top"), browser.box("#layer-table thead th")
    assert bar["top"] == 0
    assert heading["top"] == pytest.approx(bar["bottom"], abs=1)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_colours_of_the_map_follow_the_means(browser, pages, dark, tmp_path):
    """A picture of the page: the larger a mean, the farther is its colour from that of the page."""
    image = pytest.importorskip("matplotlib.image")
    browser.open(pages["deep"], dark=dark)
    (tmp_path / "page.png").write_bytes(browser.picture())
    pixels = image.imread(tmp_path / "page.png")[..., :3]
    ground = pixels[200, 5]
    assert (ground.mean() < 0.2) == dark
    places = browser.do(
        "[...document.querySelectorAll('#map-table td.cell')].map((cell) => [cell.getBoundingClientRect(), cell])"
        ".map(([box, cell]) => [box.x + 4, box.y + 4, parseFloat(cell.style.getPropertyValue('--share'))])"
    )
    shares = np.array([share for *_, share in places])
    far = np.array([abs(pixels[int(y), int(x)] - ground).sum() for x, y, _ in places])
    assert len(places) == 38
    assert np.ptp(shares) == 100
    assert (np.diff(far[np.argsort(shares)]) >= -0.02).all()
