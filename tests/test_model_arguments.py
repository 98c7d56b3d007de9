"""Arguments of the functions of whole models: a wrong one is named in the error, and nothing is written."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

import mpfast
from mpfast.models import Analysis, Budget, exporters
from mpfast.models.rows import Rows
from mpfast.support import InputError

MODEL = {
    f"layers.{i}.fc.weight": np.random.default_rng(i).standard_normal((48, 64), dtype=np.float32) for i in range(2)
}
ANALYSIS = mpfast.analyze(MODEL, progress=False)
BUDGET = ANALYSIS.budget(0.5)
PRUNE = partial(mpfast.prune, MODEL, sparsity=0.5, method="magnitude", progress=False)
COMPRESS = partial(mpfast.compress, MODEL, rank=2)
ANALYZE = partial(mpfast.analyze, MODEL, progress=False)
ALPHA = partial(exporters.alphapruning, BUDGET, order=["layers.0.fc", "layers.1.fc"])

NO_PATHS = [5, True, b"x", "", "a\0b", []]
NO_FLAGS = ["no", 1, None, []]
NO_SHARES = [True, "0.5", float("nan"), 2, -0.1, []]
NO_PATTERNS = [5, True, b"x", [5], object()]
NO_DEVICES = [5, True, "xpu", b"cpu", []]
NO_SEEDS = [True, "0", 1.5, -1, 2**64]
NO_COUNTS = [True, "2", 0, 2.5]
NO_BUDGETS = [5, "x", None, ANALYSIS]
CASES = [
    (PRUNE, "out", NO_PATHS),
    (PRUNE, "sparsity", NO_SHARES),
    (PRUNE, "ceiling", NO_SHARES),
    (PRUNE, "method", [5, True, b"magnitude", []]),
    (PRUNE, "tol", [True, "x", 0, []]),
    (PRUNE, "progress", NO_FLAGS),
    (partial(mpfast.prune, MODEL), "pattern", [5, "", "4:4", "0:4", "5:4", "2:65", b"2:4", (2, 4)]),
    (partial(mpfast.prune, MODEL), "budget", [5, {}, "budget.json"]),
    (COMPRESS, "out", NO_PATHS),
    (COMPRESS, "rank", [True, "x", 0, 2.5, []]),
    (COMPRESS, "format", [5, "x", []]),
    (COMPRESS, "base", [*NO_PATHS[:5], object()]),
    (partial(mpfast.compress, MODEL), "energy", NO_SHARES),
    (partial(mpfast.compress, MODEL), "error", NO_SHARES),
    *[(write, "overwrite", NO_FLAGS) for write in (PRUNE, COMPRESS)],
    *[(write, "embeddings", NO_FLAGS) for write in (PRUNE, COMPRESS)],
    *[(call, name, NO_PATTERNS) for call in (PRUNE, COMPRESS, ANALYZE) for name in ("include", "exclude")],
    *[(call, "device", NO_DEVICES) for call in (PRUNE, COMPRESS, ANALYZE)],
    *[(call, "seed", NO_SEEDS) for call in (PRUNE, COMPRESS, ANALYZE)],
    *[(call, "threads", NO_COUNTS) for call in (PRUNE, COMPRESS, ANALYZE)],
    *[(call, "model", NO_PATHS) for call in (mpfast.analyze, mpfast.inspect, partial(mpfast.prune, sparsity=0.5))],
    (ANALYZE, "base", NO_PATHS[:5]),
    (ANALYZE, "views", [5, "split", {}]),
    (ANALYZE, "cache", NO_PATHS),
    (ANALYZE, "client", [5, "localhost:8786"]),
    (ANALYZE, "progress", NO_FLAGS),
    (partial(mpfast.inspect, MODEL), "views", [5, {}]),
    (ANALYSIS.budget, "sparsity", NO_SHARES),
    (partial(ANALYSIS.budget, 0.5), "floor", [*NO_SHARES, 0.8, {"*": "x"}, {5: 0.1}]),
    (partial(ANALYSIS.budget, 0.5), "ceiling", [*NO_SHARES, 0.2, {"*": 2}]),
    (partial(ANALYSIS.budget, 0.5), "exclude", [*NO_PATTERNS, None]),
    (partial(ANALYSIS.budget, 0.5), "groups", [5, "x", ["x"], {"a": 5}, {"a": [5]}]),
    (partial(ANALYSIS.budget, 0.5), "embeddings", NO_FLAGS),
    (mpfast.verify, "out", [*NO_PATHS, None]),
    (partial(mpfast.diff, b=MODEL), "a", [*NO_PATHS[:5], None]),
    (partial(mpfast.diff, MODEL), "b", [*NO_PATHS[:5], None]),
    *[(write, "path", NO_PATHS) for write in (BUDGET.to_json, ANALYSIS.to_json, ANALYSIS.to_csv, ANALYSIS.to_html)],
    (ALPHA, "path", [*NO_PATHS, None]),
    *[(read, "source", [*NO_PATHS, None]) for read in (Budget.from_json, Analysis.from_json)],
    (BUDGET.export, "format", [5, "x", []]),
    *[
        (export, "budget", NO_BUDGETS)
        for export in (exporters.peft, exporters.axolotl, exporters.llm_compressor, exporters.torch_ao_pruning)
    ],
    (partial(exporters.alphapruning, path="p.npy"), "budget", NO_BUDGETS),
    (partial(exporters.peft, BUDGET), "largest", NO_COUNTS),
    (partial(exporters.axolotl, BUDGET), "share", NO_SHARES),
]


def name_of(call):
    return getattr(call, "func", call).__name__


@pytest.mark.parametrize(
    ("call", "argument", "values"), CASES, ids=[f"{name_of(call)}-{argument}" for call, argument, _ in CASES]
)
def test_a_wrong_argument_is_named(call, argument, values, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for value in values:
        with pytest.raises((ValueError, TypeError)) as caught:
            call(**{argument: value})
        assert isinstance(caught.value, InputError), (value, caught.value)
        assert caught.value.argument.startswith(argument), (value, caught.value)
        assert str(caught.value).partition("():")[0].endswith(name_of(call)), (value, caught.value)
        assert caught.value.fact
        assert not list(tmp_path.iterdir()), value


def test_a_source_that_is_none_is_named(tmp_path):
    PRUNE(tmp_path / "out")
    for source in (5, True, "", b"x", "a\0b"):
        with pytest.raises(InputError) as caught:
            mpfast.verify(tmp_path / "out", source)
        assert caught.value.argument == "source"


def test_rows_say_what_they_are():
    class Nothing(Rows):
        pass

    with pytest.raises(TypeError, match="abstract"):
        Nothing()
