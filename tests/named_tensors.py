"""Checkpoints that are names, shapes and types alone."""

from __future__ import annotations

import numpy as np

from mpfast.checkpoints import roles_of
from mpfast.checkpoints.base import TensorInfo


class Named:
    """A checkpoint that is names, shapes and types alone."""

    source = "a table"
    others = ()

    def __init__(self, tensors, config=None):
        self.config = config
        self.tensors = tuple(
            TensorInfo(name, *(entry if isinstance(entry[0], tuple) else (entry, "float32")))
            for name, entry in tensors.items()
        )


def kinds(tensors, config=None):
    return {name: role.kind for name, role in roles_of(Named(tensors, config)).items()}


def weight(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
