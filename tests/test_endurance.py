"""Many calls, many threads, other processes and interpreters, and little memory."""

from __future__ import annotations

import json
import locale
import multiprocessing
import os
import shutil
import sys
import tempfile
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import mpfast
from mpfast.spectra.synthetic import family
from mpfast.support import Workers

from .references import run_python

pytestmark = pytest.mark.slow

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="limits and /proc are Linux's")


def signature(seed):
    """One call of each kind on a small matrix, as bits."""
    W = family("gauss", (96, 128), seed).astype(np.float32)
    spectrum = mpfast.spectrum(W, method="lanczos", probes=4, steps=6)
    parts = [
        spectrum.edge.sigma_plus,
        mpfast.spectrum(W, method="exact").edge.sigma_plus,
        mpfast.svd(W, 2).s[0],
        mpfast.gram_product(W, np.ones((96, 3), np.float32)).tobytes(),
        mpfast.masks.n_m(W, 2, 4).tobytes(),
        mpfast.masks.magnitude(W, 0.5).tobytes(),
        mpfast.reconstruct.prune(W, np.eye(128) + 0.5, sparsity=0.5).weights.tobytes(),
    ]
    return hash(tuple(parts))


def test_a_thousand_calls_from_32_threads():
    """1000 calls, 32 at a time, on 25 matrices: bit for bit what one thread computes."""
    alone = [signature(seed) for seed in range(25)]
    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(signature, (i % 25 for i in range(1000)))) == [alone[i % 25] for i in range(1000)]


def test_a_spawned_process_computes_the_same():
    """Arrays go there and spectra come back."""
    matrices = [family("gauss", (96, 128), seed).astype(np.float32) for seed in (1, 2)]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        spectra = pool.map_async(mpfast.spectrum, matrices).get(timeout=100)
    for W, there in zip(matrices, spectra, strict=True):
        np.testing.assert_array_equal(there.values, mpfast.spectrum(W).values)
        assert there.edge == mpfast.spectrum(W).edge


GROWTH = """
    import numpy as np, mpfast
    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096
    W = np.random.default_rng(0).standard_normal((24, 32)).astype(np.float32)
    X = np.ones((24, 2), np.float32)
    def calls(count):
        for _ in range(count // 5):
            mpfast.spectrum(W).edge
            mpfast.gram_product(W, X)
            mpfast.masks.n_m(W, 2, 4)
            mpfast.masks.magnitude(W, 0.5)
            try:
                mpfast.spectrum(W[:0])
            except ValueError:
                pass
    calls(5000)
    before = resident()
    calls({count})
    print(resident() - before)
"""


@linux_only
def test_fifty_thousand_calls_need_no_more_memory():
    run = run_python("-c", textwrap.dedent(GROWTH.format(count=50000)), timeout=600)
    assert run.returncode == 0, run.stderr
    # A leak of 40 bytes a call would be 2 MB; the allocators of Python and C move by some hundred kB.
    assert int(run.stdout) < 1 << 20


LIMITED = """
    import resource, sys
    import numpy as np, mpfast
    W = np.random.default_rng(0).standard_normal((1500, 1600)).astype(np.float32)
    X = np.ones((1500, 8), np.float32)
    C = np.eye(1600) + 0.5
    calls = {
        "exact": lambda: mpfast.spectrum(W, method="exact", threads=4).edge.sigma_plus,
        "lanczos": lambda: mpfast.spectrum(W, method="lanczos", threads=4).edge.sigma_plus,
        "svd": lambda: mpfast.svd(W, 8, threads=4).s[0],
        "gram": lambda: mpfast.gram_product(W, X, threads=4).sum(),
        "masks": lambda: mpfast.masks.n_m(W, 2, 4).sum(),
        "reconstruct": lambda: mpfast.reconstruct.prune(W, C, sparsity=0.5, threads=4).error,
    }
    name, megabytes = sys.argv[1], int(sys.argv[2])
    # NumPy has an OpenBLAS of its own, which ends the process when it gets no work space; here it has some.
    a = np.ones((300, 300))
    np.linalg.eigh(a @ a)
    if megabytes:
        with open("/proc/self/status") as file:
            used = next(int(line.split()[1]) for line in file if line.startswith("VmSize")) << 10
        resource.setrlimit(resource.RLIMIT_AS, (used + (megabytes << 20),) * 2)
    try:
        print(float(calls[name]()))
    except MemoryError as error:
        print("MemoryError")
"""


