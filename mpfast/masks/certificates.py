"""What pruning can change at most: bounds on logits, loss and predictions from what a layer's removed weights do.

With R the removed weights of a layer and psi(s) its input for sample s, the logits move by at most
``eta_s = L_s ||R psi(s)||_inf``, where L_s bounds how much the rest of the network magnifies, from the largest entry of
the layer's output to the largest of the logits. A cross-entropy then moves by at most ``2 eta_s``, and a prediction can
change only where its margin is at most ``2 eta_s``.

Every number says what it is: ``exact``; a ``bound`` that cannot be exceeded; one that holds with the stated
probability under an assumption (``assuming ...``); an ``estimate``; or a ``proxy`` that bounds nothing.

References
----------
Berlyand, Bourdais, Owhadi, Shmalo 2026 (arXiv 2606.02608), certificates; the bound by the second moment is ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpfast.arrays import as_wide, boolean_mask
from mpfast.spectra import measured_spectrum
from mpfast.support import ConvergenceWarning, InvalidValueError, front_door, warn_caller

__all__ = ["BOUND", "ESTIMATE", "EXACT", "PROXY", "Labelled", "LayerCertificate", "RemovedWeights"]

Array = NDArray[np.float64]

EXACT = "exact"
BOUND = "bound"
ESTIMATE = "estimate"
PROXY = "proxy"


class Labelled(NamedTuple):
    """A number, and what it is."""

    value: float
    kind: str

    def __repr__(self) -> str:
        return f"{self.value:.6g} ({self.kind})"


@dataclass(frozen=True)
class LayerCertificate:
    """What the removed weights of one layer do on the samples it was shown.

    Attributes
    ----------
    name : str
    shape : tuple of int
        Of the weight.
    sparsity : float
    variance, sigma_plus, ks : Labelled
        Of the Marchenko-Pastur fit of the dense weight: variance of a noise entry, edge on the singular-value scale,
        distance between bulk and law.
    spikes : int
        Singular values of the dense weight above the Tracy-Widom threshold.
    samples : int
    lipschitz : str
        What the factor L_s is: ``exact``, ``bound``, ``estimate``, or ``unscaled`` if it is just 1.
    shift_mean, shift_p95, shift_max : Labelled
        Of ``||R psi||_inf`` over samples.
    eta : array
        ``L_s ||R psi(s)||_inf`` per sample.
    budget : Labelled
        ``B_T``, twice the mean of `eta`: how much the mean cross-entropy changes.
    moment_bound, row_bound, induced_bound : Labelled
        Weaker bounds on the mean of ``||R psi||_inf``, which need less: the second moment of the inputs; the norms of
        inputs and rows; their largest entries.
    random_sign_bound, gaussian_bound : Labelled
        Bounds on the largest ``||R psi||_inf`` with probability ``1 - delta``, if the signs of R were random, or its
        entries Gaussian noise at the edge of R. Weights that were removed for being small are neither.
    norm_squared, norm_1 : Labelled
        ``||R||_F^2`` and ``||R||_1``.
    break_even_l2, break_even_l1 : Labelled
        The least weight decay ``l2 ||A||_F^2``, or ``l1 ||A||_1``, with which removing R lowers the regularised loss
        for certain: ``B_T`` over the norm.
    unmet_tolerance : str
        What was reached where the error of an edge of these is larger than `mpfast.spectrum` has it; empty where not.
    """

    name: str
    shape: tuple[int, ...]
    sparsity: float
    variance: Labelled
    sigma_plus: Labelled
    ks: Labelled
    spikes: int
    samples: int
    lipschitz: str
    shift_mean: Labelled
    shift_p95: Labelled
    shift_max: Labelled
    eta: Array
    budget: Labelled
    moment_bound: Labelled
    row_bound: Labelled
    induced_bound: Labelled
    random_sign_bound: Labelled
    gaussian_bound: Labelled
    norm_squared: Labelled
    norm_1: Labelled
    break_even_l2: Labelled
    break_even_l1: Labelled
    unmet_tolerance: str = ""

    def certified(self, l2: float = 0.0, l1: float = 0.0) -> bool:
        """Whether removing R lowers ``cross-entropy + l2 ||A||_F^2 + l1 ||A||_1`` for certain.

        False also where it may well do so, but the budget is no bound.
        """
        gain = l2 * self.norm_squared.value + l1 * self.norm_1.value
        return self.budget.kind in (EXACT, BOUND) and self.budget.value < gain

    def to_dict(self) -> dict[str, Any]:
        """One level of plain values; each labelled number with its kind beside it."""
        row: dict[str, Any] = {}
        for key, value in self.__dict__.items():
            if isinstance(value, Labelled):
                row[key], row[f"{key}_kind"] = value.value, value.kind
            elif key != "eta":
                row[key] = value
        return row


class RemovedWeights:
    """The weights that a mask removes from a layer, and what they did to the samples seen so far.

    Parameters
    ----------
    W
        (out, in, ...), of any framework.
    mask
        Boolean, of its shape.
    name : str
    """

    @front_door
    def __init__(self, W: Any, mask: Any, name: str = "layer") -> None:
        weights = as_wide(W, name=name)
        keep = boolean_mask(mask, weights.shape, name)
        self.name = name
        self.shape = weights.shape
        self.sparsity = 1 - float(np.count_nonzero(keep)) / keep.size
        self.R: Array = (weights * ~keep).reshape(len(weights), -1)
        dense = measured_spectrum(weights.reshape(len(weights), -1))
        self._edge, self._unmet = dense.edge, dense.unmet_tolerance
        self._absolute = np.abs(self.R)
        self._row_norm = float(np.sqrt((self.R**2).sum(axis=1)).max(initial=0.0))
        self._induced = float(self._absolute.sum(axis=1).max(initial=0.0))
        self._shifts: list[float] = []
        self._factors: list[float] = []
        self._row_bounds: list[float] = []
        self._induced_bounds: list[float] = []
        self._squares = 0.0
        self._largest_variance = 0.0
        self._largest_norm = 0.0
        self._rows = 0

    @front_door
    def add(self, inputs: ArrayLike, lipschitz: float = 1.0) -> float:
        """Take in one sample and return its ``||R psi||_inf``.

        Parameters
        ----------
        inputs
            All that the layer sees of this sample, (tokens or places, row length) or (row length,).
        lipschitz
            L_s of this sample.

        Raises
        ------
        ValueError
            The inputs are empty, not finite, or of another width; `lipschitz` is negative or not finite.
        """
        X = np.atleast_2d(np.asarray(inputs))
        if X.dtype.kind not in "fiub" or X.ndim != 2 or X.shape[1] != self.R.shape[1] or len(X) == 0:
            raise InvalidValueError(
                f"inputs of {self.name}",
                f"must be real, (places, {self.R.shape[1]}), not {X.dtype.name} of shape {X.shape}",
            )
        X = X.astype(np.float64)
        if not np.isfinite(X).all():
            raise InvalidValueError(f"inputs of {self.name}", "have non-finite entries")
        if not 0 <= lipschitz < math.inf:
            raise InvalidValueError("lipschitz", f"must be a number from 0, not {lipschitz!r}")
        moved = X @ self.R.T
        shift = float(np.abs(moved).max(initial=0.0))
        self._shifts.append(shift)
        self._factors.append(float(lipschitz))
        norms = np.sqrt((X**2).sum(axis=1))
        self._row_bounds.append(self._row_norm * float(norms.max(initial=0.0)))
        self._induced_bounds.append(self._induced * float(np.abs(X).max(initial=0.0)))
        self._squares += float((moved**2).sum())
        self._largest_variance = max(self._largest_variance, float((X**2 @ (self.R**2).T).max(initial=0.0)))
        self._largest_norm = max(self._largest_norm, float(norms.max(initial=0.0)))
        self._rows += len(X)
        return shift

    @front_door
    def certificate(self, lipschitz: str = "unscaled", *, delta: float = 0.05) -> LayerCertificate:
        """Sum up.

        Parameters
        ----------
        lipschitz
            What the factors given to `add` were: ``"exact"``, ``"bound"``, ``"estimate"`` or ``"unscaled"``.
        delta
            Probability that the bounds under an assumption fail.

        Raises
        ------
        ValueError
            No sample was seen, or an option is out of range.

        Warns
        -----
        ConvergenceWarning
            An edge was not measured as well as `mpfast.spectrum` has it by default.
        """
        found = self.summary(lipschitz, delta=delta)
        warn_caller("RemovedWeights.certificate", found.unmet_tolerance, ConvergenceWarning)
        return found

    def summary(self, lipschitz: str = "unscaled", *, delta: float = 0.05) -> LayerCertificate:
        """Sum up as `certificate` does, without a warning: the result says what was not met."""
        if not self._shifts:
            raise InvalidValueError(self.name, "has seen no sample")
        if lipschitz not in (EXACT, BOUND, ESTIMATE, "unscaled"):
            raise InvalidValueError("lipschitz", f"must be exact, bound, estimate or unscaled, not {lipschitz!r}")
        if not 0 < delta < 1:
            raise InvalidValueError("delta", f"must lie in (0, 1), not {delta!r}")
        shifts = np.array(self._shifts)
        eta = shifts * np.array(self._factors)
        samples = len(shifts)
        budget = 2 * float(eta.mean())
        # A budget from exact shifts and bounded factors bounds the loss; with an exact factor it still is no more.
        kind = {EXACT: BOUND, BOUND: BOUND, ESTIMATE: ESTIMATE, "unscaled": PROXY}[lipschitz]
        squared, absolute = float((self.R**2).sum()), float(self._absolute.sum())
        noise, unmet = self._noise_level()
        union = math.sqrt(2 * math.log(2 * len(self.R) * self._rows / delta))
        return LayerCertificate(
            self.name,
            tuple(self.shape),
            self.sparsity,
            Labelled(self._edge.variance, ESTIMATE),
            Labelled(self._edge.sigma_plus, ESTIMATE),
            Labelled(self._edge.ks, EXACT if self._edge.sigma_plus_error == 0 else ESTIMATE),
            self._edge.spikes,
            samples,
            lipschitz,
            shift_mean=Labelled(float(shifts.mean()), EXACT),
            shift_p95=Labelled(float(np.quantile(shifts, 0.95)), EXACT),
            shift_max=Labelled(float(shifts.max()), EXACT),
            eta=eta,
            budget=Labelled(budget, kind),
            moment_bound=Labelled(math.sqrt(self._squares / samples), BOUND),
            row_bound=Labelled(float(np.mean(self._row_bounds)), BOUND),
            induced_bound=Labelled(float(np.mean(self._induced_bounds)), BOUND),
            random_sign_bound=Labelled(union * math.sqrt(self._largest_variance), "assuming random signs"),
            gaussian_bound=Labelled(union * noise * self._largest_norm, "assuming Gaussian noise"),
            norm_squared=Labelled(squared, EXACT),
            norm_1=Labelled(absolute, EXACT),
            break_even_l2=Labelled(budget / squared if squared > 0 else 0.0, kind),
            break_even_l1=Labelled(budget / absolute if absolute > 0 else 0.0, kind),
            unmet_tolerance=self._unmet or unmet,
        )

    def _noise_level(self) -> tuple[float, str]:
        """Standard deviation of an entry of R, from the edge of its spectrum, and what was not met for that."""
        if not self.R.any():
            return 0.0, ""
        found = measured_spectrum(self.R)
        return found.edge.sigma_plus / (math.sqrt(self.R.shape[0]) + math.sqrt(self.R.shape[1])), found.unmet_tolerance
