"""Adapters with fewer ranks: the best approximations of their updates, at the same scales, in the same dialects."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mpfast
from mpfast.checkpoints.safetensors import SafetensorsFile

from .adapters import ROUNDING, diffusers, falling, product, tree, truncated


def least_rank(W, *, error=None, energy=None):
    s = np.linalg.svd(W, compute_uv=False)
    lost = np.append(np.cumsum(s[::-1] ** 2)[::-1], 0) / (s**2).sum()
    allowed = error**2 if energy is None else 1 - energy
    return int(np.argmax(lost <= max(allowed, 1e-20)))  # beyond which all is rounding of the reference


def kohya(dtype=np.float32):
    model = {}
    for number, rank in enumerate((8, 6)):
        A, B = falling(40, 48, rank, seed=number)
        model[f"lora_unet_{number}.lora_down.weight"], model[f"lora_unet_{number}.lora_up.weight"] = A, B
        model[f"lora_unet_{number}.alpha"] = np.array(4.0, np.float32)
    A, B = falling(24, 72, 8, seed=2)
    model["lora_unet_c.lora_down.weight"] = A.reshape(8, 8, 3, 3)
    model["lora_unet_c.lora_up.weight"] = B.reshape(24, 8, 1, 1)
    model["lora_unet_c.alpha"] = np.array(1.0, np.float32)
    return {name: tensor.astype(dtype) for name, tensor in model.items()}


KOHYA = ("lora_unet_0", "lora_unet_1", "lora_unet_c")


def kohya_updates(model):
    """By kohya's formula: up @ down, times alpha over the rows of down."""
    return {
        name: product(model[f"{name}.lora_down.weight"], model[f"{name}.lora_up.weight"])
        * float(model[f"{name}.alpha"])
        / len(model[f"{name}.lora_down.weight"])
        for name in KOHYA
    }


@pytest.mark.parametrize(
    "options", [{"rank": 3}, {"rank": 7}, {"error": 0.3}, {"error": 0.05}, {"energy": 0.9}, {"energy": 1.0}]
)
def test_updates_are_the_best_of_their_ranks_at_the_same_scales(tmp_path, options):
    model = kohya()
    save_file(model, tmp_path / "style.safetensors", {"note": "mine"})
    before = tree(tmp_path)
    result = mpfast.resize(tmp_path / "style.safetensors", tmp_path / "out", **options)
    assert tree(tmp_path / "out").keys() == {"style.safetensors", ".mpfast.json"}
    assert tree(tmp_path) == before
    written = load_file(tmp_path / "out" / "style.safetensors")
    files = [SafetensorsFile(place / "style.safetensors") for place in (tmp_path, tmp_path / "out")]
    assert [info.name for info in files[1].tensors] == [info.name for info in files[0].tensors]
    assert files[1].metadata == {"note": "mine"}
    assert {name: tensor.dtype for name, tensor in written.items()} == dict.fromkeys(model, np.dtype("float32"))
    old, new = kohya_updates(model), kohya_updates(written)
    for name, layer in zip(KOHYA, result.layers, strict=True):
        W, rank = old[name], layer.rank
        expected = min(options["rank"], layer.old_rank) if "rank" in options else least_rank(W, **options)
        assert (layer.name, layer.shape, layer.rank) == (f"{name}.lora", W.shape, expected)
        assert len(written[f"{name}.lora_down.weight"]) == rank
        norm = np.linalg.norm(W)
        assert np.linalg.norm(new[name] - truncated(W, rank)) <= ROUNDING * norm
        assert layer.error == pytest.approx(np.linalg.norm(new[name] - W) / norm, rel=1e-6, abs=1e-12)
        assert layer.error <= options.get("error", 1) + ROUNDING


def test_an_update_that_has_no_more_ranks_keeps_its_bytes(tmp_path):
    model = kohya()
    save_file(model, tmp_path / "a.safetensors")
    result = mpfast.resize(tmp_path / "a.safetensors", tmp_path / "out", rank=6)
    assert [(layer.old_rank, layer.rank, layer.error) for layer in result.layers][1] == (6, 6, 0.0)
    written = load_file(tmp_path / "out" / "a.safetensors")
    for part in ("lora_down.weight", "lora_up.weight", "alpha"):
        np.testing.assert_array_equal(written[f"lora_unet_1.{part}"], model[f"lora_unet_1.{part}"])
    assert result.ratio == pytest.approx((6 * 88 + 6 * 88 + 6 * 96) / (8 * 88 + 6 * 88 + 8 * 96))


