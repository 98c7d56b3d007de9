"""Sums of x x^T in the core: the symmetric rank-k update."""

from __future__ import annotations

import os
import signal
import threading

import ml_dtypes
import numpy as np
import pytest

from mpfast import _core

from .references import run_python

DEPTH = 256  # rows that are summed in the precision of the kernels
UNIT = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-24, "bfloat16": 2.0**-24}


def stored(shape, storage, seed=0):
    """Entries of a type, and the same numbers in float64."""
    values = np.random.default_rng(seed).standard_normal(shape)
    narrow = values.astype(ml_dtypes.bfloat16 if storage == "bfloat16" else storage)
    return narrow.view(np.uint16) if storage == "bfloat16" else narrow, narrow.astype(np.float64)


def added(x, storage, sums=None, threads=1):
    sums = np.zeros((x.shape[1], x.shape[1])) if sums is None else sums.copy()
    _core.add_gram(_core.Matrix(x, storage), sums, threads)
    return sums


def bound(exact, storage):
    """One rounding for each row of a tile, of what the magnitudes come to; the sums in double are as good as exact."""
    n = len(exact)
    return (min(n, DEPTH) * UNIT[storage] + (n // DEPTH + 2) * 2.0**-53) * (np.abs(exact).T @ np.abs(exact)) + 1e-300


@pytest.mark.parametrize("storage", UNIT)
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (255, 47), (256, 48), (257, 49), (1030, 200), (2100, 385)])
def test_sums_are_those_of_the_numbers(shape, storage):
    x, exact = stored(shape, storage)
    wanted = np.triu(exact.T @ exact)
    assert np.all(np.abs(added(x, storage) - wanted) <= np.triu(bound(exact, storage)))


@pytest.mark.parametrize("storage", UNIT)
def test_what_is_there_is_added_to_and_the_lower_triangle_stays(storage):
    x, exact = stored((300, 70), storage)
    before = np.random.default_rng(1).standard_normal((70, 70))
    after = added(x, storage, before)
    assert np.array_equal(np.tril(after, -1), np.tril(before, -1))
    slack = bound(exact, storage) + 2.0**-52 * np.abs(before + exact.T @ exact)
    assert np.all(np.triu(np.abs(after - before - exact.T @ exact) <= slack) | ~np.triu(np.ones((70, 70), bool)))


def test_integers_are_exact():
    """Products of small integers need no rounding, in whatever order."""
    x = np.random.default_rng(2).integers(-8, 9, (3000, 131)).astype(np.float32)
    exact = x.astype(np.float64)
    assert np.array_equal(added(x, "float32", threads=3), np.triu(exact.T @ exact))


@pytest.mark.parametrize("storage", UNIT)
def test_any_strides(storage):
    x, exact = stored((600, 192), storage)
    for view, numbers in [
        (np.asfortranarray(x), exact),
        (x[::2, 1::3], exact[::2, 1::3]),
        (x[::-1, ::-1], exact[::-1, ::-1]),
        (np.broadcast_to(x[:1], (40, 192)), np.broadcast_to(exact[:1], (40, 192))),
    ]:
        assert np.array_equal(added(view, storage), added(np.ascontiguousarray(view), storage))
        assert np.all(np.abs(added(view, storage) - np.triu(numbers.T @ numbers)) <= bound(numbers, storage))


@pytest.mark.parametrize("storage", UNIT)
def test_the_number_of_threads_changes_nothing(storage):
    x, _ = stored((1500, 500), storage)
    alone = added(x, storage, threads=1)
    for threads in (2, 3, 7):
        assert np.array_equal(added(x, storage, threads=threads), alone)


def test_errors_do_not_grow_with_the_number_of_rows():
    """A sum in single precision over all of these rows would be wrong in its fourth digit."""
    x = np.full((1 << 20, 2), np.float32(1.1))
    exact = float(np.float32(1.1)) ** 2 * len(x)
    assert abs(added(x, "float32")[0, 1] - exact) <= DEPTH * 2.0**-24 * exact


def test_nonfinite_entries_reach_their_row_and_column_alone():
    x = np.ones((20, 60), np.float32)
    x[3, 7] = np.nan
    sums = added(x, "float32")
    assert np.isnan(sums[7, 7:]).all()
    assert np.isnan(sums[:8, 7]).all()
    assert np.isnan(sums).sum() == 60


SCRIPT = """
import sys
import numpy as np
from mpfast import _core
given = np.load(sys.argv[1])
out = {}
for name in given:
    sums = np.zeros((given[name].shape[1],) * 2)
    _core.add_gram(_core.Matrix(given[name], name), sums, 2)
    out[name] = sums
np.savez(sys.argv[2], **out)
"""


@pytest.mark.parametrize("isa", ["baseline", "avx2", "avx512"])
def test_every_instruction_set(isa, tmp_path):
    given = {storage: stored((700, 155), storage) for storage in UNIT}
    np.savez(tmp_path / "given.npz", **{storage: x for storage, (x, _) in given.items()})
    arguments = ("-c", SCRIPT, str(tmp_path / "given.npz"), str(tmp_path / "out.npz"))
    run_python(*arguments, env={**os.environ, "MPFAST_ISA": isa}, check=True)
    for storage, sums in np.load(tmp_path / "out.npz").items():
        exact = given[storage][1]
        assert np.all(np.abs(sums - np.triu(exact.T @ exact)) <= bound(exact, storage))


@pytest.mark.parametrize(
    ("sums", "error"),
    [
        (np.zeros((3, 3)), ValueError),
        (np.zeros((4, 3)), ValueError),
        (np.zeros(16), ValueError),
        (np.zeros((4, 4), np.float32), TypeError),
        (np.zeros((4, 8))[:, ::2], TypeError),
        (np.broadcast_to(0.0, (4, 4)), (TypeError, ValueError)),
    ],
)
def test_sums_of_another_form_are_refused(sums, error):
    with pytest.raises(error):
        _core.add_gram(_core.Matrix(np.ones((5, 4)), "float64"), sums, 1)


def test_read_only_sums_are_refused():
    sums = np.zeros((4, 4))
    sums.flags.writeable = False
    with pytest.raises(ValueError, match="writeable"):
        _core.add_gram(_core.Matrix(np.ones((5, 4)), "float64"), sums, 1)


@pytest.mark.skipif(not hasattr(signal, "raise_signal"), reason="needs signals")
def test_an_interrupt_ends_it():
    """The rows are one row many times over, enough of them for an hour."""
    x = np.broadcast_to(np.ones(2000, np.float32), (1 << 24, 2000))
    timer = threading.Timer(0.2, signal.raise_signal, [signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        _core.add_gram(_core.Matrix(x, "float32"), np.zeros((2000, 2000)), 2)
    timer.join()
