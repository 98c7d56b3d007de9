"""Second moments beside a checkpoint: which layer's inputs each of them is of, and what layers with one input share."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mpfast.arrays import FLOATS, as_wide, in_storage, wide
from mpfast.checkpoints import (
    FEW_ROWS_PER_INPUT,
    Checkpoint,
    Layer,
    MomentFile,
    Moments,
    content_hash,
    content_sample_hash,
    path_of,
    read_layer,
    weight_of,
)
from mpfast.models.mask_plans import stored_rows
from mpfast.models.moment_parts import Part, experts_of_stacks, parts_of
from mpfast.operators import InputRoot
from mpfast.reconstruct import Factor
from mpfast.support import InvalidTypeError, InvalidValueError, argument_called, check_path

__all__ = ["LayerMoments"]

Made = TypeVar("Made")
Array = NDArray[np.float64]


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
            self.hash = content_sample_hash(check_path(given, "moments"))
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
        self._parts, self.reasons = parts_of(layers, weights, given, self._input_of)
        self._stacks = experts_of_stacks(weights)
        self._check_sizes(layers)
        if self._known is not None:
            self._check_model(self._known, model, checkpoint, layers)
        self._waiting = Counter(self._key(layer, part) for layer in layers for part in self._parts.get(layer.name, ()))
        self._made_of: dict[Any, Any] = {}
        self._pools: tuple[str, tuple[Array, Array | None]] | None = None
        self._last: tuple[Any, Factor] | None = None

    @property
    def warning(self) -> str:
        """What is to be said against the moments; empty where nothing is."""
        return "" if self._known is None else self._known.warning

    def __contains__(self, layer: Layer) -> bool:
        return layer.name in self._parts

    def parts(self, layer: Layer) -> tuple[Part, ...]:
        """Return the parts of a layer that has moments: itself, its experts, or projections of different inputs."""
        return self._parts[layer.name]

    def _input_of(self, module: str) -> Any:
        """What stands for the inputs of a module: the same for modules that share them."""
        if self._known is not None:
            return self._known.shared.get(module, module)
        # A mapping that reads an array whenever it is asked, as that of a file does, keeps none to tell it by.
        array = self._given[module]
        return id(array) if array is self._given[module] else module

    def _key(self, layer: Layer, part: Part) -> Any:
        return (layer.name, part) if part.module is None else self._input_of(part.module)

    def factors(
        self, layer: Layer, part: Part, damping: Callable[[float | None], tuple[float, float]]
    ) -> tuple[Factor, Factor | None, Any]:
        """Return the factor of the inputs of a part, once for every part that is to be pruned.

        Experts of a stack that have seen fewer than 4 inputs per dimension borrow from the mean over the stack.

        Parameters
        ----------
        layer, part
            Of `parts`.
        damping
            From rows per input, None where they are not known, to the shares of `Factor`.

        Returns
        -------
        whole : Factor
            Of all inputs that were seen.
        partial : Factor or None
            Of all parts of the data but the last; None where there is one.
        kept_back : Factor or None
            Of the last part.
        """
        return self._once(layer, part, lambda: self._made(layer, part, damping))

    def factor(self, layer: Layer, damping: Callable[[float | None], tuple[float, float]]) -> Factor:
        """Return the factor of all inputs of a layer of one part, as often as is asked: that of the last input is kept.

        Parameters
        ----------
        layer, damping
            As in `factors`.
        """
        (part,) = self._parts[layer.name]
        key = self._key(layer, part)
        if self._last is None or self._last[0] != key:
            self._last = key, self._made(layer, part, damping)[0]
        return self._last[1]

    def reason_against_one(self, layer: Layer) -> str:
        """Why there is no one moment for all of a layer; empty where there is."""
        if layer not in self:
            return self.reasons[layer.name]
        return "" if len(self._parts[layer.name]) == 1 else "its parts have inputs of their own"

    def root(self, layer: Layer, threads: int) -> InputRoot:
        """Return a root of the moment of a layer of one part, undamped, once for every layer that is looked at."""
        (part,) = self._parts[layer.name]
        module = part.module
        assert module is not None, "what has seen nothing is a part of a stack"
        return self._once(layer, part, lambda: InputRoot(self._given[module], f"moments[{module!r}]", threads))

    def _once(self, layer: Layer, part: Part, make: Callable[[], Made]) -> Made:
        """What is made of the moment of a part, kept until the last one with this input has had it."""
        key = self._key(layer, part)
        if key not in self._made_of:
            self._made_of[key] = make()
        found: Made = self._made_of[key]
        self._waiting[key] -= 1
        if self._waiting[key] == 0:
            del self._made_of[key]
        return found

    def _made(
        self, layer: Layer, part: Part, damping: Callable[[float | None], tuple[float, float]]
    ) -> tuple[Factor, Factor | None, Any]:
        module = part.module
        rows = self._known.fold_rows(module) if self._known is not None and module is not None else ()
        count = None if self._known is None else sum(rows)
        share, diagonal = damping(None if count is None else count / layer.inputs)
        pools = self._pooled(part.stack) if part.stack else (None, None)
        name = f"the mean of the moments of {part.stack}" if module is None else f"moments[{module!r}]"
        with argument_called(name, within="C"):
            mean = None if module is None else self._given[module]
            whole = Factor(_borrowing(mean, count, pools[0], layer.inputs), share, diagonal=diagonal)
            if self._known is None or module is None or len(rows) == 1:
                return whole, None, None
            last = len(rows) - 1
            others = _borrowing(self._known.without(module, last), sum(rows[:-1]), pools[1], layer.inputs)
            return whole, Factor(others, share, diagonal=diagonal), Factor(self._known.fold(module, last))

    def _pooled(self, stack: str) -> tuple[Array, Array | None]:
        """The mean over a stack, and the same without the last parts of the data; of the latest stack alone."""
        if self._pools is not None and self._pools[0] == stack:
            return self._pools[1]
        modules = self._stacks[stack]
        known = self._known
        if known is None:
            made: tuple[Array, Array | None] = (_mean((1, self._given[module]) for module in modules), None)
        else:
            rows = {module: known.fold_rows(module) for module in modules}
            several = [module for module in modules if len(rows[module]) > 1]
            whole = _mean((sum(rows[module]), known[module]) for module in modules)
            others = ((sum(rows[m][:-1]), known.without(m, len(rows[m]) - 1)) for m in several)
            made = (whole, _mean(others) if several else None)
        self._pools = (stack, made)
        return made

    def _check_sizes(self, layers: Sequence[Layer]) -> None:
        for layer in layers:
            parts = self._parts.get(layer.name, ())
            if parts and not layer.input_axes:
                self.reasons[layer.name] = "which of its axes the inputs are is not known"
                del self._parts[layer.name]
                continue
            for module in (part.module for part in parts if part.module is not None):
                shape = self._shape_of(module)
                if shape != (layer.inputs, layer.inputs):
                    raise InvalidValueError(
                        "moments",
                        f"have shape {shape} for {layer.name}, which has {layer.inputs} inputs: of another model?",
                    )

    def _shape_of(self, module: str) -> tuple[int, ...]:
        if self._known is not None:
            return self._known.shape_of(module)
        return tuple(np.shape(self._given[module]))

    def _check_model(self, known: Moments[Any], model: Any, checkpoint: Checkpoint, layers: Sequence[Layer]) -> None:
        """Compare every weight with the one that was watched or, where nothing is known of these, the model's files."""
        source = known.model.optional_text("source") if isinstance(known, MomentFile) else None
        another = f"were collected from another model{f', {source}' if source else ''}"
        advice = "collect them anew, or pass a mapping of arrays if you know better"
        watched = known.watched_weights()
        compared: set[str] = set()
        for layer in layers:
            pieces = [piece for part in self._parts.get(layer.name, ()) for piece in part.pieces or (part,)]
            known_pieces = [(piece, watched[piece.module]) for piece in pieces if piece.module in watched]
            to_compare = [
                (piece, before)
                for piece, before in known_pieces
                if before.dtype in FLOATS and not (piece.rows and piece.module in compared)
            ]
            if not to_compare:
                continue
            tensor = stored_rows(read_layer(checkpoint, layer), layer).reshape(layer.tensor_shape)
            for piece, before in to_compare:
                entries = _joined(checkpoint, piece.rows) if len(piece.rows) > 1 else tensor[piece.index]
                if _content(entries, layer.dtype, before.dtype) != before.hash:
                    raise InvalidValueError(
                        "moments", f"{another}: {layer.name}{piece.label} is not what it was", advice
                    )
                compared.add(str(piece.module))
            checkpoint.release(layer.file_name)
        if compared or not isinstance(known, MomentFile):
            return
        path, before_hash = path_of(model), known.model.optional_text("source_hash")
        if path is not None and before_hash is not None and content_sample_hash(path) != before_hash:
            raise InvalidValueError("moments", another, advice)


