"""Results of finished blocks in files beside the output, for whoever is stopped and starts again.

Beside ``out`` lies ``.out.mpfast-blocks`` while it is worked on: ``run.json``, which says what is done to what, and a
file of safetensors for each finished block, written whole or not at all. The same run started again goes on from there;
another one does not touch it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.checkpoints import SafetensorsFile, SafetensorsWriter, TensorInfo, packed
from mpfast.integrations.torch.layer_fits import LayerFit
from mpfast.support import CheckpointError, parse_json, replaced_file, write_text_atomically

__all__ = ["BlockRecord", "KeptBlocks", "StoredTensor"]

SUFFIX = ".mpfast-blocks"
RUN_FILE = "run.json"
_WEIGHTS, _MASK = "weights:", "mask:"


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a checkpoint as it is to be.

    Attributes
    ----------
    dtype : str
        Its type, as in `TensorInfo`.
    weights : array
        In its shape; bits of types that NumPy lacks.
    mask : array of bool or None
        True = kept; None: all are.
    """

    dtype: str
    weights: NDArray[Any]
    mask: NDArray[np.bool_] | None


@dataclass(frozen=True)
class BlockRecord:
    """What has become of a block.

    Attributes
    ----------
    report : list of LayerFit
        Its rows.
    skipped : dict of str to str
        Matrices that were left alone, and why.
    fits : dict of str to LayerFit
        By tensor of the checkpoint, the row of the matrix that it is; only of those that are one.
    dense : str
        Hash of the weights that it had.
    """

    report: list[LayerFit]
    skipped: dict[str, str]
    fits: dict[str, LayerFit]
    dense: str


class KeptBlocks:
    """The finished blocks of a run.

    Parameters
    ----------
    target : Path
        Where the output will be. Whoever writes it must have claimed it.
    run : mapping
        What is done to what, as JSON holds it: that of which a change of anything makes it another run.
    restart : bool
        Whether what another run has left is discarded.

    Raises
    ------
    FileExistsError
        There is the work of another run.
    """

    def __init__(self, target: Path, run: Mapping[str, Any], restart: bool) -> None:
        self._folder = target.with_name(f".{target.name}{SUFFIX}")
        text = json.dumps(run, sort_keys=True, allow_nan=False)
        self._key = hashlib.sha256(text.encode()).hexdigest()
        noted = self._folder / RUN_FILE
        if restart and self._folder.is_dir() and not self._folder.is_symlink():
            shutil.rmtree(self._folder)
        self._folder.mkdir(exist_ok=True)
        for leftover in self._folder.glob(".*.tmp"):  # of a file that was being written
            leftover.unlink()
        if any(self._folder.iterdir()):
            self._check_that_it_is_ours(target, json.loads(text))
        if not noted.exists():
            write_text_atomically(noted, text)

    def _check_that_it_is_ours(self, target: Path, run: Mapping[str, Any]) -> None:
        done = len(list(self._folder.glob("*.safetensors")))
        try:
            before = parse_json((self._folder / RUN_FILE).read_bytes())
        except (OSError, ValueError):
            before = None
        if before == run:
            return
        what = "what is no work of this version"
        if isinstance(before, dict):
            other = sorted(key for key in {*before, *run} if before.get(key) != run.get(key))
            what = f"{done} finished blocks of another run ({', '.join(other)} differ)"
        raise FileExistsError(
            f"{target}: beside it lies {self._folder.name} with {what}; run that one to its end, name another "
            "directory, or discard it: restart=True"
        )

    def _path(self, number: int) -> Path:
        return self._folder / f"block-{number:05d}.safetensors"

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and self._path(number).is_file()

    def __len__(self) -> int:
        return len(list(self._folder.glob("block-*.safetensors")))

    def write(self, number: int, tensors: Mapping[str, StoredTensor], record: BlockRecord) -> None:
        """Keep a finished block."""
        arrays: dict[str, tuple[str, NDArray[Any]]] = {}
        for name, tensor in tensors.items():
            arrays[_WEIGHTS + name] = tensor.dtype, tensor.weights
            if tensor.mask is not None:
                arrays[_MASK + name] = "uint8", packed(tensor.mask)
        infos = [TensorInfo(name, array.shape, dtype) for name, (dtype, array) in arrays.items()]
        metadata = {"run": self._key, "record": json.dumps(asdict(record))}
        with (
            replaced_file(self._path(number)) as temporary,
            SafetensorsWriter.create(temporary, infos, metadata) as writer,
        ):
            for name, (_, array) in arrays.items():
                writer.write(name, array)

    def record(self, number: int) -> BlockRecord:
        """Return what has become of a finished block."""
        found = parse_json(self._open(number).metadata["record"])
        return BlockRecord(
            [_fit(row) for row in found["report"]],
            found["skipped"],
            {name: _fit(row) for name, row in found["fits"].items()},
            found["dense"],
        )

    def check_source(self, number: int, name: str, dense: str) -> None:
        """Raise CheckpointError unless a block of this name still has the weights that it was fitted with."""
        if self.record(number).dense != dense:
            raise CheckpointError(
                f"{name}: has other weights than when it was compressed; restart=True discards what is there"
            )

    def weights(self, number: int) -> dict[str, tuple[str, NDArray[Any]]]:
        """Return the types and the weights of the tensors of a finished block, views of its file."""
        file = self._open(number)
        return {
            info.name.removeprefix(_WEIGHTS): (info.dtype, file.read(info.name))
            for info in file.tensors
            if info.name.startswith(_WEIGHTS)
        }

    def tensor(self, number: int, name: str) -> StoredTensor:
        """Return one tensor of a finished block; its mask is a copy."""
        file = self._open(number)
        info = next(info for info in file.tensors if info.name == _WEIGHTS + name)
        keep = None
        if any(other.name == _MASK + name for other in file.tensors):
            bits = np.unpackbits(file.read(_MASK + name), count=info.size, bitorder="little")
            keep = bits.view(np.bool_).reshape(info.shape)
        return StoredTensor(info.dtype, file.read(info.name), keep)

    def _open(self, number: int) -> SafetensorsFile:
        try:
            file = SafetensorsFile(self._path(number))
        except CheckpointError as error:
            raise CheckpointError(f"{error}; remove it, and its block is done anew", tensor=error.tensor) from None
        if file.metadata.get("run") != self._key:
            raise CheckpointError(f"{self._path(number)}: is of another run; restart=True discards what is there")
        return file

    def discard(self) -> None:
        """Remove all, once it is of no use any more."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _fit(row: Mapping[str, Any]) -> LayerFit:
    return LayerFit(**{**row, "shape": tuple(row["shape"])})
