"""The command that collects second moments of a model's inputs from a text."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mpfast.checkpoints import MomentFile, is_moment_file
from mpfast.cli.console import check_files, reports_errors, write_document
from mpfast.cli.options import (
    COMPUTATION,
    ExcludeOption,
    IncludeOption,
    JsonOption,
    ModelArgument,
    ProgressOption,
    QuietOption,
    StrictOption,
    ThreadsOption,
    VerboseOption,
)
from mpfast.models import Provenance, provenance_of
from mpfast.support import counted, printable

__all__ = ["moments_command"]


@reports_errors
def moments_command(
    model: ModelArgument,
    texts: Annotated[Path, typer.Option(metavar="FILE", help="The data, a text file in UTF-8.", show_default=False)],
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="FILE", help="File to write, a .safetensors.", show_default=False)
    ],
    tokens: Annotated[int, typer.Option(min=1, metavar="N", help="About how many tokens are run.")] = 16384,
    length: Annotated[int, typer.Option(min=1, metavar="N", help="Tokens in a window.")] = 256,
    lines: Annotated[
        bool, typer.Option("--lines", help="Each line is a text of its own, for encoders of sentences.")
    ] = False,
    folds: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="Contiguous parts of the data that are kept apart, so that prune reports errors on data held out; "
            "each takes the memory, and the size in the file, of one sum.",
        ),
    ] = 4,
    include: IncludeOption = None,
    exclude: ExcludeOption = None,
    device: Annotated[
        str | None,
        typer.Option(help="A device of PyTorch.", show_default="cpu", metavar="DEVICE", rich_help_panel=COMPUTATION),
    ] = None,
    threads: ThreadsOption = None,
    json_file: JsonOption = None,
    progress: ProgressOption = True,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
    strict: StrictOption = False,
) -> None:
    """Run a model of transformers over a text and write the second moments of the inputs of its layers.

    They say which weights matter for data like this. MODEL is a directory that save_pretrained wrote, or a Hugging Face
    id in the local cache; --include and --exclude go by the names of modules. Needs the extra transformers.
    """
    check_files({"--out": out, "--json": json_file}, reads=(model, texts), kinds={"--out": is_moment_file})
    text = _text_of(texts)
    # Late: PyTorch and transformers are not needed by any other command, and take seconds.
    from mpfast.integrations.torch import text_moments

    hidden = quiet or not progress or not sys.stderr.isatty()
    with typer.progressbar(length=tokens, file=sys.stderr, hidden=hidden) as bar:

        def advance(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        moments = text_moments(
            model,
            [line for line in text.splitlines() if line.strip()] if lines else [text],
            tokens=tokens,
            length=length,
            folds=folds,
            include=include or None,
            exclude=exclude or None,
            device=device,
            threads=threads,
            progress=advance,
        )
    moments.save(out)
    chosen = {"texts": str(texts), "tokens": tokens, "length": length, "lines": lines, "folds": folds}
    chosen |= {"include": include, "exclude": exclude, "device": device}
    document = _document(out, provenance_of(model, **chosen))
    if not write_document(document, json_file) and not quiet:
        ratios = moments.rows_per_input.values()
        seen = f"{counted(document['rows'], 'token')}, {min(ratios):.3g} to {max(ratios):.3g} per dimension"
        inputs = counted(document["distinct_inputs"], "distinct input")
        typer.echo(printable(f"{out}: {counted(len(moments), 'layer')} with {inputs}, {seen}"))


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")  # with a mark of the byte order or without
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file}: is no text in UTF-8: byte {error.object[error.start]:#04x} at {error.start}"
        ) from None


def _document(out: Path, provenance: Provenance) -> dict[str, Any]:
    file = MomentFile(out)
    rows, ratios, shared = file.rows, file.rows_per_input, file.shared
    layers = [
        {
            "name": name,
            "weight": file.weights[name],
            "inputs": round(rows[name] / ratios[name]),
            "rows": rows[name],
            "rows_per_input": ratios[name],
            "fold_rows": list(file.fold_rows(name)),
            "shared_with": shared.get(name),
        }
        for name in file
    ]
    return {
        "schema": "mpfast.moments/1",
        "out": str(out),
        "rows": max(rows.values()),
        "distinct_inputs": len(file) - len(shared),
        "warning": file.warning,
        "provenance": provenance.to_dict(),
        "layers": layers,
    }
