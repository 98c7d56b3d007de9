"""`narrow`: a smaller model of the same family, without some of its neurons and heads."""

from __future__ import annotations

import math
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mpfast.checkpoints import check_writable, files_behind, open_checkpoint
from mpfast.models.joints import HEADS, Joints, heads_of, neurons_of
from mpfast.models.layer_json import jsonable
from mpfast.models.layer_moments import LayerMoments
from mpfast.models.narrow_fits import NarrowedLayer, NarrowFits
from mpfast.models.narrowed_output import narrowed_shapes, write_narrowed
from mpfast.models.provenance import Provenance
from mpfast.models.prune_options import changeable
from mpfast.support import (
    InvalidTypeError,
    InvalidValueError,
    check_flag,
    check_path,
    claimed_directory,
    front_door,
    logger,
    percent,
    team_size,
    warn_caller,
)

__all__ = ["NarrowResult", "NarrowedLayer", "narrow"]

# A share of the neurons is rounded to a multiple of this: blocks of quantised formats and the vectors of kernels are of
# 32 or less.
_MULTIPLE = 32


@dataclass(frozen=True, repr=False)
class NarrowResult:
    """What `mpfast.narrow` did.

    Attributes
    ----------
    layers : tuple of NarrowedLayer
        A row for each matrix that reads fewer neurons or heads.
    settings : dict of str to int
        What the configuration says instead.
    entries : int
        Of all tensors of the model that is written.
    entries_before : int
        Of all tensors of the source.
    out : Path or None
        The directory written; None for a dry run.
    seconds : float
        Wall time.
    not_copied : tuple of str
        Files beside the weights that `out` lacks, and why.
    """

    layers: tuple[NarrowedLayer, ...]
    settings: dict[str, int]
    entries: int
    entries_before: int
    out: Path | None
    seconds: float
    not_copied: tuple[str, ...] = ()

    def __repr__(self) -> str:
        where = "dry run" if self.out is None else f"in {str(self.out)!r}"
        sizes = ", ".join(f"{name} {value}" for name, value in self.settings.items())
        return f"NarrowResult({sizes}, {percent(self.ratio)} of the entries, {where}, {self.seconds:.2f} s)"

    @property
    def ratio(self) -> float:
        """Entries of the model over what they were."""
        return self.entries / self.entries_before

    def to_document(self, provenance: Provenance) -> dict[str, Any]:
        """Return what ``mpfast narrow --json`` writes, as dictionaries and lists."""
        return {
            "schema": "mpfast.narrow/1",
            "out": None if self.out is None else str(self.out),
            "settings": dict(self.settings),
            "entries": self.entries,
            "entries_before": self.entries_before,
            "ratio": self.ratio,
            "seconds": self.seconds,
            "provenance": provenance.to_dict(),
            "layers": [jsonable(asdict(layer)) for layer in self.layers],
            "not_copied": list(self.not_copied),
        }


