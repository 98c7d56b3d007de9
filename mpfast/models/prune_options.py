"""What the caller of `mpfast.prune` asked for, checked; and which layers are left to prune by it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from mpfast.arrays import parse_device
from mpfast.checkpoints import (
    Checkpoint,
    Dequantised,
    Layer,
    dense_copy,
    quantised_weight,
    reason_against_masking,
    repackable,
    stays_dense,
    telling_reason,
)
from mpfast.models.budget import Budget
from mpfast.models.budget_fit import FittedBudget
from mpfast.models.budget_row import LayerBudget
from mpfast.models.extent import default_ceiling
from mpfast.models.mask_fit import FittedMasks
from mpfast.models.methods import (
    DEFAULT_METHOD,
    DEFAULT_SHARES,
    METHODS,
    PATTERN_METHOD,
    SHARES_BY_GRADIENTS,
    Method,
    method_named,
)
from mpfast.models.refitting import DEFAULT_FIT, DEFAULT_STEPS, FITTED_METHODS, damping_for
from mpfast.models.shared_counts import check_needs
from mpfast.models.skipped import LEFT_DENSE
from mpfast.support import (
    LARGEST_GROUP,
    InvalidTypeError,
    InvalidValueError,
    check_flag,
    check_seed,
    check_sparsity,
    check_tolerance,
    parsed_pattern,
    team_size,
)

__all__ = ["PruneOptions", "changeable", "layers_to_prune"]


@dataclass(frozen=True)
class PruneOptions:
    """What the caller of `mpfast.prune` asked for, see there.

    Raises
    ------
    InvalidValueError, InvalidTypeError
        An option is out of range or of a wrong type, or not exactly one of `sparsity`, `pattern`, `budget`
        and `masks` is given.
    """

    sparsity: float | None
    method: str | None
    pattern: str | None
    budget: Budget | str | None
    embeddings: bool
    tol: float
    seed: int
    device: str | None
    threads: int | None
    progress: bool
    ceiling: float | None = None
    masks: Mapping[str, Any] | None = None
    has_moments: bool = False
    has_gradients: bool = False
    refit: int | None = None
    damping: float | None = None
    repack: bool = False

    def __post_init__(self) -> None:
        if self.budget is not None and not isinstance(self.budget, Budget | str):
            kind = type(self.budget).__name__
            raise InvalidTypeError("budget", f"must be a Budget, as Budget.from_json reads, or a name, not {kind}")
        if isinstance(self.budget, str):
            method_named(self.budget, " or a Budget, as Budget.from_json reads", "budget")
        if isinstance(self.budget, str) and self.sparsity is None:
            raise InvalidValueError("budget", f"{self.budget!r} shares out a sparsity, which is not given")
        said = (self.sparsity, self.pattern, self.given_budget, self.masks)
        if sum(option is not None for option in said) != 1:
            raise InvalidValueError("", "pass one of sparsity, pattern, budget and masks")
        self._check_method()
        self._check_sharing()
        self._check_refit()
        if self.sparsity is not None:
            check_sparsity(self.sparsity)
        if self.ceiling is not None:
            check_sparsity(self.ceiling, "ceiling")
        if self.ceiling is not None and (self.sparsity is None or self.sharing.is_even):
            raise InvalidValueError(
                "ceiling", "goes with sparsity and a method that takes more of one layer than another"
            )
        if self.ceiling is not None and self.sparsity is not None and self.ceiling < self.sparsity:
            raise InvalidValueError("ceiling", f"must be at least the sparsity, {self.sparsity}, not {self.ceiling}")
        if self.pattern is not None and not self.chooser and self.method not in (None, DEFAULT_METHOD, PATTERN_METHOD):
            raise InvalidValueError("", f"a pattern is chosen by {PATTERN_METHOD}, not by method={self.method!r}")
        if self.wanted_pattern is not None and parsed_pattern(self.wanted_pattern) is None:
            wanted = f"must be 'n:m' with 1 <= n < m <= {LARGEST_GROUP}"
            raise InvalidValueError("pattern", f"{wanted}, not {self.wanted_pattern!r}")
        check_flag(self.embeddings, "embeddings")
        check_flag(self.progress, "progress")
        check_flag(self.repack, "repack")
        check_tolerance(self.tol)
        check_seed(self.seed)
        parse_device(self.device)
        team_size(self.threads)

    def _check_method(self) -> None:
        known = (*METHODS, *FITTED_METHODS)
        if self.method is not None and self.method not in known:
            raise InvalidValueError("method", f"must be one of {', '.join(known)}, not {self.method!r}")
        if self.method in FITTED_METHODS and not self.has_moments:
            raise InvalidValueError("method", f"{self.method} needs moments", "collect them by mpfast moments")
        if self.method is not None and self.masks is not None:
            raise InvalidValueError("method", "chooses masks, which are given")

    def _check_sharing(self) -> None:
        if isinstance(self.budget, str) and self.method in METHODS:
            raise InvalidValueError("", f"budget={self.budget!r} and method={self.method!r} both share it out")
        if self.sparsity is not None:
            argument = "budget" if isinstance(self.budget, str) else "method"
            check_needs(self.sharing, moments=self.has_moments, gradients=self.has_gradients, argument=argument)
        if self.has_gradients and (self.sparsity is None or "gradients" not in self.sharing.needs):
            raise InvalidValueError(
                "gradients", "go with sparsity and a budget that needs them", "pass moments, too, and leave budget out"
            )

    def _check_refit(self) -> None:
        for name, value in (("refit", self.refit), ("damping", self.damping)):
            if value is not None and not self.has_moments:
                raise InvalidValueError(name, "goes with moments")
        if self.repack and self.has_moments:
            fact = "keeps the codes of what is kept, and moments give that new values, which have no codes"
            advice = "pass dequantize='bfloat16' (--dequantize bf16) in its place, or leave the moments out"
            raise InvalidValueError("repack", fact, advice)
        if self.refit is not None and (type(self.refit) is not int or self.refit < 0):
            raise InvalidValueError("refit", f"must be an integer of at least 0, not {self.refit!r}")

    @property
    def given_budget(self) -> Budget | None:
        """The budget, where it is more than a name."""
        return None if isinstance(self.budget, str) else self.budget

    @property
    def sharing(self) -> Method:
        """How a sparsity is shared out over the layers."""
        if isinstance(self.budget, str):
            return METHODS[self.budget]
        if self.method in METHODS:
            return METHODS[str(self.method)]
        if self.has_moments and self.has_gradients:
            return METHODS[SHARES_BY_GRADIENTS]
        return METHODS[DEFAULT_SHARES if self.has_moments else DEFAULT_METHOD]

    @property
    def chooser(self) -> str:
        """The method of `FITTED_METHODS` that chooses what goes; empty where something else does."""
        if not self.has_moments or self.masks is not None:
            return ""
        name = self.method or DEFAULT_FIT
        return name if name in FITTED_METHODS else ""

    @property
    def steps(self) -> int:
        """Steps of the refit."""
        return DEFAULT_STEPS if self.refit is None else self.refit

    @property
    def factor_damping(self) -> Callable[[float | None], tuple[float, float]]:
        """From rows per input to what `damping_for` gives."""
        return partial(damping_for, self.chooser, self.steps, self.damping)

    @property
    def team(self) -> int:
        """Number of threads; ValueError where `threads` is none."""
        return team_size(self.threads)

    @property
    def wanted_pattern(self) -> str | None:
        """The pattern asked for, or that of the budget."""
        return self.pattern if self.given_budget is None else self.given_budget.pattern

    @property
    def groups(self) -> tuple[int, int] | None:
        """Its n and m; None where any entry may go."""
        return None if self.wanted_pattern is None else parsed_pattern(self.wanted_pattern)

    @property
    def target(self) -> float:
        """Share of the entries that is to go."""
        if self.given_budget is not None:
            return self.given_budget.sparsity
        if self.groups is not None:
            n, m = self.groups
            return 1 - n / m
        return float(self.sparsity or 0)  # of given masks, what they come to is known in the end

    @property
    def label(self) -> str:
        """What the budget that is written calls the method."""
        if self.masks is not None:
            return "given masks"
        if self.budget is not None:
            return self.budget if isinstance(self.budget, str) else self.budget.method
        if self.has_gradients:
            return self.sharing.name
        if self.chooser:
            return self.chooser
        return PATTERN_METHOD if self.pattern is not None else self.method or DEFAULT_METHOD

    @property
    def highest(self) -> float:
        """Largest share of a layer."""
        return default_ceiling(self.target) if self.ceiling is None else float(self.ceiling)


def changeable(
    checkpoint: Checkpoint, *, dequantize: str | None, written: bool, repack: bool | None = None
) -> Checkpoint:
    """Return what is changed of a checkpoint: without its quantisation, where that was asked for.

    Parameters
    ----------
    checkpoint
        The source.
    dequantize
        The type that its quantised weights are to be rounded to.
    written
        Whether it is written.
    repack
        Whether they are to stay in their formats; None where the command cannot do that.

    Raises
    ------
    InvalidValueError
        It is quantised and is to stay so, or the other way round; or it would be written without what is no tensor.
        Names a quantised weight, or what would be lost.
    """
    if dequantize is not None and repack:
        raise InvalidValueError("repack", "keeps the format that dequantize does away with", "pass one of the two")
    if dequantize is not None:
        checkpoint = dense_copy(checkpoint, dequantize)
    weight = None if repack else quantised_weight(checkpoint)
    if repack:
        checkpoint = repackable(checkpoint)
    elif weight is not None:
        advice = "dequantise it first, or take the checkpoint that it was made from"
        if isinstance(checkpoint, Dequantised) and weight in checkpoint.weights:
            ways = ["dequantize='bfloat16' (--dequantize bf16)"]
            if repack is not None and not reason_against_masking(checkpoint.weights[weight]):
                ways.append("repack=True (--repack)")
            advice = f"pass {' or '.join(ways)}, or take the checkpoint that it was made from"
        raise InvalidValueError("model", f"is quantised: {weight} is packed", advice)
    lost = [other for other in getattr(checkpoint, "others", ()) if other.lost]
    if written and lost:
        fact = f"has {len(lost)} entries that no file of tensors holds, {lost[0].name!r} ({lost[0].type}) first"
        raise InvalidValueError(
            "model", fact, "take them out of its state first, or prune without out and use the masks"
        )
    return checkpoint


def layers_to_prune(
    checkpoint: Checkpoint,
    layers: list[Layer],
    skipped: dict[str, str],
    options: PruneOptions,
    given: FittedBudget | FittedMasks | None = None,
) -> list[Layer]:
    """Leave out what stays dense.

    Parameters
    ----------
    checkpoint
        What holds them.
    layers
        The matrices that the caller's filters leave.
    skipped
        Why a tensor is left out, by its name; more are entered here.
    options
        Of the call.
    given
        The budget or the masks that were given, laid out over the layers.

    Raises
    ------
    InvalidValueError
        No layer is left, or what was given does not fit the layers.
    """
    chosen = []
    for layer in layers if not options.repack else map(partial(_as_stored, checkpoint), layers):
        if given is None:
            reason = _reason_to_skip(layer, options)
        elif isinstance(given, FittedMasks):
            reason = layer.fixed or (None if given.answers(layer) else "has no mask")
        else:
            reason = _reason_of_budget(layer, given.answers(layer), options.groups)
        if reason is None:
            chosen.append(layer)
        else:
            skipped[layer.name] = reason
    if given is not None:
        what = "the masks name" if isinstance(given, FittedMasks) else "the budget names"
        missing = {name: given.layer_of(name) for name in given.unanswered(chosen)}
        _check_that_none_is_missing(what, missing, skipped)
    if not chosen:
        sizes = {info.name: info.size for info in checkpoint.tensors}
        raise InvalidValueError("", f"no layer is left to prune{telling_reason(skipped, sizes)}")
    return chosen


def _as_stored(checkpoint: Checkpoint, layer: Layer) -> Layer:
    """The layer as its format lets it be changed."""
    weight = checkpoint.weights.get(layer.file_name) if isinstance(checkpoint, Dequantised) else None
    reason = "" if weight is None else reason_against_masking(weight)
    return replace(layer, fixed=layer.fixed or reason)


def _reason_to_skip(layer: Layer, options: PruneOptions) -> str | None:
    if layer.fixed:
        return layer.fixed
    if not options.embeddings and stays_dense(layer.kind):
        return LEFT_DENSE
    return None if options.groups is None else _reason_for_no_pattern(layer, options.groups[1])


def _reason_for_no_pattern(layer: Layer, m: int) -> str | None:
    if not layer.input_axes:
        return (
            "a pattern runs along the inputs, and whether this is stored as (out, in) or (in, out) is not known; "
            "call it <module>.weight if it is (out, in), <module>.kernel if it is (in, out), or pass the live model"
        )
    if layer.inputs % m:
        return f"{layer.inputs} inputs cannot be cut into groups of {m}"
    return None


def _reason_of_budget(layer: Layer, rows: Sequence[LayerBudget], groups: tuple[int, int] | None) -> str | None:
    if not rows:
        return "not in the budget"
    if layer.fixed:
        return layer.fixed
    if groups is not None:
        n, m = groups
        reason = _reason_for_no_pattern(layer, m)
        if reason is not None:
            return reason
        for row in rows:
            if row.pruned * m != row.size * (m - n):
                what = f"{row.pruned} entries of {row.name}, whose shape is {row.shape}"
                raise InvalidValueError("", f"the budget's pattern {n}:{m} does not prune {what}")
        if sum(row.size for row in rows) < layer.size:
            raise InvalidValueError("", f"the budget has a pattern for some of the matrices in {layer.name} only")
    return None


def _check_that_none_is_missing(what: str, missing: Mapping[str, str], skipped: Mapping[str, str]) -> None:
    """Refuse names that no layer answers to; `missing` has with each that of the layer which should."""
    if missing:
        name = min(missing)
        reason = skipped.get(missing[name], "which is no layer of this checkpoint")
        raise InvalidValueError("", f"{what} {name!r}, {reason}")
