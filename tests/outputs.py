"""A small model, what writes outputs of it, and what was written."""

from __future__ import annotations

import re
from functools import partial

import numpy as np
from safetensors.numpy import save_file

import mpfast
from mpfast.support.directory_marks import write_mark
from mpfast.support.output_directories import staged_directory

PRUNE = partial(mpfast.prune, sparsity=0.5, method="magnitude", progress=False)
WRITERS = [PRUNE, partial(mpfast.compress, rank=2), partial(mpfast.compress, rank=2, format="factors")]


def matrix(seed=0, shape=(64, 48)):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def model_in(folder):
    """A model directory of three files."""
    directory = folder / "model"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    for part in range(3):
        tensors = {f"{part}.weight": matrix(part), f"{part}.bias": matrix(9 + part, (64,))}
        save_file(tensors, directory / f"model-{part}.safetensors")
    return directory


def contents(directory):
    """The bytes of every file by its name, without the mark and the time at which a report was written."""
    files = (path for path in directory.rglob("*") if path.is_file() and path.name != ".mpfast.json")
    read = {str(path.relative_to(directory)): path.read_bytes() for path in files}
    return {name: re.sub(rb'"time": "[^"]*"', b'"time": ""', data) for name, data in read.items()}


def written(directory, text):
    with staged_directory(directory, overwrite=True) as staging:
        (staging / "text").write_text(text)
        write_mark(staging, "test")
