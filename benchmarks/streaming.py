"""Peak memory of `reconstruct_checkpoint` on a Llama of twice the memory that it is given.

    python benchmarks/streaming.py [--hidden 768 1024] [--toward own dense] [--layers N] [--out FILE]

What it should take is one block, the moments of its inputs, two sets of hidden states, and a tenth more, beyond what
the process has when the interpreter, NumPy, PyTorch and transformers are loaded and a tiny model was compressed.
Moments are the sums over the inputs that fits are made with, in float64, and the same again over the batches that are
held out for errors: of each of the four distinct inputs of a block its square, with ``toward="own"``; with
``toward="dense"`` the square of the inputs in both models side by side, which is four times as much. The factor of a
moment, its single precision copies and what a refit takes are not among them: they must find their place in the tenth,
or in what is free again by then.

The peak is the largest RssAnon of ``/proc/self/status``, read every few milliseconds: pages of private memory that are
there. Views of files that are only read do not count: the system takes them back whenever it wants to.

The limit that is set is RLIMIT_DATA (Linux): private memory that may be written to, with or without pages, so that the
holes that the C library leaves between arrays count, too. It is the sum and a tenth, and 16 MiB that the core wants to
see free before it calls OpenBLAS. The inner size is 8/3 of the hidden size, and there are as many blocks as make the
weights twice the limit.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import Any

for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"  # before NumPy starts its threads

MIB = 1 << 20
# What must be free where the core calls OpenBLAS, see csrc/linalg/lapack.cpp.
RESERVE = 16 * MIB
LENGTH = 128
AT_ONCE = 1
HELD_OUT = 0.25


def configuration(hidden: int, inner: int, layers: int) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=4096,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
    )


def expected(hidden: int, inner: int, tokens: int, toward: str) -> dict[str, int]:
    """Bytes of a block in float32, of its sums in float64, and of two sets of hidden states."""
    streams = 2 if toward == "dense" else 1
    sides = [streams * side for side in (hidden, hidden, hidden, inner)]
    return {
        "block": 4 * (4 * hidden**2 + 3 * hidden * inner + 2 * hidden),
        "moments": 2 * 8 * sum(side**2 for side in sides),  # those to fit to, and those held out
        "hidden states": 2 * 4 * tokens * hidden,
    }


def now(field: str) -> int:
    """Bytes of a line of ``/proc/self/status``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1]) * 1024


class Peak:
    """Reads the memory that is there all the time, in a thread."""

    def __init__(self) -> None:
        self.bytes = 0
        self.claimed = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._end.wait(0.003):
            self.bytes = max(self.bytes, now("RssAnon"))
            self.claimed = max(self.claimed, now("VmData"))

    def __enter__(self) -> Peak:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join()


def batches(count: int) -> list[dict[str, Any]]:
    import torch

    generator = torch.Generator().manual_seed(1)
    return [{"input_ids": torch.randint(0, 4096, (AT_ONCE, LENGTH), generator=generator)} for _ in range(count)]


