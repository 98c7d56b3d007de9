"""Spectra of several matrices: small ones side by side, each on one thread, large ones in turn, each on all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeGuard

from numpy.typing import ArrayLike

from mpfast import _core
from mpfast.arrays import as_numpy, is_on_gpu
from mpfast.operators import MatrixSource, Source, open_source, values_together
from mpfast.spectra.estimate import takes_all_values
from mpfast.spectra.measured import Spectrum
from mpfast.spectra.measurement import measured_spectrum_of
from mpfast.spectra.request import NoiseModel, Request, SpectrumMethod
from mpfast.support import (
    ConvergenceWarning,
    InvalidValueError,
    front_door,
    matrix_called,
    side_by_side,
    summary_of_unmet,
    team_size,
    warn_caller,
)

__all__ = ["SIDE_BY_SIDE_UP_TO", "measured_spectra", "spectrum_of_each"]

# A matrix of more entries than this (16 MB in float32, beyond the cache of one core) gets all threads to itself: the
# fused product then scales with the memory bandwidth. Smaller ones keep one thread each and run side by side.
SIDE_BY_SIDE_UP_TO = 4_000_000


@front_door
def spectrum_of_each(
    W: Any,
    *,
    method: SpectrumMethod = "auto",
    tol: float = 5e-3,
    seed: int = 0,
    threads: int | None = None,
    noise: NoiseModel | Sequence[ArrayLike] = "even",
) -> list[Spectrum]:
    """Measure the spectrum of each matrix of a stack: experts, positions of a convolution, heads.

    To the bit what `mpfast.spectrum` says of them one by one, with the same options. All singular values of small
    matrices come from one call into the core, which shares the matrices out to the threads.

    Parameters
    ----------
    W
        3-D real array of any framework, shape (count, m, n), types as in `mpfast.spectrum`.
    method, tol, seed, threads, noise
        As in `mpfast.spectrum`.

    Returns
    -------
    list of Spectrum
        In the order of the stack.

    Raises
    ------
    ValueError, TypeError
        W is not 3-D, or as `mpfast.spectrum` of the first matrix at fault.

    Warns
    -----
    ConvergenceWarning
        Once each, if any did not meet ``tol``, and if scales of any did not settle.

    Examples
    --------
    >>> import numpy as np
    >>> W = np.random.default_rng(0).standard_normal((20, 64, 96))
    >>> found = spectrum_of_each(W)
    >>> len(found), round(max(each.edge.unevenness for each in found), 3)
    (20, 0.0)
    """
    parts = {f"W[{index}]": part for index, part in enumerate(_parts(W))}
    found = measured_spectra(parts, method=method, tol=tol, seed=seed, threads=threads, noise=noise)
    unmet = {label: each.unmet_tolerance for label, each in found.items()}
    warn_caller("spectrum_of_each", summary_of_unmet(unmet), ConvergenceWarning)
    unsettled = {label: "" if each.noise is None else each.noise.unconverged for label, each in found.items()}
    warn_caller("spectrum_of_each", summary_of_unmet(unsettled, "settle"), ConvergenceWarning)
    return list(found.values())


def _parts(W: Any) -> list[Any]:
    """The matrices of a stack; InvalidValueError where it is none."""
    if is_on_gpu(W):
        _check_stack(tuple(W.shape))
        return list(W)
    array, dtype = as_numpy(W)
    _check_stack(array.shape)
    return [_core.Matrix(part, dtype) for part in array]


def _check_stack(shape: tuple[int, ...]) -> None:
    """Raise ValueError unless this is the shape of a stack of matrices with entries."""
    if len(shape) != 3:
        advice = "mpfast.spectrum takes one matrix" if len(shape) == 2 else ""
        raise InvalidValueError("W", f"must be 3-D, but has shape {shape}", advice)
    if math.prod(shape) == 0:
        raise InvalidValueError("W", f"is empty: its shape is {shape}")


def measured_spectra(matrices: Mapping[str, Any], **options: Any) -> dict[str, Spectrum]:
    """Measure each as `measured_spectrum` does, to the bit, with the options of `spectrum`.

    Errors of input bear the name of the matrix at fault.
    """
    request = Request(**options)
    threads = team_size(request.threads)
    sources: dict[str, Source] = {}
    for name, matrix in matrices.items():
        with matrix_called(name):
            sources[name] = open_source(matrix, threads=request.thread_count, device=request.device)
    small = {name: source for name, source in sources.items() if _is_small(source)}
    if len(small) < 2:
        small = {}
    for source in small.values():
        source.threads = 1
    alone = replace(request, threads=1)

    def measured(name: str) -> Spectrum:
        with matrix_called(name):
            return measured_spectrum_of(sources[name], alone if name in small else request).spectrum

    # With scales given, the values that are asked for are those of another matrix.
    whole = {
        name for name, source in small.items() if isinstance(request.noise, str) and takes_all_values(source, alone)
    }
    values_together([small[name] for name in whole], threads)
    found = {name: measured(name) for name in small if name in whole}
    rest = [name for name in small if name not in whole]
    found |= zip(rest, side_by_side(measured, rest, threads), strict=True)
    found |= {name: measured(name) for name in sources if name not in small}
    return {name: found[name] for name in sources}


def _is_small(source: Source) -> TypeGuard[MatrixSource]:
    return isinstance(source, MatrixSource) and math.prod(source.shape) <= SIDE_BY_SIDE_UP_TO
