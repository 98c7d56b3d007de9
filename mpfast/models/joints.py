"""Where neurons and heads are in a checkpoint: the matrices that read them, and the tensors that write them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.checkpoints import WHOLE, WIDTHS, Checkpoint, Layer, TensorInfo, Units, as_layers, roles_of, setting
from mpfast.support import InvalidValueError

__all__ = ["HEADS", "Joint", "Joints", "Writer", "heads_of", "neurons_of"]

# What configurations call heads, those of keys and values, and sizes.
HEADS, _GROUPS, _HEAD_SIZE, _HIDDEN = "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size"
_NO_MATRIX = "is no matrix of floating-point numbers that reads inputs"


@dataclass(frozen=True)
class Writer:
    """A tensor whose outputs are units, all of a unit's side by side.

    Attributes
    ----------
    info : TensorInfo
        A matrix, or the bias of one.
    axis : int
        Of the outputs.
    matrices : int
        How many matrices, each with all units, lie one below the other.
    """

    info: TensorInfo
    axis: int
    matrices: int

    def narrowed(self, tensor: NDArray[Any], units: int, kept: Sequence[int]) -> NDArray[Any]:
        """Return what is left of the tensor where, of so many units, these stay."""
        before, after = tensor.shape[: self.axis], tensor.shape[self.axis + 1 :]
        split = tensor.reshape(*before, self.matrices, units, -1, *after)
        return np.take(split, kept, axis=self.axis + 1).reshape(*before, -1, *after)


@dataclass(frozen=True)
class Joint:
    """A matrix whose inputs are units, and what writes these.

    Attributes
    ----------
    reader : Layer
    writers : tuple of Writer
    """

    reader: Layer
    writers: tuple[Writer, ...]

    def shapes(self, units: int, kept: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of its tensors by name where, of so many units, some stay."""
        sides = [(self.reader.file_name, self.reader.tensor_shape, self.reader.input_axes[0])]
        sides += [(writer.info.name, writer.info.shape, writer.axis) for writer in self.writers]
        return {name: (*shape[:axis], shape[axis] // units * kept, *shape[axis + 1 :]) for name, shape, axis in sides}


@dataclass(frozen=True)
class Joints:
    """All units of one kind in a checkpoint, as many in each block.

    Attributes
    ----------
    kind : {"neurons", "heads"}
        Heads are groups: one of keys and values, with those of queries that it serves.
    units : int
        How many there are in a block.
    all : tuple of Joint
        One for each block.
    per_unit : mapping of str to int
        Settings of the configuration that count units, and how much of each one unit is.
    fixed : mapping of str to int
        Settings that are to be said where the others change.
    divided : int or None
        What the number of heads must divide.
    kept : int
        How many units are to stay.
    """

    kind: str
    units: int
    all: tuple[Joint, ...]
    per_unit: Mapping[str, int]
    fixed: Mapping[str, int]
    divided: int | None = None
    kept: int = 0

    @property
    def settings(self) -> dict[str, int]:
        """What the configuration is to say."""
        return {name: share * self.kept for name, share in self.per_unit.items()} | dict(self.fixed)

    @property
    def noun(self) -> str:
        """What the units are, in words."""
        return "neurons" if self.kind == "neurons" else "heads of keys and values"

    @property
    def per_reader(self) -> int:
        """How many inputs of a matrix one unit is."""
        return self.all[0].reader.inputs // self.units


def neurons_of(checkpoint: Checkpoint) -> Joints:
    """Find the neurons of the feed-forward layers.

    Raises
    ------
    InvalidValueError
        The model is of a family that is not known, lacks tensors, or has blocks of several sizes.
    """
    config, family = _configuration(checkpoint)
    widths = WIDTHS[family]
    joints = _joints(checkpoint, widths.neurons, family)
    size = _one_size(config, widths.size) or joints[0].reader.inputs
    _check(joints, size, {size}, f"{widths.size} is {size}")
    return Joints("neurons", size, joints, {widths.size: 1}, {})


def heads_of(checkpoint: Checkpoint) -> Joints:
    """Find the groups of heads that have keys and values in common; errors as `neurons_of`, and families without."""
    config, family = _configuration(checkpoint)
    widths = WIDTHS[family]
    if widths.heads is None:
        raise InvalidValueError("heads", f"cannot go from a model of the type {family!r}: {widths.no_heads}")
    joints = _joints(checkpoint, widths.heads, family)
    heads = _one_size(config, HEADS)
    if heads is None:
        raise InvalidValueError("model", f"has no {HEADS} in its config.json")
    groups = _one_size(config, _GROUPS) or heads
    inputs = joints[0].reader.inputs
    size = _one_size(config, _HEAD_SIZE) or inputs // heads
    said = f"{HEADS} is {heads}, {_GROUPS} {groups} and {_HEAD_SIZE} {size}"
    if heads % groups:
        raise InvalidValueError("model", f"has no whole groups of heads: {said}")
    _check(joints, heads * size, {heads * size, groups * size}, said)
    hidden = setting(config, _HIDDEN) if widths.hidden_by_heads else None
    return Joints("heads", groups, joints, {HEADS: heads // groups, _GROUPS: 1}, {_HEAD_SIZE: size}, hidden)


def _one_size(config: Mapping[str, Any], name: str) -> int | None:
    """What a configuration says that all blocks have; None where it does not say."""
    if isinstance(config.get(name), list | tuple):
        fact = f"says {name} in its config.json for each block by itself, and one number would be written"
        raise InvalidValueError("model", fact)
    return setting(config, name)


def _configuration(checkpoint: Checkpoint) -> tuple[Mapping[str, Any], str]:
    """What config.json says, and the family; its blocks are known."""
    config = getattr(checkpoint, "config", None)
    if not config:
        fact = f"{checkpoint.source}: has no config.json beside it, which would have to say the new sizes"
        raise InvalidValueError("", fact, "pass a directory that save_pretrained wrote")
    family = config.get("model_type")
    if not isinstance(family, str) or family not in WIDTHS:
        fact = f"is of the type {family!r}, in which it is not known what writes and reads the neurons"
        raise InvalidValueError("model", fact, f"known are {', '.join(sorted(WIDTHS))}")
    return config, family


def _joints(checkpoint: Checkpoint, units: Units, family: str) -> tuple[Joint, ...]:
    roles, infos = roles_of(checkpoint), {info.name: info for info in checkpoint.tensors}
    reader = re.compile(rf"(.*\.)?\d+\.{re.escape(units.reader)}\.weight")
    found = []
    for name in filter(reader.fullmatch, infos):
        layers = as_layers(infos[name], WHOLE, roles[name])
        if isinstance(layers, str):
            raise InvalidValueError("model", f"{name}: {layers}")
        block = name.removesuffix(f"{units.reader}.weight")
        writers = []
        for writer, matrices in units.writers.items():
            weight, bias = f"{block}{writer}.weight", f"{block}{writer}.bias"
            if weight not in infos:
                raise InvalidValueError("model", f"has {name}, but no {weight}, as models of the type {family!r} have")
            axes = {0, 1} - set(roles[weight].input_axes)
            if len(infos[weight].shape) != 2 or len(axes) != 1:
                raise InvalidValueError("model", f"{weight}: {_NO_MATRIX}")
            writers.append(Writer(infos[weight], axes.pop(), matrices))
            if bias in infos:
                if len(infos[bias].shape) != 1:
                    raise InvalidValueError("model", f"{bias}: is no vector, as a bias is")
                writers.append(Writer(infos[bias], 0, matrices))
        found.append(Joint(layers[0], tuple(writers)))
    if not found:
        fact = f"has no tensor that ends in {units.reader}.weight, as models of the type {family!r} have"
        raise InvalidValueError("model", fact)
    return tuple(found)


def _check(joints: Sequence[Joint], inputs: int, outputs: Collection[int], said: str) -> None:
    """Raise InvalidValueError unless all blocks have the size that the configuration says."""
    for joint in joints:
        sides = [(joint.reader.name, "inputs", joint.reader.inputs, {inputs})]
        for writer in joint.writers:
            each, rest = divmod(writer.info.shape[writer.axis], writer.matrices)
            sides.append((writer.info.name, "outputs", each if not rest else 0, set(outputs)))
        for name, side, count, wanted in sides:
            if count not in wanted:
                fact = f"{name} has {count} {side}, but {said} in config.json"
                raise InvalidValueError("model", fact, "all blocks must have one size, for the configuration has one")