def _mean(moments: Iterable[tuple[int, Any]]) -> Array:
    """The mean of moments of so many rows each."""
    total: Any = 0.0
    count = 0
    for rows, moment in moments:
        total = total + rows * as_wide(moment, name="moments")
        count += rows
    mean: Array = total / count
    return mean


def _borrowing(mean: Any, rows: int | None, pool: Array | None, inputs: int) -> Any:
    """A moment of so many rows, as many of the pool making up for those that it lacks; the pool where there is none."""
    if mean is None or pool is None:
        return pool if mean is None else mean
    lacking = 0 if rows is None else max(0, FEW_ROWS_PER_INPUT * inputs - rows)
    if rows is None or lacking == 0:
        return mean
    return (rows * as_wide(mean, name="moments") + lacking * pool) / (rows + lacking)


def _joined(checkpoint: Checkpoint, names: Sequence[str]) -> NDArray[Any]:
    """Matrices one below the other, as far as they are there: bits of types that NumPy lacks."""
    there = {info.name for info in checkpoint.tensors}
    return np.concatenate([checkpoint.read(name) for name in names if name in there])


def _content(entries: NDArray[Any], dtype: str, wanted: str) -> str:
    """Hash of weights, bits of a type by its name, in the type to which they were brought to be run."""
    return content_hash(entries if dtype == wanted else in_storage(wide(entries, dtype), wanted))
