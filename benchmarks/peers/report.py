"""Tables and plots of what run.py has measured.

    python benchmarks/peers/report.py MEASUREMENTS.jsonl OUT

writes OUT.md, OUT-growth.svg and OUT-detection.svg.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

Record = dict[str, Any]
FAMILIES_WITH_A_LAW = ("gauss", "spikes40", "one_huge_spike", "power_law")
TASKS = {
    "edge": (
        "The edge",
        "Marchenko-Pastur edge and spikes of one matrix. imate knows no edge; it is asked for the trace of `W^T W` by "
        "the same kind of quadrature, with the probes and steps mpfast begins with. scikit-rmt's fit counts no spikes.",
    ),
    "values": ("All singular values", "What a fit of one's own has to begin with."),
    "leading": (
        "32 leading triplets",
        "Iterative solvers were asked for a tolerance of 1e-5; randomised ones (fbpca, librla with two power "
        "iterations, scikit-learn, PyTorch) run at their defaults and promise no accuracy.",
    ),
}


def task_of(contender: str) -> str:
    import contenders

    return contenders.contender(contender).task


def place(record: Record) -> tuple[int, int]:
    """Small matrices first, and contenders as they are listed, in whatever order they were measured."""
    import contenders

    if not is_matrix(record):
        return 0, 0
    job = record["job"]
    order = [contender.name for contender in contenders.CONTENDERS]
    return job["matrix"]["rows"] * job["matrix"]["cols"], order.index(job["contender"])


def is_matrix(record: Record) -> bool:
    return isinstance(record["job"], dict) and "matrix" in record["job"]


def is_growth(record: Record) -> bool:
    """Whether the record belongs to the comparison over sizes."""
    matrix = record["job"]["matrix"]
    return (matrix["family"], matrix["dtype"], record["job"]["threads"]) == ("spikes40", "float32", 2)


def is_square_growth(record: Record) -> bool:
    return is_growth(record) and record["job"]["matrix"]["rows"] == record["job"]["matrix"]["cols"]


def seconds(value: float) -> str:
    return f"{value:.1f} s" if value >= 10 else f"{value:.2f} s" if value >= 1 else f"{1000 * value:.3g} ms"


def times_as_long(ratio: float) -> str:
    return f"{ratio:.0f} x" if ratio >= 10 else f"{ratio:.1f} x" if ratio >= 1 else f"{ratio:.2f} x"


def size(value: int | None) -> str:
    if value is None:
        return "-"
    return f"{value / 2**30:.1f} GB" if value >= 2**30 else f"{value / 2**20:.0f} MB"


def matrix_label(matrix: Record) -> str:
    return f"{matrix['rows']} x {matrix['cols']}"


def leading_error(record: Record) -> float | None:
    """The largest relative error of the leading values; None where there is no truth."""
    truth, found = record.get("truth", {}).get("leading"), record.get("leading")
    if truth is None or found is None:
        return None
    if len(found) < len(truth):
        return float("inf")
    return float(np.abs(np.array(found) / np.array(truth) - 1).max())


def edge_error(record: Record) -> float | None:
    law, found = record.get("truth", {}).get("sigma_plus"), record.get("sigma_plus")
    return None if law is None or found is None else found / law - 1


def cell(record: Record | None, show: Callable[[Record], str]) -> str:
    if record is None:
        return ""
    return record["failed"] if "failed" in record else show(record)


def table(
    records: Iterable[Record], column: Callable[[Record], str], show: Callable[[Record], str], corner: str
) -> list[str]:
    rows: dict[str, dict[str, Record]] = {}
    columns: list[str] = []
    for record in records:
        name = column(record)
        if name not in columns:
            columns.append(name)
        rows.setdefault(record["job"]["contender"], {})[name] = record
    lines = [f"| {corner} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for contender, found in rows.items():
        lines.append(f"| {contender} | " + " | ".join(cell(found.get(name), show) for name in columns) + " |")
    return lines


def accuracy(record: Record) -> str:
    if task_of(record["job"]["contender"]) == "edge":
        error = edge_error(record)
        return "" if error is None else f", {100 * error:+.2f} %"
    error = leading_error(record)
    return "" if error is None else f", {error:.0e}"


def timed(record: Record) -> str:
    return seconds(record["warm"]) + accuracy(record)


def edges(record: Record) -> str:
    error = edge_error(record)
    spikes = record.get("spikes")
    return " / ".join(("" if error is None else f"{100 * error:+.2f} %", "-" if spikes is None else str(spikes)))


def in_short(growth: list[Record]) -> list[str]:
    """How many times as long the peers take: the fastest of the accurate ones, and whoever is faster than mpfast."""
    columns: list[str] = []
    times: dict[str, dict[str, Record]] = {}
    for record in growth:
        name = matrix_label(record["job"]["matrix"])
        if name not in columns:
            columns.append(name)
        if "warm" in record:
            times.setdefault(name, {})[record["job"]["contender"]] = record

    def row(label: str, show: Callable[[dict[str, Record]], str]) -> str:
        return f"| {label} | " + " | ".join(show(times.get(name, {})) for name in columns) + " |"

    def fastest_of(task: str, ours: str, accurate: Callable[[Record], bool]) -> Callable[[dict[str, Record]], str]:
        def show(found: dict[str, Record]) -> str:
            peers = [
                r
                for name, r in found.items()
                if task_of(name) == task and not name.startswith("mpfast") and accurate(r)
            ]
            if ours not in found or not peers:
                return "none in time"
            best = min(peers, key=lambda r: r["warm"])
            return f"{best['job']['contender']}, {times_as_long(best['warm'] / found[ours]['warm'])}"

        return show

    def faster(found: dict[str, Record]) -> str:
        ours = found["mpfast svd"]["warm"]
        peers = [r for name, r in found.items() if task_of(name) == "leading" and r["warm"] < ours]
        return (
            "; ".join(
                f"{r['job']['contender']}, {times_as_long(r['warm'] / ours)}{accuracy(r)}"
                for r in sorted(peers, key=lambda r: r["warm"])
            )
            or "-"
        )

    def tight(record: Record) -> bool:
        error = leading_error(record)
        return error is not None and error <= 1e-5

    return [
        "",
        "## In short",
        "",
        "Warm calls, two threads, on the matrices of 40 spikes; `x`: times as long as mpfast. Accurate are peers whose "
        "values err by at most 1e-5, the tolerance that was asked for.",
        "",
        "|  | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
        row("`mpfast.spectrum(W).edge`", lambda found: seconds(found["mpfast"]["warm"])),
        row("fastest way to all values, without a fit", fastest_of("values", "mpfast", lambda r: True)),
        row("fastest peer with a fit of its own", fastest_of("edge", "mpfast", lambda r: "sigma_plus" in r)),
        row("`mpfast.svd(W, 32)`", lambda found: seconds(found["mpfast svd"]["warm"])),
        row("fastest accurate peer", fastest_of("leading", "mpfast svd", tight)),
        row("peers that are faster, with their errors", faster),
    ]


def sections(records: list[Record]) -> list[str]:
    matrices = [record for record in records if is_matrix(record)]
    growth = [record for record in matrices if is_growth(record)]
    lines: list[str] = []
    for task, (title, note) in TASKS.items():
        mine = [r for r in growth if task_of(r["job"]["contender"]) == task]
        lines += [
            "",
            f"## {title}",
            "",
            note,
            "",
            "Time of a warm call, two threads, and the error where there is a truth:",
            "",
        ]
        lines += table(mine, lambda r: matrix_label(r["job"]["matrix"]), timed, "")
        lines += [
            "",
            "First call in a process, with the import of the library, and the memory above W (`-`: not measured):",
            "",
        ]
        lines += table(
            mine,
            lambda r: matrix_label(r["job"]["matrix"]),
            lambda r: f"{seconds(r['cold'])}, {size(r.get('peak'))}",
            "",
        )
    families = [
        r
        for r in matrices
        if (r["job"]["matrix"]["rows"], r["job"]["matrix"]["cols"]) == (2048, 2048)
        and r["job"]["threads"] == 2
        and task_of(r["job"]["contender"]) == "edge"
    ]
    planted = {r["job"]["matrix"]["family"]: r["truth"]["planted"] for r in families if "truth" in r}
    lines += [
        "",
        "## Families of matrices, 2048 x 2048",
        "",
        "Error of the edge against the planted noise, and the spikes counted. Planted above the critical size: "
        + ", ".join(f"{name} {count}" for name, count in planted.items() if count is not None)
        + ". The lognormal and the Student matrices have no Marchenko-Pastur noise and no truth of this kind.",
        "",
    ]
    lines += table(families, lambda r: r["job"]["matrix"]["family"], edges, "")
    lines += ["", "## One thread and two", ""]
    threads = [
        r
        for r in matrices
        if r["job"]["matrix"]["family"] == "spikes40"
        and r["job"]["matrix"]["dtype"] == "float32"
        and r["job"]["matrix"]["rows"] == r["job"]["matrix"]["cols"]
        and r["job"]["matrix"]["rows"] in (2048, 4096)
    ]
    lines += table(
        sorted(threads, key=lambda r: (r["job"]["matrix"]["rows"], r["job"]["threads"])),
        lambda r: f"{r['job']['matrix']['rows']}, {r['job']['threads']} thread{'s' * (r['job']['threads'] > 1)}",
        lambda r: seconds(r["warm"]),
        "",
    )
    lines += [
        "",
        "## bfloat16, 4096 x 4096",
        "",
        "All peers get a float32 copy, whose making counts; mpfast reads the bits.",
        "",
    ]
    lines += table(
        [r for r in matrices if r["job"]["matrix"]["dtype"] == "bfloat16"],
        lambda r: "time, error, memory",
        lambda r: f"{timed(r)}, {size(r.get('peak'))}",
        "",
    )
    return lines


def counting(records: list[Record]) -> list[str]:
    """How often each contender counts the one planted spike, no more and no less."""
    found = [r for r in records if isinstance(r["job"], dict) and "strength" in r["job"] and "spikes" in r]
    strengths = sorted({r["job"]["strength"] for r in found})
    lines = [
        "Share of the matrices (400 x 608) in which exactly one spike is counted, by its size in units of the critical "
        "one; without a spike (0), and below 1, the right count is none.",
        "",
        "|  | " + " | ".join(f"{strength:g}" for strength in strengths) + " |",
        "|---" * (len(strengths) + 1) + "|",
    ]
    for contender in dict.fromkeys(r["job"]["contender"] for r in found):
        mine = {r["job"]["strength"]: r["spikes"] for r in found if r["job"]["contender"] == contender}
        cells = [f"{100 * mine[x].count(1) / len(mine[x]):.0f} %" if x in mine else "" for x in strengths]
        lines.append(f"| {contender} | " + " | ".join(cells) + " |")
    return lines


def new_figure() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "mpfast"  # the same file every time
    from matplotlib import pyplot as plt

    return plt


def plot_growth(records: list[Record], path: Path) -> None:
    plt = new_figure()
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True, layout="constrained")
    groups = (("edge", "values"), ("leading",))
    for ax, tasks, title in zip(axes, groups, ("edge, or all values", "32 leading triplets"), strict=True):
        lines: dict[str, list[tuple[float, float]]] = {}
        for r in records:
            if not is_matrix(r) or "failed" in r or not is_square_growth(r):
                continue
            if task_of(r["job"]["contender"]) in tasks:
                m = r["job"]["matrix"]
                lines.setdefault(r["job"]["contender"], []).append((m["rows"] * m["cols"], r["warm"]))
        for name, points in lines.items():
            ours = name.startswith("mpfast")
            x, y = zip(*sorted(points), strict=True)
            ax.loglog(
                x, y, marker="o", markersize=4, linewidth=2.4 if ours else 1.1, label=name, zorder=3 if ours else 2
            )
        ax.set(title=title, xlabel="entries of the matrix, m n")
        ax.grid(True, which="major", color="0.9")
        ax.legend(frameon=False, fontsize=7)
    axes[0].set_ylabel("seconds of a warm call, two threads")
    figure.savefig(path, metadata={"Date": None})


def plot_detection(records: list[Record], path: Path) -> None:
    plt = new_figure()
    figure, ax = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    curves: dict[str, list[tuple[float, float]]] = {}
    for r in records:
        if isinstance(r["job"], dict) and "strength" in r["job"] and "spikes" in r:
            curves.setdefault(r["job"]["contender"], []).append((r["job"]["strength"], float(np.mean(r["spikes"]))))
    for name, points in curves.items():
        x, y = zip(*sorted(points), strict=True)
        ax.plot(x, y, marker="o", markersize=4, label=name)
    ax.axvline(1, color="0.6", linestyle="--", linewidth=1)
    ax.plot([0, 1, 1, 2], [0, 0, 1, 1], color="0.75", linewidth=1, label="what can be seen")
    ax.set(
        xlabel="size of the one planted spike, in units of the critical one",
        ylabel="spikes counted, mean",
        title="Counting one spike in noise",
    )
    ax.legend(frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measurements", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    records = sorted((json.loads(line) for line in options.measurements.read_text().splitlines()), key=place)
    described = next((r for r in records if r["job"] == "machine"), {})
    name = options.out.name
    lines = ["# mpfast and its peers, side by side", ""]
    lines += [", ".join(f"{key} {value}" for key, value in described.items() if key != "job"), ""]
    lines += ["How this is measured: [benchmarks/peers](../peers/README.md).", ""]
    lines += [f"![time against size]({name}-growth.svg)"]
    lines += in_short([record for record in records if is_matrix(record) and is_growth(record)])
    lines += sections(records)
    lines += ["", "## Counting one spike", "", f"![spikes counted]({name}-detection.svg)", "", *counting(records)]
    options.out.with_name(name + ".md").write_text("\n".join(lines) + "\n")
    plot_growth(records, options.out.with_name(name + "-growth.svg"))
    plot_detection(records, options.out.with_name(name + "-detection.svg"))


if __name__ == "__main__":
    main()
