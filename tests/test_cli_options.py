"""What all commands have in common: how options are spelt, ordered tables, words in conditions, help, completion."""

from __future__ import annotations

import os
import shlex
from dataclasses import fields

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")
from safetensors.numpy import save_file
from typer.main import get_command

from mpfast.cli.app import app, main
from mpfast.cli.columns import (
    BUDGET,
    DIFFERENCE,
    FACTORED,
    LAYERS,
    NARROWED,
    PRUNED,
    QUANTIZED,
    RANKS,
    RESIZED,
    TENSORS,
)
from mpfast.cli.conditions import conditions
from mpfast.cli.examples import EXAMPLES
from mpfast.models import (
    SORT_COLUMNS,
    DiffRow,
    FactoredLayer,
    InventoryRow,
    LayerBudget,
    NarrowedLayer,
    QuantizedLayer,
    RankRow,
    ResizedUpdate,
    in_order,
)

from .references import run_python

COMMANDS = get_command(app).commands
# Commands whose table has a row for each layer, tensor or matrix.
WITH_ROWS = ("analyze", "ranks", "prune", "narrow", "quantize", "compress", "resize", "inspect", "diff")


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Run the command line in this process, in a folder of its own: exit status, standard output, standard error."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return end.value.code or 0, captured.out, captured.err

    return call


@pytest.fixture
def model(tmp_path):
    """Three layers of noise: of 48 x 64, 40 x 64 and 32 x 64 entries, each of twice the scale of the one before."""
    rng = np.random.default_rng(0)
    tensors = {
        f"layers.{i}.fc.weight": (2**i * rng.standard_normal((48 - 8 * i, 64))).astype(np.float32) for i in range(3)
    }
    save_file({**tensors, "norm.weight": np.ones(64, np.float32)}, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def options(command):
    return {param.opts[0]: param for param in COMMANDS[command].params if param.opts[0].startswith("-")}


def test_an_option_is_spelt_and_taken_alike_in_every_command():
    """But for what a word is of, and that `ranks` takes several errors."""
    known = {}
    for command in COMMANDS:
        for param in COMMANDS[command].params:
            for name in (name for name in param.opts if name.startswith("--")):
                form = (sorted(param.opts), param.is_flag, param.multiple, getattr(param, "rich_help_panel", None))
                if name == "--error" and command == "ranks":
                    assert param.multiple
                    continue
                assert known.setdefault(name, form) == form, f"{command} {name}"
    parameters = {}
    for command in COMMANDS:
        for name, param in options(command).items():
            if param.name == "method":  # in the library the spectra's and the budgets'; here two options
                continue
            assert parameters.setdefault(param.name, name) == name, f"{command}: {param.name} is {name} elsewhere"


def test_every_command_has_the_options_of_all():
    for command in COMMANDS:
        assert "--json" in options(command), command
        if command not in ("bench", "info"):
            assert {"-q", "-v", "--strict"} <= options(command).keys(), command
        if command in WITH_ROWS:
            assert {"--sort", "--reverse", "--top", "--fail-on"} <= options(command).keys(), command


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_are_calls_that_the_command_takes(name):
    assert EXAMPLES[name]
    for what, line in EXAMPLES[name]:
        assert what
        context = COMMANDS[name].make_context(name, shlex.split(line))
        assert not context.args


def test_examples_are_of_commands():
    assert set(EXAMPLES) == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_panels_and_examples(run, name):
    code, out, err = run(name, "--help")
    assert (code, err) == (0, "")
    assert "bool" not in out.lower()  # a switch takes no value
    for _, line in EXAMPLES[name]:
        assert f"mpfast {name} {line}".rstrip() in out
    panels = {param.rich_help_panel for param in options(name).values() if param.rich_help_panel}
    for panel in {*panels, "Examples"}:
        assert f"─ {panel} ─" in out


def test_the_help_of_all_has_panels_and_exit_codes(run):
    code, out, _ = run("--help")
    assert code == 0
    for text in ("─ Make models smaller ─", "Exit status: 0 done, 1 ", "--config", "-V"):
        assert text in out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("mpfast budget --method ow", {"owl"}),
        ("mpfast analyze --sort hill", {"hill_alpha", "hill_alpha_half"}),
        ("mpfast analyze --spectra ex", {"exact"}),
        ("mpfast analyze --rev", {"--reverse"}),
        ("mpfast compress --format l", {"lora"}),
    ],
)
def test_a_shell_completes_options_and_their_words(words, expected):
    environment = {"_MPFAST_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    completed = run_python("-m", "mpfast", env={**os.environ, **environment}).stdout.split()
    assert set(completed) == expected


# Ordered tables -------------------------------------------------------------------------------------------------------


def names(text):
    return [line.split()[0] for line in text.splitlines() if line.startswith(("layers.", "norm."))]


def layers(*numbers):
    return [f"layers.{number}.fc.weight" for number in numbers]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["analyze", "--sort", "sigma_plus"], layers(2, 1, 0)),
        (["analyze", "--sort", "sigma_plus", "--reverse"], layers(0, 1, 2)),
        (["analyze", "--reverse"], layers(2, 1, 0)),
        (["analyze", "--top", "2"], layers(0, 1)),
        (["analyze", "--sort", "fro_norm", "--top", "1"], layers(2)),
        (["ranks", "--sort", "entries"], layers(0, 1, 2)),
        (["ranks", "--sort", "paying_rank", "--reverse", "--top", "2"], layers(2, 1)),
        (["prune", "--dry-run", "--sparsity", "0.5", "--sort", "pruned", "--reverse"], layers(2, 1, 0)),
        (["compress", "--dry-run", "--rank", "2", "--sort", "shape", "--top", "1"], layers(0)),
        (["inspect", "--sort", "entries", "--reverse", "--top", "2"], ["norm.weight", *layers(2)]),
        (["inspect", "--sort", "name", "--reverse"], ["norm.weight", *layers(2, 1, 0)]),
    ],
)
def test_tables_are_sorted_turned_and_cut(run, model, command, expected):
    code, out, err = run(command[0], model, *command[1:])
    assert code == 0, err
    assert names(out) == expected
    total = 4 if command[0] == "inspect" else 3
    assert ("--top" in command) == (f"the first {len(expected)} of {total} rows" in out)


