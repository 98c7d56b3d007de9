"""Plain-text tables and charts of results: lines of styled pieces, to print with or without colour."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mpfast.models import LayerReport, SkippedTensor, diff_figures, distances, kind_of_reason, signals_range
from mpfast.support import counted, percent, printable, with_error

if TYPE_CHECKING:
    from rich.table import Table

    from mpfast.bench import Row
    from mpfast.models import CompressResult, Inventory, ModelDiff, PruneResult, ResizeResult
    from mpfast.spectra import Spectrum


__all__ = [
    "ERROR_COLUMNS",
    "Line",
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
    "spectrum_lines",
    "table_lines",
    "text_cells",
]

#: A line of output: (text, style) pieces; the styles are rich's, "" is plain.
Line = list[tuple[str, str]]

_GAP = "  "
_SPIKES_SHOWN = 12
_CHART_BINS = 16
_CHART_WIDTH = 48


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


def spectrum_lines(source: str, row: LayerReport, spectrum: Spectrum) -> list[Line]:
    """Lay out what is known about one matrix: the edge, the spikes, the measures, a chart of the density.

    Parameters
    ----------
    source : str
        Where the matrix came from.
    row : LayerReport
        Its summary.
    spectrum : Spectrum
        For the spikes' values and the density.
    """
    figures = [
        ("matrix", f"{row.shape[0]} x {row.shape[1]} {row.dtype}, Frobenius norm {row.fro_norm:.6g}"),
        ("method", row.method),
        ("edge sigma+", with_error(row.sigma_plus, row.sigma_plus_error)),
        ("threshold", f"{row.threshold:.5g}"),
        ("noise", f"standard deviation {math.sqrt(row.variance):.5g} an entry"),
        ("spikes", _spikes_text(row, spectrum)),
        ("signals", f"{signals_range(row)} whatever the scales of rows and columns"),
        ("unevenness", f"{percent(row.unevenness)} of the edge, if all of it were noise"),
        ("share", f"{percent(row.share)} of the energy is fitted noise"),
        ("KS", f"{distances(row, 4)}"),
        ("verdict", f"{row.verdict}: {row.sentence}"),
        *((key.replace("_", " "), f"{value:.5g}") for key, value in row.metrics.items()),
    ]
    label_width = max(len(label) for label, _ in figures)
    lines = [[(printable(source), "cyan")]]
    for label, text in figures:
        lines.append([(f"  {label.ljust(label_width)}  ", "dim"), (text, "")])
    lines += [[("! ", "yellow"), (printable(warning), "")] for warning in row.warnings]
    return [*lines, plain(), *_chart_lines(row, spectrum)]


def _spikes_text(row: LayerReport, spectrum: Spectrum) -> str:
    known = spectrum.values if spectrum.values is not None else spectrum.outliers
    spikes = [float(value) for value in known if value > row.threshold]
    text = f"{row.spikes} above the threshold, {row.spikes_above_edge} above the edge"
    if spikes:
        shown = " ".join(f"{value:.5g}" for value in spikes[:_SPIKES_SHOWN])
        text += f": {shown}" + (" ..." if len(spikes) > _SPIKES_SHOWN else "")
    return text


def _chart_lines(row: LayerReport, spectrum: Spectrum) -> list[Line]:
    """Draw the share of singular values in equal bins up to just past the threshold, and the fitted law."""
    if not (row.sigma_plus > 0 and math.isfinite(row.threshold)):
        return []
    law = spectrum.edge.law
    low = 0.9 * float(law.support[0])
    bins = np.linspace(low, max(row.threshold, row.sigma_plus) * 1.05, _CHART_BINS + 1)
    found = _shares(spectrum, bins)
    expected = _shares(law, bins) * row.bulk_fraction
    scale = _CHART_WIDTH / max(float(found.max()), float(expected.max()), 1e-12)
    lines = [plain("  singular values      share   # found   | Marchenko-Pastur")]
    for left, right, share, law_share in zip(bins[:-1], bins[1:], found, expected, strict=True):
        bar = list(("#" * round(share * scale)).ljust(_CHART_WIDTH + 1))
        bar[round(law_share * scale)] = "|"
        lines.append(plain(f"{left:9.4g} to {right:<9.4g} {100 * share:5.1f}%  {''.join(bar).rstrip()}"))
    beyond = 1 - float(np.asarray(spectrum.cdf(bins[-1:]))[0])
    if beyond * min(row.shape) >= 0.5:
        lines.append(plain(f"   beyond {bins[-1]:<9.4g}   {100 * beyond:5.1f}%"))
    return lines


def _shares(measure: Any, bins: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Mass of a measure (anything with a `cdf`) in each bin."""
    return np.clip(np.diff(np.asarray(measure.cdf(bins), dtype=np.float64)), 0.0, 1.0)


def text_cells(name: str, shape: Sequence[int], *figures: str) -> Line:
    """Return the cells of a row: a name, a shape and what else there is, in plain text."""
    return [(printable(name), "cyan"), ("x".join(map(str, shape)), ""), *((text, "") for text in figures)]


#: What is said of the output of a refitted layer: its mean squared change, as a share.
ERROR_COLUMNS = {"masked_error": "masked", "error": "fitted", "heldout_error": "held out"}


