"""Turn the JSON of a benchmark run into the files kept under ``benchmarks/results/``.

    pytest benchmarks --benchmark-json=run.json
    python benchmarks/report.py run.json benchmarks/results/NAME

writes NAME.json (machine, rows, accuracy) and NAME.md (the same as tables).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from mpfast import bench as benchmarking
from mpfast.support import write_text_atomically


def main(run: Path, target: Path) -> None:
    document = json.loads(run.read_text(encoding="utf-8"))
    extra = [benchmark["extra_info"] for benchmark in document["benchmarks"]]
    cases = [info for info in extra if "rows" in info]
    record = {
        "schema": "mpfast.benchmark/1",
        "date": document["datetime"][:10],
        "machine": document["machine_info"]["mpfast"],
        "cases": {info["title"]: info["rows"] for info in cases},
        "accuracy": [info for info in extra if "family" in info],
    }
    write_text_atomically(target.with_suffix(".json"), json.dumps(record, indent=1) + "\n")
    write_text_atomically(target.with_suffix(".md"), as_markdown(record))


def as_markdown(record: dict[str, Any]) -> str:
    rows = [benchmarking.Row(**row) for rows in record["cases"].values() for row in rows]
    machine = "\n".join(f"- {key}: {value}" for key, value in record["machine"].items())
    titles = "\n".join(f"- `{rows[0]['case']}`: {title}" for title, rows in record["cases"].items())
    parts = [
        f"# Benchmarks of {record['date']}",
        "Written by `benchmarks/report.py`. Times are medians; `x ours` is how many times longer a contender took than "
        "mpfast in the same run; errors are relative to an independent fp64 reference.",
        f"## Machine\n\n{machine}",
        f"## Cases\n\n{titles}\n\n{benchmarking.markdown(rows)}",
        f"## Error of sigma_plus\n\n{benchmarking.accuracy_markdown(record['accuracy'])}",
    ]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