@linux_only
@pytest.mark.parametrize("name", ["exact", "lanczos", "svd", "gram", "masks", "reconstruct"])
def test_a_limit_on_memory_is_an_error_not_the_end(name):
    """Whatever is left, from 2 MB up: the right result or MemoryError, and the process goes on."""
    script = textwrap.dedent(LIMITED)
    expected = run_python("-c", script, name, "0")
    assert expected.returncode == 0, expected.stderr
    outcomes = []
    for megabytes in (2, 8, 24, 80, 400):
        run = run_python("-c", script, name, str(megabytes))
        assert run.returncode == 0, (megabytes, run.stdout, run.stderr)
        assert run.stdout in ("MemoryError\n", expected.stdout), megabytes
        outcomes.append(run.stdout)
    assert outcomes[-1] == expected.stdout


THREADS = """
    import resource
    import numpy as np, mpfast
    W = np.random.default_rng(0).standard_normal((2200, 2300)).astype(np.float32)
    expected = mpfast.spectrum(W, method="exact", threads=1).values
    # Neither the stacks of 64 threads nor what OpenBLAS maps for them has room in what is left.
    with open("/proc/self/status") as file:
        used = next(int(line.split()[1]) for line in file if line.startswith("VmSize")) << 10
    resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20),) * 2)
    print((mpfast.spectrum(W, method="exact", threads=64).values == expected).all())
"""