def write_model(folder: Path, hidden: int, inner: int, layers: int) -> None:
    """Block by block, as a large one comes: nothing here is to have the whole of it."""
    import numpy as np

    from mpfast.checkpoints import SafetensorsWriter, TensorInfo

    config = configuration(hidden, inner, layers)
    config.architectures, config.dtype = ["LlamaForCausalLM"], "float32"
    config.save_pretrained(folder)
    square = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    shapes = {f"{name}.weight": (hidden, hidden) for name in square}
    shapes |= {"mlp.gate_proj.weight": (inner, hidden), "mlp.up_proj.weight": (inner, hidden)}
    shapes |= {"mlp.down_proj.weight": (hidden, inner)}
    shapes |= {"input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,)}
    infos = [TensorInfo("model.embed_tokens.weight", (4096, hidden), "float32")]
    for layer in range(layers):
        infos += [TensorInfo(f"model.layers.{layer}.{name}", shape, "float32") for name, shape in shapes.items()]
    infos.append(TensorInfo("model.norm.weight", (hidden,), "float32"))
    rng = np.random.default_rng(0)
    with SafetensorsWriter.create(folder / "model.safetensors", infos, {"format": "pt"}) as writer:
        for info in infos:
            if len(info.shape) == 1:
                writer.write(info.name, np.ones(info.shape, np.float32))
            else:
                scale = 1.0 if "embed" in info.name else info.shape[1] ** -0.5
                writer.write(info.name, rng.standard_normal(info.shape, np.float32) * np.float32(scale))


def measure(folder: Path, out: Path, count: int, limit: int, toward: str) -> dict[str, int]:
    """Compress in this process, with so many bytes more than it has; MemoryError where that is not enough."""
    import torch

    from mpfast.integrations.torch import reconstruct_checkpoint

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:  # what is loaded and set up once
        write_model(Path(place) / "tiny", 64, 64, 2)
        reconstruct_checkpoint(Path(place) / "tiny", Path(place) / "out", batches(2), sparsity=0.5, threads=1)
    given = batches(count)
    with Peak() as peak:
        data, before = now("VmData"), now("RssAnon")
        resource.setrlimit(resource.RLIMIT_DATA, (data + limit, data + limit))
        reconstruct_checkpoint(folder, out, given, sparsity=0.5, toward=toward, heldout=HELD_OUT, threads=1)
    return {"before": before, "peak": peak.bytes - before, "claimed": peak.claimed - data}


def in_child(arguments: list[str]) -> tuple[dict[str, int] | None, str]:
    found = subprocess.run([sys.executable, __file__, "--child", *arguments], capture_output=True, text=True)
    return (json.loads(found.stdout.splitlines()[-1]) if found.returncode == 0 else None), found.stderr


def table(hidden: int, toward: str, count: int, layers: int | None) -> list[str]:
    """Lines of what was measured with a model of this size; SystemExit where the limit was too low."""
    inner = -(-8 * hidden // 3 // 64) * 64
    parts = expected(hidden, inner, count * AT_ONCE * LENGTH, toward)
    whole = sum(parts.values())
    limit = whole + whole // 10 + RESERVE
    blocks = layers or -(-2 * limit // parts["block"])
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "model"
        write_model(folder, hidden, inner, blocks)
        size = (folder / "model.safetensors").stat().st_size
        started = time.perf_counter()
        found, said = in_child([str(folder), str(Path(place) / "out"), str(count), str(limit), toward])
        seconds = time.perf_counter() - started
    if found is None:
        raise SystemExit(said)
    return [
        f"## `toward={toward!r}`, hidden size {hidden}",
        "",
        f"A Llama of {blocks} blocks, inner size {inner}, float32: {size / MIB:.0f} MiB of weights. {count} batches of "
        f"{AT_ONCE} x {LENGTH} tokens, a quarter of them held out. {seconds:.0f} s.",
        "",
        "| | MiB |",
        "|---|---|",
        *(f"| {name} | {value / MIB:.1f} |" for name, value in parts.items()),
        f"| these together | {whole / MIB:.1f} |",
        f"| peak (RssAnon) beyond the {found['before'] / MIB:.0f} before | {found['peak'] / MIB:.1f} |",
        f"| limit set (RLIMIT_DATA) beyond what was there before | {limit / MIB:.1f} |",
        f"| most of it that was taken (VmData) | {found['claimed'] / MIB:.1f} |",
        f"| weights over the limit set | {size / limit:.2f} |",
        f"| **peak over block, moments and hidden states** | **{found['peak'] / whole:.3f}** |",
        "",
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hidden", type=int, nargs="+", default=[768, 1024])
    parser.add_argument("--toward", nargs="+", default=["own", "dense"], choices=["own", "dense"])
    parser.add_argument("--batches", type=int, default=32)
    parser.add_argument("--layers", type=int, help="default: as many as make twice the limit")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        folder, out, count, limit, toward = options.child
        print(json.dumps(measure(Path(folder), Path(out), int(count), int(limit), toward)))
        return 0
    lines = [
        "# Peak memory of `reconstruct_checkpoint`",
        "",
        "`python benchmarks/streaming.py`, which says what is counted; one thread, Linux, PyTorch on the CPU; "
        "`sparsity=0.5`.",
        "Seconds are wall time on a machine that others may have used, too: not to be taken for a speed.",
        "",
    ]
    for toward in options.toward:
        for hidden in options.hidden:
            found = table(hidden, toward, options.batches, options.layers)
            print("\n".join(found), flush=True)
            lines += found
    if options.out is not None:
        options.out.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
