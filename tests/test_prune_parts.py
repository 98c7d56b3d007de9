"""Experts and fused projections pruned with second moments, each by its own."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

import mpfast
from mpfast import reconstruct
from mpfast.checkpoints import InputSum, content_hash, open_checkpoint, write_moments

from .moment_files import error, inputs, moment, weights

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


@pytest.fixture
def model(tmp_path):
    save_file(weights(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


class TestParts:
    """Experts of a stack, and projections that are fused, are matrices with inputs of their own."""

    STACK = "model.layers.0.mlp.experts.down_proj"

    def network(self):
        """A mixture whose stack has the shape (4, 32, 16)."""
        pytest.importorskip("torch")
        from .whole_models import tiny

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

        from .whole_models import batches, tiny

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
        for name, weight in live.weights.items():
            assert torch.equal(loaded[name], weight), name

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