def test_nothing_is_written_without_a_place_and_the_result_is_the_same(tmp_path):
    model = kohya()
    written = mpfast.resize(model, tmp_path / "out", error=0.2)
    assert mpfast.resize(model, error=0.2).layers == written.layers
    assert (written.out, mpfast.resize(model, rank=2).out) == (tmp_path / "out", None)


def test_an_update_of_zeros_has_rank_1():
    model = {"unet.q.lora.down.weight": np.ones((4, 20)), "unet.q.lora.up.weight": np.zeros((30, 4))}
    for options in ({"error": 0.1}, {"energy": 0.5}):
        (layer,) = mpfast.resize(model, **options).layers
        assert (layer.rank, layer.error) == (1, 0.0)


def test_a_rank_beyond_the_sides_of_the_matrix_is_cut_to_them():
    A, B = np.random.default_rng(0).standard_normal((12, 5)), np.random.default_rng(1).standard_normal((30, 12))
    model = {"unet.q.lora.down.weight": A, "unet.q.lora.up.weight": B}
    (layer,) = mpfast.resize(model, rank=9).layers
    assert (layer.old_rank, layer.rank) == (12, 5)
    assert layer.error < 1e-14


@pytest.mark.parametrize("dtype", [np.float16, np.float64, "bfloat16", np.int64])
def test_what_an_alpha_of_few_bits_cannot_say_the_factors_make_up_for(tmp_path, dtype):
    """31 / 48 has no such number in 8 or 11 bits, nor is it whole."""
    A, B = falling(60, 64, 48)
    alpha = np.array(1.0, np.float32)
    model = {"lora_unet_q.lora_down.weight": A, "lora_unet_q.lora_up.weight": B}
    if dtype == "bfloat16":
        torch = pytest.importorskip("torch")
        from safetensors.torch import load_file as load
        from safetensors.torch import save_file as save

        tensors = {name: torch.from_numpy(tensor) for name, tensor in model.items()}
        save({**tensors, "lora_unet_q.alpha": torch.tensor(1.0, dtype=torch.bfloat16)}, tmp_path / "a.safetensors")
    else:
        save_file({**model, "lora_unet_q.alpha": alpha.astype(dtype)}, tmp_path / "a.safetensors")
    mpfast.resize(tmp_path / "a.safetensors", tmp_path / "out", rank=31)
    if dtype == "bfloat16":
        written = {name: tensor.float().numpy() for name, tensor in load(tmp_path / "out" / "a.safetensors").items()}
    else:
        written = load_file(tmp_path / "out" / "a.safetensors")
        assert written["lora_unet_q.alpha"].dtype == dtype
    down, up = written["lora_unet_q.lora_down.weight"], written["lora_unet_q.lora_up.weight"]
    found = product(down, up) * float(written["lora_unet_q.alpha"]) / 31
    W = product(A, B) / 48
    assert np.linalg.norm(found - truncated(W, 31)) <= ROUNDING * np.linalg.norm(W)


def test_errors_are_those_of_what_is_stored():
    """In float16 the rounding of the factors is of the size of what is cut."""
    A, B = falling(40, 48, 8)
    model = {"unet.q.lora.down.weight": A.astype(np.float16), "unet.q.lora.up.weight": B.astype(np.float16)}
    A, B = (tensor.astype(np.float64) for tensor in model.values())
    model["unet.q.lora.down.weight"] = np.concatenate([A, 1e-4 * A]).astype(np.float16)
    model["unet.q.lora.up.weight"] = np.concatenate([B, B], axis=1).astype(np.float16)
    (layer,) = mpfast.resize(model, rank=8).layers
    assert 2.0**-13 < layer.error < 2.0**-10  # exactly, next to nothing is lost


def test_factors_beyond_their_type_are_refused():
    model = {"unet.q.lora.down.weight": np.full((4, 20), 6e4), "unet.q.lora.up.weight": np.full((30, 4), 6e4)}
    model = {name: tensor.astype(np.float16) for name, tensor in model.items()}
    with pytest.raises(ValueError, match=r"beyond the largest float16"):
        mpfast.resize(model, rank=1)


