"""Advice to the system about pages of a mapped file."""

from __future__ import annotations

import mmap

__all__ = ["drop_pages", "fetch_pages"]


def fetch_pages(mapped: mmap.mmap, begin: int, end: int) -> None:
    """Begin to read the bytes from ``begin`` to ``end``."""
    _advise(mapped, begin, end, "MADV_WILLNEED")


def drop_pages(mapped: mmap.mmap, begin: int, end: int) -> None:
    """Drop these bytes from this process; the system's cache of the file may keep them."""
    _advise(mapped, begin, end, "MADV_DONTNEED")


def _advise(mapped: mmap.mmap, begin: int, end: int, advice: str) -> None:
    if not hasattr(mmap, advice):  # on Windows
        return
    # Whole pages only: those at the ends hold bytes of the neighbours, too.
    first = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
    length = end // mmap.PAGESIZE * mmap.PAGESIZE - first
    if length > 0:
        mapped.madvise(getattr(mmap, advice), first, length)