@front_door
def narrow(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    moments: Any,
    neurons: int | float | None = None,
    heads: int | float | None = None,
    damping: float | None = None,
    dequantize: str | None = None,
    threads: int | None = None,
    overwrite: bool = False,
) -> NarrowResult:
    """Take neurons and attention heads out of a model, so that a smaller one is left, which loads like the source.

    In every block those go, one after the other, whose loss the others make up for best (`reconstruct.drop_inputs`):
    the matrix that reads them is refitted to what it sees of the others, rows and biases of the matrices that write
    them go, and ``config.json`` says the new sizes. All else is the source's, bit by bit. The configuration has one
    number for all blocks, so that each block loses as many.

    Parameters
    ----------
    model : path
        A directory that `save_pretrained` wrote, or a Hugging Face id in the local cache, of a family that is known:
        `mpfast.checkpoints.WIDTHS` lists them. It is never changed.
    out : path, optional
        Directory to write: files as those of the source, ``config.json``, copies of the files beside the weights.
        Default: nothing is written.
    moments : path or mapping
        Of the inputs of the matrices that read, as in `mpfast.prune`: what ``mpfast moments`` writes.
    neurons : int or float, optional
        How many neurons of every feed-forward layer stay: a number, or a share between 0 and 1, which comes to a
        multiple of 32 where there are more.
    heads : int or float, optional
        How many heads of keys and values stay, each with the heads of queries that it serves: a number, or a share,
        which comes to the nearest number. One of the two must be given.
    damping : float, optional
        Share of the mean of a moment's diagonal. Default as `mpfast.models.damping_for`, by how much it has seen.
    dequantize
        As `mpfast.prune`.
    threads : int, optional
        Number of threads; the result does not depend on it.
    overwrite : bool
        As in `mpfast.compress`.

    Returns
    -------
    NarrowResult

    Raises
    ------
    FileNotFoundError, FileExistsError, OSError
        `model` does not exist, `out` does, or it cannot be written. Nothing is left of what was begun.
    CheckpointError
        A file is malformed, or was changed meanwhile.
    ValueError, TypeError
        A bad option; a model without a configuration, of a family that is not known, whose configuration has no such
        setting (the size of a head of BERT's), or whose blocks have several sizes; heads whose new number transformers
        refuses; moments of another model, or that lack a layer; a quantised checkpoint.

    Warns
    -----
    UserWarning
        The moments have seen too little.
    """
    started = time.perf_counter()
    check_flag(overwrite, "overwrite")
    if not isinstance(model, str | os.PathLike):
        raise InvalidTypeError("model", f"must be a path, not {type(model).__name__}", "save it (save_pretrained)")
    if neurons is None and heads is None:
        raise InvalidValueError("", "nothing is to go", "pass neurons, heads or both")
    if out is not None:
        check_path(out, "out")
    checkpoint = changeable(open_checkpoint(model), dequantize=dequantize, written=out is not None)
    check_writable(checkpoint)
    found = []
    if neurons is not None:
        found.append(_kept_neurons(neurons_of(checkpoint), neurons))
    if heads is not None:
        found.append(_kept_heads(heads_of(checkpoint), heads))
    readers = [joint.reader for joints in found for joint in joints.all]
    seen = LayerMoments(moments, model, checkpoint, readers)
    for layer in readers:
        if (reason := seen.reason_against_one(layer)) != "":
            raise InvalidValueError("moments", f"do not do for {layer.name}: {reason}")
    warn_caller("narrow", seen.warning)
    fits = NarrowFits(checkpoint, seen, damping, team_size(threads))
    logger.info("narrow: %s: %d matrices", checkpoint.source, len(readers))
    left: tuple[str, ...] = ()
    if out is None:
        layers = tuple(fits.fitted(joints, joint).layer for joints in found for joint in joints.all)
    else:
        with claimed_directory(out, overwrite=overwrite, sources=files_behind(model, checkpoint)) as place:
            layers, left = write_narrowed(checkpoint, place, found, fits.fitted)
    return NarrowResult(
        layers=layers,
        settings={name: value for joints in found for name, value in joints.settings.items()},
        entries=sum(math.prod(shape) for shape in narrowed_shapes(checkpoint, found).values()),
        entries_before=sum(info.size for info in checkpoint.tensors),
        out=None if out is None else Path(out),
        seconds=time.perf_counter() - started,
        not_copied=left,
    )


def _kept_neurons(joints: Joints, wanted: int | float) -> Joints:
    """Say how many neurons stay."""
    kept = _kept(joints, wanted, "neurons", _MULTIPLE if joints.units > _MULTIPLE else 1)
    return replace(joints, kept=kept)


def _kept_heads(joints: Joints, wanted: int | float) -> Joints:
    """Say how many groups of heads stay; InvalidValueError where transformers refuses as many heads."""
    found = replace(joints, kept=_kept(joints, wanted, "heads", 1))
    heads = found.settings[HEADS]
    if found.divided is not None and found.divided % heads:
        possible = [
            kept for kept in range(1, found.units) if found.divided % replace(found, kept=kept).settings[HEADS] == 0
        ]
        fact = f"leave {heads} heads of queries; transformers takes what divides the hidden size, {found.divided}"
        advice = f"let {' or '.join(map(str, possible))} heads of keys and values stay" if possible else ""
        raise InvalidValueError("heads", fact, advice)
    return found


def _kept(joints: Joints, wanted: int | float, argument: str, multiple: int) -> int:
    """Say how many units stay: the number, or the multiple that is nearest to a share."""
    if isinstance(wanted, bool) or not isinstance(wanted, int | float | np.integer | np.floating):
        raise InvalidTypeError(argument, f"must be a number or a share, not {type(wanted).__name__}")
    if isinstance(wanted, int | np.integer):
        kept = int(wanted)
    elif 0 < wanted < 1:
        kept = max(1, round(float(wanted) * joints.units / multiple)) * multiple
    else:
        raise InvalidValueError(argument, f"must be an integer, or a share between 0 and 1, not {wanted!r}")
    if not 0 < kept < joints.units:
        fact = f"leaves {kept} of {joints.units} {joints.noun}, not 1 to {joints.units - 1}"
        raise InvalidValueError(argument, fact)
    return kept
