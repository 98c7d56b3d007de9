"""What a release consists of agrees with itself."""

from __future__ import annotations

import importlib.metadata
import json
import re
import sys
from pathlib import Path

import pytest

import mpfast

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = None

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def project():
    if tomllib is None:
        pytest.skip("tomllib came with Python 3.11")
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_one_version_everywhere(project):
    """pyproject.toml has it; what is cited, what has changed and what is installed must be the same."""
    version = project["version"]
    assert mpfast.__version__ == version
    assert re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), flags=re.MULTILINE)[1] == version
    assert re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)[1] == version


def test_every_supported_python_is_named(project):
    lowest = int(re.fullmatch(r">=3\.(\d+)", project["requires-python"])[1])
    named = [c for c in project["classifiers"] if re.fullmatch(r"Programming Language :: Python :: 3\.\d+", c)]
    minors = [int(c.rsplit(".", 1)[1]) for c in named]
    assert minors == list(range(lowest, max(minors) + 1))
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["cibuildwheel"]
    assert config["build"] == [f"cp3{minor}-*" for minor in minors]


def test_the_core_needs_numpy_alone(project):
    assert [re.match(r"[\w-]+", requirement)[0] for requirement in project["dependencies"]] == ["numpy"]


def test_a_bill_of_materials_is_installed():
    """PEP 770: what the wheel carries, with versions and licences, beside its metadata."""
    files = importlib.metadata.files("mpfast") or []
    boms = [file for file in files if ".dist-info/sboms/" in str(file).replace("\\", "/")]
    if not boms:
        pytest.skip("this mpfast was not installed from a wheel")
    bom = next(b for b in boms if b.name == "mpfast.cdx.json")
    document = json.loads(Path(bom.locate()).read_text(encoding="utf-8"))
    assert document["bomFormat"] == "CycloneDX"
    assert document["metadata"]["component"]["version"] == mpfast.__version__
    components = {component["name"]: component for component in document["components"]}
    assert {"scipy-openblas32", "pybind11"} <= set(components)
    assert all(component["licenses"][0]["expression"] for component in components.values())
    assert re.fullmatch("[0-9a-f]{64}", components["scipy-openblas32"]["hashes"][0]["content"])


def test_no_path_of_the_machine_that_built_it_is_in_the_core():
    """Reproducible: a module holds no folder of its build."""
    from mpfast import _core

    content = Path(_core.__file__).read_bytes()
    assert b"/csrc/cpu/" not in content.replace(b"./csrc/cpu/", b"")
