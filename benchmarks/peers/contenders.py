"""What each peer is asked to do: one function a contender, run inside the peer's own environment.

A function gets W (NumPy; float32, or bfloat16 by ml_dtypes) and, for leading triplets, k. It imports its library,
converts what it cannot take, and returns a dictionary of what it found, on the singular-value scale:
``sigma_plus``, ``sigma_plus_error``, ``spikes``, ``values`` (all, descending) or ``leading`` (the first k).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Findings = dict[str, Any]


def single(W: Any) -> Any:
    """W as a type that every library takes."""
    return W if W.dtype in (np.float32, np.float64) else W.astype(np.float32)


def mpfast_edge(W: Any, k: int) -> Findings:
    import mpfast

    edge = mpfast.spectrum(W).edge
    return {"sigma_plus": edge.sigma_plus, "sigma_plus_error": edge.sigma_plus_error, "spikes": edge.spikes}


def mpfast_exact(W: Any, k: int) -> Findings:
    import mpfast

    spectrum = mpfast.spectrum(W, method="exact")
    return {"sigma_plus": spectrum.edge.sigma_plus, "spikes": spectrum.edge.spikes, "values": spectrum.values}


def mpfast_svd(W: Any, k: int) -> Findings:
    import mpfast

    return {"leading": mpfast.svd(W, k).s}


def weightwatcher(W: Any, k: int) -> Findings:
    import logging

    import torch
    import weightwatcher as ww

    logging.getLogger("weightwatcher").setLevel(logging.ERROR)
    layer = torch.nn.Linear(W.shape[1], W.shape[0], bias=False)
    layer.weight.data = torch.from_numpy(np.ascontiguousarray(single(W)))
    details = ww.WeightWatcher(model=torch.nn.Sequential(layer)).analyze(mp_fit=True, plot=False)
    # Its edge is of W^T W; its spikes are counted above the edge and a correction of its own.
    return {"sigma_plus": float(details.bulk_max[0]) ** 0.5, "spikes": int(details.num_spikes[0])}


def _scikit_rmt(W: Any, estimator: str) -> Findings:
    from skrmt.denoise import MarchenkoPasturPCADenoiser

    # Its fit belongs to a denoiser of stacks of images: short side p, the long side q cut into rows of 16 pixels.
    W = single(W)
    stack = (W if W.shape[0] <= W.shape[1] else W.T).astype(np.float64)
    p, q = stack.shape
    model = MarchenkoPasturPCADenoiser(sigma_estimator=estimator).fit(stack.reshape(p, q // 16, 16))
    edge = float(np.sqrt(model.sigma_**2 * (1 + np.sqrt(p / q)) ** 2 * q))
    return {"sigma_plus": edge}


def scikit_rmt_median(W: Any, k: int) -> Findings:
    return _scikit_rmt(W, "median")


def scikit_rmt_fit(W: Any, k: int) -> Findings:
    return _scikit_rmt(W, "mp_fit")


def imate(W: Any, k: int) -> Findings:
    from imate import trace

    # Stochastic Lanczos quadrature of the trace of W^T W with as many probes and steps as mpfast begins with: imate
    # estimates traces of functions, and knows no edge.
    W = single(W)
    probes = min(4 * int(np.ceil(max(32768 / min(W.shape), 4) / 4)), 512)
    estimate = trace(
        np.ascontiguousarray(W if W.shape[0] >= W.shape[1] else W.T),
        gram=True,
        p=1,
        method="slq",
        min_num_samples=probes,
        max_num_samples=probes,
        lanczos_degree=12,
    )
    return {"frobenius": float(np.sqrt(estimate))}


def gram_eigvalsh(W: Any, k: int) -> Findings:
    W = single(W).astype(np.float64)
    gram = W.T @ W if W.shape[0] >= W.shape[1] else W @ W.T
    return {"values": np.sqrt(np.maximum(np.linalg.eigvalsh(gram)[::-1], 0))}


def scipy_gesdd(W: Any, k: int) -> Findings:
    from scipy.linalg import svdvals

    return {"values": svdvals(single(W))}


def torch_svdvals(W: Any, k: int) -> Findings:
    import torch

    return {"values": torch.linalg.svdvals(torch.from_numpy(single(W))).numpy()}


def _svds(W: Any, k: int, solver: str, **options: Any) -> Findings:
    from scipy.sparse.linalg import svds

    values = svds(single(W), k=k, solver=solver, return_singular_vectors=True, **options)[1]
    return {"leading": np.sort(values)[::-1]}


def scipy_arpack(W: Any, k: int) -> Findings:
    return _svds(W, k, "arpack", tol=1e-5)


def scipy_propack(W: Any, k: int) -> Findings:
    return _svds(W, k, "propack", tol=1e-5)


def scipy_lobpcg(W: Any, k: int) -> Findings:
    return _svds(W, k, "lobpcg", tol=1e-5)


def primme(W: Any, k: int) -> Findings:
    import primme as library

    return {"leading": np.sort(library.svds(single(W), k, tol=1e-5)[1])[::-1]}


def fbpca(W: Any, k: int) -> Findings:
    import fbpca as library

    return {"leading": library.pca(single(W), k=k, raw=True)[1]}


def librla(W: Any, k: int) -> Findings:
    import librla as library

    return {"leading": library.svd_sketch(single(W), k, power_iter=2, rng=np.random.default_rng(0))[1]}


def scikit_learn(W: Any, k: int) -> Findings:
    from sklearn.utils.extmath import randomized_svd

    return {"leading": randomized_svd(single(W), k, random_state=0)[1]}


def torch_lowrank(W: Any, k: int) -> Findings:
    import torch

    torch.manual_seed(0)
    return {"leading": torch.svd_lowrank(torch.from_numpy(single(W)), q=k)[1].numpy()}


@dataclass(frozen=True)
class Contender:
    """A way to get the edge and the spikes, all values, or the leading ones."""

    name: str
    task: str  # "edge", "values" or "leading"
    environment: str
    run: Callable[[Any, int], Findings]


# What is installed into each environment, beside NumPy and ml_dtypes.
ENVIRONMENTS = {
    "mpfast": (),  # this checkout
    "weightwatcher": ("weightwatcher==0.7.7", "torch==2.13.0"),
    "scikit-rmt": ("scikit-rmt==2.1.1",),
    "imate": ("imate==0.29.11",),
    "scipy": ("scipy==1.17.1",),
    "torch": ("torch==2.13.0",),
    "primme": ("setuptools", "scipy", "primme==3.2.3"),
    "fbpca": ("scipy", "fbpca==1.0"),
    "librla": ("scipy", "librla==1.2.1"),
    "scikit-learn": ("scikit-learn==1.9.1",),
}

CONTENDERS = (
    Contender("mpfast", "edge", "mpfast", mpfast_edge),
    Contender("mpfast, exact", "edge", "mpfast", mpfast_exact),
    Contender("WeightWatcher", "edge", "weightwatcher", weightwatcher),
    Contender("scikit-rmt, median", "edge", "scikit-rmt", scikit_rmt_median),
    Contender("scikit-rmt, mp_fit", "edge", "scikit-rmt", scikit_rmt_fit),
    Contender("imate (trace only)", "edge", "imate", imate),
    Contender("NumPy, eigvalsh of the Gram matrix", "values", "scipy", gram_eigvalsh),
    Contender("SciPy gesdd", "values", "scipy", scipy_gesdd),
    Contender("PyTorch svdvals", "values", "torch", torch_svdvals),
    Contender("mpfast svd", "leading", "mpfast", mpfast_svd),
    Contender("SciPy ARPACK", "leading", "scipy", scipy_arpack),
    Contender("SciPy PROPACK", "leading", "scipy", scipy_propack),
    Contender("SciPy LOBPCG", "leading", "scipy", scipy_lobpcg),
    Contender("PRIMME", "leading", "primme", primme),
    Contender("fbpca", "leading", "fbpca", fbpca),
    Contender("librla", "leading", "librla", librla),
    Contender("scikit-learn", "leading", "scikit-learn", scikit_learn),
    Contender("PyTorch svd_lowrank", "leading", "torch", torch_lowrank),
)


def contender(name: str) -> Contender:
    return next(c for c in CONTENDERS if c.name == name)
