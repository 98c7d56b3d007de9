"""On an NVIDIA GPU: ``pytest -m gpu``. Elsewhere these tests are skipped; the emulated device is in test_cuda.py."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import mpfast
from mpfast import _core
from mpfast.arrays import CORE_CODES
from mpfast.arrays.devices import cuda_status
from mpfast.operators import energies, open_source, scaled, start_run

from .references import run_python
from .test_coded_matrices import coded, matrix_of, same_bits

STATUS = cuda_status()
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not STATUS.startswith("cuda:"), reason=f"no GPU: {STATUS}"),
]


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def cupy() -> Any:
    return pytest.importorskip("cupy")


def noise(torch: Any, shape: tuple[int, int], dtype: str = "float32", seed: int = 0) -> Any:
    generator = torch.Generator("cuda").manual_seed(seed)
    W = torch.randn(shape, generator=generator, device="cuda", dtype=torch.float32)
    return W.to(getattr(torch, dtype))


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
# One block, a cluster of eight, two passes (more coordinates than a cluster holds), odd sizes, few rows.
@pytest.mark.parametrize("shape", [(1000, 300), (5000, 8192), (9000, 20000), (4097, 1531), (3, 70000)])
@pytest.mark.parametrize("width", [1, 4, 13, 32])
def test_gram_product(torch: Any, shape: tuple[int, int], dtype: str, width: int) -> None:
    for W in (noise(torch, shape, dtype), noise(torch, shape[::-1], dtype).T):
        X = noise(torch, (shape[1], width), seed=1)
        if dtype == "float64":
            X = X.double()
        Z = mpfast.gram_product(W, X, side="right")
        assert Z.device == W.device
        # Against a product that has no more precision to lose than ours; terms of random sign add up like sqrt.
        wide, x = W.double(), X.double()
        expected = wide.T @ (wide @ x)
        size = float(expected.square().mean().sqrt())
        tolerance = 1e-11 if dtype == "float64" else 1e-4
        assert float((Z.double() - expected).abs().max()) < tolerance * size * 10


def test_gram_product_of_strided_views(torch: Any) -> None:
    base = noise(torch, (600, 901))
    X = noise(torch, (300, 5), seed=2)
    for W in (base[:, :300], base[::2, 1:301], base[:300, :600].T, base[:, 1:301]):
        Z = mpfast.gram_product(W, X[: W.shape[1]], side="right")
        wide = W.double()
        expected = wide.T @ (wide @ X[: W.shape[1]].double())
        assert float((Z.double() - expected).abs().max()) < 1e-4 * float(expected.abs().max())


def test_gram_product_is_deterministic(torch: Any) -> None:
    W, X = noise(torch, (3000, 5000)), noise(torch, (3000, 8), seed=3)
    assert torch.equal(mpfast.gram_product(W, X), mpfast.gram_product(W, X))


@pytest.mark.parametrize("shape", [(2000, 1400), (1300, 4100)])
def test_same_seed_as_on_the_cpu_gives_the_same_edge(torch: Any, shape: tuple[int, int]) -> None:
    W = noise(torch, shape)
    here = mpfast.spectrum(W.cpu().numpy(), method="lanczos", probes=16, steps=12, seed=5)
    there = mpfast.spectrum(W, method="lanczos", probes=16, steps=12, seed=5)
    assert there.device == "cuda:0"
    assert there.edge.sigma_plus == pytest.approx(here.edge.sigma_plus, rel=1e-5)
    assert there.edge.sigma_plus_error == pytest.approx(here.edge.sigma_plus_error, rel=1e-2)
    assert there.edge.spikes == here.edge.spikes


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
# A cluster, and two passes.
@pytest.mark.parametrize("shape", [(2000, 1400), (3000, 20000)])
def test_factors_and_energies_as_on_the_cpu(torch: Any, shape: tuple[int, int], dtype: str) -> None:
    W = noise(torch, shape, dtype)
    rng = np.random.default_rng(6)
    row, column = (np.exp(rng.standard_normal(length)) for length in shape)
    row[3] = column[5] = 0
    source = scaled(open_source(W, threads=1), row, column)
    run, source = start_run(source, 8, 0, 0, 4, precise=False, energies=True)
    host, on_host = start_run(
        scaled(open_source(W.cpu(), threads=0), row, column), 8, 0, 0, 4, precise=False, energies=True
    )
    assert source.scale_exponent == on_host.scale_exponent
    for found, expected in zip(energies(source, run), energies(on_host, host), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert run.stats[0] == pytest.approx(host.stats[0], rel=1e-12)
    assert run.zero_coordinates == host.zero_coordinates
    assert run.ritz()[0][0] == pytest.approx(host.ritz()[0][0], rel=1e-5)


def test_exact_spectrum(torch: Any) -> None:
    W = noise(torch, (1500, 1200))
    values = mpfast.spectrum(W, method="exact").values
    expected = torch.linalg.svdvals(W.double()).cpu().numpy()
    assert np.abs(values - expected).max() < 1e-10 * expected[0]


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_svd_comes_back_to_the_device(torch: Any, dtype: str) -> None:
    W = noise(torch, (900, 700), dtype).requires_grad_()
    U, s, Vh = mpfast.svd(W, 5)
    assert U.device == Vh.device == W.device
    expected = torch.linalg.svdvals(W.detach().double())[:5].cpu().numpy()
    assert np.allclose(s, expected, rtol=1e-5)


def test_cupy_arrays(cupy: Any) -> None:
    W = cupy.random.default_rng(0).standard_normal((800, 900), dtype=cupy.float32)
    host = cupy.asnumpy(W)
    assert np.allclose(mpfast.spectrum(W).values, np.linalg.svd(host.astype(float), compute_uv=False), rtol=1e-9)
    assert isinstance(mpfast.svd(W, 3).U, cupy.ndarray)
    X = cupy.ones((800, 2), dtype=cupy.float32)
    assert np.allclose(cupy.asnumpy(mpfast.gram_product(W, X)), host @ (host.T @ np.ones((800, 2))), rtol=1e-3)
    assert (cupy.asnumpy(mpfast.masks.n_m(W, 2, 4)) == mpfast.masks.n_m(host, 2, 4)).all()


def moment_of(torch: Any, inputs: int) -> Any:
    """Second moment of inputs with a few strong directions."""
    X = noise(torch, (4 * inputs, inputs), seed=1)
    X += noise(torch, (4 * inputs, 16), seed=2) @ noise(torch, (16, inputs), seed=3)
    return X.T.double() @ X.double() / len(X)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(60, 128), (1000, 1040), (257, 4112)])
@pytest.mark.parametrize(
    "options", [{"sparsity": 0.5}, {"sparsity": 0.6, "refit": 0}, {"pattern": "2:4"}, {"pattern": "8:16"}]
)
def test_refitted_weights(torch: Any, shape: tuple[int, int], dtype: str, options: dict[str, Any]) -> None:
    W, C = noise(torch, shape, dtype), moment_of(torch, shape[1])
    fit = mpfast.reconstruct.prune(W, C, **options)
    here = mpfast.reconstruct.prune(W.cpu(), C.cpu(), **options)
    assert fit.weights.device == fit.mask.device == W.device
    assert (fit.weights.dtype, fit.mask.dtype) == (W.dtype, torch.bool)
    assert not fit.weights[~fit.mask].any()
    # Nearly equal scores or costs may be decided otherwise.
    assert float((fit.mask.cpu() == here.mask).double().mean()) > 0.999
    assert fit.error == pytest.approx(here.error, rel=1e-3)
    assert torch.equal(mpfast.reconstruct.prune(W, C, **options).weights, fit.weights)


def test_a_mask_on_the_device_and_on_the_host(torch: Any) -> None:
    W, C = noise(torch, (300, 500)), moment_of(torch, 500)
    keep = noise(torch, (500, 300), seed=5).T > 0
    fit = mpfast.reconstruct.refit(W, C, keep)
    assert torch.equal(fit.mask, keep)
    assert torch.equal(fit.weights, mpfast.reconstruct.refit(W, C, keep.cpu().numpy()).weights)
    assert fit.error == pytest.approx(mpfast.reconstruct.refit(W.cpu(), C.cpu(), keep.cpu()).error, rel=1e-3)
    with pytest.raises(ValueError, match="must be boolean"):
        mpfast.reconstruct.refit(W, C, keep.T)


@pytest.mark.parametrize("group", [64, 200, None])
def test_rounded_weights(torch: Any, group: int | None) -> None:
    W, C = noise(torch, (300, 500)), moment_of(torch, 500)
    fit = mpfast.reconstruct.quantize(W, C, 3, group=group)
    here = mpfast.reconstruct.quantize(W.cpu(), C.cpu(), 3, group=group)
    assert fit.error == pytest.approx(here.error, rel=0.02)
    assert np.isclose(fit.grid.scale, here.grid.scale, rtol=1e-4).mean() > 0.9


def test_refitted_weights_of_cupy(cupy: Any) -> None:
    W = cupy.random.default_rng(0).standard_normal((200, 320), dtype=cupy.float32)
    X = cupy.random.default_rng(1).standard_normal((1000, 320))
    fit = mpfast.reconstruct.prune(W, X.T @ X / 1000, pattern="4:8")
    here = mpfast.reconstruct.prune(cupy.asnumpy(W), cupy.asnumpy(X.T @ X / 1000), pattern="4:8")
    assert isinstance(fit.weights, cupy.ndarray)
    assert isinstance(fit.mask, cupy.ndarray)
    assert (cupy.asnumpy(fit.mask) == here.mask).mean() > 0.999
    assert fit.error == pytest.approx(here.error, rel=1e-3)


@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (8, 16)])
def test_projection(cupy: Any, n: int, m: int) -> None:
    W = cupy.random.default_rng(m).standard_normal((300, 10 * m), dtype=cupy.float32)
    X = np.random.default_rng(m).standard_normal((10, 4 * m, m)) @ np.random.default_rng(1).standard_normal((m, m))
    moments = np.einsum("gsi,gsj->gij", X, X)
    source = W > 0
    for options in ({}, {"source_mask": source, "prior": 0.5}):
        there = mpfast.masks.n_m(W, n, m, second_moment=moments, **options)
        on_host = {key: cupy.asnumpy(value) if key == "source_mask" else value for key, value in options.items()}
        here = mpfast.masks.n_m(cupy.asnumpy(W), n, m, second_moment=moments, **on_host)
        assert (cupy.asnumpy(there) == here).all()


def test_jax_arrays() -> None:
    jax = pytest.importorskip("jax")
    if jax.default_backend() != "gpu":
        pytest.skip("JAX has no GPU here")
    W = jax.random.normal(jax.random.PRNGKey(0), (400, 300))
    assert mpfast.spectrum(W).device == "cuda:0"
    expected = np.linalg.svd(np.asarray(W, dtype=np.float64), compute_uv=False)
    assert np.allclose(mpfast.spectrum(W).values, expected, rtol=1e-9)


def delayed(torch: Any) -> None:
    """Keep the current stream busy for some milliseconds."""
    busy = torch.randn(6000, 6000, device="cuda")
    for _ in range(10):
        busy = (busy @ busy).clamp(-1, 1)


def test_work_is_ordered_after_the_caller_s_stream(torch: Any) -> None:
    """The matrix is still being made when the call comes."""
    expected = mpfast.spectrum(noise(torch, (1100, 1200), seed=9)).edge.sigma_plus
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        W = torch.zeros(1100, 1200, device="cuda")
        delayed(torch)
        W.copy_(noise(torch, (1100, 1200), seed=9))
        assert mpfast.spectrum(W).edge.sigma_plus == pytest.approx(expected, rel=1e-12)


def test_work_is_ordered_after_cupy_s_stream(cupy: Any) -> None:
    with cupy.cuda.Stream(non_blocking=True):
        W = cupy.zeros((700, 800))
        busy = cupy.ones((5000, 5000))
        for _ in range(5):
            busy = busy @ busy * 1e-4
        W += cupy.random.default_rng(1).standard_normal((700, 800))
        found = mpfast.spectrum(W).values
    assert np.allclose(found, np.linalg.svd(cupy.asnumpy(W), compute_uv=False), rtol=1e-9)


def test_nonfinite_entries_are_found(torch: Any) -> None:
    W = noise(torch, (5000, 3000))
    W[1234, 777] = float("nan")
    W[1234, 778] = W[4000, 0] = float("inf")
    with pytest.raises(ValueError, match=r"3 non-finite entries .* first at \(1234, 777\)"):
        mpfast.spectrum(W)


def test_host_array_goes_to_the_device_or_streams_through_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from mpfast.operators import cuda as device_sources

    W = np.random.default_rng(3).standard_normal((3000, 2000)).astype(np.float32)
    here = mpfast.spectrum(W, method="lanczos", probes=16, steps=10).edge.sigma_plus
    for share in (0.4, 0.0):
        monkeypatch.setattr(device_sources, "RESIDENT_SHARE", share)
        monkeypatch.setattr(device_sources, "PANEL_BYTES", 4 << 20)
        for array in (W, np.asfortranarray(W)):
            there = mpfast.spectrum(array, method="lanczos", probes=16, steps=10, device="cuda")
            assert there.device == "cuda:0"
            assert there.edge.sigma_plus == pytest.approx(here, rel=1e-5)


@pytest.mark.parametrize("code", sorted(CORE_CODES))
@pytest.mark.parametrize("shape", [(3000, 2000, 128), (1000, 20000, 100), (700, 4100, 16)], ids=str)
def test_codes_as_they_are_stored(code: str, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoded to the bit, multiplied to rounding, resident and streamed; one product takes two passes."""
    from mpfast.operators import cuda as device_sources

    codes, scales, numbers = coded(code, *shape)
    matrix = matrix_of(code, codes, scales, shape[-1])
    here = mpfast.spectrum(matrix, method="lanczos", probes=16, steps=10).edge.sigma_plus
    source = open_source(matrix, threads=1, device="cuda")
    same_bits(source.backend.download(source.matrix)[0], numbers)
    x = np.random.default_rng(1).standard_normal((32, shape[1])).astype(np.float32)
    z = source.backend.gram_product(source.matrix, x, True)[0]
    expected = _core.gram_product(matrix, x.astype(np.float64), "right", 2)[0]
    assert np.abs(z - expected).max() < 1e-4 * np.abs(expected).max()
    for share in (0.4, 0.0):
        monkeypatch.setattr(device_sources, "RESIDENT_SHARE", share)
        monkeypatch.setattr(device_sources, "PANEL_BYTES", 1 << 20)
        there = mpfast.spectrum(matrix, method="lanczos", probes=16, steps=10, device="cuda")
        assert there.edge.sigma_plus == pytest.approx(here, rel=1e-5)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_masks_are_the_cpu_s(torch: Any, dtype: str) -> None:
    weights = {"a": noise(torch, (700, 900), dtype), "b": noise(torch, (333, 64), dtype, seed=1)}
    host = {name: W.cpu() for name, W in weights.items()}
    for make in (
        lambda w: mpfast.masks.magnitude(w, 0.43),
        lambda w: {name: mpfast.masks.n_m(W, 2, 4) for name, W in w.items()},
    ):
        run: Callable[[Any], dict[str, Any]] = make
        found, expected = run(weights), run(host)
        assert all(torch.equal(found[name].cpu(), expected[name]) for name in weights)
        assert all(found[name].is_cuda for name in weights)


