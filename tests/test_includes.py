"""The order of csrc's folders: which file may include which, and no switch that hides a missing case."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent / "csrc"
# What the files of a folder may include besides those of the folder itself.
ALLOWED = {
    "core": set[str](),
    "random": {"core"},
    "masks": {"core"},
    "reconstruct": {"core"},
    "linalg": {"core", "random", "masks"},
    "cpu": {"core", "random", "masks", "reconstruct", "linalg"},
    "cuda": {"core", "random", "masks", "reconstruct", "linalg"},
    "python": {"core", "random", "masks", "reconstruct", "linalg", "cpu"},
    "python/cuda": {"core", "random", "masks", "reconstruct", "linalg", "cuda", "python"},
}
# From outside csrc: OpenBLAS, and the device that tests act out.
FOREIGN = {"cblas.h", "emulation/platform.hpp"}

SOURCES = {str(p.relative_to(ROOT)): p.read_text(encoding="utf-8") for p in sorted(ROOT.rglob("*.[ch]*"))}
INCLUDES = {
    name: [found for found in re.findall(r'^\s*#include "(.+)"', text, re.MULTILINE) if found not in FOREIGN]
    for name, text in SOURCES.items()
}


def _folder(name: str) -> str:
    return "python/cuda" if name.startswith("python/cuda/") else name.split("/", maxsplit=1)[0]


def _reached(name: str, above: tuple[str, ...] = ()) -> set[str]:
    """Everything a file includes, directly or not."""
    assert name not in above, f"a circle: {' -> '.join((*above, name))}"
    return set(INCLUDES[name]).union(*(_reached(each, (*above, name)) for each in INCLUDES[name]))


def test_folders_include_those_below_them_alone() -> None:
    assert len(SOURCES) > 80
    for name, included in INCLUDES.items():
        for each in included:
            assert each in SOURCES, f"{name} includes {each}, which is not in csrc"
            same = _folder(each) == _folder(name)
            assert same or _folder(each) in ALLOWED[_folder(name)], f"{name} includes {each}"


def test_no_file_includes_itself_and_the_device_module_nothing_of_the_cpu() -> None:
    for name in SOURCES:
        reached = {_folder(each) for each in _reached(name)}
        assert not ({"cpu", "cuda"} <= reached), f"{name} reaches both cpu and cuda"


def test_switches_name_every_case() -> None:
    """The compiler only says which element type a switch lacks where the switch has no default."""
    for name, text in SOURCES.items():
        assert not re.search(r"\bdefault\s*:", text), f"{name} has a default"
