"""The command on one matrix."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from mpfast.arrays import native
from mpfast.checkpoints import Layer, NpyFile, format_of, open_checkpoint
from mpfast.cli.columns import LAYERS
from mpfast.cli.conditions import conditions, violations
from mpfast.cli.console import check_files, fail, print_lines, reports_errors, warn, write_document
from mpfast.cli.options import (
    DeviceOption,
    FailOnOption,
    JsonOption,
    QuietOption,
    SeedOption,
    SpectraOption,
    StrictOption,
    ThreadsOption,
    TolOption,
    VerboseOption,
)
from mpfast.cli.spectrum_table import spectrum_lines
from mpfast.models import LayerReport, provenance_of
from mpfast.spectra import measured_both
from mpfast.support import matrix_called

__all__ = ["spectrum_command"]


@reports_errors
def spectrum_command(
    file: Annotated[Path, typer.Argument(metavar="FILE.npy", help="One matrix, as numpy.save writes it.")],
    method: SpectraOption = "auto",
    tol: TolOption = 5e-3,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    json_file: JsonOption = None,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    fail_on: FailOnOption = None,
    strict: StrictOption = False,
) -> None:
    """Report on one matrix: edge, spikes, quality of the fit and a chart of the density."""
    wanted = conditions(fail_on, LAYERS)
    check_files({"--json": json_file}, reads=(file,))
    checkpoint = _opened(file)
    (tensor,) = checkpoint.tensors
    started = time.perf_counter()
    matrix = native(checkpoint.read(tensor.name))
    with matrix_called(str(file)):
        found = measured_both(matrix, method=method, tol=tol, seed=seed, threads=threads, device=device)
    layer = Layer(tensor.name, "linear", tensor.shape, (tensor.shape[0], tensor.shape[1]), tensor.dtype, tensor.name)
    row = LayerReport.from_spectra(layer, found, seconds=time.perf_counter() - started)
    chosen = {"method": method, "tol": tol, "seed": seed, "device": device}
    document = {
        "schema": "mpfast.spectrum/1",
        "provenance": provenance_of(file, **chosen).to_dict(),
        "summary": row.to_dict(),
        "spectrum": found.even.to_dict(),
    }
    for text in row.warnings:
        warn(text)
    if not write_document(document, json_file) and not quiet:
        print_lines(spectrum_lines(checkpoint.source, row, found.even))
    findings = violations(wanted, [(row.name, row.to_dict())])
    if findings:
        fail(findings)


def _opened(file: Path) -> NpyFile:
    if not file.exists():
        open_checkpoint(file)  # says why
    known = format_of(file)
    if known is not None and ".npy" not in known.suffixes:
        raise ValueError(f"{file}: one matrix in a .npy file is expected; mpfast analyze reads checkpoints")
    return NpyFile(file)
