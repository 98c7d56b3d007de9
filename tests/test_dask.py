"""Dask: arrays in blocks, and layers spread over a cluster of processes."""

from __future__ import annotations

import math
import os
import signal
import threading
import time

import numpy as np
import pytest
from safetensors.numpy import save_file

import mpfast
from mpfast.operators import energies, open_source, scaled, start_run

da = pytest.importorskip("dask.array")
distributed = pytest.importorskip("distributed")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def client():
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.mark.parametrize("shape", [(1600, 1200), (1100, 1700), (300, 200)])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_arrays_in_blocks_have_the_spectrum_of_the_array(shape, dtype):
    rng = np.random.default_rng(0)
    W = rng.standard_normal(shape)
    W[:, :3] *= 5
    W = W.astype(dtype)
    blocks = da.from_array(W, chunks=(400, 330))
    found, expected = mpfast.spectrum(blocks), mpfast.spectrum(W)
    assert found.edge.sigma_plus == pytest.approx(expected.edge.sigma_plus, rel=1e-5)
    assert found.edge.sigma_plus_error == pytest.approx(expected.edge.sigma_plus_error, rel=1e-2, abs=1e-12)
    assert found.fro_norm == pytest.approx(expected.fro_norm, rel=1e-6)
    assert found.fro_norm_exact
    assert found.device == "dask"
    U, s, Vh = mpfast.svd(blocks, 3)
    np.testing.assert_allclose(U * s, W @ np.asarray(Vh).T, atol=1e-3 * s[0])


@pytest.mark.parametrize("shape", [(310, 200), (200, 310)])
def test_factors_and_energies_block_by_block(shape):
    rng = np.random.default_rng(4)
    W = rng.standard_normal(shape)
    row, column = (np.exp(rng.standard_normal(length)) for length in shape)
    row[3] = column[5] = 0
    S = row[:, None] * W * column
    opened = open_source(da.from_array(W, chunks=(90, 80)), threads=1)
    for source, M in ((opened, W), (scaled(opened, row, column), S)):
        plain, _ = start_run(source, 4, 0, 0, 3, precise=False)
        run, source = start_run(source, 4, 0, 0, 3, precise=False, energies=True)
        unit = 2.0**source.scale_exponent
        for mine, other in zip(run.ritz(), plain.ritz(), strict=True):
            np.testing.assert_array_equal(mine, other)
        for found in (energies(source, run), energies(source)):
            np.testing.assert_allclose(found[0] * unit**2, (M**2).sum(axis=1), rtol=1e-13)
            np.testing.assert_allclose(found[1] * unit**2, (M**2).sum(axis=0), rtol=1e-13)
        assert source.squared_norm(0) * unit**2 == pytest.approx((M**2).sum(), rel=1e-13)
        for transpose, right in ((False, M.T), (True, M)):
            x = rng.standard_normal((2, len(right)))
            np.testing.assert_allclose(source.multiply(x, transpose=transpose) * unit, x @ right, atol=1e-11)
        exact = np.linalg.svd(M, compute_uv=False)
        np.testing.assert_allclose(source.singular_values()[0], exact, atol=1e-7 * exact[0])


def test_arrays_on_a_cluster(client):
    W = np.random.default_rng(1).standard_normal((1500, 1100))
    blocks = da.from_array(W, chunks=(500, 1100)).persist()
    found = mpfast.spectrum(blocks)
    assert found.edge.sigma_plus == pytest.approx(mpfast.spectrum(W).edge.sigma_plus, rel=1e-6)


def test_bad_arrays():
    W = np.ones((60, 40))
    W[37, 21] = np.inf
    with pytest.raises(ValueError, match=r"1 non-finite entry .* \(37, 21\)"):
        mpfast.spectrum(da.from_array(W, chunks=(20, 20)))
    with pytest.raises(ValueError, match=r"1 non-finite entry .* \(21, 37\)"):
        mpfast.spectrum(da.from_array(W.T, chunks=(20, 20)))
    with pytest.raises(TypeError, match="int64"):
        mpfast.spectrum(da.ones((20, 20), dtype=int))
    unknown = da.from_array(np.ones((20, 20)), chunks=5)
    with pytest.raises(ValueError, match="compute_chunk_sizes"):
        mpfast.spectrum(unknown[unknown[:, 0] > 0])


