"""Certificates of PyTorch models: no bound is ever exceeded, and none goes through what is not known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from mpfast import masks  # noqa: E402
from mpfast.integrations.torch.certificates import certify  # noqa: E402
from mpfast.integrations.torch.magnification import magnification  # noqa: E402
from mpfast.masks import BOUND, EXACT  # noqa: E402


def random_network(seed: int) -> tuple[torch.nn.Module, torch.Tensor]:
    torch.manual_seed(seed)
    if seed % 3 == 0:
        model = torch.nn.Sequential(
            torch.nn.Conv2d(2, 6, 3, padding=1),
            torch.nn.ReLU(),
            torch.nn.MaxPool2d(2),
            torch.nn.Conv2d(6, 4, 3, stride=2, padding=1),
            torch.nn.LeakyReLU(0.2),
            torch.nn.Flatten(),
            torch.nn.Linear(16, 5),
        )
        return model, torch.randn(12, 2, 8, 8)
    depth = 2 + seed % 4
    parts: list[Any] = []
    for _ in range(depth):
        parts += [torch.nn.Linear(20, 20), torch.nn.ReLU()]
    if seed % 2:
        norm = torch.nn.BatchNorm1d(20)
        norm.running_var.uniform_(0.3, 2)
        norm.weight.data.uniform_(-1.5, 1.5)
        parts.insert(1, norm)
    nested = torch.nn.Sequential(torch.nn.Sequential(*parts), torch.nn.Linear(20, 5))
    return nested, torch.randn(12, 20)


@pytest.mark.parametrize("seed", range(24))
@pytest.mark.parametrize("order", ["input_to_output", "output_to_input"])
def test_no_certified_bound_is_ever_violated(seed: int, order: str) -> None:
    model, x = random_network(seed)
    y = torch.randint(0, 5, (len(x),))
    weights = {name: p.detach() for name, p in model.named_parameters() if p.dim() > 1}
    sparsity = [0.02, 0.1, 0.4, 0.8][seed % 4]
    found_masks = masks.magnitude(weights, sparsity)
    found = certify(model, found_masks, x.split(5), labels=y.split(5), order=order, lipschitz="product")
    assert found.budget.kind == BOUND
    eta = sum(layer.eta for layer in found.layers)
    slack = 1 + 1e-5
    assert (found.realised_eta <= eta * slack + 1e-6).all()
    assert found.loss_change is not None
    assert found.worst_loss_change is not None
    assert abs(found.loss_change.value) <= found.budget.value * slack
    assert found.loss_change.value <= found.worst_loss_change.value * slack + 1e-7
    assert found.changed.value <= 1 - found.realised_margin_safe.value
    assert found.realised_margin_safe.value >= found.margin_safe.value
    assert found.realised_eta.mean() <= sum(found.attribution.values()) * slack
    for layer in found.layers:
        assert found.attribution[layer.name] <= layer.eta.mean() * slack + 1e-7
        assert layer.shift_mean.value <= layer.moment_bound.value * slack
    # The elastic-net certificate: with a penalty above break-even, pruning lowers the regularised loss.
    removed = {name: weights[name] * ~found_masks[name] for name in weights}
    squares = sum(float((R.double() ** 2).sum()) for R in removed.values())
    l2 = 1.001 * found.budget.value / squares
    assert found.loss_change.value - l2 * squares < 0


def test_the_last_layer_is_exact_and_jacobians_are_estimates() -> None:
    model, x = random_network(1)
    last = "1.weight"
    mask = {last: masks.magnitude(model[1].weight.detach(), 0.5)}
    found = certify(model, mask, [x])
    assert found.layers[0].lipschitz == EXACT
    np.testing.assert_allclose(found.layers[0].eta, found.realised_eta, rtol=1e-5)
    every = masks.magnitude({n: p.detach() for n, p in model.named_parameters() if p.dim() > 1}, 0.05)
    estimate = certify(model, every, [x], lipschitz="jacobian")
    bound = certify(model, every, [x], lipschitz="product")
    assert estimate.budget.kind == "estimate"
    assert estimate.budget.value < bound.budget.value
    assert certify(model, every, [x]).budget.kind == "proxy"
    given = certify(model, every, [x], lipschitz=lambda name, sample: 3.0)
    assert given.layers[0].eta == pytest.approx(3 * certify(model, every, [x]).layers[0].eta)
    assert len(bound.to_rows()) == len(every)


def test_magnification_is_a_bound() -> None:
    torch.manual_seed(0)
    for module in (
        torch.nn.Linear(10, 7),
        torch.nn.GELU(),
        torch.nn.SiLU(),
        torch.nn.Sigmoid(),
        torch.nn.Tanh(),
        torch.nn.Sequential(torch.nn.Linear(10, 10), torch.nn.LeakyReLU(2.0)),
    ):
        a = 3 * torch.randn(500, 10)
        b = a + torch.randn(500, 10) * torch.logspace(-3, 1, 500)[:, None]
        growth = ((module(a) - module(b)).abs().amax(dim=1) / (a - b).abs().amax(dim=1)).max().detach()
        assert float(growth) <= magnification(module) * (1 + 1e-5)
    with pytest.raises(ValueError, match="LayerNorm"):
        magnification(torch.nn.LayerNorm(4))


def test_certify_errors() -> None:
    model, x = random_network(1)
    mask = {"1.weight": torch.ones(5, 20, dtype=torch.bool)}
    with pytest.raises(ValueError, match="order"):
        certify(model, mask, [x], order="any")
    with pytest.raises(ValueError, match="lipschitz"):
        certify(model, mask, [x], lipschitz="guess")
    with pytest.raises(ValueError, match="no sample"):
        certify(model, mask, [])
    with pytest.raises(ValueError, match="shape"):
        certify(model, {"1.weight": torch.ones(5, 2, dtype=torch.bool)}, [x])
    with pytest.raises(ValueError, match="not the weight"):
        certify(model, {"1.bias": torch.ones(5, dtype=torch.bool)}, [x])
    every = torch.ones(20, 20, dtype=torch.bool)
    shared = torch.nn.Linear(20, 20)
    for second in (shared, torch.nn.Linear(20, 20)):
        second.weight = shared.weight
        with pytest.raises(ValueError, match=r"masks\['0.weight'\] is for a weight that is also 2.weight"):
            certify(torch.nn.Sequential(shared, torch.nn.ReLU(), second), {"0.weight": every}, [x])

    class Twice(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(20, 20)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(self.layer(x))

    with pytest.raises(ValueError, match="exactly once"):
        certify(Twice(), {"layer.weight": every}, [x])
    with pytest.raises(ValueError, match="labels must lie in"):
        certify(model, mask, [x], labels=[torch.full((len(x),), -100)])


class Residual(torch.nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + super().forward(x)


class TenTimes(torch.nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 10 * super().forward(x)


class OwnConv(torch.nn.Conv2d):
    def _conv_forward(self, *arguments: Any) -> torch.Tensor:
        return 10 * super()._conv_forward(*arguments)


class OwnReLU(torch.nn.ReLU):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 5 * super().forward(x)


class OwnPool(torch.nn.MaxPool2d):
    pass


def hooked(module: torch.nn.Module, pre: bool = False) -> torch.nn.Module:
    if pre:
        module.register_forward_pre_hook(lambda module, inputs: (10 * inputs[0],))
    else:
        module.register_forward_hook(lambda module, inputs, output: 10 * output)
    return module


def patched(module: torch.nn.Module) -> torch.nn.Module:
    plain = module.forward
    module.forward = lambda x: 10 * plain(x)
    return module


class Doubled(torch.nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


def parametrized(module: torch.nn.Module) -> torch.nn.Module:
    torch.nn.utils.parametrize.register_parametrization(module, "weight", Doubled())
    return module


STRANGE = {
    "residual": lambda: Residual(torch.nn.Linear(4, 4)),
    "subclass of linear": lambda: TenTimes(4, 4),
    "subclass of conv": lambda: OwnConv(1, 1, 1),
    "subclass of relu": OwnReLU,
    "subclass of pool": lambda: OwnPool(1),
    "hook": lambda: hooked(torch.nn.Linear(4, 4)),
    "hook of relu": lambda: hooked(torch.nn.ReLU()),
    "pre-hook": lambda: hooked(torch.nn.Linear(4, 4), pre=True),
    "hook of sequential": lambda: hooked(torch.nn.Sequential(torch.nn.Linear(4, 4))),
    "hook within": lambda: torch.nn.Sequential(hooked(torch.nn.Identity())),
    "own forward": lambda: patched(torch.nn.Linear(4, 4)),
    "parametrized": lambda: parametrized(torch.nn.Linear(4, 4)),
    "weight norm": lambda: torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(4, 4)),
    "pruned": lambda: torch.nn.utils.prune.random_unstructured(torch.nn.Linear(4, 4), "weight", 0.5),
    "indices": lambda: torch.nn.MaxPool2d(1, return_indices=True),
    "dropout in training": lambda: torch.nn.Dropout(0.5),
    "norm in training": lambda: torch.nn.BatchNorm1d(4),
    "norm of the batch": lambda: torch.nn.BatchNorm1d(4, track_running_stats=False).eval(),
}


@pytest.mark.parametrize("strange", STRANGE)
def test_what_a_changed_module_magnifies_is_not_known(strange: str) -> None:
    with pytest.raises(ValueError, match=r"not known|in training"):
        magnification(STRANGE[strange]())


@pytest.mark.parametrize(
    "strange",
    [
        "residual",
        "subclass of linear",
        "subclass of relu",
        "hook",
        "hook of relu",
        "pre-hook",
        "hook of sequential",
        "hook within",
        "own forward",
        "parametrized",
        "weight norm",
    ],
)
def test_no_bound_goes_through_a_changed_module(strange: str) -> None:
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), STRANGE[strange](), torch.nn.Linear(4, 2))
    mask = {"0.weight": torch.rand(4, 4) > 0.5}
    with pytest.raises(ValueError, match="not known"):
        certify(model, mask, [torch.randn(3, 4)], lipschitz="product")


@pytest.mark.parametrize("strange", ["residual", "subclass of linear", "hook", "hook of sequential"])
def test_nothing_is_exact_of_a_changed_model(strange: str) -> None:
    torch.manual_seed(2)
    layer = torch.nn.Linear(4, 4)
    changed = {
        "residual": lambda: Residual(layer),
        "subclass of linear": lambda: torch.nn.Sequential(layer, TenTimes(4, 4)),
        "hook": lambda: torch.nn.Sequential(layer, hooked(torch.nn.Identity())),
        "hook of sequential": lambda: hooked(torch.nn.Sequential(layer)),
    }[strange]()
    found = certify(changed, {"0.weight": torch.rand(4, 4) > 0.5}, [torch.randn(5, 4)])
    assert found.layers[0].lipschitz == "unscaled"
    assert found.budget.kind == found.eta.kind == "proxy"


@pytest.mark.parametrize("strange", ["subclass of linear", "hook", "pre-hook", "own forward", "parametrized", "pruned"])
def test_the_weights_of_a_changed_layer_are_not_certified(strange: str) -> None:
    model = torch.nn.Sequential(STRANGE[strange](), torch.nn.Linear(4, 2))
    name = "0.weight"
    with pytest.raises(ValueError, match=r"masks\['0.weight'\] is for a \w+ with"):
        certify(model, {name: torch.rand(4, 4) > 0.5}, [torch.randn(3, 4)])


def test_a_module_that_is_there_twice_magnifies_twice() -> None:
    double = torch.nn.Linear(2, 2, bias=False)
    double.weight.data = 2 * torch.eye(2)
    assert magnification(torch.nn.Sequential(double, double)) == 4
    first = torch.nn.Linear(2, 2, bias=False)
    model = torch.nn.Sequential(first, double, torch.nn.Identity(), double)
    found = certify(model, {"0.weight": torch.zeros(2, 2, dtype=torch.bool)}, [torch.ones(3, 2)], lipschitz="product")
    np.testing.assert_allclose(found.layers[0].eta, found.realised_eta, rtol=1e-6)


@pytest.mark.parametrize("options", [{}, {"ceil_mode": True}, {"count_include_pad": False}, {"divisor_override": 1}])
def test_pooling_in_all_its_forms(options: dict[str, Any]) -> None:
    torch.manual_seed(3)
    for size, stride, padding in ((2, 2, 0), ((3, 2), 2, 1), (3, 1, 1), (3, 2, 0)):
        module = torch.nn.AvgPool2d(size, stride, padding, **options)
        a, change = torch.randn(4, 1, 8, 7), torch.ones(4, 1, 8, 7)
        growth = float((module(a + change) - module(a)).abs().max())
        assert growth <= magnification(module) * (1 + 1e-6)
        assert magnification(module) <= 1.0001 * growth  # some window is whole
    divided = torch.nn.AvgPool2d(2, divisor_override=16)
    assert magnification(divided) == 0.25


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize(("dilation", "groups"), [(1, 1), (2, 1), (1, 2), (2, 4)])
def test_convolutions_in_all_their_forms(mode: str, dilation: int, groups: int) -> None:
    torch.manual_seed(4)
    conv = torch.nn.Conv2d(4, 8, 3, padding=2, dilation=dilation, groups=groups, padding_mode=mode)
    a = torch.randn(1, 4, 9, 9)
    # The worst difference at one place follows the signs of the weights; random ones come nowhere near.
    centre = torch.autograd.functional.jacobian(lambda x: conv(x)[0, :, 4, 4], a)
    exact = float(centre.abs().sum(dim=(1, 2, 3, 4)).max())
    assert exact <= magnification(conv) * (1 + 1e-6)
    if groups == 1:
        model = torch.nn.Sequential(conv, torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 81, 3)).eval()
        if dilation == 2:
            model[0].padding = (2, 2)
        size = model[:3](a).shape[1]
        model[3] = torch.nn.Linear(size, 3)
        mask = masks.magnitude(conv.weight.detach(), 0.3)
        found = certify(model, {"0.weight": mask}, [torch.randn(6, 4, 9, 9)], lipschitz="product")
        assert (found.realised_eta <= found.layers[0].eta * (1 + 1e-5)).all()


def test_a_model_that_does_not_repeat_itself_is_not_certified() -> None:
    class Noisy(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.dropout(x, 0.5)

    model = torch.nn.Sequential(torch.nn.Linear(40, 40), Noisy(), torch.nn.Linear(40, 2))
    mask = {"0.weight": torch.rand(40, 40) > 0.5}
    with pytest.raises(ValueError, match="computes something else each time"):
        certify(model, mask, [torch.randn(3, 40)])

    class Stubborn(torch.nn.Dropout):
        def train(self, mode: bool = True) -> Any:
            return super().train(True)

    model = torch.nn.Sequential(torch.nn.Linear(40, 40), Stubborn(), torch.nn.Linear(40, 2))
    with pytest.raises(ValueError, match="stays in training after eval"):
        certify(model, mask, [torch.randn(3, 40)])


def test_statistics_of_a_batch_do_not_reach_other_samples() -> None:
    """Normalised by its own statistics a sample is another one in a batch: all is said of samples one by one."""
    torch.manual_seed(5)
    norm = torch.nn.BatchNorm2d(2, track_running_stats=False)
    model = torch.nn.Sequential(norm, torch.nn.Flatten(), torch.nn.Linear(32, 3))
    x = torch.randn(6, 2, 4, 4) * torch.logspace(-2, 2, 6)[:, None, None, None]
    found = certify(model, {"2.weight": torch.rand(3, 32) > 0.5}, [x], lipschitz="product")
    np.testing.assert_allclose(found.layers[0].eta, found.realised_eta, rtol=1e-4)


@pytest.mark.parametrize("margin", [20.0, 40.0, 60.0])
def test_the_worst_loss_of_a_confident_model_is_a_bound(margin: float) -> None:
    """A cross-entropy of such logits rounds to 0, but pruning takes the whole margin away."""
    layer = torch.nn.Linear(2, 2, bias=False)
    layer.weight.data = torch.tensor([[margin, 0.0], [0.0, 1.0]])
    mask = {"0.weight": torch.tensor([[False, True], [True, True]])}
    found = certify(torch.nn.Sequential(layer), mask, [torch.tensor([[1.0, 20.0]])], labels=[torch.tensor([0])])
    assert found.loss_change is not None
    assert found.worst_loss_change is not None
    assert 0 < found.loss_change.value <= found.worst_loss_change.value
    assert found.worst_loss_change.kind == BOUND
