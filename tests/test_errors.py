"""Bad input: the right exception, with a message that says what to do; the input untouched."""

from __future__ import annotations

import inspect
import math
import pickle
import warnings
from dataclasses import replace

import numpy as np
import pytest

import mpfast
from mpfast import CheckpointError, ConvergenceWarning, _core, lowrank, masks
from mpfast.checkpoints import Views, open_checkpoint
from mpfast.spectra import singular_vectors, synthetic
from mpfast.spectra.krylov_svd import leading_triplets
from mpfast.support import (
    InputError,
    InvalidTypeError,
    InvalidValueError,
    MissingKeyError,
    OutOfMemoryError,
    Record,
    front_door,
)

GOOD = np.random.default_rng(0).standard_normal((80, 100))
FUNCTIONS = {
    "spectrum": mpfast.spectrum,
    "svd": lambda W: mpfast.svd(W, 2),
    "gram_product": lambda W: mpfast.gram_product(W, np.ones(1)),
    "factor": lambda W: lowrank.factor(W, 2),
}


@pytest.mark.parametrize("name", FUNCTIONS)
class TestEveryFunction:
    def rejects(self, name, W, error, message):
        with pytest.raises(error, match=message) as caught:
            FUNCTIONS[name](W)
        assert str(caught.value).startswith(f"{name}(): ")

    @pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0)])
    def test_empty(self, name, shape):
        self.rejects(name, np.empty(shape), ValueError, r"W is empty: its shape is \(")

    @pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4)])
    def test_dimensions(self, name, shape):
        self.rejects(name, np.ones(shape), ValueError, "W must be 2-D, but has shape")

    @pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_])
    def test_integers(self, name, dtype):
        self.rejects(name, np.ones((9, 9), dtype), TypeError, r"cast it, e\.g\. W\.astype\('float32'\)")

    def test_complex(self, name):
        self.rejects(name, np.ones((9, 9), complex), TypeError, r"complex entries.*W\.real")

    def test_objects(self, name):
        self.rejects(name, np.full((9, 9), None), TypeError, "dtype object")

    def test_longdouble(self, name):
        if np.dtype(np.longdouble).itemsize == 8:
            pytest.skip("long double is double here")
        self.rejects(name, np.ones((9, 9), np.longdouble), TypeError, "cast it")

    def test_foreign_byte_order(self, name):
        self.rejects(name, np.ones((9, 9), np.dtype("f8").newbyteorder()), TypeError, "foreign byte order")

    def test_misaligned(self, name):
        buffer = np.zeros(9 * 9 * 8 + 1, np.uint8)
        W = np.frombuffer(buffer.data, np.float64, count=81, offset=1).reshape(9, 9)
        self.rejects(name, W, ValueError, r"not aligned.*W\.copy\(\)")

    @pytest.mark.parametrize("W", [[[1.0, 2.0], [3.0, 4.0]], "W", None, 3.0, {"a": 1}, object()])
    def test_not_arrays(self, name, W):
        self.rejects(name, W, TypeError, "must be an array, not ")


@pytest.mark.parametrize("method", ["exact", "lanczos"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_entries_are_counted_and_located(method, dtype, bad):
    W = GOOD.astype(dtype)
    W[70, 3] = W[12, 99] = W[12, 7] = bad
    with pytest.raises(ValueError, match=r"W has 3 non-finite entries.*\(12, 7\)"):
        mpfast.spectrum(W, method=method)
    with pytest.raises(ValueError, match=r"3 non-finite.*\(12, 7\)"):
        mpfast.svd(W, 3)
    with pytest.raises(ValueError, match=r"3 non-finite.*\(12, 7\)"):
        mpfast.gram_product(W, np.ones(80))
    with pytest.raises(ValueError, match=r"3 non-finite.*\(3, 70\)"):
        mpfast.spectrum(W.T, method=method)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "qr"}, "method must be 'auto', 'exact' or 'lanczos', not 'qr'"),
        ({"tol": 0}, "tol must be between 0 and 1"),
        ({"tol": -1e-3}, "tol must be between 0 and 1"),
        ({"tol": math.nan}, "tol must be between 0 and 1"),
        ({"tol": "small"}, "tol must be between 0 and 1"),
        ({"probes": 0}, "probes must be a positive integer"),
        ({"probes": 2.5}, "probes must be a positive integer"),
        ({"steps": -3}, "steps must be a positive integer"),
        ({"threads": 0}, "threads must be a positive integer"),
        ({"threads": True}, "threads must be a positive integer"),
        ({"seed": -1}, r"seed must be an integer in \[0, 2\*\*64\)"),
        ({"seed": 2**64}, "seed must be an integer"),
        ({"seed": 0.5}, "seed must be an integer"),
        ({"seed": None}, "seed must be an integer"),
    ],
)
def test_options_of_spectrum(options, message):
    with pytest.raises(ValueError, match=message):
        mpfast.spectrum(GOOD, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either k"),
        ({"k": 3, "until": "mp_edge"}, "give either k"),
        ({"until": "edge"}, "until must be 'mp_edge'"),
        ({"k": 0}, "k must be between 1 and"),
        ({"k": 81}, "k must be between 1 and"),
        ({"k": 2.0}, "k must be between 1 and"),
        ({"k": 3, "tol": 0}, "tol must be between"),
        ({"k": 3, "block": 33}, "block must be between 1 and 32"),
        ({"k": 3, "block": 2.5}, "block must be between 1 and 32"),
        ({"k": 3, "block": "a"}, "block must be between 1 and 32"),
        ({"k": 3, "seed": -1}, r"svd\(\): seed"),
        ({"k": 3, "threads": 0}, r"svd\(\): threads"),
    ],
)
def test_options_of_svd(options, message):
    with pytest.raises(ValueError, match=message):
        mpfast.svd(GOOD, **options)


