"""The ways to share a sparsity out over the layers of a model, each stated once.

`mpfast.prune`, `mpfast.Analysis.budget`, `mpfast.models.share_out`, `mpfast.integrations.torch.reconstruct_model`, the
command line, the HTML report and the documentation take them from here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from mpfast.masks import default_layer_type, gaussian_shares, layer_weights, regime_for
from mpfast.models import share_rules as rules
from mpfast.models.share_rules import Measure, Rule
from mpfast.support import InvalidValueError

if TYPE_CHECKING:
    from mpfast.models.layer_report import LayerReport

__all__ = [
    "DEFAULT_METHOD",
    "DEFAULT_SHARES",
    "METHODS",
    "PATTERN_METHOD",
    "SHARES_BY_GRADIENTS",
    "Method",
    "Need",
    "method_named",
]

Array = NDArray[np.float64]
#: From the reports of the layers and the sparsity to the layer weights w_l.
LayerWeights = Callable[[Sequence["LayerReport"], float], Array]
#: What a method looks at.
Need = Literal["spectra", "weights", "moments", "gradients"]


@dataclass(frozen=True)
class Method:
    """A way to share a sparsity out over layers. Without moments, within a layer the smallest magnitudes go.

    Attributes
    ----------
    name : str
        What the user calls it.
    description : str
        Which entries go, in one sentence.
    needs : tuple of str
        What it looks at: "spectra" of the layers, their "weights", the second "moments" of their inputs, mean squares
        of the "gradients" of the loss in their outputs. Shapes and names are always known.
    cuts_globally : bool
        One cut through all layers decides what goes, entry by entry.
    layer_weights : function or None
        That cut is of ``|w| / w_l`` with these weights, from the spectra; None: of ``|w|``.
    measure : function or None
        What is to be known of each layer for `rule`.
    rule : function
        Share of each layer, where there is no cut.
    reach : float
        Farthest that a layer's share is to be from the target.
    per_row : bool
        The same share of every row of a layer goes.
    previewed : bool
        Whether the HTML report shows what it comes to.
    """

    name: str
    description: str
    needs: tuple[Need, ...] = ()
    cuts_globally: bool = False
    layer_weights: LayerWeights | None = None
    measure: Measure | None = None
    rule: Rule = rules.same_share
    reach: float = 1.0
    per_row: bool = False
    previewed: bool = False

    @property
    def is_even(self) -> bool:
        """Whether every layer loses the same share."""
        return not self.cuts_globally and self.rule is rules.same_share

    @property
    def needs_spectra(self) -> bool:
        """Whether the spectra of the layers must be known."""
        return "spectra" in self.needs

    def scales(self, reports: Sequence[LayerReport | None], sparsity: float) -> list[float]:
        """Return what the magnitudes of each layer are multiplied with before a global cut.

        Parameters
        ----------
        reports
            One per layer; None where spectra are not needed.
        sparsity
            Share of all entries.
        """
        if self.layer_weights is None:
            return [1.0] * len(reports)
        return [float(1 / w) for w in self.layer_weights([row for row in reports if row is not None], sparsity)]

    def foretold_cut(self, rows: Sequence[LayerReport], sizes: Sequence[int], sparsity: float) -> Array:
        """Foretell, without reading a weight, what a global cut takes of each layer whose entries are normal.

        Parameters
        ----------
        rows
            One report per layer.
        sizes
            Entries per layer.
        sparsity
            Share of all entries.
        """
        deviations = np.array([_entry_std(row) for row in rows])
        return gaussian_shares(deviations * self.scales(rows, sparsity), sizes, sparsity)


def _entry_std(row: LayerReport) -> float:
    return row.fro_norm / math.sqrt(math.prod(row.shape))


# The signals that a regime can name, read off a report.
_SIGNALS: dict[str, Callable[[LayerReport], float]] = {
    "sigma_plus": lambda row: row.sigma_plus,
    "hill": lambda row: row.hill_alpha,
    "entry_std": _entry_std,
}


def _spectral(rows: Sequence[LayerReport], sparsity: float, signal: str | None = None) -> Array:
    """Layer weights of the regime that the sparsity falls in, by its signal or by another."""
    regime = regime_for(sparsity)
    values = [_SIGNALS[signal or regime.signal](row) for row in rows]
    return layer_weights(values, sparsity, regime, [default_layer_type(row.name) for row in rows])


def _by_sigma_plus(rows: Sequence[LayerReport], sparsity: float) -> Array:
    return _spectral(rows, sparsity, "sigma_plus")


def _by_hill(rows: Sequence[LayerReport], sparsity: float) -> Array:
    return _spectral(rows, sparsity, "hill")


_METHODS = (
    Method("uniform", "the smallest magnitudes of each layer, the same share of every one"),
    Method("row", "the smallest magnitudes of each row, the same share of every one", per_row=True),
    Method(
        "by_depth",
        "the smallest magnitudes of each layer, from block to block a little more (arXiv 2502.14770); without data "
        "worse than uniform",
        rule=rules.by_depth,
    ),
    Method("magnitude", "the smallest magnitudes of all layers together", cuts_globally=True, previewed=True),
    Method(
        "spectral_budget",
        "the smallest magnitudes of all layers together, each over its layer's weight, which the spectra set "
        "(arXiv 2606.02608); to reproduce the paper, no better than uniform",
        needs=("spectra",),
        cuts_globally=True,
        layer_weights=_spectral,
        previewed=True,
    ),
    Method(
        "sigma_plus",
        "as spectral_budget, with weights from the edges at every sparsity",
        needs=("spectra",),
        cuts_globally=True,
        layer_weights=_by_sigma_plus,
    ),
    Method(
        "hill",
        "as spectral_budget, with weights from the Hill exponents at every sparsity",
        needs=("spectra",),
        cuts_globally=True,
        layer_weights=_by_hill,
    ),
    Method(
        "alphapruning",
        "the smallest magnitudes of each layer, more of blocks whose spectra have light tails (arXiv 2410.10912); to "
        "reproduce the paper, worse than uniform",
        needs=("spectra",),
        measure=rules.hill_of_half,
        rule=rules.by_hill_of_blocks,
    ),
    Method(
        "farms",
        "as alphapruning, with the tails of square submatrices (arXiv 2506.06280); to reproduce the paper, worse than "
        "uniform",
        needs=("weights",),
        measure=rules.hill_of_windows,
        rule=rules.by_hill_of_blocks,
    ),
    Method(
        "owl",
        "less of blocks with many outliers among magnitudes times norms of inputs (arXiv 2310.05175); needs moments",
        needs=("weights", "moments"),
        measure=rules.input_norm_scores,
        rule=rules.by_outliers_of_blocks,
    ),
    Method(
        "entropy_rank",
        "less of layers whose outputs spread over many directions; needs moments",
        needs=("weights", "moments"),
        measure=rules.rank_share,
        rule=rules.spread_by_rank,
    ),
    Method(
        "output_error",
        "what gives the least sum of the layers' relative output errors; needs moments",
        needs=("weights", "moments"),
        measure=rules.error_curve,
        rule=rules.by_error_curves,
        reach=0.25,
    ),
    Method(
        "gauss_newton",
        "what one cut of all layers by the change of the loss, to second order, takes of each; needs moments and "
        "gradients",
        needs=("weights", "moments", "gradients"),
        measure=rules.loss_scores,
        rule=rules.cut_by_scores,
        reach=0.25,
    ),
)

#: Every method by its name.
METHODS: Mapping[str, Method] = MappingProxyType({method.name: method for method in _METHODS})
#: What is done where nothing else is asked for, and there are no moments: of what was measured on
#: all-MiniLM-L6-v2 and SmolLM2-135M (``benchmarks/quality/budgets.py``), what is nowhere worse than the same share of
#: every layer. A cut through all layers is as good for the encoder and worse for the language model, budgets from
#: spectra are worse for both.
DEFAULT_METHOD = "row"
#: How a sparsity is shared out where moments choose what goes and nothing else is asked for.
DEFAULT_SHARES = "uniform"
#: The same where there are gradients, too: at 60 % it kept more of both models, of the texts that were to choose by
#: 0.014 +- 0.009 of a mean reciprocal rank and 0.062 +- 0.023 nats (``benchmarks/quality/budgets.py``).
SHARES_BY_GRADIENTS = "gauss_newton"
#: How the entries that an n:m pattern leaves are chosen.
PATTERN_METHOD = "magnitude"


def method_named(name: str, otherwise: str = "", argument: str = "method") -> Method:
    """Return the method of this name.

    Raises
    ------
    InvalidValueError
        There is none; the message lists those that there are, and `otherwise`.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise InvalidValueError(argument, f"must be one of {', '.join(METHODS)}{otherwise}, not {name!r}")
    return METHODS[name]
