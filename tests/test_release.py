"""What a release consists of agrees with itself."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import json
import re
import sys
from pathlib import Path

import pytest

import mpfast
from mpfast.support import package_missing

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


def test_what_needs_a_package_says_which_and_by_which_extra_it_comes(project):
    """The package is in no index: no advice to install an extra of it from one."""
    assert str(package_missing("reading", "gguf", extra="gguf")) == 'reading needs the package gguf (extra "gguf")'
    assert str(package_missing("it", "a", "b")) == "it needs the packages a and b"
    folder = Path(mpfast.__file__).parent
    extras = project["optional-dependencies"]
    asked = 0
    for file in folder.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert "mpfast[" not in text, file
        for call in ast.walk(ast.parse(text)):
            if not isinstance(call, ast.Call) or getattr(call.func, "id", "") != "package_missing":
                continue
            extra = [keyword.value.value for keyword in call.keywords]
            required = {re.split(r"[\[>=]", line)[0] for line in extras[extra[0]]} if extra else set()
            packages = [argument.value for argument in call.args[1:]]
            assert packages, file
            assert not extra or set(packages) <= required, file
            asked += 1
    assert asked >= 10


@pytest.fixture(scope="module")
def installed():
    """Every installed file by its name within the wheel."""
    files = {str(file).replace("\\", "/"): Path(file.locate()) for file in importlib.metadata.files("mpfast") or []}
    if not any(".dist-info/sboms/" in name for name in files):
        pytest.skip("this mpfast was not installed from a wheel")
    return files


@pytest.fixture(scope="module")
def boms(installed):
    """Ours, and that of what repaired the wheel, where it had to add a library."""
    return {
        path.name: json.loads(path.read_text(encoding="utf-8"))
        for name, path in installed.items()
        if ".dist-info/sboms/" in name
    }


def test_a_bill_of_materials_is_installed(boms):
    """PEP 770: what the wheel carries, with versions and licences, beside its metadata."""
    document = boms["mpfast.cdx.json"]
    assert document["bomFormat"] == "CycloneDX"
    assert document["metadata"]["component"]["version"] == mpfast.__version__
    components = {component["name"]: component for component in document["components"]}
    assert {"scipy-openblas32", "GCC runtime library", "pybind11"} <= set(components)
    assert all(component["licenses"][0]["expression"] for component in components.values())
    assert re.fullmatch("[0-9a-f]{64}", components["scipy-openblas32"]["hashes"][0]["content"])


def test_every_library_in_the_wheel_is_in_the_bill_of_materials(installed, boms):
    libraries = [
        path
        for name, path in installed.items()
        if re.search(r"\.(so|dylib|dll|pyd)(\.|$)", name) and not re.fullmatch(r"mpfast/_(core|cuda)\.[^/]*", name)
    ]
    assert libraries
    components = [component for document in boms.values() for component in document["components"]]
    for library in libraries:
        named = [component for component in components if library.name in json.dumps(component)]
        assert named, library.name
        if sys.platform == "linux":  # elsewhere the repair of a wheel rewrites load commands
            digest = hashlib.sha256(library.read_bytes()).hexdigest()
            assert digest in [h["content"] for component in named for h in component.get("hashes", [])], library.name


def test_the_texts_of_the_licences_are_installed(installed, boms):
    text = next(path for name, path in installed.items() if name.endswith("/LICENSE-THIRD-PARTY.txt")).read_text(
        "utf-8"
    )
    titles = {
        "BSD-3-Clause": "Redistribution and use in source and binary forms",
        "BSD-3-Clause-Open-MPI": "The copyright holders provide no reassurances",
        "GPL-3.0-or-later": "GNU GENERAL PUBLIC LICENSE\n                       Version 3, 29 June 2007",
        "GCC-exception-3.1": "GCC RUNTIME LIBRARY EXCEPTION\n\nVersion 3.1, 31 March 2009",
        "LicenseRef-NVIDIA-CUDA-EULA": "CUDA Toolkit End User License\nAgreement",
    }
    for component in boms["mpfast.cdx.json"]["components"]:
        for licence in re.split(" AND | WITH ", component["licenses"][0]["expression"]):
            assert titles[licence] in text


def test_no_path_of_the_machine_that_built_it_is_in_the_core():
    """Reproducible: a module holds no folder of its build."""
    from mpfast import _core

    content = Path(_core.__file__).read_bytes()
    assert not re.findall(rb"/(?:tmp|home|root|build|project|Users|private|var|usr)/[\w./+-]+", content)
    assert b"/csrc/cpu/" not in content.replace(b"./csrc/cpu/", b"")
