"""Second moments of layers' inputs, and what is done against the noise in them before weights are fitted."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import numpy as np

from mpfast import reconstruct
from mpfast.integrations.torch import SecondMoments
from mpfast.spectra import clean, diagonal_weight, effective_rows

Array = np.ndarray
MEAN, DIAGONAL, HALF = "1 % of the mean", "30 % of each", "15 % of each"


class Inputs:
    """The inputs of layers that share them: second moments of contiguous parts of the data, and how many they are."""

    def __init__(self, parts: list[Array], rows: tuple[int, ...]) -> None:
        self.parts, self.rows = parts, rows

    @cached_property
    def mean(self) -> Array:
        """Of all of them, (in, in)."""
        if len(self.parts) == 1:
            return self.parts[0]
        return sum(count * part for count, part in zip(self.rows, self.parts, strict=True)) / sum(self.rows)


Regularise = Callable[[Inputs], reconstruct.Factor]


def of_mean(share: float) -> Regularise:
    return lambda inputs: reconstruct.Factor(inputs.mean, share, threads=1)


def of_each(share: float) -> Regularise:
    return lambda inputs: reconstruct.Factor(inputs.mean, 0.0, diagonal=share, threads=1)


def of_likeliest(share: float) -> Regularise:
    """Shrunk to the diagonal, with a share of the weight under which parts of the data are likeliest."""

    def regularise(inputs: Inputs) -> reconstruct.Factor:
        weight = share * diagonal_weight(inputs.parts, inputs.rows)
        return of_each(weight / (1 - weight))(inputs)

    return regularise


def cross_validated(share: float) -> Regularise:
    """Eigenvalues cross-validated between the parts, and a share of each diagonal entry."""
    return lambda inputs: reconstruct.Factor(clean(inputs.parts, inputs.rows), 0.0, diagonal=share, threads=1)


def ledoit_peche(share: float) -> Regularise:
    """Ledoit and Péché's eigenvalues for as many independent inputs as the parts agree like, and a share of each."""

    def regularise(inputs: Inputs) -> reconstruct.Factor:
        scale = np.sqrt(np.maximum(inputs.mean.diagonal(), np.finfo(float).tiny))
        values, vectors = np.linalg.eigh(inputs.mean / scale / scale[:, None])
        shrunk = (vectors * nonlinear_shrinkage(values, effective_rows(inputs.parts, inputs.rows))) @ vectors.T
        scale = scale / np.sqrt(shrunk.diagonal())  # every input keeps its variance
        return reconstruct.Factor(scale * shrunk * scale[:, None], 0.0, diagonal=share, threads=1)

    return regularise


def nonlinear_shrinkage(values: Array, rows: float) -> Array:
    """Eigenvalues of least expected error for the sample's eigenvectors; the smallest are none if rows are too few.

    Ledoit and Wolf, "Analytical nonlinear shrinkage of large-dimensional covariance matrices", Annals of Statistics 48
    (2020), equations 4.7, 4.8, C.2 and C.3: densities and Hilbert transforms by an Epanechnikov kernel.
    """
    size, count = len(values), round(rows)
    seen = np.maximum(values[max(size - count, 0) :], 1e-9 * values[-1])
    width, root = count ** (-1 / 3), np.sqrt(5)
    x = (seen[:, None] - seen) / (width * seen)
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithm = (1 - x**2 / 5) * np.log(np.abs((root - x) / (root + x)))
    transform = -0.3 * x + 0.75 / root * np.where(np.abs(np.abs(x) - root) < 1e-12, 0.0, logarithm)
    hilbert = (transform / (np.pi * width * seen)).mean(axis=1)
    density = (0.75 / root * np.maximum(1 - x**2 / 5, 0) / (width * seen)).mean(axis=1)
    if size <= count:
        ratio = size / count
        return seen / ((np.pi * ratio * seen * density) ** 2 + (1 - ratio - np.pi * ratio * seen * hilbert) ** 2)
    h = width
    at_zero = (0.3 / h**2 + 0.75 / root / h * (1 - 0.2 / h**2) * np.log((1 + root * h) / (1 - root * h))) / np.pi
    at_zero *= (1 / seen).mean()
    null = 1 / (np.pi * (size - count) / count * at_zero)
    return np.concatenate([np.full(size - count, null), 1 / (np.pi**2 * seen * (density**2 + hilbert**2))])


REGULARISATIONS: dict[str, Regularise] = {
    MEAN: of_mean(0.01),
    DIAGONAL: of_each(0.3),
    HALF: of_each(0.15),
    "60 % of each": of_each(0.6),
    "0.4 of the likeliest weight of the diagonal": of_likeliest(0.4),
    "cross-validated eigenvalues, 10 % of each": cross_validated(0.1),
    "Ledoit and Péché's eigenvalues, 10 % of each": ledoit_peche(0.1),
}


class Moments:
    """Second moments by layer, and their factors, which layers with the same input share."""

    def __init__(self, collected: SecondMoments) -> None:
        self.first = {name: collected.shared.get(name, name) for name in collected}
        self.inputs = {}
        for name in set(self.first.values()):
            rows = collected.fold_rows(name)
            self.inputs[name] = Inputs([collected.fold(name, part).numpy() for part in range(len(rows))], rows)
        # The factors that were asked for last, and how they were made.
        self._made: tuple[str, dict[str, reconstruct.Factor]] = ("", {})

    def __getitem__(self, name: str) -> Array:
        return self.inputs[self.first[name]].mean

    def factors(self, damping: str | None, *, eigenvectors: bool) -> dict[str, reconstruct.Factor]:
        """By layer, with what they compute once."""
        if damping is None:
            return {}
        if self._made[0] != damping:
            self._made = "", {}
            regularise = REGULARISATIONS[damping]
            self._made = damping, {name: regularise(inputs) for name, inputs in self.inputs.items()}
        made = self._made[1]
        for factor in made.values():
            _ = factor.upper, factor.correlations, factor.leading_part
            if eigenvectors:
                _ = factor.eigenvectors
        return {name: made[first] for name, first in self.first.items()}
