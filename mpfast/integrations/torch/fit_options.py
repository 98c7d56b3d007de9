"""What the caller of a reconstruction asked for, checked; and how much of each matrix goes by it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from mpfast.checkpoints import other_names, stacked_expert
from mpfast.integrations.torch.sites import Site
from mpfast.models import DEFAULT_FIT, FITTED_METHODS, Budget
from mpfast.support import (
    InvalidTypeError,
    InvalidValueError,
    check_sparsity,
    floor_count,
    parsed_pattern,
    positive_integer,
)

__all__ = ["FitOptions"]

_MOST_BITS = 8


@dataclass(frozen=True)
class FitOptions:
    """Options of `reconstruct_model`, see there."""

    sparsity: float | None
    pattern: str | None
    rank: int | None
    budget: Budget | None
    bits: int | None
    group: int | None
    method: str
    refit: int
    damping: float | None
    sequential: bool
    toward: str
    heldout: float
    threads: int

    def __post_init__(self) -> None:
        if self.budget is not None and not isinstance(self.budget, Budget):
            advice = "mpfast.models.share_out(model, sparsity, method=) makes one"
            raise InvalidTypeError("budget", f"must be a Budget, not {type(self.budget).__name__}", advice)
        wanted = sum(option is not None for option in (self.sparsity, self.pattern, self.rank, self.budget))
        if wanted > 1 or (wanted == 0 and self.bits is None):
            raise InvalidValueError("", "pass one of sparsity, pattern, rank and budget, or bits")
        if self.sparsity is not None:
            check_sparsity(self.sparsity)
        if self.wanted_pattern is not None and self.groups is None:
            raise InvalidValueError("pattern", f"must be n:m with 1 <= n < m <= 64, not {self.wanted_pattern!r}")
        if self.rank is not None:
            positive_integer(self.rank, "rank")
        if self.method not in FITTED_METHODS:
            raise InvalidValueError("method", f"must be one of {', '.join(FITTED_METHODS)}, not {self.method!r}")
        if type(self.refit) is not int or self.refit < 0:
            raise InvalidValueError("refit", f"must be an integer of at least 0, not {self.refit!r}")
        if self.toward not in ("dense", "own"):
            raise InvalidValueError("toward", f"must be 'dense' or 'own', not {self.toward!r}")
        if not 0 <= self.heldout < 1:
            raise InvalidValueError("heldout", f"must lie in [0, 1), not {self.heldout!r}")
        if self.bits is not None:
            self._check_grid(self.bits)

    def _check_grid(self, bits: int) -> None:
        if positive_integer(bits, "bits") > _MOST_BITS:
            raise InvalidValueError("bits", f"must be at most {_MOST_BITS}, not {bits!r}")
        if self.group is not None:
            positive_integer(self.group, "group")
        if self.rank is not None:
            raise InvalidValueError("", "bits and rank exclude each other: factors are not rounded")
        if self.method != DEFAULT_FIT:
            raise InvalidValueError("method", f"must be {DEFAULT_FIT!r} with bits, not {self.method!r}")
        if self.groups is not None and self.group is not None and self.group % self.groups[1]:
            raise InvalidValueError("group", f"must be a multiple of the pattern's {self.groups[1]}, not {self.group}")

    @property
    def wanted_pattern(self) -> str | None:
        """The pattern asked for, or that of the budget."""
        return self.pattern if self.budget is None else self.budget.pattern

    @property
    def groups(self) -> tuple[int, int] | None:
        """Its n and m."""
        return None if self.wanted_pattern is None else parsed_pattern(self.wanted_pattern)

    @property
    def prunes(self) -> bool:
        """Whether anything is pruned."""
        return any(option is not None for option in (self.sparsity, self.pattern, self.budget))

    @property
    def share(self) -> float:
        """Share of the entries that is asked to go; 0 where nothing is pruned."""
        if self.groups is not None:
            return 1 - self.groups[0] / self.groups[1]
        return self.budget.sparsity if self.budget is not None else self.sparsity or 0.0

    @property
    def steps(self) -> int:
        """Steps of the refit that are made: rounded weights stay where they are."""
        return self.refit if self.bits is None else 0

    @property
    def keeps_dense_stream(self) -> bool:
        """Whether the hidden states of the dense model are needed beside those of the compressed one."""
        return self.sequential and self.toward == "dense"

    def counts(self, tensors: Collection[str]) -> Mapping[str, int] | None:
        """How many entries of each of a model's tensors go, by its name; None where it is the same share of each.

        Of experts that the budget has one by one, as files do, what goes of them goes of their stack.
        """
        if self.budget is None:
            return None
        found: Counter[str] = Counter()
        for row in self.budget:
            name = next((name for name in (row.name, *other_names(row.name)) if name in tensors), row.name)
            expert = None if name in tensors else stacked_expert(name, tensors)
            found[name if expert is None else expert.stack] += row.pruned
        return found

    def stored_counts(self) -> Mapping[str, int] | None:
        """How many entries of each tensor go, by its name in the files; None where it is the same share of each."""
        return None if self.budget is None else {row.file_name: row.pruned for row in self.budget}

    def pruned_of(self, site: Site, counts: Mapping[str, int] | None) -> int:
        """How many entries of a matrix go, where there is no pattern."""
        if counts is None:
            return floor_count(self.sparsity or 0.0, site.matrix.numel())
        if site.expert is None:
            return counts[site.tensor]
        # Of a stack every expert gives its part, as evenly as whole numbers allow.
        return counts[site.tensor] * (site.expert + 1) // site.parts - counts[site.tensor] * site.expert // site.parts
