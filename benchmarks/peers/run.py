"""Measure mpfast and its peers on the same matrices, each in an environment of its own. See README.md.

    python benchmarks/peers/run.py --work DIR [--stage STAGE] [--only NAME] [--largest N] [--limit SECONDS] [--out FILE]

Three stages, all of them unless one is named: `prepare` makes environments and matrices, `time` measures (the machine
should have nothing else to do), `detect` counts spikes. What has been measured is kept, line by line, and not measured
again: a run that was interrupted goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import venv
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import contenders
import ml_dtypes
import numpy as np
from scipy.sparse.linalg import svds

from mpfast.bench import machine
from mpfast.spectra import critical_signal, family, low_rank
from mpfast.spectra.synthetic import FAMILIES

HERE = Path(__file__).parent
K = 32  # leading values
LAPACK_UP_TO = 4096  # the shortest side of a matrix whose whole spectrum is computed for the truth
SQUARE = (512, 1024, 2048, 4096, 8192, 16384)
TALL = ((4096, 1024), (16384, 2048))
GROWTH_FAMILY = "spikes40"
THREAD_SIZES = (2048, 4096)
# Signals above the critical size, which the singular values show.
PLANTED = {"gauss": 0, "spikes40": 40, "one_huge_spike": 1, "power_law": 29}
DETECTION_SHAPE = (400, 608)  # a multiple of 16 for scikit-rmt
COUNT_SPIKES = ("mpfast, exact", "WeightWatcher")
STRENGTHS = (0.0, 0.6, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3, 1.4, 1.6, 2.0)


@dataclass(frozen=True)
class Matrix:
    """A matrix of the comparison, by what it is made from."""

    family: str
    rows: int
    cols: int
    dtype: str = "float32"

    @property
    def size(self) -> int:
        return self.rows * self.cols

    @property
    def file(self) -> str:
        return f"{self.family}-{self.rows}x{self.cols}-{self.dtype}.npy"

    @property
    def truth_file(self) -> str:
        return f"{self.family}-{self.rows}x{self.cols}-{self.dtype}.truth.json"


@dataclass(frozen=True)
class Job:
    """One measurement."""

    contender: str
    matrix: Matrix
    threads: int


def jobs(largest: int) -> Iterator[Job]:
    """Sizes first, small ones before large ones: what was too slow once is not tried on more."""
    growth = [Matrix(GROWTH_FAMILY, n, n) for n in SQUARE]
    growth += [Matrix(GROWTH_FAMILY, *shape) for shape in TALL]
    families = [Matrix(name, 2048, 2048) for name in FAMILIES if name != GROWTH_FAMILY]
    half = [Matrix(GROWTH_FAMILY, 4096, 4096, "bfloat16")]
    plan = [(matrix, 2) for matrix in growth + families + half]
    plan += [(Matrix(GROWTH_FAMILY, n, n), 1) for n in THREAD_SIZES]
    for matrix, threads in sorted(plan, key=lambda entry: entry[0].rows * entry[0].cols):
        if max(matrix.rows, matrix.cols) <= largest:
            for contender in contenders.CONTENDERS:
                yield Job(contender.name, matrix, threads)


def environment(work: Path, name: str) -> Path:
    """The Python of an environment, made when it is not there."""
    folder = work / "environments" / name
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        print(f"making the environment of {name}", file=sys.stderr)
        venv.create(folder, with_pip=True)
        wanted = ["numpy", "ml_dtypes", *contenders.ENVIRONMENTS[name]]
        if name == "mpfast":
            wanted.append(str(HERE.parents[1]))
        pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, *wanted], check=True, env={**os.environ, "SKBUILD_CMAKE_DEFINE": "MPFAST_CUDA=off"})
        (folder / "complete").touch()
    return python


def make(work: Path, matrix: Matrix) -> Path:
    """The matrix in a file, and its leading values in float64: by LAPACK where that is affordable, else by ARPACK."""
    folder = work / "matrices"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / matrix.file
    if not path.exists():
        W = family(matrix.family, (matrix.rows, matrix.cols), 1).astype(np.float32)
        if matrix.dtype == "bfloat16":
            W = W.astype(ml_dtypes.bfloat16).view(np.uint16)
        np.save(path, W)
    truth = folder / matrix.truth_file
    if not truth.exists():
        record: dict[str, Any] = {"planted": PLANTED.get(matrix.family)}
        if matrix.family in PLANTED:
            record["sigma_plus"] = float(np.sqrt(matrix.rows) + np.sqrt(matrix.cols))
        W = np.load(path)
        W = (W.view(ml_dtypes.bfloat16) if matrix.dtype == "bfloat16" else W).astype(np.float64)
        if min(W.shape) <= LAPACK_UP_TO:
            leading = np.linalg.svd(W, compute_uv=False)[:K]
        else:
            leading = np.sort(svds(W, K, tol=1e-12, return_singular_vectors=False))[::-1]
        record["leading"] = leading.tolist()
        truth.write_text(json.dumps(record))
    return path


def call(work: Path, job: dict[str, Any], threads: int, limit: float) -> dict[str, Any]:
    """Run a worker; its findings, or why there are none."""
    contender = contenders.contender(job["contender"])
    count = str(threads)
    variables = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), count)
    try:
        done = subprocess.run(
            [environment(work, contender.environment), HERE / "worker.py"],
            input=json.dumps(job),
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
            env={**os.environ, **variables, "PYTHONPATH": "", "MPLBACKEND": "Agg"},
            cwd=work,
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"> {limit:g} s", "slow": True}
    if done.returncode != 0:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        return {"failed": last[0].replace(str(work), "")[:200]}
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def detection_matrices(work: Path, draws: int) -> dict[float, list[str]]:
    """One spike of every strength in noise, in files."""
    folder = work / "detection"
    folder.mkdir(parents=True, exist_ok=True)
    paths: dict[float, list[str]] = {}
    for strength in STRENGTHS:
        for draw in range(draws):
            path = folder / f"{strength:g}-{draw}.npy"
            paths.setdefault(strength, []).append(str(path))
            if not path.exists():
                rng = np.random.default_rng([7, draw, int(100 * strength)])
                W = rng.standard_normal(DETECTION_SHAPE)
                if strength > 0:
                    W += low_rank(DETECTION_SHAPE, [strength * critical_signal(DETECTION_SHAPE)], rng)
                np.save(path, W.astype(np.float32))
    return paths


class Measurements:
    """What has been measured, in a file with a line for each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.records: list[dict[str, Any]] = []
        if path.exists():
            self.records = [json.loads(line) for line in path.read_text().splitlines()]
        self._finished = {json.dumps(record["job"], sort_keys=True) for record in self.records}

    def has(self, job: Any) -> bool:
        return json.dumps(job, sort_keys=True) in self._finished

    def keep(self, record: dict[str, Any]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(record) + "\n")


