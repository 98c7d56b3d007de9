"""Every function of the native core, with arguments that make no sense: an exception, never the end of the process."""

from __future__ import annotations

import inspect
import json
import textwrap

import numpy as np
import pytest

from mpfast import _core

from .references import run_python

# For every function: arguments that it takes. Each in turn is then replaced by what makes no sense.
CALLS = """
    import gc, json, sys, warnings
    import numpy as np
    from mpfast import _core
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(0)
    W = rng.standard_normal((12, 16))
    matrix = _core.Matrix(W, "float64")
    def keep():
        return np.empty((12, 16), bool)
    def run():
        made = _core.lanczos_run(matrix, 2, 0, 0, 0, False, 1)
        made.advance(3)
        return made
    def coded():
        codes = np.arange(192, dtype=np.uint8).reshape(12, 16) % 127
        return _core.Matrix.of_codes("float8_e4m3fn", codes, np.ones((12, 4), np.float32), 4, "float32")
    blocks = [(*run().ritz(), 3, False)]
    moments = np.tile(np.eye(4), (4, 1, 1))
    source = np.ones((12, 16), bool)
    square = _core.Matrix(np.eye(16), "float64")
    def lines():
        return np.ones(12), np.ones(16)
    def single(size):
        return np.eye(size, dtype=np.float32)
    def weights():
        return W.astype(np.float32)
    def grid():
        return (4, 8, False, np.empty((12, 2), np.float32), np.empty((12, 2), np.float32))
    def fresh_search():
        return _core.CutSearch(192, 90, [("float64", 1.0)])
    def counted_search():
        search = fresh_search()
        search.count(matrix, 1.0, 1)
        return search
    def done_search():
        search = fresh_search()
        while not search.done:
            search.count(matrix, 1.0, 1)
            search.narrow()
        return search
    calls = {
        "Matrix": lambda: (_core.Matrix, [W, "float64"]),
        "Matrix.of_codes": lambda: (
            _core.Matrix.of_codes,
            ["float4_e2m1", np.zeros((3, 8), np.uint8), np.ones((3, 4), "f4"), 5, "float32"],
        ),
        "Matrix.decoded": lambda: (coded().decoded, []),
        "code_names": lambda: (_core.code_names, []),
        "default_threads": lambda: (_core.default_threads, []),
        "begin_loop_log": lambda: (_core.begin_loop_log, []),
        "end_loop_log": lambda: (_core.end_loop_log, []),
        "isa": lambda: (_core.isa, []),
        "blas": lambda: (_core.blas, []),
        "scale_exponent": lambda: (_core.scale_exponent, [matrix, lines()]),
        "gram_product": lambda: (_core.gram_product, [matrix, np.ones((2, 16)), "right", 1, 0, lines(), lines()]),
        "energies": lambda: (_core.energies, [matrix, 0, 1, lines()]),
        "multiply": lambda: (_core.multiply, [matrix, np.ones((2, 16)), False, 1, 0]),
        "add_gram": lambda: (_core.add_gram, [matrix, np.zeros((16, 16)), 1]),
        "dense_product": lambda: (_core.dense_product, [np.ones((3, 12)), W, 1]),
        "read_pass": lambda: (_core.read_pass, [matrix, 1]),
        "exact_values": lambda: (_core.exact_values, [matrix, 1, lines(), np.empty((12, 12)), 0]),
        "exact_values_of_each": lambda: (_core.exact_values_of_each, [[matrix, matrix], 1]),
        "gram_matrix": lambda: (_core.gram_matrix, [matrix, 0, 1, lines()]),
        "symmetric_eigenvalues": lambda: (_core.symmetric_eigenvalues, [np.eye(5), 1]),
        "symmetric_eigenvectors": lambda: (_core.symmetric_eigenvectors, [np.eye(5), 1]),
        "largest_eigenvectors": lambda: (_core.largest_eigenvectors, [np.eye(5), 2, 1]),
        "singular_decomposition": lambda: (_core.singular_decomposition, [np.eye(3, 12), np.eye(3, 16), 1]),
        "orthonormal_rows": lambda: (_core.orthonormal_rows, [W, 1]),
        "positive_inverse": lambda: (_core.positive_inverse, [np.eye(16), 1]),
        "removal_costs": lambda: (_core.removal_costs, [np.tile(np.eye(4), (3, 1, 1)), np.ones((3, 4, 4)), 1]),
        "semidefinite_root": lambda: (_core.semidefinite_root, [np.eye(16), 1]),
        "lanczos_run": lambda: (_core.lanczos_run, [matrix, 2, 0, 0, 0, False, 1, lines(), True, 2]),
        "lanczos_run_operator": lambda: (_core.lanczos_run_operator, [lambda X: X, 12, 2, 0, 0, 1, 2]),
        "LanczosRun.advance": lambda: (run().advance, [2]),
        "LanczosRun.ritz": lambda: (run().ritz, [2, 0]),
        "LanczosRun.ritz_vectors": lambda: (run().ritz_vectors, [2, 0]),
        "LanczosRun.values_at": lambda: (run().values_at, [[0, 2], 0]),
        "LanczosRun.values_above": lambda: (run().values_above, [1.0, 0]),
        "LanczosRun.residual_near": lambda: (run().residual_near, [1.0, 0]),
        "singular_rotation": lambda: (_core.singular_rotation, [np.eye(3, 12), np.eye(3, 16), 1]),
        "spectral_measures": lambda: (_core.spectral_measures, [blocks, 100.0, 12, 16, True, 4, [-1, 0], 1]),
        "probe_block": lambda: (_core.probe_block, [12, 2, 0, 0]),
        "prune_smallest": lambda: (_core.prune_smallest, [[matrix], [1.0], [keep()], 7, 1]),
        "keep_largest_of_groups": lambda: (_core.keep_largest_of_groups, [[matrix], [keep()], 2, 4, 1]),
        "project_groups": lambda: (_core.project_groups, [matrix, moments, source, 0.5, keep(), 2, 4, 1]),
        "examine_moment": lambda: (_core.examine_moment, [square, 1]),
        "inverse_factor": lambda: (_core.inverse_factor, [square, 1.0, np.ones(16), 1]),
        "correlations": lambda: (_core.correlations, [square, np.ones(16), 1]),
        "leading_part": lambda: (_core.leading_part, [single(16), np.ones((16, 3), np.int8), 1]),
        "obs_columns": lambda: (_core.obs_columns, [weights(), keep(), single(16), 90, None, None, 1]),
        "obs_columns.pattern": lambda: (_core.obs_columns, [weights(), keep(), single(16), None, (2, 4), None, 1]),
        "obs_columns.grid": lambda: (_core.obs_columns, [weights(), keep(), single(16), None, None, grid(), 1]),
        "refit": lambda: (
            _core.refit,
            [weights(), weights(), source, single(16), np.ones(16, "f4"), np.ones((16, 2), "f4"), 1.0, 2, 1],
        ),
        "product": lambda: (_core.product, [weights(), single(16), 1]),
        "scaled_codes": lambda: (
            _core.scaled_codes,
            [np.zeros((3, 8), np.uint8), np.ones((256, 2), "f4"), np.ones((3, 4), "f4"), 5],
        ),
        "quadratic_error": lambda: (_core.quadratic_error, [matrix, None, np.eye(16), (1.0, 1.0), 1]),
        "CutSearch": lambda: (_core.CutSearch, [192, 90, [("float64", 1.0)]]),
        "CutSearch.count": lambda: (fresh_search().count, [matrix, 1.0, 1]),
        "CutSearch.narrow": lambda: (counted_search().narrow, []),
        "CutSearch.write": lambda: (done_search().write, [matrix, 1.0, keep(), 1]),
    }
"""

