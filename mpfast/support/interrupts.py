"""Long calls into NumPy's LAPACK that Ctrl-C can leave."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mpfast import _core

Result = TypeVar("Result")

__all__ = ["interruptible"]

# Below so many entries a call takes some 20 ms, and needs no thread of its own.
QUICK = 400 * 400


def interruptible(function: Callable[..., Result], matrix: NDArray[np.float64], *options: Any) -> Result:
    """Call ``function(matrix, *options)``, matrix (m, n), so that Ctrl-C ends the wait at once.

    The call then goes on in the background, and its result is dropped.

    Python looks for Ctrl-C between bytecodes, and one call of LAPACK may take minutes. Elsewhere than in the main
    thread, where Ctrl-C does not arrive, this is a plain call; so it is for small matrices, and where a process could
    not exit meanwhile (with another C library than glibc).
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if matrix.size < QUICK or not in_main_thread or not _core.can_exit_during_calls():
        return function(matrix, *options)
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        _core.begin_call()
        try:
            results.append(function(matrix, *options))
        except BaseException as error:
            errors.append(error)
        finally:
            _core.end_call()

    thread = threading.Thread(target=run, name="mpfast-lapack", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # no thread is to be had, or none that need not be waited for
        return function(matrix, *options)
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
