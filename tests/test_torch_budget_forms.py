"""A budget of a mixture's files fits the loaded mixture, whose experts are stacked, and the other way round."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import mpfast
from mpfast.checkpoints import other_names

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SIZES = {"vocab_size": 48, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
SIZES |= {"num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 24, "bos_token_id": 1, "eos_token_id": 2}
MIXTURE = {"moe_intermediate_size": 24, "num_experts": 9, "num_local_experts": 9, "n_routed_experts": 9}
MIXTURE |= {"num_experts_per_tok": 2, "first_k_dense_replace": 0, "n_group": 1, "topk_group": 1}
KINDS = ["Qwen3Moe", "Mixtral", "Phimoe", "GraniteMoe", "DeepseekV3", "Olmoe", "GptOss"]


@pytest.fixture(params=KINDS)
def mixture(request, tmp_path):
    """A class, a directory of its files and the model loaded from there; bfloat16 has many equal magnitudes."""
    class_ = getattr(transformers, f"{request.param}ForCausalLM")
    torch.manual_seed(0)
    model = class_(class_.config_class(**SIZES, **MIXTURE)).to(torch.bfloat16)
    with torch.no_grad():
        for at, parameter in enumerate(model.parameters()):  # so that a global cut takes more of one than of another
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(at)) * (1 + at % 5))
    model.save_pretrained(tmp_path / "files")
    return class_, tmp_path / "files", class_.from_pretrained(tmp_path / "files", dtype=torch.bfloat16).eval()


def zeros_of_files(class_, files, out, budget):
    """Where the weights of pruned files are zero once transformers has loaded them."""
    result = mpfast.prune(files, out, budget=budget)
    assert result.budget.pruned == budget.pruned
    assert mpfast.verify(out).ok
    return {name: (value == 0).numpy() for name, value in class_.from_pretrained(out).state_dict().items()}


@pytest.mark.parametrize("method", ["magnitude", "row"])
@pytest.mark.parametrize("of_files", [True, False])
def test_the_same_entries_go_whatever_form_a_budget_and_a_model_have(method, of_files, mixture, tmp_path):
    class_, files, model = mixture
    budget = mpfast.analyze(files if of_files else model).budget(0.5, method=method)
    assert len({row.sparsity for row in budget}) > (method == "magnitude")
    loaded = zeros_of_files(class_, files, tmp_path / "out", budget)
    live = mpfast.prune(model, budget=budget)
    assert live.budget.pruned == budget.pruned
    assert live.masks
    for name, mask in live.masks.items():
        np.testing.assert_array_equal(~mask.numpy(), loaded[name], err_msg=name)
    assert sum(zeros.sum() for name, zeros in loaded.items() if name in live.masks) == budget.pruned


@pytest.mark.parametrize("of_files", [True, False])
def test_masks_of_one_form_are_those_of_the_other(of_files, mixture, tmp_path):
    """A file that `prune` wrote beside files, for the loaded model; or what it returned of that, for the files."""
    class_, files, model = mixture
    if of_files:
        first = mpfast.prune(files, tmp_path / "first", sparsity=0.5, method="magnitude")
        masks = mpfast.prune(model, masks=tmp_path / "first" / "masks.safetensors").masks
        zeros = {
            name: (value == 0).numpy()
            for name, value in class_.from_pretrained(tmp_path / "first").state_dict().items()
        }
    else:
        first = mpfast.prune(model, sparsity=0.5, method="magnitude")
        masks = first.masks
        result = mpfast.prune(files, tmp_path / "second", masks=masks)
        assert result.budget.pruned == first.budget.pruned
        assert mpfast.verify(tmp_path / "second").ok
        zeros = {
            name: (value == 0).numpy()
            for name, value in class_.from_pretrained(tmp_path / "second").state_dict().items()
        }
    assert sum(int((~mask).sum()) for mask in masks.values()) == first.budget.pruned
    for name, mask in masks.items():
        np.testing.assert_array_equal(~mask.numpy(), zeros[name], err_msg=name)


def is_router(name):
    return name.split(".")[-2] in ("gate", "router", "layer")


@pytest.mark.parametrize("of_files", [True, False])
def test_patterns(of_files, mixture, tmp_path):
    class_, files, model = mixture
    # What a router does with its weight, its class does not say.
    budget = mpfast.prune(files if of_files else model, pattern="2:4", exclude=is_router).budget
    loaded = zeros_of_files(class_, files, tmp_path / "out", budget)
    live = mpfast.prune(model, budget=budget)
    for name, mask in live.masks.items():
        np.testing.assert_array_equal(~mask.numpy(), loaded[name], err_msg=name)


@pytest.mark.parametrize("mixture", ["Mixtral"], indirect=True)
class TestMasksThatDoNotFit:
    STACK = "model.layers.0.mlp.experts.down_proj"

    def test_experts_without_one_stay_dense(self, mixture):
        _, files, model = mixture
        masks = mpfast.prune(files, sparsity=0.5, exclude="*.experts.3.*", method="magnitude")
        kept = {row.file_name: row for row in masks.budget}
        assert not any(".experts.3." in name for name in kept)
        of_files = {
            name: np.zeros(row.shape, bool) for name, row in kept.items() if "layers.0" in name and ".w2." in name
        }
        found = mpfast.prune(model, masks=of_files).masks[self.STACK].numpy()
        assert found[3].all()
        assert not np.delete(found, 3, axis=0).any()

    def test_what_is_refused(self, mixture):
        _, files, model = mixture
        of_stack = np.ones((9, 32, 24), bool)
        expert = "model.layers.0.block_sparse_moe.experts.{}.w2.weight"
        with pytest.raises(ValueError, match=r"the masks' .*w2.weight is in .*down_proj, but the shapes"):
            mpfast.prune(model, masks={expert.format(0): np.ones((24, 32), bool)})
        with pytest.raises(ValueError, match=r"has no expert 9"):
            mpfast.prune(model, masks={expert.format(9): np.ones((32, 24), bool)})
        with pytest.raises(ValueError, match=r"must be boolean of shape \(9, 32, 24\), not int64"):
            mpfast.prune(files, masks={self.STACK: of_stack.astype(int)})
        with pytest.raises(ValueError, match=r"the masks' .*down_proj has 6,912 entries, its experts here 6,144"):
            mpfast.prune(files, masks={self.STACK: of_stack}, exclude="*.experts.3.*")


@pytest.mark.parametrize("mixture", ["Mixtral"], indirect=True)
class TestWhatDoesNotFit:
    def test_experts_that_are_left_out_stay_dense(self, mixture):
        _, files, model = mixture
        budget = mpfast.analyze(files).budget(0.5, method="uniform", exclude="*.experts.3.*")
        masks = mpfast.prune(model, budget=budget).masks
        for name in ("gate_up_proj", "down_proj"):
            mask = masks[f"model.layers.0.mlp.experts.{name}"]
            assert mask[3].all()
            assert not mask[2].all()

    def test_a_pattern_for_some_experts_of_a_stack_is_refused(self, mixture):
        _, files, model = mixture
        budget = mpfast.prune(files, pattern="2:4", exclude="*.experts.3.*").budget
        with pytest.raises(ValueError, match=r"a pattern for some of the matrices in model\.layers\.0\.mlp\.experts"):
            mpfast.prune(model, budget=budget)

    def test_a_stack_of_which_experts_are_missing_is_named(self, mixture):
        _, files, model = mixture
        budget = mpfast.analyze(model).budget(0.5, method="uniform")
        with pytest.raises(ValueError, match=r"layers\.0\.mlp\.experts\.gate_up_proj has 13,824 entries, its experts"):
            mpfast.prune(files, budget=budget, exclude="*.experts.3.*")

    @pytest.mark.parametrize("of_files", [True, False])
    def test_shapes_are_compared(self, of_files, mixture):
        _, files, model = mixture
        made_for, other = (files, model) if of_files else (model, files)
        budget = mpfast.analyze(made_for).budget(0.5, method="uniform")
        rows = [
            replace(row, shape=(*row.shape[:-1], row.shape[-1] + 4)) if ".experts." in row.name else row
            for row in budget
        ]
        with pytest.raises(ValueError, match=r"is in .*, but the shapes \("):
            mpfast.prune(other, budget=replace(budget, layers=tuple(rows)))

    def test_a_row_of_no_layer_is_named_as_before(self, mixture):
        _, files, model = mixture
        budget = mpfast.analyze(files).budget(0.5, method="uniform")
        row = replace(budget[0], name="model.layers.0.mlp.experts.77.w1.weight", shape=(24, 32))
        with pytest.raises(ValueError, match=r"whose shape \(9, 48, 32\) has no expert 77"):
            mpfast.prune(model, budget=replace(budget, layers=(*budget, row)))
        row = replace(budget[0], name="another.weight")
        with pytest.raises(ValueError, match=r"names 'another\.weight', which is no layer of this checkpoint"):
            mpfast.prune(model, budget=replace(budget, layers=(*budget, row)))


@pytest.mark.parametrize("mixture", ["Qwen3Moe"], indirect=True)
def test_with_moments_the_experts_keep_their_own_counts(mixture):
    """A loaded mixture that is refitted loses of each expert what the budget of its files says."""
    _, files, model = mixture
    budget = mpfast.analyze(files, include="*.experts.*").budget(0.5, method="magnitude")
    rng = np.random.default_rng(0)
    moments = {}
    for block in range(2):
        for stack, width in (("gate_up_proj", 32), ("down_proj", 24)):
            for expert in range(9):
                inputs = rng.standard_normal((400, width))
                moments[f"model.layers.{block}.mlp.experts.{stack}[{expert}]"] = inputs.T @ inputs / 400
    result = mpfast.prune(model, budget=budget, moments=moments)
    assert result.budget.pruned == budget.pruned
    wanted = {row.name: row.pruned for row in budget}
    for expert in range(9):
        prefix = f"model.layers.1.mlp.experts.{expert}"
        mask = result.masks["model.layers.1.mlp.experts.gate_up_proj"][expert]
        both = sum(wanted[f"{prefix}.{name}.weight"] for name in ("gate_proj", "up_proj"))
        assert int((~mask).sum()) == both


def test_names_map_there_and_back():
    for name in ("l.0.block_sparse_moe.gate.weight", "l.0.block_sparse_moe.output_linear.weight", "l.0.mlp.up.weight"):
        assert all(name in other_names(other) for other in other_names(name))
