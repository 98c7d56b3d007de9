"""The inputs that fuzzing found worth keeping, run once each: a reader works or refuses, and raises nothing else."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from .fuzz.structure import Bytes, altered
from .fuzz.targets import NEEDS, TARGETS, run_target

CORPUS = Path(__file__).parent / "fuzz" / "corpus"


@pytest.mark.parametrize("target", TARGETS)
def test_corpus(target):
    if target in NEEDS and importlib.util.find_spec(NEEDS[target]) is None:
        pytest.skip(f"needs {NEEDS[target]}")
    inputs = sorted((CORPUS / target).iterdir())
    assert inputs
    for path in inputs:
        try:
            run_target(target, path.read_bytes())
        except Exception as error:
            pytest.fail(f"{path.name}: {type(error).__name__}: {error}")


def test_the_corpus_is_small():
    for target in TARGETS:
        files = list((CORPUS / target).iterdir())
        assert len(files) <= 40
        assert sum(path.stat().st_size for path in files) <= 40_000


def test_a_finding_is_seen(monkeypatch):
    def fail(_):
        raise IndexError("inside")

    monkeypatch.setattr("mpfast.checkpoints.numpy_files._read_npy_header", fail)
    with pytest.raises(IndexError, match="inside"):
        run_target("npy", b"\x00rest")


def test_structure_is_reproducible():
    document = {"a": [1, 2, {"b": None}], "c": "text"}
    for seed in range(50):
        content = bytes((seed * 37 + i * 11) % 256 for i in range(60))
        assert repr(altered(document, Bytes(content))) == repr(altered(document, Bytes(content)))
    assert document == {"a": [1, 2, {"b": None}], "c": "text"}
