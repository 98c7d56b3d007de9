"""The spectrum of a matrix: all of its singular values, or a measured distribution of them with an error bar."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpfast.spectra.distribution import Measure
from mpfast.spectra.edge import EdgeFit, fit_edge
from mpfast.spectra.metrics import spectral_metrics
from mpfast.spectra.noise import NoiseProfile
from mpfast.spectra.rounding import GRAM_RESOLUTION, rounding_level
from mpfast.spectra.truncation import TruncationRank, checked_error, rank_for_error
from mpfast.support import InvalidValueError, KeptProperty, Record, facts_as_html, front_door, notebook_cell, with_error

if TYPE_CHECKING:
    from matplotlib.axes import Axes


Array = NDArray[np.float64]

__all__ = ["Spectrum", "fit_values"]


@dataclass(frozen=True, eq=False, repr=False)
class Spectrum:
    """What is known of the singular values of one matrix of shape (m, n), ``p = min(m, n)``.

    Where scales of rows and columns are taken out, see ``noise``, it is the scaled matrix that all of this is about,
    without the rows and columns that are dead.

    Attributes
    ----------
    shape, dtype
        Of the matrix; ``dtype`` as the name of the storage type.
    method
        ``"exact"`` (every singular value) or ``"lanczos"`` (block Lanczos quadrature).
    device
        Where it was computed.
    seed, probes, steps, passes
        Of a Lanczos run: the seed, the number of probe vectors, Krylov steps, and block products with the matrix.
    fro_norm
        Frobenius norm.
    values
        All p singular values, descending, or None.
    measure
        The distribution of the singular values: leading values known one by one, and the bulk.
    outliers, residuals
        Converged leading singular values, descending, and a bound on the error of each (same scale): the residual
        of the Ritz pair on the scale ``s^2``, divided by ``2 s``. Zeros for an exact spectrum.
    replicates
        Leave-one-probe-out versions of ``measure``: the source of every error bar. Empty when exact.
    ritz
        All Ritz values of the run on the singular-value scale, descending: lower bounds of the leading values.
    resolved
        How many leading Ritz values can be told apart one by one.
    resolution
        Share of the largest singular value below which one may be rounding of the computation; see also `rounding`:
        ``max(m, n) 2^-52`` for values of W itself, ``2^-24`` for roots of those of W^T W, ``2^-22`` for a measure.
    settling
        Relative change of sigma_plus over the last two Krylov steps: the error of a finite run.
    fro_norm_exact
        False when ``fro_norm`` is an estimate, because nobody sees the entries of a `LinearOperator`.
    unmet_tolerance
        What was reached where ``tol`` was not met within the budget; empty where it was.
    zero_fraction
        Share of rows or columns on the short side that are zero; None when all singular values are known.
    noise
        What the noise was taken for; None where nobody has seen the entries.
    of_outputs
        Whether this is the spectrum of ``W C^(1/2)``, with C the second moment of the inputs: `rank_for_error` is then
        about the layer's outputs, and there is no `edge`.
    """

    shape: tuple[int, int]
    dtype: str
    method: str
    fro_norm: float
    measure: Measure
    values: Array | None = None
    device: str = "cpu"
    seed: int = 0
    probes: int = 0
    steps: int = 0
    passes: int = 1
    outliers: Array = field(default_factory=lambda: np.empty(0))
    residuals: Array = field(default_factory=lambda: np.empty(0))
    replicates: tuple[Measure, ...] = ()
    ritz: Array = field(default_factory=lambda: np.empty(0))
    resolved: int = 0
    settling: float = 0.0
    resolution: float = GRAM_RESOLUTION
    fro_norm_exact: bool = True
    zero_fraction: float | None = None
    unmet_tolerance: str = ""
    noise: NoiseProfile | None = None
    of_outputs: bool = False

    @classmethod
    @front_door
    def from_values(
        cls,
        values: ArrayLike,
        shape: tuple[int, int],
        *,
        dtype: str = "float64",
        device: str = "cpu",
        fro_norm: float | None = None,
        seed: int = 0,
        resolution: float | None = None,
    ) -> Spectrum:
        """Spectrum of which every singular value is known; they may come in any order.

        ``resolution`` is by default that of a backward stable decomposition, ``max(m, n) 2^-52``.

        Raises
        ------
        ValueError
            There are not min(shape) values, or one is negative or not finite.
        """
        values = np.sort(np.asarray(values, dtype=np.float64))[::-1].copy()
        if values.shape != (min(shape),) or not np.isfinite(values).all() or values[-1] < 0:
            raise InvalidValueError("", f"{min(shape)} finite numbers from 0 are needed for shape {shape}")
        return cls(
            shape=shape,
            dtype=dtype,
            device=device,
            method="exact",
            fro_norm=float(np.linalg.norm(values)) if fro_norm is None else fro_norm,
            measure=Measure.from_values(values),
            values=values,
            seed=seed,
            outliers=values,
            residuals=np.zeros_like(values),
            ritz=values,
            resolved=len(values),
            resolution=max(shape) * 2.0**-52 if resolution is None else resolution,
        )

    @property
    def nodes(self) -> Array:
        """Nodes of the discrete measure, singular-value scale: values known one by one, then those of the bulk."""
        return self.measure.nodes

    @property
    def weights(self) -> Array:
        """Weights of ``nodes``; they sum to 1."""
        return self.measure.weights

    @KeptProperty
    def rounding(self) -> float:
        """Level up to which a singular value may be rounding, of the entries or of the computation; same scale.

        `edge`, `metrics` and every other fit go by it: what lies below counts for no rank and is no spectrum. At least
        ``resolution`` times the largest value, and for stored entries what their rounding may add, unless the values
        below that are those of a Marchenko-Pastur bulk.
        """
        if self.of_outputs:
            return self.resolution * float(self.ritz.max(initial=0.0))
        return rounding_level(self)

    @property
    def extra_error(self) -> float:
        """Relative error of sigma_plus that the probes do not show: half of what the last two steps changed."""
        return 0.5 * self.settling

    @property
    def unconverged(self) -> str:
        """What was not reached, of ``tol`` and of scales that were to be measured; empty where all was."""
        return "; ".join(filter(None, (self.unmet_tolerance, "" if self.noise is None else self.noise.unconverged)))

    def cdf(self, s: ArrayLike) -> Array:
        """Share of singular values at or below ``s`` (singular-value scale)."""
        return self.measure.cdf(s)

    @front_door
    def quantile(self, u: ArrayLike) -> Array:
        """Singular value below which a share ``u`` (0 to 1) of all values lies."""
        shares = np.asarray(u, dtype=np.float64)
        if not ((shares >= 0) & (shares <= 1)).all():
            raise InvalidValueError("u", "must lie in [0, 1]")
        return self.measure.quantile(u)

    def density(self, s: ArrayLike) -> Array:
        """Density of the singular values at ``s``, per unit of s."""
        return self.measure.density(s)

    @front_door
    def fit(
        self, estimator: str = "bema", *, alpha: float = 0.25, beta: float = 0.1, compat: str | None = None
    ) -> EdgeFit:
        """Fit the Marchenko-Pastur law to the bulk; see `mpfast.EdgeFit`.

        Parameters
        ----------
        estimator
            ``"bema"`` (least squares on the central quantiles), ``"bema-counted"`` (the same once more without the
            values above its threshold), ``"median"`` or ``"residual"``.
        alpha
            Share of the values left out at each end.
        beta
            False-alarm level of the Tracy-Widom threshold.
        compat
            ``"berlyand2026"`` reproduces the code of arXiv 2606.02608; needs an exact spectrum.

        Raises
        ------
        ValueError
            An option is out of range, or the spectrum is one of outputs.
        """
        if self.of_outputs:
            raise InvalidValueError(
                "",
                "entries of W C^(1/2) are not independent, so that Marchenko and Pastur's law does not hold for them, "
                "and no edge says which of its values matter",
                "use rank_for_error(), or fit the spectrum of W alone",
            )
        return fit_edge(self, estimator, alpha=alpha, beta=beta, compat=compat)

    @KeptProperty
    def edge(self) -> EdgeFit:
        """The default fit."""
        return self.fit()

    @front_door
    def rank_for_error(self, error: float) -> TruncationRank:
        """Return the least rank whose truncation leaves a relative error: the root of the tail's share of the energy.

        Of the matrix, ``||W - W_k||_F / ||W||_F``; of a spectrum measured with ``inputs``, of the outputs: the root of
        their mean square error over their mean square, for inputs like those that the second moment is of. On others it
        is larger, the more so the fewer inputs that had.

        Parameters
        ----------
        error
            In [0, 1).

        Returns
        -------
        TruncationRank
            ``rank``, one standard error of it, and the error that it leaves.

        Raises
        ------
        ValueError
            The error is out of range.

        Examples
        --------
        >>> import numpy as np
        >>> found = Spectrum.from_values([4.0, 2.0, 1.0], (3, 5)).rank_for_error(0.25)
        >>> found.rank, found.rank_error, round(found.error, 3)
        (2, 0.0, 0.218)
        """
        return rank_for_error(self, checked_error(error))

    @front_door
    def metrics(self) -> dict[str, float]:
        """Scalar measures of the spectrum: ranks, tail exponents, spike mass; see `mpfast.spectra.metrics`.

        Of a spectrum of outputs, which has no edge, without those that go by one.
        """
        return spectral_metrics(self, None if self.of_outputs else self.edge)

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the distribution of the singular values, the fitted law, its edge and the spikes.

        As in the HTML report, heights are densities of all singular values, the law's area is ``edge.bulk_fraction``,
        and the picture says how many values lie to the right of it. Of a spectrum of outputs, which no law is fitted
        to, the distribution alone.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Axes to draw on; default the current ones. ``show()`` is never called.

        Returns
        -------
        matplotlib.axes.Axes

        Raises
        ------
        ImportError
            matplotlib is not installed.
        """
        # matplotlib is needed here alone.
        from mpfast.spectra.plot import plot_spectrum

        return plot_spectrum(self, ax)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types; `from_dict` reads it back."""
        return {
            "schema": 2,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "method": self.method,
            "device": self.device,
            "seed": self.seed,
            "probes": self.probes,
            "steps": self.steps,
            "passes": self.passes,
            "fro_norm": self.fro_norm,
            "fro_norm_exact": self.fro_norm_exact,
            "values": None if self.values is None else self.values.tolist(),
            "measure": None if self.values is not None else self.measure.to_dict(),
            "outliers": self.outliers.tolist(),
            "residuals": self.residuals.tolist(),
            "replicates": [measure.to_dict() for measure in self.replicates],
            "ritz": self.ritz.tolist(),
            "resolved": self.resolved,
            "settling": self.settling,
            "resolution": self.resolution,
            "zero_fraction": self.zero_fraction,
            "unmet_tolerance": self.unmet_tolerance,
            "noise": None if self.noise is None else self.noise.to_dict(),
            "of_outputs": self.of_outputs,
        }

    @classmethod
    @front_door
    def from_dict(cls, record: Mapping[str, Any]) -> Spectrum:
        """Rebuild a spectrum from `to_dict`; schema 1 knew no ``noise``.

        Raises
        ------
        ValueError
            A field is missing, unknown or of a wrong kind, or fields contradict each other: the message names it.
        """
        read = Record(record, "the spectrum")
        if read.get("schema") not in (1, 2):
            raise read.refuse("schema", "1 or 2")
        read.allow({"schema", *(field.name for field in fields(cls))})
        shape = read.matrix_shape("shape")
        method = read.text("method")
        if method not in ("exact", "lanczos"):
            raise read.refuse("method", "'exact' or 'lanczos'")
        values = np.array(read.numbers("values", 0)) if read.has("values") else None
        if values is not None and len(values) != min(shape):
            raise read.refuse("values", f"{min(shape)} numbers")
        if (values is not None) != (method == "exact"):
            raise read.refuse("method", "'exact' with values, and 'lanczos' without")
        if values is not None and np.any(np.diff(values) > 0):
            raise read.refuse("values", "in descending order")
        outliers, residuals = (np.array(read.numbers(name, 0)) for name in ("outliers", "residuals"))
        if len(residuals) != len(outliers):
            raise read.refuse("residuals", f"as many as outliers, {len(outliers)}")
        return cls(
            shape=shape,
            dtype=read.text("dtype"),
            method=method,
            fro_norm=read.number("fro_norm", 0),
            measure=Measure.from_record(read.record("measure")) if values is None else Measure.from_values(values),
            values=values,
            device=read.text("device"),
            seed=read.integer("seed"),
            probes=read.integer("probes"),
            steps=read.integer("steps"),
            passes=read.integer("passes"),
            outliers=outliers,
            residuals=residuals,
            replicates=tuple(map(Measure.from_record, read.records("replicates"))),
            ritz=np.array(read.numbers("ritz", 0)),
            resolved=read.integer("resolved"),
            settling=read.number("settling", 0),
            resolution=read.number("resolution", 0),
            fro_norm_exact=read.flag("fro_norm_exact"),
            zero_fraction=read.optional_number("zero_fraction", 0),
            unmet_tolerance=read.text("unmet_tolerance"),
            noise=NoiseProfile.from_record(read.record("noise"), shape) if read.has("noise") else None,
            of_outputs=read.flag("of_outputs"),
        )

    def __repr__(self) -> str:
        work = f", {self.probes} probes x {self.steps} steps" if self.method == "lanczos" else ""
        what = "the outputs of a" if self.of_outputs else "a"
        return f"<Spectrum of {what} {self.shape[0]} x {self.shape[1]} {self.dtype} matrix, {self.method}{work}>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        facts = {key.replace("_", " "): f"{value:.5g}" for key, value in self.metrics().items()}
        if self.of_outputs:
            return notebook_cell(facts_as_html(repr(self), facts))
        edge = self.edge
        fit = {
            "sigma+": with_error(edge.sigma_plus, edge.sigma_plus_error),
            "spikes": str(edge.spikes),
            "KS": f"{edge.ks:.4f}",
            "fit": edge.verdict,
        }
        return notebook_cell(facts_as_html(repr(self), fit | facts, warnings=edge.warnings))


@front_door
def fit_values(
    values: ArrayLike,
    shape: tuple[int, int],
    estimator: str = "bema",
    *,
    alpha: float = 0.25,
    beta: float = 0.1,
    compat: str | None = None,
) -> EdgeFit:
    """Fit all singular values of a matrix, shape (min(shape),), in any order; options as `fit_edge`.

    Raises
    ------
    ValueError
        There are not min(shape) values, or as `fit_edge`.

    Examples
    --------
    >>> import numpy as np
    >>> from mpfast.spectra import MarchenkoPastur
    >>> law = MarchenkoPastur(1.0, (100, 400))
    >>> fit = fit_values(law.ppf((np.arange(100) + 0.5) / 100), (100, 400))
    >>> print(f"{fit.sigma_plus:.6f}")
    30.000000
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))[::-1]
    if ordered.shape != (min(shape),):
        raise InvalidValueError("", f"expected {min(shape)} singular values for shape {shape}, got {ordered.shape}")
    return fit_edge(Spectrum.from_values(ordered, shape), estimator, alpha=alpha, beta=beta, compat=compat)
