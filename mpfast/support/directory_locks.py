"""Locks beside directories that are written: held by one process at a time, with a note of who holds them."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from mpfast.support.json_records import parse_json

__all__ = ["held_lock"]

# What a file system says that has no such locks.
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
# Windows locks bytes against reading, too: one that lies beyond all that is written.
_LOCKED_BYTE = 1 << 30


@contextlib.contextmanager
def held_lock(out: Any, path: Path) -> Iterator[None]:
    """Hold the lock file `path` of the output `out`; FileExistsError at once where somebody else does."""
    stream = _locked_stream(out, path)
    try:
        stream.seek(0)
        stream.truncate()
        now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
        stream.write(json.dumps(holder).encode())
        stream.flush()
        yield
    finally:
        # Removed while it is held: who has opened it by then finds that it is no longer the file of this name.
        with contextlib.suppress(OSError):
            path.unlink()
        with contextlib.suppress(OSError):
            _unlock(stream)
        stream.close()


def _locked_stream(out: Any, path: Path) -> IO[bytes]:
    while True:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOFOLLOW", 0)
        stream = os.fdopen(os.open(path, flags, 0o644), "r+b")
        try:
            if not _try_lock(stream):
                raise FileExistsError(f"{out}: is being written by {_holder(stream)}; wait, or name another directory")
            with contextlib.suppress(OSError):
                here, there = os.fstat(stream.fileno()), path.stat()
                if (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino):
                    return stream
        except BaseException:
            stream.close()
            raise
        stream.close()


if sys.platform == "win32":
    import msvcrt

    def _try_lock(stream: IO[bytes]) -> bool:
        stream.seek(_LOCKED_BYTE)
        try:
            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(stream: IO[bytes]) -> None:
        stream.seek(_LOCKED_BYTE)
        msvcrt.locking(stream.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _try_lock(stream: IO[bytes]) -> bool:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            return not _holder_is_alive(stream)
        return True

    def _unlock(stream: IO[bytes]) -> None:
        # By hand: a forked child shares the lock and may outlive this process.
        fcntl.flock(stream, fcntl.LOCK_UN)


def _noted(stream: IO[bytes]) -> dict[str, Any]:
    try:
        stream.seek(0)
        holder = parse_json(stream.read(4096))
    except (OSError, ValueError):  # its holder has not written it yet
        return {}
    return holder if isinstance(holder, dict) else {}


def _holder(stream: IO[bytes]) -> str:
    holder = _noted(stream)
    if not holder:
        return "another process"
    return f"process {holder.get('pid')} on {holder.get('host')} since {holder.get('since')}"


def _holder_is_alive(stream: IO[bytes]) -> bool:
    """Where the file system has no locks: by what the file says. Of another machine's process nothing is known."""
    holder = _noted(stream)
    if not isinstance(holder.get("pid"), int):
        return False
    if holder.get("host") != socket.gethostname():
        return True
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
