"""Checkpoints that many processes wrote, and directories of several: assembled, or named with what to pass instead."""

from __future__ import annotations

import json
import pickle
import shlex
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

import mpfast
from mpfast import CheckpointError
from mpfast.checkpoints import open_checkpoint


def normal(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def save_pieces(directory, files):
    """Write files of pieces: of each, a mapping from name to (array, offsets)."""
    directory.mkdir(exist_ok=True)
    for number, pieces in enumerate(files, start=1):
        places = {name: {"saved_offsets": list(offsets)} for name, (_, offsets) in pieces.items()}
        metadata = {"DCP_SHARDING_INFO": json.dumps(places), "DCP_VERSION": "1.0", "format": "pt"}
        tensors = {name: piece.copy() for name, (piece, _) in pieces.items()}
        save_file(tensors, directory / f"shard-{number:05}-model-00001-of-00001.safetensors", metadata)
    return directory


# Pieces ---------------------------------------------------------------------------------------------------------------


def test_pieces_are_put_together_along_one_axis_and_two(tmp_path):
    W, V, b = normal(96, 64), normal(40, 60, seed=1, dtype=np.float16), normal(8, seed=2)
    files = [
        {"w": (W[:50], (0, 0)), "v": (V[:16, :20], (0, 0)), "b": (b, (0,)), "s": (np.array(3.0), ())},
        {"w": (W[50:], (50, 0)), "v": (V[:16, 20:], (0, 20))},
        {"v": (V[16:], (16, 0))},
    ]
    checkpoint = open_checkpoint(save_pieces(tmp_path / "m", files))
    assert {info.name: (info.shape, info.dtype) for info in checkpoint.tensors} == {
        "b": ((8,), "float32"),
        "s": ((), "float64"),
        "v": ((40, 60), "float16"),
        "w": ((96, 64), "float32"),
    }
    for name, tensor in {"w": W, "v": V, "b": b, "s": np.array(3.0)}.items():
        np.testing.assert_array_equal(checkpoint.read(name), tensor)
        assert not checkpoint.read(name).flags.writeable
        checkpoint.prefetch(name)
        checkpoint.release(name)
    whole = mpfast.analyze({"w": W, "v": V}, progress=False)
    found = {row.name: row.sigma_plus for row in mpfast.analyze(tmp_path / "m", progress=False)}
    assert found == {row.name: row.sigma_plus for row in whole}


def test_what_is_written_of_pieces_is_one_file(tmp_path):
    W = normal(64, 64)
    save_pieces(tmp_path / "m", [{"fc.weight": (W[:32], (0, 0))}, {"fc.weight": (W[32:], (32, 0))}])
    mpfast.prune(tmp_path / "m", tmp_path / "out", sparsity=0.5, method="magnitude", progress=False)
    (info,) = open_checkpoint(tmp_path / "out").tensors
    assert info.shape == (64, 64)
    assert mpfast.verify(tmp_path / "out").ok


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([{"w": ((32, 64), (0, 0))}, {"w": ((16, 64), (48, 0))}], r"'w' is not tiled by its 2 pieces: of 4096 entries"),
        ([{"w": ((32, 64), (32, 0))}], r"is not tiled by its 1 pieces: of 4096 entries they have 2048"),
        # As many entries as the whole has: one corner is there twice, another not at all.
        ([{"w": ((2, 2), (0, 0))}, {"w": ((2, 2), (0, 0))}, {"w": ((2, 2), (2, 2))}, {"w": ((2, 2), (2, 0))}], "tiled"),
        ([{"w": ((32, 64), (0, 0))}, {"w": ((32, 64, 1), (0, 0, 0))}], "different numbers of dimensions"),
        ([{"w": ((32, 64), (0,))}], "does not say where in tensor 'w' its piece begins"),
        ([{"w": ((32, 64), (-1, 0))}], "does not say where"),
        ([{"w": ((32, 64), (2**70, 0))}], "does not say where"),
        ([{"w": ((32, 64), ("0", 0))}], "does not say where"),
    ],
)
def test_pieces_that_do_not_tile_a_tensor_are_refused(tmp_path, files, message):
    arrays = [{name: (np.zeros(shape), offsets) for name, (shape, offsets) in pieces.items()} for pieces in files]
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(save_pieces(tmp_path / "m", arrays))


