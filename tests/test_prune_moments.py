"""Which moments belong to a checkpoint that is pruned, and which are refused."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

import mpfast
from mpfast.checkpoints import InputSum, write_moments

from .moment_files import IN, OUT, ROWS, inputs, moment_file, weights


@pytest.fixture
def model(tmp_path):
    save_file(weights(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


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
