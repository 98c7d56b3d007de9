"""Prune and restore on small PyTorch models."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from mpfast import masks  # noqa: E402
from mpfast.integrations.torch.restoration import FineTuning, PruneAndRestore, Selection  # noqa: E402
from mpfast.masks.restoration import input_norm_saliency  # noqa: E402

pytestmark = pytest.mark.slow


def problem() -> tuple[torch.nn.Module, list[Any]]:
    torch.manual_seed(0)
    x = torch.randn(512, 24)
    y = (x @ torch.randn(24, 4)).argmax(dim=1)
    model = torch.nn.Sequential(
        torch.nn.Linear(24, 64), torch.nn.BatchNorm1d(64), torch.nn.ReLU(), torch.nn.Linear(64, 4)
    )
    loader = list(zip(x.split(64), y.split(64), strict=True))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(20):
        for batch in loader:
            optimizer.zero_grad()
            loss(model, batch).backward()
            optimizer.step()
    return model.eval(), loader


def loss(model: torch.nn.Module, batch: Any) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])


def accuracy(loader: list[Any]) -> Any:
    def evaluate(model: torch.nn.Module) -> float:
        model.eval()
        with torch.no_grad():
            right = sum(int((model(x).argmax(dim=1) == y).sum()) for x, y in loader)
        return right / sum(len(y) for _, y in loader)

    return evaluate


OPTIONS = {"selection": Selection(batches=16, lr=1e-2), "fine_tuning": FineTuning(lr=1e-3)}


@pytest.mark.parametrize("protect", ["quiet", "loud", "none"])
@pytest.mark.parametrize("reservoir", ["all", "new"])
def test_every_step_is_exact(protect: str, reservoir: str) -> None:
    model, loader = problem()
    job = PruneAndRestore(
        model, loader, loss, protect=protect, reservoir=reservoir, evaluate=accuracy(loader), **OPTIONS
    )
    total = 24 * 64 + 64 * 4
    before = job.masks
    for wanted, report in zip((0.1, 0.2, 0.3, 0.5), job.run([0.1, 0.2, 0.3, 0.5]), strict=True):
        gone = sum(int((~mask).sum()) for mask in job.masks.values())
        assert gone == math.floor(wanted * total + 1e-9)
        assert report.sparsity == pytest.approx(gone / total)
        assert report.method == ("magnitude" if wanted <= 0.2 else "restore")
        assert report.pruned - report.restored == gone - sum(int((~mask).sum()) for mask in before.values())
        assert report.score is not None
        for name, weight in model.named_parameters():
            if name in job.masks:
                assert (weight[~job.masks[name]] == 0).all()
        if reservoir == "new" or report.method == "magnitude":
            assert report.restored == 0
            assert not any((job.masks[name] & ~before[name]).any() for name in before)
        before = job.masks
    assert not model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert report.score > 0.8


def test_restored_weights_get_their_values_back() -> None:
    model, loader = problem()
    dense = {name: p.detach().clone() for name, p in model.named_parameters()}
    job = PruneAndRestore(model, loader, loss, selection=OPTIONS["selection"], fine_tuning=FineTuning(epochs=0))
    job.restore_step(0.4)
    for name, mask in job.masks.items():
        assert torch.equal(dict(model.named_parameters())[name], dense[name] * mask)
    # Nothing else has moved, buffers included.
    for name, parameter in model.named_parameters():
        if name not in job.masks:
            assert torch.equal(parameter, dense[name])
    assert model[1].num_batches_tracked == 160


def test_restoring_chooses_what_the_loss_asks_for() -> None:
    """Every second input matters, by small weights; the others have large ones. All are pruned, half come back."""
    torch.manual_seed(1)
    truth = 0.1 * torch.randn(32, 32).sign()
    truth[:, 1::2] = 0
    model = torch.nn.Sequential(torch.nn.Linear(32, 32, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(truth)
        model[0].weight[:, 1::2] = torch.randn(32, 16)
    x = torch.randn(2000, 32)
    loader = [(part, part @ truth.T) for part in x.split(50)]

    def squares(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        return ((model(batch[0]) - batch[1]) ** 2).mean()

    job = PruneAndRestore(
        model,
        loader,
        squares,
        over_prune=0.5,
        selection=Selection(lr=5e-3, batches=100),
        fine_tuning=FineTuning(epochs=0),
    )
    job.restore_step(0.5)
    assert torch.equal(job.masks["0.weight"], truth != 0)
    assert torch.equal(model[0].weight, truth)


def test_a_saliency_needs_no_gradients() -> None:
    model, loader = problem()
    inputs = torch.cat([x for x, _ in loader])
    hidden = model[:3](inputs).detach()
    seen = {"0.weight": inputs, "3.weight": hidden}

    def saliency(model: torch.nn.Module, kept: Any) -> Any:
        return {name: input_norm_saliency(job._shelf[name], (seen[name].double() ** 2).mean(dim=0)) for name in kept}

    def refuse(model: torch.nn.Module, batch: Any) -> torch.Tensor:
        raise AssertionError("no batch is needed")

    job = PruneAndRestore(model, loader, refuse, saliency=saliency, fine_tuning=FineTuning(epochs=0))
    report = job.restore_step(0.5)
    assert report.sparsity == pytest.approx(0.5, abs=1e-3)


def test_drop_threshold_hands_over() -> None:
    model, loader = problem()
    scores = iter([0.95, 0.949, 0.94, 0.9, 0.93])
    job = PruneAndRestore(model, loader, loss, evaluate=lambda model: next(scores), **OPTIONS)
    methods = [report.method for report in job.run([0.1, 0.2, 0.3, 0.4], drop=0.007)]
    assert methods == ["magnitude", "magnitude", "restore", "restore"]


def test_nothing_to_do() -> None:
    model, loader = problem()
    job = PruneAndRestore(model, loader, loss, **OPTIONS)
    with pytest.raises(ValueError, match="evaluate"):
        next(job.run([0.1], drop=0.1))
    job.magnitude_step(0.5)
    with pytest.raises(ValueError, match="pruned already"):
        job.magnitude_step(0.4)
    with pytest.raises(ValueError, match="no Linear"):
        PruneAndRestore(torch.nn.ReLU(), loader, loss)
    for option in ({"over_prune": 1.0}, {"reservoir": "old"}, {"protect": "all"}):
        with pytest.raises(ValueError, match=next(iter(option))):
            PruneAndRestore(model, loader, loss, **option)


def test_signals_are_those_of_the_budget() -> None:
    model, _ = problem()
    weights = {name: p.detach() for name, p in model.named_parameters() if p.dim() == 2}
    for sparsity in (0.3, 0.6):
        signals = masks.spectral_signals(weights, "sigma_plus")
        given = masks.spectral_budget(weights, sparsity, signals=signals)
        found = masks.spectral_budget(weights, sparsity)
        assert all(torch.equal(given[name], found[name]) for name in weights)


class Fresh:
    """A loader that makes its batches anew and knows how many of them are alive."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches
        self.alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
        self.most = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        for x, y in self.batches:
            fresh = x.clone()
            self.alive.add(fresh)
            self.most = max(self.most, len(self.alive))
            yield fresh, y


def test_batches_are_not_kept() -> None:
    """The trial of pruned weights goes through several epochs; no more than two batches are ever in memory."""
    model, batches = problem()
    loader = Fresh(batches)
    PruneAndRestore(model, loader, loss, selection=Selection(batches=40), fine_tuning=FineTuning()).restore_step(0.3)
    assert loader.most <= 2


def test_an_empty_loader_trains_nothing() -> None:
    model, _ = problem()
    report = PruneAndRestore(model, [], loss).restore_step(0.3)
    assert report.sparsity == pytest.approx(0.3, abs=1 / 1792)
