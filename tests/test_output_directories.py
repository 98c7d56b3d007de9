"""Directories written as a whole: one writer at a time, and the old or the new one is there whatever fails."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
from functools import partial
from pathlib import Path

import pytest

import mpfast
from mpfast.checkpoints import open_checkpoint
from mpfast.support import output_directories
from mpfast.support.directory_marks import is_marked
from mpfast.support.output_directories import claimed_directory

from .outputs import PRUNE, WRITERS, contents, model_in, written
from .references import run_python


@pytest.fixture
def model(tmp_path):
    return model_in(tmp_path)


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
