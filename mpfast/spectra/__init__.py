"""One matrix: its spectrum, the Marchenko-Pastur edge, leading singular triplets."""

import importlib
from typing import TYPE_CHECKING, Any

from mpfast.spectra import lowrank
from mpfast.spectra.distribution import Measure
from mpfast.spectra.edge import EdgeFit
from mpfast.spectra.edge_warnings import PERHAPS_FUSED
from mpfast.spectra.krylov_svd import SVD, svd
from mpfast.spectra.marchenko_pastur import MarchenkoPastur, MarchenkoPasturEigenvalues, sigma_plus
from mpfast.spectra.measured import Spectrum, fit_values
from mpfast.spectra.measurement import BothModels, measured_both, measured_spectrum, spectrum
from mpfast.spectra.metrics import METRICS, spectral_metrics
from mpfast.spectra.noise import NoiseProfile
from mpfast.spectra.picture import Histogram, Picture
from mpfast.spectra.principal_outputs import PrincipalOutputs
from mpfast.spectra.request import NoiseModel, SpectrumMethod
from mpfast.spectra.separable import SeparableEdge, SeparableLaw, separable_edge
from mpfast.spectra.shrinkage import optimal_threshold, shrink
from mpfast.spectra.tracy_widom import TracyWidom, largest_value_pvalue, tracy_widom_threshold
from mpfast.spectra.truncation import TruncationRank, checked_error

if TYPE_CHECKING:
    from mpfast.spectra.plot import current_axes, draw_picture
    from mpfast.spectra.power_tail import PowerLaw, power_law
    from mpfast.spectra.quantization import QuantizationNoise, grid_variance, quantization_noise
    from mpfast.spectra.second_moment import clean, diagonal_weight, effective_rows, shrink_to_diagonal
    from mpfast.spectra.several import SIDE_BY_SIDE_UP_TO, measured_spectra, spectrum_of_each
    from mpfast.spectra.singular_vectors import Randomness, drop_bulk, haar_sparsify, randomness, sparsify_vectors
    from mpfast.spectra.subsampled import fixed_aspect_hill
    from mpfast.spectra.synthetic import critical_signal, family, low_rank
    from mpfast.spectra.synthetic_noise import uneven_family

__all__ = [
    "METRICS",
    "PERHAPS_FUSED",
    "SIDE_BY_SIDE_UP_TO",
    "SVD",
    "BothModels",
    "EdgeFit",
    "Histogram",
    "MarchenkoPastur",
    "MarchenkoPasturEigenvalues",
    "Measure",
    "NoiseModel",
    "NoiseProfile",
    "Picture",
    "PowerLaw",
    "PrincipalOutputs",
    "QuantizationNoise",
    "Randomness",
    "SeparableEdge",
    "SeparableLaw",
    "Spectrum",
    "SpectrumMethod",
    "TracyWidom",
    "TruncationRank",
    "checked_error",
    "clean",
    "critical_signal",
    "current_axes",
    "diagonal_weight",
    "draw_picture",
    "drop_bulk",
    "effective_rows",
    "family",
    "fit_values",
    "fixed_aspect_hill",
    "grid_variance",
    "haar_sparsify",
    "largest_value_pvalue",
    "low_rank",
    "lowrank",
    "measured_both",
    "measured_spectra",
    "measured_spectrum",
    "optimal_threshold",
    "power_law",
    "quantization_noise",
    "randomness",
    "separable_edge",
    "shrink",
    "shrink_to_diagonal",
    "sigma_plus",
    "sparsify_vectors",
    "spectral_metrics",
    "spectrum",
    "spectrum_of_each",
    "svd",
    "tracy_widom_threshold",
    "uneven_family",
]


def __getattr__(name: str) -> Any:
    # What most programs do not use is loaded by those that do.
    if name in __all__:
        files = (
            "plot",
            "power_tail",
            "synthetic",
            "synthetic_noise",
            "singular_vectors",
            "second_moment",
            "subsampled",
            "quantization",
            "several",
        )
        for file in files:
            module = importlib.import_module(f"{__name__}.{file}")
            if name in module.__all__:
                return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
