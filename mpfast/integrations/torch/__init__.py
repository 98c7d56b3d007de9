"""PyTorch models: calibration, masks that stay, pruning in PyTorch's own terms, prune and restore, low-rank layers."""

import mpfast.integrations.torch.requirement  # isort: skip  # before PyTorch is imported

from mpfast.integrations.torch.calibration import SecondMoments
from mpfast.integrations.torch.certificates import ModelCertificate, certify
from mpfast.integrations.torch.layers import input_rows, prunable_modules
from mpfast.integrations.torch.lowrank import LowRank, split, split_modules
from mpfast.integrations.torch.mask_parametrization import Mask, hold, masks_of, release, to_semi_structured
from mpfast.integrations.torch.pruning import GivenMask, NOfM, NoiseFloor, SpectralSparsifier, global_prune
from mpfast.integrations.torch.restoration import FineTuning, PruneAndRestore, Selection, StepReport

__all__ = [
    "FineTuning",
    "GivenMask",
    "LowRank",
    "Mask",
    "ModelCertificate",
    "NOfM",
    "NoiseFloor",
    "PruneAndRestore",
    "SecondMoments",
    "Selection",
    "SpectralSparsifier",
    "StepReport",
    "certify",
    "global_prune",
    "hold",
    "input_rows",
    "masks_of",
    "prunable_modules",
    "release",
    "split",
    "split_modules",
    "to_semi_structured",
]
