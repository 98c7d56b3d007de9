"""Results of finished blocks in files beside the output, for whoever is stopped and starts again.

Beside ``out`` lies ``.out.mpfast-blocks`` while it is worked on: ``run.json``, which says what is done to what, and a
directory for each block. In that there are files of safetensors, one for what was fitted together, and, when all of
them are written, ``record.json`` with their hashes and its own. The same run started again goes on from there; another
one does not touch it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.checkpoints import SafetensorsFile, SafetensorsWriter, TensorInfo, packed
from mpfast.integrations.torch.layer_fits import LayerFit
from mpfast.support import CheckpointError, parse_json, replaced_file, write_text_atomically

__all__ = ["BlockRecord", "KeptBlocks", "StoredTensor", "UnfinishedBlock"]

SUFFIX = ".mpfast-blocks"
RUN_FILE = "run.json"
RECORD_FILE = "record.json"
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
        self._sound: set[Path] = set()
        text = json.dumps(run, sort_keys=True, allow_nan=False)
        self._key = hashlib.sha256(text.encode()).hexdigest()
        noted = self._folder / RUN_FILE
        if restart and self._folder.is_dir() and not self._folder.is_symlink():
            shutil.rmtree(self._folder)
        if self._folder.is_symlink() or (self._folder.exists() and not self._folder.is_dir()):
            raise FileExistsError(f"{self._folder}: is no directory, and blocks are to lie there; move it away")
        self._folder.mkdir(exist_ok=True)
        for leftover in self._folder.glob(".*.tmp"):  # of a file that was being written
            leftover.unlink()
        if any(self._folder.iterdir()):
            self._check_that_it_is_ours(target, json.loads(text))
        if not noted.exists():
            write_text_atomically(noted, text)

    def _check_that_it_is_ours(self, target: Path, run: Mapping[str, Any]) -> None:
        try:
            before = parse_json((self._folder / RUN_FILE).read_bytes())
        except (OSError, ValueError):
            before = None
        if before == run:
            return
        what = "what is no work of this version"
        if isinstance(before, dict):
            other = sorted(key for key in {*before, *run} if before.get(key) != run.get(key))
            what = f"{len(self)} finished blocks of another run ({', '.join(other)} differ)"
        raise FileExistsError(
            f"{target}: beside it lies {self._folder.name} with {what}; run that one to its end, name another "
            "directory, or discard it: restart=True"
        )

    def _block(self, number: int) -> Path:
        return self._folder / f"block-{number:05d}"

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and (self._block(number) / RECORD_FILE).is_file()

    def __len__(self) -> int:
        return len(list(self._folder.glob(f"block-*/{RECORD_FILE}")))

    def begin(self, number: int) -> UnfinishedBlock:
        """Start on a block; what an earlier try has left of it goes."""
        folder = self._block(number)
        if folder.is_dir():
            shutil.rmtree(folder)
        folder.unlink(missing_ok=True)
        folder.mkdir()
        return UnfinishedBlock(folder, self._key)

    def record(self, number: int) -> BlockRecord:
        """Return what has become of a finished block."""
        found = self._noted(number)
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
        """Return the types and the weights of the tensors of a finished block, views of its files."""
        return {
            info.name.removeprefix(_WEIGHTS): (info.dtype, file.read(info.name))
            for file in self._files(number)
            for info in file.tensors
            if info.name.startswith(_WEIGHTS)
        }

    def tensor(self, number: int, name: str) -> StoredTensor:
        """Return one tensor of a finished block; its mask is a copy."""
        file, info = next(
            (file, info) for file in self._files(number) for info in file.tensors if info.name == _WEIGHTS + name
        )
        keep = None
        if any(other.name == _MASK + name for other in file.tensors):
            bits = np.unpackbits(file.read(_MASK + name), count=info.size, bitorder="little")
            keep = bits.view(np.bool_).reshape(info.shape)
        return StoredTensor(info.dtype, file.read(info.name), keep)

    def _noted(self, number: int) -> Any:
        path = self._block(number) / RECORD_FILE
        try:
            found = parse_json(path.read_bytes())
            if not isinstance(found, dict) or found.pop("hash", None) != _hash_of_record(found):
                raise ValueError("is not as it was written")
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}; remove {path.parent.name}, and it is done anew") from None
        if found.get("run") != self._key:
            raise CheckpointError(f"{self._block(number)}: is of another run; restart=True discards what is there")
        return found

    def _files(self, number: int) -> list[SafetensorsFile]:
        """The files of a finished block, whose bytes were compared with its record once."""
        folder = self._block(number)
        opened = []
        for name, wanted in self._noted(number)["files"].items():
            path = folder / name
            try:
                file = SafetensorsFile(path)
                if path not in self._sound and _hash_of(file) != wanted:
                    raise CheckpointError(f"{path}: holds other weights than were written")
            except (CheckpointError, OSError) as error:
                tensor = getattr(error, "tensor", None)
                raise CheckpointError(f"{error}; remove {folder.name}, and it is done anew", tensor=tensor) from None
            self._sound.add(path)
            opened.append(file)
        return opened

    def discard(self) -> None:
        """Remove all, once it is of no use any more."""
        shutil.rmtree(self._folder, ignore_errors=True)


class UnfinishedBlock:
    """A block that is being fitted: what is finished of it need not be in memory any more.

    Parameters
    ----------
    folder : Path
        Where its files go.
    key : str
        Which run it is of.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self._folder = folder
        self._key = key
        self._files: dict[str, str] = {}

    def write(self, tensors: Mapping[str, StoredTensor]) -> None:
        """Keep tensors that are finished."""
        arrays: dict[str, tuple[str, NDArray[Any]]] = {}
        for name, tensor in tensors.items():
            arrays[_WEIGHTS + name] = tensor.dtype, tensor.weights
            if tensor.mask is not None:
                arrays[_MASK + name] = "uint8", packed(tensor.mask)
        infos = [TensorInfo(name, array.shape, dtype) for name, (dtype, array) in arrays.items()]
        path = self._folder / f"{len(self._files):05d}.safetensors"
        with replaced_file(path) as temporary, SafetensorsWriter.create(temporary, infos, {}) as writer:
            for name, (_, array) in arrays.items():
                writer.write(name, array)
        self._files[path.name] = _hash_of_tensors(zip(infos, (array for _, array in arrays.values()), strict=True))

    def finish(self, record: BlockRecord) -> None:
        """Note what has become of the block; from now on it is finished."""
        noted = {"run": self._key, "files": self._files, **asdict(record)}
        text = json.dumps({**noted, "hash": _hash_of_record(noted)}, allow_nan=False)
        write_text_atomically(self._folder / RECORD_FILE, text)


def _hash_of_record(noted: Mapping[str, Any]) -> str:
    text = json.dumps(noted, sort_keys=True, allow_nan=False)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _hash_of(file: SafetensorsFile) -> str:
    return _hash_of_tensors((info, file.read(info.name)) for info in file.tensors)


def _hash_of_tensors(tensors: Iterable[tuple[TensorInfo, NDArray[Any]]]) -> str:
    """Hash of names, types, shapes and bytes, one tensor after the other."""
    state = hashlib.sha256()
    for info, array in tensors:
        state.update(repr((info.name, info.dtype, tuple(info.shape))).encode())
        state.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return f"sha256:{state.hexdigest()}"


def _fit(row: Mapping[str, Any]) -> LayerFit:
    return LayerFit(**{**row, "shape": tuple(row["shape"])})
