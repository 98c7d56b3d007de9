"""Reader for GGUF files: memory-mapped, decoded tensor by tensor. Blocks are decoded by the gguf package.

The package is given arrays whose sizes are checked here, and never the file.
"""

from __future__ import annotations

import importlib
import mmap
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast.checkpoints.base import NoTensor, OutputPart, Role, TensorInfo
from mpfast.checkpoints.fused import consecutive
from mpfast.checkpoints.gguf_header import Entry, read_header
from mpfast.checkpoints.mapped_pages import drop_pages, fetch_pages
from mpfast.support import CheckpointError, package_missing, short

__all__ = ["GgufFile"]

_SOURCE = "GGUF name"
_EMBEDDINGS = ("token_embd.weight", "position_embd.weight", "token_types.weight")
_LAYER = re.compile(r"((enc|dec)\.)?blk\.\d+\.(?P<part>[a-z0-9_]+)\.weight")
# What is decoded at a time, in entries: the package's own copies are some ten times as large.
_PANEL = 1 << 20
# Uniform grids whose blocks begin with their step in float16. Not Q4_0 and Q5_0: they cut the largest values of one
# sign, so that a third of what rounding should add to the variance is there (0.33 and 0.39 of it; 1.12, 1.13 and 0.95
# in Q4_1, Q5_1 and Q8_0, of 512 x 1024 Gaussian weights).
_STEP_FIRST = frozenset({"Q4_1", "Q5_1", "Q8_0"})


