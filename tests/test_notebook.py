"""Results in a notebook: short texts, small tables, rows by name, selections that stay analyses, comparisons."""

from __future__ import annotations

import html.parser
import math

import numpy as np
import pytest

import mpfast
from mpfast.models import ranks

NAMES = [f"{name}.weight" for name in ("blocks.0.q<b>&'", "blocks.0.mlp", "blocks.1.q<b>&'", "blocks.1.mlp", "head")]


def weights(scale=1.0):
    rng = np.random.default_rng(0)
    spike = np.outer(rng.standard_normal(48), rng.standard_normal(64))
    return {name: scale * (rng.standard_normal((48, 64)) + at * spike / 8) for at, name in enumerate(NAMES)}


@pytest.fixture(scope="module")
def analysis():
    return mpfast.analyze({**weights(), "bias": np.zeros(3)}, progress=False)


class Checked(html.parser.HTMLParser):
    """Texts of a cell of a notebook; its tags must close, and be of one division of tables and paragraphs."""

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.styles = [], [], []
        self.feed(text)
        assert not self.open
        assert len(self.styles) == 1

    def handle_starttag(self, tag, attrs):
        assert tag in ("div", "style", "p", "table", "thead", "tbody", "tr", "th", "td")
        assert (tag, *attrs) == ("div", ("class", "mpfast")) or self.open
        assert {name for name, _ in attrs} <= {"class"}
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        (self.styles if self.open[-1] == "style" else self.texts).append(data)


def results(analysis):
    W = weights()[NAMES[1]]
    yield from (analysis, analysis[0], analysis.budget(0.5), analysis.budget(0.5)[0])
    yield from (mpfast.spectrum(W), mpfast.spectrum(W).edge, mpfast.spectrum(W, inputs=np.eye(64)))
    yield from (mpfast.prune(weights(), sparsity=0.5, progress=False), mpfast.inspect(weights()))
    yield from (mpfast.svd(W, 3), mpfast.spectrum(W, noise="uneven").noise, mpfast.spectrum(W).measure)
    yield from (analysis.compare(analysis), mpfast.diff(weights(), weights(2)), ranks(weights(), errors=[0.1]))


def test_reprs_are_short_lines_and_tables_are_well_formed(analysis):
    for found in results(analysis):
        assert len(repr(found)) < 160
        assert "\n" not in repr(found)
        if hasattr(found, "_repr_html_"):
            shown = Checked(found._repr_html_())
            assert shown.texts
            assert len("".join(shown.texts)) < 4000


def test_names_are_shown_as_they_are(analysis):
    marked = [f"{row.name} !" if row.warnings else row.name for row in analysis]
    assert set(marked) <= set(Checked(analysis._repr_html_()).texts)
    changed = analysis.compare(mpfast.analyze(weights(2), progress=False))
    for found in (analysis.budget(0.5), changed, mpfast.inspect(weights())):
        assert NAMES[0] in Checked(found._repr_html_()).texts
    assert NAMES[0] in Checked(analysis[0]._repr_html_()).texts


def test_long_tables_are_cut_and_say_so():
    many = mpfast.analyze({f"{i}.weight": np.eye(16) + i for i in range(43)}, progress=False)
    texts = Checked(many._repr_html_()).texts
    assert "and 3 more" in texts
    assert any(text.startswith("39.weight") for text in texts)
    assert not any(text.startswith("40.weight") for text in texts)


def test_rows_by_name(analysis):
    assert analysis["head.weight"] is analysis[4]
    assert analysis.budget(0.5)[NAMES[1]].name == NAMES[1]
    assert "head.weight" in analysis
    assert analysis[0] in analysis
    assert "hea" not in analysis
    with pytest.raises(KeyError, match=r"'hea' is the name of no row; the nearest of 5 is 'head.weight'"):
        analysis["hea"]


def test_selections_stay_analyses_and_lose_nothing(analysis):
    for part, names in (
        (analysis[1:3], NAMES[1:3]),
        (analysis[::-2], NAMES[::-2]),
        (analysis.filter("*mlp.weight"), [NAMES[1], NAMES[3]]),
        (analysis.filter(["*mlp.weight", "head.weight"], exclude="blocks.0.*"), [NAMES[3], "head.weight"]),
        (analysis.filter(where=lambda row: row.fro_norm > analysis[3].fro_norm), ["head.weight"]),
        (analysis.filter(where=lambda row: False), []),
    ):
        assert isinstance(part, mpfast.Analysis)
        assert [row.name for row in part] == names
        assert {row.name for row in part} | {tensor.name for tensor in part.skipped} == {*NAMES, "bias"}
        assert mpfast.Analysis.from_json(part.to_json()) == part
    budget = analysis.filter("*mlp.weight").budget(0.5)
    assert budget.model_entries == analysis.budget(0.5).model_entries
    assert {name for name, _ in budget.dense} == {NAMES[0], NAMES[2], "head.weight"}
    with pytest.raises(ValueError, match=r"filter\(\): include matches none of the 5 layers"):
        analysis.filter("*attention*")


