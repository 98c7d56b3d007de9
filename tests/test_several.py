"""Spectra of several matrices at once are, to the bit, those of each by itself."""

from __future__ import annotations

import numpy as np
import pytest

import mpfast
from mpfast import _core, masks, spectra

from .references import bfloat16_bits


def stack(count, shape, dtype):
    return np.random.default_rng(0).standard_normal((count, *shape)).astype(dtype)


def facts(spectrum):
    edge = spectrum.edge
    return spectrum.method, spectrum.probes, spectrum.fro_norm, edge.sigma_plus, edge.sigma_plus_error, edge.spikes


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((70, 90), {}),
        ((70, 90), {"noise": "uneven"}),
        ((80, 70), {"noise": (np.linspace(1, 2, 80), np.ones(70))}),
        ((90, 70), {"method": "lanczos", "tol": 0.05}),
        ((700, 650), {}),
        ((5, 9), {"method": "exact"}),
    ],
)
def test_a_stack_has_the_spectra_of_its_matrices(threads, shape, options):
    W = stack(4, shape, np.float32)
    found = spectra.spectrum_of_each(W, threads=threads, seed=3, **options)
    assert list(map(facts, found)) == [facts(mpfast.spectrum(each, seed=3, **options)) for each in W]


def test_storage_and_strides_of_a_stack():
    W = stack(3, (66, 80), np.float64)
    torch = pytest.importorskip("torch")
    ml_dtypes = pytest.importorskip("ml_dtypes")
    bits = bfloat16_bits(W.astype(np.float32))
    for given in (
        W.transpose(0, 2, 1),
        np.asfortranarray(W),
        W[::-1, ::2, ::-1],
        W.astype(np.float16),
        bits.view(ml_dtypes.bfloat16),
        torch.tensor(W).to(torch.bfloat16),
    ):
        found = spectra.spectrum_of_each(given)
        for spectrum, each in zip(found, given, strict=True):
            np.testing.assert_array_equal(spectrum.values, mpfast.spectrum(each).values)


def test_large_matrices_of_a_stack_have_all_threads(monkeypatch):
    W = stack(3, (70, 90), np.float32)
    expected = list(map(facts, spectra.spectrum_of_each(W)))
    monkeypatch.setattr("mpfast.spectra.several.SIDE_BY_SIDE_UP_TO", 100)
    assert list(map(facts, spectra.spectrum_of_each(W, threads=2))) == expected


def test_a_matrix_at_fault_is_named():
    W = stack(3, (70, 90), np.float64)
    W[1, 4, 17] = np.nan
    for method in ("exact", "lanczos"):
        with pytest.raises(ValueError, match=r"^spectrum_of_each\(\): W\[1\] has 1 non-finite entry .* \(4, 17\)"):
            spectra.spectrum_of_each(W, method=method)
    with pytest.raises(ValueError, match=r"^spectrum_of_each\(\): W must be 3-D, but has shape \(70, 90\)"):
        spectra.spectrum_of_each(W[0])
    with pytest.raises(ValueError, match="W is empty"):
        spectra.spectrum_of_each(W[:, :0])
    with pytest.raises(TypeError, match="W must be an array"):
        spectra.spectrum_of_each([W])


def test_what_did_not_meet_tol_is_said_once():
    W = stack(3, (300, 320), np.float32)
    with pytest.warns(mpfast.ConvergenceWarning, match=r"^spectrum_of_each\(\): 3 layers did not meet tol, .*W\[0\]"):
        spectra.spectrum_of_each(W, method="lanczos", tol=1e-6)


def test_the_core_takes_matrices_of_any_sizes_at_once():
    rng = np.random.default_rng(0)
    given = [rng.standard_normal(shape) for shape in ((1, 1), (30, 7), (7, 300), (129, 130))]
    given.append(given[1] * np.geomspace(1, 1e-12, 7))  # values that a Gram matrix loses
    given[2][3, 5] = np.inf
    matrices = [_core.Matrix(W, "float64") for W in given]
    for threads in (1, 3):
        for found, matrix in zip(_core.exact_values_of_each(matrices, threads), matrices, strict=True):
            alone = _core.exact_values(matrix, 1)
            assert found[2:] == alone[2:]
            if not found[2]:
                np.testing.assert_array_equal(found[0], alone[0])
                assert found[1] == alone[1]
    assert _core.exact_values_of_each([], 2) == []


@pytest.mark.parametrize("signal", ["sigma_plus", "hill", "entry_std"])
def test_signals_do_not_depend_on_the_threads(signal):
    shapes = ((64, 96), (650, 700), (70, 3, 5, 5), (1200, 700), (8, 8), (640, 640))
    rng = np.random.default_rng(1)
    weights = {f"layer.{i}": rng.standard_normal(shape).astype(np.float32) for i, shape in enumerate(shapes)}
    alone = masks.spectral_signals(weights, signal, threads=1)
    assert list(alone) == list(weights)
    for threads in (2, 7):
        assert masks.spectral_signals(weights, signal, threads=threads) == alone
    if signal == "sigma_plus":
        for name, weight in weights.items():
            assert alone[name] == mpfast.spectrum(weight.reshape(len(weight), -1)).edge.sigma_plus
