"""Prune and restore (SER) of a PyTorch model while it is trained; the bookkeeping is in `mpfast.masks.restoration`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from mpfast.checkpoints import NameFilter
from mpfast.integrations.torch.layers import prunable_modules
from mpfast.masks import (
    BERLYAND2026,
    default_layer_type,
    layer_weights,
    magnitude,
    regime_for,
    restore,
    spectral_budget,
    spectral_signals,
)
from mpfast.support import InvalidValueError, front_door

__all__ = ["FineTuning", "PruneAndRestore", "Selection", "StepReport"]

Loss = Callable[[torch.nn.Module, Any], torch.Tensor]
Saliency = Callable[[torch.nn.Module, Mapping[str, torch.Tensor]], Mapping[str, Any]]


@dataclass(frozen=True)
class Selection:
    """How the pruned weights are tried out: with AdamW, everything else frozen.

    Attributes
    ----------
    lr, min_lr_ratio : float
        Learning rate at the start, and the part of it that is left at the end of a cosine.
    batches : int, optional
        How many; default the pruned share of an epoch, but no fewer than `least_batches`.
    least_batches : int
    """

    lr: float = 4e-4
    min_lr_ratio: float = 0.25
    batches: int | None = None
    least_batches: int = 128


@dataclass(frozen=True)
class FineTuning:
    """How the model is trained after each step: SGD on all parameters, the masks applied after every update.

    Attributes
    ----------
    lr, min_lr_ratio, momentum, weight_decay : float
    epochs : int
        0: no training.
    clip : float, optional
        Largest norm of the gradient.
    """

    lr: float = 5e-5
    min_lr_ratio: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-6
    epochs: int = 1
    clip: float | None = 1.0


@dataclass(frozen=True)
class StepReport:
    """What one step did.

    Attributes
    ----------
    sparsity : float
        Of the prunable weights, as reached.
    method : str
        ``"magnitude"``, ``"restore"`` or what `prune_to` was told.
    pruned, restored : int
        Entries that this step took out, and how many of the pruned ones it put back.
    score : float, optional
        What `evaluate` returned after the training of this step.
    """

    sparsity: float
    method: str
    pruned: int
    restored: int
    score: float | None


@dataclass
class PruneAndRestore:
    """Prunes the Linear and Conv2d weights of a model step by step.

    A `magnitude_step` prunes globally by magnitude and fine-tunes. A `restore_step` prunes with a spectral budget, but
    by `over_prune` more than asked for; lets the pruned weights alone move, from zero; puts those back that moved most,
    with the values that they had when they were pruned; and fine-tunes. `run` goes through a schedule of both.

    Parameters
    ----------
    model : Module
        Changed in place: after each step its pruned weights are zeros. `masks` says which.
    loader : iterable
        Of batches, gone through once per epoch.
    loss : callable
        From (model, batch) to a scalar tensor.
    over_prune : float
        Share of all prunable weights that a restore step prunes in excess.
    saliency : callable, optional
        From (model, masks) to scores by parameter name, in place of the movement under training: no gradient is then
        needed. See `mpfast.masks.restoration`.
    reservoir : str
        What may be restored: ``"all"`` pruned weights, or the ``"new"`` ones of this step.
    protect : str
        Factor of the saliency of a layer: ``"quiet"``, one over its weight in the spectral budget, so that layers with
        little noise get more back (the paper's text); ``"loud"``, the weight (the paper's algorithm); ``"none"``.
    selection, fine_tuning : Selection, FineTuning
    evaluate : callable, optional
        From the model to a score, the higher the better; for the reports and for `run`'s `drop`.
    include, exclude : optional
        As in `prunable_modules`.
    seed : int
        Of the spectra.

    Raises
    ------
    ValueError
        An option is out of range, or the model has nothing to prune.
    """

    model: torch.nn.Module
    loader: Iterable[Any]
    loss: Loss
    over_prune: float = 0.03
    saliency: Saliency | None = None
    reservoir: str = "all"
    protect: str = "quiet"
    selection: Selection = field(default_factory=Selection)
    fine_tuning: FineTuning = field(default_factory=FineTuning)
    evaluate: Callable[[torch.nn.Module], float] | None = None
    include: NameFilter | None = None
    exclude: NameFilter | None = None
    seed: int = 0

    @front_door
    def __post_init__(self) -> None:
        if not 0 <= self.over_prune < 1:
            raise InvalidValueError("over_prune", f"must lie in [0, 1), not {self.over_prune!r}")
        if self.reservoir not in ("all", "new"):
            raise InvalidValueError("reservoir", f"must be 'all' or 'new', not {self.reservoir!r}")
        if self.protect not in ("quiet", "loud", "none"):
            raise InvalidValueError("protect", f"must be 'quiet', 'loud' or 'none', not {self.protect!r}")
        modules = prunable_modules(self.model, self.include, self.exclude)
        if not modules:
            raise InvalidValueError("model", "has no Linear or Conv2d to prune")
        self._weights = {f"{name}.weight": module.weight for name, module in modules.items()}
        self.masks = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in self._weights.items()}
        # What pruned weights were before.
        self._shelf = {name: weight.detach().clone() for name, weight in self._weights.items()}

    @property
    def sparsity(self) -> float:
        """Share of the prunable weights that is pruned."""
        kept = sum(int(mask.sum()) for mask in self.masks.values())
        return 1 - kept / sum(int(mask.numel()) for mask in self.masks.values())

    @front_door
    def run(
        self,
        sparsities: Sequence[float],
        *,
        magnitude_until: float = 0.20,
        drop: float | None = None,
        reference: float | None = None,
    ) -> Iterator[StepReport]:
        """Go through rising sparsities; yields a report after each.

        Parameters
        ----------
        sparsities : sequence of float
            The paper goes in steps of 0.05.
        magnitude_until : float
            Magnitude steps up to here, restore steps beyond: the paper's hybrid. 0: restore steps only.
        drop : float, optional
            In place of `magnitude_until`: magnitude steps until the score falls by more than this below `reference`.
        reference : float, optional
            Default the score of the model as it is now.

        Raises
        ------
        ValueError
            `drop` without `evaluate`, or a sparsity below the one before.
        """
        if drop is not None and self.evaluate is None:
            raise InvalidValueError("drop", "needs an evaluate function")
        return self._steps(sparsities, magnitude_until, drop, reference)

    def _steps(
        self, sparsities: Sequence[float], magnitude_until: float, drop: float | None, reference: float | None
    ) -> Iterator[StepReport]:
        if drop is not None and self.evaluate is not None and reference is None:
            reference = self.evaluate(self.model)
        by_magnitude = True
        for sparsity in sparsities:
            if drop is None:
                by_magnitude = sparsity <= magnitude_until
            report = self.magnitude_step(sparsity) if by_magnitude else self.restore_step(sparsity)
            yield report
            if drop is not None and report.score is not None and reference is not None:
                by_magnitude = by_magnitude and report.score >= reference - drop

    @front_door
    def magnitude_step(self, sparsity: float) -> StepReport:
        """Prune globally by magnitude, what is pruned staying so, and fine-tune."""
        return self.prune_to(magnitude(self.weights, sparsity, within=self.masks), "magnitude")

    @front_door
    def prune_to(self, found: Mapping[str, torch.Tensor], method: str = "given") -> StepReport:
        """Prune by masks that come from elsewhere, by parameter name, and fine-tune.

        Raises
        ------
        ValueError
            A mask is missing, or keeps what is pruned already.
        """
        for name, mask in self.masks.items():
            if name not in found or bool((found[name] & ~mask).any()):
                raise InvalidValueError(f"the mask of {name}", "is missing, or keeps what is pruned already")
        before = dict(self.masks)
        self._prune({name: found[name] for name in self.masks})
        return self._finish(method, before)

    @front_door
    def restore_step(self, sparsity: float) -> StepReport:
        """Prune too much, restore the excess, and fine-tune."""
        before = dict(self.masks)
        regime = regime_for(sparsity, BERLYAND2026)
        signals = spectral_signals(self.weights, regime.signal, seed=self.seed)
        types = [default_layer_type(name) for name in signals]
        weights = dict(zip(signals, layer_weights(list(signals.values()), sparsity, regime, types), strict=True))
        excess = min(sparsity + self.over_prune, 1.0)
        self._prune(spectral_budget(self.weights, excess, regimes=regime, signals=signals, within=self.masks))
        scores = self._movement() if self.saliency is None else self.saliency(self.model, self.masks)
        power = {"quiet": -1, "loud": 1, "none": 0}[self.protect]
        restored = restore(
            self.masks,
            scores,
            sparsity,
            layer_weights={name: float(weight) ** power for name, weight in weights.items()},
            eligible=before if self.reservoir == "new" else None,
        )
        with torch.no_grad():
            for name, weight in self._weights.items():
                back = restored[name] & ~self.masks[name]
                weight[back] = self._shelf[name][back]
        self.masks = restored
        return self._finish("restore", before)

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The prunable weights as they are now, by parameter name."""
        return {name: weight.detach() for name, weight in self._weights.items()}

    @torch.no_grad()
    def _prune(self, found: Mapping[str, torch.Tensor]) -> None:
        for name, weight in self._weights.items():
            gone = self.masks[name] & ~found[name]
            self._shelf[name][gone] = weight[gone]
            weight[~found[name]] = 0
        self.masks = dict(found)

    def _finish(self, method: str, before: Mapping[str, torch.Tensor]) -> StepReport:
        self._fine_tune()
        pruned = sum(int((before[name] & ~mask).sum()) for name, mask in self.masks.items())
        restored = sum(int((mask & ~before[name]).sum()) for name, mask in self.masks.items())
        score = None if self.evaluate is None else float(self.evaluate(self.model))
        return StepReport(self.sparsity, method, pruned, restored, score)

    def _movement(self) -> dict[str, torch.Tensor]:
        """How far each pruned weight goes when the pruned weights alone are trained, from zero."""
        options = self.selection
        batches = options.batches
        if batches is None:
            batches = max(options.least_batches, round(self.sparsity * self._batches_per_epoch()))
        kept = {name: weight.detach().clone() for name, weight in self._weights.items()}
        buffers = {name: buffer.detach().clone() for name, buffer in self.model.named_buffers()}
        trainable = {id(weight) for weight in self._weights.values()}
        frozen = [p for p in self.model.parameters() if p.requires_grad and id(p) not in trainable]
        for parameter in frozen:
            parameter.requires_grad_(False)
        try:
            optimizer = torch.optim.AdamW(list(self._weights.values()), lr=options.lr, weight_decay=0.0)
            for _ in self._train(optimizer, self._epochs(), batches, options.min_lr_ratio, frozen=True):
                pass
            moved = {
                name: torch.where(self.masks[name], torch.zeros_like(weight), weight.detach())
                for name, weight in self._weights.items()
            }
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)
            with torch.no_grad():
                for name, weight in self._weights.items():
                    weight.copy_(kept[name])
                for name, buffer in self.model.named_buffers():
                    buffer.copy_(buffers[name])
        return moved

    def _batches_per_epoch(self) -> int:
        loader: Any = self.loader
        try:
            return len(loader)
        except TypeError:  # not every loader knows; to go through it can take as long as an epoch
            return sum(1 for _ in self.loader)

    def _epochs(self) -> Iterator[Any]:
        """Yield batches without end, epoch after epoch; none is kept, and a loader that is empty or used up ends it."""
        found = True
        while found:
            found = False
            for batch in self.loader:
                found = True
                yield batch

    def _fine_tune(self) -> None:
        options = self.fine_tuning
        if options.epochs == 0:
            return
        batches = options.epochs * self._batches_per_epoch()
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(
            parameters, lr=options.lr, momentum=options.momentum, weight_decay=options.weight_decay
        )
        for _ in self._train(optimizer, self._epochs(), batches, options.min_lr_ratio, clip=options.clip):
            with torch.no_grad():
                for name, weight in self._weights.items():
                    weight.mul_(self.masks[name])

    def _train(
        self,
        optimizer: torch.optim.Optimizer,
        loader: Iterable[Any],
        batches: int,
        min_lr_ratio: float,
        *,
        frozen: bool = False,
        clip: float | None = None,
    ) -> Iterator[None]:
        """Train for some batches, the learning rate falling along a cosine; yields after every update."""

        def rate(step: int) -> float:
            fall = (1 + math.cos(math.pi * min(step / max(batches, 1), 1.0))) / 2
            return min_lr_ratio + (1 - min_lr_ratio) * fall

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        was_training = self.model.training
        self.model.train()
        for batch in itertools.islice(loader, batches):
            optimizer.zero_grad(set_to_none=True)
            self.loss(self.model, batch).backward()
            if frozen:
                for name, weight in self._weights.items():
                    if weight.grad is not None:
                        weight.grad.mul_(~self.masks[name])
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], clip)
            optimizer.step()
            schedule.step()
            yield
        optimizer.zero_grad(set_to_none=True)
        self.model.train(was_training)
