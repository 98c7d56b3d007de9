"""Checkpoints pruned by masks that are given."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mpfast
from mpfast import CheckpointError, reconstruct
from mpfast.models.budget import Budget

from .moment_files import IN, OUT, inputs, moment, weights


@pytest.fixture
def model(tmp_path):
    save_file(weights(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


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
