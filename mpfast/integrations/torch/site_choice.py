"""Which matrices of a model's blocks are compressed, and why others are not."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from mpfast.checkpoints import MIN_SIDE, NameFilter, Role, name_filter, telling_reason
from mpfast.integrations.torch.fit_options import FitOptions
from mpfast.integrations.torch.sites import Site, sites_of
from mpfast.support import InvalidValueError

__all__ = ["chosen_sites"]


def chosen_sites(
    model: torch.nn.Module,
    roles: Mapping[str, Role],
    blocks: Mapping[str, torch.nn.Module],
    include: NameFilter | None,
    exclude: NameFilter | None,
    options: FitOptions,
    counts: Mapping[str, int] | None,
) -> tuple[dict[str, list[Site]], dict[str, str]]:
    """Return the matrices of every block that are to be compressed, and why others are not.

    The weights need not be there: a model on the meta device has the same ones. `counts` are those of
    `FitOptions.counts`.

    Raises
    ------
    InvalidValueError
        None is left.
    """
    wanted, unwanted = name_filter(include, "include"), name_filter(exclude, "exclude")
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    chosen: dict[str, list[Site]] = {}
    skipped: dict[str, str] = {}
    for prefix, block in blocks.items():
        sites, others = sites_of(block, prefix, roles)
        skipped |= others
        chosen[prefix] = []
        for site in sites:
            called = (site.tensor, site.tensor.rpartition(".")[0])
            if (wanted and not any(map(wanted, called))) or (unwanted and any(map(unwanted, called))):
                skipped[site.tensor] = "left out by include or exclude"
            elif len(names[id(site.parameter)]) > 1:
                skipped[site.tensor] = f"is one with {next(n for n in names[id(site.parameter)] if n != site.tensor)}"
            elif (reason := _reason(site, options, counts)) is not None:
                skipped[site.tensor] = reason
            else:
                chosen[prefix].append(site)
    if not any(chosen.values()):
        sizes = {name: parameter.numel() for name, parameter in model.named_parameters(remove_duplicate=False)}
        raise InvalidValueError("", f"no layer is left to compress{telling_reason(skipped, sizes)}")
    return chosen, skipped


def _reason(site: Site, options: FitOptions, counts: Mapping[str, int] | None) -> str | None:
    rows, inputs = site.matrix.shape
    if min(rows, inputs) < MIN_SIDE:
        return f"too small: fewer than {MIN_SIDE} rows or columns"
    if options.rank is not None and options.rank * (rows + inputs) >= rows * inputs:
        return f"factors of rank {options.rank} would be as large as the matrix"
    if options.groups is not None and inputs % options.groups[1]:
        return f"{inputs} inputs cannot be cut into groups of {options.groups[1]}"
    if counts is not None and site.tensor not in counts:
        return "not in the budget"
    return None
