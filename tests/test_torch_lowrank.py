"""Splitting PyTorch modules at the Marchenko-Pastur edge."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

import mpfast  # noqa: E402
from mpfast.integrations.torch.lowrank import LowRankPair, load_factors, split, split_modules  # noqa: E402


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


class Zoo(torch.nn.Module):
    """A module of each kind that factors can stand for, and of some that they cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(60, 48, padding_idx=0)
        self.conv = torch.nn.Conv2d(16, 24, 3, stride=2, padding=1)
        self.grouped = torch.nn.Conv2d(16, 32, 3, groups=2)
        self.attention = torch.nn.MultiheadAttention(48, 4, batch_first=True)
        self.linear = torch.nn.Linear(48, 64, bias=False)
        self.norm = torch.nn.BatchNorm1d(64)
        self.head = torch.nn.Linear(48, 60, bias=False)

    def forward(self, tokens: torch.Tensor, image: torch.Tensor) -> list[torch.Tensor]:
        x = self.embed(tokens)
        x = x + self.attention(x, x, x)[0]
        return [self.norm(self.linear(x).flatten(0, 1)), self.conv(image), self.grouped(image), self.head(x)]


def test_factors_from_files_do_what_the_truncated_weights_do(tmp_path) -> None:
    torch.manual_seed(0)
    model = Zoo().eval()
    dense, small = copy.deepcopy(model), copy.deepcopy(model)
    options = {"rank": 5, "embeddings": True}
    result = mpfast.compress(model, tmp_path / "factors", format="factors", **options)
    mpfast.compress(model, tmp_path / "dense", **options)
    dense.load_state_dict(load_file(tmp_path / "dense" / "model.safetensors"))
    assert load_factors(small, tmp_path / "factors") is small
    assert {"embed.weight", "conv.weight", "attention.in_proj_weight"} <= {layer.name for layer in result.layers}
    pairs = {name for name, module in small.named_modules() if isinstance(module, LowRankPair)}
    assert pairs == {"embed", "conv", "linear", "head"}
    for name in pairs:  # what other modules see
        for parameter in ("weight", "bias"):
            ours, theirs = (getattr(m.get_submodule(name), parameter, None) for m in (small, dense))
            assert (ours is None) == (theirs is None)
            if ours is not None:
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    inputs = torch.arange(20).reshape(2, 10), torch.randn(2, 16, 9, 9)
    for ours, theirs in zip(small(*inputs), dense(*inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_factors_that_do_not_fit_change_nothing(tmp_path) -> None:
    model = Zoo()
    mpfast.compress(model, tmp_path / "f", format="factors", rank=5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.more = torch.nn.Linear(3, 3)
    with pytest.raises(ValueError, match=r"2 tensors are missing: more\.weight, more\.bias"):
        load_factors(model, tmp_path / "f")
    del model.more, model.head
    with pytest.raises(ValueError, match=r"1 tensors are not in the model: head\.weight"):
        load_factors(model, tmp_path / "f")
    model.head = torch.nn.Linear(48, 61, bias=False)
    with pytest.raises(ValueError, match=r"have another shape: head\.weight"):
        load_factors(model, tmp_path / "f")
    model.head = torch.nn.Linear(48, 60, bias=False)
    for name, tensor in model.state_dict().items():
        if name != "head.weight":
            torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    mpfast.compress(model, tmp_path / "dense", rank=5)
    with pytest.raises(mpfast.CheckpointError, match="holds no factors"):
        load_factors(model, tmp_path / "dense")
    with pytest.raises(FileNotFoundError):
        load_factors(model, tmp_path / "nowhere")
