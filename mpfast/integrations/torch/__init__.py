"""PyTorch models: calibration, masks that stay, pruning in PyTorch's own terms, prune and restore, low-rank layers."""

import importlib
from typing import TYPE_CHECKING, Any

import mpfast.integrations.torch.requirement  # isort: skip  # before PyTorch is imported

from mpfast.integrations.torch.calibration import SecondMoments
from mpfast.integrations.torch.certificates import ModelCertificate, certify
from mpfast.integrations.torch.gradients import output_gradients
from mpfast.integrations.torch.layer_fits import LayerFit
from mpfast.integrations.torch.layers import input_rows, prunable_modules
from mpfast.integrations.torch.lowrank import LowRankPair, load_factors, split, split_modules
from mpfast.integrations.torch.mask_parametrization import Mask, hold, masks_of, release, to_semi_structured
from mpfast.integrations.torch.pruning import GivenMask, NOfM, NoiseFloor, global_prune, layer_by_layer
from mpfast.integrations.torch.restoration import FineTuning, PruneAndRestore, Selection, StepReport
from mpfast.integrations.torch.texts import text_moments
from mpfast.integrations.torch.whole_checkpoints import ReconstructedCheckpoint, reconstruct_checkpoint
from mpfast.integrations.torch.whole_models import ReconstructedModel, reconstruct_model

if TYPE_CHECKING:
    from mpfast.integrations.torch.sparsifier import SpectralSparsifier

__all__ = [
    "FineTuning",
    "GivenMask",
    "LayerFit",
    "LowRankPair",
    "Mask",
    "ModelCertificate",
    "NOfM",
    "NoiseFloor",
    "PruneAndRestore",
    "ReconstructedCheckpoint",
    "ReconstructedModel",
    "SecondMoments",
    "Selection",
    "SpectralSparsifier",
    "StepReport",
    "certify",
    "global_prune",
    "hold",
    "input_rows",
    "layer_by_layer",
    "load_factors",
    "masks_of",
    "output_gradients",
    "prunable_modules",
    "reconstruct_checkpoint",
    "reconstruct_model",
    "release",
    "split",
    "split_modules",
    "text_moments",
    "to_semi_structured",
]


def __getattr__(name: str) -> Any:
    # torch.ao is large, and has been on its way out of PyTorch.
    if name == "SpectralSparsifier":
        return importlib.import_module(f"{__name__}.sparsifier").SpectralSparsifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