@pytest.mark.parametrize(
    ("X", "options", "error", "message"),
    [
        (np.ones(81), {}, ValueError, r"X must have shape \(80, b\) for side='left'"),
        (np.ones((80, 0)), {}, ValueError, "X must have shape"),
        (np.ones((80, 2, 2)), {}, ValueError, "X must have shape"),
        (np.ones(80), {"side": "right"}, ValueError, r"X must have shape \(100, b\) for side='right'"),
        (np.ones(80), {"side": "top"}, ValueError, "side must be"),
        (np.ones(80, int), {}, TypeError, "X has dtype int64"),
        (np.full(80, math.nan), {}, ValueError, "X has 80 non-finite"),
        (np.ones(80), {"threads": -2}, ValueError, "threads must be a positive integer"),
    ],
)
def test_options_of_gram_product(X, options, error, message):
    with pytest.raises(error, match=message):
        mpfast.gram_product(GOOD, X, **options)


@pytest.mark.parametrize("rank", [0, 81, 1.5, "edge", None])
def test_options_of_factor(rank):
    with pytest.raises(ValueError, match=r"factor\(\): rank must be"):
        lowrank.factor(GOOD, rank)


def test_too_small_for_lanczos():
    with pytest.raises(ValueError, match="method='lanczos' needs"):
        mpfast.spectrum(GOOD[:20], method="lanczos")


def test_memory_error_says_how_much():
    """A Gram matrix of 8 TB: refused with its size, not by the machine's killer."""
    vector = np.zeros(1, np.float32)
    W = np.lib.stride_tricks.as_strided(vector, (1_000_000, 1_000_000), (0, 0))
    message = r"^spectrum\(\): W needs a Gram matrix of 1000000 x 1000000, 8000000000000 bytes, .*; method='lanczos'"
    with pytest.raises(MemoryError, match=message) as caught:
        mpfast.spectrum(W, method="exact")
    assert isinstance(caught.value, OutOfMemoryError)
    assert caught.value.argument == "W"
    with pytest.raises(MemoryError, match="8000000000000 bytes"):  # of the machine: no reason to skip a layer
        mpfast.analyze({"a.weight": W}, method="exact")


@pytest.mark.slow
def test_missed_tolerance_warns_with_what_was_reached():
    W = np.random.default_rng(0).standard_normal((1100, 1300)).astype(np.float32)
    with pytest.warns(ConvergenceWarning, match=r"tol=1e-06 was not met.*\d"):
        spectrum = mpfast.spectrum(W, method="lanczos", tol=1e-6)
    assert spectrum.edge.sigma_plus_error > 1e-6 * spectrum.edge.sigma_plus


def test_exceptions_are_what_they_promise():
    error = CheckpointError("m.safetensors: broken", tensor="w", offset=8)
    assert isinstance(error, ValueError)
    assert (error.tensor, error.offset) == ("w", 8)
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert issubclass(ConvergenceWarning, UserWarning)


def test_the_core_refuses_arguments_of_wrong_types():
    matrix = _core.Matrix(np.ones((8, 8)), "float64")
    with pytest.raises(TypeError, match="incompatible function arguments"):
        _core.lanczos_run(matrix, 2.5, 0, 0, 0, False, 1)


