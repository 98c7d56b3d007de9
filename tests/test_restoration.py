"""Nested masks, restoring pruned weights, and masks of noise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mpfast import masks
from mpfast.masks.allocation import linear_map
from mpfast.masks.by_noise_floor import rounded_down
from mpfast.masks.projection import output_error
from mpfast.masks.restoration import input_norm_saliency, restoration_gain


def weights_of(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {"a.attn": (60, 40), "b.fc1": (80, 30), "c.fc2": (50, 70)}
    return {
        name: (scale * rng.standard_normal(shape)).astype(np.float32)
        for scale, (name, shape) in zip((1, 0.5, 2), shapes.items(), strict=True)
    }


@pytest.mark.parametrize("method", ["global", "layer", "spectral_budget"])
def test_masks_of_a_growing_sparsity_are_nested(method: str) -> None:
    weights = weights_of()
    weights["a.attn"][:5] = 0  # zeros that are no one's choice
    total = sum(w.size for w in weights.values())
    before = None
    for sparsity in (0.0, 0.1, 0.1, 0.3, 0.6, 0.95, 1.0):
        if method == "spectral_budget":
            now = masks.spectral_budget(weights, sparsity, within=before)
        else:
            now = masks.magnitude(weights, sparsity, scope=method, within=before)
        gone = sum(int((~mask).sum()) for mask in now.values())
        if method == "layer":
            assert gone == sum(math.floor(sparsity * w.size + 1e-9) for w in weights.values())
        else:
            assert gone == math.floor(sparsity * total + 1e-9)
        if before is not None:
            assert not any((now[name] & ~before[name]).any() for name in weights)
        before = now


def test_nested_magnitude_is_magnitude() -> None:
    weights = weights_of()
    before = masks.magnitude(weights, 0.3)
    nested = masks.magnitude(weights, 0.7, within=before)
    plain = masks.magnitude(weights, 0.7)
    for name in weights:
        np.testing.assert_array_equal(nested[name], plain[name])


def test_within_errors() -> None:
    weights = weights_of()
    before = masks.magnitude(weights, 0.5)
    with pytest.raises(ValueError, match="pruned already"):
        masks.magnitude(weights, 0.4, within=before)
    with pytest.raises(KeyError, match=r"c\.fc2"):
        masks.magnitude(weights, 0.6, within={name: before[name] for name in ("a.attn", "b.fc1")})
    with pytest.raises(ValueError, match="must be boolean"):
        masks.magnitude(weights["a.attn"], 0.6, within=np.ones((2, 2), np.bool_))
    weights["b.fc1"][3, 4] = np.nan
    before["b.fc1"][3, 4] = True
    with pytest.raises(ValueError, match=r"\(3, 4\)"):
        masks.magnitude(weights, 0.6, within=before)


def test_restore_takes_the_best_of_the_reservoir() -> None:
    weights = weights_of()
    rng = np.random.default_rng(1)
    total = sum(w.size for w in weights.values())
    before = masks.magnitude(weights, 0.4)
    over = masks.magnitude(weights, 0.63, within=before)
    saliency = {name: rng.standard_normal(w.shape) for name, w in weights.items()}
    factors = {"a.attn": 1.0, "b.fc1": 3.0, "c.fc2": 0.5}
    for eligible in (None, before):
        after = masks.restore(over, saliency, 0.6, layer_weights=factors, eligible=eligible)
        assert sum(int((~mask).sum()) for mask in after.values()) == math.floor(0.6 * total)
        scores, back = [], []
        for name in weights:
            assert not (over[name] & ~after[name]).any()
            pruned = ~over[name] if eligible is None else ~over[name] & eligible[name]
            scores.append(np.abs(saliency[name][pruned]) * factors[name])
            back.append(after[name][pruned])
            assert not after[name][~over[name] & ~pruned].any()
        every, chosen = np.concatenate(scores), np.concatenate(back)
        assert every[chosen].min() > every[~chosen].max()


def test_restore_with_zeros_and_single_arrays() -> None:
    keep = np.array([[True, False], [False, False]])
    restored = masks.restore(keep, np.zeros((2, 2)), 0.25)
    assert restored.sum() == 3
    assert restored[0, 0]
    np.testing.assert_array_equal(masks.restore(keep, np.ones((2, 2)), 0.75), keep)
    np.testing.assert_array_equal(masks.restore(keep, np.ones((2, 2)), 0.0), np.ones((2, 2), np.bool_))
    with pytest.raises(ValueError, match="restore -1 entries"):
        masks.restore(keep, np.ones((2, 2)), 1.0)
    with pytest.raises(ValueError, match="may be restored"):
        masks.restore(keep, np.ones((2, 2)), 0.0, eligible=keep)
    with pytest.raises(ValueError, match="not finite"):
        masks.restore(keep, np.full((2, 2), np.nan), 0.5)
    with pytest.raises(ValueError, match="shape"):
        masks.restore(keep, np.ones(4), 0.5)


def test_restoration_gain_is_the_change_of_the_error() -> None:
    rng = np.random.default_rng(2)
    W = rng.standard_normal((4, 6))
    X = rng.standard_normal((50, 6)) @ rng.standard_normal((6, 6))
    C = X.T @ X / 50
    mask = rng.random(W.shape) < 0.5
    gain = restoration_gain(W, mask, C)
    before = output_error(W, mask, C)
    for index in np.argwhere(~mask):
        back = mask.copy()
        back[tuple(index)] = True
        change = before - output_error(W, back, C)
        assert gain[tuple(index)] == pytest.approx(max(change, 0), abs=1e-9)
    assert (gain[mask] == 0).all()
    best = np.unravel_index(gain.argmax(), gain.shape)
    pruned = int((~mask).sum())
    assert masks.restore(mask, gain, (pruned - 1) / mask.size)[best]


def test_input_norm_saliency() -> None:
    rng = np.random.default_rng(3)
    W = rng.standard_normal((4, 6)).astype(np.float32)
    X = rng.standard_normal((50, 6)) * np.arange(1, 7)
    want = np.abs(W) * np.sqrt((X**2).mean(axis=0))
    C = X.T @ X / 50
    np.testing.assert_allclose(input_norm_saliency(W, C), want)
    np.testing.assert_allclose(input_norm_saliency(W, np.diagonal(C)), want)
    assert input_norm_saliency(W.reshape(4, 2, 3, 1), C).shape == (4, 2, 3, 1)


def test_noise_floor_of_what_is_no_matrix_of_numbers() -> None:
    for W in (np.ones((3, 4), int), np.ones((3, 4)) * 1j):
        with pytest.raises(TypeError, match="noise_floor"):
            masks.noise_floor(W, variance=1.0)
    with pytest.raises(ValueError, match="non-empty"):
        masks.noise_floor(np.ones((0, 4)), variance=1.0)
    # The level is compared as it is, not as the storage type would round it.
    variance = 0.9999**2 / (2 * math.log(2 * 12 / 0.05))
    assert masks.noise_floor(np.ones((3, 4), np.float16), variance=variance).all()


def test_noise_floor_keeps_signal_and_no_noise() -> None:
    """30 matrices at delta = 0.1: about 3 with a false entry; more than 8 has probability 0.002."""
    rng = np.random.default_rng(4)
    false, missed = 0, 0
    for seed in range(30):
        noise = rng.standard_normal((200, 300))
        W = noise.copy()
        where = rng.choice(W.size, 20, replace=False)
        W.flat[where] += 15.0
        mask = masks.noise_floor(W, 0.1, seed=seed)
        signal = np.zeros(W.shape, np.bool_)
        signal.flat[where] = True
        false += bool((mask & ~signal).any())
        missed += int((signal & ~mask).sum())
    assert false <= 8
    assert missed == 0
    np.testing.assert_array_equal(
        masks.noise_floor(W, 0.1, variance=1.0), np.abs(W) > math.sqrt(2 * math.log(2 * W.size / 0.1))
    )
    with pytest.raises(ValueError, match="delta"):
        masks.noise_floor(W, 0)
    for entry in (math.nan, -math.inf):
        W[3, 4] = entry
        with pytest.raises(ValueError, match="NaN or infinite"):
            masks.noise_floor(W, 0.1, variance=1.0)


def test_a_sparsity_for_each_layer() -> None:
    weights = weights_of()
    shares = linear_map([1.0, 2.0, 5.0], [w.size for w in weights.values()], 0.4, epsilon=0.5)
    found = masks.magnitude(weights, dict(zip(weights, shares, strict=True)))
    gone = [int((~mask).sum()) for mask in found.values()]
    assert sum(gone) == math.floor(0.4 * sum(w.size for w in weights.values()))
    for w, mask, share in zip(weights.values(), found.values(), shares, strict=True):
        np.testing.assert_array_equal(mask, masks.magnitude(w, share))
    assert shares[0] < shares[1] < shares[2]
    assert shares[2] / shares[0] == pytest.approx(3, rel=0.01)
    assert linear_map([3.0, 3.0], [100, 100], 0.5) == [0.5, 0.5]
    assert max(linear_map([1.0, 9.0], [100, 100], 0.9, epsilon=1.0)) == 1.0
    with pytest.raises(ValueError, match="epsilon"):
        linear_map([1.0], [10], 0.5, epsilon=2)
    with pytest.raises(ValueError, match="mapping"):
        masks.magnitude(weights["a.attn"], {"a.attn": 0.5})


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_noise_floor_compares_entries_of_a_type_with_the_level_in_float64(dtype: str) -> None:
    """As a GPU compares, in the type itself: exactly what is above the level in float64, neighbours of it included."""
    torch = pytest.importorskip("torch")
    kind = getattr(torch, dtype)
    for level in (1e-60, 1e-3, 0.1, 1 / 3, 1.0, math.pi, 1e4, 70000.0, 1e30, 1e300):
        nearest = torch.tensor(level, dtype=torch.float64).to(kind)
        around = [nearest, torch.tensor(0.0, dtype=kind), torch.tensor(torch.finfo(kind).max, dtype=kind)]
        around += [torch.tensor(level * (1 + step * torch.finfo(kind).eps)).to(kind) for step in (-2, -1, 1, 2)]
        sizes = torch.stack([entry for entry in around if bool(entry.isfinite())])
        found = sizes > rounded_down(level, dtype)
        assert found.tolist() == (sizes.double() > level).tolist()
