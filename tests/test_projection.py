"""n:m masks by the second moment of the inputs, against enumeration."""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mpfast import masks
from mpfast.masks.projection import output_error, permute_inputs, permute_outputs, project
from mpfast.masks.projection_problem import Problem


def random_moments(rng: np.random.Generator, groups: int, m: int) -> NDArray[np.float64]:
    X = rng.standard_normal((groups, 4 * m, m)) @ (0.4 * rng.standard_normal((groups, m, m)) + np.eye(m))
    return np.einsum("gsi,gsj->gij", X, X) / (4 * m)


def enumerated(
    W: NDArray[Any], C: NDArray[np.float64], n: int, m: int, extra: NDArray[np.float64] | None = None
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Best mask and cost per (row, group), by looking at every pattern in lexicographic order in float64."""
    U = W.astype(np.float64).reshape(len(W), -1, m)
    best = np.full(U.shape[:2], np.inf)
    keep = np.ones(U.shape, np.bool_)
    for dropped in itertools.combinations(range(m), m - n):
        D = list(dropped)
        cost = np.einsum("rgi,gij,rgj->rg", U[:, :, D], C[:, D][:, :, D], U[:, :, D])
        if extra is not None:
            cost = cost + extra.reshape(U.shape)[:, :, D].sum(axis=-1)
        better = cost < best
        best[better] = cost[better]
        pattern = np.ones(m, np.bool_)
        pattern[D] = False
        keep[better] = pattern
    return keep.reshape(W.shape), best


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize(
    ("n", "m"), [(1, 2), (2, 4), (1, 4), (3, 4), (2, 5), (4, 8), (3, 7), (8, 9), (6, 12), (5, 11), (12, 16)]
)
def test_equals_enumeration(n: int, m: int, dtype: Any) -> None:
    rng = np.random.default_rng(n * 100 + m)
    W = rng.standard_normal((19, 3 * m)).astype(dtype)
    C = random_moments(rng, 3, m)
    keep, best = enumerated(W, C, n, m)
    found = project(W, n, m, C)
    np.testing.assert_array_equal(found.mask, keep)
    assert found.cost == pytest.approx(best.sum(), rel=1e-12)
    assert found.lower_bound == found.cost
    assert found.cost <= found.magnitude_cost
    np.testing.assert_array_equal(masks.n_m(W, n, m, second_moment=C), keep)


def test_8_of_16_equals_enumeration() -> None:
    rng = np.random.default_rng(0)
    W = rng.standard_normal((9, 16)).astype(np.float32)
    C = random_moments(rng, 1, 16)
    np.testing.assert_array_equal(project(W, 8, 16, C).mask, enumerated(W, C, 8, 16)[0])


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (3, 6)])
def test_near_ties_are_settled_in_double(n: int, m: int) -> None:
    """Weights that differ by 1e-12: nothing that float can tell apart."""
    rng = np.random.default_rng(1)
    W = 1 + 1e-12 * rng.integers(-50, 50, (64, 2 * m)).astype(np.float64)
    C = np.broadcast_to(np.eye(m), (2, m, m))
    np.testing.assert_array_equal(project(W, n, m, C).mask, enumerated(W, C, n, m)[0])


@pytest.mark.parametrize("pairs", [3, 4, 6])
def test_near_ties_that_float_puts_in_another_order(pairs: int) -> None:
    """One of each pair of alike slots goes: 2^pairs sets of the same cost but for 1e-12, far below float's rounding."""
    rng = np.random.default_rng(pairs)
    m = 2 * pairs
    each = rng.uniform(1, 2, (300, pairs, 1))
    apart = 1e-12 * rng.choice([-1, 1], (300, pairs, 1)) * [1, -1]
    W = (each * (1 + apart)).transpose(0, 2, 1).reshape(300, m)
    # Dropping both of a pair costs four times as much as dropping one.
    C = np.kron(np.full((2, 2), 0.99) + 0.01 * np.eye(2), np.eye(pairs))[None]
    np.testing.assert_array_equal(project(W, pairs, m, C).mask, enumerated(W, C, pairs, m)[0])


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (8, 16), (16, 32)])
def test_ties_and_zeros_drop_the_first(n: int, m: int) -> None:
    C = np.broadcast_to(np.eye(m), (2, m, m))
    want = np.tile(np.arange(m) >= m - n, 2)
    for W in (np.zeros((3, 2 * m)), np.ones((3, 2 * m), np.float32)):
        np.testing.assert_array_equal(project(W, n, m, C).mask, np.broadcast_to(want, W.shape))
    dead = project(np.ones((3, 2 * m)), n, m, np.zeros((2, m, m)))
    np.testing.assert_array_equal(dead.mask, np.broadcast_to(want, dead.mask.shape))
    assert dead.cost == dead.lower_bound == 0


