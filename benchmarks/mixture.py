"""Peak memory of `analyze` on a mixture of 30 billion weights, whose files hold next to nothing.

    python benchmarks/mixture.py [--blocks 48] [--format bf16 fp8] [--every 16] [--threads N] [--out FILE]

The directory has the names, shapes and shards of Qwen3-30B-A3B: 48 blocks of 128 experts with three projections of
768 x 2048, four of attention, and a router. The files are sparse: they are as long as those of the model, 61 GB in
bfloat16, and take the disk of what is written in them, which is one expert of ``--every``. All others are zeros. A
child process analyses it and reports the largest RssAnon of ``/proc/self/status`` beyond what it has when mpfast is
imported: memory of its own. Pages of the mapped files do not count; the system takes them back whenever it wants to.

It should be below 400 MiB. ``--blocks 2`` is a run of a few seconds to see that it works.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np

from mpfast.arrays import narrowed
from mpfast.checkpoints import SafetensorsWriter, TensorInfo

MIB = 1 << 20
ALLOWED = 400 * MIB
HIDDEN, INNER, EXPERTS = 2048, 768, 128
ATTENTION = {"q_proj": (4096, HIDDEN), "k_proj": (512, HIDDEN), "v_proj": (512, HIDDEN), "o_proj": (HIDDEN, 4096)}
PROJECTIONS = {"gate_proj": (INNER, HIDDEN), "up_proj": (INNER, HIDDEN), "down_proj": (HIDDEN, INNER)}
BLOCKS_PER_SHARD = 3
SIDE = 128


def matrices_of(block: int) -> dict[str, tuple[int, int]]:
    """Names and shapes of the weights of a block."""
    prefix = f"model.layers.{block}"
    found = {f"{prefix}.self_attn.{name}.weight": shape for name, shape in ATTENTION.items()}
    found[f"{prefix}.mlp.gate.weight"] = (EXPERTS, HIDDEN)
    for expert in range(EXPERTS):
        for name, shape in PROJECTIONS.items():
            found[f"{prefix}.mlp.experts.{expert}.{name}.weight"] = shape
    return found


def parts_of(name: str, shape: tuple[int, int], form: str) -> list[TensorInfo]:
    """What is stored of a weight."""
    if form == "bf16" or name.endswith("mlp.gate.weight"):
        return [TensorInfo(name, shape, "bfloat16")]
    blocks = (-(-shape[0] // SIDE), -(-shape[1] // SIDE))
    return [TensorInfo(name, shape, "float8_e4m3fn"), TensorInfo(f"{name}_scale_inv", blocks, "float32")]


def write_model(folder: Path, blocks: int, form: str, every: int) -> int:
    """Write the directory; return how many weights it has."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(1 << 24).astype(np.float32)
    codes = rng.integers(0, 0x7E, 1 << 24).astype(np.uint8) | rng.integers(0, 2, 1 << 24).astype(np.uint8) << 7
    weight_map, count = {}, 0
    for first in range(0, blocks, BLOCKS_PER_SHARD):
        file = f"model-{first // BLOCKS_PER_SHARD + 1:05}-of-{-(-blocks // BLOCKS_PER_SHARD):05}.safetensors"
        names = {
            name: shape
            for at in range(first, min(first + BLOCKS_PER_SHARD, blocks))
            for name, shape in matrices_of(at).items()
        }
        stored = [part for name, shape in names.items() for part in parts_of(name, shape, form)]
        writer = SafetensorsWriter.create(folder / file, stored, {"format": "pt"})
        for part in stored:
            words = part.name.split(".")
            if "experts" in words and int(words[words.index("experts") + 1]) % every:
                continue  # stays a hole
            start = int(rng.integers(0, len(noise) - part.size))
            if part.dtype == "bfloat16":
                writer.write(part.name, narrowed(0.02 * noise[start : start + part.size]))
            elif part.dtype == "float32":
                writer.write(part.name, np.full(part.size, 1e-4, np.float32))
            else:
                writer.write(part.name, codes[start : start + part.size])
        writer.abandon()  # as it is: what was not written are zeros that take no disk
        weight_map |= {part.name: file for part in stored}
        count += sum(rows * columns for rows, columns in names.values())
    index = {"metadata": {"total_size": count * (2 if form == "bf16" else 1)}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {"model_type": "qwen3_moe", "hidden_size": HIDDEN, "moe_intermediate_size": INNER, "num_experts": EXPERTS}
    if form == "fp8":
        config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [SIDE, SIDE]}
    (folder / "config.json").write_text(json.dumps(config))
    return count


def anonymous() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon:")).split()[1]) * 1024


def analysed(folder: str, threads: int | None) -> dict[str, int]:
    """Analyse the directory in this process, and watch its memory in a thread."""
    import mpfast

    before = largest = anonymous()
    end = threading.Event()

    def watch() -> None:
        nonlocal largest
        while not end.wait(0.003):
            largest = max(largest, anonymous())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        analysis = mpfast.analyze(folder, threads=threads, progress=False)
        text = analysis.to_json(expert_rows="summary")
    finally:
        end.set()
        thread.join()
    found = sum(row.sigma_plus > 0 for row in analysis)
    return {"peak": largest - before, "rows": len(analysis), "with an edge": found, "json": len(text)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=48)
    parser.add_argument("--format", nargs="+", choices=["bf16", "fp8"], default=["bf16", "fp8"])
    parser.add_argument("--every", type=int, default=16, help="one expert of so many has numbers")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--folder", help="where to write; on a file system with sparse files")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(analysed(options.child, options.threads)))
        return 0
    lines = [
        "# Peak memory of `analyze` on a mixture of 30 billion weights",
        "",
        f"`python benchmarks/mixture.py --blocks {options.blocks}`, which says what is counted; Linux.",
        "Time not taken: machine shared.",
        "",
        "| stored as | weights | matrices | with an edge | peak of RssAnon (MiB) |",
        "|---|---|---|---|---|",
    ]
    largest = 0
    for form in options.format:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            weights = write_model(Path(folder), options.blocks, form, options.every)
            more = [] if options.threads is None else ["--threads", str(options.threads)]
            command = [sys.executable, __file__, "--child", folder, *more]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
        largest = max(largest, found["peak"])
        figures = (f"{weights / 1e9:.1f} B", f"{found['rows']:,}", f"{found['with an edge']:,}")
        lines.append(f"| {' | '.join((form, *figures))} | {found['peak'] / MIB:.0f} |")
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if options.out is not None:
        options.out.write_text(text, encoding="utf-8")
    return int(largest > ALLOWED)


if __name__ == "__main__":
    sys.exit(main())