def test_options_out_of_range():
    with pytest.raises(ValueError, match=r"factor\(\): rank must be at most min\(W.shape\) = 80"):
        lowrank.factor(GOOD, 100)
    with pytest.raises(ValueError, match="threads must be at most"):
        mpfast.spectrum(GOOD, threads=2**40)
    with pytest.raises(ValueError, match="tol must be"):
        mpfast.prune({"w": GOOD}, sparsity=0.5, method="magnitude", tol=99)
    with pytest.raises(ValueError, match="needs at least 40 rows"):
        mpfast.spectra.synthetic.family("spikes40", (20, 30), 0)


NAN = np.where(np.arange(8000).reshape(80, 100) == 417, math.nan, GOOD)
# The call, the kind of its error, the function and the argument that it names, and parts of its fact and its advice.
BAD_CALLS = [
    (lambda: mpfast.spectrum(NAN), ValueError, "spectrum", "W", "has 1 non-finite entry", "clean it first"),
    (lambda: mpfast.spectrum(np.ones((2, 3, 4))), ValueError, "spectrum", "W", "must be 2-D", "use W.reshape"),
    (lambda: mpfast.spectrum(GOOD, device="tpu"), ValueError, "spectrum", "device", "must be None, 'cpu'", ""),
    (lambda: mpfast.spectrum(GOOD, threads=0), ValueError, "spectrum", "threads", "must be a positive integer", ""),
    (lambda: mpfast.spectrum(GOOD[:9], method="lanczos"), ValueError, "spectrum", "", "method='lanczos' needs", "use"),
    (lambda: mpfast.spectrum(GOOD).fit("mean"), ValueError, "Spectrum.fit", "estimator", "must be one of", ""),
    (lambda: mpfast.spectrum(GOOD).quantile(2), ValueError, "Spectrum.quantile", "u", "must lie in [0, 1]", ""),
    (lambda: mpfast.Spectrum.from_values([-1.0], (1, 2)), ValueError, "Spectrum.from_values", "", "1 finite", ""),
    (lambda: mpfast.Spectrum.from_dict({}), ValueError, "Spectrum.from_dict", "the spectrum", "lacks the field", ""),
    (lambda: mpfast.EdgeFit.from_dict([]), ValueError, "EdgeFit.from_dict", "the fit", "must be an object", ""),
    (lambda: mpfast.MarchenkoPastur(-1.0, (2, 3)), ValueError, "MarchenkoPastur", "variance", "must be positive", ""),
    (lambda: mpfast.TracyWidom().ppf(0.0), ValueError, "TracyWidom.ppf", "u", "must lie strictly", ""),
    (lambda: mpfast.svd(GOOD), ValueError, "svd", "", "give either k", ""),
    (lambda: mpfast.svd(np.ones((9, 9), int), 2), TypeError, "svd", "W", "has dtype int64", "float64, float32"),
    (lambda: mpfast.gram_product(GOOD, np.ones(3)), ValueError, "gram_product", "X", "must have shape", ""),
    (lambda: mpfast.shrink([1.0], 1.0, (2, 2), loss="l1"), ValueError, "shrink", "loss", "must be 'frobenius'", ""),
    (lambda: mpfast.optimal_threshold((2, 2)), ValueError, "optimal_threshold", "", "give either variance", ""),
    (lambda: lowrank.factor(GOOD, 0), ValueError, "factor", "rank", "must be a positive integer", ""),
    (lambda: lowrank.factor(NAN, 2), ValueError, "factor", "W", "has 1 non-finite", "clean it first"),
    (lambda: lowrank.factor(GOOD), ValueError, "factor", "", "no singular value of W", "give a rank"),
    (lambda: lowrank.denoise(GOOD, bulk=2), ValueError, "denoise", "bulk", "must lie in [0, 1]", ""),
    (lambda: singular_vectors.drop_bulk(GOOD, 2), ValueError, "drop_bulk", "share", "must lie in [0, 1]", ""),
    (lambda: synthetic.family("noise", (9, 9), 0), ValueError, "family", "name", "must be one of", ""),
    (lambda: masks.magnitude({"a": NAN}, 0.5), ValueError, "magnitude", "weights['a']", "has 1 non-finite", "clean"),
    (lambda: masks.magnitude({"a": GOOD}, {}), KeyError, "magnitude", "sparsity", "has no share for 'a'", ""),
    (lambda: masks.magnitude({"a": GOOD}, {"a": 2}), ValueError, "magnitude", "sparsity['a']", "must lie in", ""),
    (lambda: masks.magnitude({"a": GOOD}, 0.5, within={}), KeyError, "magnitude", "within", "has no mask for 'a'", ""),
    (lambda: masks.spectral_budget({"a": GOOD}, 0.5, signals={}), KeyError, "spectral_budget", "signals", "has no", ""),
    (lambda: masks.n_m(GOOD, 3, 2), ValueError, "n_m", "", "1 <= n <= m <= 64 is needed", ""),
    (lambda: masks.n_m(GOOD, 2, 4, second_moment=np.eye(3)), ValueError, "n_m", "second_moment", "must have", ""),
    (lambda: masks.project(GOOD, 2, 4, np.eye(100), prior=1), ValueError, "project", "", "prior and restore", ""),
    (
        lambda: masks.restore(np.ones(4, bool), np.ones(3), 0.5),
        ValueError,
        "restore",
        "the saliency of masks",
        "has",
        "",
    ),
    (lambda: masks.regime_for(0.5, []), ValueError, "regime_for", "", "no regime covers", "there is none"),
    (lambda: masks.Regime(1.0, "edge", {}, 0.5), ValueError, "Regime", "signal", "must be one of", ""),
    (lambda: masks.margin_safe([1.0], 0.1), ValueError, "margin_safe", "logits", "must be (samples, classes)", ""),
    (lambda: open_checkpoint(3), TypeError, "open_checkpoint", "model", "must be a path", "got int"),
    (lambda: Views(conv="flat"), ValueError, "Views", "conv", "must be one of", ""),
    (lambda: mpfast.analyze({"a": GOOD}, tol=0), ValueError, "analyze", "tol", "must be between", ""),
    (lambda: mpfast.analyze(3), TypeError, "analyze", "model", "must be a path", "got int"),
    (
        lambda: mpfast.analyze({"a": GOOD}, include="b"),
        ValueError,
        "analyze",
        "include='b'",
        "matches none",
        "patterns",
    ),
    (lambda: mpfast.prune({"a": GOOD}, sparsity=2), ValueError, "prune", "sparsity", "must lie in [0, 1]", ""),
    (lambda: mpfast.compress({"a": GOOD}, rank=0), ValueError, "compress", "rank", "must be a positive", ""),
]


