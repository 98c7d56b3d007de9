"""Mean squares of gradients in the outputs of layers, and budgets by name for live models."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import mpfast  # noqa: E402
from mpfast.integrations.torch import SecondMoments, output_gradients, reconstruct_model  # noqa: E402
from mpfast.models import METHODS, share_out  # noqa: E402


def small(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)).double()


def by_autograd(model, x, weight):
    """Of ``sum(weight * output)``: the gradient in the outputs of the first layer, by hand."""
    first = model[0](x).detach().requires_grad_()
    (model[2](torch.tanh(first)) * weight).sum().backward()
    return first.grad.square().mean(0)


def test_they_are_those_of_the_loss():
    model, x = small(), torch.randn(40, 6).double()
    weight = torch.tensor([1.0, -2.0, 0.5]).double()
    found = output_gradients(model, [x[:15], x[15:]], loss=lambda output, _: (output * weight).sum())
    torch.testing.assert_close(found["0"], by_autograd(model, x, weight))
    torch.testing.assert_close(found["2"], weight.square())
    assert found["0"].dtype == torch.float64


@pytest.mark.parametrize("frozen", [True, False])
def test_the_model_is_as_it_was(frozen):
    model = small().train().requires_grad_(not frozen)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    output_gradients(model, [torch.randn(4, 6).double()])
    assert model.training
    for name, parameter in model.named_parameters():
        assert parameter.grad is None
        assert parameter.requires_grad is not frozen
        assert torch.equal(parameter, before[name])


class Tokens(torch.nn.Module):
    """What transformers' models are like: keywords, a mask, and an output with logits or hidden states."""

    def __init__(self, logits):
        super().__init__()
        self.inner = torch.nn.Linear(4, 4)
        self.logits = logits

    def forward(self, x, attention_mask=None):
        hidden = self.inner(x)
        return type("Output", (), {"logits": hidden})() if self.logits else (hidden, None)


@pytest.mark.parametrize("logits", [True, False])
def test_padding_is_not_counted(logits):
    torch.manual_seed(1)
    model, x = Tokens(logits), torch.randn(2, 5, 4)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    padded = output_gradients(model, [{"x": x, "attention_mask": mask}])
    alone = output_gradients(model, [{"x": x[mask.bool()][None]}])
    torch.testing.assert_close(padded["inner"], alone["inner"])


def test_labels_are_drawn_from_the_predictions():
    """Of logits z with p = softmax(z), the mean square of p - label is p (1 - p)."""
    torch.manual_seed(2)
    model = Tokens(logits=True)
    x = torch.randn(1, 1, 4).expand(1, 20000, 4)
    p = torch.softmax(model.inner(x[0, :1]), -1)[0].detach().double()
    found = output_gradients(model, [{"x": x}])["inner"]
    # Squares lie in [0, 1]: four standard errors of 20000 draws.
    torch.testing.assert_close(found, p * (1 - p), atol=4 * 0.5 / 20000**0.5, rtol=0)


def test_channels_of_convolutions():
    torch.manual_seed(3)
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3))
    scale = torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    found = output_gradients(model, [torch.randn(4, 2, 6, 6)], loss=lambda output, _: (output * scale).sum())
    torch.testing.assert_close(found["0"], torch.tensor([1.0, 4.0, 9.0]).double())


def test_what_is_refused():
    model, x = small(), torch.randn(4, 6).double()
    with pytest.raises(ValueError, match=r"output_gradients\(\): batches are empty"):
        output_gradients(model, [])
    with pytest.raises(ValueError, match="loss depends on no layer's outputs"):
        output_gradients(model, [x], loss=lambda *_: torch.tensor(1.0))
    with pytest.raises(TypeError, match="loss must be a function of output and batch, not str"):
        output_gradients(model, [x], loss="mean")
    with pytest.raises(TypeError, match="loss must return a tensor of one number, not float"):
        output_gradients(model, [x], loss=lambda *_: 1.0)
    with pytest.raises(ValueError, match=r"loss must return one number, not shape .*; sum it"):
        output_gradients(model, [x], loss=lambda output, _: output)
    with pytest.raises(ValueError, match="loss is nan; look at what the model makes of the batches"):
        output_gradients(model, [x], loss=lambda output, _: output.sum() * float("nan"))
    with pytest.raises(ValueError, match="no module is left to watch"):
        output_gradients(torch.nn.Tanh(), [x])


@pytest.fixture(scope="module")
def blocks():
    torch.manual_seed(4)
    return torch.nn.Sequential(*(torch.nn.Linear(16, 16) for _ in range(3))), list(torch.randn(4, 100, 16))


@pytest.mark.parametrize("method", METHODS)
def test_live_models_take_budgets_by_name(method, blocks):
    model, batches = blocks
    result = reconstruct_model(model, batches, sparsity=0.6, budget=method)
    assert sum(row.pruned for row in result.report) == 460  # floor of 460.8


def test_the_budget_is_that_of_the_dense_models_moments(blocks):
    """Without the batch that is kept back for the held-out errors."""
    model, batches = blocks
    with SecondMoments(model) as moments, torch.no_grad():
        for batch in batches[:3]:
            model(batch)
    budget = share_out(model, 0.6, method="entropy_rank", moments=moments, progress=False)
    result = reconstruct_model(model, batches, sparsity=0.6, budget="entropy_rank")
    assert [row.pruned for row in result.report] == [row.pruned for row in budget]


def test_names_of_budgets_are_checked(blocks):
    model, batches = blocks
    with pytest.raises(ValueError, match="budget 'owl' shares out a sparsity, which is not given; pass sparsity="):
        reconstruct_model(model, batches, budget="owl")
    with pytest.raises(ValueError, match="budget 'owl' shares out a sparsity, which is not given"):
        reconstruct_model(model, batches, budget="owl", pattern="2:4")
    with pytest.raises(ValueError, match=r"budget must be one of uniform, .* or a Budget, not 'guess'"):
        reconstruct_model(model, batches, sparsity=0.5, budget="guess")
    with pytest.raises(TypeError, match="budget must be a Budget, not int"):
        reconstruct_model(model, batches, budget=3)


def test_from_a_live_model_to_its_masks(blocks):
    """The whole way of Gauss-Newton: gradients, moments, shares, masks and refitted weights."""
    model, batches = blocks
    with SecondMoments(model) as moments, torch.no_grad():
        for batch in batches:
            model(batch)
    gradients = output_gradients(model, batches)
    result = mpfast.prune(
        model, sparsity=0.6, budget="gauss_newton", moments=moments, gradients=gradients, progress=False
    )
    assert result.budget.pruned == 460
    assert set(result.weights) == {"0.weight", "1.weight", "2.weight"}
    spread = np.ptp([row.sparsity for row in result.budget])
    assert 0 < spread <= 0.5