def prune_lines(result: PruneResult, *, width: int | None = None, verbose: bool = False) -> list[Line]:
    """Lay out what was pruned, layer by layer, what was not and why, and the total."""
    budget = result.budget
    updated = [row for row in budget if row.updated]
    errors = [column for column in ERROR_COLUMNS if any(getattr(row, column) is not None for row in budget)]
    body = [
        text_cells(
            row.name,
            row.shape,
            f"{row.pruned:,}",
            percent(row.sparsity, 2),
            *("" if getattr(row, column) is None else percent(getattr(row, column), 2) for column in errors),
        )
        for row in budget
    ]
    method = f"{budget.method}, {budget.pattern}" if budget.pattern else budget.method
    where = "nothing written (dry run)" if result.out is None else f"written to {result.out}"
    return [
        *table_lines(
            ("layer", "shape", "pruned", "sparsity", *(ERROR_COLUMNS[column] for column in errors)), body, width
        ),
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


def compress_lines(result: CompressResult, *, width: int | None = None, verbose: bool = False) -> list[Line]:
    """Lay out what was factored, layer by layer, what was not and why, and the total."""
    body = [
        text_cells(layer.name, layer.shape, str(layer.rank), f"{100 * layer.energy:.1f}%") for layer in result.layers
    ]
    matrices, entries = counted(len(result.layers), "matrix", "matrices"), "its" if len(result.layers) == 1 else "their"
    where = "nothing written (dry run)" if result.out is None else f"written to {result.out}"
    share = f"{100 * result.ratio:.1f}% of {entries} entries"
    done = {
        "dense": f"{matrices} truncated; factors would take {share}",
        "factors": f"{matrices} factored to {share}; mpfast.integrations.torch.load_factors(model, OUT) loads them",
        "lora": f"{matrices} factored to {share}",
    }[result.format]
    return [
        *table_lines(("layer", "shape", "rank", "energy"), body, width),
        plain(),
        *skipped_lines(result.skipped, verbose),
        *skipped_lines(result.not_in_adapter, verbose, "differ from the base, and are not in the adapter:"),
        *sentences("not copied:", result.not_copied),
        *sentences("note:", result.notes),
        plain(done),
        plain(f"{printable(where)} in {result.seconds:.2f} s"),
    ]


def resize_lines(result: ResizeResult, *, width: int | None = None, verbose: bool = False) -> list[Line]:
    """Lay out the ranks before and after, what stayed and why, and the total."""
    body = [
        text_cells(
            layer.name,
            (layer.experts, *layer.shape) if layer.experts > 1 else layer.shape,
            str(layer.old_rank),
            str(layer.rank),
            f"{100 * layer.error:.2f}%",
        )
        for layer in result.layers
    ]
    where = "nothing written (dry run)" if result.out is None else f"written to {result.out}"
    updates = counted(len(result.layers), "update")
    return [
        *table_lines(("update", "shape", "had", "rank", "error"), body, width),
        plain(),
        *skipped_lines(result.skipped, verbose),
        *sentences("not copied:", result.not_copied),
        *sentences("note:", result.notes),
        plain(f"{updates} resized to {100 * result.ratio:.1f}% of {'its' if len(body) == 1 else 'their'} entries"),
        plain(f"{printable(where)} in {result.seconds:.2f} s"),
    ]


def diff_lines(found: ModelDiff, *, width: int | None = None, verbose: bool = False) -> list[Line]:
    """Lay out what changed: the tensors or matrices that did, how many did not, what has no partner, and the total."""
    figures = diff_figures(found.analyses)
    shown = found.rows if verbose else [row for row in found if not row.equal]
    body = [text_cells(row.name, row.shape, *(cell(row) for cell in figures.values())) for row in shown]
    equal = len(found) - found.changed
    lines = [*table_lines((found.nouns[0], "shape", *figures), body, width), plain()] if body else []
    if equal:
        lines.append(plain(f"{counted(equal, *found.nouns)} equal in both"))
    return [
        *lines,
        *skipped_lines([SkippedTensor(name, (), "", reason) for name, reason in found.unmatched], False),
        plain(f"{found.changed} of {counted(len(found), *found.nouns)} changed from {printable(found.a)}"),
        plain(f"to {printable(found.b)}"),
    ]


def inventory_lines(found: Inventory, *, width: int | None = None) -> list[Line]:
    """Lay out the tensors of a checkpoint with what each is, and the totals."""
    body = [
        text_cells(
            row.name,
            row.shape,
            row.stored or row.dtype,
            f"{row.entries:,}",
            f"{row.role} ({row.known_from})",
            f"{row.matrices}" if row.matrices else f"- {row.reason}",
        )
        for row in found
    ]
    types = ", ".join(f"{count / 1e6:.1f} M {dtype}" for dtype, count in found.dtypes.items())
    share = found.analysed / found.entries if found.entries else 0.0
    return [
        *table_lines(("tensor", "shape", "type", "entries", "role", "matrices"), body, width),
        plain(),
        plain(f"{counted(len(found), 'tensor')}: {types}" if body else "no tensors"),
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