def test_pieces_of_two_types_and_headers_that_say_nothing_are_refused(tmp_path):
    pieces = [{"w": (np.zeros((4, 8)), (0, 0))}, {"w": (np.zeros((4, 8), np.float32), (4, 0))}]
    with pytest.raises(CheckpointError, match="is float64 in one file and float32"):
        open_checkpoint(save_pieces(tmp_path / "m", pieces))
    for number in (1, 2):
        save_pieces(tmp_path / "m", pieces)
        save_file({"v": np.zeros((4, 8))}, tmp_path / "m" / f"shard-{number:05}-model-00001-of-00001.safetensors")
        with pytest.raises(CheckpointError, match="DCP_SHARDING_INFO does not say"):
            open_checkpoint(tmp_path / "m")


def test_a_file_of_pieces_by_itself_is_no_checkpoint(tmp_path):
    save_pieces(tmp_path / "m", [{"w": (np.zeros((4, 8)), (0, 0))}])
    with pytest.raises(CheckpointError, match=r"holds pieces of tensors.*pass its directory"):
        open_checkpoint(tmp_path / "m" / "shard-00001-model-00001-of-00001.safetensors")


def test_what_pytorch_writes_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    dcp = pytest.importorskip("torch.distributed.checkpoint")
    state = {"l.weight": torch.randn(48, 40, dtype=torch.bfloat16), "l.bias": torch.randn(48), "n": torch.tensor(7)}
    writer = dcp.HuggingFaceStorageWriter(
        str(tmp_path / "m"), fqn_to_index_mapping={"l.weight": 1, "l.bias": 2, "n": 2}, save_distributed=True
    )
    dcp.save(state, storage_writer=writer)
    checkpoint = open_checkpoint(tmp_path / "m")
    assert {info.name for info in checkpoint.tensors} == set(state)
    assert np.array_equal(checkpoint.read("l.weight"), state["l.weight"].view(torch.uint16).numpy())
    assert np.array_equal(checkpoint.read("l.bias"), state["l.bias"].numpy())
    assert checkpoint.read("n") == 7


RANKS = """
import os
import sys

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh

rank, folder = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
rows = torch.arange(7 * 6, dtype=torch.float32).reshape(7, 6)
state = {
    "rows": distribute_tensor(rows, mesh, [Shard(0)]),
    "columns": distribute_tensor(rows, mesh, [Shard(1)]),
    "both": distribute_tensor(rows, mesh, [Replicate()]),
}
dcp.save(state, storage_writer=dcp.HuggingFaceStorageWriter(f"{folder}/m", save_distributed=True))
dist.barrier()
os._exit(0)  # before the threads of Gloo are taken down, which fails now and then
"""


@pytest.mark.slow
def test_what_two_ranks_of_pytorch_write_is_assembled(tmp_path):
    pytest.importorskip("torch.distributed.tensor")
    (tmp_path / "m").mkdir()
    command = [sys.executable, "-c", RANKS]
    ranks = [subprocess.Popen([*command, str(rank), str(tmp_path)]) for rank in range(2)]
    assert [rank.wait(timeout=300) for rank in ranks] == [0, 0]
    assert len(list((tmp_path / "m").glob("*.safetensors"))) == 2
    checkpoint = open_checkpoint(tmp_path / "m")
    expected = np.arange(42, dtype=np.float32).reshape(7, 6)
    assert {info.name for info in checkpoint.tensors} == {"rows", "columns", "both"}
    for info in checkpoint.tensors:
        np.testing.assert_array_equal(checkpoint.read(info.name), expected)