def test_more_memory_than_there_is(torch: Any) -> None:
    from mpfast.arrays.devices import cuda_backend

    entry = torch.zeros(1, device="cuda")
    matrix = cuda_backend().Matrix(entry.data_ptr(), "float32", (1 << 22, 1 << 22), (0, 0), 0, 0, entry)
    vectors = np.zeros((4096, 1 << 22), dtype=np.float32)
    with pytest.raises(MemoryError, match="bytes on the GPU"):
        cuda_backend().multiply(matrix, vectors, False)


def test_every_device(torch: Any) -> None:
    count = torch.cuda.device_count()
    if count < 2:
        pytest.skip("one GPU only")
    W = noise(torch, (1200, 1300))
    edges = [mpfast.spectrum(W.to(f"cuda:{i}")) for i in range(count)]
    assert [edge.device for edge in edges] == [f"cuda:{i}" for i in range(count)]
    assert len({edge.edge.sigma_plus for edge in edges}) == 1


SANITIZED = """
import numpy as np, torch, mpfast
for dtype in (torch.float32, torch.bfloat16, torch.float64):
    for shape in ((301, 177), (150, 2100)):
        W = torch.randn(shape, device="cuda").to(dtype)
        for view in (W, W.T, W[:, 1:], W[::2]):
            mpfast.spectrum(view, method="lanczos", probes=4, steps=3)
            mpfast.masks.magnitude(view, 0.5)
        mpfast.masks.n_m(W[:, :100], 2, 4)
        C = torch.eye(shape[1], device="cuda") + 0.5
        mpfast.reconstruct.prune(W, C, sparsity=0.5)
        mpfast.reconstruct.prune(W[:, :144], C[:144, :144], pattern="8:16")
        mpfast.reconstruct.quantize(W[:, :144], C[:144, :144], 4, pattern="2:4")
for code, shape, blocks in (("float8_e4m3fn", (301, 2100), 21), ("float4_e2m1", (2100, 150), 3)):
    codes, scales = np.full(shape, 35, np.uint8), np.ones((shape[0], blocks), np.float32)
    matrix = mpfast.arrays.CodedRows(code, codes, scales, 100).matrix("float32")
    mpfast.spectrum(matrix, method="lanczos", probes=4, steps=3, device="cuda")
"""


@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_under_compute_sanitizer(torch: Any, tool: str) -> None:
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None:
        pytest.skip("no compute-sanitizer")
    program = f"import subprocess, sys; sys.exit(subprocess.call([{sanitizer!r}, '--tool', {tool!r}, "
    program += f"'--error-exitcode', '9', sys.executable, '-c', {SANITIZED!r}]))"
    run = run_python("-c", program, timeout=400)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