@linux_only
def test_fewer_threads_than_wanted_give_the_same():
    run = run_python("-c", textwrap.dedent(THREADS), timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "True\n"


ASKED_FOR = """
    import os, threading
    import numpy as np, mpfast
    from mpfast import _core
    W = np.random.default_rng(0).standard_normal((1500, 1600)).astype(np.float32)
    threads = {threads}
    most, done = 0, threading.Event()
    def watch():
        global most
        while not done.is_set():
            most = max(most, len(os.listdir("/proc/self/task")))
    before = len(os.listdir("/proc/self/task"))
    watcher = threading.Thread(target=watch)
    watcher.start()
    mpfast.spectrum(W, method="exact", threads=threads)
    done.set()
    watcher.join()
    print(_core.default_threads(), most - before, len(os.sched_getaffinity(0)))
"""


@linux_only
@pytest.mark.parametrize(("threads", "setting"), [(None, "1000000"), (None, "99999999999999999999"), (60000, "1")])
def test_no_more_threads_are_started_than_the_machine_can_use(threads, setting):
    """The environment may ask for as many as there are processors, an argument for 16 times that or 256."""
    run = run_python(
        "-c", textwrap.dedent(ASKED_FOR.format(threads=threads)), env=os.environ | {"OMP_NUM_THREADS": setting}
    )
    assert run.returncode == 0, run.stderr
    default, most, processors = (int(word) for word in run.stdout.split())
    assert default <= processors
    # Besides: the one that watches, and one for a call into LAPACK.
    assert most <= (processors if threads is None else max(256, 16 * processors)) + 2


NO_THREADS = """
    import json, os, resource, sys, threading
    import numpy as np, mpfast
    rng = np.random.default_rng(0)
    W = rng.standard_normal((1200, 1300)).astype(np.float32)
    model = {f"h.{i}.weight": rng.standard_normal((120, 160)).astype(np.float32) for i in range(6)}
    def results(out):
        analysis = mpfast.analyze(model, threads=3)
        pruned = mpfast.prune(model, out, sparsity=0.5, threads=3)
        return [
            mpfast.spectrum(W, method="exact").edge.sigma_plus,
            mpfast.spectrum(W, method="lanczos").edge.sigma_plus,
            float(mpfast.svd(W, 300).s[-1]),
            [layer.sigma_plus for layer in analysis.layers],
            [layer.content for layer in pruned.budget.layers],
            sorted(os.listdir(out)),
        ]
    os.chmod(".", 0o777)
    expected = results("with")
    if os.geteuid() == 0:  # whom the limit does not concern
        os.setgid(65534)
        os.setuid(65534)
    resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
    try:
        threading.Thread(target=print).start()
    except RuntimeError as error:
        assert "start new thread" in str(error)
    else:
        sys.exit("there are threads")
    assert results("without") == expected
    print("the same")
"""


@linux_only
def test_no_threads_at_all_give_the_same():
    """`analyze` and `prune` go on in the calling thread, in Python and in the core."""
    script = textwrap.dedent(NO_THREADS)
    # pytest's own directories are closed to the other user that the script becomes.
    with tempfile.TemporaryDirectory() as folder:
        run = run_python("-W", "ignore", "-c", f"import os; os.chdir({folder!r})\n{script}", timeout=300)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "the same\n"


def test_workers_go_on_with_the_threads_there_are(monkeypatch):
    """Every task is run once, whether the first, the second or no thread starts, and what it raises comes out."""
    start = threading.Thread.start

    def call(number):
        ran.append(number)
        if number == 7:
            raise KeyError(number)
        return number

    for granted in (0, 1, 2, 8):
        ran = []
        left = iter(range(granted))

        def limited(thread, left=left):
            if next(left, None) is None:
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", limited)
        with Workers(4) as workers:
            futures = [workers.submit(call, number) for number in range(20)]
        assert sorted(ran) == list(range(20))
        assert [future.result() for future in futures if future.exception() is None] == [*range(7), *range(8, 20)]
        with pytest.raises(KeyError):
            futures[7].result()


def test_an_interrupt_in_the_calling_thread_ends_the_work(monkeypatch):
    def failing(thread):
        raise RuntimeError("can't start new thread")

    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", failing)
    with Workers(2) as workers, pytest.raises(KeyboardInterrupt):
        workers.submit(interrupted)


SUBINTERPRETER = """
    import mpfast
    try:
        import _interpreters as interpreters
    except ImportError:
        import _xxsubinterpreters as interpreters
    other = interpreters.create()
    lines = [
        "try:",
        "    import mpfast",
        "    print(round(mpfast.spectra.sigma_plus(1.0, (4, 9)), 6))",
        "except ImportError as error:",
        "    print('ImportError')",
    ]
    interpreters.run_string(other, chr(10).join(lines))
    interpreters.destroy(other)
    print("alive", mpfast.spectra.sigma_plus(1.0, (4, 9)))
"""


def test_a_subinterpreter_imports_or_says_that_it_cannot():
    """NumPy refuses to be loaded twice in a process; that has to arrive as an ImportError."""
    run = run_python("-c", textwrap.dedent(SUBINTERPRETER))
    if "No module named" in run.stderr:
        pytest.skip("this Python has no subinterpreters")
    assert run.returncode == 0, run.stderr
    first, last = run.stdout.splitlines()
    assert first in ("ImportError", "5.0")
    assert last == "alive 5.0"


def test_sources_without_the_native_core_say_what_to_do(tmp_path):
    package = Path(mpfast.__file__).parent
    shutil.copytree(package, tmp_path / "mpfast", ignore=shutil.ignore_patterns("*.so", "*.pyd", "__pycache__"))
    # Without `site`, and so without the hooks of an editable install.
    path = [str(tmp_path), str(Path(np.__file__).parents[1])]
    run = run_python("-S", "-c", f"import sys; sys.path[:0] = {path}; import mpfast")
    assert f"ImportError: {tmp_path / 'mpfast'} has no native core for this Python" in run.stderr


def german() -> str | None:
    before = locale.setlocale(locale.LC_ALL)
    for name in ("de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8"):
        try:
            locale.setlocale(locale.LC_ALL, name)
        except locale.Error:
            continue
        locale.setlocale(locale.LC_ALL, before)
        return name
    return None


def test_a_decimal_comma_changes_no_output(tmp_path):
    """With a locale that writes 1,5 the reports still hold 1.5; where there is none, one is imitated."""
    model = {"fc": family("gauss", (96, 128), 0).astype(np.float32)}
    plain = mpfast.analyze(model, progress=False)
    name = german()
    before = locale.setlocale(locale.LC_ALL)
    try:
        if name is not None:
            locale.setlocale(locale.LC_ALL, name)
        else:
            locale._override_localeconv = {"decimal_point": ",", "thousands_sep": "."}
        there = mpfast.analyze(model, progress=False)
        rows = [json.loads(analysis.to_json())["layers"][0] for analysis in (plain, there)]
        assert {**rows[0], "seconds": 0} == {**rows[1], "seconds": 0}
        assert len(there.to_csv().splitlines()[1].split(",")) == len(there.to_csv().splitlines()[0].split(","))
        assert mpfast.Analysis.from_json(there.to_json()).layers == there.layers
    finally:
        locale._override_localeconv = {}
        locale.setlocale(locale.LC_ALL, before)


def test_the_clock_may_jump(monkeypatch):
    """Nothing but a file's modification date depends on the time of day."""
    W = family("gauss", (96, 128), 0).astype(np.float32)
    expected = mpfast.spectrum(W, method="lanczos").to_dict()
    times = iter([0.0, 1e12, -1e9, *range(1000)])
    monkeypatch.setattr(time, "time", lambda: next(times))
    assert mpfast.spectrum(W, method="lanczos").to_dict() == expected
    assert len(mpfast.analyze({"fc": W}, progress=False)) == 1


FORKS = """
    import os, signal, threading
    import numpy as np, mpfast
    rng = np.random.default_rng(0)
    A = rng.standard_normal((300, 400)).astype(np.float32)
    B = A[:150]
    stop = threading.Event()
    def results(W):
        return [
            mpfast.spectrum(W, method="exact", threads=2).edge.sigma_plus,
            mpfast.spectrum(W, method="lanczos", threads=2).edge.sigma_plus,
            int(mpfast.masks.magnitude(W, 0.3, threads=2).sum()),
        ]
    def work():
        while not stop.is_set():
            results(A)
    expected = results(B)
    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(120):
        child = os.fork()
        if child == 0:
            signal.alarm(60)  # a child takes a few milliseconds; one that waits for ever ends so
            os._exit(0 if results(B) == expected else 1)
        _, status = os.waitpid(child, 0)
        if status != 0:
            print("child", number, "ended with", status)
    stop.set()
    for thread in threads:
        thread.join()
"""


@linux_only
def test_children_that_are_forked_while_other_threads_compute():
    """Whatever lock another thread holds at that moment, of Python's, of the core's or of OpenBLAS's."""
    run = run_python("-W", "ignore", "-c", textwrap.dedent(FORKS), timeout=600)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


FORK_IN_A_CALL = """
    import os, signal
    import numpy as np, mpfast
    rng = np.random.default_rng(0)
    W = rng.standard_normal((2100, 2200))
    class Operator:
        shape, dtype = W.shape, W.dtype
        calls = children = 0
        def matmat(self, X):
            Operator.calls += 1
            if forking and Operator.calls == 3:
                Operator.children = os.fork()
                if Operator.children == 0:
                    signal.alarm(100)
            return W @ X
        def rmatmat(self, X):
            return W.T @ X
    def result():
        return mpfast.spectrum(Operator(), method="lanczos", probes=8, steps=10, threads=4).edge.sigma_plus
    forking = False
    expected = result()
    forking, Operator.calls = True, 0
    found = result()
    if Operator.children == 0:
        os._exit(0 if found == expected else 1)
    assert found == expected
    print(os.waitpid(Operator.children, 0)[1])
"""


@linux_only
def test_an_operator_may_fork_in_the_middle_of_a_call():
    """The child has none of the team's threads, and ends the call alone with the same result."""
    run = run_python("-W", "ignore", "-c", textwrap.dedent(FORK_IN_A_CALL), timeout=300)
    assert (run.returncode, run.stdout, run.stderr) == (0, "0\n", "")
