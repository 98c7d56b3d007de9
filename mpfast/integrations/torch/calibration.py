"""Second moments of the inputs of a model's layers, collected while it runs; activations are not kept."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np
import torch

from mpfast.checkpoints import (
    NameFilter,
    SafetensorsFile,
    SafetensorsWriter,
    TensorInfo,
    name_filter,
    open_checkpoint,
    roles_of,
)
from mpfast.integrations.torch.layers import input_rows, prunable_modules, watch_input
from mpfast.support import CheckpointError, InvalidValueError, Record, front_door, parse_json, replaced_file

__all__ = ["SecondMoments"]

FORMAT = "mpfast-second-moments"


class SecondMoments(Mapping[str, torch.Tensor]):
    """The mean of ``x x^T`` over all inputs x that Linear and Conv2d modules have seen.

    A context manager: while it is open, the model is watched. A mapping from module name to float64 tensor, to be
    handed to `mpfast.masks.projection.project`; modules that have seen nothing are not in it.

    Parameters
    ----------
    model : Module
    block : int, optional
        Collect only the blocks of this size on the diagonal, (row length / block, block, block); modules that blocks do
        not fit are in `skipped`. Default the whole matrix, (row length, row length), from which any blocks can be
        taken.
    layout : str
        Order of the blocks of a convolution, as in `mpfast.masks.projection.project`.
    share : float
        Part of the rows that is used; 1, the default, counts every one.
    seed : int
        Of the choice of rows.
    include, exclude : optional
        As in `prunable_modules`.

    Raises
    ------
    ValueError
        An option is out of range, or no module is left.

    Attributes
    ----------
    rows : dict of str to int
        How many inputs each module has seen: samples times tokens or places.
    skipped : dict of str to str
        Modules that are not watched, and why.
    valid : Tensor, optional
        Set it before a forward pass to leave out padding: a boolean tensor of the shape of the inputs of the Linear
        modules without its last dimension, such as an attention mask. Inputs of other shapes count in full.

    Examples
    --------
    >>> layer = torch.nn.Linear(4, 2)
    >>> with SecondMoments(torch.nn.Sequential(layer), block=2) as moments:
    ...     _ = layer(torch.ones(3, 4))
    >>> moments["0"].shape, moments.rows["0"]
    (torch.Size([2, 2, 2]), 3)
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
        include: NameFilter | None = None,
        exclude: NameFilter | None = None,
    ) -> None:
        if block is not None and not block >= 1:
            raise InvalidValueError("block", f"must be positive, not {block!r}")
        if layout not in ("flat", "channel"):
            raise InvalidValueError("layout", f"must be 'flat' or 'channel', not {layout!r}")
        if not 0 < share <= 1:
            raise InvalidValueError("share", f"must lie in (0, 1], not {share!r}")
        self.block = block
        self.layout = layout
        self.share = share
        self.seed = seed
        self.valid: torch.Tensor | None = None
        self.rows: dict[str, int] = {}
        self.skipped: dict[str, str] = {}
        self._sums: dict[str, torch.Tensor] = {}
        self._calls: dict[str, int] = {}
        self._modules: dict[str, torch.nn.Module] = {}
        self._hooks: list[Any] = []
        for name, module in prunable_modules(model, include, exclude).items():
            reason = self._why_not(module)
            if reason is None:
                self._modules[name] = module
            else:
                self.skipped[name] = reason
        for name in _other_layers(model):
            if name not in self._modules and _is_wanted(name, include, exclude):
                self.skipped.setdefault(name, "no Linear or Conv2d of its own: its inputs are not watched")
        if not self._modules:
            raise InvalidValueError("", "there is no module to watch", f"skipped: {self.skipped or 'none'}")

    def _why_not(self, module: torch.nn.Module) -> str | None:
        length = module.weight[0].numel()
        if isinstance(module, torch.nn.Conv2d):
            if module.groups != 1:
                return "a grouped convolution: every group has inputs of its own"
            if self.layout == "channel":
                length = module.in_channels
        if self.block is not None and length % self.block:
            return f"{length} inputs cannot be cut into blocks of {self.block}"
        return None

    def __enter__(self) -> SecondMoments:
        for name, module in self._modules.items():
            self._hooks.append(watch_input(module, partial(self._see, name, module)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def __getitem__(self, name: str) -> torch.Tensor:
        """Mean of ``x x^T``, float64, on the device of the layer."""
        return self._sums[name] / self.rows[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sums)

    def __len__(self) -> int:
        return len(self._sums)

    @torch.no_grad()
    def _see(self, name: str, module: torch.nn.Module, x: torch.Tensor) -> None:
        wide = x.detach()
        if wide.dtype not in (torch.float32, torch.float64):
            wide = wide.float()
        choice = self._choice(name)
        count, total = 0, self._sums.get(name)
        for rows, usable in self._usable(module, wide):
            if choice is not None:
                usable = usable & torch.from_numpy(choice.random(len(rows)) < self.share).to(usable.device)
            used = rows if bool(usable.all()) else rows[usable]
            if len(used):
                product = self._product(module, used)
                total = product.double() if total is None else total.add_(product)
                count += len(used)
        if total is not None:
            self._sums[name] = total
            self.rows[name] = self.rows.get(name, 0) + count

    def _choice(self, name: str) -> np.random.Generator | None:
        """What chooses rows: the same ones whatever other modules there are and however a run was interrupted."""
        call = self._calls[name] = self._calls.get(name, 0) + 1
        return None if self.share == 1 else np.random.default_rng([self.seed, call, *name.encode()])

    def _usable(self, module: torch.nn.Module, x: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Rows, and which of them are not padding."""
        valid = self.valid
        padded = valid is not None and isinstance(module, torch.nn.Linear) and valid.shape == x.shape[:-1]
        at = 0
        for rows in input_rows(module, x):
            if padded and valid is not None:
                yield rows, valid.reshape(-1)[at : at + len(rows)].to(rows.device, torch.bool)
            else:
                yield rows, torch.ones(len(rows), dtype=torch.bool, device=rows.device)
            at += len(rows)

    def _product(self, module: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
        """Sum of ``x x^T`` or of its blocks over a few thousand rows, in the precision of the rows."""
        if self.block is None:
            return rows.T @ rows
        if isinstance(module, torch.nn.Conv2d) and self.layout == "channel":
            rows = rows.reshape(len(rows), module.in_channels, -1).transpose(1, 2)
        groups = rows.reshape(len(rows), -1, self.block).transpose(0, 1)
        return groups.transpose(1, 2) @ groups

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the sums so far to a safetensors file, atomically; `load` goes on from there."""
        arrays = {name: total.cpu().numpy() for name, total in self._sums.items()}
        tensors = [TensorInfo(name, array.shape, "float64") for name, array in arrays.items()]
        options = [self.block, self.layout, self.share, self.seed]
        metadata = {
            "format": FORMAT,
            "options": json.dumps(options),
            "rows": json.dumps(self.rows),
            "calls": json.dumps(self._calls),
        }
        with replaced_file(path) as temporary, SafetensorsWriter.create(temporary, tensors, metadata) as writer:
            for name, array in arrays.items():
                writer.write(name, array)

    @front_door
    def load(self, path: str | os.PathLike[str]) -> None:
        """Replace the sums by those of a file that `save` wrote.

        Raises
        ------
        ValueError
            The file is of another kind, of other options or of another model.
        """
        file = SafetensorsFile(path)
        if file.metadata.get("format") != FORMAT:
            raise InvalidValueError("", f"{os.fspath(path)}: these are no second moments")
        options = [self.block, self.layout, self.share, self.seed]
        said = {key: _parsed(path, file.metadata, key) for key in ("options", "rows", "calls")}
        if said["options"] != options:
            raise InvalidValueError(
                "", f"{os.fspath(path)}: was collected with {file.metadata['options']}, not {options}"
            )
        unknown = [info.name for info in file.tensors if info.name not in self._modules]
        if unknown:
            raise InvalidValueError("", f"{os.fspath(path)}: the model has no module {unknown[0]!r}")
        counts = {key: Record(said[key], f"{os.fspath(path)}: {key}") for key in ("rows", "calls")}
        names = dict.fromkeys([*counts["rows"], *(info.name for info in file.tensors)])
        rows = {name: counts["rows"].integer(name, 1) for name in names}
        calls = {name: counts["calls"].integer(name) for name in counts["calls"]}
        self._sums = {
            info.name: torch.from_numpy(np.array(file.read(info.name))).to(self._device(info.name))
            for info in file.tensors
        }
        self.rows, self._calls = rows, calls

    def _device(self, name: str) -> torch.device:
        return next(self._modules[name].parameters()).device


def _other_layers(model: torch.nn.Module) -> list[str]:
    """Modules that have a weight matrix, of whatever class; embeddings have no inputs to multiply with."""
    roles = roles_of(open_checkpoint(model))
    kinds = ("linear", "conv", "conv_transposed", "experts", "head")
    return [(role.called or name).rpartition(".")[0] for name, role in roles.items() if role.kind in kinds]


def _is_wanted(name: str, include: NameFilter | None, exclude: NameFilter | None) -> bool:
    wanted, unwanted = name_filter(include, "include"), name_filter(exclude, "exclude")
    return (wanted is None or wanted(name)) and not (unwanted is not None and unwanted(name))


def _parsed(path: str | os.PathLike[str], metadata: Mapping[str, str], key: str) -> Any:
    try:
        return parse_json(metadata.get(key, ""))
    except ValueError as error:
        raise CheckpointError(f"{os.fspath(path)}: {key} in its metadata is damaged: {error}") from None
