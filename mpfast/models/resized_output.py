"""What `resize` writes: an adapter with other factors, and everything that depends on their ranks."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
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
    packed_settings,
    settings_beside,
    shards_of,
    stored_bits,
    unpacked_settings,
    updated_modules,
    write_index,
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
    plan = _Plan(checkpoint, updates, ranks)
    beside = settings_beside(checkpoint) if any(updates[name].settings is not None for name in ranks) else None
    files = files_of(checkpoint)
    if beside is not None and not shards_of(checkpoint):
        files = {_PEFT_FILE: [info.name for info in checkpoint.tensors]}
    infos, headers = plan.infos(), {shard.path.name: shard.metadata for shard in shards_of(checkpoint)}
    home = {name: file for file, names in files.items() for name in names}
    reports = []
    with contextlib.ExitStack() as stack:
        writers = {}
        for file, names in files.items():
            header = plan.header(headers.get(file, {"format": "pt"}))
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
        text = json.dumps(beside.with_ranks(*plan.modules()), indent=2) + "\n"
        (staging / ADAPTER_CONFIG).write_text(text, encoding="utf-8")
    write_index(checkpoint, staging, files)
    return reports, left


@dataclass(frozen=True)
class _Plan:
    """An adapter, its updates by name, and the ranks that some of them are to have."""

    checkpoint: Checkpoint
    updates: Mapping[str, Update]
    ranks: Mapping[str, int]

    def infos(self) -> dict[str, TensorInfo]:
        """All tensors by name, in the shapes that they are to have."""
        infos = {info.name: info for info in self.checkpoint.tensors}
        for name, rank in self.ranks.items():
            A, B = (self.updates[name].factors[word] for word in ("A", "B"))
            rows = self.updates[name].count * rank
            infos[A.name] = TensorInfo(A.name, (rows, *A.shape[1:]), A.dtype)
            infos[B.name] = TensorInfo(B.name, (B.shape[0], rows, *B.shape[2:]), B.dtype)
            E = self.updates[name].factors.get("E")
            if E is not None:
                infos[E.name] = TensorInfo(E.name, (rows, 1), E.dtype)
        return infos

    def modules(self, prefix: str = "") -> tuple[dict[str, int], list[str]]:
        """Ranks of the modules whose update is resized, and the modules that have another."""
        pairs = ((self.updates[name].module, rank) for name, rank in self.ranks.items())
        wanted = {module: rank for module, rank in pairs if module.startswith(prefix)}
        others = (module for module in updated_modules(self.checkpoint) if module.startswith(prefix))
        return wanted, [module for module in others if module not in wanted]

    def header(self, metadata: Mapping[str, str]) -> dict[str, str]:
        """The text entries of a file, as they are to be, without the hashes of what it held."""
        found = {key: value for key, value in metadata.items() if key not in _HASHES}
        if "ss_network_dim" in found:
            found |= self._kohya_entries()
        settings = unpacked_settings(metadata) or self._settings_of_units()
        if settings:
            values = {prefix: one.with_ranks(*self.modules(prefix)) for prefix, one in settings.items()}
            found[METADATA_KEY] = packed_settings(values)
        return found

    def _kohya_entries(self) -> dict[str, str]:
        """Rank and alpha of all updates, where they are one."""
        scales = ((self.updates[name].scale(self.checkpoint.read), rank) for name, rank in self.ranks.items())
        dims, alphas = (
            {str(rank) for rank in self.ranks.values()},
            {str(rank * (scale or 0.0)) for scale, rank in scales},
        )
        return {
            "ss_network_dim": dims.pop() if len(dims) == 1 else _SEVERAL,
            "ss_network_alpha": alphas.pop() if len(alphas) == 1 else _SEVERAL,
        }

    def _settings_of_units(self) -> dict[str, AdapterSettings]:
        """What diffusers must be told where a file has no alphas and its ranks are to differ: that all scales are 1."""
        found = {}
        for prefix in _DIFFUSERS_PARTS:
            here = [update for update in self.updates.values() if update.module.startswith(prefix)]
            # Of its older names (``processor.to_q_lora``) the module is not the one that is updated.
            plain = all(update.is_unit and update.name == f"{update.module}.lora" for update in here)
            alphas = any(update.alpha or update.settings is not None for update in here)
            if plain and not alphas and len({self.ranks.get(update.name, update.rank) for update in here}) > 1:
                modules = {update.module.removeprefix(prefix): update.rank for update in here}
                values = {
                    "r": 1,
                    "lora_alpha": 1,
                    "rank_pattern": modules,
                    "alpha_pattern": modules,
                    "target_modules": sorted(modules),
                    "use_dora": any(update.magnitude for update in here),
                    "lora_bias": any(info.name.endswith("lora_B.bias") for info in self.checkpoint.tensors),
                }
                found[prefix] = AdapterSettings(values, prefix)
        return found
