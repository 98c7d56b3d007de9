"""`resize`: an adapter whose updates have fewer ranks, in the dialect that it came in."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mpfast.checkpoints import (
    Checkpoint,
    SourceFiles,
    Update,
    check_writable,
    factor_roles,
    files_behind,
    live_settings,
    open_checkpoint,
    quantised_weight,
    updates_of,
)
from mpfast.models.factoring import Wanted
from mpfast.models.layer_json import jsonable
from mpfast.models.output_mark import mark_output
from mpfast.models.provenance import Provenance
from mpfast.models.prune_options import changeable
from mpfast.models.resized_factors import ResizedUpdate, rank_of, resized
from mpfast.models.resized_output import write_resized
from mpfast.models.skipped import SkippedTensor
from mpfast.support import (
    InvalidValueError,
    argument_called,
    check_flag,
    check_path,
    claimed_directory,
    front_door,
    logger,
)

__all__ = ["ResizeResult", "resize"]

# What initialises the base from its own leading triplets, as many as the rank says, each time an adapter is loaded.
_INITS_THAT_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga", "mica")


@dataclass(frozen=True)
class ResizeResult:
    """What `mpfast.resize` did.

    Attributes
    ----------
    layers : tuple of ResizedUpdate
        The updates, in the order of the file.
    skipped : tuple of SkippedTensor
        Factors that stayed as they were, and why.
    out : Path or None
        The directory written; None for a dry run.
    seconds : float
        Wall time.
    not_copied : tuple of str
        Files beside the weights that `out` lacks, and why.
    notes : tuple of str
        What the errors do not say.
    """

    layers: tuple[ResizedUpdate, ...]
    skipped: tuple[SkippedTensor, ...]
    out: Path | None
    seconds: float
    not_copied: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ratio(self) -> float:
        """Entries of the factors over what they were."""
        before = sum(layer.experts * layer.old_rank * sum(layer.shape) for layer in self.layers)
        return sum(layer.experts * layer.rank * sum(layer.shape) for layer in self.layers) / before if before else 1.0

    def to_document(self, provenance: Provenance) -> dict[str, Any]:
        """Return what ``mpfast resize --json`` writes, as dictionaries and lists."""
        return {
            "schema": "mpfast.resize/1",
            "out": None if self.out is None else str(self.out),
            "ratio": self.ratio,
            "seconds": self.seconds,
            "provenance": provenance.to_dict(),
            "layers": [jsonable(asdict(layer)) for layer in self.layers],
            "skipped": [tensor._asdict() for tensor in self.skipped],
            "not_copied": list(self.not_copied),
            "notes": list(self.notes),
        }


@front_door
def resize(
    adapter: Any,
    out: str | os.PathLike[str] | None = None,
    *,
    rank: int | None = None,
    energy: float | None = None,
    error: float | None = None,
    overwrite: bool = False,
) -> ResizeResult:
    """Give the updates of an adapter fewer ranks: the best approximations of their products.

    The product of two factors is never formed: with their QR factorisations it is an r x r matrix between orthonormal
    ones, and its decomposition is exact. What the update is multiplied by stays: alpha follows the rank.

    Parameters
    ----------
    adapter : path or mapping of arrays
        LoRA as PEFT (linear, convolution, embedding, DoRA, fused experts), kohya or diffusers store it: a directory or
        a file. It is never changed.
    out : path, optional
        Directory to write: the adapter's files under their names, in its dialect and its types, with the ranks and
        alphas of ``adapter_config.json``, or of the header, to go with them. Default: nothing is written.
    rank : int
        Ranks kept: at most so many. An update that has no more keeps its factors, byte for byte.
    energy : float
        Instead: as few as hold this share of the squared Frobenius norm of each update, in (0, 1].
    error : float
        Instead: as few as leave this relative error of each update (Frobenius norm over Frobenius norm), in [0, 1).
        One of the three must be given. The experts of a stack get one rank, which the one that needs most decides.
    overwrite : bool
        As in `mpfast.compress`.

    Returns
    -------
    ResizeResult
        DoRA's lengths stay as they are, and errors are of the updates that they are applied to.

    Raises
    ------
    FileNotFoundError, FileExistsError, OSError
        `adapter` does not exist, `out` does, or it cannot be written. Nothing is left of what was begun.
    CheckpointError
        A file is malformed, or was changed meanwhile.
    ValueError, TypeError
        A bad option; nothing to resize (Hadamard and Kronecker products have no two factors of a smaller rank); a scale
        that nothing says, and that would change with the rank; factors with NaN or infinities, or that the type of the
        file cannot hold; factors that belong to quantised weights; entries that are no tensors and would be lost.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> names = ("unet.q.lora.down.weight", "unet.q.lora.up.weight")
    >>> A, B = rng.standard_normal((3, 64)), rng.standard_normal((48, 3))
    >>> A, B = np.concatenate([A, 0.1 * A]), np.concatenate([B, B], axis=1)
    >>> [layer] = resize(dict(zip(names, (A, B))), error=1e-6).layers
    >>> layer.old_rank, layer.rank
    (6, 3)
    """
    started = time.perf_counter()
    wanted = Wanted.of(rank, energy, error, has_base=False)
    check_flag(overwrite, "overwrite")
    if out is not None:
        check_path(out, "out")
    with argument_called("adapter"):
        checkpoint = open_checkpoint(adapter)
        _check_that_nothing_is_packed(checkpoint)
        checkpoint = changeable(checkpoint, dequantize=None, written=out is not None)
    if live_settings(checkpoint):
        fact = "is a live model, whose modules have the ranks that it was made with"
        raise InvalidValueError("adapter", fact, "save it (save_pretrained) and pass the directory")
    check_writable(checkpoint)
    updates = updates_of(checkpoint)
    reasons = {name: reason for name, update in updates.items() if (reason := _obstacle(update, checkpoint))}
    chosen = [update for name, update in updates.items() if name not in reasons]
    if not chosen:
        raise InvalidValueError("adapter", *_nothing_to_resize(checkpoint, reasons))
    logger.info("resize: %s: %d updates", checkpoint.source, len(chosen))
    left: tuple[str, ...] = ()
    with contextlib.ExitStack() as stack:
        place = None
        if out is not None:  # from here on nobody else writes there
            sources = files_behind(adapter, checkpoint)
            place = stack.enter_context(claimed_directory(out, overwrite=overwrite, sources=sources))
        source = SourceFiles(files_behind(checkpoint))
        ranks = _ranks(checkpoint, chosen, wanted)
        if place is None:
            reports = [resized(update, checkpoint.read, ranks[update.name])[0] for update in chosen]
        else:
            with place.staged() as staging:
                reports, left = write_resized(checkpoint, updates, ranks, staging)
                source.check()
                mark_output(staging, "resize", checkpoint, format="lora")
    return ResizeResult(
        layers=tuple(reports),
        skipped=_skipped(checkpoint, updates, reasons),
        out=None if out is None else Path(out),
        seconds=time.perf_counter() - started,
        not_copied=left,
        notes=_notes(chosen),
    )


def _check_that_nothing_is_packed(checkpoint: Checkpoint) -> None:
    weight = quantised_weight(checkpoint)
    if weight is not None:
        fact = f"is quantised: {weight} is packed, and factors beside it may be a part of it"
        raise InvalidValueError("model", fact, "pass an adapter by itself")


def _obstacle(update: Update, checkpoint: Checkpoint) -> str:
    """Say why an update stays as it is; nothing where it can be resized."""
    if update.kind == "hadamard":
        return "a product entry by entry, which has no two factors of a smaller rank"
    if update.kind == "tucker":
        return "a product of three factors, of which the one between the others has the rank, too"
    if update.kind == "kronecker":
        return "a Kronecker product, which has no two factors of a smaller rank"
    init = "" if update.settings is None else str(update.settings.values.get("init_lora_weights")).lower()
    if init.startswith(_INITS_THAT_CHANGE_THE_BASE):
        return (
            f"begun by {init!r}, which takes as much from the base as the rank says whenever it is loaded: convert it "
            "first (path_initial_model_for_weight_conversion)"
        )
    if update.scale(checkpoint.read) is None:
        return (
            "neither an alpha tensor nor an adapter_config.json beside it says the scale of the update, which would "
            "change with the rank"
        )
    return ""


def _nothing_to_resize(checkpoint: Checkpoint, reasons: Mapping[str, str]) -> tuple[str, str]:
    if reasons:
        name, reason = next(iter(reasons.items()))
        return f"has no update to resize: {name}: {reason}", ""
    return f"has no pair of factors among its {len(checkpoint.tensors)} tensors", "pass a LoRA adapter"


def _ranks(checkpoint: Checkpoint, chosen: Sequence[Update], wanted: Wanted) -> dict[str, int]:
    """Return the rank that each update is to have, by name.

    Updates of several parameters of one module have one: a file does not say which of them is of which parameter, and
    their ranks stand under the parameters' names.
    """
    ranks = {update.name: rank_of(update, checkpoint.read, wanted) for update in chosen}
    groups: dict[tuple[str, ...], list[str]] = {}
    for update in chosen:
        if update.settings is not None and update.settings.is_of_parameters(update.module):
            groups.setdefault(tuple(update.settings.keys_of(update.module)), []).append(update.name)
    for names in groups.values():
        ranks |= dict.fromkeys(names, max(ranks[name] for name in names))
    return ranks


def _skipped(
    checkpoint: Checkpoint, updates: Mapping[str, Update], reasons: Mapping[str, str]
) -> tuple[SkippedTensor, ...]:
    """List the factors that stay, in the order of the checkpoint, and why."""
    changed = [update for name, update in updates.items() if name not in reasons]
    names = {info.name for update in changed for info in update.factors.values()}
    names.update(update.magnitude for update in changed)
    held = {info.name: reasons[name] for name in reasons for info in updates[name].factors.values()}
    roles = factor_roles(checkpoint.tensors)
    return tuple(
        SkippedTensor(info.name, info.shape, info.dtype, held.get(info.name) or roles[info.name].reason)
        for info in checkpoint.tensors
        if info.name not in names and (info.name in held or info.name in roles)
    )


def _notes(chosen: Sequence[Update]) -> tuple[str, ...]:
    count = sum(bool(update.magnitude) for update in chosen)
    if not count:
        return ()
    which = "an update of DoRA keeps its" if count == 1 else f"{count} updates of DoRA keep their"
    return (f"{which} lengths of rows; the error is that of the update before they are applied",)
