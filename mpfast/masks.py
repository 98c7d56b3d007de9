"""Pruning masks: which weights stay.

A mask is a boolean array of the shape of its matrix, True where the weight is kept, in the caller's framework. The
number of pruned entries is exact: ``floor(sparsity * N)``. Entries that are already zero go first; ties are broken by
layer order, then by flat index: of two equal entries the one with the lower index goes first. No array of scores is
ever formed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpfast import _core
from mpfast.arrays import as_numpy, like, raise_if_nonfinite, wide
from mpfast.device_masks import DeviceLayer, entry_std_on_device, groups_on_device
from mpfast.devices import has_cuda_backend, is_on_gpu
from mpfast.mask_layers import Weights, close_layers, open_layers, prune_layers
from mpfast.options import check_group, check_sparsity, thread_count
from mpfast.regimes import BERLYAND2026, Regime, default_layer_type, layer_weights, regime_for
from mpfast.restoration import restore

__all__ = ["magnitude", "n_m", "noise_floor", "restore", "spectral_budget", "spectral_signals"]

# Entries copied at a time, where rows cannot be seen as such.
CHUNK_ENTRIES = 4 << 20


def magnitude(
    weights: Weights,
    sparsity: float | Mapping[str, float],
    *,
    scope: str = "global",
    within: Any = None,
    threads: int | None = None,
) -> Any:
    """Keep the largest entries in magnitude.

    Parameters
    ----------
    weights
        One array, or a mapping from name to array; any framework, any number of dimensions.
    sparsity
        Share of entries to prune, 0 to 1; or one for each layer by name, such as a budget's.
    scope
        ``"global"``: over all layers together; ``"layer"``: in each.
    within
        Masks of an earlier, lower sparsity, as this function returns them: what they prune stays pruned and counts, so
        that the masks of a growing sparsity are nested. Weights in host memory only.
    threads
        Number of threads; the result does not depend on it.

    Returns
    -------
    mask
        Boolean array like each weight, on its device, or a dict of them.

    Raises
    ------
    ValueError
        A weight is empty or has non-finite entries; an option is out of range.
    TypeError
        A weight is not a real floating-point array.
    KeyError
        `sparsity` or `within` lacks a layer.

    Examples
    --------
    >>> import numpy as np
    >>> magnitude(np.array([[1.0, -3.0], [0.0, 2.0]]), 0.5)
    array([[False,  True],
           [False,  True]])
    """
    if scope not in ("global", "layer"):
        raise ValueError(f"magnitude(): scope must be 'global' or 'layer', not {scope!r}")
    count = thread_count(threads, "magnitude")
    layers, mapping = open_layers(weights, "magnitude", within)
    groups = [layers] if scope == "global" else [[layer] for layer in layers]
    if isinstance(sparsity, Mapping):
        if not mapping:
            raise ValueError("magnitude(): a sparsity for each layer needs a mapping of weights")
        groups = [[layer] for layer in layers]
        missing = [name for name in weights if name not in sparsity]
        if missing:
            raise KeyError(f"magnitude(): sparsity has no share for {missing[0]!r}")
        shares = [check_sparsity(sparsity[name], "magnitude") for name in weights]
    else:
        shares = [check_sparsity(sparsity, "magnitude")] * len(groups)
    for group, share in zip(groups, shares, strict=True):
        prune_layers(group, [1.0] * len(group), share, "magnitude", count)
    return close_layers(layers, weights, mapping)


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
    """Prune globally with a budget per layer set by its spectrum; see `mpfast.regimes`.

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
        ``"berlyand2026"`` (four regimes by sparsity), a `mpfast.regimes.Regime` or a sequence of them.
    layer_type
        From name to ``"attn"``, ``"mlp"`` or ``"other"``.
    signals
        Values of the signal by name, if they are known already: no spectrum is computed.
    floor
        Smallest layer weight.
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
    prune_layers(layers, [float(1 / w) for w in factors], sparsity, "spectral_budget", count)
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
        try:
            signals[name] = float(measure(weight))
        except (ValueError, TypeError) as error:
            raise type(error)(f"spectral_signals(): weights[{name!r}]: {error}") from error
    return signals


