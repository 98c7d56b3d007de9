"""Plain-text tables of results: lines of styled pieces, to print with or without colour."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from mpfast.cli.arrangement import Arrangement
from mpfast.models import SkippedTensor, diff_figures, kind_of_reason
from mpfast.support import counted, percent, printable

if TYPE_CHECKING:
    from rich.table import Table

    from mpfast.bench import Row
    from mpfast.models import (
        CompressResult,
        DiffRow,
        FactoredLayer,
        Inventory,
        InventoryRow,
        LayerBudget,
        ModelDiff,
        PruneResult,
        ResizedUpdate,
        ResizeResult,
    )

__all__ = [
    "ERROR_COLUMNS",
    "Line",
    "arranged_lines",
    "benchmark_table",
    "compress_lines",
    "diff_lines",
    "inventory_lines",
    "listed_names",
    "plain",
    "printable",
    "prune_lines",
    "sentences",
    "skipped_lines",
    "some_names",
    "table_lines",
    "text_cells",
]

#: A line of output: (text, style) pieces; the styles are rich's, "" is plain.
Line = list[tuple[str, str]]

Shown = TypeVar("Shown")

_GAP = "  "


def plain(text: str = "") -> Line:
    """Return a line without style."""
    return [(text, "")]


def table_lines(headers: Sequence[str], body: Sequence[Line], width: int | None) -> list[Line]:
    """Lay out rows whose first cell is a name."""
    table = [[(header, "dim") for header in headers], *body]
    widths = [max(len(line[column][0]) for line in table) for column in range(len(headers))]
    if width is None or sum(widths) + len(_GAP) * (len(widths) - 1) <= width:
        return [_aligned(line, widths, name_first=True) for line in table]
    lines = [_aligned(table[0][1:], widths[1:], name_first=False)]
    for cells in body:
        lines += [[cells[0]], _aligned(cells[1:], widths[1:], name_first=False)]
    return lines


def arranged_lines(
    headers: Sequence[str],
    rows: Sequence[Shown],
    cells: Callable[[Shown], Line],
    arrangement: Arrangement,
    width: int | None,
    value: Callable[[Shown, str], Any] = getattr,
) -> list[Line]:
    """Lay out the rows that are wanted, as many as are wanted; `value` says what a row has in a column."""
    left_out = arrangement.left_out(rows)
    body = [cells(row) for row in arrangement.shown(rows, value)]
    return [*table_lines(headers, body, width), *([plain(left_out)] if left_out else [])]


def _aligned(cells: Line, widths: Sequence[int], *, name_first: bool) -> Line:
    """Pad the cells, the name to the right, numbers to the left, with a gap before all but the first."""
    pieces: Line = []
    for column, ((text, style), width) in enumerate(zip(cells, widths, strict=True)):
        is_name = name_first and column == 0
        padded = text.ljust(width) if is_name else text.rjust(width)
        pieces.append((padded if is_name else _GAP + padded, style))
    return pieces


def skipped_lines(skipped: Sequence[SkippedTensor], verbose: bool, title: str = "skipped:") -> list[Line]:
    """List tensors by the reason why they were skipped."""
    if not skipped:
        return []
    by_reason: dict[str, list[str]] = defaultdict(list)
    for tensor in skipped:
        shape = "x".join(map(str, tensor.shape)) or "scalar"
        text = f"{tensor.name} ({shape} {tensor.dtype})" if verbose else tensor.name
        by_reason[printable(kind_of_reason(tensor))].append(printable(text))
    lines = [plain(title)]
    for reason, names in sorted(by_reason.items(), key=lambda group: -len(group[1])):
        lines.append(plain(f"  {some_names(names, verbose)}: {reason}"))
        lines += listed_names(names, verbose)
    return [*lines, plain()]


def sentences(title: str, texts: Sequence[str]) -> list[Line]:
    """List sentences below a title; nothing where there are none."""
    if not texts:
        return []
    return [plain(title), *(plain(f"  {printable(text)}") for text in texts), plain()]


def some_names(names: Sequence[str], verbose: bool) -> str:
    """Write how many tensors there are, with the first as an example unless they are listed below; of one its name."""
    if len(names) == 1:
        return names[0]
    return f"{len(names)} tensors" if verbose else f"{len(names)} tensors ({names[0]}, ...)"


def listed_names(names: Sequence[str], verbose: bool) -> list[Line]:
    """List names, one a line, if verbose and where there are several."""
    return [plain(f"    {name}") for name in names] if verbose and len(names) > 1 else []


def text_cells(name: str, shape: Sequence[int], *figures: str) -> Line:
    """Return the cells of a row: a name, a shape and what else there is, in plain text."""
    return [(printable(name), "cyan"), ("x".join(map(str, shape)), ""), *((text, "") for text in figures)]


#: What is said of the output of a refitted layer: its mean squared change, as a share.
ERROR_COLUMNS = {"masked_error": "masked", "error": "fitted", "heldout_error": "held out"}


def prune_lines(
    result: PruneResult,
    arrangement: Arrangement,
    *,
    width: int | None = None,
    verbose: bool = False,
) -> list[Line]:
    """Lay out what was pruned, layer by layer, what was not and why, and the total."""
    budget = result.budget
    updated = [row for row in budget if row.updated]
    errors = [column for column in ERROR_COLUMNS if any(getattr(row, column) is not None for row in budget)]

    def cells(row: LayerBudget) -> Line:
        figures = ("" if getattr(row, column) is None else percent(getattr(row, column), 2) for column in errors)
        return text_cells(row.name, row.shape, f"{row.pruned:,}", percent(row.sparsity, 2), *figures)

    headers = ("layer", "shape", "pruned", "sparsity", *(ERROR_COLUMNS[column] for column in errors))
    method = f"{budget.method}, {budget.pattern}" if budget.pattern else budget.method
    where = "nothing written (dry run)" if result.out is None else f"written to {result.out}"
    return [
        *arranged_lines(headers, budget, cells, arrangement, width),
        plain(),
        *skipped_lines(result.skipped, verbose),
        *skipped_lines(
            [SkippedTensor(row.name, row.shape, row.dtype, row.reason) for row in budget if row.reason],
            verbose,
            "pruned, but not refitted:",
        ),
        *sentences("not copied:", result.not_copied),
        *sentences("note:", result.notes),
        plain(
            f"{budget.pruned:,} of {budget.entries:,} entries ({100 * result.sparsity:.2f}%) of "
            f"{counted(len(budget), 'layer')} pruned by {method}"
        ),
        *([plain(f"the kept weights of {counted(len(updated), 'layer')} refitted")] if updated else []),
        *(
            []
            if budget.model_share is None
            else [plain(f"{100 * budget.model_share:.2f}% of the whole model's weights")]
        ),
        plain(f"{printable(where)} in {result.seconds:.2f} s"),
    ]


def compress_lines(
    result: CompressResult,
    arrangement: Arrangement,
    *,
    width: int | None = None,
    verbose: bool = False,
) -> list[Line]:
    """Lay out what was factored, layer by layer, what was not and why, and the total."""

    def cells(layer: FactoredLayer) -> Line:
        return text_cells(layer.name, layer.shape, str(layer.rank), f"{100 * layer.energy:.1f}%")

    matrices, entries = counted(len(result.layers), "matrix", "matrices"), "its" if len(result.layers) == 1 else "their"
    where = "nothing written (dry run)" if result.out is None else f"written to {result.out}"
    share = f"{100 * result.ratio:.1f}% of {entries} entries"
    done = {
        "dense": f"{matrices} truncated; factors would take {share}",
        "factors": f"{matrices} factored to {share}; mpfast.integrations.torch.load_factors(model, OUT) loads them",
        "lora": f"{matrices} factored to {share}",
    }[result.format]
    return [
        *arranged_lines(("layer", "shape", "rank", "energy"), result.layers, cells, arrangement, width),
        plain(),
        *skipped_lines(result.skipped, verbose),
        *skipped_lines(result.not_in_adapter, verbose, "differ from the base, and are not in the adapter:"),
        *sentences("not copied:", result.not_copied),
        *sentences("note:", result.notes),
        plain(done),
        plain(f"{printable(where)} in {result.seconds:.2f} s"),
    ]


def resize_lines(
    result: ResizeResult,
    arrangement: Arrangement,
    *,
    width: int | None = None,
    verbose: bool = False,
) -> list[Line]:
    """Lay out the ranks before and after, what stayed and why, and the total."""

    def cells(layer: ResizedUpdate) -> Line:
        shape = (layer.experts, *layer.shape) if layer.experts > 1 else layer.shape
        return text_cells(layer.name, shape, str(layer.old_rank), str(layer.rank), f"{100 * layer.error:.2f}%")

    where = "nothing written (dry run)" if result.out is None else f"written to {result.out}"
    updates = counted(len(result.layers), "update")
    return [
        *arranged_lines(("update", "shape", "had", "rank", "error"), result.layers, cells, arrangement, width),
        plain(),
        *skipped_lines(result.skipped, verbose),
        *sentences("not copied:", result.not_copied),
        *sentences("note:", result.notes),
        plain(
            f"{updates} resized to {100 * result.ratio:.1f}% of {'its' if len(result.layers) == 1 else 'their'} entries"
        ),
        plain(f"{printable(where)} in {result.seconds:.2f} s"),
    ]


def diff_lines(
    found: ModelDiff, arrangement: Arrangement, *, width: int | None = None, verbose: bool = False
) -> list[Line]:
    """Lay out what changed: the tensors or matrices that did, how many did not, what has no partner, and the total."""
    figures = diff_figures(found.analyses)
    shown = found.rows if verbose else [row for row in found if not row.equal]

    def cells(row: DiffRow) -> Line:
        return text_cells(row.name, row.shape, *(cell(row) for cell in figures.values()))

    headers = (found.nouns[0], "shape", *figures)
    lines = [*arranged_lines(headers, shown, cells, arrangement, width), plain()] if shown else []
    equal = len(found) - found.changed
    if equal:
        lines.append(plain(f"{counted(equal, *found.nouns)} equal in both"))
    return [
        *lines,
        *skipped_lines([SkippedTensor(name, (), "", reason) for name, reason in found.unmatched], False),
        plain(f"{found.changed} of {counted(len(found), *found.nouns)} changed from {printable(found.a)}"),
        plain(f"to {printable(found.b)}"),
    ]


def inventory_lines(found: Inventory, arrangement: Arrangement, *, width: int | None = None) -> list[Line]:
    """Lay out the tensors of a checkpoint with what each is, and the totals."""

    def cells(row: InventoryRow) -> Line:
        stored, role = row.stored or row.dtype, f"{row.role} ({row.known_from})"
        matrices = f"{row.matrices}" if row.matrices else f"- {row.reason}"
        return text_cells(row.name, row.shape, stored, f"{row.entries:,}", role, matrices)

    headers = ("tensor", "shape", "type", "entries", "role", "matrices")
    types = ", ".join(f"{count / 1e6:.1f} M {dtype}" for dtype, count in found.dtypes.items())
    share = found.analysed / found.entries if found.entries else 0.0
    return [
        *arranged_lines(headers, found, cells, arrangement, width),
        plain(),
        plain(f"{counted(len(found), 'tensor')}: {types}" if len(found) else "no tensors"),
        plain(f"{counted(found.matrices, 'matrix', 'matrices')} would be analysed, {share:.1%} of the entries"),
        plain(printable(found.source)),
    ]


def benchmark_table(rows: Sequence[Row]) -> Table:
    """Lay out benchmark rows as a rich table; the first contender of each case is ours."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("case")
    table.add_column("contender")
    for header in ("time", "x ours", "error"):
        table.add_column(header, justify="right")
    case = None
    for row in rows:
        ours = row.case != case
        table.add_row(
            row.case if ours else "",
            row.contender,
            f"{row.seconds * 1e3:.1f} ms",
            f"{row.ratio:.2f}",
            "" if row.error is None else f"{row.error:.1e}",
            style="bold" if ours else None,
        )
        case = row.case
    return table