@pytest.mark.parametrize("scale", [1e-150, 1e-30, 1e30, 1e150])
def test_any_scale(scale: float) -> None:
    rng = np.random.default_rng(2)
    W = rng.standard_normal((5, 24))
    C = random_moments(rng, 3, 8)
    want = project(W, 4, 8, C).mask
    np.testing.assert_array_equal(project(W * scale, 4, 8, C).mask, want)
    np.testing.assert_array_equal(project(W, 4, 8, C * scale).mask, want)


def test_a_diagonal_moment_is_magnitude_of_scaled_weights() -> None:
    rng = np.random.default_rng(3)
    W = rng.standard_normal((40, 32))
    variances = rng.uniform(0.1, 10, 32)
    C = np.stack([np.diag(variances[i : i + 8]) for i in range(0, 32, 8)])
    np.testing.assert_array_equal(project(W, 4, 8, C).mask, masks.n_m(W * np.sqrt(variances), 4, 8))


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8)])
def test_prior_enters_the_diagonal(n: int, m: int) -> None:
    rng = np.random.default_rng(4)
    W = rng.standard_normal((30, 4 * m))
    C = random_moments(rng, 4, m)
    source = rng.random(W.shape) < 0.6
    d = m - n
    U = W.reshape(30, 4, m)
    trace = np.einsum("rgi,gii,rgi->rg", U, C, U)
    everything = np.einsum("rgi,gij,rgj->rg", U, C, U)
    mean = d / m * trace + d * (d - 1) / (m * (m - 1)) * (everything - trace)
    for prior in (0.1, 0.5, 5.0):
        extra = (2 * prior * mean[:, :, None] * source.reshape(U.shape)).reshape(W.shape)
        found = project(W, n, m, C, source_mask=source, prior=prior)
        np.testing.assert_array_equal(found.mask, enumerated(W, C, n, m, extra)[0])
    dense = project(W, n, m, C, source_mask=np.ones_like(source), prior=2.0)
    np.testing.assert_array_equal(dense.mask, project(W, n, m, C).mask)


def test_restoration() -> None:
    rng = np.random.default_rng(5)
    W = rng.standard_normal((20, 16))
    C = random_moments(rng, 4, 4)
    source = rng.random(W.shape) < 0.5
    kept = project(W, 2, 4, C, source_mask=source, restore=False)
    np.testing.assert_array_equal(kept.mask, project(W * source, 2, 4, C).mask)
    free = project(W, 2, 4, C, source_mask=source)
    np.testing.assert_array_equal(free.mask, project(W, 2, 4, C).mask)
    assert (free.mask & ~source).any()


@pytest.mark.parametrize(("n", "m"), [(16, 32), (8, 32), (24, 48), (32, 64)])
def test_large_groups(n: int, m: int) -> None:
    rng = np.random.default_rng(6)
    W = rng.standard_normal((12, 2 * m)).astype(np.float32)
    C = random_moments(rng, 2, m)
    found = project(W, n, m, C)
    assert (found.mask.reshape(-1, m).sum(axis=1) == n).all()
    assert found.lower_bound <= found.cost < found.magnitude_cost
    assert 0 < found.gap < 1
    # No single exchange is better.
    U = W.astype(np.float64).reshape(12, 2, m)
    dropped = ~found.mask.reshape(12, 2, m)
    for r, g in itertools.product(range(12), range(2)):
        A = U[r, g][:, None] * C[g] * U[r, g]
        D = dropped[r, g]
        cost = A[np.ix_(D, D)].sum()
        for out, into in itertools.product(np.flatnonzero(D), np.flatnonzero(~D)):
            other = D.copy()
            other[out], other[into] = False, True
            assert A[np.ix_(other, other)].sum() >= cost * (1 - 1e-9)