def _signal(signal: str | Callable[[Any], float], seed: int, threads: int | None) -> Callable[[Any], float]:
    """Return the function from a weight to its number."""
    from mpfast.spectrum import spectrum

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
    total = squares = 0.0
    for row in array.reshape(array.shape[0], -1) if array.ndim > 1 else array[None]:
        entries = wide(row, dtype)
        total += float(entries.sum())
        squares += float((entries**2).sum())
    return math.sqrt(max(squares / array.size - (total / array.size) ** 2, 0.0))


def n_m(
    W: Any,
    n: int,
    m: int,
    *,
    second_moment: ArrayLike | None = None,
    source_mask: Any = None,
    prior: float = 0.0,
    permute: bool = False,
    layout: str = "flat",
    threads: int | None = None,
) -> Any:
    """Keep n of every m consecutive entries along a row: the largest, or those whose loss changes the output least.

    Parameters
    ----------
    W
        Array of any framework with at least 2 dimensions; (out, in) or (out, in, kh, kw).
    n, m
        ``1 <= n <= m <= 64``; the row length must be a multiple of m.
    second_moment
        Mean of ``x x^T`` over the layer's inputs, its blocks (row length / m, m, m) or all of it: the mask is then that
        of `mpfast.projection.project`, which also says what it costs. Without it, the n largest stay.
    source_mask, prior, permute
        As `mpfast.projection.project`; they need a `second_moment`. On a GPU m is at most 16, and permute is not there.
    layout
        ``"flat"``: groups run along the flattened row ``in * kh * kw``. ``"channel"``: along ``in`` at each position of
        the kernel, the layout of sparse tensor cores.
    threads
        Number of threads; the result does not depend on it.

    Returns
    -------
    mask
        Boolean array of the shape of W, exactly n of every m True. With ``permute=True`` the tuple (mask,
        permutation): ``mask[:, permutation]`` has the pattern.

    Raises
    ------
    ValueError
        A shape or option does not fit, or W has non-finite entries.
    TypeError
        W is not a real floating-point array.

    Examples
    --------
    >>> import numpy as np
    >>> n_m(np.array([[1.0, -4.0, 3.0, 2.0]]), 2, 4)
    array([[False,  True,  True, False]])
    """
    check_group(n, m, "n_m")
    if not isinstance(permute, bool | np.bool_):
        raise ValueError(f"n_m(): permute must be True or False, not {permute!r}; projection.project knows 'auto', too")
    if layout not in ("flat", "channel"):
        raise ValueError(f"n_m(): layout must be 'flat' or 'channel', not {layout!r}")
    if second_moment is not None:
        from mpfast.projection import project_mask

        options = {
            "source_mask": source_mask,
            "prior": prior,
            "permute": bool(permute),
            "layout": layout,
            "threads": threads,
        }
        mask, permutation = project_mask(W, n, m, second_moment, **options)
        return (mask, permutation) if permute else mask
    if source_mask is not None or prior or permute:
        raise ValueError("n_m(): source_mask, prior and permute need a second_moment")
    count = thread_count(threads, "n_m")
    if is_on_gpu(W) and has_cuda_backend():
        return _n_m_on_device(W, n, m, layout)
    array, dtype = as_numpy(W, function="n_m")
    if array.ndim < 2 or array.size == 0:
        raise ValueError(f"n_m(): W must be a non-empty array of at least 2 dimensions, but has shape {array.shape}")
    if layout == "channel" and array.ndim > 2:
        array = np.moveaxis(array, 1, -1)
        row = array.shape[-1]
        batches: Iterable[list[NDArray[Any]]] = [[array[i] for i in np.ndindex(array.shape[:-2])]]
    else:
        row = math.prod(array.shape[1:])
        # Rows whose entries have no common stride (channels last) are copied, some at a time.
        step = len(array) if np.shares_memory(array[:1].reshape(1, -1), array) else max(1, CHUNK_ENTRIES // row)
        batches = ([array[first : first + step].reshape(-1, row)] for first in range(0, len(array), step))
    if row % m:
        raise ValueError(f"n_m(): rows of length {row} cannot be cut into groups of {m}")
    keep = np.empty(array.shape, dtype=np.bool_)
    rows, done = keep.reshape(-1, row), 0
    for pieces in batches:
        length = sum(map(len, pieces))
        masks = list(rows[done : done + length].reshape(len(pieces), *pieces[0].shape))
        found = _core.keep_largest_of_groups([_core.Matrix(piece, dtype) for piece in pieces], masks, n, m, count)
        if found is not None:
            which, bad, first_bad = found
            index = np.unravel_index(done * row + which * pieces[0].size + first_bad, array.shape)
            position = tuple(int(i) for i in index)
            if layout == "channel" and array.ndim > 2:
                position = (position[0], position[-1], *position[1:-1])
            raise_if_nonfinite("n_m", "W", bad, position)
        done += length
    if layout == "channel" and array.ndim > 2:
        keep = np.ascontiguousarray(np.moveaxis(keep, -1, 1))
    return like(keep, W)


def _n_m_on_device(W: Any, n: int, m: int, layout: str) -> Any:
    shape = tuple(W.shape)
    if len(shape) < 2 or 0 in shape:
        raise ValueError(f"n_m(): W must be a non-empty array of at least 2 dimensions, but has shape {shape}")
    if layout == "channel" and len(shape) > 2:
        raise ValueError("n_m(): layout='channel' of a convolution on a GPU: move the channels to the end yourself")
    layer = DeviceLayer(W.reshape(shape[0], -1), "n_m", "W")
    if layer.shape[1] % m:
        raise ValueError(f"n_m(): rows of length {layer.shape[1]} cannot be cut into groups of {m}")
    bad = groups_on_device(layer, n, m)
    if bad is not None:
        raise_if_nonfinite("n_m", "W", *bad)
    return layer.mask().reshape(shape)


def noise_floor(W: Any, delta: float = 0.05, *, variance: float | None = None, seed: int = 0) -> Any:
    """Keep the entries that are larger than noise would be.

    With entries of W being a sparse signal plus independent Gaussian noise of variance v, the threshold
    ``t = sqrt(2 v log(2 m n / delta))`` keeps no entry without signal, and every entry with a signal above ``2 t``,
    with probability ``1 - delta``.

    Parameters
    ----------
    W
        Matrix (m, n) of any framework, or an array that is reshaped to ``(shape[0], -1)``.
    delta
        Probability of any false entry.
    variance
        Of one noise entry; default that of the fitted Marchenko-Pastur bulk, ``spectrum(W).edge.variance``.
    seed
        As in `mpfast.spectrum`.

    Returns
    -------
    mask
        Boolean array of the shape of W.

    Raises
    ------
    ValueError
        `delta` or `variance` is out of range, or as `mpfast.spectrum`.

    References
    ----------
    Berlyand, Bourdais, Owhadi, Shmalo 2026 (arXiv 2606.02608), theorem on the support of the entries; for Gaussian
    noise a union bound over the m n entries.
    """
    if not 0 < delta < 1:
        raise ValueError(f"noise_floor(): delta must lie in (0, 1), not {delta!r}")
    if variance is not None and not 0 <= variance < math.inf:
        raise ValueError(f"noise_floor(): variance must be a number from 0, not {variance!r}")
    on_gpu = is_on_gpu(W)
    array, dtype = (W, "") if on_gpu else as_numpy(W, function="noise_floor")
    shape = tuple(array.shape)
    if len(shape) < 2 or 0 in shape:
        raise ValueError(f"noise_floor(): W must be non-empty with at least 2 dimensions, but has shape {shape}")
    if variance is None:
        from mpfast.spectrum import spectrum

        variance = spectrum(W if len(shape) == 2 else W.reshape(shape[0], -1), seed=seed).edge.variance
    level = math.sqrt(2 * variance * math.log(2 * math.prod(shape) / delta))
    if on_gpu:
        return _larger(abs(W), level)
    # Row by row in float64: the level as the storage type would round it is another one.
    keep = np.empty(shape, dtype=np.bool_)
    for entries, kept in zip(array, keep, strict=True):
        kept[...] = _larger(np.abs(wide(entries, dtype)), level)
    return like(keep, W)


def _larger(sizes: Any, level: float) -> Any:
    if not bool((sizes < math.inf).all()):
        raise ValueError("noise_floor(): W has NaN or infinite entries; clean it first")
    return sizes > level
