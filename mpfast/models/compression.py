"""`compress`: a checkpoint with low-rank factors in the place of matrices, or a LoRA adapter of a difference."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast import _core
from mpfast.arrays import narrowed, wide
from mpfast.checkpoints import (
    Checkpoint,
    Difference,
    Layer,
    NameFilter,
    SafetensorsWriter,
    TensorInfo,
    copy_companions,
    files_of,
    first_reason,
    index_name,
    is_embedding_or_head,
    open_checkpoint,
    select_layers,
    stored,
)
from mpfast.models.layer_report import SkippedTensor, skipped_tensors
from mpfast.spectra import lowrank
from mpfast.support import (
    ConvergenceWarning,
    check_directory,
    front_door,
    staged_directory,
    summary_of_unmet,
    team_size,
    warn_caller,
)

__all__ = ["CompressResult", "FactoredLayer", "compress"]

FACTORS_FORMAT = "mpfast.factors/1"


@dataclass(frozen=True)
class FactoredLayer:
    """A matrix that became two.

    Attributes
    ----------
    name : str
        The tensor in the source.
    shape : (int, int)
        Of the matrix.
    rank : int
        Of the factors.
    energy : float
        Share of the squared Frobenius norm that the factors hold.
    """

    name: str
    shape: tuple[int, int]
    rank: int
    energy: float

    @property
    def entries(self) -> int:
        """Number of entries of both factors."""
        return self.rank * sum(self.shape)


@dataclass(frozen=True)
class CompressResult:
    """What `mpfast.compress` did.

    Attributes
    ----------
    layers : tuple of FactoredLayer
        The matrices that were factored.
    skipped : tuple of SkippedTensor
        Every other tensor, and why it stayed.
    out : Path or None
        The directory written; None for a dry run.
    seconds : float
        Wall time.
    """

    layers: tuple[FactoredLayer, ...]
    skipped: tuple[SkippedTensor, ...]
    out: Path | None
    seconds: float

    @property
    def ratio(self) -> float:
        """Entries of the factors over entries of the matrices that they replace."""
        dense = sum(math.prod(layer.shape) for layer in self.layers)
        return sum(layer.entries for layer in self.layers) / dense if dense else 1.0


@front_door
def compress(
    model: Any,
    out: str | os.PathLike[str] | None = None,
    *,
    rank: int | str = "mp_edge",
    base: Any = None,
    include: NameFilter = None,
    exclude: NameFilter = None,
    embeddings: bool = False,
    seed: int = 0,
    device: str | None = None,
    threads: int | None = None,
    overwrite: bool = False,
) -> CompressResult:
    """Replace matrices by low-rank factors.

    Parameters
    ----------
    model : path, mapping of arrays or module
        As `mpfast.analyze`. It is never changed.
    out : path, optional
        Directory to write. Without `base`: the source's files, in which ``<module>.weight`` of shape (m, n) gives way
        to ``<module>.weight_A`` (m, r) and ``<module>.weight_B`` (r, n), whose product is the truncated matrix; all
        other tensors are as they were. With `base`: a LoRA adapter that PEFT loads. Default: nothing is written.
    rank : int or "mp_edge"
        Singular values kept: at most so many, or those above the Marchenko-Pastur edge.
    base : path, mapping of arrays or module, optional
        The checkpoint that `model` was fine-tuned from: the difference is factored, layer by layer.
    include, exclude
        As `mpfast.analyze`.
    embeddings : bool
        Factor embeddings and the output heads of language models (``lm_head``), too. Not embeddings with `base`.
    seed, device
        As `mpfast.svd`.
    threads : int, optional
        Number of threads.
    overwrite : bool
        Replace `out` if it exists, with all that it holds. One that holds the source or the working directory is
        refused.

    Returns
    -------
    CompressResult

    Raises
    ------
    FileNotFoundError, FileExistsError, OSError
        `model` does not exist, `out` does, or it cannot be written. Nothing half-written is left.
    CheckpointError
        A checkpoint is malformed.
    ValueError, TypeError
        A bad option, nothing to factor, or a layer with NaN or infinities.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> noise, signal = rng.standard_normal((200, 300)), np.outer(np.ones(200), np.ones(300))
    >>> result = compress({"fc.weight": noise + signal})
    >>> result.layers[0].rank
    1
    """
    started = time.perf_counter()
    wanted = lowrank.check_options(rank, None)
    threads = team_size(threads)
    if out is not None:
        check_directory(out, overwrite=overwrite, sources=[model, base])
    checkpoint = open_checkpoint(model)
    reference = None if base is None else open_checkpoint(base)
    layers, skipped, without_effect = select_layers(checkpoint, include, exclude)
    for text in without_effect:
        warn_caller("compress", text)
    difference = None if reference is None else Difference(checkpoint, reference)
    job = _Job(checkpoint, reference, difference, wanted, seed, device, threads, skipped)
    chosen = [layer for layer in layers if job.is_wanted(layer, embeddings)]
    if not chosen:
        raise ValueError(f"compress(): no layer is left to factor{first_reason(skipped)}")
    if out is None:
        done = tuple(found for layer in chosen if (found := job.factored(layer)) is not None)
        factored = tuple(report for report, _, _ in done)
    else:
        with staged_directory(out, overwrite=overwrite) as staging:
            write = job.write_adapter if reference is not None else job.write_factors
            factored = write(chosen, staging)
    warn_caller("compress", summary_of_unmet(job.unmet), ConvergenceWarning)
    if not factored:
        raise ValueError(f"compress(): no layer is worth factoring: {chosen[0].name}: {skipped[chosen[0].name]}")
    return CompressResult(
        layers=factored,
        skipped=skipped_tensors(checkpoint, layers, skipped),
        out=None if out is None else Path(out),
        seconds=time.perf_counter() - started,
    )


Factors = tuple[FactoredLayer, NDArray[Any], NDArray[Any]]


@dataclass
class _Job:
    """Factors layers, and writes what comes of it.

    Attributes
    ----------
    checkpoint, base : Checkpoint
        The model, and what it was tuned from, if anything.
    difference : Difference or None
        Of the two.
    rank, seed, device : optional
        As in `compress`.
    threads : int
    skipped : dict of str to str
        Why a tensor stayed as it was; filled as layers are looked at.
    unmet : dict of str to str
        What of the tolerance of its triplets a layer did not meet, empty if nothing; filled likewise.
    """

    checkpoint: Checkpoint
    base: Checkpoint | None
    difference: Difference | None
    rank: int | str
    seed: int
    device: str | None
    threads: int
    skipped: dict[str, str]
    unmet: dict[str, str] = field(default_factory=dict)

    def is_wanted(self, layer: Layer, embeddings: bool) -> bool:
        """Decide by name, kind and shape; say why not in `skipped`."""
        reason = None
        if self.difference is None and not embeddings and is_embedding_or_head(layer.name, layer.kind):
            reason = "embedding or output head (embeddings=True factors them)"
        elif self.difference is not None and layer.kind == "embedding":
            reason = "embedding: no LoRA layer"
        elif len(layer.tensor_shape) == 3 and layer.kind == "linear":
            reason = "a stack of matrices: pass them one by one"
        elif self.difference is not None:
            if len(layer.tensor_shape) != 2:
                reason = "not a linear layer"
            elif not layer.name.endswith(".weight"):
                reason = "not called <module>.weight"
            else:
                reason = self.difference.why_not(layer.name)
        if reason is not None:
            self.skipped[layer.name] = reason
        return reason is None

    def factored(self, layer: Layer) -> Factors | None:
        """Return the factors A (m, r) and B (r, n); None, with the reason in `skipped`, where they do not pay."""
        tensors = self.checkpoint if self.difference is None else self.difference
        try:
            dense = stored(tensors.read(layer.name), layer.name)
            return self._factored(layer, dense, layer.dtype if self.difference is None else dense.dtype.name)
        finally:
            tensors.release(layer.name)

    def _factored(self, layer: Layer, dense: NDArray[Any], dtype: str) -> Factors | None:
        if self.difference is not None and not dense.any():
            self.skipped[layer.name] = "equal in both checkpoints"
            return None
        matrix = _core.Matrix(dense.reshape(layer.shape), dtype)
        rank = self.rank if isinstance(self.rank, str) else min(self.rank, *layer.shape)
        try:
            left, right, self.unmet[layer.name] = lowrank.factors(
                matrix, rank, seed=self.seed, threads=self.threads, device=self.device
            )
        except lowrank.NothingAboveEdgeError:
            self.skipped[layer.name] = "no singular value above the Marchenko-Pastur edge"
            return None
        except ValueError as error:
            raise ValueError(f"compress(): {layer.name}: {error}") from None
        found = np.square(left.astype(np.float64)).sum(axis=0) * np.square(right.astype(np.float64)).sum(axis=1)
        energy = float(found.sum() / _squared_norm(dense, dtype))
        if self.difference is None and left.shape[1] * sum(layer.shape) >= layer.size:
            self.skipped[layer.name] = f"rank {left.shape[1]} would take more entries than the matrix"
            return None
        return FactoredLayer(layer.name, layer.shape, left.shape[1], energy), left, right

    def write_factors(self, chosen: Sequence[Layer], staging: Path) -> tuple[FactoredLayer, ...]:
        """Write one file for every file of the source; the factors of one file are in memory at a time."""
        wanted = {layer.name: layer for layer in chosen}
        reports: list[FactoredLayer] = []
        weight_map: dict[str, str] = {}
        files = files_of(self.checkpoint)
        infos = {info.name: info for info in self.checkpoint.tensors}
        for file, names in files.items():
            factors = {name: found for name in names if name in wanted and (found := self.factored(wanted[name]))}
            tensors: list[TensorInfo] = []
            for name in names:
                if name in factors:
                    _, left, right = factors[name]
                    tensors.append(TensorInfo(f"{name}_A", left.shape, infos[name].dtype))
                    tensors.append(TensorInfo(f"{name}_B", right.shape, infos[name].dtype))
                else:
                    tensors.append(infos[name])
            listed = {name: {"shape": infos[name].shape, "rank": found[0].rank} for name, found in factors.items()}
            metadata = {"format": "pt", "mpfast": FACTORS_FORMAT, "factors": json.dumps(listed)}
            with SafetensorsWriter.create(staging / file, tensors, metadata) as writer:
                for name in names:
                    if name in factors:
                        _, left, right = factors[name]
                        writer.write(f"{name}_A", _stored_as(left, infos[name].dtype))
                        writer.write(f"{name}_B", _stored_as(right, infos[name].dtype))
                    else:
                        writer.write(name, stored(self.checkpoint.read(name), name))
                        self.checkpoint.release(name)
            weight_map |= {tensor.name: file for tensor in tensors}
            reports += [found[0] for found in factors.values()]
        copy_companions(self.checkpoint, staging)
        if len(files) > 1:
            size = sum((staging / file).stat().st_size for file in files)
            index = {"metadata": {"total_size": size}, "weight_map": weight_map}
            (staging / index_name(self.checkpoint)).write_text(json.dumps(index, indent=1), encoding="utf-8")
        return tuple(reports)

    def write_adapter(self, chosen: Sequence[Layer], staging: Path) -> tuple[FactoredLayer, ...]:
        """Write a LoRA adapter as PEFT stores it: the update of a layer is ``lora_B @ lora_A``."""
        factors = [found for layer in chosen if (found := self.factored(layer)) is not None]
        if not factors:
            return ()
        tensors = []
        for report, left, right in factors:
            module = f"base_model.model.{report.name.removesuffix('.weight')}"
            tensors.append((TensorInfo(f"{module}.lora_A.weight", right.shape, "float32"), right))
            tensors.append((TensorInfo(f"{module}.lora_B.weight", left.shape, "float32"), left))
        with SafetensorsWriter.create(
            staging / "adapter_model.safetensors", [info for info, _ in tensors], {"format": "pt"}
        ) as writer:
            for info, factor in tensors:
                writer.write(info.name, factor.astype(np.float32))
        ranks = {report.name.removesuffix(".weight"): report.rank for report, _, _ in factors}
        largest = max(ranks.values())
        configuration = {
            "peft_type": "LORA",
            "base_model_name_or_path": self.base.source if self.base is not None else None,
            "r": largest,
            "lora_alpha": largest,
            "rank_pattern": ranks,
            "alpha_pattern": ranks,  # alpha = r: the update is applied as it is
            "target_modules": sorted(ranks),
            "lora_dropout": 0.0,
            "bias": "none",
            "inference_mode": True,
        }
        text = json.dumps(configuration, indent=1) + "\n"
        (staging / "adapter_config.json").write_text(text, encoding="utf-8")
        return tuple(report for report, _, _ in factors)


def _stored_as(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    return narrowed(values) if dtype == "bfloat16" else values.astype(dtype)


def _squared_norm(array: NDArray[Any], dtype: str) -> float:
    """Sum of squares in fp64, a few rows at a time; bfloat16 by its bits."""
    rows = array.reshape(array.shape[0], -1)
    step = max(1, (1 << 22) // rows.shape[1])
    pieces = (wide(rows[i : i + step], dtype) for i in range(0, len(rows), step))
    return sum(float(np.square(piece).sum()) for piece in pieces)
