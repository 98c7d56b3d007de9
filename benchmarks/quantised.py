"""What quantised weights cost beside bfloat16: the edge of a matrix, of a stack of experts, and a checkpoint.

    python benchmarks/quantised.py [--threads 2] [--gigabytes 4] [--folder DIR] [--out FILE.md]

Edges: the default call of `mpfast.spectrum` on normal numbers as they are stored in files, in interleaved rounds, and
how far the edge is from that of the same numbers decoded to float32. Checkpoints: `mpfast.analyze` of the shapes of an
8-billion-parameter LLaMA in blocks of float8 and in bfloat16, each a process of its own, read from the system's cache.
Of `--gigabytes` of float8, 0 for none, the twin in bfloat16 has twice as many.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import SHAPES, into_cache
from numpy.typing import NDArray
from printed import machine_line, print_or_write

import mpfast
from mpfast.arrays import narrowed
from mpfast.checkpoints import SafetensorsWriter, TensorInfo, open_checkpoint
from mpfast.checkpoints.quantised.codes import E2M1, FLOAT8

ROUNDS = 9
MATRICES = ((4096, 14336), (14336, 4096))
STACK = (4, 5760, 2880)  # experts of gpt-oss: gate and up projections
FLOAT8_CONFIG = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}}
MXFP4_CONFIG = {"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}}


def nearest(values: NDArray[np.float32], W: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Codes of the nearest of `values`, of two the lower one."""
    known = np.flatnonzero(np.isfinite(values))
    order = known[np.argsort(values[known], kind="stable")]
    middles = (values[order][1:] + values[order][:-1]) / 2
    found: NDArray[np.uint8] = order[np.searchsorted(middles, W)].astype(np.uint8)
    return found


def float8_blocks(name: str, W: NDArray[np.float32]) -> dict[str, tuple[str, NDArray[Any]]]:
    """A weight as DeepSeek stores it, E4M3 under scales of 128 x 128."""
    blocks = W.reshape(W.shape[0] // 128, 128, W.shape[1] // 128, 128)
    scales = np.abs(blocks).max(axis=(1, 3)) / np.float32(448)
    codes = nearest(FLOAT8["float8_e4m3fn"], blocks / scales[:, None, :, None]).reshape(W.shape)
    return {name: ("float8_e4m3fn", codes), f"{name}_scale_inv": ("float32", scales)}


def mxfp4_stack(name: str, W: NDArray[np.float32]) -> dict[str, tuple[str, NDArray[Any]]]:
    """A stack of experts as gpt-oss stores it, E2M1 under powers of two for every 32 of a row."""
    blocks = W.reshape(*W.shape[:-1], -1, 32)
    powers = np.floor(np.log2(np.abs(blocks).max(axis=-1))) - 2
    codes = nearest(E2M1, blocks * np.exp2(-powers)[..., None].astype(np.float32))
    pairs = codes[..., ::2] | codes[..., 1::2] << 4
    return {f"{name}_blocks": ("uint8", pairs), f"{name}_scales": ("uint8", (powers + 127).astype(np.uint8))}


def write(folder: Path, files: Iterable[Mapping[str, tuple[str, NDArray[Any]]]], config: Mapping[str, Any]) -> None:
    """Write a checkpoint of some files with an index."""
    folder.mkdir()
    weight_map: dict[str, str] = {}
    for number, tensors in enumerate(files):
        file = f"model-{number:05}.safetensors"
        infos = [TensorInfo(name, array.shape, dtype) for name, (dtype, array) in tensors.items()]
        with SafetensorsWriter.create(folder / file, infos, {"format": "pt"}) as writer:
            for name, (_, array) in tensors.items():
                writer.write(name, array)
                weight_map[name] = file
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps(config))


def medians(functions: list[Callable[[], object]]) -> list[float]:
    """Median seconds of each, in interleaved rounds."""
    taken: list[list[float]] = [[] for _ in functions]
    for function in functions:
        function()
    for _ in range(ROUNDS):
        for times, function in zip(taken, functions, strict=True):
            started = time.perf_counter()
            function()
            times.append(time.perf_counter() - started)
    return [statistics.median(times) for times in taken]


