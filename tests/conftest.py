"""Fixtures that several test modules share."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest

# Before NumPy is imported: its BLAS threads spin while they wait, and tests run side by side.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# No test depends on time, and so none of Hypothesis's. (The tests on the emulated device run without it.)
with contextlib.suppress(ImportError):
    from hypothesis import settings

    settings.register_profile("untimed", deadline=None)
    settings.load_profile("untimed")

MISSING = "MPFAST_EMULATED_CUDA names no emulated build of the CUDA backend (see tests/emulation/README.md)"


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> Iterator[None]:
    """Let Ctrl-C arrive here and in child processes: a shell's background jobs begin with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def cuda() -> Any:
    """Return the CUDA module on the emulated device, in the place of ``mpfast._cuda``."""
    path = os.environ.get("MPFAST_EMULATED_CUDA")
    if not path:
        pytest.skip(MISSING)
    spec = importlib.util.spec_from_file_location("mpfast._cuda", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    before = sys.modules.get("mpfast._cuda")
    sys.modules["mpfast._cuda"] = module
    yield module
    sys.modules.pop("mpfast._cuda")
    if before is not None:
        sys.modules["mpfast._cuda"] = before