def test_what_kohya_notes_of_ranks_follows_and_hashes_go(tmp_path):
    notes = {"ss_network_dim": "8", "ss_network_alpha": "4.0", "sshs_model_hash": "ab", "ss_epoch": "3"}
    save_file(kohya(), tmp_path / "a.safetensors", notes)
    mpfast.resize(tmp_path / "a.safetensors", tmp_path / "one", rank=4)
    found = SafetensorsFile(tmp_path / "one" / "a.safetensors").metadata
    assert found == {"ss_network_dim": "4", "ss_network_alpha": "Dynamic", "ss_epoch": "3"}
    mpfast.resize(tmp_path / "a.safetensors", tmp_path / "many", error=0.3)
    assert SafetensorsFile(tmp_path / "many" / "a.safetensors").metadata["ss_network_dim"] == "Dynamic"


def test_the_entry_of_diffusers_in_the_header_follows(tmp_path):
    noted = {"transformer.r": 8, "transformer.lora_alpha": 4, "transformer.rank_pattern": {"b.1.q": 6}}
    noted["transformer.target_modules"] = ["q"]
    save_file(diffusers(8, 6), tmp_path / "a.safetensors", {"lora_adapter_metadata": json.dumps(noted)})
    result = mpfast.resize(tmp_path / "a.safetensors", tmp_path / "out", error=0.45)
    ranks = [layer.rank for layer in result.layers]
    assert len(set(ranks)) == 2
    found = json.loads(SafetensorsFile(tmp_path / "out" / "a.safetensors").metadata["lora_adapter_metadata"])
    for number, (rank, scale) in enumerate(zip(ranks, (4 / 8, 4 / 6), strict=True)):
        name = f"b.{number}.q"
        r = found["transformer.rank_pattern"].get(name, found["transformer.r"])
        alpha = found["transformer.alpha_pattern"].get(name, found["transformer.lora_alpha"])
        assert (r, alpha / r) == (rank, pytest.approx(scale))
    assert found["transformer.target_modules"] == ["q"]


def test_diffusers_is_told_that_scales_are_1_where_ranks_come_to_differ(tmp_path):
    """Older releases take the first rank for the alpha of all layers where a file has none."""
    save_file(diffusers(8, 8), tmp_path / "a.safetensors", {"format": "pt"})
    mpfast.resize(tmp_path / "a.safetensors", tmp_path / "same", rank=3)
    assert SafetensorsFile(tmp_path / "same" / "a.safetensors").metadata == {"format": "pt"}
    save_file(diffusers(8, 3), tmp_path / "a.safetensors", {"format": "pt"})
    mpfast.resize(tmp_path / "a.safetensors", tmp_path / "out", rank=4)
    found = json.loads(SafetensorsFile(tmp_path / "out" / "a.safetensors").metadata["lora_adapter_metadata"])
    ranks = [found["transformer.rank_pattern"].get(f"b.{at}.q", found["transformer.r"]) for at in (0, 1)]
    alphas = [found["transformer.alpha_pattern"].get(f"b.{at}.q", found["transformer.lora_alpha"]) for at in (0, 1)]
    assert (ranks, alphas) == ([4, 3], [4, 3])
    assert found["transformer.target_modules"] == ["b.0.q", "b.1.q"]


def test_factors_in_several_files_stay_in_theirs(tmp_path):
    model = kohya()
    halves = [{name: model[name] for name in sorted(model)[at::2]} for at in (0, 1)]
    (tmp_path / "a").mkdir()
    files = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    for file, half in zip(files, halves, strict=True):
        save_file(half, tmp_path / "a" / file)
    index = {"metadata": {}, "weight_map": {name: files[at] for at in (0, 1) for name in halves[at]}}
    (tmp_path / "a" / "model.safetensors.index.json").write_text(json.dumps(index))
    mpfast.resize(tmp_path / "a", tmp_path / "out", rank=3)
    written = [load_file(tmp_path / "out" / file) for file in files]
    assert [set(half) for half in written] == [set(half) for half in halves]
    assert len(mpfast.analyze(tmp_path / "out", progress=False)) == 3  # by the index
    found = kohya_updates(written[0] | written[1])
    for name, W in kohya_updates(model).items():
        assert np.linalg.norm(found[name] - truncated(W, 3)) <= ROUNDING * np.linalg.norm(W)