def edge_line(folder: Path, label: str, W: NDArray[np.float32], parts: Any, config: Any, threads: int) -> str:
    """Write both forms of a matrix or a stack, and measure the edges of all of its matrices."""
    quantised, dense = folder / f"{label} codes", folder / f"{label} bf16"
    write(quantised, [parts("l.weight" if W.ndim == 2 else "model.layers.0.mlp.experts.gate_up_proj", W)], config)
    write(dense, [{"l.weight": ("bfloat16", narrowed(W))}], {})
    checkpoints = [open_checkpoint(quantised), open_checkpoint(dense)]
    names = [next(info.name for info in checkpoint.tensors if info.size == W.size) for checkpoint in checkpoints]

    def edges(place: int) -> list[float]:
        tensor = checkpoints[place].read(names[place])
        matrices = [tensor] if W.ndim == 2 else [tensor[k] for k in range(len(W))]
        bits = [matrix if place == 0 else _bfloat16(matrix) for matrix in matrices]
        return [mpfast.spectrum(matrix, threads=threads).edge.sigma_plus for matrix in bits]

    seconds = medians([lambda: edges(0), lambda: edges(1)])
    numbers = np.asarray(checkpoints[0].read(names[0])).reshape(-1, *W.shape[-2:])
    exact = [mpfast.spectrum(matrix, threads=threads).edge.sigma_plus for matrix in numbers]
    error = max(abs(found / wanted - 1) for found, wanted in zip(edges(0), exact, strict=True))
    shape = " x ".join(map(str, W.shape))
    fast, slow = (f"{1e3 * each:.1f}" for each in seconds)
    return f"| {label} | {shape} | {fast} | {slow} | {seconds[0] / seconds[1]:.2f} | {error:.0e} |"


def _bfloat16(bits: NDArray[np.uint16]) -> Any:
    return mpfast._core.Matrix(bits, "bfloat16")


def model_layers(layers: int, parts: Any) -> Iterator[dict[str, tuple[str, NDArray[Any]]]]:
    """The weights of a model layer by layer, stored as `parts` says."""
    rng = np.random.default_rng(0)
    noise = 0.02 * rng.standard_normal(1 << 27, dtype=np.float32)
    for layer in range(layers):
        tensors: dict[str, tuple[str, NDArray[Any]]] = {}
        for module, (rows, columns) in SHAPES.items():
            start = int(rng.integers(0, len(noise) - rows * columns))
            W = noise[start : start + rows * columns].reshape(rows, columns)
            tensors |= parts(f"model.layers.{layer}.{module}.weight", W)
        yield tensors


def checkpoint_lines(folder: Path, gigabytes: float, threads: int) -> list[str]:
    """Write a model in float8 and its twin, and measure `analyze` of each."""
    in_layer = sum(rows * columns for rows, columns in SHAPES.values())
    layers = max(1, round(gigabytes * 1e9 / in_layer))
    weights = layers * in_layer
    seconds = {}
    for label, parts, config in (
        ("fp8", float8_blocks, FLOAT8_CONFIG),
        ("bf16", lambda name, W: {name: ("bfloat16", narrowed(W))}, {}),
    ):
        write(folder / label, model_layers(layers, parts), config)
        into_cache(folder / label)
        command = [sys.executable, "-m", "mpfast", "analyze", str(folder / label), "--threads", str(threads)]
        started = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, cwd=tempfile.gettempdir(), check=True)
        seconds[label] = time.perf_counter() - started
    each = {label: f"{1e9 * found / weights:.2f} s" for label, found in seconds.items()}
    ratio = seconds["fp8"] / seconds["bf16"]
    return [
        "",
        "| checkpoint | weights | fp8, for 10^9 | bf16, for 10^9 | ratio |",
        "|---|---|---|---|---|",
        f"| analyze | {weights / 1e9:.2f} 10^9 | {each['fp8']} | {each['bf16']} | {ratio:.2f} |",
    ]


def main() -> None:
    """Write the weights, measure, write a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--folder", type=Path, default=None, help="where to write; default a temporary folder")
    parser.add_argument("--out", type=Path, default=None, help="Markdown file; default standard output")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    lines = [
        machine_line(),
        "",
        "| stored as | shape | edge, ms | of bf16, ms | ratio | error of the edge |",
        "|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = Path(temporary).resolve()
        for shape in MATRICES:
            W = 0.02 * rng.standard_normal(shape, dtype=np.float32)
            label = f"fp8 128x128, {'wide' if shape[0] < shape[1] else 'tall'}"
            lines.append(edge_line(folder, label, W, float8_blocks, FLOAT8_CONFIG, options.threads))
        W = 0.02 * rng.standard_normal(STACK, dtype=np.float32)
        lines.append(edge_line(folder, "MXFP4, gpt-oss", W, mxfp4_stack, MXFP4_CONFIG, options.threads))
        if options.gigabytes > 0:
            lines += checkpoint_lines(folder, options.gigabytes, options.threads)
    text = "\n".join(lines) + "\n"
    print_or_write(text, options.out)


if __name__ == "__main__":
    main()
