"""Loads the native core; the package imports this before everything else.

As it is loaded OpenBLAS starts a thread for every further processor, each of which spins for 2^26 cycles before it goes
to sleep. Our copy of it is used from one thread at a time (the core has threads of its own), and it asks the
environment, hence the variable, which no other library should find.

NumPy comes first: its OpenBLAS keeps its threads, and in a second interpreter, where the core would wait for ever, it
says that it cannot be loaded twice.
"""

import os
from pathlib import Path

import numpy  # noqa: F401

_VARIABLE = "OPENBLAS_NUM_THREADS"

_before = os.environ.get(_VARIABLE)
os.environ[_VARIABLE] = "1"
try:
    import mpfast._core  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError(
        f"{Path(__file__).parent} has no native core for this Python: if it is the sources of mpfast, run Python from "
        "another directory, or install them with `pip install -e .`"
    ) from error
finally:
    if _before is None:
        del os.environ[_VARIABLE]
    else:
        os.environ[_VARIABLE] = _before