@pytest.fixture
def model(tmp_path):
    rng = np.random.default_rng(2)
    tensors = {f"{i}.weight": rng.standard_normal((200, 300), dtype=np.float32) for i in range(12)}
    tensors["nan.weight"] = np.full((20, 20), np.nan, np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def same(found, expected):
    assert [row.name for row in found] == [row.name for row in expected]
    for mine, other in zip(found, expected, strict=True):
        assert mine.sigma_plus == pytest.approx(other.sigma_plus, rel=1e-12)
    assert found.skipped == expected.skipped


def test_layers_on_a_cluster(client, model):
    same(mpfast.analyze(model, client=client), mpfast.analyze(model))
    tensors = {"a.weight": np.random.default_rng(3).standard_normal((50, 70))}
    same(mpfast.analyze(tensors, client=client), mpfast.analyze(tensors))


def test_quantised_layers_on_a_cluster(client, tmp_path):
    """Workers open the file themselves; of what is in memory they get the numbers, which do not say how they round."""
    rng = np.random.default_rng(27)
    exponents = rng.integers(120, 124, (2, 64, 2)).astype(np.uint8)
    stack = {"m.experts.up_proj_blocks": rng.integers(0, 256, (2, 64, 2, 16)).astype(np.uint8)}
    stack["m.experts.up_proj_scales"] = exponents
    here = mpfast.analyze(stack)
    there = mpfast.analyze(stack, client=client)
    assert [row.sigma_plus for row in there] == [row.sigma_plus for row in here]
    assert [row.stored for row in there] == ["mxfp4"] * 2
    assert all(math.isnan(row.quantization_noise) for row in there)
    save_file(stack, tmp_path / "model.safetensors")
    same(mpfast.analyze(tmp_path, client=client), mpfast.analyze(tmp_path))


def test_warnings_come_back(client):
    tensors = {"a.weight": np.random.default_rng(3).standard_normal((1500, 1500))}
    with pytest.warns(mpfast.ConvergenceWarning, match="a.weight"):
        found = mpfast.analyze(tensors, client=client, method="lanczos", tol=1e-5)
    assert any("was not met" in text for text in found[0].warnings)


@pytest.mark.parametrize("name", ["ValueError", "TypeError"])
def test_a_fault_of_the_program_comes_back(client, model, name):
    def break_it():
        import builtins

        from mpfast.models import layer_job

        def broken(matrix, **_):
            raise getattr(builtins, name)("a fault of the program")

        layer_job.kept, layer_job.measured_both = layer_job.measured_both, broken

    def mend_it():
        from mpfast.models import layer_job

        layer_job.measured_both = layer_job.kept

    client.run(break_it)
    try:
        with pytest.raises((ValueError, TypeError), match=r"^a fault of the program$") as caught:
            mpfast.analyze(model, client=client)
        assert type(caught.value).__name__ == name
    finally:
        client.run(mend_it)
    same(mpfast.analyze(model, client=client), mpfast.analyze(model))


def test_errors_of_blocks_come_back_as_values(client):
    W = np.ones((60, 40))
    W[37, 21] = np.inf
    with pytest.raises(ValueError, match=r"^spectrum\(\): W has 1 non-finite entry") as caught:
        mpfast.spectrum(da.from_array(W, chunks=(20, 20)).persist())
    assert (caught.value.argument, caught.value.function) == ("W", "spectrum")


@pytest.mark.slow
def test_a_worker_that_is_killed(tmp_path):
    rng = np.random.default_rng(4)
    tensors = {f"{i}.weight": rng.standard_normal((1000, 1000), dtype=np.float32) for i in range(16)}
    save_file(tensors, tmp_path / "model.safetensors")
    expected = mpfast.analyze(tmp_path / "model.safetensors")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        victim = next(iter(client.run(os.getpid).values()))

        def kill():
            time.sleep(0.6)
            os.kill(victim, signal.SIGKILL)

        thread = threading.Thread(target=kill)
        thread.start()
        found = mpfast.analyze(tmp_path / "model.safetensors", client=client, threads=1)
        thread.join()
    same(found, expected)


@pytest.mark.parametrize("side", ["right", "left"])
def test_gram_products_of_arrays_in_blocks(side):
    rng = np.random.default_rng(2)
    W = rng.standard_normal((300, 400))
    X = rng.standard_normal((W.shape[1] if side == "right" else W.shape[0], 40))
    blocks = da.from_array(W, chunks=(100, 130))
    expected = W.T @ (W @ X) if side == "right" else W @ (W.T @ X)
    # Sums of 400 and then 300 products: a few hundred roundings.
    np.testing.assert_allclose(mpfast.gram_product(blocks, X, side=side), expected, atol=1e-13 * np.abs(expected).max())
    W[3, 4] = np.nan
    with pytest.raises(ValueError, match=r"gram_product\(\): products with W are not finite"):
        mpfast.gram_product(da.from_array(W), X, side=side)
