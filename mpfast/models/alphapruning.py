"""The metric file of AlphaPruning, whose numbers belong to the linear layers of the blocks in module order.

AlphaPruning (github.com/haiquanlu/AlphaPruning, ``lib/prune.py``) finds its layers in the live model: every
``nn.Linear`` of ``model.model.layers`` (OPT: ``model.model.decoder.layers``) as ``named_modules`` lists them. The order
of a file is another: safetensors are sorted by name, query after output, block 10 after block 1.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mpfast.checkpoints import check_target, read_config
from mpfast.models.budget_row import LayerBudget, check_budget, module_of
from mpfast.support import (
    InvalidTypeError,
    InvalidValueError,
    check_path,
    front_door,
    warn_caller,
    write_bytes_atomically,
)

__all__ = ["LINEAR_ORDERS", "alphapruning"]

_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_GATED = (*_QKV, "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
#: The linear layers of a block in the order of its modules, by the ``model_type`` of ``config.json``.
LINEAR_ORDERS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2"), _GATED),
    "phi": (*_QKV, "self_attn.dense", "mlp.fc1", "mlp.fc2"),
    "phi3": ("self_attn.o_proj", "self_attn.qkv_proj", "mlp.gate_up_proj", "mlp.down_proj"),
    "opt": ("self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj", "self_attn.out_proj", "fc1", "fc2"),
}
# Where the blocks of a live model are.
_BLOCKS = ("model.decoder.layers", "model.layers", "decoder.layers", "layers")
_IN_BLOCK = re.compile(r"(?:^|\.)layers\.([0-9]+)\.(.+)$")
_ADVICE = "pass order=, the live model or the names of its linear modules in the order of named_modules()"

#: Number of the block, name in it.
Place = tuple[int, str]


class Budget(Protocol):
    """What is needed of a `mpfast.Budget`."""

    @property
    def source(self) -> str: ...
    @property
    def dense(self) -> tuple[tuple[str, tuple[int, ...]], ...]: ...
    def __iter__(self) -> Iterator[LayerBudget]: ...
    def __len__(self) -> int: ...


@front_door
def alphapruning(budget: Budget, path: str | os.PathLike[str], *, order: Any = None) -> float:
    """Write the metric file of AlphaPruning (one number per layer, in order) and return the ``--epsilon`` to run with.

    AlphaPruning maps its metric linearly to ``[1 - epsilon, 1 + epsilon]`` and scales the result to the target; with
    the sparsities as the metric and ``epsilon = (max - min) / (max + min)`` that gives this budget. Linear layers of
    the blocks that are not in the budget get 0; a warning then says which ``--sparsity_ratio`` to run with.

    Parameters
    ----------
    budget : Budget
        Of the linear layers of a language model's blocks.
    path : path
        The file, ``<ww_metric_cache>/<ww_metric>.npy``. Run with ``--mapping_type layer_wise``.
    order : live model or iterable of str, optional
        The model, or the names of the linear modules in the order of its ``named_modules()``. Default: the order of the
        model type that ``config.json`` beside the checkpoint names, if it is one of `LINEAR_ORDERS`.

    Raises
    ------
    OSError
        `path` cannot be written, or is a file that holds something else than one number per layer.
    ValueError
        The budget has no layers, or layers that AlphaPruning does not prune; the order is not known.
    TypeError
        `order` is neither a model nor names.
    """
    check_budget(budget)
    check_path(path, "path")
    if not len(budget):
        raise InvalidValueError("", "the budget has no layers")
    rows = _by_place(budget)
    places, sizes = _order_of_file(budget, rows) if order is None else _given_order(order)
    outside = [row.name for place, row in rows.items() if place not in places and row.pruned]
    if outside:
        raise InvalidValueError("", f"{outside[0]} is none of the linear layers that order lists")
    values = np.array([rows[place].sparsity if place in rows else 0.0 for place in places])
    _warn_of_dense_layers(budget, rows, places, sizes)
    if values.min() == values.max():
        # AlphaPruning divides by the spread; a billionth of it prunes the same entries.
        values[0] += 1e-9 * max(float(values[0]), 1e-3)
    check_target(path, reads=[budget.source], is_ours=_is_metric_file)
    stream = io.BytesIO()
    np.save(stream, values)
    write_bytes_atomically(path, stream.getvalue())
    return float((values.max() - values.min()) / (values.max() + values.min()))


def _is_metric_file(path: Path) -> bool:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    return isinstance(array, np.ndarray) and array.ndim == 1 and array.dtype == np.float64


def _place(module: str) -> Place | None:
    found = _IN_BLOCK.search(module)
    return None if found is None else (int(found[1]), found[2])


def _by_place(budget: Budget) -> dict[Place, LayerBudget]:
    rows: dict[Place, LayerBudget] = {}
    for row in budget:
        place = _place(row.module)
        if place is None and row.pruned:
            raise InvalidValueError(
                "",
                f"AlphaPruning prunes the linear layers of layers.0, layers.1, ...; {row.name} is none",
                "exclude it",
            )
        if place in rows:
            raise InvalidValueError("", f"{rows[place].name} and {row.name} have the same place in a block")
        if place is not None:
            rows[place] = row
    return rows


def _given_order(order: Any) -> tuple[list[Place], dict[Place, int]]:
    """Places in the order of a live model or of names; and of a model, the number of entries of each."""
    sizes: dict[Place, int] = {}
    if callable(getattr(order, "named_modules", None)):
        modules = dict(order.named_modules())
        blocks = next((path for path in _BLOCKS if path in modules), None)
        if blocks is None:
            raise InvalidValueError("order", f"has no {_BLOCKS[0]} and no {_BLOCKS[1]}, where AlphaPruning looks")
        inside = [
            name for name in modules if name.startswith(f"{blocks}.") and type(modules[name]).__name__ == "Linear"
        ]
        sizes = {_known(name): int(modules[name].weight.numel()) for name in inside}
        return list(sizes), sizes
    if isinstance(order, str) or not isinstance(order, Iterable):
        raise InvalidTypeError("order", f"must be a live model or names of modules, not {type(order).__name__}")
    places = [_known(module_of(str(name))) for name in order]
    if len(set(places)) != len(places):
        raise InvalidValueError("order", "names a layer twice")
    return places, sizes


def _known(module: str) -> Place:
    place = _place(module)
    if place is None:
        raise InvalidValueError("order", f"names {module!r}, which is in no block layers.0, layers.1, ...")
    return place


def _order_of_file(budget: Budget, rows: Mapping[Place, LayerBudget]) -> tuple[list[Place], dict[Place, int]]:
    """Places as the model type of the checkpoint orders them."""
    kind = _model_type(Path(budget.source))
    if kind not in LINEAR_ORDERS:
        known = ", ".join(LINEAR_ORDERS)
        raise InvalidValueError(
            "", f"a file does not say the order of its modules, and its model type, {kind}, is none of {known}", _ADVICE
        )
    dense = {place: shape for name, shape in budget.dense if (place := _place(module_of(name))) is not None}
    blocks = range(1 + max((number for number, _ in (*rows, *dense)), default=-1))
    places = [(block, name) for block in blocks for name in LINEAR_ORDERS[kind]]
    missing = [place for place in places if place not in rows and place not in dense]
    if missing:
        raise InvalidValueError("", f"the budget knows nothing of layers.{missing[0][0]}.{missing[0][1]}", _ADVICE)
    strange = [place for place in (*rows, *dense) if place not in places]
    if strange:
        raise InvalidValueError("", f"layers.{strange[0][0]}.{strange[0][1]} is no layer of a {kind} model", _ADVICE)
    return places, {place: int(np.prod(dense[place])) for place in places if place not in rows}


def _model_type(source: Path) -> str:
    for folder in (source, source.parent):
        found = read_config(folder) or {}
        if found.get("model_type") is not None:
            return str(found["model_type"])
    return "which no config.json beside it tells"


def _warn_of_dense_layers(
    budget: Budget, rows: Mapping[Place, LayerBudget], places: Iterable[Place], sizes: Mapping[Place, int]
) -> None:
    """Where layers that AlphaPruning counts are not in the budget, its target is not the budget's."""
    dense = [place for place in places if place not in rows]
    if not dense:
        return
    if all(place in sizes for place in dense):
        entries = sum(row.size for row in rows.values()) + sum(sizes[place] for place in dense)
        ratio = f"--sparsity_ratio {sum(row.pruned for row in budget) / entries:.6g}"
    else:
        ratio = "--sparsity_ratio as the share of the entries of all of them"
    warn_caller("alphapruning", f"{len(dense)} linear layers of the blocks stay dense: run with {ratio}")
