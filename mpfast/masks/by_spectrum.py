"""Masks from a budget per layer that its spectrum sets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mpfast.arrays import as_numpy, has_cuda_backend, is_on_gpu, wide
from mpfast.masks.cuda import entry_std_on_device
from mpfast.masks.regimes import BERLYAND2026, Regime, default_layer_type, layer_weights, regime_for
from mpfast.masks.weights import Weights, close_layers, open_layers, prune_layers
from mpfast.support import InvalidValueError, check_sparsity, thread_count

__all__ = ["spectral_budget", "spectral_signals"]

# What a layer weight of 0 counts as: scores stay numbers of float32, and what it protects is pruned last.
LEAST_WEIGHT = 2.0**-64


def spectral_budget(
    weights: Weights,
    sparsity: float,
    *,
    signal: str | Callable[[Any], float] | None = None,
    regimes: str | Regime | Sequence[Regime] = "berlyand2026",
    layer_type: Callable[[str], str] = default_layer_type,
    signals: Mapping[str, float] | None = None,
    floor: float = 0.1,
    within: Any = None,
    seed: int = 0,
    threads: int | None = None,
) -> Any:
    """Prune globally with a budget per layer set by its spectrum; see `mpfast.masks.regimes`.

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
    floor
        Smallest layer weight, from 0: a layer of weight 0 is pruned after all others.
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
    """
    sparsity = check_sparsity(sparsity, "spectral_budget")
    count = thread_count(threads, "spectral_budget")
    if isinstance(regimes, str):
        if regimes != "berlyand2026":
            raise ValueError(f"spectral_budget(): regimes must be 'berlyand2026' or Regime objects, not {regimes!r}")
        regimes = BERLYAND2026
    regime = regimes if isinstance(regimes, Regime) else regime_for(sparsity, regimes)
    layers, mapping = open_layers(weights, "spectral_budget", within)
    names = list(weights) if mapping else [""]
    if signals is not None:
        missing = [name for name in names if name not in signals]
        if missing:
            raise KeyError(f"spectral_budget(): signals has no value for {missing[0]!r}")
        values = [float(signals[name]) for name in names]
    elif mapping:
        measured = spectral_signals(weights, regime.signal if signal is None else signal, seed=seed, threads=threads)
        values = list(measured.values())
    else:
        values = [1.0]
    factors = layer_weights(values, sparsity, regime, [layer_type(name) for name in names], floor=floor)
    prune_layers(layers, [1 / max(float(w), LEAST_WEIGHT) for w in factors], sparsity, "spectral_budget", count)
    return close_layers(layers, weights, mapping)


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
    """
    measure = _signal(signal, seed, threads)
    signals = {}
    for name, weight in weights.items():
        if 0 in (shape := tuple(getattr(weight, "shape", ()))):
            raise InvalidValueError(f"weights[{name!r}]", f"is empty: its shape is {shape}")
        try:
            signals[name] = float(measure(weight))
        except (ValueError, TypeError) as error:
            raise type(error)(f"spectral_signals(): weights[{name!r}]: {error}") from error
    return signals


def _signal(signal: str | Callable[[Any], float], seed: int, threads: int | None) -> Callable[[Any], float]:
    """Return the function from a weight to its number."""
    from mpfast.spectra import spectrum

    if callable(signal):
        return signal

    def flat(weight: Any) -> Any:
        return weight if weight.ndim == 2 else weight.reshape(weight.shape[0], -1)

    def sigma_plus(weight: Any) -> float:
        return spectrum(flat(weight), seed=seed, threads=threads).edge.sigma_plus

    def hill(weight: Any) -> float:
        return spectrum(flat(weight), seed=seed, threads=threads).metrics()["hill_alpha"]

    named = {"sigma_plus": sigma_plus, "hill": hill, "entry_std": _entry_std}
    if signal not in named:
        raise ValueError(f"spectral_signals(): signal must be one of {', '.join(named)} or a callable, not {signal!r}")
    return named[signal]


def _entry_std(weight: Any) -> float:
    """Standard deviation of all entries, row by row in fp64."""
    if is_on_gpu(weight) and has_cuda_backend():
        return entry_std_on_device(weight)
    array, dtype = as_numpy(weight, function="spectral_signals", name="a weight")
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
