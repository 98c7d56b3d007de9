"""Write ``roofline.md``: what each CUDA kernel uses and moves, and what that allows on an H200. Needs nvcc, no GPU.

    python benchmarks/roofline.py            # compiles for every target, writes benchmarks/roofline.md

Registers and spills are the compiler's; shared memory and blocks come from the plans of the installed mpfast; bytes and
flops are counted from the kernels' definitions. Times are bounds, not measurements: ``benchmarks/gpu.py`` measures.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGETS = ("sm_80", "sm_90", "sm_100")
PRODUCT_KERNELS = "csrc/cuda/products/product_kernels.cu"
CODED_KERNELS = "csrc/cuda/products/coded_product_kernels.cu"
FLAGS = ("-std=c++20", "--expt-relaxed-constexpr", "-O3", "-Icsrc", "-Xptxas=-v", "-cubin", "-o", "/dev/null")
ENTRY_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class H200:
    """Data sheet figures of the device, and its limits per multiprocessor."""

    bandwidth: float = 4.8e12
    copy_rate: float = 4.3e12
    fp32: float = 67e12
    fp64: float = 34e12
    multiprocessors: int = 132
    clock: float = 1.98e9
    shared_per_block: int = 227 << 10
    shared_per_multiprocessor: int = 228 << 10
    registers: int = 65536
    threads: int = 2048
    largest_cluster: int = 8


@dataclass(frozen=True)
class Kernel:
    """One compiled kernel."""

    name: str
    target: str
    registers: int
    spilled: int


def element_types() -> list[str]:
    """The storage types, in the order of DType, from the list that the build goes by."""
    listed = re.search(r"set\(element_types ([\w ]+)\)", (ROOT / "cmake/cuda.cmake").read_text(encoding="utf-8"))
    assert listed is not None
    return listed[1].split()


def products() -> list[tuple[str, str]]:
    """Storage type and precision of the vectors of every build of the product kernels."""
    pairs = [(storage, real) for real in ("double", "float") for storage in element_types()]
    return [pair for pair in pairs if pair != ("float64", "float")]


def compiled_kernels(source: str, target: str, defines: tuple[str, ...] = ()) -> list[Kernel]:
    """Compile one source for one target; what ptxas says of every kernel in it."""
    arch = f"-gencode=arch=compute_{target[3:]},code={target}"
    command = ["nvcc", *FLAGS, arch, *(f"-D{d}" for d in defines), source]
    log = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stderr
    found = re.findall(r"entry function '(\S+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers", log, re.DOTALL)
    names = subprocess.run(
        ["c++filt"], input="\n".join(name for name, *_ in found), capture_output=True, text=True, check=True
    ).stdout.splitlines()
    return [
        Kernel(_short(name), target, int(registers), int(spilled))
        for name, (_, spilled, registers) in zip(names, found, strict=True)
    ]


def _short(name: str) -> str:
    """The kernel's name and template arguments without namespaces and parameters."""
    name = name.replace("mpfast::cuda::(anonymous namespace)::", "").removeprefix("void ")
    name = re.sub(r"\(mpfast::(?:cuda::)?(\w+)\)(\d+)", r"\1 \2", name).replace("mpfast::cuda::", "")
    for number, dtype in enumerate(element_types()):
        name = name.replace(f"DType {number}", dtype)
    name = re.sub(r"EntryLoader<(\w+)>", r"\1", name).replace("CodeLoader", "codes")
    name = name.replace("ProductKind 0", "gram").replace("ProductKind 1", "plain").replace("mpfast::", "")
    return re.sub(r">\(.*", ">", name).split("(")[0] if "<" not in name else re.sub(r">\(.*", ">", name)