class GgufFile:
    """One GGUF file, its tensors dequantised to float32 as they are read.

    Parameters
    ----------
    path : path
        The file. It stays memory-mapped while this object or an array it returned is alive.

    Attributes
    ----------
    header : Header
        Its settings, and where its tensors are.

    Raises
    ------
    ImportError
        The file has blocks to decode, and gguf is not installed.
    CheckpointError
        The file is malformed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as stream:
            if os.fstat(stream.fileno()).st_size == 0:
                raise CheckpointError(f"{path}: is empty; is the download complete?", offset=0)
            self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self.header = header = read_header(path, self._map)
        self._entries = {entry.name: entry for entry in header.entries}
        self.config: Mapping[str, Any] | None = None
        self.others = _other_parts(header.settings)
        self._infos = tuple(_info(entry, header.settings) for entry in header.entries)
        self._quants: Any = None
        packed = next((entry for entry in header.entries if not entry.type.plain), None)
        if packed is not None:
            try:
                self._quants = importlib.import_module("gguf.quants")
                self._types = importlib.import_module("gguf.constants").GGMLQuantizationType
            except ImportError:
                raise package_missing(f"{path}: decoding {packed.type.name}", "gguf", extra="gguf") from None

    @property
    def source(self) -> str:
        """The path of the file."""
        return str(self._path)

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """All tensors in the order of the file, in NumPy's order of axes."""
        return self._infos

    def read(self, name: str) -> NDArray[Any]:
        """Return one tensor, read-only; see `Checkpoint.read`.

        Raises
        ------
        KeyError
            No tensor has this name.
        CheckpointError
            The installed gguf package cannot decode its type.
        """
        entry = self._entries[name]
        if entry.type.plain:
            values = self._bytes(entry).view(entry.type.plain).reshape(entry.shape)
        else:
            values = self._decoded(entry)
            values.flags.writeable = False
        return values

    def raw(self, begin: int, end: int) -> memoryview:
        """Return bytes of the file as they are stored; they are copied, for no view is to keep it mapped."""
        return memoryview(self._map[begin:end])

    def rounding_variance(self, name: str) -> float | None:
        """Variance of the rounding of one entry, for `quantization_noise`; None where rounding is not known to add so.

        0 of a tensor that is stored plain.
        """
        entry = self._entries[name]
        if entry.type.plain:
            return 0.0
        if entry.type.name not in _STEP_FIRST:
            return None
        blocks = self._bytes(entry).reshape(-1, entry.type.bytes)
        steps = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float64)
        return float(np.mean(steps**2) / 12) if steps.size else 0.0

    def prefetch(self, name: str) -> None:
        """Begin to read a tensor's pages."""
        fetch_pages(self._map, self._entries[name].begin, self._entries[name].end)

    def release(self, name: str) -> None:
        """Drop a tensor's pages from this process; the system's cache of the file may keep them."""
        drop_pages(self._map, self._entries[name].begin, self._entries[name].end)

    def _bytes(self, entry: Entry) -> NDArray[np.uint8]:
        if entry.begin == entry.end:
            return np.frombuffer(b"", np.uint8)
        stored = np.frombuffer(self._map, np.uint8, count=entry.end - entry.begin, offset=entry.begin)
        # An alignment below the width of an entry is allowed.
        return stored.copy() if entry.type.plain and entry.begin % 8 else stored

    def _decoded(self, entry: Entry) -> NDArray[np.float32]:
        blocks = self._bytes(entry).reshape(-1, entry.type.bytes)
        values = np.empty((len(blocks), entry.type.entries), np.float32)
        step = max(1, _PANEL // entry.type.entries)
        try:
            kind = self._types[entry.type.name]
            for start in range(0, len(blocks), step):
                with np.errstate(all="ignore"):  # scales may be infinite: whoever uses the values says so
                    values[start : start + step] = self._quants.dequantize(blocks[start : start + step], kind)
        except MemoryError:
            raise
        except Exception as error:  # KeyError, NotImplementedError or another, by the version of gguf
            raise CheckpointError(
                f"{self._path}: tensor {short(entry.name)}: the installed gguf does not decode {entry.type.name}: "
                f"{error!r}; update it",
                tensor=entry.name,
            ) from None
        return values.reshape(entry.shape)


def _other_parts(settings: Mapping[str, Any]) -> tuple[NoTensor, ...]:
    parts = settings.get("split.count")
    if not isinstance(parts, int) or parts <= 1:
        return ()
    reason = f"this file is one of {parts} parts of a model: pass them one by one, or merge them first"
    return (NoTensor("split.count", "the other parts", reason, lost=True),)


def _info(entry: Entry, settings: Mapping[str, Any]) -> TensorInfo:
    stored = "" if entry.type.plain else entry.type.name
    return TensorInfo(entry.name, entry.shape, entry.type.reported, _role(entry, settings), stored=stored)


def _role(entry: Entry, settings: Mapping[str, Any]) -> Role | None:
    """What the format's names say of a tensor; None where they say no more than those of other files."""
    if entry.type.reported.startswith("int"):
        return None
    if len(entry.shape) == 2:
        if entry.name in _EMBEDDINGS:
            return Role("embedding", (1,), source=_SOURCE)
        if entry.name == "output.weight":
            return Role("head", (1,), source=_SOURCE)
    found = _LAYER.fullmatch(entry.name)
    part = "" if found is None else found["part"]
    if len(entry.shape) == 3 and part.endswith("_exps"):
        # Gate first, up second.
        half = entry.shape[1] // 2
        merged = part == "ffn_gate_up_exps" and entry.shape[1] % 2 == 0
        halves = consecutive(("gate", half), ("up", half)) if merged else ()
        return Role("experts", (2,), source=_SOURCE, parts=halves)
    if len(entry.shape) == 2 and part == "attn_qkv":
        return Role("linear", (1,), source=_SOURCE, parts=_heads(entry.shape[0], settings))
    return None


def _heads(rows: int, settings: Mapping[str, Any]) -> tuple[OutputPart, ...]:
    """Queries, keys and values of a fused projection, where the settings account for all of its rows."""
    prefix = f"{settings.get('general.architecture')}."

    def setting(name: str, otherwise: Any) -> Any:
        value = settings.get(prefix + name)
        return otherwise if value is None else value

    heads = setting("attention.head_count", 0)
    width = setting("embedding_length", 0)
    numbers = [heads, width, pairs := setting("attention.head_count_kv", heads)]
    if not all(type(number) is int and number > 0 for number in numbers):
        return ()
    key = setting("attention.key_length", width // heads)
    value = setting("attention.value_length", width // heads)
    sizes = (heads * key, pairs * key, pairs * value)
    return consecutive(*zip(("query", "key", "value"), sizes, strict=True)) if sum(sizes) == rows else ()