@pytest.mark.parametrize(("call", "kind", "function", "argument", "fact", "advice"), BAD_CALLS)
def test_an_error_is_a_value(call, kind, function, argument, fact, advice):
    with pytest.raises(kind) as caught:
        call()
    error = caught.value
    assert isinstance(error, InputError)
    assert (error.function, error.argument) == (function, argument)
    assert error.fact.startswith(fact)
    assert advice in error.advice
    assert bool(advice) == bool(error.advice)
    text = str(error)
    assert text == f"{function}(): {argument} {error.reason}".replace(":  ", ": ")
    assert text.count("(): ") == 1
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert vars(copy) == vars(error)
    assert str(copy) == text


def test_kinds_of_errors_are_those_of_python():
    kinds = (InvalidValueError, InvalidTypeError, MissingKeyError, OutOfMemoryError)
    for kind, python in zip(kinds, (ValueError, TypeError, KeyError, MemoryError), strict=True):
        error = kind("W", "is bad", "mend it")
        assert isinstance(error, python)
        assert str(error) == "W is bad; mend it"  # no quotes, as a KeyError would have
    assert not issubclass(CheckpointError, InputError)


def test_of_nested_public_functions_the_outermost_is_named():
    with pytest.raises(ValueError, match=r"^noise_floor\(\): W has 1 non-finite entry"):
        masks.noise_floor(NAN)
    message = r"^spectral_budget\(\): weights\['b'\] has 1 non-finite entry .* \(4, 17\); clean it first"
    with pytest.raises(ValueError, match=message):
        masks.spectral_budget({"a": GOOD, "b": NAN}, 0.5)
    with pytest.raises(ValueError, match=r"^spectral_signals\(\): weights\['a'\]: the entries of W are about 1e\+160"):
        masks.spectral_signals({"a": np.full((80, 100), 1e160)}, "sigma_plus")
    with pytest.raises(ValueError, match=r"^RemovedWeights\(\): W has 1 non-finite"):
        masks.certificates.RemovedWeights(NAN, np.ones(NAN.shape, bool), "fc")


