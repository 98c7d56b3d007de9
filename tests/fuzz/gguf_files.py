"""GGUF files with settings and tensors that fit each other, or nearly: read, and written with other types."""

from __future__ import annotations

import contextlib
import math
import struct

import mpfast
from mpfast.support import CheckpointError, InvalidValueError

from .hostile_files import MODERATE, Folder, read_all
from .structure import Bytes, patched

__all__ = ["fuzz_gguf"]

# Types by their numbers, the bytes of a block and its entries: F32, Q4_0, Q8_0, F16, BF16, Q4_K, MXFP4, I8.
_BLOCKS = ((0, 4, 1), (2, 18, 32), (8, 34, 32), (1, 2, 1), (30, 2, 1), (12, 144, 256), (39, 17, 32), (24, 1, 1))
_NAMES = ("blk.0.attn_q.weight", "blk.0.attn_qkv.weight", "blk.0.ffn_up_exps.weight", "output.weight", "w" * 65)
_SETTINGS = ("general.alignment", "general.file_type", "split.count", "llama.attention.head_count")


def fuzz_gguf(content: bytes) -> None:
    data = Bytes(content)
    if data.byte() % 4 == 0:
        written = b"GGUF" + data.rest()
    else:
        made = _file(data)
        written = patched(made, data) if data.byte() > 128 else made
    with Folder() as folder:
        path = folder / "w.gguf"
        path.write_bytes(written)
        read_all(path)
        with contextlib.suppress(CheckpointError, InvalidValueError):
            mpfast.quantize(path, folder / "out", format=data.choose(("Q4_0", "Q8_0")))


def _file(data: Bytes) -> bytes:
    """A file whose counts and places fit, most often."""
    values = (struct.pack("<II", 4, 32), struct.pack("<II", 4, data.number() % 2**32), data.take(16))
    settings = [(name, data.choose(values)) for name in (*_SETTINGS, data.text()) if data.byte() % 2]
    names = _NAMES[: 1 + data.byte() % len(_NAMES)]
    count = data.number() % 2**64 if data.byte() > 230 else len(names)
    header = struct.pack("<4sIQQ", b"GGUF", 2 + data.byte() % 2, count, len(settings))
    header += b"".join(_text(name) + value for name, value in settings)
    content = b""
    for name in names:
        kind, width, entries = data.choose(_BLOCKS)
        sizes = [data.choose((256, 256, 32, 64, 33, 0)), *(data.choose((8, 1, 0, 16)) for _ in range(data.byte() % 4))]
        if data.byte() > 230:
            sizes = data.numbers()
        place = data.number() % 2**64 if data.byte() > 240 else len(content)
        known = struct.pack(f"<I{len(sizes)}Q", len(sizes), *(size % 2**64 for size in sizes))
        header += _text(data.text() if data.byte() > 230 else name) + known + struct.pack("<IQ", kind, place)
        stored = data.take(16).ljust(16, b"\x3c") * (abs(math.prod(sizes)) % MODERATE * width // entries // 16 + 16)
        content += stored + bytes(-len(stored) % 32)
    return header + bytes(-len(header) % 32) + content


def _text(text: str) -> bytes:
    content = text.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(content)) + content
