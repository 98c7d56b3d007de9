"""Values built from the bytes of a fuzzer, so that it gets beyond magic bytes, lengths and checksums."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from typing import Any

EXTENTS = (0, 1, 2, 3, 4, 7, 8, 16, 64, 255, 2**16, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64, -1)
TEXTS = ("", "w", "a.weight", "..", "../x", "/", "\0", "\ud800", "\xe9", "x" * 300, "2:4", "0:0", "F32", "inf", "nan")


class Bytes:
    """Takes decisions from a string of bytes, front to back; zeros when it has run out."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def choose(self, options: Any) -> Any:
        return options[self.byte() % len(options)]

    def take(self, count: int) -> bytes:
        self._at += count
        return self._data[self._at - count : self._at]

    def rest(self) -> bytes:
        return self.take(max(len(self._data) - self._at, 0))

    def left(self) -> bool:
        return self._at < len(self._data)

    def number(self) -> int:
        """An extent or the like: often one where something overflows."""
        kind = self.byte()
        if kind < 64:
            return kind % 9
        if kind < 160:
            return EXTENTS[kind % len(EXTENTS)]
        return int.from_bytes(self.take(1 + kind % 9), "little", signed=kind % 2 == 1)

    def numbers(self) -> list[int]:
        kind = self.byte()
        return [self.number() for _ in range(40 if kind == 255 else kind % 5)]

    def text(self) -> str:
        kind = self.byte()
        return TEXTS[kind % len(TEXTS)] if kind < 200 else self.take(kind % 16).decode("latin-1")

    def value(self, depth: int = 0) -> Any:
        """A JSON value."""
        kind = self.byte() % (11 if depth < 3 else 8)
        if kind < 2:
            return self.number()
        if kind < 4:
            return self.text()
        if kind < 8:
            return (None, True, struct.unpack("<d", self.take(8).ljust(8, b"\0"))[0], float("nan"))[kind - 4]
        if kind == 8:
            return self.numbers()
        if kind == 9:
            return [self.value(depth + 1) for _ in range(self.byte() % 4)]
        return {self.text(): self.value(depth + 1) for _ in range(self.byte() % 4)}


def altered(document: Any, data: Bytes) -> Any:
    """The document with some of its fields replaced, removed or added."""
    document = json.loads(json.dumps(document))
    for _ in range(data.byte() % 4):
        at = document
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                break
            key = data.choose(keys)
            if isinstance(at[key], dict | list) and data.byte() % 4:
                at = at[key]
                continue
            action = data.byte() % 8
            if action == 0:
                del at[key]
            elif action == 1 and isinstance(at, dict):
                at[data.text()] = data.value()
            else:
                at[key] = data.value()
            break
    return document


def json_bytes(document: Any, data: Bytes) -> bytes:
    """The document as text; now and then deeply nested, cut, or with a huge number."""
    text = json.dumps(document).encode("utf-8", "surrogatepass")
    kind = data.byte()
    if kind == 255:
        return text[: data.byte()]
    if kind == 254:
        return text.replace(b"1", b"9" * 4300, 1)
    return text.replace(b"null", b"[" * 20_000, 1) if kind == 253 else text


def patched(content: bytes, data: Bytes) -> bytes:
    """The content with some bytes replaced and perhaps its end cut."""
    changed = bytearray(content)
    for _ in range(data.byte() % 6):
        at = int.from_bytes(data.take(2), "little")
        if changed:
            changed[at % len(changed)] = data.byte()
    cut = data.byte()
    return bytes(changed[: -(cut - 200)] if cut > 200 else changed)


def safetensors(document: Any, content: bytes, data: Bytes) -> bytes:
    header = json_bytes(document, data)
    return struct.pack("<Q", len(header)) + header + content


def npy(data: Bytes) -> bytes:
    """A .npy file whose header fits its frame."""
    descr = data.choose(
        ("'<f4'", "'<f8'", "'V0'", "'S0'", "'U0'", "'|O'", "[('a','<f4')]", "'(2,3)f4'", "'<V2'", "'>f4'", "")
    )
    shape = "(" + "".join(f"{n}," for n in data.numbers()) + ")"
    header = f"{{'descr': {descr or data.rest().decode('latin-1')}, 'fortran_order': {data.choose((False, True, 1))}, "
    header += f"'shape': {shape}}}"
    kind = data.byte()
    if kind > 250:
        header = data.choose(("(" * 9000, "-" * 9000, "[" * 100, "1" * 5000, "\0", "'\\x", "{'a': }", "L" * 10))
    framed = header.encode("latin-1", "replace")
    version = (2, 0) if kind % 7 == 6 else (kind % 5 + 1 if kind > 200 else 1, 0)
    length = struct.pack("<H" if version[0] == 1 else "<I", len(framed) & (0xFFFF if version[0] == 1 else 0xFFFFFFFF))
    return b"\x93NUMPY" + bytes(version) + length + framed + bytes(data.choose((0, 4, 16, 24, 64, 96)))


def archive(members: list[tuple[str, bytes]], data: Bytes) -> bytes:
    """A zip archive with checksums that fit, and perhaps some bytes of its records changed."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as packed:
        for name, content in members:
            method = data.choose((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED, zipfile.ZIP_BZIP2))
            packed.writestr(zipfile.ZipInfo(name.encode("utf-8", "replace").decode() or "w"), content, method)
    return patched(stream.getvalue(), data)
