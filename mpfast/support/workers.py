"""Threads that do a caller's work, as many as the system grants."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

__all__ = ["Workers", "side_by_side"]


class Workers:
    """A pool of threads that goes on with fewer where the system grants no more, and with none in the calling thread.

    ``ThreadPoolExecutor`` queues a task before it starts a thread for it and raises when it gets none: a thread that it
    has then still takes the task, and without any nobody does. A task here is run by whoever comes first.

    Parameters
    ----------
    threads
        As many at most.
    """

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="mpfast")
        self._has_threads = False

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(wait=True)

    def submit(self, function: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """Have ``function(*arguments)`` called, before this returns if no thread is to be had."""
        future: Future[Result] = Future()
        untaken = threading.Lock()

        def task() -> None:
            if not untaken.acquire(blocking=False):
                return
            try:
                future.set_result(function(*arguments))
            except BaseException as error:
                future.set_exception(error)

        try:
            self._pool.submit(task)
            self._has_threads = True
        except RuntimeError as error:
            if "start new thread" not in str(error):
                raise
            if not self._has_threads:
                task()
                raised = future.exception()
                if raised is not None and not isinstance(raised, Exception):
                    raise raised from None  # Ctrl-C is for the caller, now
        return future

    def abandon(self) -> None:
        """Begin nothing more, and wait for nothing."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def side_by_side(function: Callable[[Item], Result], items: Sequence[Item], threads: int) -> list[Result]:
    """Return ``function(item)`` of each, in order, by up to so many threads.

    Where calls fail, the error of the first one in order is raised, and what has not begun by then never does.
    """
    if threads < 2 or len(items) < 2:
        return [function(item) for item in items]
    pool = Workers(min(threads, len(items)))
    try:
        return [future.result() for future in [pool.submit(function, item) for item in items]]
    finally:
        pool.abandon()
