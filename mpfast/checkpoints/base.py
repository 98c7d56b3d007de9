"""What every checkpoint reader offers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mpfast.arrays import as_numpy, widened

__all__ = ["Checkpoint", "NoTensor", "OutputPart", "Role", "TensorInfo", "numbers", "prefetched"]


@dataclass(frozen=True, slots=True)
class OutputPart:
    """The outputs of a fused projection that make up one matrix: runs of consecutive ones, equally far apart.

    Attributes
    ----------
    label : str
        What the matrix is: "query", "gate".
    start : int
        Its first output.
    length : int
        Number of outputs in a run.
    runs : int
        Number of runs.
    stride : int
        From the beginning of a run to that of the next; the runs of all parts fill it. 0 where there is one run.
    """

    label: str
    start: int
    length: int
    runs: int = 1
    stride: int = 0

    @property
    def outputs(self) -> int:
        """Number of outputs."""
        return self.length * self.runs


@dataclass(frozen=True, slots=True)
class Role:
    """What a tensor is to its model, and how that is known.

    Attributes
    ----------
    kind : str
        A matrix: "linear", "conv" (1-D to 3-D), "conv_transposed", "embedding", "head" (of a language model), "experts"
        (a stack of matrices, one per expert), "lora" (the update of an adapter, a product of factors). No matrix:
        "vector" (biases, normalisation), "buffer", "mask", "companion" (scales and the like of a quantised weight),
        "quantised", "factor" (of an update), "alias" (the same memory as another), "view" (the same memory as another,
        seen otherwise), "part" (of a parametrised weight), "unknown".
    input_axes : tuple of int
        Axes of the tensor that run along the inputs, slowest first; empty where that is not known.
    reason : str
        Why the tensor is no layer; empty where it is one.
    source : str
        Where that is known from: "type", "module class", "ONNX node", "config.json", "storage", "companions",
        "names of a pair", "GGUF name", "shape" or, as the last resort, "name".
    of : str
        The weight that a companion, an alias, a view, a mask or a factor belongs to.
    parts : tuple of OutputPart
        Of a fused projection: the matrices in it.
    unsplit : str
        Of one that is seen as one matrix all the same: why.
    called : str
        The weight's name to who uses the model, where it is stored under another: ``0.weight`` for ``0.weight_orig``.
    shape : tuple of int or None
        Its shape then, where that is not the stored one's.
    masked_by, scaled_by : str
        The mask that the stored tensor is multiplied by, the lengths that its slices are brought to, where the model
        does so before it uses them.
    fixed : str
        Why entries of the weight cannot be set to zero in what is stored; empty where they can.
    groups : int
        Of a convolution.
    rows : int
        How many leading axes of the tensor are the rows of the matrix. Matrices in a stack are the last two axes.
    stacked : int
        How many matrices of as many rows lie one below the other in a matrix; 0 where it is one.
    """

    kind: str
    input_axes: tuple[int, ...] = ()
    reason: str = ""
    source: str = "name"
    of: str = ""
    parts: tuple[OutputPart, ...] = ()
    called: str = ""
    shape: tuple[int, ...] | None = None
    masked_by: str = ""
    scaled_by: str = ""
    fixed: str = ""
    groups: int = 1
    rows: int = 1
    stacked: int = 0
    unsplit: str = ""

    @property
    def input_axis(self) -> int | None:
        """The axis of the input features or channels; None where it is not known."""
        if not self.input_axes:
            return None
        channels_last = self.kind == "conv" and self.input_axes[0] == 0
        return self.input_axes[-1] if channels_last else self.input_axes[0]


@dataclass(frozen=True, slots=True)
class NoTensor:
    """An entry of a checkpoint that is no plain tensor.

    Attributes
    ----------
    name : str
        Its key.
    type : str
        What it is.
    reason : str
        Why it is not read.
    lost : bool
        Whether a file of tensors alone would lack something of the model.
    """

    name: str
    type: str
    reason: str
    lost: bool = False


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Name, shape and element type of a tensor, known before a byte of its data is read.

    Attributes
    ----------
    name : str
        Name in the checkpoint, unique in it.
    shape : tuple of int
        Shape as stored.
    dtype : str
        Element type by NumPy's names (``"float32"``, ``"int64"``), extended by ``"bfloat16"``,
        ``"float8_e4m3fn"`` and the like, whatever the file format calls it.
    known : Role or None
        What the reader knows of it, from the model's modules or the nodes of a graph; None where it knows no more than
        the above. No part of equality.
    shared : tuple of str
        Other tensors that have entries in common with it in memory, and are no aliases. No part of equality.
    stored : str
        The format of a quantised tensor (``"Q4_1"``) that `read` dequantises to `dtype`; empty where it is stored as it
        is read. No part of equality.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    known: Role | None = field(default=None, repr=False, compare=False)
    shared: tuple[str, ...] = field(default=(), repr=False, compare=False)
    stored: str = field(default="", repr=False, compare=False)

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


class Checkpoint(Protocol):
    """A named collection of tensors that are read one at a time.

    What has these methods is a checkpoint. `config` and `others` may be missing, which reads as None and none.
    """

    @property
    def source(self) -> str:
        """Where the tensors come from, for messages and reports: a path or a type name."""

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """All tensors in the order of the checkpoint."""

    @property
    def config(self) -> Mapping[str, Any] | None:
        """What the model's ``config.json`` says, with ``model_type`` and the like; None where there is none."""

    @property
    def others(self) -> tuple[NoTensor, ...]:
        """Entries that are no plain tensors."""

    def read(self, name: str) -> Any:
        """Return one tensor, in its stored shape; read-only. Safe to call from several threads at once.

        The result is an array of the type that ``TensorInfo.dtype`` names, or, for types NumPy lacks, a
        NumPy array of unsigned integers that holds their bits (``bfloat16`` as ``uint16``).

        Raises
        ------
        KeyError
            No tensor has this name.
        CheckpointError
            The stored data is damaged.
        """

    def prefetch(self, name: str) -> None:
        """Ask the system to fetch a tensor that is to be read next; returns at once."""

    def release(self, name: str) -> None:
        """Give the memory of a tensor back, if the system can: it stays valid, and is read again when it is used."""


def prefetched(names: Iterable[str], *checkpoints: Checkpoint) -> Iterator[str]:
    """Yield the names, and have each tensor's successor fetched from these checkpoints while it is worked on."""
    remaining = iter(names)
    name = next(remaining, None)
    while name is not None:
        following = next(remaining, None)
        if following is not None:
            for checkpoint in checkpoints:
                checkpoint.prefetch(following)
        yield name
        name = following


def numbers(tensor: Any, info: TensorInfo) -> NDArray[Any]:
    """Return a floating-point tensor of a checkpoint in float32, or float64 if it is stored so."""
    if not isinstance(tensor, np.ndarray):
        tensor, _ = as_numpy(tensor, name=info.name)
    if info.dtype == "bfloat16":
        return widened(tensor.view(np.uint16))
    wide: NDArray[Any] = tensor if info.dtype == "float64" else tensor.astype(np.float32, copy=False)
    return wide
