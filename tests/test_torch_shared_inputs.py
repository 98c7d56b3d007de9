"""Modules that are handed the same inputs share a sum, exactly, and contiguous parts of the data are kept apart."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from mpfast.integrations.torch import row_sums  # noqa: E402
from mpfast.integrations.torch.calibration import SecondMoments  # noqa: E402

from .attention import Attention, moment_of  # noqa: E402


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_layers_that_are_handed_the_same_tensor_share_a_sum(mode, monkeypatch):
    torch.manual_seed(4)
    model = Attention()
    counted = []
    core = row_sums._core
    monkeypatch.setattr(row_sums, "_core", SimpleNamespace(add_gram=lambda *a: counted.append(core.add_gram(*a))))
    batches = [torch.randn(2, 30, 12) for _ in range(3)]
    with SecondMoments(model, folds=1) as moments, mode():
        for batch in batches:
            model(batch + 0)
    assert len(counted) == 2 * 3
    assert moments.shared == {"k": "q", "v": "q"}
    assert list(moments) == ["q", "k", "v", "o"]
    assert moments["q"] is moments["k"] is moments["v"]
    assert moments["q"] is moments["q"]
    assert moments.rows == dict.fromkeys("qkvo", 180)
    torch.testing.assert_close(moments["v"], moment_of(torch.cat(batches).reshape(-1, 12)), rtol=1e-5, atol=1e-6)


def test_a_new_pass_counts_the_same_tensor_again():
    model = Attention()
    x = torch.randn(50, 12)
    with SecondMoments(model) as moments:
        model(x)
        model(x)
    assert moments.rows == dict.fromkeys("qkvo", 100)
    torch.testing.assert_close(moments["k"], moment_of(x), rtol=1e-5, atol=1e-6)


def test_sums_part_when_the_inputs_do():
    torch.manual_seed(5)
    model = Attention()
    x, y, z = torch.randn(3, 60, 12)
    with SecondMoments(model) as moments, torch.no_grad():
        model(x)
        assert moments.shared == {"k": "q", "v": "q"}
        model.q(y)
        model.k(y)
        y += 1  # written to in between
        model.v(y)
        model.q(z)
    was = y - 1
    assert moments.shared == {}
    for name, seen in {"q": [x, was, z], "k": [x, was], "v": [x, y]}.items():
        assert moments.rows[name] == 60 * len(seen)
        torch.testing.assert_close(moments[name], moment_of(torch.cat(seen)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("seed", range(12))
def test_any_order_of_calls_gives_every_module_the_sum_of_what_it_was_handed(mode, seed):
    """Whatever is shared: against sums that every module has of its own."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    names = "abcd"
    model = torch.nn.ModuleDict({name: torch.nn.Linear(3, 2) for name in names})
    handed: dict[str, list[Any]] = {name: [] for name in names}
    with mode(), SecondMoments(model, folds=2) as moments:
        tensors = [torch.randn(4, 3) for _ in range(2)]
        for _ in range(60):
            kind = rng.integers(10)
            if kind == 0:
                tensors[rng.integers(2)].add_(1)
            elif kind == 1:
                tensors[rng.integers(2)] = torch.randn(4, 3)
            elif kind == 2:
                assert set(moments) <= set(names)  # reading settles what is waiting
            else:
                x = tensors[rng.integers(2)]
                x = x if rng.random() < 0.7 else x[:]
                for name in names if rng.random() < 0.7 else rng.choice(list(names), 2):
                    model[name](x)
                    handed[name].append(x.clone())
    for name, inputs in handed.items():
        assert moments.rows[name] == 4 * len(inputs)
        torch.testing.assert_close(moments[name], moment_of(torch.cat(inputs)), rtol=1e-5, atol=1e-5)


def test_convolutions_share_what_they_cut_alike():
    model = torch.nn.ModuleList([torch.nn.Conv2d(2, 3, 3), torch.nn.Conv2d(2, 4, 3), torch.nn.Conv2d(2, 3, 3, 2)])
    x = torch.randn(3, 2, 20, 20)
    with SecondMoments(model) as moments:
        for conv in model:
            conv(x)
    assert moments.shared == {"1": "0"}


def test_rows_are_chosen_alike_where_the_inputs_are_shared():
    model = Attention()
    batches = [torch.randn(200, 12) for _ in range(3)]
    collected = []
    for include in (None, "k"):
        with SecondMoments(model, share=0.3, include=include) as moments:
            for batch in batches:
                model(batch)
        collected.append(moments)
    assert collected[0].rows["k"] == collected[1].rows["k"]
    assert torch.equal(collected[0]["k"], collected[1]["k"])


@pytest.mark.parametrize("sizes", [[64] * 9, [1] * 5, [500], [7, 90, 2, 33, 33, 200]])
@pytest.mark.parametrize("folds", [2, 3, 4])
def test_folds_are_contiguous_parts_of_similar_size(sizes, folds):
    torch.manual_seed(6)
    layer = torch.nn.Linear(5, 2)
    data = torch.randn(sum(sizes), 5, dtype=torch.float64)
    with SecondMoments(torch.nn.Sequential(layer.double()), folds=folds) as moments:
        for batch in data.split(sizes):
            layer(batch)
    rows = moments.fold_rows("0")
    assert sum(rows) == moments.rows["0"] == len(data)
    assert len(rows) == min(folds, len(data))
    assert max(rows) <= 2 * min(rows[:-1])
    ends = np.cumsum([0, *rows])
    for number, (begin, end) in enumerate(itertools.pairwise(ends)):
        torch.testing.assert_close(moments.fold("0", number), moment_of(data[begin:end]))
        others = torch.cat([data[:begin], data[end:]])
        torch.testing.assert_close(moments.without("0", number), moment_of(others))
    torch.testing.assert_close(moments["0"], moment_of(data))
    with pytest.raises(ValueError, match=r"fold\(\): number must lie between 0 and"):
        moments.fold("0", folds)


def test_four_parts_are_kept_apart_by_default():
    layer = torch.nn.Linear(5, 2)
    with SecondMoments(torch.nn.Sequential(layer)) as moments:
        layer(torch.randn(40, 5))
    assert moments.fold_rows("0") == (10, 10, 10, 10)


def test_without_needs_a_second_part():
    layer = torch.nn.Linear(5, 2)
    with SecondMoments(torch.nn.Sequential(layer), folds=1) as moments:
        layer(torch.randn(20, 5))
    assert moments.fold_rows("0") == (20,)
    with pytest.raises(ValueError, match="folds=2 or more"):
        moments.without("0", 0)