def test_comparisons_match_by_name_and_say_what_differs(analysis, tmp_path):
    changed = {f"module.{name}": tensor for name, tensor in weights(1.1).items() if name != "head.weight"}
    changed[f"module.{NAMES[1]}"] = weights()[NAMES[3]]
    other = mpfast.analyze({**changed, "module.new.weight": np.eye(48)}, progress=False)
    found = analysis.compare(other)
    assert [row.name for row in found] == NAMES[:4]
    assert found.unmatched == (("head.weight", "only in A"), ("module.new.weight", "only in B"))
    scaled, replaced = found[NAMES[0]], found[NAMES[1]]
    assert scaled.change == pytest.approx(0.1)
    assert scaled.sigma_plus == pytest.approx(0.1)
    for figure in ("share", "effective_rank", "stable_rank", "ks", "spikes", "signals"):
        assert getattr(scaled, figure) == pytest.approx(0, abs=1e-12)
    assert replaced.stable_rank == pytest.approx(analysis[3].stable_rank / analysis[1].stable_rank - 1)
    assert replaced.effective_rank == pytest.approx(analysis[3].effective_rank / analysis[1].effective_rank - 1)
    assert replaced.share == pytest.approx(analysis[3].share - analysis[1].share)
    assert replaced.signals == analysis[3].signals - analysis[1].signals
    assert not any(math.isnan(row.share) for row in found)
    assert {"head.weight", "module.new.weight"} <= set(Checked(found._repr_html_()).texts)
    other.to_json(tmp_path / "other.json")
    assert analysis.compare(tmp_path / "other.json") == found
    with pytest.raises(TypeError, match=r"compare.*other must be an analysis"):
        analysis.compare(weights())
    with pytest.raises(ValueError, match="no name in common"):
        analysis.compare(mpfast.analyze({"x.weight": np.eye(48)}, progress=False))


def test_a_heat_map_shows_every_layer():
    figure = pytest.importorskip("matplotlib.figure").Figure()
    rng = np.random.default_rng(0)
    model = {f"h.{at}.{part}.weight": rng.standard_normal((32, 48)) for at in (0, 2) for part in ("q", "k")}
    model |= {"h.2.experts": rng.standard_normal((3, 32, 48)), "head.weight": rng.standard_normal((32, 48))}
    analysis = mpfast.analyze(model, progress=False)
    ax = analysis.plot(figure.add_subplot(), measure="stable_rank")
    (image,) = ax.images
    types, depths = ([label.get_text() for label in labels] for labels in (ax.get_yticklabels(), ax.get_xticklabels()))
    assert (types, depths) == (["h.#.q.weight", "h.#.k.weight", "h.#.experts[#]", "head.weight"], ["0", "2", "-"])
    cells = image.get_array()
    assert cells[1, 0] == analysis["h.0.k.weight"].stable_rank
    assert cells[2, 1] == pytest.approx(np.mean([row.stable_rank for row in analysis if "experts" in row.name]))
    assert [text.get_text() for text in ax.texts] == ["×3"]  # noqa: RUF001
    assert cells.mask.sum() == 12 - 6
    assert analysis.plot(figure.add_subplot(), measure=lambda row: row.fro_norm).images
    with pytest.raises(ValueError, match=r"plot.*measure must be"):
        analysis.plot(measure="loss")


CELLS = (
    "import numpy as np, mpfast; rng = np.random.default_rng(0)",
    "analysis = mpfast.analyze({f'{i}.weight': rng.standard_normal((48, 64)) for i in range(3)})",
    "analysis",
    "analysis['1.weight']",
    "analysis.budget(0.5)",
    "mpfast.spectrum(np.eye(40)).edge",
)


@pytest.mark.slow
def test_a_real_notebook():
    client = pytest.importorskip("nbclient")
    for package in ("ipykernel", "ipywidgets", "rich"):
        pytest.importorskip(package)
    from nbformat.v4 import new_code_cell, new_notebook

    notebook = new_notebook(cells=[new_code_cell(code) for code in CELLS])
    client.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    made, *shown = notebook.cells[1:]
    # The bar is a widget that closes when it is done: no text of it stays.
    assert all(output.output_type == "display_data" for output in made.outputs)
    _, widgets = notebook.metadata.widgets.popitem()
    assert "OutputModel" in [state["model_name"] for state in widgets["state"].values()]
    for cell in shown:
        (output,) = cell.outputs
        assert Checked(output.data["text/html"]).texts
        assert "\n" not in output.data["text/plain"]


def test_how_quantised_layers_are_stored_is_shown(analysis):
    from dataclasses import replace

    assert "rounding" not in Checked(analysis._repr_html_()).texts
    stored = replace(analysis[0], stored="fp8 128x128", quantization_noise=0.25)
    for found in (stored, replace(analysis, layers=(stored, *analysis.layers[1:]))):
        assert {"rounding", "fp8 128x128", "25.0%"} <= set(Checked(found._repr_html_()).texts)