def test_errors_of_a_callers_own_function_are_left_alone():
    def signal(weight):
        raise ValueError("the caller's own")

    with pytest.raises(ValueError, match=r"^the caller's own$"):
        masks.spectral_signals({"a": GOOD}, signal)


def test_a_front_door_looks_like_what_is_behind_it():
    assert list(inspect.signature(mpfast.spectrum).parameters)[:2] == ["W", "inputs"]
    assert mpfast.svd.__name__ == "svd"
    assert mpfast.Spectrum.fit.__doc__.startswith("Fit the Marchenko-Pastur law")

    @front_door
    def public():
        raise RuntimeError("not about the input")

    with pytest.raises(RuntimeError, match=r"^not about the input$"):
        public()


def test_a_field_of_a_record_is_an_argument():
    with pytest.raises(InvalidValueError) as caught:
        Record({"seed": -1}, "the analysis").integer("seed")
    assert caught.value.argument == "the analysis: seed"
    assert caught.value.fact == "must be an integer of at least 0, not -1"


def below_the_rounding_of_the_largest():
    """Three singular values above the edge that drown in the rounding of a fourth."""
    W = np.random.default_rng(0).standard_normal((300, 400))
    W[:, :3] *= 6
    return W + 1e8


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("svd", lambda W: mpfast.svd(W, until="mp_edge")),
        ("factor", lambda W: lowrank.factor(W)),
        ("denoise", lambda W: lowrank.denoise(W)),
        ("compress", lambda W: mpfast.compress({"fc.weight": W}, base={"fc.weight": np.zeros_like(W)})),
    ],
)
def test_triplets_that_are_missing_are_warned_of_once_by_the_function_that_was_called(name, call):
    W = below_the_rounding_of_the_largest()
    with pytest.warns(ConvergenceWarning, match="3 singular values above the edge") as caught:
        call(W)
    assert len(caught) == 1
    assert str(caught[0].message).startswith(f"{name}(): ")
    assert caught[0].filename == __file__


def test_triplets_say_what_was_not_met():
    W = below_the_rounding_of_the_largest()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = leading_triplets(W, until="mp_edge")
        assert found.unmet_tolerance.startswith("3 singular values above the edge")
        assert mpfast.svd(W, 1).unmet_tolerance == ""


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("noise_floor", lambda: masks.noise_floor(GOOD)),
        ("spectral_signals", lambda: masks.spectral_signals({"a": GOOD, "b": GOOD}, "hill")),
        ("spectral_budget", lambda: masks.spectral_budget({"a": GOOD, "b": GOOD}, 0.5)),
        (
            "RemovedWeights.certificate",
            lambda: certificate(masks.certificates.RemovedWeights(GOOD, np.abs(GOOD) > 0.1)),
        ),
    ],
)
def test_masks_warn_once_of_a_spectrum_that_did_not_meet_its_tolerance(name, call, monkeypatch):
    measured, measured_each = mpfast.spectra.measured_spectrum, mpfast.spectra.measured_spectra

    def failed(spectrum):
        return replace(spectrum, unmet_tolerance="tol=0.005 was not met")

    def unmet(*args, **options):
        return failed(measured(*args, **options))

    def unmet_each(*args, **options):
        return {name: failed(spectrum) for name, spectrum in measured_each(*args, **options).items()}

    for module in (mpfast.spectra, masks.certificates):
        monkeypatch.setattr(module, "measured_spectrum", unmet)
    monkeypatch.setattr(mpfast.spectra, "measured_spectra", unmet_each, raising=False)
    with pytest.warns(ConvergenceWarning, match=r"tol=0\.005 was not met") as caught:
        call()
    assert len(caught) == 1
    assert str(caught[0].message).startswith(f"{name}(): ")
    assert caught[0].filename == __file__


def certificate(removed):
    removed.add(np.ones((2, 100)))
    found = removed.certificate()
    assert found.unmet_tolerance == "tol=0.005 was not met"
    return found


def test_a_spectrum_keeps_what_was_not_met():
    found = mpfast.spectra.measured_spectrum(GOOD, method="lanczos", tol=1e-6)
    assert found.unmet_tolerance.startswith("tol=1e-06 was not met: sigma_plus of the 80 x 100 matrix")
    assert mpfast.Spectrum.from_dict(found.to_dict()).unmet_tolerance == found.unmet_tolerance
    assert mpfast.Spectrum.from_dict(mpfast.spectrum(GOOD).to_dict()).unmet_tolerance == ""
