"""Masks from a budget per layer that its spectrum sets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mpfast.arrays import as_numpy, has_cuda_backend, is_on_gpu, wide
from mpfast.masks.cuda import entry_std_on_device
from mpfast.masks.regimes import BERLYAND2026, Regime, default_layer_type, layer_weights, regime_for
from mpfast.masks.weights import Weights, close_layers, open_layers, prune_layers, what_prune_would_protect
from mpfast.support import (
    ConvergenceWarning,
    InvalidValueError,
    MissingKeyError,
    check_sparsity,
    front_door,
    matrix_called,
    summary_of_unmet,
    thread_count,
    warn_caller,
)

__all__ = ["spectral_budget", "spectral_signals"]

# Signals that the spectrum of a layer says.
_OF_SPECTRUM: dict[str, Callable[[Any], float]] = {
    "sigma_plus": lambda spectrum: float(spectrum.edge.sigma_plus),
    "hill": lambda spectrum: float(spectrum.metrics()["hill_alpha"]),
}
# What a layer weight of 0 counts as: scores stay numbers of float32, and what it protects is pruned last.
LEAST_WEIGHT = 2.0**-64


@front_door
def spectral_budget(
    weights: Weights,
    sparsity: float,
    *,
    signal: str | Callable[[Any], float] | None = None,
    regimes: str | Regime | Sequence[Regime] = "berlyand2026",
    layer_type: Callable[[str], str] = default_layer_type,
    signals: Mapping[str, float] | None = None,
    smallest_weight: float = 0.1,
    within: Any = None,
    seed: int = 0,
    threads: int | None = None,
) -> Any:
    """Prune globally with a budget per layer set by its spectrum; see `mpfast.masks.regimes`.

    A reproduction of its paper, and no way to keep more: against the same share of every layer, without training, it
    changes the mean reciprocal rank of all-MiniLM-L6-v2 at 50 % by -0.008 +- 0.009, and the loss of SmolLM2-135M at
    30 % by -0.002 +- 0.021 nats on prose and +0.040 +- 0.025 on code (``benchmarks/quality/budgets.py``).

    Parameters
    ----------
    weights
        A mapping from name to array (a single array is pruned by magnitude: there is nothing to budget). Arrays of more
        than two dimensions enter the signal as ``reshape(shape[0], -1)``.
    sparsity
        Share of all entries to prune.
    signal
        ``"sigma_plus"`` (fitted edge), ``"hill"`` (Hill exponent of the top 20), ``"entry_std"`` (standard deviation of
        the entries) or a callable from array to number; default what the regime says.
    regimes
        ``"berlyand2026"`` (four regimes by sparsity), a `mpfast.masks.regimes.Regime` or a sequence of them.
    layer_type
        From name to ``"attn"``, ``"mlp"`` or ``"other"``.
    signals
        Values of the signal by name, if they are known already: no spectrum is computed.
    smallest_weight
        What no layer weight falls below, from 0: a layer of weight 0 is pruned after all others.
    within
        As in `magnitude`. The signal is that of the weights as they are given.
    seed, threads
        As in `mpfast.spectrum`.

    Returns
    -------
    masks
        dict of boolean arrays, or one.

    Raises
    ------
    ValueError, TypeError
        As `magnitude`; also when no regime covers the sparsity.
    KeyError
        ``signals`` or ``within`` lacks a layer.

    Warns
    -----
    ConvergenceWarning
        Once, if the error of the edge of any layer is larger than `mpfast.spectrum` has it by default.
    """
    sparsity = check_sparsity(sparsity)
    count = thread_count(threads)
    if isinstance(regimes, str):
        if regimes != "berlyand2026":
            raise InvalidValueError("regimes", f"must be 'berlyand2026' or Regime objects, not {regimes!r}")
        regimes = BERLYAND2026
    regime = regimes if isinstance(regimes, Regime) else regime_for(sparsity, regimes)
    warn_caller("spectral_budget", what_prune_would_protect(weights))
    layers, mapping = open_layers(weights, within)
    names = list(weights) if mapping else [""]
    if signals is not None:
        missing = [name for name in names if name not in signals]
        if missing:
            raise MissingKeyError("signals", f"has no value for {missing[0]!r}")
        values = [float(signals[name]) for name in names]
    elif mapping:
        measured, unmet = _measured(weights, regime.signal if signal is None else signal, seed, threads)
        warn_caller("spectral_budget", unmet, ConvergenceWarning)
        values = list(measured.values())
    else:
        values = [1.0]
    types = [layer_type(name) for name in names]
    factors = layer_weights(values, sparsity, regime, types, smallest_weight=smallest_weight)
    prune_layers(layers, [1 / max(float(w), LEAST_WEIGHT) for w in factors], sparsity, count)
    return close_layers(layers, weights, mapping)


@front_door
def spectral_signals(
    weights: Mapping[str, Any], signal: str | Callable[[Any], float], *, seed: int = 0, threads: int | None = None
) -> dict[str, float]:
    """Return the signal of each layer that `spectral_budget` sets its budget by, to be used more than once.

    Parameters
    ----------
    weights, signal, seed, threads
        As in `spectral_budget`.

    Returns
    -------
    dict
        From name to number.

    Raises
    ------
    ValueError, TypeError
        The signal is unknown, or as `mpfast.spectrum`.

    Warns
    -----
    ConvergenceWarning
        As `spectral_budget`.
    """
    signals, unmet = _measured(weights, signal, seed, threads)
    warn_caller("spectral_signals", unmet, ConvergenceWarning)
    return signals


def _measured(
    weights: Mapping[str, Any], signal: str | Callable[[Any], float], seed: int, threads: int | None
) -> tuple[dict[str, float], str]:
    """Return the signal of each layer, and in place of a warning what was not met; empty if all was."""
    from mpfast.spectra import measured_spectra

    for name, weight in weights.items():
        if 0 in (shape := tuple(getattr(weight, "shape", ()))):
            raise InvalidValueError(f"weights[{name!r}]", f"is empty: its shape is {shape}")
    if callable(signal):
        return {name: float(signal(weight)) for name, weight in weights.items()}, ""
    if signal == "entry_std":
        return {name: _entry_std(weight, name) for name, weight in weights.items()}, ""
    if signal not in _OF_SPECTRUM:
        known = ", ".join([*_OF_SPECTRUM, "entry_std"])
        raise InvalidValueError("signal", f"must be one of {known} or a callable, not {signal!r}")
    matrices = {
        f"weights[{name!r}]": weight if weight.ndim == 2 else weight.reshape(weight.shape[0], -1)
        for name, weight in weights.items()
    }
    found = measured_spectra(matrices, seed=seed, threads=threads)
    unmet = summary_of_unmet({label: spectrum.unmet_tolerance for label, spectrum in found.items()})
    signals = {}
    for name, (label, spectrum) in zip(weights, found.items(), strict=True):
        with matrix_called(label):
            signals[name] = _OF_SPECTRUM[signal](spectrum)
    return signals, unmet


def _entry_std(weight: Any, name: str) -> float:
    """Standard deviation of all entries, row by row in fp64."""
    if is_on_gpu(weight) and has_cuda_backend():
        return entry_std_on_device(weight)
    array, dtype = as_numpy(weight, name=f"weights[{name!r}]")
    rows = array.reshape(array.shape[0], -1) if array.ndim > 1 else array[None]
    largest = max(float(np.abs(wide(row, dtype)).max(initial=0.0)) for row in rows)
    if largest == 0 or not math.isfinite(largest):
        return 0.0 if largest == 0 else math.nan
    # No square overflows at this scale, and deviations from the mean do not cancel as squares less its square do.
    exponent = math.frexp(largest)[1]

    def scaled() -> Iterator[Any]:
        return (np.ldexp(wide(row, dtype), -exponent) for row in rows)

    mean = math.fsum(float(row.sum()) for row in scaled()) / array.size
    shift = math.fsum(float((row - mean).sum()) for row in scaled()) / array.size
    squares = math.fsum(float(((row - mean) ** 2).sum()) for row in scaled()) / array.size
    return math.ldexp(math.sqrt(max(squares - shift**2, 0.0)), exponent)
