"""The command that looks at the headers of models."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Annotated

from mpfast.checkpoints import name_filter, telling_reason
from mpfast.cli.arrangement import Arrangement
from mpfast.cli.columns import TENSORS
from mpfast.cli.conditions import conditions, violations
from mpfast.cli.console import (
    check_files,
    fail,
    message_of,
    print_lines,
    reports_errors,
    terminal_width,
    told_of,
    write_document,
)
from mpfast.cli.options import (
    ExcludeOption,
    FailOnOption,
    IncludeOption,
    JsonOption,
    ModelsArgument,
    QuietOption,
    ReverseOption,
    StrictOption,
    TopOption,
    VerboseOption,
    sort_option,
)
from mpfast.cli.tables import inventory_lines
from mpfast.models import Inventory, inspect

__all__ = ["inspect_command"]


@reports_errors
def inspect_command(
    models: ModelsArgument,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    json_file: JsonOption = None,
    sort: Annotated[str | None, sort_option(TENSORS.sortable)] = None,
    reverse: ReverseOption = False,
    top: TopOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    fail_on: FailOnOption = None,
    strict: StrictOption = False,
) -> None:
    """List the tensors of models, and which would be analysed, from their headers alone.

    The exit status is 1 where nothing of a model would be analysed, and where a tensor that --include and --exclude
    leave meets a condition of --fail-on.
    """
    wanted = conditions(fail_on, TENSORS)
    named, unnamed = name_filter(include or None, "include"), name_filter(exclude or None, "exclude")
    check_files({"--json": json_file}, reads=models)
    inventories: list[Inventory] = []
    findings: list[str] = []
    for model in models:
        try:
            found = inspect(model, include=include or None, exclude=exclude or None)
        except (ValueError, TypeError, OSError) as error:
            if len(models) == 1:
                raise
            findings.append(told_of(model, models, message_of(error)))
            continue
        inventories.append(found)
        left = [row for row in found if (named is None or named(row.name)) and not (unnamed and unnamed(row.name))]
        texts = [*_lack(found), *violations(wanted, ((row.name, asdict(row)) for row in left))]
        findings += [told_of(model, models, text) for text in texts]
    documents = [found.to_document() for found in inventories]
    several = {"schema": "mpfast.inventories/1", "inventories": documents}
    if not write_document(several if len(models) > 1 else documents[0], json_file) and not quiet:
        for found in inventories:
            print_lines(inventory_lines(found, Arrangement(sort, reverse, top), width=terminal_width()))
    if findings:
        fail(findings)


def _lack(found: Inventory) -> list[str]:
    """Say why nothing of a model would be analysed, where that is so."""
    if found.matrices:
        return []
    reasons = {row.name: row.reason or "" for row in found}
    sizes = {row.name: math.prod(row.shape) for row in found}
    return [f"nothing would be analysed{telling_reason(reasons, sizes)}"]
