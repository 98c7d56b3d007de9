"""NVIDIA ModelOpt: our masks as its sparse modules, and a sparsity mode that refits what it keeps."""

import mpfast.integrations.modelopt.requirement  # isort: skip  # before what needs it is imported

from mpfast.integrations.modelopt.mode import MPFastMode, MPFastSearcher
from mpfast.integrations.modelopt.sparse_modules import apply_masks

__all__ = ["MPFastMode", "MPFastSearcher", "apply_masks"]