def all_kernels() -> list[Kernel]:
    """Every kernel of the backend for every target."""
    jobs = [
        (PRODUCT_KERNELS, target, (f"MPFAST_STORAGE={storage}", f"MPFAST_REAL={real}"))
        for storage, real in products()
        for target in TARGETS
    ]
    jobs += [(CODED_KERNELS, target, (f"MPFAST_REAL={real}",)) for real in ("double", "float") for target in TARGETS]
    sources = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc/cuda").glob("*/*.cu"))
    apart = (PRODUCT_KERNELS, CODED_KERNELS, "csrc/cuda/machine/runtime.cu")
    others = [source for source in sources if source not in apart]
    jobs += [(source, target, ()) for source in others for target in TARGETS]
    with ThreadPoolExecutor() as pool:
        return [kernel for kernels in pool.map(lambda job: compiled_kernels(*job), jobs) for kernel in kernels]


def resource_table(kernels: list[Kernel]) -> list[str]:
    """Registers per thread by target, and spills where there are any."""
    lines = ["| kernel | " + " | ".join(TARGETS) + " |", "|---|" + "---|" * len(TARGETS)]
    names = list(dict.fromkeys(kernel.name for kernel in kernels))
    for name in names:
        cells = []
        for target in TARGETS:
            kernel = next(k for k in kernels if k.name == name and k.target == target)
            cells.append(f"{kernel.registers}" + (f" ({kernel.spilled} B spilled)" if kernel.spilled else ""))
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return lines


def pass_rows(kernels: list[Kernel], gpu: H200) -> list[str]:
    """Bytes, flops and bounds of a Gram pass over typical matrices."""
    from mpfast.arrays import cuda_backend

    plan_product = cuda_backend().plan_product
    lines = [
        "| long x short side, storage | b | blocks (cluster) | threads | shared memory | blocks per multiprocessor "
        "| vectors / W bytes | memory | arithmetic | shared memory | share of copy rate |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for rows, cols, dtype in (
        (4096, 4096, "float32"),
        (28672, 8192, "float32"),
        (28672, 8192, "bfloat16"),
        (53248, 16384, "bfloat16"),
    ):
        for width in (4, 8, 16, 32):
            plan = plan_product("gram", dtype, rows, cols, 4, width, gpu.shared_per_block, gpu.largest_cluster)
            if not plan["possible"]:
                lines.append(f"| {rows} x {cols} {dtype} | {width} | two products | | | | | | | | |")
                continue
            name = f"product_kernel<{dtype}, float, {plan['width']}, gram>"
            kernel = next(k for k in kernels if k.name == name and k.target == "sm_90")
            resident = min(
                gpu.registers // (kernel.registers * plan["threads"]),
                gpu.shared_per_multiprocessor // (plan["shared_bytes"] + 1024),
                gpu.threads // plan["threads"],
            )
            entries = rows * cols
            size = ENTRY_BYTES[dtype]
            vectors = 4 * width * cols * (plan["chunks"] * 2 + 2)
            memory = (entries * size + vectors) / gpu.bandwidth
            arithmetic = 4 * entries * width / gpu.fp32
            shared = entries / _entries_per_cycle(width, size) / (gpu.multiprocessors * gpu.clock)
            bound = max(memory, arithmetic, shared)
            lines.append(
                f"| {rows} x {cols} {dtype} | {width} | {plan['slices'] * plan['chunks']} ({plan['slices']}) "
                f"| {plan['threads']} | {plan['shared_bytes'] / 1024:.0f} KiB | {resident} "
                f"| {vectors / entries / size:.1%} | {memory * 1e6:.0f} us | {arithmetic * 1e6:.0f} us "
                f"| {shared * 1e6:.0f} us | {entries * size / gpu.copy_rate / bound:.2f} |"
            )
    return lines


def _entries_per_cycle(width: int, entry_bytes: int) -> float:
    """Entries a multiprocessor's shared memory can serve per cycle, one request of a warp (128 bytes) a cycle.

    Per 32 words of the tile: one store; y = tile X, one load of the words and one of X for every four columns; and
    z += tile^T y, one load of the words and one broadcast of y per row for every four columns, shared by the
    coordinates that a thread owns.
    """
    groups = width / 4
    per_word = 2 if entry_bytes == 2 else 1
    owned = max(1, 16 // width)
    requests = 1 + 2 * groups + 1 + per_word * groups / owned
    return 32 * per_word / requests


HEAD = """# What the CUDA kernels use, and what that allows

Written by `python benchmarks/roofline.py`. Nothing here was measured on a GPU: registers and spills are what the
compiler reports, shared memory and blocks are the launch plans', bytes and flops are counted, and times are those of an
H200's data sheet (4.8 TB/s, 67 TFLOP/s fp32, 34 TFLOP/s fp64, 132 multiprocessors at 1.98 GHz).
`python benchmarks/gpu.py` measures.

## One Gram pass, Z = W^T (W X)

W is read once; X and the chunks' sums of Z are the vector traffic. *shared memory* is the time that the requests to
shared memory take at one per multiprocessor and cycle. The last column is the share of the copy bandwidth (4.3 TB/s)
that W would arrive at if the slowest of the three were reached and all else hidden.

At b = 4, which fits of large matrices use, memory is the slowest of the three for both storages. Tensor cores would
need X and y as three bf16 terms each to keep single precision; they would shorten what is hidden already, and are not
used.

"""

OTHERS = """
## The other kernels

Bytes per call, for b vectors of length p in precision w (4 or 8 bytes), a basis of k vectors, and c chunks. All of them
are bound by memory and, at p = 16384 and b = 4, by the launch (about 3 us).

| kernel | bytes | flops |
|---|---|---|
| `product_kernel<..., plain>` as inner product V^T Z | w p (k + b) | 2 p k b |
| `product_kernel<..., plain>` as V C | w p (k + 2 b) | 2 p k b |
| `sum_parts_kernel` | w b p (c + 1) | b p c |
| `gram_kernel` | w b p | 2 b^2 p, fp64 |
| `transform_kernel` | 2 w b p | 2 b^2 p |
| `project_kernel`, 8:16, per group | 16 weights, 16 bytes of mask, its moments from the cache | 2 x 12870 |
| `probe_kernel` | w b p | about 60 integer operations an entry |
| `zero_kernel` | w b p | none |

A step of block Lanczos is a pass over W, four products with the basis, three Gram matrices of b vectors and two
transforms: about 20 launches and five waits for a small result, some 0.1 ms besides the pass.

## Registers per thread

"""


def main() -> None:
    """Compile, account, write."""
    gpu = H200()
    kernels = all_kernels()
    text = HEAD + "\n".join(pass_rows(kernels, gpu)) + "\n" + OTHERS + "\n".join(resource_table(kernels)) + "\n"
    target = ROOT / "benchmarks" / "roofline.md"
    with tempfile.NamedTemporaryFile("w", dir=target.parent, delete=False) as file:
        file.write(text)
    Path(file.name).replace(target)


if __name__ == "__main__":
    main()
