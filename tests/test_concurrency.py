"""Threads, forks, Ctrl-C and memory."""

from __future__ import annotations

import multiprocessing
import os
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import mpfast
from mpfast.spectra.synthetic import family

from .references import run_python


def edge_of(seed):
    W = family("spikes40", (300, 400), seed).astype(np.float32)
    return mpfast.spectrum(W, method="lanczos", probes=8, steps=12).edge.sigma_plus, mpfast.spectrum(W).edge.sigma_plus


def test_calls_from_many_threads_give_what_one_thread_gives():
    alone = [edge_of(seed) for seed in range(12)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(edge_of, range(12))) == alone


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
@pytest.mark.parametrize("setting", [{}, {"OPENBLAS_NUM_THREADS": "2"}])
def test_an_import_starts_no_threads_but_numpys_and_leaves_the_environment(setting):
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"} | setting

    def after_import_of(name):
        script = f"""
            import os
            before = dict(os.environ)
            import {name}
            print(len(os.listdir("/proc/self/task")), dict(os.environ) == before)
        """
        run = run_python("-c", textwrap.dedent(script), env=environment)
        assert run.returncode == 0, run.stderr
        return run.stdout

    assert after_import_of("mpfast") == after_import_of("numpy")


WOKEN = """
    import os, sys, tempfile, time
    import numpy as np
    from pathlib import Path
    tasks = Path("/proc/self/task")
    others = [task for task in os.listdir(tasks) if int(task) != os.getpid()]
    if not others:
        print("NumPy has no threads")
        sys.exit()
    def switches():
        texts = [(tasks / task / "status").read_text() for task in others]
        fields = [dict(line.split(":\\t", 1) for line in text.splitlines()) for text in texts]
        return [(f["State"][0], f["voluntary_ctxt_switches"]) for f in fields]
    def at_rest():
        found, looks = switches(), 0
        while looks < 20:
            time.sleep(0.01)
            before, found = found, switches()
            looks = looks + 1 if found == before and all(state == "S" for state, _ in found) else 0
        return found
    import mpfast
    from mpfast.checkpoints import LowRankProduct
    from mpfast.spectra import singular_vectors
    rng = np.random.default_rng(0)
    gauss = rng.standard_normal((300, 500), dtype=np.float32)
    steep = gauss * np.geomspace(1, 1e-7, 500, dtype=np.float32)
    equal = np.kron(np.eye(200, dtype=np.float32), rng.standard_normal((2, 3), dtype=np.float32))
    product = LowRankProduct(rng.standard_normal((70, 500)), rng.standard_normal((300, 70)))
    calls = {
        "all values": lambda: mpfast.spectrum(gauss, method="exact"),
        "a distribution": lambda: mpfast.spectrum(gauss, method="lanczos"),
        "a dense problem": lambda: mpfast.svd(gauss, 100, threads=1),
        "all of a steep matrix": lambda: mpfast.svd(steep, 200, tol=1e-3, threads=1),
        "a few of a steep matrix": lambda: mpfast.svd(steep, 30, tol=1e-3, threads=1),
        "equal values": lambda: mpfast.svd(equal, 40, threads=1),
        "noise removed": lambda: mpfast.lowrank.denoise(gauss, threads=1),
        "bulk dropped": lambda: singular_vectors.drop_bulk(gauss, 0.5),
        "a product": lambda: mpfast.spectrum(product, method="exact", threads=1),
        "a product's distribution": lambda: mpfast.spectrum(product, method="lanczos", threads=1),
        "a checkpoint": lambda: mpfast.compress({"w.weight": gauss}, Path(tempfile.mkdtemp()) / "out", rank=20),
    }
    for name, call in calls.items():
        before = at_rest()
        call()
        if switches() != before:
            print(name)
    before = at_rest()
    np.ones((600, 600)) @ np.ones((600, 600))
    print("woken" if switches() != before else "asleep")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for threads in /proc")
def test_no_call_wakes_numpys_threads():
    """They are not bounded by ``threads``, and spin: what is large goes through the core."""
    run = run_python("-c", textwrap.dedent(WOKEN), env=os.environ | {"OPENBLAS_NUM_THREADS": "2"})
    assert run.returncode == 0, run.stderr
    if run.stdout == "NumPy has no threads\n":
        pytest.skip(run.stdout)
    assert run.stdout == "woken\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_can_call_after_its_parent_did():
    expected = edge_of(1)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(edge_of, [1, 1, 1, 1]) == [expected] * 4


POOLED = """
    import os, signal, time
    from pathlib import Path
    import numpy as np, mpfast
    from mpfast import _core
    W = _core.Matrix(np.random.default_rng(0).standard_normal((2000, 2100)).astype(np.float32), "float32")
    X = np.ones((8, 2100), np.float32)
    tasks = Path("/proc/self/task")
    def product(threads):
        return _core.gram_product(W, X, "right", threads)[0].tobytes()
    def others():
        return set(os.listdir(tasks)) - before
    def of_others(field):
        texts = [(tasks / task / "status").read_text() for task in sorted(others())]
        return {dict(line.split(":\t", 1) for line in text.splitlines())[field].strip() for text in texts}
    before = set(os.listdir(tasks))
    alone = product(1)
    print("started by one", len(others()))
    print("the same", product(3) == alone)
    first = others()
    for _ in range(20):
        product(3)
    print("started", len(first), "and later", len(others() - first))
    def blocked(number):
        return {int(mask, 16) >> number - 1 & 1 for mask in of_others("SigBlk")}
    # Until it has begun, a thread lets no signal through.
    while blocked(signal.SIGSEGV) != {0}:
        time.sleep(0.01)
    print("signals", blocked(signal.SIGINT) == blocked(signal.SIGTERM) == {1})
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(everywhere)})
    # On one processor a caller may be done before the others have begun.
    here = {str(min(everywhere))}
    print("where the caller is", any(product(3) and of_others("Cpus_allowed_list") == here for _ in range(100)))
    os.sched_setaffinity(0, everywhere)
    child = os.fork()
    if child == 0:
        found = len(os.listdir(tasks)) == 1 and product(3) == alone and len(os.listdir(tasks)) > 1
        os._exit(0 if found else 1)
    print("child", os.waitpid(child, 0)[1], "parent", len(others()), product(3) == alone)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for threads in /proc")
