"""What `resize` writes: an adapter with other factors, and everything that depends on their ranks."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from mpfast.checkpoints import (
    ADAPTER_CONFIG,
    METADATA_KEY,
    AdapterSettings,
    Checkpoint,
    SafetensorsWriter,
    TensorInfo,
    Update,
    copy_companions,
    files_of,
    index_name,
    packed_settings,
    settings_beside,
    shards_of,
    stored_bits,
    unpacked_settings,
    updated_modules,
)
from mpfast.models.resized_factors import ResizedUpdate, resized

__all__ = ["write_resized"]

# PEFT's name of the file, where the source is none of safetensors.
_PEFT_FILE = "adapter_model.safetensors"
# Hashes of the tensors that kohya's scripts and the model specification keep in a header.
_HASHES = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")
# What kohya's own script writes where ranks differ.
_SEVERAL = "Dynamic"
# Parts of a pipeline, as diffusers calls them. Releases before 0.42 take one alpha for all layers where neither tensors
# nor the entry in the header say otherwise, and with other ranks the scales would be others.
_DIFFUSERS_PARTS = ("transformer.", "transformer_2.", "unet.", "text_encoder.", "text_encoder_2.", "text_encoder_3.")


def write_resized(
    checkpoint: Checkpoint, updates: Mapping[str, Update], ranks: Mapping[str, int], staging: Path
) -> tuple[list[ResizedUpdate], tuple[str, ...]]:
    """Write an adapter; the factors of one update are in memory at a time.

    Parameters
    ----------
    checkpoint
        The source.
    updates
        All that it holds.
    ranks
        Of those that are resized, by their names.
    staging
        Where to write.

    Returns
    -------
    reports : list of ResizedUpdate
    left : tuple of str
        What lies beside the weights and was not copied, and why.
    """
    beside = settings_beside(checkpoint) if any(updates[name].settings is not None for name in ranks) else None
    files = files_of(checkpoint)
    if beside is not None and not shards_of(checkpoint):
        files = {_PEFT_FILE: [info.name for info in checkpoint.tensors]}
    infos = _resized_infos(checkpoint, updates, ranks)
    headers = {shard.path.name: shard.metadata for shard in shards_of(checkpoint)}
    home = {name: file for file, names in files.items() for name in names}
    reports = []
    with contextlib.ExitStack() as stack:
        writers = {}
        for file, names in files.items():
            header = _header(headers.get(file, {"format": "pt"}), updates, ranks, checkpoint)
            writer = SafetensorsWriter.create(staging / file, [infos[name] for name in names], header)
            writers[file] = stack.enter_context(writer)
        for name, rank in ranks.items():
            report, tensors = resized(updates[name], checkpoint.read, rank)
            reports.append(report)
            for tensor, entries in tensors.items():
                writers[home[tensor]].write(tensor, entries)
        for writer in writers.values():
            for name in writer.missing:
                writer.write(name, stored_bits(checkpoint, name))
    left = copy_companions(checkpoint, staging, leave_out=(ADAPTER_CONFIG,))
    if beside is not None:
        values = beside.with_ranks(*_ranks_of_modules(checkpoint, updates.values(), ranks))
        (staging / ADAPTER_CONFIG).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    if len(files) > 1:
        size = sum((staging / file).stat().st_size for file in files)
        index = {"metadata": {"total_size": size}, "weight_map": home}
        (staging / index_name(checkpoint)).write_text(json.dumps(index, indent=1), encoding="utf-8")
    return reports, left


def _resized_infos(
    checkpoint: Checkpoint, updates: Mapping[str, Update], ranks: Mapping[str, int]
) -> dict[str, TensorInfo]:
    """All tensors by name, in the shapes that they are to have."""
    infos = {info.name: info for info in checkpoint.tensors}
    for name, rank in ranks.items():
        A, B = (updates[name].factors[word] for word in ("A", "B"))
        rows = updates[name].count * rank
        infos[A.name] = TensorInfo(A.name, (rows, *A.shape[1:]), A.dtype)
        infos[B.name] = TensorInfo(B.name, (B.shape[0], rows, *B.shape[2:]), B.dtype)
    return infos


def _ranks_of_modules(
    checkpoint: Checkpoint, updates: Iterable[Update], ranks: Mapping[str, int], prefix: str = ""
) -> tuple[dict[str, int], list[str]]:
    """Ranks of the modules whose update is resized, and the modules that have another."""
    wanted = {
        update.module: ranks[update.name]
        for update in updates
        if update.name in ranks and update.module.startswith(prefix)
    }
    others = (module for module in updated_modules(checkpoint) if module.startswith(prefix))
    return wanted, [module for module in others if module not in wanted]


def _header(
    metadata: Mapping[str, str], updates: Mapping[str, Update], ranks: Mapping[str, int], checkpoint: Checkpoint
) -> dict[str, str]:
    """The text entries of a file, without the hashes of what it held."""
    found = {key: value for key, value in metadata.items() if key not in _HASHES}
    if "ss_network_dim" in found:
        found |= _kohya_entries(updates, ranks, checkpoint)
    settings = unpacked_settings(metadata) or _settings_of_units(checkpoint, updates.values(), ranks)
    if settings:
        found[METADATA_KEY] = packed_settings(
            {
                prefix: one.with_ranks(*_ranks_of_modules(checkpoint, updates.values(), ranks, prefix))
                for prefix, one in settings.items()
            }
        )
    return found


def _kohya_entries(updates: Mapping[str, Update], ranks: Mapping[str, int], checkpoint: Checkpoint) -> dict[str, str]:
    """Rank and alpha of all updates, where they are one."""
    scales = {name: updates[name].scale(checkpoint.read) for name in ranks}
    pairs = {(rank, rank * (scales[name] or 0.0)) for name, rank in ranks.items()}
    dims, alphas = ({str(pair[at]) for pair in pairs} for at in (0, 1))
    return {
        "ss_network_dim": dims.pop() if len(dims) == 1 else _SEVERAL,
        "ss_network_alpha": alphas.pop() if len(alphas) == 1 else _SEVERAL,
    }


def _settings_of_units(
    checkpoint: Checkpoint, updates: Iterable[Update], ranks: Mapping[str, int]
) -> dict[str, AdapterSettings]:
    """What diffusers must be told where a file has no alphas and its ranks are to differ: that all scales are 1."""
    found = {}
    members = list(updates)
    for prefix in _DIFFUSERS_PARTS:
        here = [update for update in members if update.module.startswith(prefix)]
        plain = all(not update.alpha and update.settings is None for update in here)
        if plain and len({ranks.get(update.name, update.rank) for update in here}) > 1:
            modules = {update.module.removeprefix(prefix): update.rank for update in here}
            values = {
                "r": 1,
                "lora_alpha": 1,
                "rank_pattern": modules,
                "alpha_pattern": modules,
                "target_modules": sorted(modules),
                "use_dora": any(update.magnitude for update in here),
                "lora_bias": any(info.name.endswith("lora_B.bias") for info in checkpoint.tensors),
            }
            found[prefix] = AdapterSettings(values, prefix)
    return found
