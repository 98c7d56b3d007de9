"""A budget in the formats that other tools read, each stated once: see `EXPORTERS`. No function needs the tool."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from mpfast.models.budget_row import LayerBudget
from mpfast.support import InvalidValueError, front_door, write_bytes_atomically

__all__ = ["DEFAULT_FORMAT", "EXPORTERS", "Exporter", "alphapruning", "axolotl", "llm_compressor", "peft", "torchao"]


class Budget(Protocol):
    """What an exporter needs to know of a `mpfast.Budget`: its rows, in the order of the checkpoint."""

    @property
    def pattern(self) -> str | None: ...
    def __iter__(self) -> Iterator[LayerBudget]: ...
    def __len__(self) -> int: ...
    def to_json(self) -> str: ...


def torchao(budget: Budget) -> list[dict[str, Any]]:
    """Config of a torchao sparsifier: ``sparsifier.prepare(model, config=...)``; one entry per layer that is pruned."""
    return [{"tensor_fqn": row.name, "sparsity_level": row.sparsity} for row in budget if row.pruned]


@front_door
def peft(budget: Budget, *, largest: int | None = None) -> dict[str, int]:
    """``rank_pattern`` of a PEFT ``LoraConfig``: the number of singular values above the noise, per module.

    Keys are regular expressions that match one module each; layers without a spike are left to the default rank.

    Raises
    ------
    ValueError
        The budget carries no ranks: it was made without spectra.
    """
    ranks = _ranks(budget)
    return {f"^{re.escape(module)}$": min(rank, largest or rank) for module, rank in ranks.items() if rank > 0}


@front_door
def axolotl(budget: Budget, *, share: float = 0.25) -> list[str]:
    """``unfrozen_parameters`` of an Axolotl configuration: the ``share`` of layers with the most signal, per type.

    A layer's signal is the share of its singular values above the noise; layers of one type have the same name but for
    their number.

    Raises
    ------
    ValueError
        The budget carries no ranks: it was made without spectra.
    """
    ranks = _ranks(budget)
    types: dict[str, list[tuple[float, str]]] = {}
    for row in budget:
        kind = re.sub(r"\d+", "*", row.name)
        types.setdefault(kind, []).append((ranks[row.module] / min(row.shape[0], row.size // row.shape[0]), row.name))
    chosen = set()
    for layers in types.values():
        best = sorted(layers, key=lambda layer: -layer[0])[: max(1, round(share * len(layers)))]
        chosen |= {name for _, name in best}
    return [f"^{re.escape(row.name)}$" for row in budget if row.name in chosen]


def llm_compressor(budget: Budget) -> dict[str, Any]:
    """Recipe of llm-compressor: SparseGPT with one target and one sparsity per layer."""
    rows = [row for row in budget if row.pruned]
    return {
        "pruning_stage": {
            "pruning_modifiers": {
                "SparseGPTModifier": {
                    "sparsity": [row.sparsity for row in rows],
                    "mask_structure": budget.pattern or "0:0",
                    "targets": [f"re:^{re.escape(row.module)}$" for row in rows],
                }
            }
        }
    }


@front_door
def alphapruning(budget: Budget, path: str | os.PathLike[str]) -> float:
    """Write the metric file of AlphaPruning (one number per layer, in order) and return the ``--epsilon`` to run with.

    AlphaPruning maps its metric linearly to ``[1 - epsilon, 1 + epsilon]`` and scales the result to the target; with
    the sparsities as the metric and ``epsilon = (max - min) / (max + min)`` that gives this budget.

    Raises
    ------
    OSError
        `path` cannot be written.
    ValueError
        The budget has no layers.
    """
    if not len(budget):
        raise InvalidValueError("", "the budget has no layers")
    values = np.array([row.sparsity for row in budget])
    stream = io.BytesIO()
    np.save(stream, values)
    write_bytes_atomically(path, stream.getvalue())
    total = float(values.max() + values.min())
    return float(values.max() - values.min()) / total if total > 0 else 0.0


def _ranks(budget: Budget) -> dict[str, int]:
    ranks = {row.module: row.rank for row in budget}
    known = {module: rank for module, rank in ranks.items() if rank is not None}
    if len(known) < len(ranks):
        raise InvalidValueError(
            "", "the budget carries no ranks", "make it with Analysis.budget() or a spectral method"
        )
    return known


def _yaml(document: Any) -> str:
    """YAML of dictionaries and lists: block style outside, JSON, which is YAML too, for the rest."""
    return "\n".join(_yaml_lines(document, "")) + "\n"


def _yaml_lines(document: Any, indent: str) -> list[str]:
    if isinstance(document, dict):
        lines = []
        for key, value in document.items():
            nested = isinstance(value, (dict, list))
            lines.append(f"{indent}{key}:" + ("" if nested else f" {json.dumps(value)}"))
            lines += _yaml_lines(value, indent + "  ") if nested else []
        return lines
    return [f"{indent}- {json.dumps(value)}" for value in document]


@dataclass(frozen=True)
class Exporter:
    """A format that a budget is written in.

    Attributes
    ----------
    name : str
        What the user calls it.
    description : str
        What it is, and whose.
    text : function
        From a budget to the text of the file.
    """

    name: str
    description: str
    text: Callable[[Budget], str]


_EXPORTERS = (
    Exporter("json", "our own, which `mpfast prune --budget` reads", lambda budget: budget.to_json()),
    Exporter(
        "torchao",
        "config of a torchao sparsifier (JSON)",
        lambda budget: json.dumps(torchao(budget), indent=1) + "\n",
    ),
    Exporter("llm-compressor", "recipe of llm-compressor (YAML)", lambda budget: _yaml(llm_compressor(budget))),
    Exporter(
        "peft",
        "`rank_pattern` of a PEFT `LoraConfig` (JSON)",
        lambda budget: json.dumps({"rank_pattern": peft(budget)}, indent=1) + "\n",
    ),
    Exporter(
        "axolotl",
        "`unfrozen_parameters` of an Axolotl configuration (YAML)",
        lambda budget: _yaml({"unfrozen_parameters": axolotl(budget)}),
    ),
)

#: Every format by its name; AlphaPruning's file is binary: `alphapruning` writes it.
EXPORTERS: Mapping[str, Exporter] = MappingProxyType({exporter.name: exporter for exporter in _EXPORTERS})
#: What is written where nothing else is asked for.
DEFAULT_FORMAT = "json"