def test_differences_are_sorted_and_cut(run, model, tmp_path):
    rng = np.random.default_rng(1)
    tensors = {name: rng.standard_normal(64) for name in ("norm.weight", "layers.0.fc.weight", "layers.1.fc.weight")}
    after = {name: value * factor for (name, value), factor in zip(tensors.items(), (1.1, 1.3, 1.2), strict=True)}
    save_file(tensors, tmp_path / "a.safetensors")
    save_file(after, tmp_path / "b.safetensors")
    code, out, _ = run("diff", "a.safetensors", "b.safetensors", "--sort", "change", "--top", "2")
    assert (code, names(out)) == (0, layers(0, 1))
    assert "3 of 3 tensors changed" in out


def test_a_table_that_is_cut_leaves_the_documents_whole(run, model):
    code, out, _ = run("analyze", model, "--top", "1", "--csv", "-")
    assert (code, len(out.splitlines())) == (0, 4)


def test_what_is_undefined_is_last_in_either_order():
    values = [2.0, float("nan"), 3.0, None, 1.0]
    for reverse, expected in ((False, [3.0, 2.0, 1.0]), (True, [1.0, 2.0, 3.0])):
        assert in_order(values, lambda value: value, reverse=reverse)[:3] == expected
    assert in_order([(2, 3), (4, 4), (5, 1)], lambda shape: shape) == [(4, 4), (2, 3), (5, 1)]
    assert in_order([("a", 1), ("b", 2), ("c", 1)], lambda pair: pair[1], reverse=True) == [
        ("a", 1),
        ("c", 1),
        ("b", 2),
    ]


def test_the_columns_of_a_layer_are_those_of_the_library():
    assert set(LAYERS.sortable) == set(SORT_COLUMNS)


