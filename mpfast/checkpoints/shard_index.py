"""The index of a sharded checkpoint: which file holds which tensor."""

from __future__ import annotations

from pathlib import Path

from mpfast.support import CheckpointError, parse_json, plain_name

__all__ = ["WEIGHTS_FILE", "weight_map_of"]

#: What a file of all weights of a model is called.
WEIGHTS_FILE = "model.safetensors"


def weight_map_of(index: Path) -> dict[str, str]:
    """Return the map from tensors to files of an index, each of which is a file beside it.

    Raises
    ------
    CheckpointError
        The index is malformed, or a file is missing.
    """
    try:
        content = parse_json(index.read_bytes())
    except ValueError as error:
        offset = getattr(error, "pos", getattr(error, "start", 0))
        raise CheckpointError(f"{index}: no valid JSON: {error}", offset=offset) from None
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: has no weight_map from tensor names to files")
    for name, file in weight_map.items():
        plain_name(file, index, name)  # one with a directory in it would read files that the user did not name
    for file in dict.fromkeys(weight_map.values()):
        if not (index.parent / file).is_file():
            raise CheckpointError(f"{index}: the shard {file} is missing; is the download complete?")
    return weight_map