def descended(A: NDArray[np.float64], D: NDArray[np.bool_]) -> float:
    """Cost of the set D of dropped slots once no exchange of one of them for a kept one is better."""
    D = D.copy()
    while True:
        sums = A[:, D].sum(axis=1)
        out, into = np.flatnonzero(D), np.flatnonzero(~D)
        change = (np.diag(A)[into] + 2 * sums[into]) + (np.diag(A)[out] - 2 * sums[out])[:, None]
        change -= 2 * A[np.ix_(out, into)]
        if change.min() >= -1e-13 * np.trace(A):
            return float(A[np.ix_(D, D)].sum())
        best = np.unravel_index(change.argmin(), change.shape)
        D[out[best[0]]], D[into[best[1]]] = False, True


def test_the_search_of_large_groups_takes_the_better_of_its_two_starts() -> None:
    """From the slots of least diagonal, and from the greedy choice."""
    rng = np.random.default_rng(12)
    n, m, rows = 9, 18, 60
    W = rng.standard_normal((rows, m))
    C = random_moments(rng, 1, m)
    dropped = ~project(W, n, m, C).mask
    better = {"diagonal": 0, "greedy": 0}
    for r in range(rows):
        A = W[r][:, None] * C[0] * W[r]
        least = np.zeros(m, np.bool_)
        least[np.argsort(np.diag(A), kind="stable")[: m - n]] = True
        greedy = np.zeros(m, np.bool_)
        for _ in range(m - n):
            cost = np.where(greedy, np.inf, np.diag(A) + 2 * A[:, greedy].sum(axis=1))
            greedy[cost.argmin()] = True
        costs = {"diagonal": descended(A, least), "greedy": descended(A, greedy)}
        found = A[np.ix_(dropped[r], dropped[r])].sum()
        assert found <= min(costs.values()) * (1 + 1e-12)
        if abs(costs["diagonal"] - costs["greedy"]) > 1e-9 * found:
            better[min(costs, key=lambda start: costs[start])] += 1
    assert min(better.values()) > 0  # each start is the better one somewhere


def test_search_of_large_groups_is_near_the_optimum() -> None:
    """The search for m > 16, on groups of 16 padded with inputs that are never dropped."""
    rng = np.random.default_rng(7)
    W = rng.standard_normal((40, 16))
    C = random_moments(rng, 1, 16)
    padded = np.concatenate([W, np.full((40, 1), 1e3)], axis=1)
    wide = np.zeros((1, 17, 17))
    wide[:, :16, :16] = C
    wide[0, 16, 16] = 1
    assert project(padded, 9, 17, wide).cost <= 1.05 * project(W, 8, 16, C).cost


def test_permutation() -> None:
    rng = np.random.default_rng(8)
    scales = np.repeat([5.0, 1, 0.1, 0.01], 8)  # important inputs side by side
    X = rng.standard_normal((500, 32)) * scales
    C = X.T @ X / 500
    W = rng.standard_normal((24, 32))
    plain = project(W, 2, 4, C)
    found = project(W, 2, 4, C, permute=True)
    assert found.permutation is not None
    assert sorted(found.permutation) == list(range(32))
    assert (permute_inputs(found.mask, found.permutation).reshape(-1, 4).sum(axis=1) == 2).all()
    assert found.cost < 0.1 * plain.cost
    assert output_error(W, found.mask, C) < 0.1 * output_error(W, plain.mask, C)
    assert project(W, 2, 4, C, permute="auto").cost == found.cost
    mask, permutation = masks.n_m(W, 2, 4, second_moment=C, permute=True)
    np.testing.assert_array_equal(mask, found.mask)
    np.testing.assert_array_equal(permutation, found.permutation)
    # Folded into the layer before, the function stays the same.
    before = rng.standard_normal((32, 10))
    x = rng.standard_normal(10)
    hidden = np.maximum(permute_outputs(before, permutation) @ x, 0)
    np.testing.assert_allclose(permute_inputs(W, permutation) @ hidden, W @ np.maximum(before @ x, 0))


