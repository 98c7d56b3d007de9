"""Checkpoints refitted block by block: the bits of the model in memory, and what is written."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
import mpfast  # noqa: E402
from mpfast import reconstruct  # noqa: E402
from mpfast.checkpoints import MaskFile, open_checkpoint  # noqa: E402
from mpfast.integrations.torch import reconstruct_checkpoint, reconstruct_model  # noqa: E402
from mpfast.integrations.torch.skeletons import Skeleton  # noqa: E402

from .whole_models import MODELS, batches, saved, tiny  # noqa: E402

# Few rows for each input, which the tiny models have, are said to be few.
pytestmark = pytest.mark.filterwarnings("ignore:.*fewer than 4 inputs per dimension")


def check(class_, folder, out, given, **options):
    """Compress the files and the loaded model, and compare all bits."""
    expected = reconstruct_model(class_.from_pretrained(folder), given, **options)
    result = reconstruct_checkpoint(folder, out, given, **options)
    state = expected.model.state_dict()
    for name, tensor in class_.from_pretrained(out).state_dict().items():
        assert tensor.dtype == state[name].dtype
        assert torch.equal(tensor, state[name]), name
    assert result.report == expected.report
    assert mpfast.verify(out).ok
    assert mpfast.verify(out, folder).ok
    return result, expected


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(
    "options",
    [{"sparsity": 0.5}, {"pattern": "2:4", "toward": "own"}, {"sparsity": 0.4, "sequential": False}, {"rank": 4}],
    ids=str,
)
def test_the_bits_of_the_model_in_memory(kind, options, tmp_path):
    class_ = saved(kind, tmp_path / "model")
    before = {info.name: np.array(tensor) for info, tensor in tensors_of(tmp_path / "model")}
    result, expected = check(class_, tmp_path / "model", tmp_path / "out", batches(kind), **options)
    assert set(result.skipped) == set(expected.skipped)
    assert not list(tmp_path.glob(".out.*"))
    for info, tensor in tensors_of(tmp_path / "model"):
        np.testing.assert_array_equal(tensor, before[info.name])
    masks = MaskFile(tmp_path / "out" / "masks.safetensors")
    assert sum(int(np.count_nonzero(~masks[name])) for name in masks) == sum(row.pruned for row in result.report)


def tensors_of(folder):
    checkpoint = open_checkpoint(folder)
    return [(info, checkpoint.read(info.name)) for info in checkpoint.tensors]


@pytest.mark.parametrize("kind", ["llama", "moe"])
def test_shards_and_bfloat16(kind, tmp_path):
    class_ = saved(kind, tmp_path / "model", torch.bfloat16, "10KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 4
    check(class_, tmp_path / "model", tmp_path / "out", batches(kind), pattern="2:4")
    assert {info.dtype for info, _ in tensors_of(tmp_path / "out")} == {"bfloat16"}
    assert [path.name for path in sorted((tmp_path / "out").glob("*-of-*"))] == [
        path.name for path in sorted((tmp_path / "model").glob("*-of-*"))
    ]


def test_what_is_written_is_rounded_to_the_type_it_is_stored_in(tmp_path):
    """Stored in float16 and run in float32, as the configuration says."""
    class_ = saved("llama", tmp_path / "model", torch.float16)
    path = tmp_path / "model" / "config.json"
    path.write_text(path.read_text().replace('"float16"', '"float32"'))
    given = batches("llama")
    result = reconstruct_checkpoint(tmp_path / "model", tmp_path / "out", given, sparsity=0.5, toward="own")
    assert {info.dtype for info, _ in tensors_of(tmp_path / "out")} == {"float16"}
    assert mpfast.verify(tmp_path / "out").ok
    expected = reconstruct_model(class_.from_pretrained(tmp_path / "model").float(), given, sparsity=0.5, toward="own")
    # The first block has got the same; the second one the first one's outputs after rounding.
    assert result.report[0] == expected.report[0]
    found = open_checkpoint(tmp_path / "out").read("model.layers.0.mlp.down_proj.weight")
    rounded = expected.model.model.layers[0].mlp.down_proj.weight.detach().half().numpy()
    np.testing.assert_array_equal(found, rounded)


def test_tied_embeddings(tmp_path):
    class_ = saved("llama", tmp_path / "model", tie_word_embeddings=True)
    assert not any("lm_head" in info.name for info, _ in tensors_of(tmp_path / "model"))
    check(class_, tmp_path / "model", tmp_path / "out", batches("llama"), sparsity=0.5)


def test_a_prefix_more(tmp_path):
    """The checkpoint of a model without its head, and a configuration that names the class with one."""
    model = tiny("gpt2")
    model.transformer.save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "architectures": ["GPT2LMHeadModel"]}))
    assert any(info.name.startswith("h.0.") for info, _ in tensors_of(tmp_path / "model"))
    result, _ = check(type(model), tmp_path / "model", tmp_path / "out", batches("gpt2"), pattern="2:4")
    assert result.budget[0].name.startswith("h.0.")
    assert result.budget[0].input_axes == (0,)


def test_rounded_weights(tmp_path):
    class_ = saved("bert", tmp_path / "model")
    result, expected = check(
        class_, tmp_path / "model", tmp_path / "out", batches("bert"), bits=3, group=16, pattern="2:4"
    )
    for row in result.report:
        grid = expected.grids[row.name]
        assert (row.bits, row.group, grid.bits, grid.group) == (3, 16, 3, 16)
        W = open_checkpoint(tmp_path / "out").read(row.name)
        scale, zero = (np.repeat(part, 16, axis=1) for part in (grid.scale, grid.zero))
        steps = W / scale + zero
        # A quotient of single-precision numbers below 8.
        assert np.abs(steps - np.round(steps)).max() < 8 * 2**-22
        assert np.count_nonzero(W) * 2 <= W.size
    assert all(row.updated and row.pruned * 2 == row.size for row in result.budget)


def test_a_budget_of_the_checkpoint(tmp_path):
    class_ = saved("moe", tmp_path / "model")
    budget = mpfast.prune(tmp_path / "model", sparsity=0.4, method="magnitude").budget
    result = reconstruct_checkpoint(tmp_path / "model", tmp_path / "out", batches("moe"), budget=budget)
    assert mpfast.verify(tmp_path / "out").ok
    wanted = {row.name: row.pruned for row in budget}
    pruned = {row.name: row.pruned for row in result.budget}
    assert all(wanted[name] == count for name, count in pruned.items() if ".experts." not in name)
    for end in ("gate_proj|up_proj", "down_proj"):  # one tensor each in the model, for all experts of a layer
        for start in ("model.layers.0.mlp.experts.", "model.layers.1.mlp.experts."):
            names = [name for name in pruned if name.startswith(start) and name.split(".")[-2] in end.split("|")]
            assert sum(pruned[name] for name in names) == sum(wanted[name] for name in names) > 0
    assert class_.from_pretrained(tmp_path / "out") is not None


def test_a_budget_of_either_names_fits_both(tmp_path):
    """Files hold experts one by one, the model stacks them: the same entries go, whichever a budget was made for."""
    class_, given = saved("moe", tmp_path / "model"), batches("moe")
    found = []
    for model in (tmp_path / "model", class_.from_pretrained(tmp_path / "model")):
        budget = mpfast.prune(model, sparsity=0.4, method="magnitude").budget
        live = reconstruct_model(class_.from_pretrained(tmp_path / "model"), given, budget=budget)
        files = reconstruct_checkpoint(tmp_path / "model", tmp_path / "out", given, budget=budget, overwrite=True)
        assert files.report == live.report
        assert sum(row.pruned for row in live.report) == budget.pruned
        assert any(".experts." in row.name and row.pruned for row in live.report)
        found.append({row.name for row in budget})
    assert found[0] != found[1]


def test_what_is_written(tmp_path):
    """The report lies beside the weights; what is no matrix of its own in the model has no error of its own."""
    saved("moe", tmp_path / "model")
    result = reconstruct_checkpoint(tmp_path / "model", tmp_path / "out", batches("moe"), sparsity=0.5)
    document = json.loads((tmp_path / "out" / "reconstruction.json").read_text())
    assert [row["name"] for row in document["layers"]] == [row.name for row in result.report]
    assert document["skipped"] == result.skipped
    assert document["provenance"]["options"]["sparsity"] == 0.5
    rows = {row.name: row for row in result.budget}
    assert rows["model.layers.0.self_attn.q_proj.weight"].error == result.report[0].error
    assert rows["model.layers.0.mlp.experts.3.up_proj.weight"].error is None
    assert all(row.updated and row.written for row in result.budget)
    again = mpfast.prune(tmp_path / "out", tmp_path / "again", sparsity=0.6, method="magnitude")
    assert again.out is not None
    assert not (tmp_path / "again" / "reconstruction.json").exists()


def test_threads_of_the_core_do_not_matter(tmp_path):
    saved("llama", tmp_path / "model")
    for threads in (1, 3):
        reconstruct_checkpoint(
            tmp_path / "model", tmp_path / str(threads), batches("llama"), pattern="2:4", threads=threads
        )
    one, three = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("1", "3"))
    assert one == three


def test_one_block_at_a_time_has_weights(tmp_path, monkeypatch):
    """While a block is loaded, no other one has weights, and the model's parameters are views of the files at most."""
    saved("llama", tmp_path / "model", num_hidden_layers=3)
    loaded, seen = Skeleton.loaded, []

    @contextlib.contextmanager
    def spy(self, prefix, instead=None):
        with loaded(self, prefix, instead) as tensors:
            seen.append((prefix, {name for name, parameter in self.model.named_parameters() if not parameter.is_meta}))
            yield tensors

    monkeypatch.setattr(Skeleton, "loaded", spy)
    reconstruct_checkpoint(tmp_path / "model", tmp_path / "out", batches("llama"), sparsity=0.5)
    assert [prefix for prefix, _ in seen] == ["model.layers.0"] + [f"model.layers.{n}" for n in (0, 0, 1, 1, 2, 2)]
    for prefix, names in seen[1:]:
        assert names
        assert all(name.startswith(f"{prefix}.") for name in names)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and sets RLIMIT_DATA")