def test_threads_outlive_calls_take_no_signals_and_are_none_in_a_forked_child():
    """Threads that a call has started serve later ones, on the processors of whoever calls."""
    run = run_python("-W", "error", "-c", textwrap.dedent(POOLED), env=os.environ | {"OPENBLAS_NUM_THREADS": "1"})
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.splitlines() == [
        "started by one 0",
        "the same True",
        "started 2 and later 0",
        "signals True",
        "where the caller is True",
        "child 0 parent 0 True",
    ]


LEAVING = """
    import sys, threading
    import numpy as np, mpfast
    W = np.random.default_rng(0).standard_normal((900, 1000))
    def edge():
        return mpfast.spectrum(W, method="lanczos", threads=4).edge.sigma_plus
    def forever():
        while True:
            edge()
    edge()
    for _ in range({daemons}):
        threading.Thread(target=forever, daemon=True).start()
    edge()
    sys.exit(3)
"""


@pytest.mark.parametrize("daemons", [0, 3])
def test_the_interpreter_ends_with_threads_at_rest_and_at_work(daemons):
    run = run_python("-c", textwrap.dedent(LEAVING.format(daemons=daemons)), timeout=100)
    assert (run.returncode, run.stdout, run.stderr) == (3, "", "")


INTERRUPTED = """
    import signal, threading, time, os, sys
    import numpy as np, mpfast
    W = np.random.default_rng(0).standard_normal({shape}, dtype=np.float32)
    mpfast.spectrum(W[:200, :300])
    sent = []
    def interrupt():
        time.sleep({delay})
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=interrupt).start()
    try:
        {call}
        print("finished")
    except KeyboardInterrupt:
        print(f"stopped after {{time.perf_counter() - sent[0]:.3f}}")
    # Abandoned work must not crash the interpreter on its way out, nor the next call.
    print(mpfast.spectrum(W[:200, :300]).edge.spikes >= 0)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize(
    "call",
    [
        "mpfast.spectrum(W, method='exact')",
        "mpfast.spectrum(W, method='lanczos', probes=512, steps=24)",
        "mpfast.svd(W, 1200, tol=1e-9)",  # eigenvectors of W^T W
        "mpfast._core.singular_decomposition(W.astype(float), W.astype(float), 1)",
        "mpfast._core.singular_rotation(W, W, 1)",
        "mpfast.reconstruct.prune(W, np.eye(5000) + 0.5, sparsity=0.5, refit=100)",
        "[mpfast.gram_product(W, np.ones((W.shape[1], 32))) for _ in range(2000)]",
    ],
)
def test_ctrl_c_stops_a_call(call):
    # 0.2 s are expected on an idle machine, where no call takes less than 10. The bound lies between.
    script = textwrap.dedent(INTERRUPTED.format(call=call, shape=(5000, 5000), delay=0.4))
    run = run_python("-c", script)
    assert run.returncode == 0, run.stderr
    stopped, alive = run.stdout.splitlines()
    assert stopped.startswith("stopped after"), run.stdout
    assert float(stopped.split()[-1]) < 5
    assert alive == "True"


def test_the_status_of_a_script_that_left_a_call_is_its_own():
    call = "mpfast.svd(W, 700, tol=1e-9)"
    script = textwrap.dedent(INTERRUPTED.format(call=call, shape=(3000, 3000), delay=0.4)) + "sys.exit(3)\n"
    run = run_python("-c", script)
    assert run.returncode == 3, run.stderr
    assert run.stdout.startswith("stopped after"), run.stdout
    assert run.stdout.splitlines()[-1] == "True"  # what was printed before is not lost


LEFT_AT_EXIT = """
    import concurrent.futures, sys, threading
    import numpy as np, mpfast
    from mpfast import _core
    W = np.random.default_rng(0).standard_normal((700, 800)).astype(np.float32)
    X = np.ones((40, 2), np.float32)
    class Operator:
        shape, dtype = W.shape, np.dtype(np.float64)
        def matmat(self, X):
            return W @ X
        def rmatmat(self, X):
            return W.T @ X
    class Noisy(np.ndarray):
        def __del__(self):
            sum(range(100))
    def products(convert):
        def apply(X):
            return convert(X * np.arange(1.0, 41.0))
        try:
            _core.lanczos_run_operator(apply, 40, 2, 0, 0, 1).advance(6)
        except LookupError:
            pass
    def fail(Z):
        raise LookupError(str(Z.sum()))
    calls = {{
        "exact": lambda: mpfast.spectrum(W, method="exact"),
        "lanczos": lambda: mpfast.spectrum(W, method="lanczos"),
        "operator": lambda: mpfast.spectrum(Operator(), method="lanczos"),
        "operator of lists": lambda: products(lambda Z: Z.tolist()),
        "operator of float32": lambda: products(lambda Z: Z.astype(np.float32)),
        "operator of columns": lambda: products(np.asfortranarray),
        "operator of objects with finalizers": lambda: products(lambda Z: Z.view(Noisy)),
        "operator that fails": lambda: products(fail),
        "matrix with a finalizer": lambda: _core.lanczos_run(
            _core.Matrix(W[:40].view(Noisy), "float32"), 2, 0, 0, 0, False, 1
        ).advance(2),
        "masks": lambda: [mpfast.masks.n_m(W, 2, 4), mpfast.masks.magnitude(W, 0.5)],
        "svd": lambda: mpfast.svd(W, 20),
        "short": lambda: mpfast.gram_product(W[:40, :50], X),
    }}
    call = calls[sys.argv[1]]
    begun = threading.Barrier(4)
    def work(rounds):
        call()
        begun.wait()
        for _ in range(rounds):
            call()
    {threads}
    begun.wait()
    print("left")
"""
DAEMONS = "[threading.Thread(target=work, args=(10**9,), daemon=True).start() for _ in range(3)]"
# Python waits for these: what they compute until then is not cut short.
WAITED_FOR = "[threading.Thread(target=work, args=(2,)).start() for _ in range(3)]"
POOL = "pool = concurrent.futures.ThreadPoolExecutor(3); [pool.submit(work, 2) for _ in range(3)]"


@pytest.mark.slow
@pytest.mark.parametrize("threads", [DAEMONS, WAITED_FOR, POOL], ids=["daemons", "threads", "pool"])
@pytest.mark.parametrize("call", [line.split('"')[1] for line in LEFT_AT_EXIT.splitlines() if '": lambda: ' in line])
def test_a_process_may_exit_while_other_threads_are_in_the_core(call, threads):
    """Its status is its own, and it says nothing; where in its call a thread is differs from run to run."""
    script = textwrap.dedent(LEFT_AT_EXIT.format(threads=threads))
    for _ in range(3 if threads is DAEMONS else 1):
        run = run_python("-c", script, call)
        assert (run.returncode, run.stdout, run.stderr) == (0, "left\n", "")
