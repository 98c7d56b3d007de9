"""Checkpoints pruned with second moments or by given masks: kept weights refitted, noted, and verified."""

from __future__ import annotations

import json
from importlib.resources import files

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mpfast
from mpfast import CheckpointError, reconstruct
from mpfast.arrays.bfloat16 import narrowed, widened
from mpfast.checkpoints import InputSum, MaskFile, content_hash, content_sample_hash, open_checkpoint, write_moments
from mpfast.models import damping_for
from mpfast.models.budget import Budget

from .references import run_python

IN, OUT, ROWS = 48, 32, 600

# Mixtures whose experts transformers saves one by one, by the classes' names, with four experts each.
MIXTURES = {
    "Mixtral": {"num_local_experts": 4},
    "Qwen2Moe": {"num_experts": 4, "shared_expert_intermediate_size": 24},
    "Qwen3Moe": {"num_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
    "DeepseekV3": {
        "n_routed_experts": 4, "first_k_dense_replace": 0, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2,
        "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8,
    },
}  # fmt: skip


def inputs(seed=0, rows=ROWS, width=IN):
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((width, width)) / np.sqrt(np.arange(1, width + 1))[:, None]
    return np.random.default_rng(seed + 1).standard_normal((rows, width)) @ mixing


def moment(x):
    return x.T @ x / len(x)


def weights(seed=5):
    rng = np.random.default_rng(seed)
    return {
        "a.query.weight": rng.standard_normal((OUT, IN), dtype=np.float32),
        "a.key.weight": rng.standard_normal((OUT, IN), dtype=np.float32),
        "b.weight": rng.standard_normal((40, OUT), dtype=np.float32),
        "b.bias": rng.standard_normal(40, dtype=np.float32),
    }


def error(W, V, C):
    change = np.asarray(W, np.float64) - np.asarray(V, np.float64)
    return np.trace(change @ C @ change.T) / np.trace(np.float64(W) @ C @ np.float64(W).T)


@pytest.fixture
def model(tmp_path):
    save_file(weights(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def moment_file(path, names=("a.query", "a.key"), model=None, parts=4, **facts):
    x = inputs()
    pieces = np.split(x, parts)
    known = {"source": None, "source_hash": None, **facts}
    if model is not None:
        known |= {"source": str(model), "source_hash": content_sample_hash(model)}
    found = InputSum(list(names), [len(piece) for piece in pieces], [piece.T @ piece for piece in pieces], parts)
    options = {"block": None, "layout": "flat", "share": 1.0, "seed": 0, "folds": parts}
    write_moments(path, [found], options, known)
    return path


class TestWeights:
    @pytest.mark.parametrize("asked", [{"sparsity": 0.6}, {"pattern": "2:4"}])
    @pytest.mark.parametrize("refit", [0, 4])
    def test_they_are_those_of_reconstruct(self, model, tmp_path, asked, refit):
        """With 15 % of each entry without a refit, and with 30 % with one."""
        C = moment(inputs())
        result = mpfast.prune(model, tmp_path / "out", moments={"a.query": C, "a.key": C}, refit=refit, **asked)
        factor = reconstruct.Factor(C, 0.0, diagonal=0.3 if refit else 0.15)
        written, masks = load_file(tmp_path / "out" / "model.safetensors"), MaskFile(tmp_path / "out/masks.safetensors")
        assert [row.name for row in result.budget] == sorted(["a.query.weight", "a.key.weight"])
        assert result.budget.pruned == (1843 if "sparsity" in asked else 1536)  # floor of 1843.2
        for row in result.budget:
            W = weights()[row.name]
            share = {"sparsity": row.sparsity} if "sparsity" in asked else asked
            fit = reconstruct.prune(W, factor, refit=refit, **share)
            np.testing.assert_array_equal(written[row.name], fit.weights)
            np.testing.assert_array_equal(masks[row.name], fit.mask)
            assert row.pruned in ((921, 922) if "sparsity" in asked else (W.size // 2,))
            assert row.updated
            # Sums of 48 x 48 products in double precision, of weights in single.
            assert row.error == pytest.approx(error(W, fit.weights, C), rel=1e-9)
            assert row.masked_error == pytest.approx(error(W, W * fit.mask, C), rel=1e-9)
            assert row.error < row.masked_error
            assert row.written == content_hash(written[row.name])
        np.testing.assert_array_equal(written["b.weight"], weights()["b.weight"])
        assert [(t.name, t.reason) for t in result.skipped if t.name == "b.weight"] == [
            ("b.weight", "no second moment: the moments hold none of its inputs")
        ]

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_types_of_16_bits(self, tmp_path, dtype):
        torch = pytest.importorskip("torch")
        from safetensors.torch import load_file as load
        from safetensors.torch import save_file as save

        W = torch.from_numpy(weights()["b.weight"]).to(getattr(torch, dtype))
        save({"b.weight": W}, tmp_path / "m.safetensors")
        C = moment(inputs(width=OUT))
        result = mpfast.prune(tmp_path / "m.safetensors", tmp_path / "out", pattern="2:4", moments={"b.weight": C})
        written = load(tmp_path / "out" / "m.safetensors")
        assert written["b.weight"].dtype == W.dtype
        keep = result.budget[0].pruned
        assert int((written["b.weight"] == 0).sum()) >= keep == W.numel() // 2
        found = error(W.double().numpy(), written["b.weight"].double().numpy(), C)
        assert result.budget[0].error == pytest.approx(found, rel=1e-9)
        assert mpfast.verify(tmp_path / "out").ok

    def test_bits_of_bfloat16_come_from_single_precision(self):
        """As the same numbers in float32 would be refitted, and rounded once."""
        W = weights()["b.weight"]
        rounded = widened(narrowed(W))
        C = moment(inputs(width=OUT))
        fit = reconstruct.prune(rounded, reconstruct.Factor(C, 0.0, diagonal=0.3), sparsity=0.5)
        ml_dtypes = pytest.importorskip("ml_dtypes")
        given = narrowed(W).view(ml_dtypes.bfloat16)
        result = mpfast.prune({"b.weight": given}, sparsity=0.5, moments={"b": C})
        np.testing.assert_array_equal(result.weights["b.weight"].view(np.uint16), narrowed(fit.weights))

    def test_storage_as_in_out(self):
        """A kernel is the transpose of a weight, and so is what becomes of it."""
        W, C = weights()["a.key.weight"], moment(inputs())
        straight = mpfast.prune({"fc.weight": W}, sparsity=0.6, moments={"fc.weight": C})
        turned = mpfast.prune({"fc.kernel": W.T.copy()}, sparsity=0.6, moments={"fc.kernel": C})
        np.testing.assert_array_equal(turned.weights["fc.kernel"], straight.weights["fc.weight"].T)
        np.testing.assert_array_equal(turned.masks["fc.kernel"], straight.masks["fc.weight"].T)

    def test_a_model_in_memory_is_not_changed(self):
        given = weights()
        result = mpfast.prune(given, sparsity=0.5, moments={"b": moment(inputs(width=OUT))})
        assert result.weights.keys() == result.masks.keys() == {"b.weight"}
        np.testing.assert_array_equal(given["b.weight"], weights()["b.weight"])
        assert not result.weights["b.weight"][~result.masks["b.weight"]].any()

    def test_masks_by_another_method_are_refitted(self, model):
        """magnitude chooses of all layers together; those of which the inputs are known are refitted."""
        C = moment(inputs())
        plain = mpfast.prune(weights(), sparsity=0.5, method="magnitude")
        result = mpfast.prune(weights(), sparsity=0.5, method="magnitude", moments={"a.key": C})
        for name, mask in plain.masks.items():
            np.testing.assert_array_equal(result.masks[name], mask)
        assert {row.name: row.updated for row in result.budget} == {
            name: name == "a.key.weight" for name in plain.masks
        }
        assert result.weights.keys() == {"a.key.weight"}
        assert {row.reason for row in result.budget if not row.updated} == {"the moments hold none of its inputs"}

    def test_a_budget_says_how_many_go(self, model):
        rows = mpfast.prune(weights(), sparsity=0.37, method="magnitude").budget
        result = mpfast.prune(weights(), budget=rows, moments={"a.key": moment(inputs())})
        assert [row.pruned for row in result.budget] == [row.pruned for row in rows]
        assert sum(row.updated for row in result.budget) == 1


class TestDamping:
    @pytest.mark.parametrize(
        ("method", "steps", "rows", "expected"),
        [
            ("obs", 0, 12.0, (0.01, 0.0)),
            ("obs", 0, 11.9, (0.0, 0.15)),
            ("obs", 0, 4.0, (0.0, 0.15)),
            ("obs", 0, 3.9, (0.0, 0.3)),
            ("obs", 0, None, (0.0, 0.15)),
            ("obs", 4, 12.0, (0.01, 0.0)),
            ("obs", 4, 11.9, (0.0, 0.3)),
            ("admm", 0, 11.9, (0.0, 0.3)),
            ("", 4, None, (0.0, 0.3)),
        ],
    )
    def test_by_how_much_data_there_is(self, method, steps, rows, expected):
        """Little data, or a refit that may follow it: more damping."""
        assert damping_for(method, steps, None, rows) == expected
        assert damping_for(method, steps, 0.2, rows) == (0.2, 0.0)


class TestHeldOut:
    def test_it_is_the_error_on_the_last_part_of_weights_fitted_to_the_others(self, model, tmp_path):
        path = moment_file(tmp_path / "moments.safetensors", model=model)
        result = mpfast.prune(model, sparsity=0.5, moments=path)
        seen, fresh = np.split(inputs(), [450])
        for row in result.budget:
            W = weights()[row.name]
            other = reconstruct.prune(W, reconstruct.Factor(moment(seen), 0.01), sparsity=0.5)
            # The sums of the file are in another order: a weight may be chosen otherwise by the last bit, none here.
            assert row.heldout_error == pytest.approx(error(W, other.weights, moment(fresh)), rel=1e-4)
            assert row.error < row.heldout_error

    def test_one_part_has_none(self, model, tmp_path):
        path = moment_file(tmp_path / "moments.safetensors", model=model, parts=1)
        assert mpfast.prune(model, sparsity=0.5, moments=path).budget[0].heldout_error is None


class TestMoments:
    def test_of_another_model(self, model, tmp_path):
        path = moment_file(tmp_path / "moments.safetensors", model=model)
        other = weights(seed=6)
        save_file(other, model)
        with pytest.raises(ValueError, match="moments were collected from another model"):
            mpfast.prune(model, sparsity=0.5, moments=path)

    def test_of_other_weights_in_memory(self, tmp_path):
        """Without files, the hash of the weights that were watched tells."""
        torch = pytest.importorskip("torch")
        from mpfast.integrations.torch import SecondMoments

        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Linear(16, 24), torch.nn.Linear(24, 16))
        with SecondMoments(network) as moments, torch.no_grad():
            network(torch.randn(200, 16))
        moments.save(tmp_path / "moments.safetensors")
        result = mpfast.prune(network, sparsity=0.5, moments=tmp_path / "moments.safetensors")
        assert all(row.updated for row in result.budget)
        save_file({k: v.numpy() for k, v in network.state_dict().items()}, tmp_path / "m.safetensors")
        assert mpfast.prune(tmp_path / "m.safetensors", sparsity=0.5, moments=tmp_path / "moments.safetensors")
        with torch.no_grad():
            network[1].weight[0, 0] += 1
        with pytest.raises(ValueError, match="from another model"):
            mpfast.prune(network, sparsity=0.5, moments=tmp_path / "moments.safetensors")

    @pytest.mark.parametrize("options", [{}, {"include": "0.*"}, {"exclude": "1.*"}])
    def test_every_weight_that_is_pruned_must_be_the_one_that_was_watched(self, options, tmp_path):
        """Whatever else the moments are of, and of moments in memory as of those in a file."""
        torch = pytest.importorskip("torch")
        from mpfast.integrations.torch import SecondMoments

        def network(seed):
            torch.manual_seed(seed)
            return torch.nn.Sequential(torch.nn.Linear(16, 24), torch.nn.Linear(24, 16), torch.nn.Linear(16, 2))

        mine, other = network(0), network(1)
        with SecondMoments(mine) as moments, torch.no_grad():
            mine(torch.randn(400, 16))
        moments.save(tmp_path / "moments.safetensors")
        for given in (moments, tmp_path / "moments.safetensors"):
            assert mpfast.prune(mine, sparsity=0.5, moments=given, **options).budget[0].updated
            with pytest.raises(ValueError, match=r"another model: 0\.weight is not what it was"):
                mpfast.prune(other, sparsity=0.5, moments=given, **options)

    @pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
    def test_weights_that_were_run_in_another_type_are_known_again(self, tmp_path, dtype):
        torch = pytest.importorskip("torch")
        from mpfast.integrations.torch import SecondMoments

        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Linear(16, 24), torch.nn.Linear(24, 16))
        save_file({k: v.numpy() for k, v in network.state_dict().items()}, tmp_path / "m.safetensors")
        network = network.to(getattr(torch, dtype))
        with SecondMoments(network) as moments, torch.no_grad():
            network(torch.randn(400, 16, dtype=getattr(torch, dtype)))
        moments.save(tmp_path / "moments.safetensors")
        result = mpfast.prune(tmp_path / "m.safetensors", sparsity=0.5, moments=tmp_path / "moments.safetensors")
        assert all(row.updated for row in result.budget)

    def test_of_a_model_that_was_trained_after_it_was_loaded(self, tmp_path):
        """They are of what was watched, not of the files that it came from."""
        torch = pytest.importorskip("torch")
        from mpfast.integrations.torch import SecondMoments

        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Linear(16, 24), torch.nn.Linear(24, 16))
        base, tuned, path = (tmp_path / f"{name}.safetensors" for name in ("base", "tuned", "moments"))
        save_file({k: v.numpy() for k, v in network.state_dict().items()}, base)
        with torch.no_grad():
            network[0].weight += 0.01
        save_file({k: v.numpy() for k, v in network.state_dict().items()}, tuned)
        with SecondMoments(network, source=base) as moments, torch.no_grad():
            network(torch.randn(400, 16))
        moments.save(path)
        assert mpfast.prune(tuned, sparsity=0.5, moments=path).budget[0].updated
        with pytest.raises(ValueError, match=r"another model, .*base\.safetensors: 0\.weight is not what it was"):
            mpfast.prune(base, sparsity=0.5, moments=path)

    def test_a_mapping_that_reads_an_array_whenever_it_is_asked(self, model, tmp_path, monkeypatch):
        """The memory of one array may be that of the next: two layers do not share an input for that."""
        monkeypatch.setattr("mpfast.models.layer_moments.id", lambda array: 0, raising=False)

        class Lazy(dict):
            def __getitem__(self, name):
                return super().__getitem__(name).copy()

        C = inputs().T @ inputs() / len(inputs())
        moments = {"a.query": C, "a.key": np.diag(np.arange(1.0, IN + 1))}
        found = mpfast.prune(model, sparsity=0.5, moments=Lazy(moments)).budget
        for row in found:
            alone = mpfast.prune(model, sparsity=0.5, moments={row.name: moments[row.name.removesuffix(".weight")]})
            assert row.error == alone.budget[0].error

    def test_errors_say_of_which_layer(self, model):
        bad = np.eye(IN)
        bad[3, 4] = np.nan
        with pytest.raises(
            ValueError, match=r"moments\['a.key'\] has 1 .* at \(3, 4\).*nan_to_num\(moments\['a.key'\]\)"
        ):
            mpfast.prune(model, sparsity=0.5, moments={"a.key": bad})
        with pytest.raises(ValueError, match=r"the moment of a\.key\.weight is not positive definite"):
            mpfast.prune(model, sparsity=0.5, moments={"a.key": np.ones((IN, IN))}, damping=0)
        for empty in ({"moments": ""}, {"masks": ""}):
            with pytest.raises(ValueError, match="is an empty path"):
                mpfast.prune(model, **({"sparsity": 0.5} if "moments" in empty else {}), **empty)

    @pytest.mark.parametrize("names", [("model.a.query", "model.a.key"), ("query", "key")])
    def test_names_with_or_without_a_prefix(self, model, tmp_path, names):
        path = moment_file(tmp_path / "moments.safetensors", names=names)
        result = mpfast.prune(model, sparsity=0.5, moments=path)
        assert {row.name for row in result.budget} == {"a.query.weight", "a.key.weight"}

    @pytest.mark.parametrize(
        ("moments", "match"),
        [
            ({"a.key": np.eye(OUT)}, "have shape .32, 32. for a.key.weight, which has 48 inputs"),
            ({"elsewhere": np.eye(IN)}, "of no layer of this model: they have 'elsewhere'"),
            ({}, "moments are empty"),
            ({"a.key": np.full((IN, IN), np.nan)}, "non-finite"),
        ],
    )
    def test_that_do_not_fit(self, model, moments, match):
        with pytest.raises(ValueError, match=match):
            mpfast.prune(model, sparsity=0.5, moments=moments)

    def test_of_blocks(self, model, tmp_path):
        x = inputs().reshape(ROWS, -1, 4).transpose(1, 2, 0)
        found = InputSum(["a.key"], [ROWS], [x @ x.transpose(0, 2, 1)], 1)
        write_moments(tmp_path / "m.safetensors", [found], {"block": 4}, {})
        with pytest.raises(ValueError, match="moments are blocks of 4"):
            mpfast.prune(model, sparsity=0.5, moments=tmp_path / "m.safetensors")

    def test_few_are_warned_of(self, model, tmp_path):
        found = InputSum(["a.key"], [100], [inputs(rows=100).T @ inputs(rows=100)], 1)
        write_moments(tmp_path / "m.safetensors", [found], {"block": None}, {})
        with pytest.warns(UserWarning, match="fewer than 4 inputs per dimension"):
            mpfast.prune(model, sparsity=0.5, moments=tmp_path / "m.safetensors")

    @pytest.mark.parametrize(
        ("options", "match"),
        [
            ({"method": "obs"}, "method obs needs moments"),
            ({"refit": 3}, "refit goes with moments"),
            ({"damping": 0.1}, "damping goes with moments"),
            ({"moments": {"b": np.eye(OUT)}, "refit": -1}, "refit must be an integer of at least 0"),
            ({"moments": {"b": np.eye(OUT)}, "damping": -1.0}, "damping must be a number"),
        ],
    )
    def test_options_that_do_not_go_together(self, model, options, match):
        with pytest.raises(ValueError, match=match):
            mpfast.prune(model, sparsity=0.5, **options)

    def test_a_weight_that_is_no_number(self):
        given = weights()
        given["b.weight"][3, 4] = np.inf
        with pytest.raises(ValueError, match=r"b.weight has 1 non-finite entry .* at \(3, 4\)"):
            mpfast.prune(given, sparsity=0.5, moments={"b": np.eye(OUT)})


class TestGivenMasks:
    def masks(self):
        rng = np.random.default_rng(8)
        return {"a.key.weight": rng.random((OUT, IN)) < 0.4, "b.weight": rng.random((40, OUT)) < 0.7}

    def test_a_mapping_becomes_a_verified_checkpoint(self, model, tmp_path):
        result = mpfast.prune(model, tmp_path / "out", masks=self.masks())
        written = load_file(tmp_path / "out" / "model.safetensors")
        dropped = 0
        for name, tensor in weights().items():
            keep = self.masks().get(name, np.ones(tensor.shape, bool))
            np.testing.assert_array_equal(written[name], tensor * keep)
            dropped += int((~keep).sum())
        assert result.budget.pruned == dropped
        assert result.budget.sparsity == pytest.approx(dropped / (OUT * IN + 40 * OUT), rel=1e-15)
        assert result.budget.method == "given masks"
        assert {t.name: t.reason for t in result.skipped}["a.query.weight"] == "has no mask"
        assert Budget.from_json(tmp_path / "out" / "budget.json") == result.budget
        assert mpfast.verify(tmp_path / "out").ok

    def test_a_file_does_the_same(self, model, tmp_path):
        mpfast.prune(model, tmp_path / "one", masks=self.masks())
        mpfast.prune(model, tmp_path / "two", masks=tmp_path / "one" / "masks.safetensors")
        for name in ("model.safetensors", "masks.safetensors"):
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()

    def test_with_moments_the_kept_weights_are_refitted(self, model, tmp_path):
        C = moment(inputs())
        result = mpfast.prune(model, tmp_path / "out", masks=self.masks(), moments={"a.key": C})
        fit = reconstruct.refit(
            weights()["a.key.weight"],
            reconstruct.Factor(C, 0.0, diagonal=0.3),
            self.masks()["a.key.weight"],
            steps=4,
        )
        np.testing.assert_array_equal(load_file(tmp_path / "out/model.safetensors")["a.key.weight"], fit.weights)
        key, other = result.budget
        assert (key.updated, other.updated, other.reason) == (True, False, "the moments hold none of its inputs")
        assert mpfast.verify(tmp_path / "out").ok

    @pytest.mark.parametrize(
        ("masks", "match"),
        [
            ({"c.weight": np.ones((8, 8), bool)}, "masks name 'c.weight', which is no layer"),
            ({"b.weight": np.ones((8, 8), bool)}, "the mask of b.weight must be boolean of shape"),
            ({"b.weight": np.ones((40, OUT))}, "the mask of b.weight must be boolean"),
            ({"b.bias": np.ones(40, bool)}, "masks name 'b.bias', vector"),
        ],
    )
    def test_that_do_not_fit(self, model, masks, match):
        with pytest.raises(ValueError, match=match):
            mpfast.prune(model, masks=masks)

    def test_a_file_of_something_else(self, model):
        with pytest.raises(CheckpointError, match="is no mask file"):
            mpfast.prune(model, masks=model)

    def test_what_is_read_is_not_written_over(self, model, tmp_path):
        mpfast.prune(model, tmp_path / "out", masks=self.masks())
        before = (tmp_path / "out" / "masks.safetensors").read_bytes()
        with pytest.raises(FileExistsError):
            mpfast.prune(model, tmp_path / "out", masks=tmp_path / "out" / "masks.safetensors", overwrite=True)
        assert (tmp_path / "out" / "masks.safetensors").read_bytes() == before

    def test_not_beside_a_sparsity_or_a_method(self, model):
        with pytest.raises(ValueError, match="pass one of sparsity, pattern, budget and masks"):
            mpfast.prune(model, sparsity=0.5, masks=self.masks())
        with pytest.raises(ValueError, match="method chooses masks, which are given"):
            mpfast.prune(model, method="magnitude", masks=self.masks())


class TestVerify:
    @pytest.fixture
    def out(self, model, tmp_path):
        mpfast.prune(model, tmp_path / "out", pattern="2:4", moments={"a.key": moment(inputs())})
        return tmp_path / "out"

    def test_without_the_source_nothing_of_an_updated_tensor_is_unknown(self, out, model):
        model.unlink()
        found = mpfast.verify(out)
        assert found.ok
        assert not any("masks keep" in text for text in found.not_compared)

    @pytest.mark.parametrize("kept", [True, False])
    def test_a_changed_weight_is_found(self, out, kept):
        tensors, mask = load_file(out / "model.safetensors"), MaskFile(out / "masks.safetensors")["a.key.weight"]
        place = tuple(np.argwhere(mask == kept)[7])
        tensors["a.key.weight"][place] += 1
        save_file(tensors, out / "model.safetensors")
        problems = mpfast.verify(out).problems
        assert "a.key.weight: the content hash is not that of what was written" in problems
        assert ("a.key.weight: 1 masked entries are not zero" in problems) is not kept

    def test_another_source_is_found(self, out, model):
        other = weights()
        other["a.key.weight"][0, 0] += 1
        save_file(other, model)
        assert mpfast.verify(out).problems == (
            "a.key.weight: the source is not the one that was pruned: its content hash differs",
        )

    def test_a_tensor_that_was_not_pruned_is_compared(self, out):
        tensors = load_file(out / "model.safetensors")
        tensors["b.weight"][0, 0] += 1
        save_file(tensors, out / "model.safetensors")
        assert mpfast.verify(out).problems == ("b.weight: is not pruned, but differs from the source",)


@pytest.mark.slow
def test_the_command(model, tmp_path):
    pytest.importorskip("typer")
    jsonschema = pytest.importorskip("jsonschema")
    path = moment_file(tmp_path / "moments.safetensors", model=model)
    out, document = tmp_path / "out", tmp_path / "prune.json"
    command = ["-m", "mpfast", "prune", str(model), "-o", str(out), "--sparsity", "0.6", "--moments", str(path)]
    run = run_python(*command)
    assert (run.returncode, run.stderr) == (0, "")
    assert "held out" in run.stdout.splitlines()[0]
    assert "the kept weights of 2 layers refitted" in run.stdout
    assert "b.weight: no second moment: the moments hold none of its inputs" in run.stdout
    assert run_python("-m", "mpfast", "verify", str(out)).returncode == 0
    again = ["--masks", str(out / "masks.safetensors"), "--json", str(document)]
    run = run_python("-m", "mpfast", "prune", str(model), "-o", str(tmp_path / "two"), *again)
    assert (run.returncode, run.stderr) == (0, "")
    for name, found in (("prune", document), ("budget", out / "budget.json")):
        schema = json.loads((files("mpfast.models") / "schemas" / f"{name}.json").read_text())
        jsonschema.validate(json.loads(found.read_text()), schema)
    run = run_python("-m", "mpfast", "prune", str(model), "--dry-run", "--sparsity", "0.5", "--refit", "3")
    assert run.returncode == 2


def test_the_source_is_open_checkpoint(model):
    """Moments are found whatever the model is given as."""
    C = moment(inputs())
    given = [mpfast.prune(m, sparsity=0.5, moments={"a.key": C}).budget[0] for m in (model, open_checkpoint(model))]
    assert given[0] == given[1]


class TestParts:
    """Experts of a stack, and projections that are fused, are matrices with inputs of their own."""

    STACK = "model.layers.0.mlp.experts.down_proj"

    def network(self):
        """A mixture whose stack has the shape (4, 32, 16)."""
        pytest.importorskip("torch")
        from .test_torch_whole_models import tiny

        return tiny("moe", num_hidden_layers=1)

    def moments(self, experts=range(4)):
        return {f"{self.STACK}[{e}]": moment(inputs(seed=e, width=16)) for e in experts}

    @pytest.mark.parametrize("asked", [{"sparsity": 0.55}, {"pattern": "2:4"}])
    def test_each_expert_is_fitted_to_its_inputs(self, asked):
        network, moments = self.network(), self.moments()
        stack = network.get_parameter(self.STACK).detach().numpy()
        result = mpfast.prune(network, moments=moments, **asked)
        (row,) = result.budget
        assert row.pruned == (1126 if "sparsity" in asked else 1024)  # floor of 1126.4
        new, keep = result.weights[self.STACK].numpy(), result.masks[self.STACK].numpy()
        assert np.count_nonzero(~keep) == row.pruned
        total = change = 0
        for e, (W, C) in enumerate(zip(stack, moments.values(), strict=True)):
            share = asked if "pattern" in asked else {"sparsity": (W.size - keep[e].sum() + 0.5) / W.size}
            fit = reconstruct.prune(W, reconstruct.Factor(C, 0.0, diagonal=0.3), **share)
            np.testing.assert_array_equal(new[e], fit.weights)
            np.testing.assert_array_equal(keep[e], fit.mask)
            square = np.trace(np.float64(W) @ C @ np.float64(W).T)
            total, change = total + square, change + square * error(W, fit.weights, C)
        assert row.error == pytest.approx(change / total, rel=1e-9)

    def test_the_error_of_a_stack_does_not_know_the_scale(self):
        """Inputs of its experts may be of different sizes, and all of any: each counts by what its outputs are."""
        network, moments = self.network(), self.moments()
        apart = {name: 1000.0**e * C for e, (name, C) in enumerate(moments.items())}
        plain = mpfast.prune(network, sparsity=0.5, moments=apart)
        stack, new = network.get_parameter(self.STACK).detach().double(), plain.weights[self.STACK].double()
        total, change = (
            sum(np.trace(V[e] @ C @ V[e].T) for e, C in enumerate(apart.values()))
            for V in (stack.numpy(), (stack - new).numpy())
        )
        assert plain.budget[0].error == pytest.approx(change / total, rel=1e-9)
        for exponent in (-1000, 950):
            scaled = {name: 2.0**exponent * C for name, C in apart.items()}
            row = mpfast.prune(network, sparsity=0.5, moments=scaled).budget[0]
            assert row.error == pytest.approx(plain.budget[0].error, rel=1e-9)
            assert row.masked_error == pytest.approx(plain.budget[0].masked_error, rel=1e-9)

    def test_errors_say_of_which_expert(self):
        moments = self.moments()
        moments[f"{self.STACK}[2]"] = np.ones((16, 16))
        with pytest.raises(ValueError, match=r"the moment of model.*down_proj\[2\] is not positive definite"):
            mpfast.prune(self.network(), sparsity=0.5, moments=moments, damping=0)

    def test_inputs_of_a_stack_may_be_its_rows(self):
        """A stack that is stored as (experts, in, out), as GPT-OSS and Llama 4 have them."""
        torch = pytest.importorskip("torch")
        transformers = pytest.importorskip("transformers")
        from mpfast.checkpoints import roles_of

        config = transformers.GptOssConfig(
            vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, num_local_experts=3, num_experts_per_tok=2,
        )  # fmt: skip
        torch.manual_seed(0)
        network = transformers.GptOssForCausalLM(config).eval()
        name = "model.layers.0.mlp.experts.down_proj"
        assert roles_of(open_checkpoint(network))[name].input_axes == (1,)
        stack = network.get_parameter(name).detach().numpy()
        moments = {f"{name}[{e}]": moment(inputs(seed=e, width=stack.shape[1])) for e in range(3)}
        result = mpfast.prune(network, sparsity=0.5, moments=moments, include=name)
        for e in range(3):
            fit = reconstruct.prune(
                stack[e].T, reconstruct.Factor(moments[f"{name}[{e}]"], 0.0, diagonal=0.3), sparsity=0.5
            )
            np.testing.assert_array_equal(result.weights[name][e].numpy().T, fit.weights)

    def test_an_expert_that_has_seen_nothing_borrows_from_the_others(self):
        network, moments = self.network(), self.moments((0, 2, 3))
        result = mpfast.prune(network, sparsity=0.5, moments=moments)
        factor = reconstruct.Factor(sum(moments.values()) / 3, 0.0, diagonal=0.3)
        fit = reconstruct.prune(network.get_parameter(self.STACK)[1].detach(), factor, sparsity=0.5)
        np.testing.assert_array_equal(result.weights[self.STACK][1].numpy(), fit.weights.numpy())

    def test_own_masks_of_a_stack(self):
        keep = np.random.default_rng(1).random((4, 32, 16)) < 0.5
        result = mpfast.prune(self.network(), masks={self.STACK: keep}, moments=self.moments())
        np.testing.assert_array_equal(result.weights[self.STACK].numpy() != 0, keep)
        assert result.budget[0].error < result.budget[0].masked_error

    def test_a_mixture_of_transformers(self, tmp_path):
        torch = pytest.importorskip("torch")
        pytest.importorskip("transformers")
        from mpfast.integrations.torch import SecondMoments

        from .test_torch_whole_models import batches, tiny

        network = tiny("moe")
        implementation = network.get_experts_implementation()
        seen = {}
        with torch.no_grad(), SecondMoments(network, include="*.experts") as moments:
            for batch in batches("moe"):
                network(**batch)
        assert network.get_experts_implementation() == implementation
        stacks = ("gate_up_proj", "down_proj")
        names = [f"model.layers.{block}.mlp.experts.{stack}" for block in range(2) for stack in stacks]
        for name in names:
            # Each token goes to two experts of four.
            seen[name] = sum(moments.rows[f"{name}[{e}]"] for e in range(4))
            assert seen[name] == 2 * 4 * 8 * 24
        moments.save(tmp_path / "moments.safetensors")
        result = mpfast.prune(network, sparsity=0.5, moments=tmp_path / "moments.safetensors")
        assert [row.name for row in result.budget] == names
        for row in result.budget:
            assert row.pruned == row.size // 2
            assert row.error < row.masked_error
            assert row.error < row.heldout_error < 1
        with pytest.raises(ValueError, match="from another model"):
            mpfast.prune(tiny("moe", initializer_range=0.1), sparsity=0.5, moments=tmp_path / "moments.safetensors")
        with torch.no_grad():
            network.get_parameter(names[1])[2, 0, 0] += 1
        with pytest.raises(ValueError, match=r"another model: model.*down_proj\[2\] is not what it was"):
            mpfast.prune(network, sparsity=0.5, moments=tmp_path / "moments.safetensors")
        assert mpfast.prune(network, sparsity=0.5, moments=moments).budget[0].updated  # of the model as it is now

    @pytest.mark.parametrize("kind", MIXTURES)
    def test_experts_that_files_hold_one_by_one(self, kind, tmp_path):
        """transformers stacks them when it loads them: the moments are of the stacks, and fit the files as well."""
        torch = pytest.importorskip("torch")
        transformers = pytest.importorskip("transformers")
        from mpfast.integrations.torch import SecondMoments

        torch.manual_seed(0)
        shape = {
            "vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "moe_intermediate_size": 24,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "eos_token_id": None,
        }  # fmt: skip
        config = getattr(transformers, f"{kind}Config")(**{**shape, **MIXTURES[kind]})
        class_ = getattr(transformers, f"{kind}ForCausalLM")
        class_(config).to(torch.bfloat16).save_pretrained(tmp_path / "model")
        network = class_.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
        tokens = torch.randint(0, 64, (4, 8, 24), generator=torch.Generator().manual_seed(1))
        with torch.no_grad(), SecondMoments(network, include="*.experts") as moments:
            for batch in tokens:
                network(batch)
        moments.save(tmp_path / "moments.safetensors")
        result = mpfast.prune(
            tmp_path / "model", tmp_path / "out", pattern="2:4", moments=tmp_path / "moments.safetensors"
        )
        experts = [row for row in result.budget if ".experts." in row.name]
        assert len(experts) == 2 * 4 * 3  # blocks, experts, projections
        assert all(row.updated and row.error < row.masked_error for row in experts)
        assert mpfast.verify(tmp_path / "out").ok
        # Each row of a matrix is fitted for itself: the files have the bits of the stacks.
        live = mpfast.prune(network.to(torch.bfloat16), pattern="2:4", moments=tmp_path / "moments.safetensors")
        loaded = class_.from_pretrained(tmp_path / "out", dtype=torch.bfloat16).state_dict()
        assert live.weights
        for name, weights in live.weights.items():
            assert torch.equal(loaded[name], weights), name

    def test_moments_of_other_experts_are_refused(self, tmp_path):
        """A change in either of two matrices that were watched as one is seen at the first of them."""
        rng = np.random.default_rng(0)
        names = [f"mlp.experts.{e}.{p}.weight" for e in range(2) for p in ("gate_proj", "up_proj", "down_proj")]
        model = {name: rng.standard_normal((24, 16) if "down" not in name else (16, 24)) for name in names}
        expert = "mlp.experts.gate_up_proj[0]"
        joined = np.concatenate([model[name] for name in names[:2]])
        part = InputSum([expert], [90], [90 * moment(inputs(width=16))])
        watched = {expert: ["float64", content_hash(joined)]}
        path = tmp_path / "moments.safetensors"
        write_moments(path, [part], {}, {"source": None, "watched": watched})
        result = mpfast.prune(model, sparsity=0.5, moments=path)
        # The second expert has seen nothing, and borrows from its stack; of the other stack nothing is known.
        assert {row.name for row in result.budget if row.updated} == {n for n in names if "down" not in n}
        for changed in names[:2]:
            other = {**model, changed: model[changed] + 1}
            with pytest.raises(
                ValueError, match=r"another model: mlp\.experts\.0\.gate_proj\.weight is not what it was"
            ):
                mpfast.prune(other, sparsity=0.5, moments=path)

    def test_a_fused_projection_of_one_input_is_a_matrix_like_others(self, tmp_path):
        torch = pytest.importorskip("torch")
        from mpfast.integrations.torch import SecondMoments

        torch.manual_seed(0)
        layer = torch.nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval()
        x = torch.randn(8, 40, 16)
        with torch.no_grad(), SecondMoments(layer) as moments:
            layer(x)
        name = "self_attn.in_proj_weight"
        assert moments.shared == {f"{name}[key]": f"{name}[query]", f"{name}[value]": f"{name}[query]"}
        moments.save(tmp_path / "moments.safetensors")
        C = moment(x.reshape(-1, 16).double().numpy())
        result = mpfast.prune(layer, sparsity=0.5, moments=tmp_path / "moments.safetensors", include=name)
        W = layer.self_attn.in_proj_weight.detach().numpy()
        fit = reconstruct.prune(W, reconstruct.Factor(C, 0.01), sparsity=0.5)
        assert result.budget[0].error == pytest.approx(fit.error, rel=1e-3)
        (row,) = mpfast.models.ranks(layer, moments, include=name)
        assert row.outputs
        with torch.no_grad():
            layer.self_attn.in_proj_weight[20] *= 2
        with pytest.raises(ValueError, match=r"self_attn.in_proj_weight\[key\] is not what it was"):
            mpfast.prune(layer, sparsity=0.5, moments=tmp_path / "moments.safetensors", include=name)

    def test_projections_of_different_inputs_are_fitted_apart(self):
        torch = pytest.importorskip("torch")
        from mpfast.integrations.torch import SecondMoments

        torch.manual_seed(0)
        attention = torch.nn.MultiheadAttention(16, 4)
        queries, others = torch.randn(40, 8, 16), torch.randn(30, 8, 16) * torch.arange(1, 17)
        with torch.no_grad(), SecondMoments(attention) as moments:
            attention(queries, key=others, value=others)
        assert moments.shared == {"in_proj_weight[value]": "in_proj_weight[key]"}
        assert moments.rows == {"in_proj_weight[query]": 320, "in_proj_weight[key]": 240, "in_proj_weight[value]": 240}
        result = mpfast.prune(attention, sparsity=0.5, moments=moments)
        W = attention.in_proj_weight.detach().numpy()
        new = np.asarray(result.weights["in_proj_weight"])
        for label, rows in {"query": slice(0, 16), "key": slice(16, 32), "value": slice(32, 48)}.items():
            factor = reconstruct.Factor(moments[f"in_proj_weight[{label}]"], 0.01)
            fit = reconstruct.prune(W[rows], factor, sparsity=0.5)
            np.testing.assert_array_equal(new[rows], np.asarray(fit.weights))
        (row,) = mpfast.models.ranks(attention, moments, include="in_proj*") or [None]
        assert row.outputs == ()
        assert "inputs of their own" in row.reason