# PyTorch's own format, which is a pickle ------------------------------------------------------------------------------


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("was unpickled",))


def test_pickled_indices_are_never_loaded_and_the_conversion_is_said(tmp_path):
    place = tmp_path / "a run"
    place.mkdir()
    (place / ".metadata").write_bytes(pickle.dumps(Bomb()))
    (place / "__0_0.distcp").write_bytes(pickle.dumps(Bomb()))
    for path in (place, place / ".metadata", place / "__0_0.distcp"):
        with pytest.raises(CheckpointError, match=r"DCP.*never loaded") as caught:
            open_checkpoint(path)
        assert f"format_utils dcp_to_torch '{place}' 'a run.pt'" in str(caught.value)
    (place / ".metadata").unlink()
    with pytest.raises(CheckpointError, match="DCP"):
        mpfast.analyze(place)


@pytest.mark.slow
def test_the_conversion_makes_a_file_that_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    dcp = pytest.importorskip("torch.distributed.checkpoint")
    weight = torch.randn(32, 24)
    dcp.save({"model": {"l.weight": weight}}, checkpoint_id=str(tmp_path / "run"))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path / "run")
    line = shlex.split(str(caught.value).rpartition("makes one file of it: python ")[2])
    subprocess.run([sys.executable, *line], cwd=tmp_path, check=True)
    assert [row.name for row in mpfast.analyze(tmp_path / "run.pt", progress=False)] == ["l.weight"]


# Pipelines of Diffusers -----------------------------------------------------------------------------------------------


@pytest.fixture
def pipeline(tmp_path):
    for name, file in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        (tmp_path / "sd" / name).mkdir(parents=True)
        save_file({"fc.weight": normal(40, 32)}, tmp_path / "sd" / name / f"{file}.safetensors")
    (tmp_path / "sd" / "scheduler").mkdir()
    listed = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "../text_encoder": ["a", "b"],
        "safety_checker": [None, None],
        "requires_safety_checker": True,
    }
    (tmp_path / "sd" / "model_index.json").write_text(json.dumps(listed))
    return tmp_path / "sd"


def test_a_pipeline_lists_its_components(pipeline):
    with pytest.raises(CheckpointError) as caught:
        mpfast.analyze(pipeline)
    expected = "pass the directory of one of its components: unet (UNet2DConditionModel), text_encoder (CLIPTextModel)"
    assert str(caught.value).endswith(expected)
    for name in ("unet", "text_encoder"):
        assert [row.name for row in mpfast.analyze(pipeline / name, progress=False)] == ["fc.weight"]


def test_a_component_of_a_pipeline_in_the_cache_is_named_below_its_id(pipeline, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "models--org--sd"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots").mkdir()
    pipeline.rename(folder / "snapshots" / "abc")
    assert [row.name for row in mpfast.analyze("org/sd/unet", progress=False)] == ["fc.weight"]
    assert open_checkpoint("org/sd/text_encoder/model.safetensors").tensors[0].name == "fc.weight"
    for name in ("org/sd/vae", "org/sd/../sd", "org/other/unet", "org/sd/unet/../unet"):
        with pytest.raises(FileNotFoundError, match=r"no such file or directory$"):
            open_checkpoint(name)


def test_of_the_variants_of_a_component_the_plain_one_is_taken(pipeline):
    variant = pipeline / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    save_file({"fc.weight": normal(40, 32, dtype=np.float16)}, variant)
    checkpoint = open_checkpoint(pipeline / "unet")
    assert checkpoint.tensors[0].dtype == "float32"
    assert [other.name for other in checkpoint.others] == [variant.name]


def test_a_damaged_list_of_components_is_no_pipeline(pipeline):
    (pipeline / "model_index.json").write_text("[")
    with pytest.raises(CheckpointError, match="pass one of its parts: text_encoder, unet"):
        open_checkpoint(pipeline)
