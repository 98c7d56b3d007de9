"""Examples in docstrings and in the README do what they say; public names exist and are documented."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import inspect
import re
from pathlib import Path

import numpy as np
import pytest

import mpfast

README = Path(__file__).parents[1] / "README.md"
OPTIONAL = {"mpfast.cli": "typer", "mpfast.integrations.torch": "torch"}


def modules():
    folder = Path(mpfast.__file__).parent
    files = [file.relative_to(folder.parent).with_suffix("") for file in sorted(folder.rglob("*.py"))]
    names = [".".join(file.parts).removesuffix(".__init__") for file in files]
    return [name for name in names if not name.endswith("__main__")]


@pytest.mark.parametrize("name", modules())
def test_docstring_examples(name):
    for package, needed in OPTIONAL.items():
        if name == package or name.startswith(f"{package}."):
            pytest.importorskip(needed)
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


@pytest.mark.parametrize("name", mpfast.__all__)
def test_public_names_are_documented(name):
    thing = getattr(mpfast, name)
    assert inspect.getdoc(thing), name
    if inspect.isfunction(thing):
        text = inspect.getdoc(thing)
        assert "Returns" in text or "Return" in text
        for parameter in inspect.signature(thing).parameters:
            assert parameter in text, f"{name}() does not document {parameter}"


def test_readme_python_runs(tmp_path, monkeypatch):
    """Every Python block of the README, one after the other, with the arrays and the file it takes for granted."""
    rng = np.random.default_rng(0)
    W = rng.standard_normal((120, 160)) + 6 * np.outer(rng.standard_normal(120), rng.standard_normal(160)) / 10
    np.savez(tmp_path / "model.npz", fc=W)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert blocks
    names = {"W": W, "W1": W, "W2": 2 * W}
    for block in blocks:
        if "torch" in block and importlib.util.find_spec("torch") is None:
            continue
        exec(compile(block.replace("model.safetensors", "model.npz"), str(README), "exec"), names)
    assert names["edge"].spikes >= 1


def test_the_version_is_the_one_of_the_package():
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", mpfast.__version__)


def test_types_are_shipped():
    folder = Path(mpfast.__file__).parent
    assert (folder / "py.typed").exists()
    assert (folder / "_core.pyi").exists()