TRY = """
    # What may stand in the place of any argument, and in that of an element of a sequence.
    nonsense = [
        None, object(), "nonsense", "", b"", -1, 0, -(2**31), 2**31 - 1, 2**62, -(2**63), 2**63 - 1, 2**64, 1.5, -2.0,
        float("nan"), float("inf"), 1e308, 1e-320, [], [None], [[]], [[None]], [1, 2], (), {}, [0.0], [-1.0],
        [float("nan")], [("float64", None)], [(None, 1.0)], [("float64", float("nan"))], [("float33", 1.0)],
        np.float32(1), np.array(1.0), np.empty(0), np.empty((0, 0)), np.empty((0, 16)), np.empty((12, 0)),
        np.ones(7), np.ones((3, 5)), np.ones((2, 3, 4)), np.ones((12, 16), np.float32), np.ones((12, 16), np.float16),
        np.ones((12, 16), np.int64), np.ones((12, 16), complex), np.ones((12, 16), bool), np.ones((12, 16), object),
        np.ones((12, 16), ">f8"), np.full((12, 16), np.nan), np.full((4, 4, 4), np.inf), np.ones((12, 16))[::-1, ::-1],
        np.broadcast_to(1.0, (12, 16)), np.asfortranarray(np.ones((12, 16))), np.zeros((12, 16), "U1"),
        np.frombuffer(bytes(12 * 16 * 8 + 1), np.uint8)[1:].view("f8").reshape(12, 16), np.ones((2, 12)),
        np.zeros((12, 16), "datetime64[s]"), np.broadcast_to(np.True_, (12, 16)), np.empty((0, 2), bool),
        square, single(16), weights(), np.full((12, 16), np.nan, np.float32), np.full(16, np.inf),
        np.zeros((16, 0), np.float32), np.zeros((16, 16), np.float32), np.ones((16, 200), np.int8), (2, 5), (0, 4),
        (4, 2), (2, 128), (2, 4, 6), (2, 2**31),
        (np.ones(12), np.ones(16, np.float32)), (np.ones(16), np.ones(12)), (np.ones(12), np.full(16, np.nan)),
        (np.full(12, -1.0), np.ones(16)), (np.ones(12), None), (np.ones(12), np.ones(32)[::2]), (np.ones(12),),
        (np.ones((12, 1)), np.ones((16, 1))), (np.broadcast_to(1.0, 12), np.broadcast_to(1.0, 16)),
        (np.full(12, 1e308), np.full(16, 1e308)), (np.full(12, 5e-324), np.zeros(16)),
        (9, 8, *grid()[2:]), (4, 0, *grid()[2:]), (4, 2**62, *grid()[2:]), (4, 3, *grid()[2:]),
        (4, 8, False, None, None),
        (4, 8, False, np.empty((12, 2)), np.empty((12, 2))), (4, 8, False, *(part[::-1] for part in grid()[3:])),
        (4, 8, None, *grid()[3:]),
        (1, 8, True, *grid()[3:]),
        coded(), [coded()],
        matrix, [matrix], [matrix, None], [matrix, matrix], [keep()], [keep(), keep()], [keep()[:6]],
        [keep()[:, ::2]], [keep().view(np.uint8)], [np.broadcast_to(np.True_, (12, 16))],
        _core.Matrix(np.empty((0, 16)), "float64"), _core.Matrix(np.empty((12, 0)), "float64"),
        _core.Matrix(np.empty((0, 0)), "float64"), [_core.Matrix(np.empty((0, 0)), "float64")],
        _core.Matrix(np.ones((12, 16), np.float32), "float32"), _core.Matrix(np.full((12, 16), np.nan), "float64"),
        _core.Matrix(np.ones((1, 1)), "float64"), _core.Matrix(np.broadcast_to(2.0, (12, 16)), "float64"),
        lambda X: None, lambda X: X[:1], lambda X: X.astype(object), lambda X: np.full_like(X, np.nan), lambda: 1,
        print, blocks, [blocks[0][:3]], [(*blocks[0][:3], 3, None)],
    ]
    theta, residual, weight = blocks[0][:3]
    parts = [
        None, 1.0, np.empty(0), np.empty((0, 6)), np.ones(2), np.ones((2, 3)), np.ones((6, 2)), np.full(6, np.nan),
        np.full((2, 6), np.nan), np.zeros(6), np.zeros((2, 6)), np.full(6, -1.0), np.full((2, 6), np.inf),
        np.full(6, 1e308), np.ones((1, 1, 6)),
    ]
    for part in parts:
        for place in range(3):
            changed = list(blocks[0])
            changed[place] = part
            nonsense.append([tuple(changed)])
    for steps in (-1, 0, 2**62, None):
        nonsense.append([(theta, residual, weight, steps, False)])
    nonsense.append([(np.full(6, 1e308), np.zeros(6), np.full((2, 6), 1e308), 3, True)])

    name = sys.argv[1]
    outcomes = []
    function, arguments = calls[name]()
    function(*arguments)  # this makes sense
    places = [(k,) for k in range(len(arguments))]
    for at in places:
        for number, value in enumerate(nonsense):
            function, arguments = calls[name]()
            arguments[at[0]] = value
            print(name, at[0], number, file=sys.stderr, flush=True)  # the last line says what ended the process
            try:
                function(*arguments)
                outcomes.append((at[0], number, "returned"))
            except Exception as error:
                outcomes.append((at[0], number, type(error).__name__))
    for extra in ([], [None] * (len(arguments) + 1)):
        try:
            function(*extra)
        except Exception as error:
            outcomes.append((-1, -1, type(error).__name__))
    gc.collect()
    print(json.dumps(outcomes))
"""
NAMES = [line.split('"')[1] for line in CALLS.splitlines() if line.strip().startswith('"') and "lambda: (" in line]
# Where None is a value: every step that was taken, no mask that entries come from, no factors, and no energies to fill.
NONE_IS_FINE = {("LanczosRun.ritz", 0), ("project_groups", 2), ("quadratic_error", 1)}
NONE_IS_FINE |= {("scale_exponent", 1), ("gram_product", 5), ("gram_product", 6), ("energies", 3)}
NONE_IS_FINE |= {("exact_values", 2), ("exact_values", 3), ("gram_matrix", 3), ("lanczos_run", 7)}
NONE_IS_FINE |= {(name, at) for name in NAMES if name.startswith("obs_columns") for at in (3, 4, 5)}


