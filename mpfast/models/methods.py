"""The ways to share a sparsity out over the layers of a model, each stated once.

`mpfast.prune`, `mpfast.Analysis.budget`, the command line, the HTML report and the documentation take them from here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mpfast.masks import default_layer_type, gaussian_shares, layer_weights, regime_for
from mpfast.models.mask_plans import LayerCuts, MaskPlan, global_cut
from mpfast.support import InvalidValueError, floor_count

if TYPE_CHECKING:
    from mpfast.checkpoints import Checkpoint, Layer
    from mpfast.models.layer_report import LayerReport

__all__ = ["DEFAULT_METHOD", "METHODS", "PATTERN_METHOD", "Method", "method_named"]

Array = NDArray[np.float64]
#: From the reports of the layers and the sparsity to the layer weights w_l.
LayerWeights = Callable[[Sequence["LayerReport"], float], Array]


@dataclass(frozen=True)
class Method:
    """A way to share a sparsity out over layers; within a layer the entries of smallest magnitude go.

    Attributes
    ----------
    name : str
        What the user calls it.
    description : str
        Which entries go, in one sentence.
    layer_weights : function or None
        A global cut is of ``|w| / w_l`` with these weights, from the spectra; None: of ``|w|``, without a spectrum.
    same_share : bool
        The same share of every layer goes, instead of a global cut.
    previewed : bool
        Whether the HTML report shows what it comes to.
    """

    name: str
    description: str
    layer_weights: LayerWeights | None = None
    same_share: bool = False
    previewed: bool = False

    @property
    def needs_spectra(self) -> bool:
        """Whether the spectra of the layers must be known."""
        return self.layer_weights is not None

    def plan(
        self,
        checkpoint: Checkpoint,
        layers: Sequence[Layer],
        reports: Mapping[str, LayerReport],
        sparsity: float,
        ceiling: float,
        threads: int,
    ) -> MaskPlan:
        """Decide what of these layers goes; may read their weights.

        Parameters
        ----------
        checkpoint, layers
            What is pruned.
        reports
            By the layers' names, where `needs_spectra`.
        sparsity
            Share of all entries.
        ceiling
            Largest share of a layer that a global cut takes.
        threads
            Number of threads.
        """
        if self.same_share:
            return LayerCuts({layer.name: floor_count(sparsity, layer.size) for layer in layers}, threads)
        scales = [1.0] * len(layers)
        if self.layer_weights is not None:
            weights = self.layer_weights([reports[layer.name] for layer in layers], sparsity)
            scales = [float(1 / weight) for weight in weights]
        pruned = floor_count(sparsity, sum(layer.size for layer in layers))
        return global_cut(checkpoint, layers, scales, pruned, ceiling, threads)

    def shares(self, rows: Sequence[LayerReport], sizes: Sequence[int], sparsity: float) -> Array:
        """Foretell, without reading a weight, the sparsity of each layer: what it would be if entries were normal.

        Parameters
        ----------
        rows
            One report per layer.
        sizes
            Entries per layer.
        sparsity
            Share of all entries.
        """
        if self.same_share:
            return np.full(len(rows), sparsity)
        deviations = np.array([_entry_std(row) for row in rows])
        if self.layer_weights is not None:
            deviations /= self.layer_weights(rows, sparsity)
        return gaussian_shares(deviations, sizes, sparsity)


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
    Method(
        "spectral_budget",
        "the smallest magnitudes of all layers together, each over its layer's weight, which the spectra set "
        "(arXiv 2606.02608)",
        layer_weights=_spectral,
        previewed=True,
    ),
    Method(
        "sigma_plus", "as spectral_budget, with weights from the edges at every sparsity", layer_weights=_by_sigma_plus
    ),
    Method(
        "hill", "as spectral_budget, with weights from the Hill exponents at every sparsity", layer_weights=_by_hill
    ),
    Method("magnitude", "the smallest magnitudes of all layers together", previewed=True),
    Method("uniform", "the smallest magnitudes of each layer, the same share of every one", same_share=True),
)

#: Every method by its name.
METHODS: Mapping[str, Method] = MappingProxyType({method.name: method for method in _METHODS})
#: What is done where nothing else is asked for.
DEFAULT_METHOD = "spectral_budget"
#: How the entries that an n:m pattern leaves are chosen.
PATTERN_METHOD = "magnitude"


def method_named(name: str, otherwise: str = "") -> Method:
    """Return the method of this name.

    Raises
    ------
    InvalidValueError
        There is none; the message lists those that there are, and `otherwise`.
    """
    if not isinstance(name, str) or name not in METHODS:
        raise InvalidValueError("method", f"must be one of {', '.join(METHODS)}{otherwise}, not {name!r}")
    return METHODS[name]
