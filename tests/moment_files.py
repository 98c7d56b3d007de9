"""A small model, the inputs that its layers see, and files of their moments."""

from __future__ import annotations

import numpy as np

from mpfast.checkpoints import InputSum, content_sample_hash, write_moments

IN, OUT, ROWS = 48, 32, 600


def inputs(seed=0, rows=ROWS, width=IN):
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((width, width)) / np.sqrt(np.arange(1, width + 1))[:, None]
    return np.random.default_rng(seed + 1).standard_normal((rows, width)) @ mixing


def moment(x):
    return x.T @ x / len(x)


def weights(seed=5):
    rng = np.random.default_rng(seed)
    return {
        "a.query.weight": rng.standard_normal((OUT, IN), dtype=np.float32),
        "a.key.weight": rng.standard_normal((OUT, IN), dtype=np.float32),
        "b.weight": rng.standard_normal((40, OUT), dtype=np.float32),
        "b.bias": rng.standard_normal(40, dtype=np.float32),
    }


def error(W, V, C):
    change = np.asarray(W, np.float64) - np.asarray(V, np.float64)
    return np.trace(change @ C @ change.T) / np.trace(np.float64(W) @ C @ np.float64(W).T)


def moment_file(path, names=("a.query", "a.key"), model=None, parts=4, **facts):
    x = inputs()
    pieces = np.split(x, parts)
    known = {"source": None, "source_hash": None, **facts}
    if model is not None:
        known |= {"source": str(model), "source_hash": content_sample_hash(model)}
    found = InputSum(list(names), [len(piece) for piece in pieces], [piece.T @ piece for piece in pieces], parts)
    options = {"block": None, "layout": "flat", "share": 1.0, "seed": 0, "folds": parts}
    write_moments(path, [found], options, known)
    return path
