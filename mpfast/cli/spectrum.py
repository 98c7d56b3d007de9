"""The command on one matrix."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from mpfast.arrays import native
from mpfast.checkpoints import Layer, NpyFile, format_of, open_checkpoint
from mpfast.cli.console import print_lines, reports_errors, require_directory
from mpfast.cli.options import DeviceOption, JsonOption, MethodOption, SeedOption, ThreadsOption, TolOption
from mpfast.cli.tables import spectrum_lines
from mpfast.models import LayerReport, jsonable
from mpfast.spectra import spectrum
from mpfast.support import write_text_atomically

__all__ = ["spectrum_command"]


@reports_errors
def spectrum_command(
    file: Annotated[Path, typer.Argument(metavar="FILE.npy", help="One matrix, as numpy.save writes it.")],
    json_file: JsonOption = None,
    method: MethodOption = "auto",
    tol: TolOption = 5e-3,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Report on one matrix: edge, spikes, quality of the fit and a chart of the density."""
    require_directory(json_file)
    checkpoint = _opened(file)
    (tensor,) = checkpoint.tensors
    started = time.perf_counter()
    matrix = native(checkpoint.read(tensor.name))
    found = spectrum(matrix, method=method, tol=tol, seed=seed, threads=threads, device=device)
    layer = Layer(tensor.name, "linear", tensor.shape, (tensor.shape[0], tensor.shape[1]), tensor.dtype, tensor.name)
    row = LayerReport.from_spectrum(layer, found, seconds=time.perf_counter() - started)
    if json_file is not None:
        document = {"schema": "mpfast.spectrum/1", "summary": row.to_dict(), "spectrum": found.to_dict()}
        text = json.dumps(jsonable(document), indent=1, allow_nan=False) + "\n"
        if json_file == "-":
            typer.echo(text, nl=False)
            return
        write_text_atomically(json_file, text)
    print_lines(spectrum_lines(checkpoint.source, row, found))


def _opened(file: Path) -> NpyFile:
    if not file.exists():
        open_checkpoint(file, "spectrum")  # says why
    known = format_of(file)
    if known is not None and ".npy" not in known.suffixes:
        raise ValueError(f"{file}: one matrix in a .npy file is expected; mpfast analyze reads checkpoints")
    return NpyFile(file)
