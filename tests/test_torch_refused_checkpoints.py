"""Checkpoints that cannot be refitted block by block are refused by name, and nothing is written."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
import mpfast  # noqa: E402
from mpfast.integrations.torch import reconstruct_checkpoint  # noqa: E402
from mpfast.integrations.torch.stored_names import StoredNames  # noqa: E402

from .whole_models import batches, saved  # noqa: E402

# Few rows for each input, which the tiny models have, are said to be few.
pytestmark = pytest.mark.filterwarnings("ignore:.*fewer than 4 inputs per dimension")


def test_an_existing_output(tmp_path):
    saved("llama", tmp_path / "model")
    given = batches("llama")
    reconstruct_checkpoint(tmp_path / "model", tmp_path / "out", given, sparsity=0.5)
    with pytest.raises(FileExistsError, match="overwrite"):
        reconstruct_checkpoint(tmp_path / "model", tmp_path / "out", given, sparsity=0.5)
    reconstruct_checkpoint(tmp_path / "model", tmp_path / "out", given, sparsity=0.6, overwrite=True)
    assert mpfast.verify(tmp_path / "out").ok
    with pytest.raises(FileExistsError, match="lies there"):
        reconstruct_checkpoint(tmp_path / "out", tmp_path / "out", given, sparsity=0.5, overwrite=True)


def without(folder, name):
    """Take a tensor out of a checkpoint of one file."""
    safetensors = pytest.importorskip("safetensors.torch")
    tensors = safetensors.load_file(folder / "model.safetensors")
    del tensors[name]
    safetensors.save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("kind", "name"),
    [("llama", "model.layers.1.mlp.up_proj.weight"), ("moe", "model.layers.1.mlp.experts.2.up_proj.weight")],
)
def test_names_that_match_nothing(kind, name, tmp_path):
    """A tensor of a block that is not there, and an expert that is not: never a guess."""
    saved(kind, tmp_path / "model")
    without(tmp_path / "model", name)
    with pytest.raises(ValueError, match=r"model\.layers\.1\.mlp"):
        reconstruct_checkpoint(tmp_path / "model", tmp_path / "out", batches(kind), sparsity=0.5)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_way_back_that_is_none(tmp_path, monkeypatch):
    """What is read is turned back and compared before anything is fitted."""
    saved("moe", tmp_path / "model")
    write = StoredNames.write
    monkeypatch.setattr(
        StoredNames, "write", lambda *args: {name: tensor.flip(0) for name, tensor in write(*args).items()}
    )
    with pytest.raises(ValueError, match="turns back again"):
        reconstruct_checkpoint(tmp_path / "model", tmp_path / "out", batches("moe"), sparsity=0.5)


def test_blocks_that_hand_on_more_than_hidden_states(tmp_path):
    """T5's first block computes the positions for all."""
    torch.manual_seed(0)
    config = transformers.T5Config(vocab_size=96, d_model=32, d_ff=64, d_kv=8, num_layers=2, num_heads=4)
    transformers.T5EncoderModel(config).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"depends on what other blocks compute.*reconstruct_model"):
        reconstruct_checkpoint(tmp_path / "model", tmp_path / "out", batches("llama"), sparsity=0.5)


def test_a_block_that_is_called_again_after_the_last_one(tmp_path):
    """ALBERT has one block: what it gets the second time would be left out."""
    torch.manual_seed(0)
    config = transformers.AlbertConfig(
        vocab_size=96, embedding_size=16, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4,
    )  # fmt: skip
    transformers.AlbertForMaskedLM(config).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"albert_layer_groups.0 is called more than once in a pass"):
        reconstruct_checkpoint(tmp_path / "model", tmp_path / "out", batches("llama"), sparsity=0.5)


def test_no_model_of_transformers(tmp_path):
    given = batches("llama")
    np.savez(tmp_path / "model.npz", **{"a.weight": np.zeros((16, 16))})
    with pytest.raises(ValueError, match="no directory of a model"):
        reconstruct_checkpoint(tmp_path / "model.npz", tmp_path / "out", given, sparsity=0.5)
    saved("llama", tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(path.read_text().replace("LlamaForCausalLM", "NobodyForNothing"))
    with pytest.raises(ValueError, match="names the class NobodyForNothing, which transformers lacks"):
        reconstruct_checkpoint(tmp_path / "model", tmp_path / "out", given, sparsity=0.5)
    with pytest.raises(FileNotFoundError):
        reconstruct_checkpoint(tmp_path / "nowhere", tmp_path / "out", given, sparsity=0.5)


def test_nothing_is_written_into_the_source(tmp_path):
    saved("llama", tmp_path / "model")
    before = sorted(path.name for path in (tmp_path / "model").iterdir())
    with pytest.raises(FileExistsError, match=r"lies in .*model, which is only read"):
        reconstruct_checkpoint(tmp_path / "model", tmp_path / "model" / "out", batches("llama"), sparsity=0.5)
    with pytest.raises(FileExistsError, match=r"lies in .*model, which is only read"):
        mpfast.prune(tmp_path / "model", tmp_path / "model" / "out", sparsity=0.5)
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == before
