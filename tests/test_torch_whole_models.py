"""Models of transformers compressed block by block: each layer fitted to what it gets."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import mpfast  # noqa: E402
from mpfast import reconstruct  # noqa: E402
from mpfast.checkpoints import open_checkpoint  # noqa: E402
from mpfast.integrations.torch import SecondMoments, reconstruct_model  # noqa: E402

from .whole_models import MODELS, batches, tiny  # noqa: E402

# Tensors, and matrices in the blocks: four of attention and those of the multi-layer perceptrons.
COUNTS = {
    "bert": (12, 12),
    "llama": (14, 14),
    "gpt2": (8, 8),
    "moe": (2 * (4 + 3 + 2), 2 * (4 + 3 + 8)),
    "vit": (12, 12),
}


@torch.no_grad()
def outputs(model, given):
    return torch.cat([model(**batch).logits.double() for batch in given])


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("asked", [{"sparsity": 0.5}, {"pattern": "2:4"}])
def test_every_architecture(kind, asked):
    """Half of each matrix in the blocks is zero, the rest is refitted; all else, and the given model, stays."""
    model = tiny(kind)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = reconstruct_model(model, batches(kind), **asked)
    assert (len(result.masks), len(result.report)) == COUNTS[kind]
    for name, tensor in result.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], before[name])
        if name not in result.masks:
            assert torch.equal(tensor, before[name])
            continue
        mask = result.masks[name]
        assert mask.shape == tensor.shape
        assert not tensor[~mask].any()
        assert int((~mask).sum()) * 2 == mask.numel()
    for row in result.report:
        assert row.error < row.masked_error
        assert row.pruned * 2 == np.prod(row.shape)
        # Held-out inputs are of the same random kind: a fit to a few hundred rows is not much better on its own.
        assert row.error / 2 < row.heldout_error < 2 * row.masked_error + 1e-3


@pytest.mark.parametrize("kind", MODELS)
def test_the_whole_model_changes_less_than_by_its_masks_alone(kind):
    model, given = tiny(kind), batches(kind)
    result = reconstruct_model(model, given, sparsity=0.5)
    masked = tiny(kind)
    with torch.no_grad():
        for name, mask in result.masks.items():
            masked.get_parameter(name).mul_(mask)
    dense = outputs(model, given)
    assert (outputs(result.model, given) - dense).norm() < (outputs(masked, given) - dense).norm()


def inputs_of(model, name, given):
    """The inputs of a linear layer that are no padding, as rows."""
    seen = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda _, x: seen.append(x[0].double()))
    with torch.no_grad():
        for batch in given:
            model(**batch)
    hook.remove()
    rows = []
    for x, batch in zip(seen, given, strict=True):
        valid = batch["attention_mask"].bool()
        rows.append(x[valid] if x.dim() == 3 else x[valid.reshape(-1)])
    return torch.cat(rows).numpy()


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("toward", ["dense", "own"])
def test_errors_are_those_of_the_layers_outputs(kind, toward):
    """Of a layer of the second block: its inputs are run through the models as they are, without any second moment.

    Within a block all inputs are those of the block as it was, so that the first of its layers has, in the compressed
    model, the inputs that it was fitted to.
    """
    name = {
        "bert": "bert.encoder.layer.1.attention.self.key",
        "llama": "model.layers.1.self_attn.k_proj",
        "gpt2": "transformer.h.1.attn.c_attn",
    }[kind]
    model, given = tiny(kind), batches(kind)
    result = reconstruct_model(model, given, sparsity=0.5, toward=toward)
    row = next(row for row in result.report if row.name == f"{name}.weight")
    for error, part in ((row.error, given[:3]), (row.heldout_error, given[3:])):  # a quarter is kept back
        x, y = inputs_of(model, name, part), inputs_of(result.model, name, part)
        W, V = (m.get_parameter(f"{name}.weight").double().detach().numpy() for m in (model, result.model))
        W, V = (W, V) if kind == "gpt2" else (W.T, V.T)
        wanted = x @ W if toward == "dense" else y @ W
        # Inputs in single precision, in both; sums in another order.
        assert error == pytest.approx(np.sum((wanted - y @ V) ** 2) / np.sum(wanted**2), rel=1e-3)
    assert row.rows == sum(int(batch["attention_mask"].sum()) for batch in given[:3])


def test_one_shot_is_what_moments_of_the_dense_model_give():
    model, given = tiny("llama"), batches("llama", padded=False)
    result = reconstruct_model(model, given, pattern="2:4", sequential=False, heldout=0)
    with SecondMoments(model, include="model.layers.*") as moments, torch.no_grad():
        for batch in given:
            model(**batch)
    for name in moments:
        W = model.get_parameter(f"{name}.weight").detach().numpy()
        fit = reconstruct.prune(W, reconstruct.Factor(moments[name], 0.01), pattern="2:4")
        found = result.model.get_parameter(f"{name}.weight").detach().numpy()
        same = (found != 0) == fit.mask
        assert same.mean() > 0.999  # a tie within rounding may fall otherwise
        np.testing.assert_allclose(found[same.all(axis=1)], fit.weights[same.all(axis=1)], rtol=0, atol=1e-4)
    assert all(row.heldout_error is None for row in result.report)


def test_padding_is_not_counted():
    """What stands in padded places changes nothing."""
    first, second = batches("bert"), batches("bert")
    for batch in second:
        batch["input_ids"] = torch.where(batch["attention_mask"].bool(), batch["input_ids"], 7)
    results = [reconstruct_model(tiny("bert"), given, sparsity=0.5) for given in (first, second)]
    for name, mask in results[0].masks.items():
        assert torch.equal(mask, results[1].masks[name])


def test_experts_are_fitted_to_the_tokens_that_they_get():
    model, given = tiny("moe"), batches("moe", padded=False)
    result = reconstruct_model(model, given, sparsity=0.5, heldout=0)
    rows = {row.name: row.rows for row in result.report}
    for block in range(2):
        # Two of four experts for each of the 8 x 24 tokens of four batches.
        routed = [rows[f"model.layers.{block}.mlp.experts.gate_up_proj[{e}]"] for e in range(4)]
        assert sum(routed) == 2 * 4 * 8 * 24
        assert routed == [rows[f"model.layers.{block}.mlp.experts.down_proj[{e}]"] for e in range(4)]
    implementation = model.get_experts_implementation()
    assert result.model.get_experts_implementation() == implementation


def test_experts_with_few_tokens_borrow_from_their_stack():
    model = tiny("moe", num_experts=16)
    given = [{key: value[:2, :8] for key, value in batch.items()} for batch in batches("moe", 2, padded=False)]
    with pytest.warns(UserWarning, match="fewer than 4 inputs per dimension"):
        result = reconstruct_model(model, given, sparsity=0.5, heldout=0)
    few = [row for row in result.report if row.name.endswith("]")]
    assert len(few) == 2 * 2 * 16
    assert min(row.rows for row in few) == 0
    assert all("the mean of its stack makes up for the rest" in row.reason for row in few)
    assert all(np.isfinite(row.error) and row.pruned * 2 == np.prod(row.shape) for row in few)


@pytest.mark.parametrize("kind", ["gpt2", "moe"])
def test_its_masks_make_a_checkpoint(kind, tmp_path):
    """The compressed model, saved, with the masks that it has: nothing more is pruned, and the output verifies."""
    result = reconstruct_model(tiny(kind), batches(kind), pattern="2:4")
    mpfast.prune(result.model, tmp_path / "out", masks=result.masks)
    assert mpfast.verify(tmp_path / "out", result.model).ok
    written = open_checkpoint(tmp_path / "out")
    for name in result.masks:
        np.testing.assert_array_equal(written.read(name), result.model.get_parameter(name).detach().numpy())


def test_low_rank():
    model, given = tiny("llama"), batches("llama")
    result = reconstruct_model(model, given, rank=6)
    assert result.masks == {}
    assert len(result.factors) == len(result.report) == 14
    for row in result.report:
        A, B = result.factors[row.name]
        assert (A.shape[1], B.shape[0], row.rank) == (6, 6, 6)
        # Rounded to single precision in both.
        torch.testing.assert_close(result.model.get_parameter(row.name).detach(), A @ B, rtol=1e-4, atol=1e-6)
        assert 0 < row.error < 1
    assert (
        "would be as large"
        in reconstruct_model(model, given, rank=20).skipped["model.layers.0.self_attn.q_proj.weight"]
    )


def test_a_budget():
    model, given = tiny("moe"), batches("moe")
    plain = mpfast.prune(model, sparsity=0.4, method="magnitude")
    result = reconstruct_model(model, given, budget=plain.budget)
    rows = {row.name: row.pruned for row in plain.budget}
    assert {name: int((~mask).sum()) for name, mask in result.masks.items()} == {
        name: count for name, count in rows.items() if name in result.masks
    }
    assert set(result.masks) <= set(rows)


def test_what_is_left_out_is_said():
    model = tiny("moe")
    result = reconstruct_model(model, batches("moe"), pattern="2:4", include="model.layers.1.*", exclude="*.q_proj")
    assert {name.split(".")[2] for name in result.masks} == {"1"}
    assert result.skipped["model.layers.1.self_attn.q_proj.weight"] == "left out by include or exclude"
    assert "whose inputs are not watched" in result.skipped["model.layers.1.mlp.gate.weight"]
    assert "too small" in result.skipped["model.layers.1.mlp.shared_expert_gate.weight"]


def test_in_place_and_in_training():
    model = tiny("bert").train()
    calls = []
    result = reconstruct_model(
        model, batches("bert"), sparsity=0.5, inplace=True, progress=lambda done, total: calls.append((done, total))
    )
    assert result.model is model
    assert model.training
    assert calls == [(1, 2), (2, 2)]
    assert not model.get_parameter("bert.encoder.layer.0.output.dense.weight")[
        ~result.masks["bert.encoder.layer.0.output.dense.weight"]
    ].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_types(dtype):
    model = tiny("llama").to(dtype)
    result = reconstruct_model(model, batches("llama"), sparsity=0.5)
    assert {parameter.dtype for parameter in result.model.parameters()} == {dtype}
    assert all(row.error < row.masked_error for row in result.report)


class Tupled(torch.nn.Module):
    """Returns several things, takes its states by a name of its own, and shares a weight."""

    def __init__(self, tied=None):
        super().__init__()
        self.one, self.two = torch.nn.Linear(16, 16), torch.nn.Linear(16, 16)
        if tied is not None:
            self.two.weight = tied

    def forward(self, *, states, scale=None):
        return states + scale * self.two(torch.tanh(self.one(states))), "more"


class Chain(torch.nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.blocks = torch.nn.ModuleList(blocks)

    def forward(self, x):
        for number, block in enumerate(self.blocks):
            x, _ = block(states=x, scale=0.5 + number)  # another argument for every block
        return x


def test_blocks_of_ones_own():
    torch.manual_seed(0)
    first = Tupled()
    model = Chain([first, Tupled(tied=first.one.weight)])
    given = list(torch.randn(4, 100, 16))
    result = reconstruct_model(model, given, sparsity=0.5)
    assert [row.name for row in result.report] == ["blocks.0.two.weight", "blocks.1.one.weight"]
    assert result.skipped["blocks.0.one.weight"] == "is one with blocks.1.two.weight"
    assert reconstruct_model(model, given, sparsity=0.5, blocks="blocks.1").report[0].name == "blocks.1.one.weight"


def test_a_layer_that_is_never_used_stays():
    model = Chain([Tupled(), Tupled()])
    model.blocks[1].spare = torch.nn.Linear(16, 16)
    result = reconstruct_model(model, list(torch.randn(4, 100, 16)), sparsity=0.5)
    assert result.skipped["blocks.1.spare.weight"] == "has seen no inputs"


class Skipping(Chain):
    def forward(self, x):
        return self.blocks[1](states=self.blocks[0](states=x, scale=1.0)[0] * 2, scale=1.0)[0]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "pass one of sparsity, pattern, rank and budget, or bits"),
        ({"sparsity": 0.5, "pattern": "2:4"}, "pass one of"),
        ({"pattern": "4:2"}, "pattern must be n:m"),
        ({"rank": 0}, "rank must be"),
        ({"sparsity": 2.0}, "sparsity must"),
        ({"sparsity": 0.5, "method": "magnitude"}, "method must be one of obs, gradual, admm"),
        ({"sparsity": 0.5, "toward": "it"}, "toward must be"),
        ({"sparsity": 0.5, "heldout": 1.0}, "heldout must lie in"),
        ({"sparsity": 0.5, "blocks": "nowhere.*"}, "blocks matches no module"),
        ({"sparsity": 0.5, "include": "nothing"}, "no layer is left to compress"),
    ],
)
def test_bad_options(options, match):
    with pytest.raises(ValueError, match=match):
        reconstruct_model(Chain([Tupled(), Tupled()]), list(torch.randn(2, 10, 16)), **options)


def test_blocks_that_do_not_follow_each_other():
    with pytest.raises(ValueError, match=r"blocks.1 is not handed what blocks.0 returned"):
        reconstruct_model(Skipping([Tupled(), Tupled()]), list(torch.randn(2, 10, 16)), sparsity=0.5)


class Looped(Chain):
    def forward(self, x):
        return super().forward(super().forward(x))


class Overwriting(Chain):
    def forward(self, x):
        x = self.blocks[0](states=x, scale=1.0)[0]
        return self.blocks[1](states=x.mul_(2), scale=1.0)[0]


def test_a_block_that_is_called_again_after_the_last_one():
    """As the one block of ALBERT: what it gets the second time would be left out."""
    for count in (1, 2):
        with pytest.raises(ValueError, match=r"blocks.0 is called more than once in a pass"):
            reconstruct_model(Looped([Tupled() for _ in range(count)]), list(torch.randn(2, 10, 16)), sparsity=0.5)


def test_logits_are_never_computed(monkeypatch):
    """They may take more memory than all else, and no block follows them."""
    model = tiny("llama")
    monkeypatch.setattr(model.lm_head, "forward", lambda x: pytest.fail("the head was run"))
    reconstruct_model(model, batches("llama"), sparsity=0.5, inplace=True)


def test_hidden_states_that_are_written_to_between_blocks():
    with pytest.raises(ValueError, match=r"blocks.1 is not handed what blocks.0 returned"):
        reconstruct_model(Overwriting([Tupled(), Tupled()]), list(torch.randn(2, 10, 16)), sparsity=0.5)


def test_no_data():
    with pytest.raises(ValueError, match="batches are empty"):
        reconstruct_model(Chain([Tupled(), Tupled()]), [], sparsity=0.5)


def test_second_moments_of_weights_stored_as_in_out(tmp_path):
    """GPT-2's Conv1D is watched, and its checkpoint pruned by what that saw."""
    model, given = tiny("gpt2"), batches("gpt2", padded=False)
    with SecondMoments(model, include="transformer.h.*") as moments, torch.no_grad():
        for batch in given:
            model(**batch)
    assert {name.rpartition(".")[2] for name in moments} == {"c_attn", "c_proj", "c_fc"}
    assert moments["transformer.h.0.mlp.c_proj"].shape == (128, 128)
    moments.save(tmp_path / "moments.safetensors")
    model.save_pretrained(tmp_path / "model")
    result = mpfast.prune(tmp_path / "model", tmp_path / "out", pattern="2:4", moments=tmp_path / "moments.safetensors")
    assert len(result.budget) == 8
    assert all(row.updated and row.error < row.masked_error for row in result.budget)
    assert mpfast.verify(tmp_path / "out").ok


@pytest.mark.parametrize(
    ("batch", "fact"),
    [
        ({"nothing": 1}, "TypeError|ValueError"),
        ({"input_ids": torch.full((1, 8), 10**6)}, "IndexError"),
        ({"input_ids": torch.ones(1, 8)}, "RuntimeError"),
        ("text", "AttributeError|TypeError"),
    ],
    ids=["names", "range", "type", "text"],
)
def test_a_batch_that_the_model_does_not_run_on_is_named(batch, fact):
    with pytest.raises(ValueError, match=rf"batches hold one that the model does not run on, number 2: ({fact}): "):
        reconstruct_model(tiny("llama"), [*batches("llama")[:2], batch], sparsity=0.5)
