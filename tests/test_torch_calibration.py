"""Second moments of the inputs of live modules against their rows: which are counted, and in which types."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from mpfast.integrations.torch import row_sums  # noqa: E402
from mpfast.integrations.torch.calibration import SecondMoments  # noqa: E402
from mpfast.integrations.torch.layers import input_rows, prunable_modules, watchable_modules  # noqa: E402
from mpfast.masks.projection import output_error, project  # noqa: E402

from .attention import moment_of  # noqa: E402


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2},
        {"padding": 1},
        {"padding": "same"},
        {"dilation": 2, "padding": (1, 2)},
        {"padding": 1, "padding_mode": "reflect"},
    ],
)
@pytest.mark.parametrize("size", [9, 150])
def test_rows_of_a_convolution(options: dict[str, Any], size: int) -> None:
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(3, 5, (3, 2), **options).double()
    x = torch.randn(3, 3, size, size, dtype=torch.float64)
    rows = torch.cat(list(input_rows(conv, x)))
    products = rows @ conv.weight.detach().reshape(5, -1).T + conv.bias.detach()
    want = conv(x).detach().permute(0, 2, 3, 1).reshape(-1, 5)
    assert rows.shape[0] == want.shape[0]
    # Rows come in slabs of images, not in the order of the output.
    order = lambda values: values[np.lexsort(values.numpy().round(9).T)]  # noqa: E731
    torch.testing.assert_close(order(products), order(want))


def test_linear_full_and_blocks() -> None:
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))
    batches = [torch.randn(7, 5, 12), torch.randn(9000, 12), torch.randn(12)]
    with SecondMoments(model) as full, SecondMoments(model, block=4) as blocks:
        for batch in batches:
            model(batch)
    model(torch.randn(3, 12))  # after the end nothing is counted
    rows = torch.cat([batch.reshape(-1, 12) for batch in batches])
    assert full.rows == blocks.rows == {"0": 9036, "2": 9036}
    torch.testing.assert_close(full["0"], moment_of(rows), rtol=1e-5, atol=1e-6)
    hidden = torch.relu(model[0](rows)).detach()
    torch.testing.assert_close(full["2"], moment_of(hidden), rtol=1e-5, atol=1e-6)
    for g in range(3):
        part = slice(4 * g, 4 * g + 4)
        torch.testing.assert_close(blocks["0"][g], full["0"][part, part], rtol=1e-6, atol=1e-7)
    assert list(full) == ["0", "2"]
    weight = model[0].weight
    assert project(weight, 2, 4, blocks["0"]).cost == pytest.approx(project(weight, 2, 4, full["0"]).cost, rel=1e-6)


@pytest.mark.parametrize("layout", ["flat", "channel"])
def test_convolution_blocks(layout: str) -> None:
    torch.manual_seed(2)
    conv = torch.nn.Conv2d(8, 6, 3, padding=1)
    x = torch.randn(4, 8, 10, 10)
    model = torch.nn.Sequential(conv)
    with SecondMoments(model) as full, SecondMoments(model, block=4, layout=layout) as blocks:
        model(x)
    assert full.rows["0"] == 400
    unfolded = torch.nn.functional.unfold(x, 3, padding=1).transpose(1, 2).reshape(-1, 72)
    torch.testing.assert_close(full["0"], moment_of(unfolded), rtol=1e-5, atol=1e-6)
    by_blocks = project(conv.weight, 2, 4, blocks["0"], layout=layout)
    by_full = project(conv.weight, 2, 4, full["0"], layout=layout)
    assert torch.equal(by_blocks.mask, by_full.mask)
    changed = torch.nn.functional.conv2d(x, conv.weight * ~by_full.mask, padding=1)
    want = float((changed**2).sum(dim=1).mean())
    assert output_error(conv.weight, by_full.mask, full["0"]) == pytest.approx(want, rel=1e-4)


def test_interrupted_runs_go_on(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))
    batches = [torch.randn(50, 8) for _ in range(6)]
    whole = SecondMoments(model, block=2, share=0.4, seed=7)
    with whole:
        for batch in batches:
            model(batch)
    file = tmp_path / "moments.safetensors"
    first = SecondMoments(model, block=2, share=0.4, seed=7)
    with first:
        for batch in batches[:3]:
            model(batch)
    first.save(file)
    second = SecondMoments(model, block=2, share=0.4, seed=7)
    second.load(file)
    with second:
        for batch in batches[3:]:
            model(batch)
    assert second.rows == whole.rows
    assert 60 < whole.rows["0"] < 180
    for name in whole:
        torch.testing.assert_close(second[name], whole[name], rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="collected with"):
        SecondMoments(model, block=4, share=0.4, seed=7).load(file)
    with pytest.raises(ValueError, match="no module"):
        SecondMoments(torch.nn.Sequential(torch.nn.Linear(8, 8)), block=2, share=0.4, seed=7).load(file)


def test_padding_is_left_out() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    x = torch.randn(2, 12, 4)
    valid = torch.arange(12) < torch.tensor([[10], [6]])
    with SecondMoments(model) as moments:
        moments.valid = valid
        model(x)
    assert moments.rows["0"] == 16
    torch.testing.assert_close(moments["0"], moment_of(x[valid]), rtol=1e-5, atol=1e-6)


def test_modules_called_by_keyword() -> None:
    layer = torch.nn.Linear(4, 4)
    x = torch.randn(20, 4)
    with SecondMoments(layer) as moments:
        layer(input=x)
    assert moments.rows == {"": 20}
    torch.testing.assert_close(moments[""], moment_of(x), rtol=1e-5, atol=1e-6)


def test_narrow_types_and_shared_modules() -> None:
    shared = torch.nn.Linear(4, 4).to(torch.bfloat16)
    model = torch.nn.Sequential(shared, shared)
    with SecondMoments(model) as moments:
        model(torch.randn(20, 4, dtype=torch.bfloat16))
    assert moments.rows == {"0": 40}
    assert moments["0"].dtype == torch.float64


def test_what_is_left_out_says_why() -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, groups=2), torch.nn.Linear(6, 2), torch.nn.Linear(8, 2))
    moments = SecondMoments(model, block=4)
    assert set(moments.skipped) == {"0", "1"}
    assert "grouped" in moments.skipped["0"]
    assert "cannot be cut" in moments.skipped["1"]
    assert list(prunable_modules(model, exclude="2")) == ["0", "1"]
    with pytest.raises(ValueError, match="no module to watch"):
        SecondMoments(torch.nn.Sequential(torch.nn.ReLU()))
    with pytest.raises(ValueError, match="share"):
        SecondMoments(model, share=0)
    with pytest.raises(ValueError, match="block"):
        SecondMoments(model, block=0)
    with pytest.raises(ValueError, match="layout"):
        SecondMoments(model, layout="rows")


def test_few_inputs_are_warned_of():
    layer = torch.nn.Linear(8, 2)
    moments = SecondMoments(torch.nn.Sequential(layer))
    with (
        pytest.warns(UserWarning, match=r"1 of 1 layers have seen fewer than 4 inputs per dimension \(0: 3\.9\)"),
        moments,
    ):
        layer(torch.randn(31, 8))
    assert moments.rows_per_input == {"0": 31 / 8}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with moments:
            layer(torch.randn(1, 8))
    assert moments.warning == ""


def test_inputs_without_a_moment_are_refused():
    layer = torch.nn.Linear(4, 2)
    moments = SecondMoments(torch.nn.Sequential(layer))
    with moments:
        layer(torch.full((20, 4), float("inf")))
    with pytest.raises(ValueError, match="inputs of '0' hold NaN or infinities"):
        moments["0"]


def test_what_was_cut_short_is_no_sum(monkeypatch, tmp_path):
    def stop(*_):
        raise KeyboardInterrupt

    layer = torch.nn.Linear(4, 2)
    moments = SecondMoments(torch.nn.Sequential(layer))
    with moments:
        layer(torch.randn(20, 4))
    monkeypatch.setattr(row_sums, "_core", SimpleNamespace(add_gram=stop))
    with pytest.raises(KeyboardInterrupt), moments:
        layer(torch.randn(20, 4))
    for read in (lambda: moments["0"], lambda: moments.save(tmp_path / "m.safetensors")):
        with pytest.raises(ValueError, match="were being counted when an exception came"):
            read()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_every_element_type_gives_the_moment_of_its_numbers(dtype):
    torch.manual_seed(9)
    x = torch.randn(700, 30, dtype=torch.float64).to(dtype)
    layer = torch.nn.Linear(30, 2).to(dtype)
    with SecondMoments(torch.nn.Sequential(layer)) as moments:
        layer(x)
    # 256 roundings of single precision, relative to the mean of the products' magnitudes.
    bound = 256 * (2.0**-53 if dtype == torch.float64 else 2.0**-24)
    assert (moments["0"] - moment_of(x)).abs().max() <= bound * moment_of(x.abs()).max()


def test_opened_again_it_counts_nothing_twice():
    layer = torch.nn.Linear(4, 2)
    moments = SecondMoments(torch.nn.Sequential(layer))
    x = torch.randn(30, 4)
    with moments:
        with moments:
            layer(x)
        layer(x)
    layer(x)
    assert moments.rows == {"0": 60}
    torch.testing.assert_close(moments["0"], x.double().T @ x.double() / 30, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("module", "bad", "good"),
    [
        (torch.nn.Linear(4, 2), [torch.randn(5, 3), torch.tensor(1.0)], torch.randn(20, 4)),
        (torch.nn.Conv2d(3, 2, 3), [torch.randn(2, 4, 9, 9), torch.randn(9, 9)], torch.randn(2, 3, 9, 9)),
    ],
)
def test_what_a_module_does_not_take_is_not_counted(module, bad, good):
    """The module itself complains, and the sums go on, whether or not it is the first input."""
    moments = SecondMoments(torch.nn.Sequential(module))
    with moments:
        for x in bad:
            with pytest.raises((RuntimeError, IndexError)):
                module(x)
        with pytest.raises(TypeError):
            module()
        module(good)
        with pytest.raises((RuntimeError, IndexError)):
            module(bad[0])
    once = SecondMoments(torch.nn.Sequential(module))
    with once:
        module(good)
    assert moments.rows == once.rows
    assert torch.equal(moments["0"], once["0"])


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"block": "2"}, "block must be a positive integer or None, not '2'"),
        ({"block": 2.0}, "block must be a positive integer or None, not 2.0"),
        ({"share": "all"}, "share must lie in"),
        ({"share": 0}, "share must lie in"),
        ({"share": 0.5, "seed": -1}, "seed must be an integer in"),
        ({"folds": 2.5}, "folds must be a positive integer"),
        ({"source": b"model"}, "source must be a path"),
        ({"layout": None}, "layout must be 'flat' or 'channel'"),
    ],
)
def test_bad_options_are_refused_before_anything_runs(options, match):
    with pytest.raises((ValueError, TypeError), match=rf"SecondMoments\(\): {match}"):
        SecondMoments(torch.nn.Sequential(torch.nn.Linear(4, 2)), **options)


def test_what_is_no_module_and_no_mask_of_padding():
    for call in (SecondMoments, watchable_modules):
        with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, not dict"):
            call({"weight": torch.ones(2, 2)})
    moments = SecondMoments(torch.nn.Sequential(torch.nn.Linear(4, 2)))
    with pytest.raises(TypeError, match="valid must be a tensor or None, not list"):
        moments.valid = [True, False]


def test_fused_projections_are_watched_as_modules_are(tmp_path):
    """Opened again, handed what they do not take, and in a file of another model."""
    attention = torch.nn.MultiheadAttention(16, 4)
    x = torch.randn(40, 2, 16)
    with torch.no_grad(), SecondMoments(attention) as moments:
        with moments:
            attention(x, x, x)
        for bad in ([x[..., :3]] * 3, [x]):
            with pytest.raises((RuntimeError, AssertionError, TypeError)):
                attention(*bad)
    names = [f"in_proj_weight[{label}]" for label in ("query", "key", "value")]
    assert moments.rows == dict.fromkeys(names, 80)
    path = tmp_path / "moments.safetensors"
    moments.save(path)
    again = SecondMoments(torch.nn.MultiheadAttention(16, 4, device="meta"))
    again.load(path)
    assert torch.equal(again[names[1]], moments[names[1]])
    with pytest.raises(ValueError, match=r"shape \(16, 16\) for 'in_proj_weight\[query\]', which needs \(24, 24\)"):
        SecondMoments(torch.nn.MultiheadAttention(24, 4, device="meta")).load(path)
    with torch.no_grad():
        attention.in_proj_weight[40] += 1
    with pytest.raises(ValueError, match=r"of other weights, 'in_proj_weight\[value\]' for one"):
        SecondMoments(attention).load(path)