# Words in conditions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "met"),
    [
        ("verdict == even", {"even"}),
        ("verdict != even", {"uneven", "nearly", "none", "equal"}),
        ("verdict >= nearly", {"nearly", "none"}),
        ("verdict > even", {"uneven", "nearly", "none"}),
        ("verdict<uneven", {"even"}),
        ("verdict <= 'none'", {"even", "uneven", "nearly", "none"}),
        ('verdict == "equal"', {"equal"}),
    ],
)
def test_verdicts_are_words_on_a_ladder(condition, met):
    (found,) = conditions([condition], LAYERS)
    assert {word for word in ("even", "uneven", "nearly", "none", "equal", None, 3.0) if found.holds(word)} == met


@pytest.mark.parametrize(
    ("command", "condition", "message"),
    [
        ("analyze", "verdict == good", "takes one of even, uneven, nearly, none, equal, not 'good'"),
        ("analyze", "verdict > equal", "takes one of even, uneven, nearly, none, not 'equal'"),
        ("analyze", "dtype > float16", "dtype is a word, which is tested with == and !="),
        ("analyze", "ks == even", "ks is compared with a number, not even"),
        ("inspect", "verdict == none", "'verdict' is none of the columns entries, matrices, name, dtype"),
    ],
)
def test_conditions_on_words_that_cannot_be_are_wrong_usage(run, model, command, condition, message):
    code, out, err = run(command, model, "--fail-on", condition)
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())


@pytest.mark.parametrize(
    ("command", "fails", "passes"),
    [
        (["analyze"], "verdict <= none", "verdict == equal"),
        (["ranks"], "kind == linear", "paying_rank > 100"),
        (["inspect"], "dtype != bfloat16", "role == conv"),
        (["budget", "--sparsity", "0.5", "-o", "budget.json"], "dtype == float32", "kind == conv"),
        (["prune", "--dry-run", "--sparsity", "0.5"], "dtype == float32", "sparsity > 0.6"),
        (["compress", "--dry-run", "--rank", "2"], "energy < 0.5", "energy > 0.5"),
    ],
)
def test_every_table_can_be_tested(run, model, command, fails, passes):
    for condition, expected in ((fails, 1), (passes, 0)):
        code, _, err = run(command[0], model, *command[1:], "--fail-on", condition)
        assert code == expected, err
        assert (f"mpfast: error: {condition}: " in err) == bool(expected)


def test_inspect_tests_the_tensors_that_are_chosen(run, model):
    for choice, expected in (([], 1), (["--include", "layers.*"], 0), (["--exclude", "norm.*"], 0)):
        assert run("inspect", model, *choice, "--fail-on", "entries < 100")[0] == expected


COLUMNS = {
    LayerBudget: (BUDGET, PRUNED),
    DiffRow: (DIFFERENCE,),
    FactoredLayer: (FACTORED,),
    NarrowedLayer: (NARROWED,),
    QuantizedLayer: (QUANTIZED,),
    RankRow: (RANKS,),
    ResizedUpdate: (RESIZED,),
    InventoryRow: (TENSORS,),
}


@pytest.mark.parametrize("row", COLUMNS)
def test_the_columns_are_those_of_the_rows(row):
    for columns in COLUMNS[row]:
        assert set(columns.sortable) <= {column.name for column in fields(row)}
        assert len(set(columns.sortable)) == len(columns.sortable)


# Several at once ------------------------------------------------------------------------------------------------------


def test_inspect_and_verify_take_several(run, model):
    for out in ("one", "two"):
        assert run("prune", model, "-o", out, "--sparsity", "0.5")[0] == 0
    code, out, _ = run("verify", "one", "two")
    assert (code, [line.split(":")[0] for line in out.splitlines()]) == (0, ["one", "two"])
    code, out, err = run("verify", "one", "missing", "two")
    assert (code, len(out.splitlines())) == (1, 2)
    assert "missing" in err
    assert run("verify", "one", "two", "--source", model)[0] == 2
    code, out, err = run("inspect", model, "missing.npz")
    assert (code, "3 matrices would be analysed" in out) == (1, True)
    assert "missing.npz: no such file" in err