def test_every_function_of_the_core_is_tried():
    public = {
        name
        for name, value in vars(_core).items()
        if not name.startswith("_") and callable(value) and name != "LanczosRun"
    }
    # The others are methods, or call a function in another way.
    assert public == {name for name in NAMES if "." not in name}
    for owner in ("CutSearch", "LanczosRun", "Matrix"):
        methods = {
            name for name, value in inspect.getmembers(getattr(_core, owner), callable) if not name.startswith("_")
        }
        assert methods == {name.partition(".")[2] for name in NAMES if name.startswith(owner + ".")}


CLASSES = [name for name, value in vars(_core).items() if isinstance(value, type)]


@pytest.mark.parametrize("name", CLASSES)
def test_no_object_is_without_its_value(name):
    """A method of one that `__init__` was not called for would read what nobody has written."""
    script = f"""
        import copy
        from mpfast import _core
        bound = _core.{name}
        def refused(call):
            try:
                made = call()
            except TypeError:
                return
            [getattr(made, name) for name in dir(made)]
            print(call, "made", made)
        refused(lambda: bound())
        refused(lambda: bound.__new__(bound))
        refused(lambda: object.__new__(bound))
        refused(lambda: type("Sub", (bound,), dict(__init__=lambda self: None))())
        for base in bound.__mro__[1:]:
            refused(lambda: base.__new__(bound))
    """
    run = run_python("-c", textwrap.dedent(script))
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_new_with_the_arguments_of_init_makes_a_whole_object():
    array = np.ones((2, 3))
    for matrix in (_core.Matrix(array, dtype="float64"), _core.Matrix.__new__(_core.Matrix, array, "float64")):
        matrix.__init__(np.ones((4, 5)), "float64")
        assert (matrix.shape, matrix.dtype, matrix.owner is array) == ((2, 3), "float64", True)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_nonsense_in_the_place_of_each_argument(name):
    run = run_python("-c", textwrap.dedent(CALLS) + textwrap.dedent(TRY), name, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    outcomes = json.loads(run.stdout)
    kinds = {"returned", "TypeError", "ValueError", "MemoryError", "RuntimeError", "IndexError", "AttributeError"}
    assert {kind for _, _, kind in outcomes} <= kinds, outcomes
    refusals = {(at, number): kind for at, number, kind in outcomes}
    for at in {at for at, _ in refusals if at >= 0}:
        if (name, at) not in NONE_IS_FINE:
            assert refusals[at, 0] in ("TypeError", "ValueError"), (name, at)
        assert refusals[at, 1] in ("TypeError", "ValueError"), (name, at)  # any object
