"""Spectral edge budgeting: how strongly each layer is pruned, from one number per layer.

``z_l`` is the signal of layer l, standardised over all layers. At sparsity s a regime gives

    w_l = max(smallest_weight, 1 + beta d(s) z_l),     d(s) = max(0, 1 - s / s_d) ** power

and the entries with the smallest ``|w| / w_l`` go: a larger weight prunes more.

References
----------
Berlyand, Bourdais, Owhadi, Shmalo, arXiv 2606.02608, "spectral edge budgeting".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpfast.support import InvalidValueError, front_door

Array = NDArray[np.float64]

__all__ = ["BERLYAND2026", "Regime", "default_layer_type", "layer_weights", "regime_for"]

#: Numbers of a layer that a budget can be set by.
SIGNALS = ("sigma_plus", "hill", "entry_std")


@dataclass(frozen=True)
class Regime:
    """Rule for sparsities up to ``up_to``.

    Attributes
    ----------
    up_to
        Largest sparsity it is meant for.
    signal
        ``"sigma_plus"``, ``"hill"`` or ``"entry_std"``.
    beta
        Strength, by layer type; ``"other"`` is the default for types not named.
    vanishing
        Sparsity ``s_d`` at which the rule has faded to plain magnitude.
    power
        Of the fading.

    Raises
    ------
    ValueError
        The signal is none of these, `beta` lacks ``"other"``, or a sparsity is not positive.
    """

    up_to: float
    signal: str
    beta: Mapping[str, float]
    vanishing: float
    power: float = 1.0

    @front_door
    def __post_init__(self) -> None:
        if self.signal not in SIGNALS:
            raise InvalidValueError("signal", f"must be one of {', '.join(SIGNALS)}, not {self.signal!r}")
        if "other" not in self.beta:
            raise InvalidValueError("beta", 'needs a value for "other", the types that it does not name')
        if not (self.vanishing > 0 and self.up_to > 0):
            raise InvalidValueError("", "up_to and vanishing must be positive")


BERLYAND2026 = (
    Regime(0.20, "hill", {"other": 0.50}, 0.30),
    Regime(0.40, "sigma_plus", {"other": 1.00}, 0.50),
    Regime(0.55, "sigma_plus", {"other": 1.25}, 0.70),
    Regime(1.00, "sigma_plus", {"attn": 1.00, "mlp": 2.00, "other": 1.50}, 0.85),
)


@front_door
def regime_for(sparsity: float, regimes: Sequence[Regime] = BERLYAND2026) -> Regime:
    """Return the first regime whose range includes ``sparsity``.

    Raises
    ------
    ValueError
        None does.
    """
    for regime in regimes:
        if sparsity <= regime.up_to:
            return regime
    ends = f"the last ends at {regimes[-1].up_to}" if regimes else "there is none"
    raise InvalidValueError("", f"no regime covers a sparsity of {sparsity}", ends)


def default_layer_type(name: str) -> str:
    """Type of a layer by its name: ``"attn"``, ``"mlp"`` or ``"other"``."""
    if "attn" in name or "attention" in name:
        return "attn"
    return "mlp" if "mlp" in name or ".fc" in name else "other"


def layer_weights(
    signals: ArrayLike,
    sparsity: float,
    regime: Regime,
    types: Sequence[str] | None = None,
    *,
    smallest_weight: float = 0.1,
) -> Array:
    """Weights ``w_l`` of all layers, shape (layers,).

    Parameters
    ----------
    signals
        One number per layer; NaN where a layer has none (its z is 0).
    sparsity
        Target share of zeros, 0 to 1.
    regime
        Rule to apply.
    types
        Layer types for ``regime.beta``; default all ``"other"``.
    smallest_weight
        What no weight falls below.

    Examples
    --------
    >>> rule = Regime(1.0, "sigma_plus", {"other": 1.0}, vanishing=0.5)
    >>> layer_weights([1, 2, 3, 4], 0.25, rule).round(5)
    array([0.32918, 0.77639, 1.22361, 1.67082])
    """
    x = np.asarray(signals, dtype=np.float64)
    known = np.isfinite(x)
    z = np.zeros(len(x))
    if known.any():
        deviation = x[known] - x[known].mean()
        spread = np.sqrt(np.mean(deviation**2))
        if spread >= 1e-12:
            z[known] = deviation / spread
    kinds = types if types is not None else ["other"] * len(x)
    beta = np.array([regime.beta.get(kind, regime.beta["other"]) for kind in kinds])
    fading = max(0.0, 1 - sparsity / regime.vanishing) ** regime.power
    weights: Array = np.maximum(smallest_weight, 1 + beta * fading * z)
    return weights
