"""The command that compares two models, or two analyses."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mpfast.cli.arrangement import Arrangement
from mpfast.cli.columns import DIFFERENCE
from mpfast.cli.conditions import conditions, violations
from mpfast.cli.console import (
    check_files,
    fail,
    print_lines,
    reports_errors,
    terminal_width,
    write_document,
    write_text,
)
from mpfast.cli.options import (
    FailOnOption,
    HtmlOption,
    JsonOption,
    QuietOption,
    ReverseOption,
    StrictOption,
    TopOption,
    VerboseOption,
    require_one_standard_output,
    sort_option,
)
from mpfast.cli.tables import diff_lines
from mpfast.models import diff

__all__ = ["diff_command"]


@reports_errors
def diff_command(
    a: Annotated[Path, typer.Argument(metavar="A", help="A model, or an analysis in JSON.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Another, of the same kind.")],
    json_file: JsonOption = None,
    html_file: HtmlOption = None,
    sort: Annotated[str | None, sort_option(DIFFERENCE.sortable)] = None,
    reverse: ReverseOption = False,
    top: TopOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    fail_on: FailOnOption = None,
    strict: StrictOption = False,
) -> None:
    """Compare two models layer by layer, by ||B - A|| / ||A||, or two analyses figure by figure.

    Names are matched without what only one side puts in front of all of them, such as module. or a head's name.
    The exit status is 0 whether there are differences or not: --fail-on 'change > 0' makes them a failure. A change
    that NaN or infinite entries leave undefined is one.
    """
    wanted = conditions(fail_on, DIFFERENCE)
    files = {"--json": json_file, "--html": html_file}
    require_one_standard_output(files)
    check_files(files, reads=(a, b))
    found = diff(a, b)
    printed = write_document(found.to_document(), json_file)
    if html_file is not None:
        printed = write_text(found.to_html(), html_file) or printed
    if not printed and not quiet:
        arrangement = Arrangement(sort, reverse, top)
        print_lines(diff_lines(found, arrangement, width=terminal_width(), verbose=verbose))
    findings = [f"{row.name}: has NaN or infinite entries" for row in found if math.isnan(row.change)]
    findings += violations(wanted, ((row.name, asdict(row)) for row in found))
    if findings:
        fail(findings)
