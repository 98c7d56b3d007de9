"""Second moments of the inputs of a model's layers, collected while it runs; activations are not kept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import numpy as np
import torch

from mpfast.checkpoints import (
    InputSum,
    MomentFile,
    Moments,
    NameFilter,
    WatchedWeight,
    content_hash,
    content_sample_hash,
    open_checkpoint,
    path_of,
    stored,
    write_moments,
)
from mpfast.integrations.torch.layers import check_module
from mpfast.integrations.torch.parts import cut_into_parts
from mpfast.integrations.torch.row_sums import RowSums, mirror_on_host, usable_rows
from mpfast.integrations.torch.shared_inputs import Input, SharedInputs, SharedSum
from mpfast.integrations.torch.watched_layers import WatchedLayers
from mpfast.support import (
    InvalidTypeError,
    InvalidValueError,
    check_path,
    check_seed,
    check_sparsity,
    front_door,
    positive_integer,
    thread_count,
    warn_caller,
)

__all__ = ["SecondMoments"]


class SecondMoments(Moments[torch.Tensor]):
    """The mean of ``x x^T`` over all inputs x that Linear and Conv2d modules, and transformers' Conv1D, have seen.

    A context manager: while it is open, the model is watched; opened again meanwhile, it counts no input twice. A
    mapping from module name to float64 tensor, to be handed to `mpfast.masks.project`, for one; modules that have seen
    nothing are not in it. Modules that are handed the same tensor, as the projections to queries, keys and values are,
    share a sum; that shows while the model runs, and when they are handed different ones their sums part. Experts of a
    stack have a sum each, by the name of the tensor with the expert's number in brackets, and the fused projections of
    MultiheadAttention by ``[query]``, ``[key]`` and ``[value]``.

    Parameters
    ----------
    model : Module
    block : int, optional
        Collect only the blocks of this size on the diagonal, (row length / block, block, block); modules that blocks do
        not fit are in `skipped`. Default the whole matrix, (row length, row length), from which any blocks can be
        taken.
    layout : str
        Order of the blocks of a convolution, as in `mpfast.masks.project`.
    share : float
        Part of the rows that is used; 1, the default, counts every one.
    seed : int
        Of the choice of rows.
    folds : int
        Number of contiguous parts of the data that are summed apart, for `fold` and `without`: what holds for one part
        can be tried on the others, as `mpfast.prune` does for the held-out errors that it reports. Each takes the
        memory of one sum, 8 bytes for each entry of a moment: of all-MiniLM-L6-v2 135 MB a part, of SmolLM2-135M 0.8
        GB, of Llama-2-7B 44 GB. With 1 nothing is kept apart. As nobody says how much data there will be, parts grow
        with it: a new part opens when the last one has as many rows as the largest, and where there would be one too
        many the two neighbours that have the fewest together become one. So there are this many parts once there are as
        many rows, and none but the last has less than a quarter of the largest one's.
    threads : int, optional
        Of the sums on the CPU. Default those of PyTorch. The sums are the same for any number.
    source : str or path-like, optional
        Where the model is from, so that a file of moments names it. Default what a model of transformers says.
    include, exclude : optional
        As in `prunable_modules`.

    Raises
    ------
    ValueError
        An option is out of range, or no module is left.
    TypeError
        `model` is no module, or `valid` no tensor.

    Warns
    -----
    UserWarning
        When it is closed, of layers that have seen fewer than 4 inputs per dimension.

    Attributes
    ----------
    rows : dict of str to int
        How many inputs each module has seen: samples times tokens or places.
    rows_per_input : dict of str to float
        The same for each dimension of the inputs.
    shared : dict of str to str
        Modules that have been handed the same inputs as another one so far, and the first of these.
    warning : str
        What is to be said against these moments; empty where nothing is.
    skipped : dict of str to str
        Modules that are not watched, and why.
    valid : Tensor, optional
        Set it before a forward pass to leave out padding: a boolean tensor of the shape of the inputs of the Linear
        modules without its last dimension, such as an attention mask. Inputs of other shapes count in full.

    Notes
    -----
    On the CPU a sum over 256 rows is formed in single precision (in double for float64), whatever the type of the
    inputs, and these are added in double; on other devices PyTorch forms sums over 4096 rows.

    Examples
    --------
    >>> layer = torch.nn.Linear(4, 2)
    >>> with SecondMoments(torch.nn.Sequential(layer), block=2) as moments:
    ...     _ = layer(torch.ones(20, 4))
    >>> moments["0"].shape, moments.rows["0"]
    (torch.Size([2, 2, 2]), 20)
    """

    @front_door
    def __init__(
        self,
        model: torch.nn.Module,
        *,
        block: int | None = None,
        layout: str = "flat",
        share: float = 1.0,
        seed: int = 0,
        folds: int = 4,
        threads: int | None = None,
        source: str | os.PathLike[str] | None = None,
        include: NameFilter | None = None,
        exclude: NameFilter | None = None,
    ) -> None:
        check_module(model)
        if block is not None:
            positive_integer(block, "block")
        if layout not in ("flat", "channel"):
            raise InvalidValueError("layout", f"must be 'flat' or 'channel', not {layout!r}")
        self.block = block
        self.layout = layout
        self.share = check_sparsity(share, "share")
        if self.share == 0:
            raise InvalidValueError("share", "must lie in (0, 1], not 0")
        self.seed = check_seed(seed)
        self.folds = positive_integer(folds, "folds", optional=False)
        self._valid: torch.Tensor | None = None
        self._sums = RowSums(block, layout, thread_count(torch.get_num_threads() if threads is None else threads))
        named = source if source is not None else getattr(getattr(model, "config", None), "_name_or_path", None)
        self._source = check_path(named, "source") if named else None
        self._inputs = SharedInputs(self._count)
        self._layers = WatchedLayers.of(model, block, layout, include, exclude)
        self.skipped = self._layers.skipped
        self._watching = ExitStack()
        self._opened = 0
        if not self._layers:
            raise InvalidValueError("", "there is no module to watch", f"skipped: {self.skipped or 'none'}")

    @property
    def valid(self) -> torch.Tensor | None:
        """Which places are no padding, see above."""
        return self._valid

    @valid.setter
    def valid(self, mask: torch.Tensor | None) -> None:
        if mask is not None and not isinstance(mask, torch.Tensor):
            raise InvalidTypeError("valid", f"must be a tensor or None, not {type(mask).__name__}")
        self._valid = mask

    def __enter__(self) -> SecondMoments:
        if self._opened == 0:
            self._watching = self._layers.watch(self._see)
        self._opened += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened -= 1
        if self._opened:
            return
        self._watching.close()
        if kind is None:
            self._settle()
            warn_caller("SecondMoments", self.warning)

    @torch.no_grad()
    def _settle(self) -> None:
        self._inputs.settle()

    def _sum_of(self, name: str) -> InputSum[torch.Tensor]:
        self._settle()
        found = self._inputs.sums[name]
        if not found.is_whole:
            raise InvalidValueError(
                "", f"the inputs of {name!r} were being counted when an exception came", "start anew"
            )
        return found

    def _checked(self, name: str, mean: torch.Tensor) -> torch.Tensor:
        mirror_on_host(mean)
        return super()._checked(name, mean)

    def __iter__(self) -> Iterator[str]:
        return (name for name, found in self._inputs.sums.items() if found.rows)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return name in set(self)

    @torch.no_grad()
    def _see(self, name: str, module: torch.nn.Module, x: torch.Tensor) -> None:
        if self._layers.takes(name, module, x):
            self._inputs.see(name, Input(module, x, self._valid))

    def _count(self, given: Input, found: SharedSum) -> None:
        """Add an input to a sum."""
        found.is_whole, found.mean = False, None
        found.calls += 1
        choice = self._choice(found.calls)
        for rows, usable in usable_rows(given):
            if choice is not None:
                usable = usable & torch.from_numpy(choice.random(len(rows)) < self.share).to(usable.device)
            used = rows if bool(usable.all()) else rows[usable]
            for piece in cut_into_parts(found, len(used), self.folds):
                found.parts[-1] = self._sums.added(found.parts[-1], given.module, used[piece])
        found.is_whole = True

    def _choice(self, call: int) -> np.random.Generator | None:
        """What chooses rows: the same ones whatever other modules there are and however a run was interrupted."""
        return None if self.share == 1 else np.random.default_rng([self.seed, call])

    def _options(self) -> dict[str, Any]:
        names = ("block", "layout", "share", "seed", "folds")
        return {name: getattr(self, name) for name in names}

    @front_door
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the sums so far to a safetensors file, atomically.

        `load` goes on from there, and `mpfast.checkpoints.MomentFile` reads it, without PyTorch. With them go the
        hashes of the weights that were watched and, where the model's files are known, theirs.

        Raises
        ------
        ValueError
            An exception has come in between while inputs were counted.
        FileExistsError
            There is a file that holds something else than moments.
        """
        check_path(path, "path")
        sums = {id(found): found for name in self for found in [self._sum_of(name)]}.values()
        for part in (part for found in sums for part in found.parts):
            mirror_on_host(part)
        arrays = [
            InputSum(found.modules, found.rows, [part.cpu().numpy() for part in found.parts], found.calls)
            for found in sums
        ]
        path_there = path_of(self._source) if self._source else None
        model = {
            "source": self._source,
            "source_hash": None if path_there is None else content_sample_hash(path_there),
            "watched": {name: found.to_list() for name, found in self.watched_weights().items()},
        }
        write_moments(path, arrays, self._options(), model)

    def watched_weights(self) -> dict[str, WatchedWeight]:
        """Type and hash of the weights of the modules that have seen inputs; those on the meta device have none."""
        return {name: found for name in self if (found := _watched(self._layers.weight(name))) is not None}

    @front_door
    def load(self, path: str | os.PathLike[str]) -> None:
        """Replace the sums by those of a file that `save` wrote.

        Raises
        ------
        ValueError
            The file is of another kind, of other options or of another model.
        """
        file = MomentFile(path)
        where = os.fspath(path)
        collected = {name: file.options.get(name) for name in self._options()}
        if collected != self._options():
            raise InvalidValueError("", f"{where}: was collected with {collected}, not {self._options()}")
        unknown = [name for name in file if name not in self._layers]
        if unknown:
            raise InvalidValueError("", f"{where}: the model has no module {unknown[0]!r}")
        for name, known in file.watched_weights().items():
            own = _watched(self._layers.weight(name))
            if own is not None and own != known:
                raise InvalidValueError("", f"{where}: was collected from a model of other weights, {name!r} for one")
        for name in file:
            self._check_size(where, name, file.shape_of(name))
        self._inputs = SharedInputs(self._count)
        for found in file.sums:
            parts = [torch.from_numpy(np.array(part)).to(self._device(found.modules[0])) for part in found.parts]
            own_sum = SharedSum(found.modules, found.rows, parts, found.calls)
            self._inputs.sums.update(dict.fromkeys(found.modules, own_sum))

    def _check_size(self, where: str, name: str, shape: tuple[int, ...]) -> None:
        length = self._layers.inputs(name)
        expected = (length, length) if self.block is None else (length // self.block, self.block, self.block)
        if shape != expected:
            raise InvalidValueError("", f"{where}: has moments of shape {shape} for {name!r}, which needs {expected}")

    def _device(self, name: str) -> torch.device:
        device = self._layers.weight(name).device
        return torch.device("cpu") if device.type == "meta" else device


def _watched(weight: torch.Tensor) -> WatchedWeight | None:
    if weight.device.type == "meta":
        return None
    checkpoint = open_checkpoint({"weight": weight.cpu()})
    return WatchedWeight(checkpoint.tensors[0].dtype, content_hash(stored(checkpoint.read("weight"), "weight")))
