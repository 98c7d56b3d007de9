"""Only what mpfast wrote, and none of the sources, is ever replaced."""

from __future__ import annotations

import json
import os
import re

import numpy as np
import pytest

import mpfast
from mpfast.checkpoints import files_behind, open_checkpoint
from mpfast.support import output_directories
from mpfast.support.directory_marks import write_mark
from mpfast.support.output_directories import staged_directory

from .outputs import PRUNE, WRITERS, contents, model_in, written


@pytest.fixture
def model(tmp_path):
    return model_in(tmp_path)


class TestWhatIsReplaced:
    @pytest.mark.parametrize("write", WRITERS)
    def test_only_what_has_the_mark(self, write, model, tmp_path):
        out = tmp_path / "out"
        out.mkdir()
        (out / "budget.json").write_text("{}")
        (out / "adapter_config.json").write_text("{}")
        with pytest.raises(FileExistsError, match=r"not marked \(\.mpfast\.json\)"):
            write(model, out, overwrite=True)
        marked = tmp_path / "marked"
        write(model, marked)
        (out / ".mpfast.json").symlink_to(marked / ".mpfast.json")
        with pytest.raises(FileExistsError, match="not marked"):
            write(model, out, overwrite=True)
        (tmp_path / "file").write_text("x")
        with pytest.raises(FileExistsError, match="no directory"):
            write(model, tmp_path / "file", overwrite=True)
        write(model, marked, overwrite=True)
        mark = json.loads((marked / ".mpfast.json").read_text())
        assert mark["schema"] == "mpfast.output/1"
        assert mark["source"]["path"] == str(model)
        assert mark["source"]["hash"].startswith("sha256:")
        assert {"version", "command", "time"} <= mark.keys()

    @pytest.mark.parametrize("write", WRITERS)
    def test_nothing_that_others_put_there(self, write, model, tmp_path):
        out = tmp_path / "out"
        write(model, out)
        mark = json.loads((out / ".mpfast.json").read_text())
        assert mark["files"] == {name: (out / name).stat().st_size for name in contents(out)}
        (out / "plots").mkdir()  # an empty directory is nothing to lose
        write(model, out, overwrite=True)

        def refused(*names):
            before = contents(out)
            with pytest.raises(FileExistsError, match=rf"not as it is now: {re.escape(', '.join(names))}; move these"):
                write(model, out, overwrite=True)
            assert contents(out) == before

        (out / "plots").mkdir()
        (out / "plots" / "a.png").write_text("x")
        (out / "notes.txt").write_text("x")
        refused("notes.txt", "plots/a.png")
        (out / "plots" / "a.png").unlink()
        (out / "notes.txt").unlink()
        (out / "link").symlink_to(model)
        refused("link")
        (out / "link").unlink()
        weights = next(out.glob("model*.safetensors"))
        stored = weights.read_bytes()
        weights.write_bytes(stored + b"x")  # no longer what was written
        refused(weights.name)
        weights.write_bytes(stored)
        write(model, out, overwrite=True)

    def test_nor_a_directory_into_which_a_mark_was_copied(self, model, tmp_path):
        PRUNE(model, tmp_path / "out")
        foreign = tmp_path / "foreign"
        foreign.mkdir()
        (foreign / "y").write_text("x")
        (foreign / "config.json").write_text("not the one that is listed")
        mark = (tmp_path / "out" / ".mpfast.json").read_text()
        for copied in (mark, json.dumps({"schema": "mpfast.output/1"}), json.dumps({**json.loads(mark), "files": [1]})):
            (foreign / ".mpfast.json").write_text(copied)
            with pytest.raises(FileExistsError, match=r"config\.json, y; move"):
                PRUNE(model, foreign, overwrite=True)
        assert (foreign / "y").read_text() == "x"

    @pytest.mark.parametrize("exchanges", [True, False])
    def test_what_comes_while_it_is_written_is_kept(self, exchanges, tmp_path, monkeypatch):
        if not exchanges:
            monkeypatch.setattr(output_directories, "_exchange", lambda one, other: False)
        written(tmp_path / "out", "old")

        def write():
            with staged_directory(tmp_path / "out", overwrite=True) as staging:
                (staging / "text").write_text("new")
                write_mark(staging, "test")
                (tmp_path / "out" / "notes.txt").write_text("mine")

        with pytest.warns(UserWarning, match=r"something came there .* notes\.txt; what was there is kept as"):
            write()
        (kept,) = tmp_path.glob("out.*.old")
        assert ((kept / "notes.txt").read_text(), (kept / "text").read_text()) == ("mine", "old")
        assert (tmp_path / "out" / "text").read_text() == "new"
        assert not list(tmp_path.glob(".*"))

    @pytest.mark.parametrize("write", WRITERS)
    def test_no_source_however_it_is_given(self, write, model, tmp_path):
        """The source is an output itself, so that nothing but the source stands against replacing it."""
        out = tmp_path / "out"
        PRUNE(model, out)
        before = contents(out)
        file = out / "model-0.safetensors"
        (tmp_path / "link").symlink_to(out)
        (tmp_path / "file.safetensors").symlink_to(file)
        (tmp_path / "hard").mkdir()
        os.link(file, tmp_path / "hard" / "m.safetensors")
        flat = np.memmap(file, np.float32, "r", offset=file.stat().st_size - 4 * 64 * 48, shape=(64, 48))
        checkpoint = open_checkpoint(out)
        sources = [
            str(out),
            out / "model-0.safetensors",
            tmp_path / "link",
            tmp_path / "link" / ".." / "out" / "model-1.safetensors",
            tmp_path / "file.safetensors",
            tmp_path / "hard" / "m.safetensors",
            tmp_path / "hard",
            checkpoint,
            {"a": {"w.weight": flat}},
            {"w.weight": checkpoint.read("0.weight")},
            {"w.weight": np.asarray(flat)[::2]},
        ]
        for source in sources:
            with pytest.raises(FileExistsError, match="lies there"):
                write(source, out, overwrite=True)
        assert contents(out) == before
        write({"w.weight": np.array(flat)}, out, overwrite=True)  # a copy in memory is nobody's file

    def test_no_source_behind_a_foreign_array(self, model, tmp_path):
        """Shape and type are attributes of the object, not of its class."""
        out = tmp_path / "out"
        PRUNE(model, out)
        file = out / "model-0.safetensors"

        class Wrapped:
            def __init__(self, array):
                self.shape, self.dtype, self.__array_interface__ = array.shape, array.dtype, array.__array_interface__

        class Slotted(Wrapped):
            __slots__ = ("__array_interface__", "dtype", "shape")

        flat = np.memmap(file, np.float32, "r", offset=file.stat().st_size - 4 * 64 * 48, shape=(64, 48))
        for kind in (Wrapped, Slotted):
            with pytest.raises(FileExistsError, match="lies there"):
                PRUNE({"w.weight": kind(flat)}, out, overwrite=True)

    def test_a_parameter_without_entries_has_no_file(self, tmp_path):
        torch = pytest.importorskip("torch")
        assert files_behind({"w.weight": torch.nn.LazyLinear(8).weight}, torch.nn.LazyLinear(8)) == []

    def test_no_source_that_pytorch_has_mapped(self, model, tmp_path):
        torch = pytest.importorskip("torch")
        out = tmp_path / "out"
        PRUNE(model, out)
        torch.save({"w.weight": torch.ones(64, 48)}, out / "more.pt")
        state = torch.load(out / "more.pt", mmap=True, weights_only=True)
        network = torch.nn.Linear(48, 64, bias=False)
        network.weight = torch.nn.Parameter(state["w.weight"], requires_grad=False)
        for source in (state, network):
            with pytest.raises(FileExistsError, match=r"more\.pt lies there"):
                PRUNE(source, out, overwrite=True)

    def test_no_base(self, model, tmp_path):
        base = tmp_path / "base"
        PRUNE(model, base)
        for given in (base, open_checkpoint(base)):
            with pytest.raises(FileExistsError, match="lies there"):
                mpfast.compress(model, base, base=given, overwrite=True)
