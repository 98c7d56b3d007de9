"""What watching a training costs: `SpectralMonitor` beside the steps of a transformer of 50 million parameters.

    python benchmarks/monitor.py [--steps 8] [--out FILE.md]

Steps of AdamW on random tokens, 4 sequences of 128; then one measurement of every matrix, as the monitor makes it every
so many steps, and one within half a second, after which the next goes on with the layers that are left. Needs PyTorch.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from printed import machine_line, print_or_write

from mpfast.integrations.monitor import SpectralMonitor, read_log

WIDTH, BLOCKS, TOKENS = 512, 12, 24_000
EVERY = (100, 500, 1000)


def model() -> torch.nn.Module:
    block = torch.nn.TransformerEncoderLayer(WIDTH, 8, 4 * WIDTH, dropout=0.0, batch_first=True)
    body = torch.nn.TransformerEncoder(block, BLOCKS, enable_nested_tensor=False)
    head = torch.nn.Linear(WIDTH, TOKENS, bias=False)
    found = torch.nn.Sequential(torch.nn.Embedding(TOKENS, WIDTH), body, head)
    found[2].weight = found[0].weight
    return found


def seconds(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def lines_of(steps: int, folder: Path) -> list[str]:
    torch.manual_seed(0)
    network = model()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)

    def step() -> None:
        tokens = torch.randint(TOKENS, (4, 129))
        optimizer.zero_grad()
        found = network(tokens[:, :-1]).flatten(0, 1)
        torch.nn.functional.cross_entropy(found, tokens[:, 1:].flatten()).backward()
        optimizer.step()

    step()
    taken = statistics.median(seconds(step) for _ in range(steps))
    parameters = sum(parameter.numel() for parameter in network.parameters())
    lines = [
        f"{parameters / 1e6:.1f} million parameters; a step takes {taken:.2f} s.",
        "",
        "| seconds= | layers measured | a measurement | "
        + " | ".join(f"every {every} steps" for every in EVERY)
        + " |",
        "|---|---|---|" + "---|" * len(EVERY),
    ]
    for budget in (None, 0.5):
        log = folder / f"{budget}.jsonl"
        monitor = SpectralMonitor(every=1, seconds=budget, to=log)
        monitor.update(network)  # the first call finds the layers
        cost = seconds(lambda monitor=monitor: monitor.update(network))
        measured = {one.layer for one in read_log(log).measurements if one.step == 2}
        shares = " | ".join(f"{100 * cost / (every * taken):.2f} %" for every in EVERY)
        lines.append(f"| {budget} | {len(measured)} | {cost:.2f} s | {shares} |")
        print(lines[-1], file=sys.stderr)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--out", type=Path, default=None, help="Markdown file; default standard output")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lines = lines_of(options.steps, Path(folder))
    text = "\n".join([machine_line(), "", *lines]) + "\n"
    print_or_write(text, options.out)


if __name__ == "__main__":
    main()