def test_convolutions() -> None:
    rng = np.random.default_rng(9)
    W = rng.standard_normal((6, 8, 3, 3))
    X = rng.standard_normal((400, 72)) @ rng.standard_normal((72, 72))
    C = X.T @ X / 400
    flat = project(W, 2, 4, C)
    np.testing.assert_array_equal(flat.mask.reshape(6, 72), project(W.reshape(6, 72), 2, 4, C).mask)
    channel = project(W, 2, 4, C, layout="channel")
    moved = channel.mask.transpose(0, 2, 3, 1)
    assert (moved.reshape(-1, 4).sum(axis=1) == 2).all()
    order = np.arange(72).reshape(8, 9).T.reshape(-1)
    same = project(W.reshape(6, 72)[:, order], 2, 4, C[np.ix_(order, order)])
    np.testing.assert_array_equal(moved.reshape(6, 72), same.mask)
    blocks = np.stack([C[np.ix_(o, o)] for o in order.reshape(-1, 4)])
    np.testing.assert_array_equal(project(W, 2, 4, blocks, layout="channel").mask, channel.mask)
    permuted = project(W, 2, 4, C, layout="channel", permute=True)
    assert permuted.permutation is not None
    moved = permute_inputs(permuted.mask, permuted.permutation).transpose(0, 2, 3, 1)
    assert (moved.reshape(-1, 4).sum(axis=1) == 2).all()


def test_output_error_is_the_mean_squared_change() -> None:
    rng = np.random.default_rng(10)
    W = rng.standard_normal((7, 12)).astype(np.float32)
    X = rng.standard_normal((90, 12))
    mask = rng.random(W.shape) < 0.5
    want = ((X @ (W * ~mask).T) ** 2).sum(axis=1).mean()
    assert output_error(W, mask, X.T @ X / 90) == pytest.approx(want)


def test_threads_and_strides_do_not_matter() -> None:
    rng = np.random.default_rng(11)
    W = rng.standard_normal((333, 8 * 101)).astype(np.float32)
    C = random_moments(rng, 101, 8)
    want = project(W, 4, 8, C, threads=1).mask
    np.testing.assert_array_equal(project(W, 4, 8, C, threads=3).mask, want)
    np.testing.assert_array_equal(project(np.asfortranarray(W), 4, 8, C).mask, want)
    np.testing.assert_array_equal(project(W[::-1, :], 4, 8, C).mask, want[::-1])


ISA_CHECK = """
import numpy as np
from mpfast.masks.projection import project
rng = np.random.default_rng(0)
W = rng.standard_normal((50, 64)).astype(np.float32)
X = rng.standard_normal((4, 80, 16))
C = np.einsum("gsi,gsj->gij", X, X)
for n, m in ((8, 16), (2, 4), (3, 8)):
    blocks = np.concatenate([C[:, i : i + m, i : i + m] for i in range(0, 16, m)])
    print(np.packbits(project(W, n, m, blocks).mask).tobytes().hex())
"""


