"""What is stored of one quantised weight: its codes, and the scales and the like that belong to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.arrays import widened
from mpfast.checkpoints.base import Checkpoint, TensorInfo
from mpfast.checkpoints.config_json import quantisation_of, quantisation_settings
from mpfast.checkpoints.quantised_modules import companions_of, stem_of
from mpfast.checkpoints.tensor_bits import stored

__all__ = ["Group", "NotDecodedError", "as_float32", "check_shape", "groups_of"]


class NotDecodedError(Exception):
    """Why a quantised weight has no numbers: a part is missing, does not fit, or is of a kind that is not known."""


@dataclass(frozen=True)
class Group:
    """One quantised weight as it is stored, in however many files.

    Attributes
    ----------
    checkpoint : Checkpoint
        What holds the parts; asked through its index, so that codes and scales may be in different files.
    stem : str
        What the names of the parts have in common: ``model.layers.0.mlp.up_proj``.
    codes : str
        The word of the part that stands for the weight.
    parts : mapping of str to TensorInfo
        By the rest of the name: ``"weight"``, ``"weight_scale_inv"``, ``"qzeros"``, ``"weight.absmax"``; ``""`` for
        the tensor that is called as the stem. What belongs to the module under another name has its full one.
    method : str
        By which the configuration says that the weights are quantised; empty where it says nothing.
    settings : mapping
        The configuration's part on quantisation, empty where there is none; or what a node of a graph says.
    metadata : mapping of str to str
        Of the headers of the files.
    source : str
        Where the method is known from.
    """

    checkpoint: Checkpoint
    stem: str
    codes: str
    parts: Mapping[str, TensorInfo]
    method: str
    settings: Mapping[str, Any]
    metadata: Mapping[str, str]
    source: str = "config.json"

    @property
    def name(self) -> str:
        """The name that the weight has where it is not quantised."""
        if self.codes in ("", "blocks"):
            return self.stem
        return f"{self.stem}.weight" if self.stem else "weight"

    @property
    def info(self) -> TensorInfo:
        """The codes."""
        return self.parts[self.codes]

    def has(self, *words: str) -> bool:
        """Whether all of these parts are there."""
        return all(map(self.parts.__contains__, words))

    def only(self, *words: str) -> None:
        """Raise NotDecodedError where there are parts besides these and those that are about inputs alone.

        Whatever else is there may be another factor of the weights.
        """
        more = sorted(self.parts.keys() - {*words, *_OF_INPUTS})
        if more:
            raise NotDecodedError(f"{self.parts[more[0]].name} belongs to it, and what it does is not known")

    def read(self, word: str) -> NDArray[Any]:
        """Return one part as it is stored, types that NumPy lacks as unsigned integers of their size."""
        name = self.parts[word].name
        return stored(self.checkpoint.read(name), name)


# Parts that say nothing of the weights: scales of inputs, outputs and caches, and what tells the format.
_OF_INPUTS = frozenset(
    (
        "input_scale",
        "input_scale_inv",
        "input_scale_ub",
        "input_global_scale",
        "input_amax",
        "activation_scale",
        "output_zero_point",
        "output_scale",
        "input_zero_point",
        "scale_input",
        "k_scale",
        "v_scale",
        "q_scale",
        "prob_output_scale",
        "amax",
        "weight_amax",
        "output_amax",
        "comfy_quant",
        "weight_format",
    )
)


def groups_of(checkpoint: Checkpoint) -> Iterator[Group]:
    """Yield the quantised weights of a checkpoint that have something beside them, in its order.

    A reader that knows them by more than names, from the nodes of a graph, yields its own: ``quantised_groups()``.
    """
    own: Callable[[], Iterator[Group]] | None = getattr(checkpoint, "quantised_groups", None)
    if own is not None:
        yield from own()
        return
    config: Mapping[str, Any] | None = getattr(checkpoint, "config", None)
    method, settings = quantisation_of(config), quantisation_settings(config)
    infos = {info.name: info for info in checkpoint.tensors}
    companions, packed = companions_of(infos.values(), quantised=bool(method))
    if not packed:
        return
    metadata = _metadata(checkpoint)
    members: dict[str, list[str]] = {}
    for name, weight in companions.items():
        members.setdefault(weight, []).append(name)
    for weight in packed:
        if weight in members or method:
            stem = stem_of(weight)
            parts = {_word(name, stem): infos[name] for name in (weight, *members.get(weight, ()))}
            yield Group(checkpoint, stem, _word(weight, stem), parts, method, settings, metadata)


def _word(name: str, stem: str) -> str:
    """What of a name follows the stem."""
    rest = name[len(stem) :]
    if not name.startswith(stem) or (stem and rest and rest[0] not in "._/"):
        return name
    return rest.lstrip("._/")


def _metadata(checkpoint: Checkpoint) -> dict[str, str]:
    found: dict[str, str] = {}
    for file in getattr(checkpoint, "shards", None) or [checkpoint]:
        found |= getattr(file, "metadata", {})
    return found


def check_shape(group: Group, word: str, *shapes: tuple[int, ...]) -> TensorInfo:
    """Return a part; NotDecodedError where it is missing or has none of these shapes."""
    if word not in group.parts:
        raise NotDecodedError(f"has no {word}, and is never cast without one")
    info = group.parts[word]
    if info.shape not in shapes:
        wanted = " or ".join(map(str, shapes))
        raise NotDecodedError(f"{info.name} has the shape {info.shape}, where {wanted} is expected")
    return info


def as_float32(group: Group, word: str, index: Any = ()) -> NDArray[np.float32]:
    """Return a part of floating-point numbers, or rows of it, in float32."""
    bits = group.read(word)[index]
    if group.parts[word].dtype == "bfloat16":
        return np.asarray(widened(bits), np.float32)
    return np.asarray(bits, np.float32)
