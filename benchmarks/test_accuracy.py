"""Error of sigma_plus against all singular values, and of its error bar, over seeds nobody tuned anything on.

The row of a family holds the root mean square of the relative error, that of the reported standard error, and the
median time of a call.
"""

from __future__ import annotations

import math
import statistics
import time

import numpy as np
import pytest

import mpfast
from mpfast.spectra import family
from mpfast.spectra.synthetic import FAMILIES

FIRST_SEED = 5000


@pytest.mark.parametrize("name", FAMILIES)
def test_edge(name: str, benchmark, request: pytest.FixtureRequest, accuracy: list[dict]) -> None:
    n, seeds = (1200, 6) if request.config.getoption("--short") else (2048, 30)
    errors, reported, seconds = [], [], []
    for seed in range(seeds):
        W = family(name, (n, n), FIRST_SEED + seed).astype(np.float32)
        truth = mpfast.spectrum(W, method="exact").edge.sigma_plus
        start = time.perf_counter()
        edge = mpfast.spectrum(W, method="lanczos", seed=seed).edge
        seconds.append(time.perf_counter() - start)
        errors.append(edge.sigma_plus / truth - 1)
        reported.append(edge.sigma_plus_error / truth)
    row = {
        "family": name,
        "shape": [n, n],
        "seeds": seeds,
        "rms_error": math.hypot(*errors) / math.sqrt(seeds),
        "reported_error": math.hypot(*reported) / math.sqrt(seeds),
        "seconds": statistics.median(seconds),
    }
    accuracy.append(row)
    benchmark.extra_info.update(row)
    benchmark.pedantic(mpfast.spectrum, args=(W,), kwargs={"method": "lanczos"}, rounds=3)
    if seeds >= 30:
        assert row["rms_error"] <= 5e-3
        assert 1 / 1.5 <= row["reported_error"] / row["rms_error"] <= 1.5