def test_other_products_stay_byte_for_byte_and_are_named(tmp_path):
    rng = np.random.default_rng(0)
    model = kohya() | {"x.hada_w1_a": rng.standard_normal((16, 4)), "x.hada_w1_b": rng.standard_normal((4, 16))}
    model |= {"x.hada_w2_a": rng.standard_normal((16, 4)), "x.hada_w2_b": rng.standard_normal((4, 16))}
    model |= {"y.lokr_w1": rng.standard_normal((4, 4)), "y.lokr_w2": rng.standard_normal((8, 8))}
    model |= {"lora_unet_0.dora_scale": rng.standard_normal((40, 1))}
    model |= {"z.lora_down.weight": rng.standard_normal((4, 16, 1, 1))}
    model |= {"z.lora_up.weight": rng.standard_normal((16, 4, 1, 1))}
    model["z.lora_mid.weight"] = rng.standard_normal((4, 4, 3, 3))
    save_file(model, tmp_path / "a.safetensors")
    result = mpfast.resize(tmp_path / "a.safetensors", tmp_path / "out", rank=2)
    written = load_file(tmp_path / "out" / "a.safetensors")
    stay = [name for name in model if name.startswith(("x.", "y.", "z.")) or "dora" in name]
    for name in stay:
        np.testing.assert_array_equal(written[name], model[name])
    reasons = {tensor.name: tensor.reason for tensor in result.skipped}
    assert set(reasons) == {name for name in stay if "dora" not in name}
    assert "entry by entry" in reasons["x.hada_w1_a"]
    assert "Kronecker" in reasons["y.lokr_w1"]
    assert "a product of three factors" in reasons["z.lora_up.weight"]
    assert len(result.notes) == 1
    assert "keeps its lengths of rows" in result.notes[0]


PAIR = {"q.lora_A.weight": np.ones((4, 16)), "q.lora_B.weight": np.ones((16, 4))}


@pytest.mark.parametrize(
    ("adapter", "options", "message"),
    [
        (PAIR, {}, "nothing says how much"),
        (PAIR, {"rank": 2, "error": 0.1}, "do not go together"),
        (PAIR, {"rank": "mp_edge"}, "mp_edge"),
        (PAIR, {"rank": 0}, "positive"),
        (PAIR, {"error": 1.5}, "error must be a number"),
        (PAIR, {"rank": 2}, r"adapter has no update to resize: q.lora: neither an alpha tensor nor an adapter_config"),
        ({"q.weight": np.ones((16, 16))}, {"rank": 2}, "no pair of factors among its 1 tensors; pass a LoRA adapter"),
        ({"q.lokr_w1": np.ones((4, 4)), "q.lokr_w2": np.ones((4, 4))}, {"rank": 2}, "q.lokr: a Kronecker product"),
        (
            {"q.weight": np.ones((16, 8), np.int8), "q.scale": np.ones((16, 1)), **PAIR},
            {"rank": 2},
            "adapter is quantised: q.weight is packed",
        ),
        (
            {"unet.q.lora.down.weight": np.full((4, 16), np.nan), "unet.q.lora.up.weight": np.ones((16, 4))},
            {"rank": 2},
            r"unet.q.lora is a product of factors with non-finite entries",
        ),
    ],
)
def test_what_cannot_be_resized_is_said_in_a_sentence(adapter, options, message):
    with pytest.raises(ValueError, match=message):
        mpfast.resize(adapter, **options)


def test_an_adapter_that_takes_from_its_base_when_it_is_loaded_is_refused(tmp_path):
    pair = {f"base_model.model.{name}": tensor for name, tensor in PAIR.items()}
    save_file(pair, tmp_path / "adapter_model.safetensors")
    config = {"r": 4, "lora_alpha": 4, "init_lora_weights": "pissa_niter_4"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"'pissa_niter_4', which takes as much from the base as the rank says"):
        mpfast.resize(tmp_path, rank=2)


def test_outputs_are_replaced_and_guarded_as_those_of_compress(tmp_path):
    source = tmp_path / "lora"
    source.mkdir()
    save_file(kohya(), source / "a.safetensors")
    mpfast.resize(source, tmp_path / "out", rank=4)
    with pytest.raises(FileExistsError, match="exists already"):
        mpfast.resize(source, tmp_path / "out", rank=2)
    mpfast.resize(source, tmp_path / "out", rank=2, overwrite=True)
    assert len(load_file(tmp_path / "out" / "a.safetensors")["lora_unet_0.lora_down.weight"]) == 2
    with pytest.raises(FileExistsError, match="only read"):
        mpfast.resize(source, source / "inside", rank=2)
    with pytest.raises(ValueError, match="LoRA adapter, which is not checked"):
        mpfast.verify(tmp_path / "out")