def test_instruction_sets_agree() -> None:
    import os

    def run(isa: str) -> str:
        environment = {**os.environ, "MPFAST_ISA": isa}
        return subprocess.run(
            [sys.executable, "-c", ISA_CHECK], env=environment, check=True, capture_output=True, text=True, cwd="/"
        ).stdout

    assert run("baseline") == run("avx2")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 5}, "1 <= n <= m"),
        ({"m": 3, "n": 1}, "cannot be cut"),
        ({"second_moment": np.ones((2, 4, 3))}, "shape"),
        ({"second_moment": np.full((2, 4, 4), np.nan)}, "not finite"),
        ({"second_moment": np.broadcast_to(np.triu(np.ones((4, 4))), (2, 4, 4))}, "symmetric"),
        ({"second_moment": -np.broadcast_to(np.eye(4), (2, 4, 4))}, "negative"),
        ({"prior": 0.5}, "source_mask"),
        ({"prior": -1.0}, "prior must lie between"),
        ({"prior": 1e39, "source_mask": np.ones((3, 8), np.bool_)}, "prior must lie between"),
        ({"prior": np.inf, "source_mask": np.ones((3, 8), np.bool_)}, "prior must lie between"),
        ({"second_moment": np.tile(np.full((4, 4), 2.0) - np.eye(4), (2, 1, 1))}, "geometric mean"),
        ({"source_mask": np.ones((3, 4), np.bool_)}, "must be boolean of shape"),
        ({"permute": True}, "full second moment"),
        ({"permute": "often"}, "permute"),
        ({"layout": "row"}, "layout"),
        ({"W": np.ones((3, 8)) * [1, 2, 3, np.nan, 5, 6, 7, 8]}, r"non-finite|not finite|nan"),
    ],
)
def test_errors(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "W": np.ones((3, 8)),
        "n": 2,
        "m": 4,
        "second_moment": np.broadcast_to(np.eye(4), (2, 4, 4)),
    }
    arguments.update(changes)
    with pytest.raises(ValueError, match=message):
        project(**arguments)


def test_moments_that_do_not_fit_have_no_error() -> None:
    W, mask = np.ones((3, 10)), np.ones((3, 10), np.bool_)
    for moment in (np.eye(3), np.eye(5), np.broadcast_to(np.eye(4), (2, 4, 4)), np.ones(10)):
        with pytest.raises(ValueError, match="does not fit 10 inputs"):
            output_error(W, mask, moment)


def test_a_matrix_subclass_is_an_array() -> None:
    rng = np.random.default_rng(20)
    W, C = rng.standard_normal((8, 8)), random_moments(rng, 2, 4)
    with pytest.warns(PendingDeprecationWarning):
        odd = np.matrix(W)
    source = rng.random((8, 8)) < 0.7
    options: dict[str, Any] = {"source_mask": source, "restore": False}
    np.testing.assert_array_equal(project(odd, 2, 4, C, **options).mask, project(W, 2, 4, C, **options).mask)


def test_frameworks() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(12)
    W = rng.standard_normal((6, 16)).astype(np.float32)
    C = random_moments(rng, 4, 4)
    want = project(W, 2, 4, C).mask
    found = project(torch.from_numpy(W), 2, 4, torch.from_numpy(C))
    assert isinstance(found.mask, torch.Tensor)
    np.testing.assert_array_equal(found.mask.numpy(), want)
    narrow = torch.from_numpy(W).to(torch.bfloat16)
    np.testing.assert_array_equal(project(narrow, 2, 4, C).mask.numpy(), project(narrow.float().numpy(), 2, 4, C).mask)


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (3, 4), (4, 8), (1, 8), (7, 8)])
@pytest.mark.parametrize("correlated", [False, True])
def test_no_mask_costs_less_than_the_lower_bound(n: int, m: int, correlated: bool) -> None:
    """The bound that stands in where a search is not exhaustive, against enumeration; without correlations it is met.

    What `project` reports is never more than the cost that it has found, which would hide a bound that is too high.
    """
    rng = np.random.default_rng(m * 10 + n)
    W = rng.standard_normal((20, 3 * m))
    C = random_moments(rng, 3, m)
    if not correlated:
        C = C * np.eye(m)
    _, best = enumerated(W, C, n, m)
    bound = Problem(W, "float64", W.shape, n, m, C).lower_bound(C)
    assert bound <= best.sum() * (1 + 1e-12)
    if not correlated:
        assert bound == pytest.approx(best.sum(), rel=1e-12)
