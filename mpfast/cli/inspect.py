"""The command that looks at the headers of a model."""

from __future__ import annotations

import math

from mpfast.checkpoints import telling_reason
from mpfast.cli.console import check_files, fail, print_lines, reports_errors, terminal_width, write_document
from mpfast.cli.options import ExcludeOption, IncludeOption, JsonOption, ModelArgument, QuietOption, StrictOption
from mpfast.cli.tables import inventory_lines
from mpfast.models import inspect

__all__ = ["inspect_command"]


@reports_errors
def inspect_command(
    model: ModelArgument,
    json_file: JsonOption = None,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    strict: StrictOption = False,
    quiet: QuietOption = False,
) -> None:
    """List the tensors of a model, and which would be analysed, from its headers alone.

    The exit status is 1 where nothing would be analysed.
    """
    check_files({"--json": json_file}, reads=(model,))
    found = inspect(model, include=include or None, exclude=exclude or None)
    if not write_document(found.to_document(), json_file) and not quiet:
        print_lines(inventory_lines(found, width=terminal_width()))
    if not found.matrices:
        reasons = {row.name: row.reason or "" for row in found}
        sizes = {row.name: math.prod(row.shape) for row in found}
        fail([f"nothing would be analysed{telling_reason(reasons, sizes)}"])
