"""Checkpoints pruned with second moments: kept weights refitted, noted, and verified."""

from __future__ import annotations

import json
from importlib.resources import files

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mpfast
from mpfast import reconstruct
from mpfast.arrays.bfloat16 import narrowed, widened
from mpfast.checkpoints import MaskFile, content_hash, open_checkpoint
from mpfast.models import damping_for

from .moment_files import OUT, error, inputs, moment, moment_file, weights
from .references import run_python


@pytest.fixture
def model(tmp_path):
    save_file(weights(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


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
