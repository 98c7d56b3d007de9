"""What is written, and where: one writer at a time, whole or not at all, nothing of anybody else's."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import tempfile
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mpfast
from mpfast.checkpoints import files_behind, open_checkpoint
from mpfast.support import output_directories
from mpfast.support.directory_marks import is_marked, write_mark
from mpfast.support.output_directories import claimed_directory, staged_directory

from .references import run_python

PRUNE = partial(mpfast.prune, sparsity=0.5, method="magnitude", progress=False)
WRITERS = [PRUNE, partial(mpfast.compress, rank=2), partial(mpfast.compress, rank=2, format="factors")]


def matrix(seed=0, shape=(64, 48)):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@pytest.fixture
def model(tmp_path):
    """A model directory of three files."""
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    for part in range(3):
        tensors = {f"{part}.weight": matrix(part), f"{part}.bias": matrix(9 + part, (64,))}
        save_file(tensors, directory / f"model-{part}.safetensors")
    return directory


def contents(directory):
    """The bytes of every file by its name, without the mark and the time at which a report was written."""
    files = (path for path in directory.rglob("*") if path.is_file() and path.name != ".mpfast.json")
    read = {str(path.relative_to(directory)): path.read_bytes() for path in files}
    return {name: re.sub(rb'"time": "[^"]*"', b'"time": ""', data) for name, data in read.items()}


def written(directory, text):
    with staged_directory(directory, overwrite=True) as staging:
        (staging / "text").write_text(text)
        write_mark(staging, "test")


class TestTheLock:
    def test_a_second_writer_fails_at_once_and_learns_who_is_first(self, model, tmp_path):
        with claimed_directory(tmp_path / "out"):
            for write in WRITERS:
                with pytest.raises(FileExistsError, match=rf"is being written by process {os.getpid()} on .* since 20"):
                    write(model, tmp_path / "out")
        PRUNE(model, tmp_path / "out")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]

    def test_of_many_threads_one_wins(self, model, tmp_path):
        started, outcomes = threading.Barrier(6), []

        def run(sparsity):
            started.wait()
            try:
                PRUNE(model, tmp_path / "out", sparsity=sparsity)
                outcomes.append(sparsity)
            except FileExistsError as error:
                outcomes.append(str(error))

        threads = [threading.Thread(target=run, args=(0.1 * k,)) for k in range(1, 7)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (winner,) = [outcome for outcome in outcomes if isinstance(outcome, float)]
        assert mpfast.verify(tmp_path / "out").ok
        assert mpfast.models.Budget.from_json(tmp_path / "out" / "budget.json").sparsity == winner
        assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]

    def test_the_lock_of_a_killed_process_is_free(self, model, tmp_path):
        code = (
            "import sys, os, signal; from mpfast.support.output_directories import claimed_directory\n"
            "with claimed_directory(sys.argv[1]) as place, place.staged() as staging:\n"
            "    (staging / 'rubbish').write_text('x')\n"
            "    os.kill(os.getpid(), signal.SIGKILL)"
        )
        assert run_python("-c", code, str(tmp_path / "out")).returncode == -signal.SIGKILL
        assert (tmp_path / ".out.mpfast-partial" / "rubbish").exists()
        for write in WRITERS:  # nor does what it left come into the output
            write(model, tmp_path / "out", overwrite=True)
            assert not (tmp_path / "out" / "rubbish").exists()
        assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]

    def test_where_a_file_system_has_no_locks_the_note_tells(self, tmp_path, monkeypatch):
        fcntl = pytest.importorskip("fcntl")

        def without_locks(*_):
            raise OSError(38, "Function not implemented")

        monkeypatch.setattr(fcntl, "flock", without_locks)
        with claimed_directory(tmp_path / "out"), pytest.raises(FileExistsError, match=f"process {os.getpid()} on"):
            written(tmp_path / "out", "x")
        finished = run_python("-c", "import os; print(os.getpid())")
        holder = {"pid": int(finished.stdout), "host": os.uname().nodename, "since": "yesterday"}
        lock = tmp_path / ".out.mpfast-lock"
        lock.write_text(json.dumps(holder))
        written(tmp_path / "out", "x")
        lock.write_text(json.dumps({**holder, "host": "another"}))
        with pytest.raises(FileExistsError, match="on another since yesterday"):
            written(tmp_path / "out", "y")


class TestTheSwap:
    @pytest.mark.parametrize("exchanges", [True, False])
    def test_the_old_or_the_new_one_is_there_whatever_step_fails(self, exchanges, tmp_path, monkeypatch):
        """Killed before or after any of the calls that the swap consists of; then the next one finds one of the two."""
        if not exchanges:
            monkeypatch.setattr(output_directories, "_exchange", lambda *_: False)
        elif sys.platform != "linux":
            pytest.skip("directories cannot be exchanged here")
        code = (
            "import os, sys, signal, shutil, pathlib; from mpfast.support import output_directories as o\n"
            "from mpfast.support import staged_directory, write_mark\n"
            "out, step, exchanges = sys.argv[1], int(sys.argv[2]), sys.argv[3] == 'True'\n"
            "count = 0\n"
            "def dying(function):\n"
            "    def call(*args, **options):\n"
            "        global count\n"
            "        count += 1\n"
            "        if count == step: os.kill(os.getpid(), signal.SIGKILL)\n"
            "        result = function(*args, **options)\n"
            "        count += 1\n"
            "        if count == step: os.kill(os.getpid(), signal.SIGKILL)\n"
            "        return result\n"
            "    return call\n"
            "pathlib.Path.rename = dying(pathlib.Path.rename)\n"
            "shutil.rmtree = dying(shutil.rmtree)\n"
            "o._exchange = dying(o._exchange) if exchanges else lambda *_: False\n"
            "with staged_directory(out, overwrite=True) as staging:\n"
            "    (staging / 'text').write_text('new')\n"
            "    write_mark(staging, 'test')\n"
        )
        out = tmp_path / "out"
        killed = 0
        for step in range(1, 20):
            written(out, "old")
            run = run_python("-c", code, str(out), str(step), str(exchanges))
            if run.returncode == 0:
                break
            assert run.returncode == -signal.SIGKILL
            killed += 1
            if exchanges:
                assert out.exists()
            elif not out.exists():
                with pytest.warns(UserWarning, match="put back from"):
                    assert output_directories.restore_directory(out)
            assert (out / "text").read_text() in ("old", "new")
            assert is_marked(out)
        assert killed >= (4 if exchanges else 6)
        assert (out / "text").read_text() == "new"

    def test_whoever_looks_for_a_lost_output_puts_it_back(self, model, tmp_path):
        out = tmp_path / "out"
        for find in (mpfast.verify, open_checkpoint, partial(PRUNE, model, overwrite=True)):
            PRUNE(model, out, overwrite=True)
            out.rename(tmp_path / ".out.0123456789ab.old")
            with pytest.warns(UserWarning, match=r"put back from \.out\.0123456789ab\.old"):
                find(out)
            assert mpfast.verify(out).ok
        out.rename(tmp_path / ".out.0123456789ab.old")
        PRUNE(model, tmp_path / "another")
        with pytest.warns(UserWarning, match="put back"), pytest.raises(FileExistsError, match="exists already"):
            PRUNE(model, out)

    def test_what_was_replaced_and_left_is_removed_and_named(self, model, tmp_path):
        PRUNE(model, tmp_path / "out")
        PRUNE(model, tmp_path / ".out.0123456789ab.old")
        (tmp_path / ".out.ba9876543210.old").mkdir()  # not ours
        with pytest.warns(UserWarning, match=r"\.out\.0123456789ab\.old: removed"):
            PRUNE(model, tmp_path / "out", overwrite=True)
        names = sorted(path.name for path in tmp_path.iterdir())
        assert names == [".out.ba9876543210.old", "model", "out"]

    def test_links_in_the_staging_directory_are_not_written_through(self, model, tmp_path):
        (tmp_path / "precious").mkdir()
        (tmp_path / "precious" / "model-0.safetensors").write_text("x")
        (tmp_path / ".out.mpfast-partial").symlink_to(tmp_path / "precious")
        PRUNE(model, tmp_path / "out")
        staging = tmp_path / ".second.mpfast-partial"
        staging.mkdir()
        (staging / "model-0.safetensors").symlink_to(tmp_path / "precious" / "model-0.safetensors")
        os.link(tmp_path / "precious" / "model-0.safetensors", staging / "model-1.safetensors")
        PRUNE(model, tmp_path / "second")
        assert (tmp_path / "precious" / "model-0.safetensors").read_text() == "x"
        assert contents(tmp_path / "out") == contents(tmp_path / "second")


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


class TestResuming:
    def partial(self, model, out, tmp_path, count=2):
        """Kill a run when it has completed some files."""
        code = (
            "import os, signal, sys, mpfast; from mpfast.checkpoints.safetensors_writer import SafetensorsWriter as S\n"
            "close, done = S.close, []\n"
            "def dying(self):\n"
            "    close(self); done.append(1)\n"
            f"    if len(done) == {count}: os.kill(os.getpid(), signal.SIGKILL)\n"
            "S.close = dying\n"
            "mpfast.prune(sys.argv[1], sys.argv[2], sparsity=.5, method='magnitude', progress=False)"
        )
        run = run_python("-c", code, str(model), str(out))
        assert run.returncode == -signal.SIGKILL
        return out.with_name(f".{out.name}.mpfast-partial")

    @pytest.mark.parametrize("damage", ["none", "missing", "changed", "shorter", "another"])
    def test_a_finished_file_is_looked_at(self, damage, model, tmp_path, monkeypatch):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")  # the time that the budget notes
        PRUNE(model, tmp_path / "whole")
        staging = self.partial(model, tmp_path / "out", tmp_path)
        file = staging / "model-0.safetensors"
        content = bytearray(file.read_bytes())
        content[-100] ^= 255
        if damage == "missing":
            file.unlink()
        elif damage != "none":
            file.write_bytes({"changed": content, "shorter": content[:-8], "another": b"x" * len(content)}[damage])
        PRUNE(model, tmp_path / "out")
        assert contents(tmp_path / "out") == contents(tmp_path / "whole")
        assert mpfast.verify(tmp_path / "out").ok

    def test_a_source_that_was_edited_in_between_is_not_mixed_with_itself(self, model, tmp_path):
        self.partial(model, tmp_path / "out", tmp_path)
        file = model / "model-0.safetensors"
        status = file.stat()
        content = bytearray(file.read_bytes())
        content[-64 * 48 * 4 :] = matrix(77).tobytes()
        file.write_bytes(content)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        PRUNE(model, tmp_path / "out")
        PRUNE(model, tmp_path / "whole")
        assert contents(tmp_path / "out") == contents(tmp_path / "whole")

    @pytest.mark.parametrize("write", WRITERS)
    def test_a_source_that_is_edited_meanwhile(self, write, model, tmp_path, monkeypatch):
        file = model / "model-0.safetensors"
        original = mpfast.checkpoints.rewriter.SafetensorsWriter.close

        def close(self):
            original(self)
            status = file.stat()
            with file.open("r+b") as stream:  # size and time of the last change as they were
                stream.seek(-4, 2)
                stream.write(b"\0\0\0\0")
            os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))

        monkeypatch.setattr(mpfast.checkpoints.rewriter.SafetensorsWriter, "close", close)
        with pytest.raises(mpfast.CheckpointError, match=r"model-0\.safetensors: was changed while it was read"):
            write(model, tmp_path / "out")
        assert [path.name for path in tmp_path.iterdir()] == ["model"]


class TestCompanions:
    def test_links_that_leave_the_directory_are_named(self, model, tmp_path):
        (tmp_path / "secret").write_text("key")
        (tmp_path / "secrets").mkdir()
        (tmp_path / "secrets" / "id").write_text("key")
        (model / ".hidden").write_text("key")
        (model / "x.txt").symlink_to(tmp_path / "secret")
        (model / "up.txt").symlink_to("../secret")
        (model / "folder").symlink_to(tmp_path / "secrets")
        (model / "around").symlink_to(".")
        (model / "nowhere.txt").symlink_to("missing")
        (model / "inner.txt").symlink_to(".hidden")
        (model / "notes.txt").write_text("mine")
        (model / "same.txt").symlink_to("notes.txt")
        for number, write in enumerate(WRITERS[:2]):
            result = write(model, tmp_path / f"out{number}")
            copied = {path.name for path in (tmp_path / f"out{number}").iterdir()}
            assert {"notes.txt", "same.txt", "config.json"} <= copied
            named = {text.partition(":")[0] for text in result.not_copied}
            assert named == {"x.txt", "up.txt", "folder", "around", "nowhere.txt", "inner.txt"}
            assert not named & copied

    def test_the_blobs_of_a_cache_are_followed(self, model, tmp_path):
        repository = tmp_path / "models--org--name"
        snapshot = repository / "snapshots" / "abc"
        (snapshot / "sub").mkdir(parents=True)
        (repository / "blobs").mkdir()
        (tmp_path / "models--org--other" / "blobs").mkdir(parents=True)
        for number, path in enumerate(sorted(model.iterdir())):
            (repository / "blobs" / str(number)).write_bytes(path.read_bytes())
            (snapshot / path.name).symlink_to(Path("..", "..", "blobs", str(number)))
        (repository / "blobs" / "v").write_text("a b c")
        (snapshot / "sub" / "vocab.txt").symlink_to("../../../blobs/v")
        (tmp_path / "models--org--other" / "blobs" / "w").write_text("theirs")
        (snapshot / "other.txt").symlink_to(tmp_path / "models--org--other" / "blobs" / "w")
        result = PRUNE(snapshot, tmp_path / "out")
        assert (tmp_path / "out" / "sub" / "vocab.txt").read_text() == "a b c"
        assert (tmp_path / "out" / "config.json").read_text() == "{}"
        assert [text.partition(":")[0] for text in result.not_copied] == ["other.txt"]
        assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))

    def test_other_forms_of_the_weights_stay_behind(self, model, tmp_path):
        stale = [
            "model.onnx_data",
            "model.onnx.data",
            "decoder.engine",
            "model.safetensors.bak",
            "pytorch_model.bin.bak",
            "tf_model.h5",
            "flax_model.msgpack",
            "model.gguf",
            "program.pt2",
            "model.pte",
            "model.tflite",
            "weights.zip",
            "old.safetensors.1",
            "m.ckpt~",
            "variables.data-00000-of-00001",
            "model.mlpackage/Data/weight.txt",
            "onnx/model.onnx",
        ]
        kept = ["tokenizer.json", "tokenizer.model", "merges.txt", "README.md", "modeling.py", "1_Pooling/config.json"]
        for name in (*stale, *kept):
            (model / name).parent.mkdir(parents=True, exist_ok=True)
            (model / name).write_text("something")
        magic = {"blob1": b"GGUF", "blob2": b"PK\x03\x04", "blob3": b"\x89HDF\r\n\x1a\n", "blob4": b"\x93NUMPY"}
        for name, begin in magic.items():
            (model / name).write_bytes(begin + bytes(100))
        (model / "blob5").write_bytes((model / "model-0.safetensors").read_bytes())
        result = PRUNE(model, tmp_path / "out")
        for name in kept:
            assert (tmp_path / "out" / name).read_text() == "something"
        left = {text.partition(":")[0] for text in result.not_copied}
        assert left == {*stale, *magic, "blob5"}
        assert not any((tmp_path / "out" / name).exists() for name in left)


class TestWhatAFileCannotHold:
    @pytest.mark.parametrize(
        "entry", [np.array(["cat"]), np.ones(3, complex), np.ones(3, np.longdouble), np.array([object()])]
    )
    @pytest.mark.parametrize("write", WRITERS)
    def test_the_entry_is_named(self, write, entry, tmp_path):
        with pytest.raises((ValueError, TypeError), match="my_entry"):
            write({"w": matrix(), "my_entry": entry}, tmp_path / "out")
        assert not list(tmp_path.iterdir())

    def test_quantised_tensors_of_pytorch(self, tmp_path):
        torch = pytest.importorskip("torch")
        quantised = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
        with pytest.raises((ValueError, TypeError), match="my_entry"):
            PRUNE({"w": torch.ones(64, 48), "my_entry": quantised}, tmp_path / "out")

    @pytest.mark.parametrize("write", WRITERS)
    def test_a_name_that_the_format_keeps(self, write, tmp_path):
        with pytest.raises(ValueError, match="__metadata__, which safetensors files keep for themselves"):
            write({"__metadata__": matrix(), "w": matrix()}, tmp_path / "out")

    def test_a_full_disk_is_told_with_the_path(self, model, tmp_path, monkeypatch):
        def full(descriptor):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left") as caught:
            PRUNE(model, tmp_path / "out")
        assert str(tmp_path) in caught.value.filename


class TestByteOrder:
    """Numbers count, not bytes: upcast bfloat16 has bytes that are finite numbers either way round."""

    @pytest.mark.parametrize("dtype", [">f4", ">f8", ">f2"])
    @pytest.mark.parametrize("container", ["mapping", "npz", "misaligned"])
    def test_arrays_of_the_other_byte_order(self, dtype, container, tmp_path):
        numbers = {"w": np.round(matrix() * 4), "b": np.arange(5.0), "i": np.arange(7), "c": np.ones(3, np.complex64)}
        types = {"w": dtype, "b": dtype, "i": ">i8", "c": ">c8"}
        swapped = {name: array.astype(types[name]) for name, array in numbers.items()}
        source = dict(swapped)
        if container == "npz":
            np.savez(tmp_path / "m.npz", **swapped)
            source = tmp_path / "m.npz"
        elif container == "misaligned":
            for name, array in swapped.items():
                memory = np.empty(array.nbytes + 1, np.uint8)[1:]
                memory[:] = np.frombuffer(array.tobytes(), np.uint8)
                source[name] = memory.view(array.dtype).reshape(array.shape)
        native = {name: array.astype(array.dtype.newbyteorder("=")) for name, array in swapped.items()}
        for write, file in ((PRUNE, "pruned"), (partial(mpfast.compress, rank=3), "dense")):
            write(source, tmp_path / file)
            write(native, tmp_path / f"{file}-native")
            found = load_file(tmp_path / file / "model.safetensors")
            for name, wanted in load_file(tmp_path / f"{file}-native" / "model.safetensors").items():
                np.testing.assert_array_equal(found[name], wanted)
            for name in "bic":
                np.testing.assert_array_equal(found[name], numbers[name])
        checked = mpfast.verify(tmp_path / "pruned", source)
        assert checked.ok
        rows = [mpfast.analyze(given, progress=False)[0].sigma_plus for given in (source, native)]
        assert rows[0] == rows[1]

    def test_a_file_of_one_array(self, tmp_path):
        W = np.round(matrix() * 4)
        np.save(tmp_path / "w.npy", W.astype(">f4"))
        PRUNE(tmp_path / "w.npy", tmp_path / "out")
        keep = PRUNE({"w": W}).masks["w"]
        np.testing.assert_array_equal(load_file(tmp_path / "out" / "model.safetensors")["w"], W * keep)
        assert mpfast.verify(tmp_path / "out").ok


class TestVerify:
    @pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
    def test_files_of_pytorch(self, dtype, tmp_path):
        torch = pytest.importorskip("torch")
        kind = getattr(torch, dtype)
        state = {"a.weight": torch.randn(64, 48).to(kind), "n.weight": torch.ones(64).to(kind)}
        for name in ("float8_e4m3fn", "float8_e5m2"):
            state[name] = torch.randn(16, 16).to(getattr(torch, name))
        state |= {"i": torch.arange(4), "flag": torch.tensor([True, False]), "c": torch.ones(2, dtype=torch.complex64)}
        torch.save(state, tmp_path / "m.pt")
        PRUNE(tmp_path / "m.pt", tmp_path / "out")
        found = mpfast.verify(tmp_path / "out")
        assert (found.ok, found.layers, found.untouched) == (True, 1, len(state) - 1)
        assert mpfast.verify(tmp_path / "out", state).ok
        state["float8_e5m2"] = -state["float8_e5m2"].float()
        state["float8_e5m2"] = state["float8_e5m2"].to(torch.float8_e5m2)
        assert "float8_e5m2: the source is not the one" in mpfast.verify(tmp_path / "out", state).problems[0]

    def test_onnx(self, tmp_path):
        onnx = pytest.importorskip("onnx")
        tensors = [onnx.numpy_helper.from_array(matrix(), "w"), onnx.numpy_helper.from_array(np.arange(4), "i")]
        graph = onnx.helper.make_graph([], "g", [], [], initializer=tensors)
        onnx.save(onnx.helper.make_model(graph), tmp_path / "m.onnx")
        PRUNE(tmp_path / "m.onnx", tmp_path / "out")
        found = mpfast.verify(tmp_path / "out")
        assert (found.ok, found.untouched) == (True, 1)

    def test_a_moved_source_verifies_and_an_edited_one_does_not(self, model, tmp_path):
        PRUNE(model, tmp_path / "out")
        assert mpfast.verify(tmp_path / "out").ok
        model.rename(tmp_path / "moved")
        without = mpfast.verify(tmp_path / "out")
        # The other tensors are known by their hashes, the entries that are kept by nothing.
        assert (without.ok, without.source, without.untouched) == (True, None, 3)
        assert "entries that the masks keep" in without.not_compared[0]
        moved = mpfast.verify(tmp_path / "out", tmp_path / "moved")
        assert moved.ok
        assert moved.not_compared == ("files beside the weights (configuration, tokenizer)",)
        mark = json.loads((tmp_path / "out" / ".mpfast.json").read_text())
        assert moved.source_hash == mark["source"]["hash"]
        for name, word in (
            ("1.bias", "this tensor, which is not pruned, differs"),
            ("1.weight", "content hash differs"),
        ):
            (tmp_path / "model").mkdir(exist_ok=True)
            for file in (tmp_path / "moved").glob("*.safetensors"):
                tensors = load_file(file)
                if name in tensors:
                    tensors[name] = tensors[name] + np.float32(1)
                save_file(tensors, model / file.name)
            problems = mpfast.verify(tmp_path / "out").problems
            assert any(f"{name}: the source is not the one that was pruned" in text for text in problems)
            assert any(word in text for text in problems)

    def test_a_damaged_output_is_found_without_the_source(self, model, tmp_path):
        PRUNE(model, tmp_path / "out")
        model.rename(tmp_path / "moved")
        file = tmp_path / "out" / "model-2.safetensors"
        tensors = load_file(file)
        save_file({**tensors, "2.bias": -tensors["2.bias"]}, file)
        assert "2.bias: is not pruned, but its content hash" in mpfast.verify(tmp_path / "out").problems[0]

    def test_tensors_without_entries(self, tmp_path):
        model = {"w.weight": matrix(), "none": np.empty((0, 5), np.float32), "one": np.float32(3)}
        PRUNE(model, tmp_path / "out")
        assert mpfast.verify(tmp_path / "out", model).untouched == 2
        assert mpfast.verify(tmp_path / "out").untouched == 2
        mpfast.compress(model, tmp_path / "a", base={**model, "w.weight": 2 * matrix(1)}, rank=2)
        PRUNE(tmp_path / "out", tmp_path / "again")
        assert mpfast.verify(tmp_path / "again").ok

    def test_tensors_of_types_that_are_not_read_are_compared(self, tmp_path):
        """Narrower than a byte: by the bytes of the file."""
        header = {
            "w": {"dtype": "F32", "shape": [64, 48], "data_offsets": [0, 64 * 48 * 4]},
            "q": {"dtype": "F4", "shape": [16], "data_offsets": [64 * 48 * 4, 64 * 48 * 4 + 8]},
        }
        text = json.dumps(header).encode()
        data = matrix().tobytes() + bytes(range(8))
        (tmp_path / "m.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
        PRUNE(tmp_path / "m.safetensors", tmp_path / "out")
        found = mpfast.verify(tmp_path / "out")
        assert (found.ok, found.untouched) == (True, 1)


def test_an_address_is_no_path():
    for address in ("https://host/x/model.safetensors", "s3://bucket/model", Path("https://host/x.safetensors")):
        with pytest.raises(FileNotFoundError, match="nothing is fetched from the network"):
            mpfast.analyze(address)


def as_nobody(directory, code):
    """Run code in a directory as somebody for whom permissions hold; root is not."""
    setup = "import os, sys, numpy as np, mpfast; from pathlib import Path; os.chdir(sys.argv[1])\n"
    setup += "model = {'a.weight': np.random.default_rng(0).standard_normal((64, 48))}\n"
    setup += "mpfast.prune(model, 'first', sparsity=0.25, method='magnitude')\n"
    setup += (
        "if os.geteuid() == 0:\n    os.chmod('first', 0o755)\n    os.system('chown -R 65534 .')\n    os.setuid(65534)\n"
    )
    return run_python("-c", setup + code, str(directory))


@pytest.fixture
def open_directory():
    """A directory that everybody reaches: those of pytest are the user's own."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o777)
        yield Path(directory)


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of another kind")
class TestPermissions:
    def test_a_directory_that_may_not_be_written_is_named(self, open_directory):
        code = (
            "os.mkdir('closed')\nos.chmod('closed', 0o555)\n"
            "analysis = mpfast.analyze(model, progress=False)\n"
            "for write in (\n"
            "    lambda: mpfast.prune(model, 'closed/out', sparsity=0.5, method='magnitude'),\n"
            "    lambda: mpfast.compress(model, 'closed/out', rank=2),\n"
            "    lambda: analysis.to_json('closed/a.json'),\n"
            "):\n"
            "    try:\n        write()\n"
            "    except PermissionError as error:\n        print(error)\n"
            "print(os.listdir('closed'))\n"
        )
        run = as_nobody(open_directory, code)
        assert run.returncode == 0, run.stderr
        pruned, compressed, text, left = run.stdout.splitlines()
        assert pruned.endswith("closed: is not writable, and closed/out is to lie there; name another directory")
        assert compressed == pruned
        assert text == "[Errno 13] Permission denied: 'closed/a.json'"
        assert left == "[]"

    def test_an_older_output_that_was_closed_gives_way(self, open_directory):
        code = (
            "for path in Path('first').iterdir():\n    path.chmod(0o444)\n"
            "os.chmod('first', 0o555)\n"
            "mpfast.prune(model, 'first', sparsity=0.5, method='magnitude', overwrite=True)\n"
            "assert mpfast.verify('first', model).ok\n"
            "print(os.listdir('.'))\n"
        )
        run = as_nobody(open_directory, code)
        assert (run.returncode, run.stdout) == (0, "['first']\n"), run.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")
@pytest.mark.parametrize("write", ["prune(m, o, sparsity=0.5, method='magnitude')", "compress(m, o, rank=2)"])
def test_a_disk_that_takes_no_more_leaves_the_older_output(write, model, tmp_path):
    """Writes really fail, by the limit on the size of a file."""
    PRUNE(model, tmp_path / "out")
    before = contents(tmp_path / "out")
    code = (
        "import sys, resource, signal, mpfast; m, o = sys.argv[1:]\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        f"mpfast.{write[:-1]}, overwrite=True)"
    )
    run = run_python("-c", code, str(model), str(tmp_path / "out"))
    assert "OSError: [Errno 27] File too large: " in run.stderr
    assert ".out.mpfast-partial" in run.stderr.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]
    assert contents(tmp_path / "out") == before
