"""Second moments beside a checkpoint: which layer's inputs each of them is of, and what layers with one input share."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from mpfast.arrays import wide
from mpfast.checkpoints import (
    Checkpoint,
    Layer,
    MomentFile,
    Moments,
    TensorInfo,
    content_hash,
    content_sample_hash,
    overall_hash,
    path_of,
    read_layer,
    weight_of,
)
from mpfast.models.mask_plans import stored_rows
from mpfast.operators import InputRoot
from mpfast.reconstruct import Factor
from mpfast.support import InvalidTypeError, InvalidValueError

__all__ = ["LayerMoments", "modules_of"]

Made = TypeVar("Made")


class LayerMoments:
    """The second moments of the inputs of a checkpoint's layers.

    A moment is found by the name of the weight that multiplies its inputs. Where the model that was watched calls all
    its weights by a prefix that the checkpoint lacks, or the other way round, that is seen.

    Parameters
    ----------
    given
        A file of `SecondMoments.save` or ``mpfast moments``, what they hold in memory, or a mapping from name of module
        or weight to array (in, in).
    model, checkpoint
        What is pruned, as the caller gave it and opened.
    layers
        Those that may be.

    Attributes
    ----------
    reasons : dict of str to str
        Why there is no moment of a layer, by its name.
    hash : str or None
        Of the file.

    Raises
    ------
    InvalidValueError
        The moments are of another model, of blocks only, or of other sizes.
    InvalidTypeError
        `given` is nothing of the kind.
    """

    def __init__(self, given: Any, model: Any, checkpoint: Checkpoint, layers: Sequence[Layer]) -> None:
        self.hash: str | None = None
        if isinstance(given, str | os.PathLike):
            self.hash = content_sample_hash(given)
            given = MomentFile(given)
        if not isinstance(given, Mapping):
            raise InvalidTypeError("moments", f"must be a file or a mapping, not {type(given).__name__}")
        if not given:
            raise InvalidValueError("moments", "are empty")
        self._given: Mapping[str, Any] = given
        self._known = given if isinstance(given, Moments) else None
        if self._known is not None and self._known.block is not None:
            raise InvalidValueError(
                "moments",
                f"are blocks of {self._known.block} on the diagonal",
                "collect whole matrices, without block=",
            )
        weights = given.weights if isinstance(given, MomentFile) else {name: weight_of(name) for name in given}
        self._modules, self.reasons = modules_of(layers, weights, given)
        self._check_sizes(layers)
        if isinstance(given, MomentFile):
            self._check_model(given, model, checkpoint, layers)
        self._waiting = Counter(self._input_of(layer) for layer in layers if layer.name in self._modules)
        self._made_of: dict[Any, Any] = {}
        self._last: tuple[Any, Factor] | None = None

    @property
    def warning(self) -> str:
        """What is to be said against the moments; empty where nothing is."""
        return "" if self._known is None else self._known.warning

    def __contains__(self, layer: Layer) -> bool:
        return layer.name in self._modules

    def _input_of(self, layer: Layer) -> Any:
        """What stands for the input of a layer: the same for layers that share it."""
        module = self._modules[layer.name]
        return id(self._given[module]) if self._known is None else self._known.shared.get(module, module)

    def factors(
        self, layer: Layer, damping: Callable[[float | None], tuple[float, float]]
    ) -> tuple[Factor, Factor | None, Any]:
        """Return the factor of a layer's input, once for every layer that is to be pruned.

        Parameters
        ----------
        layer
            One that has a moment.
        damping
            From rows per input, None where they are not known, to the shares of `Factor`.

        Returns
        -------
        whole : Factor
            Of all inputs that were seen.
        partial : Factor or None
            Of all parts of them but the last; None where there is one part.
        kept_back : Factor or None
            Of the last part.
        """
        return self._once(layer, lambda module: self._made(module, damping))

    def root(self, layer: Layer, threads: int) -> InputRoot:
        """Return a root of the moment of a layer's input, undamped, once for every layer that is looked at."""
        return self._once(layer, lambda module: InputRoot(self._given[module], f"moments[{module!r}]", threads))

    def _once(self, layer: Layer, make: Callable[[str], Made]) -> Made:
        """What is made of a layer's module, kept until the last layer with this input has had it."""
        key = self._input_of(layer)
        if key not in self._made_of:
            self._made_of[key] = make(self._modules[layer.name])
        found: Made = self._made_of[key]
        self._waiting[key] -= 1
        if self._waiting[key] == 0:
            del self._made_of[key]
        return found

    def factor(self, layer: Layer, damping: Callable[[float | None], tuple[float, float]]) -> Factor:
        """Return the factor of all of a layer's inputs, as often as is asked: that of the last input is kept.

        Parameters
        ----------
        layer, damping
            As in `factors`.
        """
        key = self._input_of(layer)
        if self._last is None or self._last[0] != key:
            self._last = key, self._whole(self._modules[layer.name], damping)
        return self._last[1]

    def _whole(self, module: str, damping: Callable[[float | None], tuple[float, float]]) -> Factor:
        rows = () if self._known is None else self._known.fold_rows(module)
        share, diagonal = damping(sum(rows) / self._shape_of(module)[0] if rows else None)
        return Factor(self._given[module], share, diagonal=diagonal)

    def _made(
        self, module: str, damping: Callable[[float | None], tuple[float, float]]
    ) -> tuple[Factor, Factor | None, Any]:
        whole = self._whole(module, damping)
        parts = 1 if self._known is None else len(self._known.fold_rows(module))
        if self._known is None or parts == 1:
            return whole, None, None
        rest = self._known.without(module, parts - 1)
        partial = Factor(rest, whole.damping, diagonal=whole.diagonal)
        return whole, partial, Factor(self._known.fold(module, parts - 1))

    def _check_sizes(self, layers: Sequence[Layer]) -> None:
        for layer in layers:
            module = self._modules.get(layer.name)
            if module is None:
                continue
            shape = self._shape_of(module)
            if not layer.input_axes:
                self.reasons[layer.name] = "which of its axes the inputs are is not known"
                del self._modules[layer.name]
            elif shape != (layer.inputs, layer.inputs):
                raise InvalidValueError(
                    "moments",
                    f"have shape {shape} for {layer.name}, which has {layer.inputs} inputs: of another model?",
                )

    def _shape_of(self, module: str) -> tuple[int, ...]:
        if self._known is not None:
            return self._known.shape_of(module)
        return tuple(np.shape(self._given[module]))

    def _check_model(self, file: MomentFile, model: Any, checkpoint: Checkpoint, layers: Sequence[Layer]) -> None:
        """Compare the hash of the files that were watched or, where there are none, that of the weights."""
        path, before = path_of(model), file.model.optional_text("source_hash")
        if path is not None and before is not None:
            if content_sample_hash(path) != before:
                raise self._other_model(file)
            return
        before = file.model.optional_text("weights_hash")
        names = {module: layer for layer in layers if (module := self._modules.get(layer.name)) is not None}
        if before is None or names.keys() != set(file):
            return  # there is nothing to compare with
        if before not in (_weights_hash(checkpoint, names, as_single) for as_single in (False, True)):
            raise self._other_model(file)

    def _other_model(self, file: MomentFile) -> InvalidValueError:
        source = file.model.optional_text("source")
        return InvalidValueError(
            "moments",
            f"were collected from another model{f', {source}' if source else ''}",
            "collect them anew, or pass a mapping of arrays if you know better",
        )


