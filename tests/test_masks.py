"""Masks against plain NumPy: exact counts, ties, every type and layout, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import mpfast
from mpfast import masks
from mpfast.masks import regimes

from .references import bfloat16_bits, from_bfloat16_bits


def reference(weights, sparsity, factors=None):
    """Sort all scores: zeros first, then by score, then by layer order and flat index."""
    factors = [1.0] * len(weights) if factors is None else factors
    real = np.float64 if any(w.dtype == np.float64 for w in weights) else np.float32
    score = np.concatenate([np.abs(w.astype(real).ravel()) * real(f) for w, f in zip(weights, factors, strict=True)])
    count = math.floor(sparsity * score.size * (1 + 2.0**-50))
    keep = np.ones(score.size, bool)
    keep[np.argsort(score, kind="stable")[:count]] = False
    parts = np.split(keep, np.cumsum([w.size for w in weights])[:-1])
    return [part.reshape(w.shape) for part, w in zip(parts, weights, strict=True)]


def layers(dtype, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "a": rng.standard_normal((37, 53)).astype(dtype),
        "b": (10 * rng.standard_normal((64, 16))).astype(dtype),
        "c": rng.integers(-2, 3, (30, 41)).astype(dtype),  # ties and zeros
        "bias": rng.standard_normal(19).astype(dtype),
        "conv": rng.standard_normal((8, 3, 3, 3)).astype(dtype),
    }


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("sparsity", [0, 0.1, 0.3, 0.5, 0.77, 0.999, 1])
def test_global_magnitude(dtype, sparsity):
    weights = layers(dtype)
    result = masks.magnitude(weights, sparsity)
    assert list(result) == list(weights)
    for name, wanted in zip(weights, reference(list(weights.values()), sparsity), strict=True):
        assert result[name].dtype == np.bool_
        np.testing.assert_array_equal(result[name], wanted, err_msg=name)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
def test_magnitude_in_each_layer(dtype):
    weights = layers(dtype)
    result = masks.magnitude(weights, 0.4, scope="layer")
    for name, weight in weights.items():
        np.testing.assert_array_equal(result[name], reference([weight], 0.4)[0], err_msg=name)


def test_bfloat16():
    torch = pytest.importorskip("torch")
    bits = bfloat16_bits(np.random.default_rng(1).standard_normal((90, 70)))
    tensor = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)
    mask = masks.magnitude(tensor, 0.6)
    assert mask.dtype == torch.bool
    np.testing.assert_array_equal(mask.numpy(), reference([from_bfloat16_bits(bits)], 0.6)[0])


@settings(max_examples=200, deadline=None)
@given(
    weights=st.lists(
        arrays(
            np.float32, st.tuples(st.integers(1, 6), st.integers(1, 6)), elements=st.sampled_from([-2, -1, 0, 1, 2])
        ),
        min_size=1,
        max_size=4,
    ),
    sparsity=st.floats(0, 1),
)
def test_ties_go_by_layer_order_and_flat_index(weights, sparsity):
    given_weights = {str(i): w for i, w in enumerate(weights)}
    result = masks.magnitude(given_weights, sparsity)
    for mask, wanted in zip(result.values(), reference(weights, sparsity), strict=True):
        np.testing.assert_array_equal(mask, wanted)


@given(st.integers(0, 1000), st.integers(1, 1000))
def test_decimal_sparsity_is_not_off_by_one(pruned, total):
    """k / N prunes k entries, whatever the rounding of the quotient."""
    pruned = min(pruned, total)
    mask = masks.magnitude(np.arange(1.0, total + 1), pruned / total)
    assert total - mask.sum() == pruned


def test_denormals_and_extreme_magnitudes_are_ordered():
    for dtype in (np.float32, np.float64, np.float16):
        tiny, huge = np.finfo(dtype).smallest_subnormal, np.finfo(dtype).max
        W = np.array([huge, -tiny, 2 * tiny, 0.0, -0.0, 1.0], dtype)
        for count in range(7):
            np.testing.assert_array_equal(masks.magnitude(W, count / 6), reference([W], count / 6)[0])


LAYOUTS = {
    "fortran": np.asfortranarray,
    "transposed": lambda a: np.ascontiguousarray(a.T).T,
    "stepped": lambda a: np.repeat(a, 3, axis=1)[:, ::3],
    "reversed": lambda a: np.ascontiguousarray(a[::-1, ::-1])[::-1, ::-1],
    "read-only": lambda a: (a.setflags(write=False), a)[1],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_give_the_mask_of_the_values(layout):
    W = np.random.default_rng(4).integers(-9, 10, (48, 60)).astype(np.float32)
    view = LAYOUTS[layout](W.copy())
    np.testing.assert_array_equal(masks.magnitude(view, 0.5), masks.magnitude(W, 0.5))
    np.testing.assert_array_equal(masks.magnitude({"w": view}, 0.5)["w"], reference([W], 0.5)[0])
    np.testing.assert_array_equal(masks.n_m(view, 2, 4), masks.n_m(W, 2, 4))


def test_large_matrix_is_cut_among_threads_and_deterministic():
    W = np.random.default_rng(0).standard_normal((3000, 2000), dtype=np.float32).round(2)
    wanted = reference([W], 0.613)[0]
    for threads in (1, 2, 5):
        np.testing.assert_array_equal(masks.magnitude(W, 0.613, threads=threads), wanted)
        np.testing.assert_array_equal(masks.n_m(W, 2, 4, threads=threads), masks.n_m(W, 2, 4, threads=1))


def n_m_reference(W, n, m):
    groups = np.abs(W.reshape(-1, m).astype(np.float64))
    # Kept: the n largest; of equals, those with the higher index.
    order = np.argsort(groups, axis=1, kind="stable")[:, m - n :]
    keep = np.zeros(groups.shape, bool)
    np.put_along_axis(keep, order, True, axis=1)
    return keep.reshape(W.shape)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize(
    ("n", "m"), [(1, 2), (2, 4), (4, 8), (6, 12), (8, 16), (3, 5), (1, 1), (4, 4), (1, 32), (31, 64)]
)
def test_n_of_m(dtype, n, m):
    rng = np.random.default_rng(0)
    for W in (rng.standard_normal((33, 6 * m)), rng.integers(-2, 3, (7, 4 * m))):
        W = W.astype(dtype)
        mask = masks.n_m(W, n, m)
        assert (mask.reshape(-1, m).sum(axis=1) == n).all()
        np.testing.assert_array_equal(mask, n_m_reference(W, n, m))


def test_n_of_m_of_channels_last(monkeypatch):
    rng = np.random.default_rng(5)
    stored = rng.standard_normal((6, 3, 3, 8)).astype(np.float32)
    W = stored.transpose(0, 3, 1, 2)
    expected = masks.n_m(np.ascontiguousarray(W), 2, 4)
    monkeypatch.setattr("mpfast.masks.groups.CHUNK_ENTRIES", 150)  # two rows at a time
    np.testing.assert_array_equal(masks.n_m(W, 2, 4), expected)
    stored[4, 1, 2, 3] = np.nan
    with pytest.raises(ValueError, match=r"\(4, 3, 1, 2\)"):
        masks.n_m(W, 2, 4)
    with pytest.raises(ValueError, match="permute must be True or False"):
        masks.n_m(W, 2, 4, permute="auto")


def test_n_of_m_of_convolutions():
    W = np.random.default_rng(0).standard_normal((6, 8, 3, 5)).astype(np.float32)
    flat = masks.n_m(W, 2, 4)
    np.testing.assert_array_equal(flat, n_m_reference(W.reshape(6, -1), 2, 4).reshape(W.shape))
    channel = masks.n_m(W, 2, 4, layout="channel")
    moved = np.ascontiguousarray(np.moveaxis(W, 1, -1))
    np.testing.assert_array_equal(np.moveaxis(channel, 1, -1), n_m_reference(moved, 2, 4))


@settings(max_examples=100, deadline=None)
@given(arrays(np.float32, (3, 8), elements=st.sampled_from([-1, -0.0, 0, 1, 2, 1e-45])))
def test_n_of_m_with_ties(W):
    for n, m in ((1, 2), (2, 4), (4, 8), (3, 4)):
        np.testing.assert_array_equal(masks.n_m(W, n, m), n_m_reference(W, n, m))


class TestSpectralBudget:
    def weights(self):
        rng = np.random.default_rng(7)
        return {
            "attn.q": rng.standard_normal((60, 80)).astype(np.float32),
            "mlp.fc1": 3 * rng.standard_normal((120, 60)).astype(np.float32),
            "head": 0.2 * rng.standard_normal((30, 60)).astype(np.float32),
        }

    @pytest.mark.parametrize("sparsity", [0.1, 0.3, 0.5, 0.7])
    def test_scores_are_magnitudes_over_layer_weights(self, sparsity):
        weights = self.weights()
        regime = regimes.regime_for(sparsity)
        spectra = {name: mpfast.spectrum(w) for name, w in weights.items()}
        signals = [
            s.metrics()["hill_alpha"] if regime.signal == "hill" else s.edge.sigma_plus for s in spectra.values()
        ]
        types = [regimes.default_layer_type(name) for name in weights]
        assert types == ["attn", "mlp", "other"]
        factors = 1 / regimes.layer_weights(signals, sparsity, regime, types)
        result = masks.spectral_budget(weights, sparsity)
        for mask, wanted in zip(result.values(), reference(list(weights.values()), sparsity, factors), strict=True):
            np.testing.assert_array_equal(mask, wanted)

    def test_signals(self):
        weights = self.weights()
        rule = regimes.Regime(1.0, "sigma_plus", {"other": 1.0}, 0.9)
        spread = {name: float(w.astype(np.float64).std()) for name, w in weights.items()}
        by_name = masks.spectral_budget(weights, 0.5, signal="entry_std", regimes=rule)
        by_callable = masks.spectral_budget(weights, 0.5, signal=lambda w: float(w.astype(float).std()), regimes=rule)
        given_values = masks.spectral_budget(weights, 0.5, signals=spread, regimes=[rule])
        for name in weights:
            np.testing.assert_array_equal(by_name[name], by_callable[name])
            np.testing.assert_array_equal(by_name[name], given_values[name])

    def test_equal_signals_are_plain_magnitude(self):
        weights = self.weights()
        equal = masks.spectral_budget(weights, 0.5, signal=lambda _: 1.0)
        plain = masks.magnitude(weights, 0.5)
        for name in weights:
            np.testing.assert_array_equal(equal[name], plain[name])

    def test_one_matrix_is_plain_magnitude(self):
        W = self.weights()["head"]
        np.testing.assert_array_equal(masks.spectral_budget(W, 0.5), masks.magnitude(W, 0.5))

    def test_exact_count_over_all_layers(self):
        weights = self.weights()
        total = sum(w.size for w in weights.values())
        for sparsity in (0.123, 0.5, 0.9):
            kept = sum(int(mask.sum()) for mask in masks.spectral_budget(weights, sparsity).values())
            assert total - kept == math.floor(sparsity * total)

    @pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, "bfloat16"])
    def test_the_deviation_of_entries_does_not_cancel(self, dtype):
        """To the rounding of sums of the entries as stored: their own standard deviation, in longdouble."""
        rng = np.random.default_rng(3)
        for mean, scale in ((0, 1), (100, 1), (1e8, 1), (0, 1e200), (1e200, 1e190), (0, 1e-300), (5, 0)):
            W = mean + scale * rng.standard_normal((40, 300))
            given = W
            if dtype != np.float64 and max(mean, scale) > 1e4:
                continue
            if dtype == "bfloat16":
                torch = pytest.importorskip("torch")
                given = torch.tensor(W).to(torch.bfloat16)
                W = given.double().numpy()
            elif dtype != np.float64:
                given = W = W.astype(dtype)
            exact = float(W.astype(np.longdouble).std())
            found = masks.spectral_signals({"w": given}, "entry_std")["w"]
            # Deviations are of entries of a size: each has that size's rounding.
            assert found == pytest.approx(exact, rel=1e-12, abs=2.0**-52 * float(np.abs(W).max()))

    def test_1e8_plus_noise_has_the_deviation_of_the_noise(self):
        noise = np.random.default_rng(4).standard_normal((500, 500))
        found = masks.spectral_signals({"w": 1e8 + noise}, "entry_std")["w"]
        assert found == pytest.approx(1.0, abs=3 / 500)  # sd / sqrt(2 n), n = 250000, is 0.0014

    def test_the_deviation_on_a_device_is_that_on_the_host(self):
        torch = pytest.importorskip("torch")
        from mpfast.masks.cuda import entry_std_on_device

        rng = np.random.default_rng(5)
        for W in (
            1e8 + rng.standard_normal((30, 40)),
            1e200 * rng.standard_normal((30, 40)),
            1e-310 * rng.standard_normal((30, 40)),
            np.zeros((3, 4)),
            rng.standard_normal((7, 5)).astype(np.float16),
        ):
            host = masks.spectral_signals({"w": W}, "entry_std")["w"]
            assert entry_std_on_device(torch.tensor(W)) == pytest.approx(host, rel=1e-12)

    def test_a_layer_weight_of_zero_is_pruned_last(self):
        rule = regimes.Regime(1.0, "sigma_plus", {"other": 10.0}, 0.9)
        weights = {name: w for name, w in self.weights().items() if name != "attn.q"}
        signals = {"mlp.fc1": 2.0, "head": 1.0}  # 1 + beta z is below 0 for the head: its weight is the floor
        found = masks.spectral_budget(weights, 0.5, regimes=rule, signals=signals, smallest_weight=0)
        assert found["head"].all()
        kept = sum(int(mask.sum()) for mask in found.values())
        total = sum(w.size for w in weights.values())
        assert kept == total - math.floor(0.5 * total)
        for floor in (-0.1, math.nan, math.inf):
            with pytest.raises(ValueError, match="smallest_weight must be a number from 0"):
                masks.spectral_budget(weights, 0.5, regimes=rule, signals=signals, smallest_weight=floor)

    @pytest.mark.parametrize("scale", [1e-200, 1e-13, 1e200])
    def test_the_scale_of_the_signals_does_not_matter(self, scale):
        rule = regimes.Regime(1.0, "entry_std", {"other": 1.0}, 0.9)
        signals = np.array([1.0, 2.0, 5.0])
        np.testing.assert_allclose(
            regimes.layer_weights(signals * scale, 0.3, rule), regimes.layer_weights(signals, 0.3, rule), rtol=1e-13
        )

    def test_bad_options(self):
        weights = self.weights()
        with pytest.raises(ValueError, match="signal must be one of sigma_plus, hill, entry_std"):
            masks.spectral_budget(weights, 0.5, signal="kurtosis")
        with pytest.raises(ValueError, match="regimes must be"):
            masks.spectral_budget(weights, 0.5, regimes="other")
        with pytest.raises(KeyError):
            masks.spectral_budget(weights, 0.5, signals={"head": 1.0})


class TestBadInput:
    @pytest.mark.parametrize("sparsity", [-0.1, 1.1, math.nan, "half", None])
    def test_sparsity(self, sparsity):
        for function in (masks.magnitude, masks.spectral_budget):
            with pytest.raises(ValueError, match=r"sparsity must lie in \[0, 1\]"):
                function(np.ones((4, 4)), sparsity)

    def test_scope_and_threads(self):
        with pytest.raises(ValueError, match="scope"):
            masks.magnitude(np.ones((4, 4)), 0.5, scope="model")
        with pytest.raises(ValueError, match="threads"):
            masks.magnitude(np.ones((4, 4)), 0.5, threads=0)

    def test_empty(self):
        with pytest.raises(ValueError, match="weights is empty"):
            masks.magnitude({}, 0.5)
        with pytest.raises(ValueError, match=r"weights\['w'\] is empty"):
            masks.magnitude({"w": np.empty((0, 3))}, 0.5)

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    def test_non_finite_values_are_located(self, bad):
        W = np.ones((6, 5, 2, 2), np.float32)
        W[4, 3, 0, 1] = W[5, 0, 0, 0] = bad
        with pytest.raises(ValueError, match=r"weights\['w'\].*2 non-finite.*\(4, 3, 0, 1\)"):
            masks.magnitude({"v": W[:2], "w": W}, 0.5)
        with pytest.raises(ValueError, match=r"W.*2 non-finite.*\(4, 3, 0, 1\)"):
            masks.n_m(W, 2, 4)
        channels = np.ones((2, 8, 3, 3))
        channels[1, 6, 2, 0] = bad
        with pytest.raises(ValueError, match=r"1 non-finite.*\(1, 6, 2, 0\)"):
            masks.n_m(channels, 2, 4, layout="channel")

    def test_types(self):
        for array in (np.ones((4, 4), int), np.ones((4, 4), complex), np.ones((4, 4), bool)):
            with pytest.raises(TypeError, match="W"):
                masks.n_m(array, 2, 4)
            with pytest.raises(TypeError, match="weights"):
                masks.magnitude(array, 0.5)

    @pytest.mark.parametrize(("n", "m"), [(0, 4), (5, 4), (2, 65), (2.0, 4), (-1, 4)])
    def test_groups(self, n, m):
        with pytest.raises(ValueError, match="1 <= n <= m <= 64"):
            masks.n_m(np.ones((4, 60)), n, m)

    def test_shapes(self):
        with pytest.raises(ValueError, match="cannot be cut into groups of 4"):
            masks.n_m(np.ones((4, 6)), 2, 4)
        with pytest.raises(ValueError, match="at least 2 dimensions"):
            masks.n_m(np.ones(8), 2, 4)
        with pytest.raises(ValueError, match="layout"):
            masks.n_m(np.ones((4, 8)), 2, 4, layout="row")


def test_a_sample_that_misleads_costs_a_round_only() -> None:
    """Entries that the first look at the weights sees are spread out, and all others alike, near the cut."""
    rng = np.random.default_rng(0)
    size, block, step = 6 << 20, 1 << 17, 1024
    W = np.full(size, 0.6745, np.float32)
    for start in range(0, size, step):
        col = start // block * block
        looked_at = start + ((((start - col) // step + col) * 2654435761) % 2**32 >> 22)
        W[looked_at : looked_at + 16] = rng.standard_normal(16)
    for pruned in (size // 2, 7 * size // 8):
        mask = masks.magnitude(W, pruned / size, threads=2)
        want = np.ones(size, np.bool_)
        want[np.argsort(np.abs(W), kind="stable")[:pruned]] = False
        np.testing.assert_array_equal(mask, want)


def test_errors_name_the_call_and_the_layer():
    W = np.ones((4, 8))
    assert np.array_equal(masks.magnitude(W, np.float32(0.5)), masks.magnitude(W, 0.5))
    with pytest.raises(KeyError, match=r"magnitude\(\): sparsity has no share for 'a'"):
        masks.magnitude({"a": W}, {"b": 0.5})
    with pytest.raises(KeyError, match=r"spectral_budget\(\): signals has no value for 'a'"):
        masks.spectral_budget({"a": W}, 0.5, signals={})
    with pytest.raises(ValueError, match=r"n_m\(\): second_moment must have the shape"):
        masks.n_m(W, 2, 4, second_moment=np.eye(3))


def into(weight):
    return np.zeros(weight.shape, np.bool_)


def test_masks_are_written_into_arrays_of_the_caller():
    weights = layers(np.float32)
    out = {name: into(weight) for name, weight in weights.items()}
    found = masks.magnitude(weights, 0.4, out=out)
    for name, wanted in masks.magnitude(weights, 0.4).items():
        assert found[name] is out[name]
        np.testing.assert_array_equal(out[name], wanted)
    W = weights["b"]
    target = into(W)
    assert masks.n_m(W, 2, 4, out=target) is target
    np.testing.assert_array_equal(target, masks.n_m(W, 2, 4))
    rows = into(W)
    assert masks.magnitude(W, 0.5, scope="row", out=rows) is rows
    np.testing.assert_array_equal(rows, masks.magnitude(W, 0.5, scope="row"))


def test_masks_are_written_into_tensors():
    torch = pytest.importorskip("torch")
    W = torch.randn(16, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    out = torch.zeros(16, 32, dtype=torch.bool)
    assert masks.n_m(W, 2, 4, out=out) is out
    assert torch.equal(out, masks.n_m(W, 2, 4))


def read_only():
    array = np.zeros((8, 16), np.bool_)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    ("out", "error", "text"),
    [
        (np.zeros((8, 15), np.bool_), ValueError, "must be boolean of shape"),
        (np.zeros((8, 16), np.uint8), ValueError, "must be boolean of shape"),
        (np.zeros((16, 8), np.bool_).T, ValueError, "C-contiguous"),
        (read_only(), ValueError, "may not be written"),
        ([[True] * 16] * 8, TypeError, "NumPy array or a PyTorch tensor"),
        (np.ma.zeros((8, 16), np.bool_), TypeError, "NumPy array or a PyTorch tensor"),
    ],
)
def test_arrays_that_take_no_mask_are_refused(out, error, text):
    W = np.random.default_rng(0).standard_normal((8, 16))
    with pytest.raises(error, match=text):
        masks.n_m(W, 2, 4, out=out)
    with pytest.raises(error, match=text):
        masks.magnitude(W, 0.5, out=out)


def test_masks_are_not_written_into_the_weights():
    memory = np.random.default_rng(0).standard_normal((8, 16))
    with pytest.raises(ValueError, match="shares memory"):
        masks.n_m(memory, 2, 4, out=memory.view(np.bool_).reshape(-1)[:128].reshape(8, 16))


def test_what_out_does_not_go_with_is_said():
    W = np.random.default_rng(0).standard_normal((8, 16))
    with pytest.raises(ValueError, match="along flat rows only"):
        masks.n_m(W, 2, 4, out=into(W), layout="channel")
    with pytest.raises(ValueError, match="exclude each other"):
        masks.magnitude(W, 0.5, out=into(W), within=np.ones(W.shape, bool))
    with pytest.raises(KeyError, match="has no array for 'a'"):
        masks.magnitude({"a": W}, 0.5, out={})
