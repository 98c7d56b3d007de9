"""`quantize`: a checkpoint whose matrices are stored as integers, in a format that other libraries load."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mpfast.arrays import FLOATS
from mpfast.checkpoints import (
    Checkpoint,
    GgufFile,
    Layer,
    NameFilter,
    check_writable,
    files_behind,
    home_directory,
    open_checkpoint,
    select_layers,
    stored_bytes,
    telling_reason,
)
from mpfast.models.gguf_output import BLOCK, GGUF_BITS, write_gguf
from mpfast.models.integer_fits import IntegerFits, QuantizedLayer
from mpfast.models.layer_json import jsonable
from mpfast.models.layer_moments import LayerMoments
from mpfast.models.packed_output import write_packed
from mpfast.models.provenance import Provenance
from mpfast.models.prune_options import changeable
from mpfast.models.skipped import SkippedTensor, skipped_tensors
from mpfast.support import (
    InvalidValueError,
    check_flag,
    check_path,
    claimed_directory,
    front_door,
    logger,
    positive_integer,
    team_size,
    warn_caller,
)

__all__ = ["QUANTIZE_FORMATS", "QuantizeResult", "quantize"]

PACKED = "compressed-tensors"
#: What `quantize` writes.
QUANTIZE_FORMATS = (PACKED, *GGUF_BITS)
# Of a symmetric grid with its zero on it.
_FEWEST_BITS, _MOST_BITS = 2, 8
_BITS, _GROUP = 4, 64
# Experts that are stored one by one.
_EXPERT = re.compile(r"(^|\.)experts\.\d+\.")


@dataclass(frozen=True, repr=False)
class QuantizeResult:
    """What `mpfast.quantize` did.

    Attributes
    ----------
    layers : tuple of QuantizedLayer
        The matrices that are stored as integers.
    skipped : tuple of SkippedTensor
        Every other tensor, and why it stayed.
    format : str
        As `quantize` calls it.
    bits, group : int
        Of a weight; inputs that share a scale.
    out : Path or None
        The directory written; None for a dry run.
    seconds : float
        Wall time.
    bytes, bytes_before : int or None
        Of the files of weights written, and of the source's tensors; the former None for a dry run.
    not_copied : tuple of str
        Files beside the weights that `out` lacks, and why.
    """

    layers: tuple[QuantizedLayer, ...]
    skipped: tuple[SkippedTensor, ...]
    format: str
    bits: int
    group: int
    out: Path | None
    seconds: float
    bytes: int | None
    bytes_before: int
    not_copied: tuple[str, ...] = ()

    def __repr__(self) -> str:
        where = "dry run" if self.out is None else f"in {str(self.out)!r}"
        size = "" if self.bytes is None else f"{self.bytes / 1e6:.1f} MB of {self.bytes_before / 1e6:.1f}, "
        return f"QuantizeResult({len(self.layers)} matrices in {self.bits} bits, {size}{where}, {self.seconds:.2f} s)"

    def to_document(self, provenance: Provenance) -> dict[str, Any]:
        """Return what ``mpfast quantize --json`` writes, as dictionaries and lists."""
        return {
            "schema": "mpfast.quantize/1",
            "out": None if self.out is None else str(self.out),
            "format": self.format,
            "bits": self.bits,
            "group": self.group,
            "bytes": self.bytes,
            "bytes_before": self.bytes_before,
            "seconds": self.seconds,
            "provenance": provenance.to_dict(),
            "layers": [jsonable(asdict(layer)) for layer in self.layers],
            "skipped": [tensor._asdict() for tensor in self.skipped],
            "not_copied": list(self.not_copied),
        }


@front_door
def quantize(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    format: str | None = None,
    bits: int | None = None,
    group: int | None = None,
    moments: Any = None,
    damping: float | None = None,
    include: NameFilter = None,
    exclude: NameFilter = None,
    threads: int | None = None,
    overwrite: bool = False,
) -> QuantizeResult:
    """Store the linear layers of a model as integers of few bits with scales: a smaller file.

    With moments, weights are rounded column by column, the later ones making up for the earlier
    (`reconstruct.quantize`); without, each goes to the nearest. Grids are symmetric: no zero points are stored.

    Parameters
    ----------
    model : path
        A directory that `save_pretrained` wrote, a Hugging Face id in the local cache, or a GGUF file. It is never
        changed.
    out : path, optional
        Directory to write: files as those of the source with ``config.json``, or ``model.gguf``. Default: nothing is
        written.
    format : {"compressed-tensors", "Q4_0", "Q8_0"}, optional
        ``pack-quantized`` of compressed-tensors, the default but for GGUF files, which transformers loads where that
        library is installed. Or a type of GGUF, for such a file alone: its settings are kept byte for byte, but for
        ``general.file_type``, and ``general.quantization_version`` is added where it lacks; matrices of any type are
        rounded anew.
    bits : int, optional
        Of a weight, 2 to 8; default 4. GGUF's types have 4 and 8.
    group : int, optional
        How many consecutive inputs of a row share a scale; default 64. GGUF's types have 32. Matrices whose inputs it
        does not divide stay as they are.
    moments : path or mapping, optional
        Of the inputs of the matrices, as in `mpfast.prune`; for a GGUF file a mapping by its own names. Matrices
        without one stay as they are.
    damping : float, optional
        As in `mpfast.prune`.
    include, exclude
        As `mpfast.analyze`. Embeddings, output heads, convolutions, experts and projections that are stored as
        (in, out) stay as they are in any case.
    threads : int, optional
        Number of threads; the result does not depend on it.
    overwrite : bool
        As in `mpfast.compress`.

    Returns
    -------
    QuantizeResult
        Errors are those of the weights that are loaded: scales are stored in the type of the weights, in GGUF in
        float16.

    Raises
    ------
    FileNotFoundError, FileExistsError, OSError
        `model` does not exist, `out` does, or it cannot be written. Nothing is left of what was begun.
    CheckpointError
        A file is malformed, or was changed meanwhile.
    ValueError, TypeError
        A bad option; a model without a configuration, or one that is quantised; nothing to store so; weights with NaN
        or infinities, or with scales that their type does not hold; moments of another model.

    Warns
    -----
    UserWarning
        The moments have seen too little.
    """
    started = time.perf_counter()
    check_flag(overwrite, "overwrite")
    if damping is not None and moments is None:
        raise InvalidValueError("damping", "goes with moments")
    if out is not None:
        check_path(out, "out")
    opened = open_checkpoint(check_path(model, "model"))
    form = _form_of(opened, format, bits, group)
    checkpoint = opened if form.of_gguf else changeable(opened, dequantize=None, written=out is not None)
    layers, skipped, without_effect = select_layers(checkpoint, include, exclude)
    for text in without_effect:
        warn_caller("quantize", text)
    chosen = _chosen(layers, form.group, skipped)
    seen = None if moments is None else LayerMoments(moments, model, checkpoint, chosen)
    if seen is not None:
        warn_caller("quantize", seen.warning)
        chosen = _with_moments(chosen, seen, skipped)
    if not chosen:
        sizes = {info.name: info.size for info in checkpoint.tensors}
        linear = {layer.name: skipped[layer.name] for layer in layers if layer.kind == "linear"}
        raise InvalidValueError("", f"no layer is left to quantize{telling_reason(linear or skipped, sizes)}")
    scale_type = "float16" if form.of_gguf else ""
    fits = IntegerFits(checkpoint, seen, form.bits, form.group, damping, team_size(threads), scale_type)
    logger.info("quantize: %s: %d layers", checkpoint.source, len(chosen))
    left: tuple[str, ...] = ()
    written = None
    if out is None:
        rows = tuple(fits.fitted(layer)[0] for layer in chosen)
    else:
        with claimed_directory(out, overwrite=overwrite, sources=files_behind(model, checkpoint)) as place:
            if isinstance(checkpoint, GgufFile):
                rows, left, written = write_gguf(checkpoint, place, chosen, fits, form.name)
            else:
                rows, left, written = write_packed(checkpoint, place, chosen, fits)
    return QuantizeResult(
        layers=rows,
        skipped=skipped_tensors(checkpoint, layers, skipped),
        format=form.name,
        bits=form.bits,
        group=form.group,
        out=None if out is None else Path(out),
        seconds=time.perf_counter() - started,
        bytes=written,
        bytes_before=_bytes_of(checkpoint),
        not_copied=left,
    )


@dataclass(frozen=True)
class _Form:
    """A format, with what it leaves open decided."""

    name: str
    bits: int
    group: int

    @property
    def of_gguf(self) -> bool:
        return self.name in GGUF_BITS


def _form_of(checkpoint: Checkpoint, format: Any, bits: Any, group: Any) -> _Form:
    """Check what is asked for against the file that is given."""
    if format is not None and format not in QUANTIZE_FORMATS:
        raise InvalidValueError("format", f"must be one of {', '.join(QUANTIZE_FORMATS)}, not {format!r}")
    if isinstance(checkpoint, GgufFile):
        if format not in GGUF_BITS:
            raise InvalidValueError("format", f"must be {' or '.join(GGUF_BITS)} for a GGUF file, not {format!r}")
        for name, value in (("bits", bits), ("group", group)):
            if value is not None:
                raise InvalidValueError(name, f"is what {format} has: {GGUF_BITS[format]} bits in blocks of {BLOCK}")
        return _Form(format, GGUF_BITS[format], BLOCK)
    if format in GGUF_BITS:
        fact = f"{format!r} is a type of GGUF, and a GGUF file is made from one"
        raise InvalidValueError("format", fact, "convert the model by llama.cpp's script first")
    bits = _BITS if bits is None else positive_integer(bits, "bits", optional=False)
    if not _FEWEST_BITS <= bits <= _MOST_BITS:
        raise InvalidValueError("bits", f"must lie between {_FEWEST_BITS} and {_MOST_BITS}, not {bits!r}")
    group = _GROUP if group is None else positive_integer(group, "group", optional=False)
    if not getattr(checkpoint, "config", None) or home_directory(checkpoint) is None:
        fact = f"{checkpoint.source}: has no config.json beside it, which would have to say how weights are stored"
        raise InvalidValueError("", fact, "pass a directory that save_pretrained wrote")
    check_writable(checkpoint)
    return _Form(PACKED, int(bits), int(group))


def _chosen(layers: Sequence[Layer], group: int, skipped: dict[str, str]) -> list[Layer]:
    """Leave out what the format has no place for, or no loader a module."""
    chosen = []
    for layer in layers:
        if layer.kind != "linear" or not layer.name.endswith(".weight"):
            skipped[layer.name] = f"{layer.kind}: stays as it is"
        elif _EXPERT.search(layer.name):
            skipped[layer.name] = "an expert, which transformers makes a part of a stack: stays as it is"
        elif layer.input_axes != (1,):
            skipped[layer.name] = "stored as (in, out), which the format has no place for"
        elif layer.inputs % group:
            skipped[layer.name] = f"{layer.inputs} inputs are no groups of {group}"
        elif layer.dtype not in FLOATS or layer.dtype == "float64":
            skipped[layer.name] = f"of {layer.dtype}, which is not packed"
        else:
            chosen.append(layer)
    return chosen


def _with_moments(layers: Sequence[Layer], moments: LayerMoments, skipped: dict[str, str]) -> list[Layer]:
    """Leave out what there is no moment of."""
    chosen = []
    for layer in layers:
        reason = moments.reason_against_one(layer)
        if reason:
            skipped[layer.name] = reason
        else:
            chosen.append(layer)
    return chosen


def _bytes_of(checkpoint: Checkpoint) -> int:
    """Bytes of all tensors as they are stored."""
    if isinstance(checkpoint, GgufFile):
        return sum(entry.end - entry.begin for entry in checkpoint.header.entries)
    return sum(stored_bytes(info) for info in checkpoint.tensors)
