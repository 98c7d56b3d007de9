"""The command line in this process, and small models for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest


def run_main(capsys: Any, *arguments: Any) -> tuple[int, str, str]:
    """Return exit status, standard output and standard error."""
    from mpfast.cli.app import main

    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return end.value.code or 0, captured.out, captured.err


def matrices(seed: int = 0, **changes: Any) -> dict[str, Any]:
    """Return three layers and a vector, by name."""
    rng = np.random.default_rng(seed)
    tensors = {f"layers.{i}.fc.weight": rng.standard_normal((48, 64)).astype(np.float32) for i in range(3)}
    return {**tensors, "norm.weight": np.ones(64, np.float32), **changes}
