"""W that somebody writes to while it is read: an error or some result, never a search without end."""

from __future__ import annotations

import contextlib
import threading

import numpy as np
import pytest

import mpfast
from mpfast import _core

CHANGED = "W changed while it was read"


def rounds_of_a_search(W, factors):
    """Search for the cut at one half; after round k every entry is multiplied by ``factors[k]``."""
    search = _core.CutSearch(W.size, W.size // 2, [(W.dtype.name, 1.0)])
    rounds = 0
    while not search.done:
        assert search.count(_core.Matrix(W, W.dtype.name), 1.0, 1) is None
        search.narrow()
        if rounds < len(factors):
            W *= W.dtype.type(factors[rounds])
        rounds += 1
        # A sample, the keys of its window or their count, and at least 10 of at most 63 bits in each round after that.
        assert rounds <= 10
    return rounds


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "factors",
    [
        (1e-3, 1e6),  # after the guess all are below its window, and then all above it
        (1e3, 1e-6),
        (1, 1e6),
        (1, 1e-6),
        (1, 1, 1e6),
        (1e-3, 1, 1, 1e6),
    ],
)
@pytest.mark.parametrize("size", [(300, 1000), (1100, 1000)])  # without and with a sample
def test_a_search_ends_when_entries_move_between_its_rounds(dtype, factors, size):
    W = np.random.default_rng(0).standard_normal(size).astype(dtype)
    with contextlib.suppress(RuntimeError):  # or it finds a cut all the same
        rounds_of_a_search(W, factors)


def test_a_search_whose_window_is_left_empty_says_so():
    W = np.random.default_rng(0).standard_normal((2000, 1000)).astype(np.float32)
    with pytest.raises(RuntimeError, match=CHANGED):
        rounds_of_a_search(W, (1e-3, 1e6))


def test_ties_that_are_gone_when_the_mask_is_written():
    W = np.ones((100, 100), np.float32)
    search = _core.CutSearch(W.size, W.size // 2, [("float32", 1.0)])
    matrix = _core.Matrix(W, "float32")
    while not search.done:
        search.count(matrix, 1.0, 1)
        search.narrow()
    W *= 2
    with pytest.raises(RuntimeError, match=CHANGED):
        search.write(matrix, 1.0, np.empty(W.shape, bool), 1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_run_that_meets_other_entries_than_its_first_pass(dtype, value):
    """The first pass saw finite entries; Ritz values that are none do not get out."""
    W = np.random.default_rng(0).standard_normal((200, 300)).astype(dtype)
    run = _core.lanczos_run(_core.Matrix(W, W.dtype.name), 8, 0, 0, 0, False, 1)
    run.advance(4)
    W[:] = value
    run.advance(4)
    with pytest.raises(RuntimeError, match=CHANGED):
        run.ritz()


@pytest.mark.slow
@pytest.mark.parametrize(
    "call",
    [
        lambda W: mpfast.masks.magnitude(W, 0.5, threads=2),
        lambda W: mpfast.masks.n_m(W, 2, 4),
        lambda W: mpfast.spectrum(W, method="exact", threads=2),
        lambda W: mpfast.spectrum(W, method="lanczos", threads=2),
        lambda W: mpfast.svd(W, 5, threads=2),
    ],
    ids=["magnitude", "n_m", "exact", "lanczos", "svd"],
)
@pytest.mark.parametrize("factors", [(8.0, 0.125), (np.inf, np.nan)], ids=["scaled", "not finite"])
@pytest.mark.filterwarnings("ignore")  # of numbers that make no sense
def test_every_call_ends_while_a_thread_writes(call, factors):
    original = np.random.default_rng(0).standard_normal((500, 600)).astype(np.float32)
    W = original.copy()
    stop = threading.Event()

    def write():
        while not stop.is_set():
            for factor in factors:
                np.multiply(original, np.float32(factor), out=W)
            W[:] = original

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(20):
            with contextlib.suppress(RuntimeError, ValueError):  # it noticed
                call(W)
    finally:
        stop.set()
        writer.join()


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_moments_that_are_none_end_too(sign):
    """Not semidefinite: exchanges may then go in circles, each gaining something."""
    rng = np.random.default_rng(0)
    moments = rng.standard_normal((2, 32, 32))
    moments = moments + moments.transpose(0, 2, 1)
    moments[:, range(32), range(32)] = sign * 1e-9 * rng.random((2, 32))
    W = np.ones((5, 64))
    keep = np.empty(W.shape, bool)
    matrix = _core.Matrix(W, "float64")
    assert _core.project_groups(matrix, np.ascontiguousarray(moments), None, 0.0, keep, 20, 32, 1) is None
    assert (keep.reshape(-1, 32).sum(1) == 20).all()