@pytest.mark.parametrize("toward", ["own", "dense"])
def test_peak_memory(toward, tmp_path):
    """A block, its moments, two sets of hidden states and a tenth; with a limit that is 16 MiB above that."""
    script = Path(__file__).resolve().parent.parent / "benchmarks" / "streaming.py"
    arguments = ["--toward", toward, "--hidden", "768", "--layers", "3"]
    found = subprocess.run(
        [sys.executable, script, *arguments], check=False, capture_output=True, text=True, cwd=tmp_path
    )
    assert found.returncode == 0, found.stderr
    (line,) = (line for line in found.stdout.splitlines() if "peak over block" in line)
    assert float(line.split("**")[3]) <= 1.1


def test_rounding_goes_with_what_it_goes_with():
    model, given = tiny("llama"), batches("llama")
    result = reconstruct_model(model, given, bits=4, group=None, heldout=0)
    assert not result.masks
    assert all(row.pruned == 0 and row.masked_error is None and row.bits == 4 for row in result.report)
    assert {row.group for row in result.report} == {32, 64}
    coarse = reconstruct_model(model, given, bits=2, group=32, heldout=0)
    assert all(one.error < other.error for one, other in zip(result.report, coarse.report, strict=True))
    both = reconstruct_model(model, given, bits=4, group=16, sparsity=0.5, heldout=0)
    assert all(row.pruned * 2 == np.prod(row.shape) and row.error < row.masked_error for row in both.report)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"bits": 9}, "bits must be at most 8"),
        ({"bits": 0}, "bits must be"),
        ({"bits": 4, "rank": 3}, "bits and rank exclude each other"),
        ({"bits": 4, "sparsity": 0.5, "method": "admm"}, "method must be 'obs' with bits"),
        ({"bits": 4, "group": 10, "pattern": "2:4"}, "group must be a multiple of the pattern's 4"),
    ],
)
def test_bad_rounding(options, match):
    with pytest.raises(ValueError, match=match):
        reconstruct_model(tiny("llama"), batches("llama"), **options)


def test_rounding_is_that_of_the_layer():
    """One shot toward the layer's own outputs: `mpfast.reconstruct.quantize` on the moment of its inputs."""
    model = torch.nn.Sequential(torch.nn.Linear(32, 16, bias=False), torch.nn.Linear(16, 16, bias=False))
    given = list(torch.randn(3, 200, 32, generator=torch.Generator().manual_seed(0)))
    result = reconstruct_model(model, given, bits=3, group=8, sequential=False, heldout=0, damping=0.01)
    x = torch.cat(given).double().numpy()
    fit = reconstruct.quantize(model[0].weight.detach().numpy(), reconstruct.Factor(x.T @ x / len(x), 0.01), 3, group=8)
    np.testing.assert_allclose(result.model[0].weight.detach().numpy(), fit.weights, atol=1e-5)
