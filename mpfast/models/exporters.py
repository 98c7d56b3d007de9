"""A budget in the formats that other tools read, each stated once: see `EXPORTERS`. No function needs the tool."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

from mpfast.models.alphapruning import alphapruning
from mpfast.models.budget_row import LayerBudget, check_budget, is_stack, module_of
from mpfast.models.module_names import module_patterns
from mpfast.support import InvalidValueError, check_sparsity, front_door, parsed_pattern, positive_integer

__all__ = [
    "DEFAULT_FORMAT",
    "EXPORTERS",
    "Exporter",
    "alphapruning",
    "axolotl",
    "core_ml",
    "llm_compressor",
    "peft",
    "torch_ao_pruning",
]


class Budget(Protocol):
    """What an exporter needs to know of a `mpfast.Budget`: its rows, in the order of the checkpoint."""

    @property
    def pattern(self) -> str | None: ...
    @property
    def dense(self) -> tuple[tuple[str, tuple[int, ...]], ...]: ...
    def __iter__(self) -> Iterator[LayerBudget]: ...
    def __len__(self) -> int: ...
    def to_json(self) -> str: ...


@front_door
def torch_ao_pruning(budget: Budget) -> list[dict[str, Any]]:
    """Config of a sparsifier of ``torch.ao.pruning``: ``sparsifier.prepare(model, config)``; one entry per layer.

    The entries say what `WeightNormSparsifier` must know to cut weight by weight, or in the budget's pattern, whatever
    its own defaults are. Names are those of the checkpoint: `prepare` refuses a model that has none of that name.
    The package torchao has dropped its copy of them; what is written is for the sparsifiers of PyTorch itself.
    """
    check_budget(budget)
    groups = None if budget.pattern is None else parsed_pattern(budget.pattern)
    if groups is None:
        shape, zeros = [1, 1], 1
    else:
        shape, zeros = [1, groups[1]], groups[1] - groups[0]
    return [
        {
            "tensor_fqn": row.name,
            # With a pattern, every block is cut.
            "sparsity_level": row.sparsity if groups is None else 1.0,
            "sparse_block_shape": shape,
            "zeros_per_block": zeros,
        }
        for row in budget
        if row.pruned
    ]


@front_door
def peft(budget: Budget, *, largest: int | None = None) -> dict[str, int]:
    """``rank_pattern`` of a PEFT ``LoraConfig``: the number of singular values above the noise, per module.

    Keys are regular expressions that match one module each, in the model of the checkpoint as in one with a head on it;
    layers without a spike are left to the default rank. The rank of a stack of experts is the mean of its matrices,
    rounded up: PEFT gives every expert the same (``target_parameters``).

    Parameters
    ----------
    budget : Budget
        With ranks.
    largest : int, optional
        No rank is larger.

    Raises
    ------
    ValueError
        The budget carries no ranks: it was made without spectra; or `largest` is no positive integer.
    """
    check_budget(budget)
    if largest is not None:
        largest = positive_integer(largest, "largest")
    ranks = _ranks(budget)
    stacks = {row.module: row.shape[0] for row in budget if is_stack(row)}
    found = {module: math.ceil(rank / stacks.get(module, 1)) for module, rank in ranks.items()}
    patterns = module_patterns(ranks, _dense_modules(budget))
    return {key: min(found[name], largest or found[name]) for name, key in patterns.items() if found[name] > 0}


@front_door
def axolotl(budget: Budget, *, share: float = 0.25) -> list[str]:
    """``unfrozen_parameters`` of an Axolotl configuration: the ``share`` of layers with the most signal, per type.

    A layer's signal is the share of its singular values above the noise; layers of one type have the same name but for
    their number. Dots stand for themselves: Axolotl escapes them.

    Raises
    ------
    ValueError
        The budget carries no ranks: it was made without spectra; or `share` is no number in [0, 1].
    """
    check_budget(budget)
    share = check_sparsity(share, "share")
    ranks = _ranks(budget)
    types: dict[str, list[tuple[float, str]]] = {}
    for row in budget:
        kind = re.sub(r"\d+", "*", row.name)
        types.setdefault(kind, []).append((ranks[row.module] / min(row.shape[0], row.size // row.shape[0]), row.name))
    chosen = set()
    for layers in types.values():
        best = sorted(layers, key=lambda layer: -layer[0])[: max(1, round(share * len(layers)))]
        chosen |= {name for _, name in best}
    patterns = module_patterns([row.name for row in budget], [name for name, _ in budget.dense])
    # "\\S*." is whatever stands in front: Axolotl would escape the first dot of ".*", too.
    escaped = {row.name: patterns[row.name].replace("\\.", ".") for row in budget if row.name in chosen}
    return [f"^(?:\\S*.)?{pattern}$" for pattern in escaped.values()]


@front_door
def llm_compressor(budget: Budget) -> dict[str, Any]:
    """Recipe of llm-compressor: one SparseGPT modifier per distinct sparsity, which is one number there.

    Sparsities have three digits; what rounding takes from one layer another gets, so that the total is kept to half a
    thousandth of the smallest layer or so. A target matches one module, with or without a head on the model. A stack of
    experts stands for the linear layers per expert that llm-compressor makes of it.

    Raises
    ------
    ValueError
        The budget prunes nothing.
    """
    check_budget(budget)
    rows = [row for row in budget if row.pruned]
    if not rows:
        raise InvalidValueError("", "the budget prunes nothing")
    groups = None if budget.pattern is None else parsed_pattern(budget.pattern)
    # Of m consecutive weights, llm-compressor's first number is how many go, ours is how many stay.
    structure = "0:0" if groups is None else f"{groups[1] - groups[0]}:{groups[1]}"
    patterns = module_patterns([row.module for row in budget], _dense_modules(budget))
    thousandths = {row.module: round(1000 * row.sparsity) for row in rows} if groups else _thousandths(rows)
    targets: dict[int, list[str]] = {}
    for row in rows:
        if thousandths[row.module]:
            pattern = patterns[row.module]
            target = f"re:(.*\\.)?{_per_expert(pattern) if is_stack(row) else pattern}$"
            targets.setdefault(thousandths[row.module], []).append(target)
    return {
        "pruning_stage": {
            f"s{share:04d}_modifiers": {
                "SparseGPTModifier": {"sparsity": share / 1000, "mask_structure": structure, "targets": names}
            }
            for share, names in sorted(targets.items())
        }
    }


@front_door
def core_ml(budget: Budget) -> dict[str, Any]:
    """Config of ``coremltools.optimize.torch.pruning.MagnitudePruner``; one entry per layer.

    It prunes a PyTorch model by magnitude, to the entry or in the budget's pattern, before or while it is trained. A
    key matches one module, with or without a head on the model; layers that are not named stay dense.

    Raises
    ------
    ValueError
        The budget prunes nothing, or has a stack of experts: coremltools prunes linear layers and convolutions.
    """
    check_budget(budget)
    rows = [row for row in budget if row.pruned]
    if not rows:
        raise InvalidValueError("", "the budget prunes nothing")
    if (stack := next((row.name for row in rows if is_stack(row)), None)) is not None:
        raise InvalidValueError("budget", f"has {stack}, a stack of experts, which coremltools does not prune")
    groups = None if budget.pattern is None else parsed_pattern(budget.pattern)
    patterns = module_patterns([row.module for row in budget], _dense_modules(budget))
    configs = {}
    for row in rows:
        if groups is None:
            # Half an entry more, as coremltools rounds the number down.
            config: dict[str, Any] = {"target_sparsity": min(1.0, (row.pruned + 0.5) / row.size)}
        else:
            # Of m consecutive weights, the first number is how many go, ours is how many stay.
            config = {"n_m_ratio": [groups[1] - groups[0], groups[1]]}
        configs[f"(.*\\.)?{patterns[row.module]}"] = config
    return {"module_name_configs": configs}


def _thousandths(rows: Sequence[LayerBudget]) -> dict[str, int]:
    """Sparsity of each layer in thousandths, so that the entries pruned in all are as many as before, or nearly."""
    exact = [1000 * row.pruned / row.size for row in rows]
    whole = [math.floor(share) for share in exact]
    missing = sum(row.pruned - share * row.size / 1000 for row, share in zip(rows, whole, strict=True))
    # By the largest remainder, wherever one step brings the total closer.
    for at in sorted(range(len(rows)), key=lambda at: whole[at] - exact[at]):
        step = rows[at].size / 1000
        if whole[at] < 1000 and step <= 2 * missing:
            whole[at] += 1
            missing -= step
    return {row.module: share for row, share in zip(rows, whole, strict=True)}


def _per_expert(pattern: str) -> str:
    """Pattern of the linear layers that a stack of experts becomes, by the pattern of the stack."""
    experts, _, name = pattern.rpartition("\\.")
    parts = "(gate_proj|up_proj)" if name == "gate_up_proj" else name
    return f"{experts}\\.\\d+\\.{parts}"


def _dense_modules(budget: Budget) -> list[str]:
    return [module_of(name) for name, _ in budget.dense]


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
            lines.append(f"{indent}{_yaml_key(key)}:" + ("" if nested else f" {json.dumps(value)}"))
            lines += _yaml_lines(value, indent + "  ") if nested else []
        return lines
    return [f"{indent}- {json.dumps(value)}" for value in document]


def _yaml_key(key: str) -> str:
    """A key, in quotes where it is no plain word."""
    return key if key.isidentifier() else json.dumps(key)


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
        "torch-ao-pruning",
        "config of a sparsifier of `torch.ao.pruning` (JSON)",
        lambda budget: json.dumps(torch_ao_pruning(budget), indent=1) + "\n",
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
    Exporter("core-ml", "config of the pruner of coremltools (YAML)", lambda budget: _yaml(core_ml(budget))),
)

#: Every format by its name; AlphaPruning's file is binary: `alphapruning` writes it.
EXPORTERS: Mapping[str, Exporter] = MappingProxyType({exporter.name: exporter for exporter in _EXPORTERS})
#: What is written where nothing else is asked for.
DEFAULT_FORMAT = "json"
