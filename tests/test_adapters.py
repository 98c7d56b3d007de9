"""Adapters are seen as the products of their factors, by the names, scales and layouts of those who write them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

import mpfast
from mpfast.checkpoints import AdapterProducts, KroneckerProduct, LowRankProduct, open_checkpoint, updates_of
from mpfast.checkpoints.low_rank_products import hadamard_product

from .tiny_models import adalora

EPS = np.finfo(np.float64).eps


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def single(*shape, seed=0):
    return normal(*shape, seed=seed).astype(np.float32)


def norms(model):
    """Frobenius norm of every update by name."""
    return {row.name: row.fro_norm for row in mpfast.analyze(model, progress=False)}


def dense(product):
    """The matrix that an operator stands for, column by column."""
    return product.matmat(np.eye(product.shape[1]))


# Matrices by their factors --------------------------------------------------------------------------------------------

SHAPES = [(20, 30, 4), (30, 20, 4), (6, 9, 12), (9, 6, 12), (1, 5, 2), (8, 8, 8)]


@pytest.mark.parametrize(("rows", "columns", "rank"), SHAPES)
def test_a_low_rank_product_has_the_decomposition_of_its_matrix(rows, columns, rank):
    A, B = normal(rank, columns), normal(rows, rank, seed=1)
    W = -0.5 * B @ A
    product = LowRankProduct(A, B, -0.5)
    U, s, Vh = product.decomposed()
    scale = np.linalg.norm(B) * np.linalg.norm(A)
    assert len(s) == min(rows, columns, rank)
    np.testing.assert_allclose(U * s @ Vh, W, atol=20 * EPS * scale)
    np.testing.assert_allclose(U.T @ U, np.eye(len(s)), atol=20 * EPS * rows)
    np.testing.assert_allclose(Vh @ Vh.T, np.eye(len(s)), atol=20 * EPS * columns)
    np.testing.assert_allclose(product.singular_values(), np.linalg.svd(W)[1], atol=20 * EPS * scale)
    np.testing.assert_allclose(dense(product), W, atol=20 * EPS * scale)
    np.testing.assert_allclose(product.rmatmat(np.eye(rows)), W.T, atol=20 * EPS * scale)
    assert product.frobenius_norm() == pytest.approx(np.linalg.norm(W), rel=1e-13)


def test_the_difference_of_two_products_is_found_below_their_rounding():
    """From the factors: the difference of the matrices would have an error of eps times their norm."""
    A, B = normal(5, 40), normal(30, 5, seed=1)
    other = A + 1e-9 * normal(5, 40, seed=2)
    lost = LowRankProduct(A, B).minus(LowRankProduct(other, B)).frobenius_norm()
    assert lost == pytest.approx(np.linalg.norm(B @ (A - other)), rel=1e-5)


def test_a_product_of_factors_that_are_no_numbers_is_refused():
    A, B = normal(3, 12), normal(10, 3)
    A[1, 2] = np.nan
    for product in (LowRankProduct(A, B), KroneckerProduct(A, B)):
        with pytest.raises(ValueError, match="non-finite"):
            product.singular_values()
    with pytest.raises(ValueError, match="non-finite"):  # whose product is too large
        LowRankProduct(np.full((3, 12), 1e200), np.full((10, 3), 1e200)).singular_values()


@pytest.mark.parametrize("shapes", [((3, 4), (5, 6)), ((4, 3), (2, 7)), ((1, 1), (4, 4))])
def test_a_kronecker_product_multiplies_as_its_matrix(shapes):
    F, G = normal(*shapes[0]), normal(*shapes[1], seed=1)
    product, W = KroneckerProduct(F, G, 1.5), 1.5 * np.kron(F, G)
    X, Y = normal(W.shape[1], 3, seed=2), normal(W.shape[0], 3, seed=3)
    scale = np.linalg.norm(W)
    np.testing.assert_allclose(product.matmat(X), W @ X, atol=100 * EPS * scale)
    np.testing.assert_allclose(product.rmatmat(Y), W.T @ Y, atol=100 * EPS * scale)
    np.testing.assert_allclose(product.singular_values(), np.linalg.svd(W)[1], atol=20 * EPS * scale)


@pytest.mark.parametrize(("rank", "formed"), [(2, False), (12, True)])
def test_a_hadamard_product_has_factors_where_these_are_smaller_than_it(rank, formed):
    B1, A1, B2, A2 = normal(40, rank), normal(rank, 50, seed=1), normal(40, rank, seed=2), normal(rank, 50, seed=3)
    W = 0.25 * (B1 @ A1) * (B2 @ A2)
    product = hadamard_product((B1, A1), (B2, A2), 0.25)
    assert isinstance(product, np.ndarray) == formed
    found = product if isinstance(product, np.ndarray) else dense(product)
    np.testing.assert_allclose(found, W, atol=100 * EPS * np.abs(W).max() * rank)


# Scales ---------------------------------------------------------------------------------------------------------------


def test_kohya_scales_by_alpha_over_rank_and_by_1_where_there_is_none():
    A, B = single(4, 64), single(48, 4, seed=1)
    W = np.linalg.norm(B.astype(float) @ A.astype(float))
    model = {
        "lora_unet_a.lora_down.weight": A,
        "lora_unet_a.lora_up.weight": B,
        "lora_unet_a.alpha": np.array(2.0, np.float32),
        "lora_unet_b.lora_down.weight": A,
        "lora_unet_b.lora_up.weight": B,
        "lora_unet_c.lora_down.weight": A.reshape(4, 16, 2, 2),
        "lora_unet_c.lora_up.weight": B.reshape(48, 4, 1, 1),
        "lora_unet_c.alpha": np.array(1.0, np.float32),
    }
    found = norms(model)
    expected = {"lora_unet_a.lora": W / 2, "lora_unet_b.lora": W, "lora_unet_c.lora": W / 4}
    assert found == pytest.approx(expected, rel=1e-12)
    assert not any("scale" in text for row in mpfast.analyze(model, progress=False) for text in row.warnings)


@pytest.mark.parametrize(
    ("first", "second", "alpha"),
    [
        ("transformer.q.lora_A.weight", "transformer.q.lora_B.weight", "transformer.q.alpha"),
        ("unet.q.lora.down.weight", "unet.q.lora.up.weight", "unet.q.alpha"),
        ("unet.q.lora.down.weight", "unet.q.lora.up.weight", "unet.q.lora.alpha"),
        ("unet.p.to_q_lora.down.weight", "unet.p.to_q_lora.up.weight", "unet.p.to_q_lora.alpha"),
        ("diffusion_model.q.lora_down.weight", "diffusion_model.q.lora_up.weight", "diffusion_model.q.alpha"),
    ],
)
def test_diffusers_and_comfyui_scale_by_an_alpha_where_there_is_one(first, second, alpha):
    A, B = single(4, 64), single(48, 4, seed=1)
    W = np.linalg.norm(B.astype(float) @ A.astype(float))
    assert list(norms({first: A, second: B}).values()) == pytest.approx([W], rel=1e-12)
    found = norms({first: A, second: B, alpha: np.array([6.0], np.float16)})
    assert list(found.values()) == pytest.approx([1.5 * W], rel=1e-12)


def test_what_diffusers_notes_in_the_header_counts_before_1_and_after_a_tensor(tmp_path):
    A, B = single(4, 64), single(48, 4, seed=1)
    W = np.linalg.norm(B.astype(float) @ A.astype(float))
    names = ("transformer.a.q", "transformer.b.q", "text_encoder.q")
    model = {f"{name}.lora_A.weight": A for name in names} | {f"{name}.lora_B.weight": B for name in names}
    noted = {"transformer.r": 4, "transformer.lora_alpha": 8, "transformer.alpha_pattern": {"b.q": 2}}
    save_file(model, tmp_path / "a.safetensors", {"lora_adapter_metadata": json.dumps(noted)})
    found = norms(tmp_path / "a.safetensors")
    expected = dict(zip(names, (2 * W, W / 2, W), strict=True))
    assert found == pytest.approx({f"{name}.lora": norm for name, norm in expected.items()}, rel=1e-12)
    model["transformer.a.q.alpha"] = np.array(4.0, np.float32)
    save_file(model, tmp_path / "b.safetensors", {"lora_adapter_metadata": json.dumps(noted)})
    assert norms(tmp_path / "b.safetensors")["transformer.a.q.lora"] == pytest.approx(W, rel=1e-12)


def peft_directory(path, model, **config):
    path.mkdir()
    save_file(model, path / "adapter_model.safetensors", {"format": "pt"})
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", **config}))
    return path


def test_peft_scales_by_its_configuration_with_patterns_that_match_ends_of_names(tmp_path):
    ranks = {"model.layers.0.q": 4, "model.layers.0.k": 2, "model.layers.10.q": 8}
    model = {}
    for number, (module, rank) in enumerate(ranks.items()):
        model[f"base_model.model.{module}.lora_A.weight"] = single(rank, 32, seed=number)
        model[f"base_model.model.{module}.lora_B.weight"] = single(24, rank, seed=9 + number)
    settings = {"r": 4, "lora_alpha": 6, "rank_pattern": {"layers.10.q": 8, "k": 2}, "alpha_pattern": {r".*\.q": 3}}
    expected = {}
    for rooted in (False, True):
        place = peft_directory(tmp_path / f"{rooted}", model, **settings, use_rslora=rooted)
        for (module, rank), alpha in zip(ranks.items(), (3, 6, 3), strict=True):
            name = f"base_model.model.{module}"
            W = model[f"{name}.lora_B.weight"].astype(float) @ model[f"{name}.lora_A.weight"].astype(float)
            expected[f"{name}.lora"] = np.linalg.norm(W) * alpha / (np.sqrt(rank) if rooted else rank)
        assert norms(place) == pytest.approx(expected, rel=1e-12)
        assert norms(place / "adapter_model.safetensors") == pytest.approx(expected, rel=1e-12)


def test_a_scale_that_nothing_says_is_said_to_be_missing(tmp_path):
    pair = {"base_model.model.q.lora_A.weight": single(4, 32), "base_model.model.q.lora_B.weight": single(24, 4)}
    wrong = peft_directory(tmp_path / "wrong", pair, r=8, lora_alpha=16)  # PEFT would not load it
    for model in (pair, wrong):
        (row,) = mpfast.analyze(model, progress=False)
        assert any("without the scale" in text for text in row.warnings)
        W = pair["base_model.model.q.lora_B.weight"] @ pair["base_model.model.q.lora_A.weight"]
        assert row.fro_norm == pytest.approx(np.linalg.norm(W.astype(float)), rel=1e-6)
    (tmp_path / "wrong" / "adapter_config.json").write_text("[1]")
    with pytest.raises(mpfast.CheckpointError, match=r"adapter_config.json: is no JSON object"):
        mpfast.analyze(wrong)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"r": "4", "lora_alpha": 4},
        {"r": 0, "lora_alpha": 4},
        {"r": -4, "lora_alpha": 4},
        {"r": True, "lora_alpha": 4},
        {"r": 4.5, "lora_alpha": 4},
        {"r": 4, "lora_alpha": None},
        {"r": 4, "lora_alpha": [4]},
        {"r": 4, "lora_alpha": 4, "rank_pattern": {"q": "4"}},
        {"r": 4, "lora_alpha": 4, "target_parameters": ["q.weight"], "rank_pattern": {"weight": 3}},
    ],
)
def test_settings_that_are_none_leave_the_scale_unknown(tmp_path, config):
    pair = {"base_model.model.q.lora_A.weight": single(4, 32), "base_model.model.q.lora_B.weight": single(24, 4)}
    place = peft_directory(tmp_path / "a", pair, **config)
    analysis = mpfast.analyze(place, progress=False)
    assert all(any("without the scale" in text for text in row.warnings) for row in analysis)
    with pytest.raises(ValueError, match=r"no update to resize|no pair of factors"):
        mpfast.resize(place, rank=2)


def test_patterns_that_are_none_match_nothing(tmp_path):
    pair = {"base_model.model.q.lora_A.weight": single(4, 32), "base_model.model.q.lora_B.weight": single(24, 4)}
    patterns = {"(": 9, "": 9, "x" * 3 + "*+" * 50: 9}
    place = peft_directory(tmp_path / "a", pair, r=4, lora_alpha=8, rank_pattern=patterns, alpha_pattern=["q"])
    W = product_of(pair, "base_model.model.q")
    assert norms(place) == pytest.approx({"base_model.model.q.lora": 2 * np.linalg.norm(W)}, rel=1e-12)


def product_of(model, name):
    return model[f"{name}.lora_B.weight"].astype(float) @ model[f"{name}.lora_A.weight"].astype(float)


def test_factors_in_codes_are_no_products():
    pair = {"unet.q.lora.down.weight": np.ones((4, 32), np.int8), "unet.q.lora.up.weight": single(24, 4)}
    assert updates_of(open_checkpoint(pair)) == {}


def test_the_difference_of_two_adapters_is_not_that_of_their_factors():
    pair = {"unet.q.lora.down.weight": single(4, 32), "unet.q.lora.up.weight": single(24, 4)}
    with pytest.raises(ValueError, match="factors cannot be subtracted"):
        mpfast.analyze(pair, base={name: 2 * tensor for name, tensor in pair.items()})


def test_inspect_lists_an_update_with_the_first_of_its_factors():
    A, B, alpha = single(4, 64), single(48, 4), np.array(2.0, np.float32)
    model = {"lora_unet_a.alpha": alpha, "lora_unet_a.lora_down.weight": A, "lora_unet_a.lora_up.weight": B}
    model |= {"lora_unet_b.lora_down.weight": A[:, :4], "lora_unet_b.lora_up.weight": B, "w.weight": single(16, 16)}
    rows = {row.name: (row.role, row.matrices, row.reason) for row in mpfast.inspect(model)}
    of_a = "a factor of lora_unet_a.lora"
    assert rows == {
        "lora_unet_a.alpha": ("vector", 0, of_a),
        "lora_unet_a.lora_down.weight": ("factor", 1, None),
        "lora_unet_a.lora_up.weight": ("factor", 0, of_a),
        "lora_unet_b.lora_down.weight": ("factor", 0, "too small: fewer than 8 rows or columns"),
        "lora_unet_b.lora_up.weight": ("factor", 0, "a factor of lora_unet_b.lora"),
        "w.weight": ("linear", 1, None),
    }


# LyCORIS --------------------------------------------------------------------------------------------------------------


def test_lycoris_products_are_those_of_its_formulas():
    r, m, n = 3, 24, 32
    model = {"l.hada_w1_a": single(m, r), "l.hada_w1_b": single(r, n, seed=1)}
    model |= {"l.hada_w2_a": single(m, r, seed=2), "l.hada_w2_b": single(r, n, seed=3)}
    model["l.alpha"] = np.array(1.5, np.float32)
    model["k.lokr_w1"], model["k.lokr_w2_a"], model["k.lokr_w2_b"] = single(4, 2), single(6, r), single(r, 8 * 9)
    model["k.alpha"] = np.array(6.0, np.float32)
    model["f.lokr_w1"], model["f.lokr_w2"] = single(3, 5), single(8, 4, 3, 3)
    model["f.alpha"] = np.array(77.0, np.float32)  # with whole factors it counts as the rank
    wide = {name: part.astype(float) for name, part in model.items()}
    matrices = {
        "l.hada": 0.5 * (wide["l.hada_w1_a"] @ wide["l.hada_w1_b"]) * (wide["l.hada_w2_a"] @ wide["l.hada_w2_b"]),
        "k.lokr": 2 * np.kron(wide["k.lokr_w1"], wide["k.lokr_w2_a"] @ wide["k.lokr_w2_b"]),
        "f.lokr": np.kron(wide["f.lokr_w1"], wide["f.lokr_w2"].reshape(8, -1)),
    }
    view = AdapterProducts(open_checkpoint(model))
    assert {info.name: info.shape for info in view.tensors} == {name: W.shape for name, W in matrices.items()}
    for name, W in matrices.items():
        product = view.read(name)
        values = np.linalg.svd(product if isinstance(product, np.ndarray) else dense(product))[1]
        np.testing.assert_allclose(values, np.linalg.svd(W)[1], atol=1e-12 * np.linalg.norm(W))
    assert norms(model) == pytest.approx({name: np.linalg.norm(W) for name, W in matrices.items()}, rel=1e-12)


def with_cores(r=3, m=12, n=8, kernel=(3, 2)):
    """An update of a convolution of every kind with a core between its factors, in float32."""
    model = {"c.lora_down.weight": single(r, n, 1, 1), "c.lora_mid.weight": single(r, r, *kernel, seed=1)}
    model |= {"c.lora_up.weight": single(m, r, 1, 1, seed=2), "c.alpha": np.array(1.5, np.float32)}
    for side in ("1", "2"):
        model |= {f"h.hada_w{side}_a": single(r, m, seed=3), f"h.hada_w{side}_b": single(r, n, seed=4)}
        model[f"h.hada_t{side}"] = single(r, r, *kernel, seed=5 + int(side))
    model |= {"h.alpha": np.array(6.0, np.float32), "k.alpha": np.array(3.0, np.float32)}
    model |= {"k.lokr_w1": single(2, 4, seed=8), "k.lokr_t2": single(r, r, *kernel, seed=9)}
    return model | {"k.lokr_w2_a": single(r, 6, seed=10), "k.lokr_w2_b": single(r, 5, seed=11)}


def test_convolutions_with_a_core_between_the_factors():
    model = with_cores()
    wide = {name: part.astype(float) for name, part in model.items()}
    through = np.einsum(
        "oi,ijkl,jn->onkl",
        wide["c.lora_up.weight"][..., 0, 0],
        wide["c.lora_mid.weight"],
        wide["c.lora_down.weight"][..., 0, 0],
    )
    sides = [
        np.einsum("ijkl,ip,jq->pqkl", wide[f"{stem}_t{at}"], wide[f"{stem}_w{at}_a"], wide[f"{stem}_w{at}_b"])
        for stem, at in (("h.hada", 1), ("h.hada", 2), ("k.lokr", 2))
    ]
    matrices = {
        "c.lora": 0.5 * through.reshape(12, -1),
        "h.hada": 2 * (sides[0] * sides[1]).reshape(12, -1),
        "k.lokr": np.kron(wide["k.lokr_w1"], sides[2].reshape(6, -1)),
    }
    view = AdapterProducts(open_checkpoint(model))
    assert {info.name: info.shape for info in view.tensors} == {name: W.shape for name, W in matrices.items()}
    for name, W in matrices.items():
        product = view.read(name)
        found = product if isinstance(product, np.ndarray) else dense(product)
        np.testing.assert_allclose(found, W, atol=1e-13 * np.linalg.norm(W))
    assert norms(model) == pytest.approx({name: np.linalg.norm(W) for name, W in matrices.items()}, rel=1e-12)


def test_cores_that_do_not_fit_are_left_out():
    model = with_cores() | {"w.weight": single(16, 16)}
    changed = {"c.lora_mid.weight": single(3, 4, 3, 2), "h.hada_t2": single(3, 3), "k.lokr_t2": single(2, 3, 3, 3)}
    assert set(norms(model | changed)) == {"w.weight"}
    del model["h.hada_t2"]  # the factors of the side without are another way round
    model |= {"c.lora_mid": model["c.lora_mid.weight"], "k.lokr_w2": single(4, 4)}
    assert set(norms(model)) == {"w.weight"}


def test_convolutions_with_a_core_are_as_lycoris_has_them():
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("lycoris.functional")
    model = with_cores()
    parts = {name: torch.from_numpy(part) for name, part in model.items()}
    expected = {
        "c.lora": library.locon.diff_weight(
            *(parts[f"c.lora_{word}.weight"] for word in ("down", "up", "mid")), gamma=0.5
        ),
        "h.hada": library.loha.diff_weight(
            *(parts[f"h.hada_{word}"] for word in ("w1_b", "w1_a", "w2_b", "w2_a", "t1", "t2")), gamma=2.0
        ),
        "k.lokr": library.lokr.kron_weight(
            *(parts.get(f"k.lokr_{word}") for word in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")), scale=1.0
        ),
    }
    view = AdapterProducts(open_checkpoint(model))
    for name, W in expected.items():
        product = view.read(name)
        found = product if isinstance(product, np.ndarray) else dense(product)
        wanted = W.numpy().reshape(len(W), -1)
        # The library computes in float32: a few roundings of sums of nine terms.
        np.testing.assert_allclose(found, wanted, atol=16 * np.finfo(np.float32).eps * np.abs(wanted).max())


def test_names_of_hadamard_factors_that_do_not_fit_are_left_out():
    model = {f"l.hada_{name}": single(8, 4) for name in ("w1_a", "w1_b", "w2_a", "w2_b")}
    model |= {"k.lokr_w1": single(8, 8), "w.weight": single(16, 16)}
    assert set(norms(model)) == {"w.weight"}


# With the real library ------------------------------------------------------------------------------------------------


def test_updates_are_those_that_peft_adds(tmp_path):
    """Linear, convolution, embedding, DoRA, patterns, LoHa and LoKr: the norm of what PEFT would merge."""
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    base = {"emb": torch.nn.Embedding(40, 24), "conv": torch.nn.Conv2d(8, 12, 3), "fc": torch.nn.Linear(24, 32)}
    lora = {"r": 4, "lora_alpha": 6, "target_modules": list(base)}
    lycoris = {"r": 4, "alpha": 3, "target_modules": ["conv", "fc"]}
    configs = [
        peft.LoraConfig(**lora),
        peft.LoraConfig(**lora, rank_pattern={"fc": 2}, alpha_pattern={"conv": 5}, use_rslora=True),
        peft.LoHaConfig(**lycoris),
        peft.LoKrConfig(**lycoris, rank_pattern={"fc": 2}),
        peft.LoKrConfig(**lycoris, decompose_both=True),
    ]
    for number, config in enumerate(configs):
        torch.manual_seed(number)
        model = peft.get_peft_model(torch.nn.ModuleDict(base), config)
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter)
        model.save_pretrained(tmp_path / f"{number}")
        expected = {
            name: float(module.get_delta_weight("default").detach().double().norm())
            for name, module in model.named_modules()
            if hasattr(module, "get_delta_weight")
        }
        found = {name.rpartition(".")[0]: norm for name, norm in norms(tmp_path / f"{number}").items()}
        assert found == pytest.approx(expected, rel=1e-5)  # PEFT's are of float32
        live = {name.rsplit(".", 2)[0]: norm for name, norm in norms(model).items() if name.endswith(".default")}
        assert live == pytest.approx(found, rel=1e-12)
        with pytest.raises(ValueError, match="live model"):
            mpfast.resize(model, rank=2)


@pytest.mark.parametrize("alpha", [6, 0])
def test_updates_of_adalora_are_those_that_peft_adds(tmp_path, alpha):
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    base, model = adalora(lora_alpha=alpha)
    live = {name.rsplit(".", 2)[0]: norm for name, norm in norms(model).items() if name.endswith(".default")}
    trained = {
        name: float(module.get_delta_weight("default").detach().double().norm())
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    assert live == pytest.approx(trained, rel=1e-5)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(torch.nn.ModuleDict(base), tmp_path)
    expected = {
        name: float(module.get_delta_weight("default").detach().double().norm())
        for name, module in loaded.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    analysis = mpfast.analyze(tmp_path)
    found = {row.name.removesuffix(".lora"): row.fro_norm for row in analysis}
    assert found == pytest.approx(expected, rel=1e-5)  # PEFT's are of float32
    assert not any("scale" in text for row in analysis for text in row.warnings)


@pytest.mark.parametrize(
    "config",
    [
        {"init_r": 5},
        {"init_r": None, "lora_alpha": 2},
        {"init_r": 4, "lora_alpha": None},
        {"peft_type": "LORA", "r": 4},
    ],
)
def test_a_scale_of_adalora_that_its_configuration_does_not_say_is_missing(tmp_path, config):
    names = [f"base_model.model.q.{word}" for word in ("lora_A", "lora_E", "lora_B")]
    A, E, B = single(4, 24), single(4, 1, seed=1), single(16, 4, seed=2)
    config = {"peft_type": "ADALORA", "init_r": 4, "lora_alpha": 2, **config}
    path = peft_directory(tmp_path / "a", dict(zip(names, (A, E, B), strict=True)), **config)
    (row,) = mpfast.analyze(path)
    assert row.fro_norm == pytest.approx(np.linalg.norm(B @ (A * E)), rel=1e-6)
    assert any("without the scale" in text for text in row.warnings)


def test_fused_experts_are_one_matrix_each(tmp_path):
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")

    class Experts(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_up_proj = torch.nn.Parameter(torch.randn(4, 24, 64))
            self.down_proj = torch.nn.Parameter(torch.randn(4, 32, 24))

    parameters = ["experts.gate_up_proj", "experts.down_proj"]
    torch.manual_seed(0)
    model = torch.nn.ModuleDict({"mlp": torch.nn.ModuleDict({"experts": Experts()})})
    config = peft.LoraConfig(r=3, lora_alpha=6, target_modules=[], target_parameters=parameters)
    model = peft.get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path / "a")
    expected = {}
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight"):
            for expert, update in enumerate(module.get_delta_weight("default").detach().double()):
                expected[f"{name}.lora[{expert}]"] = float(update.norm())
    assert len(expected) == 8
    assert norms(tmp_path / "a") == pytest.approx(expected, rel=1e-5)
    (tmp_path / "a" / "adapter_config.json").unlink()  # which says how many experts there are
    analysis = mpfast.analyze(tmp_path / "a", progress=False)
    assert len(analysis) == 0
    assert all("fused experts" in tensor.reason for tensor in analysis.skipped)