def modules_of(
    layers: Sequence[Layer], weights: Mapping[str, str], given: Iterable[str], what: str = "moments"
) -> tuple[dict[str, str], dict[str, str]]:
    """Find what was measured of each layer by name: its key, and why others have none.

    Parameters
    ----------
    layers
        Of the checkpoint.
    weights
        Name of the weight by name of the module that was watched.
    given
        The keys: names of modules or of weights.
    what
        What they are of, the name of the argument.
    """
    modules = {weight: module for module, weight in weights.items()}
    modules |= {name: name for name in given if any(layer.name == name for layer in layers)}
    names = {layer.name for layer in layers}
    added, removed = _prefix(names, set(modules))
    found, reasons = {}, {}
    for layer in layers:
        name = f"{added}{layer.name.removeprefix(removed)}" if layer.name.startswith(removed) else ""
        if name in modules:
            found[layer.name] = modules[name]
        else:
            reasons[layer.name] = f"the {what} hold none of its {'inputs' if what == 'moments' else 'outputs'}"
    if not found:
        raise InvalidValueError(
            what, f"are of no layer of this model: they have {next(iter(given))!r}, the model {layers[0].name!r}"
        )
    return found, reasons


def _prefix(names: set[str], weights: set[str]) -> tuple[str, str]:
    """What is to be put before a layer's name, and what to be taken away, so that most of them are found."""
    if names & weights:
        return "", ""
    votes: Counter[tuple[str, str]] = Counter()
    for mine, others, is_added in ((weights, names, True), (names, weights, False)):
        for name in mine:
            parts = name.split(".")
            for at in range(1, len(parts)):
                if ".".join(parts[at:]) in others:
                    prefix = ".".join(parts[:at]) + "."
                    votes[(prefix, "") if is_added else ("", prefix)] += 1
    return votes.most_common(1)[0][0] if votes else ("", "")


def _weights_hash(checkpoint: Checkpoint, layers: Mapping[str, Layer], as_single: bool) -> str:
    """The hash that `SecondMoments.save` notes; in single precision, to which models are often brought to be run."""
    infos, hashes = [], {}
    for module, layer in layers.items():
        rows = stored_rows(read_layer(checkpoint, layer), layer)
        if as_single:
            rows = wide(rows, layer.dtype).astype(np.float32)
        infos.append(TensorInfo(module, layer.tensor_shape, "float32" if as_single else layer.dtype))
        hashes[module] = content_hash(rows)
        checkpoint.release(layer.file_name)
    return overall_hash(tuple(infos), hashes)
