"""Fuzz one reader: ``python tests/fuzz/fuzz.py TARGET CPU_SECONDS STATE CORPUS [libFuzzer options]``.

An exception that a reader must not raise is kept as ``STATE/finding-<hash>`` with its traceback, once for each place it
comes from, and the search goes on; a crash, a time-out or too much memory ends the run, and libFuzzer keeps the input.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
import traceback
from pathlib import Path

import atheris

# Behind everything else: what is fuzzed is the installed package, not the checkout, which has no compiled core.
sys.path.append(str(Path(__file__).resolve().parents[2]))

INSTRUMENTED = [
    "mpfast",
    "tests.fuzz",
    "zipfile",
    "json",
    "numpy.lib",
    "onnx.numpy_helper",
    "torch._weights_only_unpickler",
]
with atheris.instrument_imports(include=INSTRUMENTED):
    from tests.fuzz.targets import run_target

STATISTICS_EVERY = 256


class Search:
    """Runs inputs, keeps what is found, and ends the process when its processor time is used up."""

    def __init__(self, target: str, seconds: float, state: Path) -> None:
        self._target = target
        self._seconds = seconds
        self._state = state
        self._begin = time.process_time()
        self._inputs = 0
        self._places: set[tuple[str, str, int]] = set()

    def __call__(self, content: bytes) -> None:
        try:
            run_target(self._target, content)
        except Exception as error:
            self._keep(content, error)
        self._inputs += 1
        if self._inputs % STATISTICS_EVERY == 0 or time.process_time() - self._begin > self._seconds:
            self._report()

    def _keep(self, content: bytes, error: Exception) -> None:
        frames = traceback.extract_tb(error.__traceback__)
        inside = [frame for frame in frames if f"{os.sep}mpfast{os.sep}" in frame.filename] or list(frames)
        place = (type(error).__name__, inside[-1].filename, inside[-1].lineno or 0)
        if place not in self._places:
            self._places.add(place)
            name = f"finding-{hashlib.sha256(repr(place).encode()).hexdigest()[:12]}"
            (self._state / name).write_bytes(content)
            (self._state / f"{name}.txt").write_text("".join(traceback.format_exception(error)), errors="replace")

    def _report(self) -> None:
        used = time.process_time() - self._begin
        (self._state / "statistics.json").write_text(json.dumps({"seconds": used, "inputs": self._inputs}))
        if used > self._seconds:
            sys.stderr.flush()
            os._exit(0)  # the corpus is on disk already


def main() -> None:
    target, seconds, state, *options = sys.argv[1:]
    search = Search(target, float(seconds), Path(state))
    atheris.Setup([sys.argv[0], *options], search)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
