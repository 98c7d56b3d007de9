"""Mixtures of tens of thousands of matrices are analysed and reported in little memory of one's own.

Pages of mapped files are not counted: they are the system's, which drops them when it wants.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from .references import run_python

MIB = 1 << 20
#: What a mixture of 30 billion weights, 46,848 matrices, may take.
ALLOWED = 400 * MIB
MATRICES = 61 * 256 * 3

CHILD = """
import gc, json, sys, threading
import numpy as np
import mpfast

blocks, experts, rows, columns, path = *map(int, sys.argv[1:5]), sys.argv[5]


def anonymous():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10


class Peak:
    def __enter__(self):
        gc.collect()
        self.before = self.bytes = anonymous()
        self.end = threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def watch(self):
        while not self.end.wait(0.002):
            self.bytes = max(self.bytes, anonymous())

    def __exit__(self, *error):
        self.end.set()
        self.thread.join()


def write():
    header, size = {}, 2 * rows * columns
    for block in range(blocks):
        for expert in range(experts):
            for projection in ("gate_proj", "up_proj", "down_proj"):
                begin = size * len(header)
                name = f"model.layers.{block}.mlp.experts.{expert}.{projection}.weight"
                header[name] = {"dtype": "BF16", "shape": [rows, columns], "data_offsets": [begin, begin + size]}
    text = json.dumps(header).encode()
    # Windows of one stretch of normal numbers.
    bits = (np.random.default_rng(0).standard_normal(rows * columns + 4096).astype(np.float32).view(np.uint32) >> 16)
    bits = bits.astype(np.uint16)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for number in range(len(header)):
            file.write(bits[number % 4096 :][: rows * columns].tobytes())


write()
with Peak() as peak:
    analysis = mpfast.analyze(path, threads=2, progress=False)
    summary, page = analysis.to_json(expert_rows="summary"), analysis.to_html() if sys.argv[6] == "page" else ""
found = {"peak": peak.bytes - peak.before, "rows": len(analysis), "summaries": len(json.loads(summary)["experts"])}
print(json.dumps(found | {"reports": len(summary) + len(page)}))
"""


def measured(path, blocks, experts, rows, columns, page=""):
    done = run_python("-c", CHILD, *map(str, (blocks, experts, rows, columns, path, page)), timeout=3600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_fifteen_hundred_matrices(tmp_path):
    """What one matrix and the threads need, and at most the share of so many rows; twice that, as pages are counted."""
    found = measured(tmp_path / "m.safetensors", 2, 250, 96, 128)
    assert (found["rows"], found["summaries"]) == (1500, 6)
    assert found["peak"] < 2 * (16 * MIB + ALLOWED * 1500 / MATRICES)
    assert found["reports"] < MIB


@pytest.mark.slow
def test_matrices_of_the_size_that_mixtures_have(tmp_path):
    """One block of 48 of a mixture of 30 billion weights, in sparse files, in bfloat16 and in blocks of float8."""
    script = Path(__file__).parents[1] / "benchmarks" / "mixture.py"
    done = run_python(str(script), "--blocks", "1", "--threads", "2", "--folder", str(tmp_path), timeout=3600)
    assert done.returncode == 0, done.stderr  # the script's own bound on the peak
    found = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith(("| bf16", "| fp8"))]
    assert [(weights, matrices, known) for _, weights, matrices, known, *_ in found] == 2 * [("0.6 B", "389", "29")]


@pytest.mark.slow
def test_as_many_matrices_as_the_largest_mixtures_have(tmp_path):
    """61 layers of 256 experts with three projections, small ones: their rows, summaries, JSON and page."""
    found = measured(tmp_path / "m.safetensors", 61, 256, 24, 32, "page")
    assert (found["rows"], found["summaries"]) == (MATRICES, 183)
    assert found["peak"] < ALLOWED
    assert found["reports"] < 4 * MIB
