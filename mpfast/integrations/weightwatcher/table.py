"""The data frames: `details`, `describe` and `summary`; and the eigenvalues of one layer."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.checkpoints import NameFilter
from mpfast.integrations.weightwatcher.columns import (
    constraint_columns,
    norm_columns,
    number_of_draws,
    places_of,
    power_law_columns,
    random_columns,
    spectra_of,
)
from mpfast.integrations.weightwatcher.layers import WatchedLayer, WatchedModel
from mpfast.models import Analysis
from mpfast.support import InputError, InvalidTypeError, check_flag, check_seed, front_door, package_missing

__all__ = ["DIFFERENCES", "SUMMARISED", "describe", "details", "esd", "summary"]

Array = NDArray[np.float64]

#: Columns that mean something else here, and what. The others are the same numbers, to rounding.
DIFFERENCES = {
    "num_spikes": "values above the Tracy-Widom threshold of mpfast's fit; WeightWatcher counts those above an edge "
    "and correction of its own. Of a convolution the sum over the positions, as the next four are means",
    "sigma_mp": "of mpfast's fit, BEMA, on WeightWatcher's scale; WeightWatcher tries values on a grid against a "
    "smoothed density",
    "bulk_max": "square of the edge of that fit",
    "bulk_min": "square of its lower edge",
    "mp_softrank": "bulk_max over spectral_norm, with the bulk_max above",
    "num_traps": "num_spikes of the matrix with its entries in random places",
    "rank_loss": "number of singular values that may be rounding, of the entries too; WeightWatcher counts what "
    "rounding of float64 could be",
    "matrix_rank": "num_evals without rank_loss",
    "status": "failed where there are no two different eigenvalues above 1e-5; the columns of the power law are NaN "
    "then and warning is empty, where WeightWatcher has -1 and over-trained",
    "layer_type": "dense, conv1d, conv2d or embedding by what the tensor is; WeightWatcher goes by the class of a live "
    "module, and by the number of dimensions in a file",
}

_IDENTITY = ("layer_id", "name", "longname", "layer_type", "N", "M", "rf")
#: The columns that `summary` averages.
SUMMARISED = (
    *("log_norm", "alpha", "alpha_weighted", "log_alpha_norm", "log_spectral_norm", "stable_rank"),
    "mp_softrank",
)


@front_door
def details(
    model: Any,
    *,
    include: NameFilter = None,
    exclude: NameFilter = None,
    base: Any = None,
    randomize: bool = False,
    detx: bool = False,
    seed: int = 0,
    threads: int | None = None,
) -> Any:
    """Return a pandas.DataFrame with WeightWatcher's columns, one row per layer, from all singular values.

    Takes the time of full decompositions, `mpfast.analyze` that of a few passes. The columns, and what of them means
    something else (`DIFFERENCES`), are on the page "Coming from WeightWatcher". Layers that have no spectrum, with NaN
    say, are in ``attrs["skipped"]``, by name with the reason, and so is every other tensor.

    Parameters
    ----------
    model : path, mapping of arrays or module
        As `mpfast.analyze`.
    include, exclude : str, iterable of str or callable, optional
        Glob patterns of names, or functions of a name, as in `mpfast.analyze`.
    base : path, mapping of arrays or module, optional
        What the model was tuned from: the differences are looked at.
    randomize : bool
        Compare with the matrices whose entries are in random places: the columns ``rand_*``, ``num_traps``,
        ``ww_softrank``, ``ww_maxdist`` and ``max_rand_eval``.
    detx : bool
        The columns ``detX_*``, ``num_ERG_spikes`` and ``ERG_gap``.
    seed : int
        Of the random places.
    threads : int, optional
        Number of threads; default as `mpfast.spectrum`.

    Returns
    -------
    pandas.DataFrame

    Raises
    ------
    TypeError
        `model` is an `mpfast.Analysis`, which does not have all singular values, or nothing that holds tensors.
    ImportError
        pandas is missing.
    """
    check_flag(randomize, "randomize")
    check_flag(detx, "detx")
    seed = check_seed(seed)
    watched = _opened(model, base, include, exclude)
    skipped = dict(watched.skipped)
    rows: list[dict[str, Any]] = []
    for layer in watched.layers:
        try:
            rows.append(_row(watched, layer, randomize, detx, places_of(layer, seed), threads))
        except InputError as error:
            skipped[layer.longname] = error.reason
    return _frame(rows, skipped)


@front_door
def describe(model: Any, *, include: NameFilter = None, exclude: NameFilter = None, base: Any = None) -> Any:
    """Return the layers that `details` would look at as a pandas.DataFrame, without reading a weight.

    Parameters
    ----------
    model, include, exclude, base
        As in `details`.

    Returns
    -------
    pandas.DataFrame
        The columns layer_id, name, longname, layer_type, N, M, rf, Q and num_evals.

    Raises
    ------
    TypeError, ImportError
        As `details`.
    """
    watched = _opened(model, base, include, exclude)
    return _frame([_identity(layer) | {"num_evals": layer.M * layer.rf} for layer in watched.layers], watched.skipped)


def summary(table: Any) -> dict[str, float]:
    """Return the means over the layers of the columns that WeightWatcher's ``get_summary`` averages.

    Parameters
    ----------
    table : pandas.DataFrame
        As `details` returns it.

    Returns
    -------
    dict
        By column, for those of `SUMMARISED` that the table has.
    """
    return {column: float(table[column].mean()) for column in SUMMARISED if column in table}


@front_door
def esd(model: Any, layer: int | str, *, randomize: bool = False, seed: int = 0) -> Array:
    """Return the eigenvalues of a layer: squares of the singular values, of all kernel positions together, ascending.

    Parameters
    ----------
    model : path, mapping of arrays or module
        As in `details`.
    layer : int or str
        Its number or its name, see `WatchedLayer`.
    randomize : bool
        Put the entries of the matrices in random places first.
    seed : int
        Of the random places.

    Returns
    -------
    array, shape (M rf,)

    Raises
    ------
    KeyError
        There is no such layer.
    TypeError
        As `details`.
    """
    check_flag(randomize, "randomize")
    watched = _opened(model, None, None, None)
    found, seed = watched.called(layer), check_seed(seed)
    return spectra_of(watched, found, rng=places_of(found, seed) if randomize else None).eigenvalues


def _opened(model: Any, base: Any, include: NameFilter, exclude: NameFilter) -> WatchedModel:
    if isinstance(model, Analysis):
        raise InvalidTypeError(
            "model", "is an analysis, which does not have all singular values", "pass what was analysed"
        )
    return WatchedModel(model, base, include, exclude)


def _identity(layer: WatchedLayer) -> dict[str, Any]:
    return {name: getattr(layer, name) for name in _IDENTITY} | {"Q": layer.N / layer.M}


def _row(
    model: WatchedModel,
    layer: WatchedLayer,
    randomize: bool,
    detx: bool,
    rng: np.random.Generator,
    threads: int | None,
) -> dict[str, Any]:
    found = spectra_of(model, layer, threads)
    tail = power_law_columns(found.eigenvalues)
    row = _identity(layer) | norm_columns(found) | tail | found.noise_columns()
    if randomize:
        draws = [spectra_of(model, layer, threads, rng) for _ in range(number_of_draws(layer))]
        row |= random_columns(found, draws)
    if detx:
        row |= constraint_columns(found.eigenvalues, tail["num_pl_spikes"])
    return row


def _frame(rows: Iterable[Mapping[str, Any]], skipped: Mapping[str, str]) -> Any:
    try:
        pandas = importlib.import_module("pandas")
    except ImportError:
        raise package_missing("WeightWatcher's table", "pandas", extra="pandas") from None
    table = pandas.DataFrame(list(rows))
    table.attrs["skipped"] = dict(skipped)
    return table
