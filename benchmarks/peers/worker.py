"""One contender on one matrix, in a process and an environment of its own; `run.py` starts it.

Reads a job as JSON from standard input and writes one line of JSON: seconds of the first call (with the import of the
library), the median of the calls after it, the peak of the memory above what W takes, and what was found.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import contenders
import numpy as np

# The threads that OpenBLAS starts when it is loaded spin for some 30 ms; calls meanwhile are no warm ones.
SETTLING = 0.1  # seconds


def load(path: str, dtype: str) -> Any:
    """The matrix, in memory of its own."""
    W = np.load(path)
    if dtype == "bfloat16":
        import ml_dtypes

        return W.view(ml_dtypes.bfloat16)
    return W


def peak_bytes() -> int:
    # Not getrusage: its maximum begins with what the parent process held.
    with Path("/proc/self/status").open() as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) << 10


def resident_bytes() -> int:
    with Path("/proc/self/statm").open() as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def jsonable(found: dict[str, Any], count: int) -> dict[str, Any]:
    """All values are too many to keep: the leading ones, and the middle one."""
    out = {key: value for key, value in found.items() if key not in ("values", "leading")}
    if "values" in found:
        values = np.asarray(found["values"], dtype=np.float64)
        out["leading"], out["median"] = values[:count].tolist(), float(np.median(values))
    if "leading" in found:
        out["leading"] = np.asarray(found["leading"], dtype=np.float64)[:count].tolist()
    return out


def main() -> None:
    warnings.filterwarnings("ignore")
    job = json.load(sys.stdin)
    contender = contenders.contender(job["contender"])
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # some libraries print

    if "matrices" in job:
        spikes = [int(contender.run(load(path, "float32"), 1)["spikes"]) for path in job["matrices"]]
        out.write(json.dumps({"spikes": spikes}) + "\n")
        out.close()
        return

    W = load(job["matrix"], job["dtype"])
    before = resident_bytes()
    start = time.perf_counter()
    found = contender.run(W, job["k"])
    cold = time.perf_counter() - start
    peak = peak_bytes() - before
    time.sleep(SETTLING)
    times = []
    while len(times) < 5 and sum(times) < min(job["seconds"], 5):
        start = time.perf_counter()
        found = contender.run(W, job["k"])
        times.append(time.perf_counter() - start)
        if cold > job["seconds"] / 2:
            break
    record = {"cold": cold, "warm": statistics.median(times), "peak": peak, **jsonable(found, job["k"])}
    out.write(json.dumps(record) + "\n")
    out.close()


if __name__ == "__main__":
    main()