def prepare(work: Path, wanted: Iterator[Job]) -> None:
    for job in wanted:
        environment(work, contenders.contender(job.contender).environment)
        make(work, job.matrix)


def measure_times(work: Path, wanted: Iterator[Job], limit: float, measurements: Measurements) -> None:
    # Entries of the smallest matrix that took too long.
    too_large: dict[tuple[str, int, str], int] = {}

    def was_slow(job: Job) -> None:
        key = (job.contender, job.threads, job.matrix.dtype)
        too_large[key] = min(too_large.get(key, job.matrix.size), job.matrix.size)

    for record in measurements.records:
        if record.get("slow") and "matrix" in record["job"]:
            was_slow(Job(**{**record["job"], "matrix": Matrix(**record["job"]["matrix"])}))
    if not measurements.has("machine"):
        measurements.keep({"job": "machine", **machine()})
    for job in wanted:
        if measurements.has(asdict(job)):
            continue
        limit_of_this = too_large.get((job.contender, job.threads, job.matrix.dtype))
        if limit_of_this is not None and job.matrix.size >= limit_of_this:
            result: dict[str, Any] = {"failed": "not tried: too slow on a smaller one"}
        else:
            path = make(work, job.matrix)
            request = {
                "contender": job.contender,
                "matrix": str(path),
                "dtype": job.matrix.dtype,
                "k": K,
                "seconds": limit / 4,
            }
            result = call(work, request, job.threads, limit)
            result["truth"] = json.loads((path.parent / job.matrix.truth_file).read_text())
            if result.get("slow"):
                was_slow(job)
        measurements.keep({"job": asdict(job), **result})
        shown = result.get("failed") or f"{result['cold']:.2f} s, then {result['warm']:.3f} s"
        print(f"{job.contender}, {job.matrix.file}, {job.threads} threads: {shown}", file=sys.stderr)


def count_spikes(work: Path, names: list[str], draws: int, measurements: Measurements) -> None:
    paths = detection_matrices(work, draws)
    for name in names:
        for strength, files in paths.items():
            job = {"contender": name, "strength": strength, "draws": draws}
            if measurements.has(job):
                continue
            result = call(work, {"contender": name, "matrices": files}, 2, 900)
            measurements.keep({"job": job, **result})
            print(job, result, file=sys.stderr)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for environments and matrices (15 GB)")
    parser.add_argument("--stage", choices=("prepare", "time", "detect"), default=None)
    parser.add_argument("--out", type=Path, default=None, help="measurements; default WORK/measurements.jsonl")
    parser.add_argument("--only", default="", help="contenders whose name contains this")
    parser.add_argument("--largest", type=int, default=max(SQUARE), help="longest side of a matrix")
    parser.add_argument("--limit", type=float, default=60, help="seconds that a measurement may take")
    parser.add_argument("--draws", type=int, default=40, help="matrices of each strength in the detection curve")
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)

    def wanted() -> Iterator[Job]:
        return (job for job in jobs(options.largest) if options.only in job.contender)

    measurements = Measurements(options.out or work / "measurements.jsonl")
    if options.stage in (None, "prepare"):
        prepare(work, wanted())
    if options.stage in (None, "time"):
        measure_times(work, wanted(), options.limit, measurements)
    if options.stage in (None, "detect"):
        names = [name for name in COUNT_SPIKES if options.only in name]
        count_spikes(work, names, options.draws, measurements)


if __name__ == "__main__":
    main()
