"""Checkpoints larger than memory compressed block by block, as live models are, from files to files."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from mpfast.checkpoints import (
    NameFilter,
    SourceFiles,
    TorchModules,
    check_writable,
    content_sample_hash,
    files_behind,
    home_directory,
    open_checkpoint,
    quantised_weight,
    roles_of,
    stored,
)
from mpfast.integrations.torch.block_by_block import BlockByBlock, KeptTensors
from mpfast.integrations.torch.block_streams import blocks_of
from mpfast.integrations.torch.fit_options import FitOptions
from mpfast.integrations.torch.kept_blocks import KeptBlocks
from mpfast.integrations.torch.layer_fits import LayerFit, few_inputs
from mpfast.integrations.torch.site_choice import chosen_sites
from mpfast.integrations.torch.sites import Site
from mpfast.integrations.torch.skeletons import skeleton_of
from mpfast.integrations.torch.whole_models import team
from mpfast.models import Budget, installed_version, provenance_of, write_reconstructed
from mpfast.support import (
    InvalidValueError,
    check_flag,
    check_path,
    claimed_directory,
    front_door,
    warn_caller,
)

__all__ = ["REPORT_FILE", "ReconstructedCheckpoint", "reconstruct_checkpoint"]

#: Name of the report that is written beside the weights.
REPORT_FILE = "reconstruction.json"


@dataclass(frozen=True)
class ReconstructedCheckpoint:
    """A checkpoint whose layers were compressed, written.

    Attributes
    ----------
    out : Path
        The directory.
    budget : Budget
        Entries pruned per tensor, the content hash of each dense and of each written one; also in ``budget.json``.
    report : tuple of LayerFit
        A row for each matrix, by its name in the model; also in ``reconstruction.json``.
    skipped : dict of str to str
        Matrices in the blocks that were left alone, and why.
    not_copied : tuple of str
        Files beside the weights that `out` lacks, and why.
    """

    out: Path
    budget: Budget
    report: tuple[LayerFit, ...]
    skipped: dict[str, str]
    not_copied: tuple[str, ...] = ()


@front_door
def reconstruct_checkpoint(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    batches: Iterable[Any],
    *,
    sparsity: float | None = None,
    pattern: str | None = None,
    rank: int | None = None,
    budget: Budget | None = None,
    bits: int | None = None,
    group: int | None = 64,
    method: str = "obs",
    refit: int = 4,
    damping: float | None = None,
    include: NameFilter | None = None,
    exclude: NameFilter | None = None,
    blocks: str | Sequence[str] = "auto",
    sequential: bool = True,
    toward: str = "own",
    heldout: float = 0.25,
    threads: int | None = None,
    overwrite: bool = False,
    restart: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> ReconstructedCheckpoint:
    """Compress the linear layers in the blocks of a checkpoint that may be larger than memory; see `reconstruct_model`.

    The weights that are written are, bit by bit, those of `reconstruct_model` on the loaded model, rounded to the types
    that they are stored in. In memory there are one block, the moments of its inputs, one or two sets of hidden states,
    what the blocks are called with beside these (attention masks), and what one batch takes to run; weights outside the
    blocks are views of the mapped files. Everything runs on the CPU.

    Every finished block is kept in a file in ``.OUT.mpfast-blocks`` beside `out`. Who is stopped, by a signal or an
    error, calls the function again with the same arguments: it goes on with the next block, to the same bits. The
    hidden states run through the finished blocks again for that, which takes a fraction of the time. The directory is
    removed in the end.

    Parameters
    ----------
    model : path
        A directory that `save_pretrained` wrote, with files of safetensors, or a Hugging Face id in the local cache.
        Nothing is fetched, and no code that comes with a model is run. It is built by the class that its configuration
        names, in the type that this names. It is never changed.
    out : path
        Directory to write: files as those of the source, ``masks.safetensors``, ``budget.json``,
        ``reconstruction.json`` with the report, copies of the files beside the weights. `mpfast.verify` checks it.
    batches : iterable
        As in `reconstruct_model`.
    sparsity, pattern, rank, budget, bits, group, method, refit, damping
        As in `reconstruct_model`. Rows of a budget are called as the tensors of the checkpoint, or as those of the
        model. Where several of the former make up one of the latter (the experts of a mixture in transformers 5), what
        goes of them goes of the whole.
    include, exclude : optional
        Names of tensors as they are called in the model.
    blocks, sequential, toward, heldout, threads
        As in `reconstruct_model`.
    overwrite : bool
        Replace `out` if mpfast wrote all that it holds, as in `mpfast.prune`.
    restart : bool
        Discard what another, unfinished run has left beside `out`. Without it, that is an error.
    progress : function, optional
        Called after each block with the blocks done and the blocks in all.

    Returns
    -------
    ReconstructedCheckpoint

    Raises
    ------
    ImportError
        There is no transformers.
    FileNotFoundError, FileExistsError, OSError
        There is no such model; `out` exists, or an unfinished run with other arguments, another model, other batches or
        other versions of mpfast, PyTorch or transformers has left its work; or something cannot be written.
    ValueError, TypeError
        As `reconstruct_model`. Or the model has no configuration of transformers, is quantised, has tensors that
        nothing in the checkpoint can be made into, or what its blocks compute beside hidden states is used by later
        ones.
    CheckpointError
        The checkpoint is malformed, or was changed meanwhile.

    Warns
    -----
    UserWarning
        Of matrices that have seen fewer than 4 inputs per dimension, or none.
    """
    options = FitOptions(
        sparsity, pattern, rank, budget, bits, group, method, refit, damping, sequential, toward, heldout, team(threads)
    )
    check_flag(overwrite, "overwrite")
    check_flag(restart, "restart")
    check_path(out, "out")
    checkpoint = open_checkpoint(check_path(model, "model"))
    folder = home_directory(checkpoint)
    if folder is None:
        raise InvalidValueError("", f"{checkpoint.source}: is no directory of a model of transformers")
    if (name := quantised_weight(checkpoint)) is not None:
        raise InvalidValueError("model", f"is quantised ({name})", "dequantise it first")
    check_writable(checkpoint)
    source = SourceFiles(files_behind(checkpoint))
    given = list(batches)
    if not given:
        raise InvalidValueError("batches", "are empty")
    skeleton = skeleton_of(folder, checkpoint)
    found = blocks_of(skeleton.model, blocks)
    stored_counts = options.stored_counts()
    counts = None if stored_counts is None else skeleton.names.counts(stored_counts)
    roles = TorchModules(skeleton.model).roles
    chosen, skipped = chosen_sites(skeleton.model, roles, found, include, exclude, options, counts)
    skeleton.check(found, {prefix: {site.tensor for site in sites} for prefix, sites in chosen.items()})
    asked = _asked(options, blocks, chosen)
    run = {
        **_identity(folder, checkpoint.source, given),
        **asked,
        "counts": None if counts is None else {site.tensor: counts[site.tensor] for site in _all(chosen)},
    }
    with claimed_directory(out, overwrite=overwrite, sources=files_behind(model, checkpoint)) as place:
        kept = KeptBlocks(place.target, run, restart)
        try:
            order = BlockByBlock(skeleton, found, chosen, options, counts, kept).run(given, progress)
        except BaseException:
            if not len(kept):
                kept.discard()
            raise
        source.check()
        records = [kept.record(number) for number in range(len(order))]
        report = tuple(row for record in records for row in record.report)
        for record in records:
            skipped |= record.skipped
        if not report:
            raise InvalidValueError("batches", "have left all matrices without inputs")
        provenance = provenance_of(model, **asked, data=run["data"])
        document = {
            "schema": "mpfast.reconstruction/1",
            "provenance": provenance.to_dict(),
            "layers": [asdict(row) for row in report],
            "skipped": skipped,
        }
        written = KeptTensors(kept, records)
        pruned, left = write_reconstructed(
            checkpoint,
            place,
            written.inputs(roles_of(checkpoint), {site.tensor: site for site in _all(chosen)}),
            written.tensor,
            method=options.method,
            sparsity=options.share,
            pattern=options.wanted_pattern,
            provenance=provenance,
            documents={REPORT_FILE: json.dumps(document, indent=1, allow_nan=False) + "\n"},
        )
        kept.discard()
    warn_caller("reconstruct_checkpoint", few_inputs(report))
    return ReconstructedCheckpoint(Path(out), pruned, report, skipped, left)


def _all(chosen: Mapping[str, list[Site]]) -> list[Site]:
    return [site for sites in chosen.values() for site in sites]


def _asked(options: FitOptions, blocks: str | Sequence[str], chosen: Mapping[str, list[Site]]) -> dict[str, Any]:
    """What is asked for, as JSON holds it. Of patterns of names it is what they have chosen that counts."""
    named = asdict(options)
    for own in ("budget", "threads"):  # a budget by its counts; the result does not depend on the threads of the core
        del named[own]
    return {
        **named,
        "pattern": options.wanted_pattern,
        "blocks": blocks if isinstance(blocks, str) else list(blocks),
        "matrices": [site.name for site in _all(chosen)],
    }


def _identity(folder: Path, source: str, batches: Sequence[Any]) -> dict[str, Any]:
    """Which model, which batches, and which versions of what computes."""
    data = hashlib.sha256()
    for batch in batches:
        _add(data, batch)
    return {
        "schema": "mpfast.reconstruction-run/1",
        "model": content_sample_hash(source),
        "configuration": hashlib.sha256((folder / "config.json").read_bytes()).hexdigest(),
        "data": f"sha256:{data.hexdigest()}",
        "mpfast": installed_version(),
        "torch": torch.__version__,
        "transformers": importlib.import_module("transformers").__version__,
    }


def _add(state: Any, value: Any) -> None:
    """Add a batch, or what is in it, to a hash."""
    if isinstance(value, torch.Tensor):
        state.update(f"{value.dtype}{tuple(value.shape)}".encode())
        state.update(stored(value, "batches").tobytes())
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            state.update(f"{key}=".encode())
            _add(state, entry)
    elif isinstance(value, (tuple, list)):
        state.update(f"{len(value)}:".encode())
        for entry in value:
            _add(state, entry)
    else:
        state.update(repr(value).encode())
