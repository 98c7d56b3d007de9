"""Splitting PyTorch modules at the Marchenko-Pastur edge."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from mpfast.integrations.torch.lowrank import split, split_modules  # noqa: E402


def low_rank_linear(n: int, m: int, r: int) -> torch.nn.Linear:
    torch.manual_seed(0)
    layer = torch.nn.Linear(n, m)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(m, r) @ torch.randn(r, n) + 0.1 * torch.randn(m, n))
    return layer


def test_linear() -> None:
    layer = low_rank_linear(64, 96, 5)
    pair = split(layer)
    assert pair[0].weight.shape == (5, 64)
    assert pair[0].bias is None
    x = torch.randn(10, 64)
    assert (pair(x) - layer(x)).norm() < 0.15 * layer(x).norm()
    exact = split(layer, 64)
    torch.testing.assert_close(exact(x), layer(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": "same"}, {"padding": 1, "padding_mode": "circular"}],
)
def test_convolutions_keep_their_geometry(options: dict) -> None:
    torch.manual_seed(1)
    conv = torch.nn.Conv2d(8, 12, 3, **options)
    x = torch.randn(2, 8, 11, 13)
    torch.testing.assert_close(split(conv, 12)(x), conv(x), rtol=1e-3, atol=1e-3)
    assert split(conv, 3)(x).shape == conv(x).shape


def test_models_are_split_where_it_pays() -> None:
    model = torch.nn.Sequential(
        low_rank_linear(64, 96, 5), torch.nn.ReLU(), torch.nn.Linear(96, 64), torch.nn.Conv2d(4, 4, 3, groups=2)
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    small, report = split_modules(model)
    assert report["0"] == "rank 5 of 64"
    assert "above the Marchenko-Pastur edge" in report["2"] or "more parameters" in report["2"]
    assert isinstance(small[0], torch.nn.Sequential)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
    _, report = split_modules(model, 90, include="0")
    assert report == {"0": "rank 64 would take more parameters"}
    with pytest.raises(ValueError, match="groups"):
        split(model[3], 2)
    with pytest.raises(TypeError, match="ReLU"):
        split(model[1])


def test_a_bad_option_is_no_reason_to_leave_a_module_whole() -> None:
    model = torch.nn.Sequential(low_rank_linear(60, 40, 3))
    for options, message in (
        ({"rank": 0}, "rank must be"),
        ({"rank": "edge"}, "rank must be"),
        ({"shrinkage": "l1"}, "shrinkage"),
    ):
        with pytest.raises(ValueError, match=rf"split_modules\(\): {message}"):
            split_modules(model, **options)


def test_a_shared_module_is_split_in_every_place() -> None:
    shared = low_rank_linear(64, 64, 4)
    model = torch.nn.Sequential(shared, torch.nn.ReLU(), torch.nn.Sequential(shared))
    small, report = split_modules(model)
    assert report == {"0": "rank 4 of 64"}
    assert small[2][0] is small[0]
    assert isinstance(small[0], torch.nn.Sequential)


def test_a_model_that_is_one_module() -> None:
    small, report = split_modules(low_rank_linear(64, 96, 5))
    assert isinstance(small, torch.nn.Sequential)
    assert report == {"": "rank 5 of 64"}
