"""Readers that need a package of their own: PyTorch's files, ONNX, and live Keras and Flax models."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

import mpfast
from mpfast import CheckpointError
from mpfast.checkpoints.base import TensorInfo
from mpfast.checkpoints.opening import open_checkpoint


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def state(torch):
    torch.manual_seed(0)
    return {
        "a.weight": torch.randn(48, 64),
        "b.weight": torch.randn(64, 32, dtype=torch.bfloat16),
        "a.bias": torch.randn(48, dtype=torch.float16),
        "steps": torch.arange(3),
    }


def assert_state(checkpoint, state):
    assert {info.name: info.shape for info in checkpoint.tensors} == {n: tuple(t.shape) for n, t in state.items()}
    for name, tensor in state.items():
        assert checkpoint.read(name).equal(tensor)


def test_torch_state_dictionaries(torch, state, tmp_path):
    torch.save(state, tmp_path / "new.pt")
    torch.save(state, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    torch.save({"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}}, tmp_path / "run.ckpt")
    for name in ("new.pt", "old.bin", "run.ckpt"):
        assert_state(open_checkpoint(tmp_path / name), state)
    assert {row.name for row in mpfast.analyze(tmp_path / "new.pt")} == {"a.weight", "b.weight"}


def test_torch_model_directories(torch, state, tmp_path):
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert_state(open_checkpoint(tmp_path), state)
    parts = {"p-1.bin": ["a.weight", "steps"], "p-2.bin": ["b.weight", "a.bias"]}
    for file, names in parts.items():
        torch.save({name: state[name] for name in names}, tmp_path / file)
    index = {"weight_map": {name: file for file, names in parts.items() for name in names}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (tmp_path / "pytorch_model.bin").unlink()  # which transformers would load before the index
    assert_state(open_checkpoint(tmp_path), state)
    (tmp_path / "p-2.bin").unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        open_checkpoint(tmp_path)
    index["weight_map"]["steps"] = "../p-1.bin"
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="no plain file name"):
        open_checkpoint(tmp_path)


class Trap:
    def __reduce__(self):
        return (os.mkdir, ("trapped",))


def test_pickles_are_never_run(torch, state, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a.weight": state["a.weight"], "trap": Trap()}, tmp_path / "trap.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Trap()))
    for name in ("trap.pt", "plain.pt"):
        with pytest.raises(CheckpointError, match="never loaded"):
            open_checkpoint(tmp_path / name)
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("content", [b"", b"PK\3\4 but no archive", b"\x80\x02"])
def test_damaged_torch_files(torch, tmp_path, content):
    (tmp_path / "m.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        open_checkpoint(tmp_path / "m.pt")


def test_a_torch_file_of_something_else(torch, tmp_path):
    torch.save([1, 2], tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"m\.pt: holds list"):
        open_checkpoint(tmp_path / "m.pt")


def test_without_torch(tmp_path):
    (tmp_path / "m.pt").write_bytes(b"x")
    code = "import sys; sys.modules['torch'] = None; import mpfast; mpfast.analyze(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "m.pt")], capture_output=True, text=True, cwd=tmp_path
    )
    assert "needs PyTorch: pip install torch" in done.stderr


@pytest.fixture
def onnx():
    return pytest.importorskip("onnx")


def onnx_model(onnx, arrays):
    helper = onnx.helper
    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    output = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [None])
    node = helper.make_node("Identity", [next(iter(arrays))], ["y"])
    return helper.make_model(helper.make_graph([node], "g", [], [output], tensors))


def test_onnx_initialisers(onnx, tmp_path):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    rng = np.random.default_rng(0)
    arrays = {
        "w": rng.standard_normal((40, 60), dtype=np.float32),
        "h": rng.standard_normal((20, 30)).astype(np.float16),
        "b": rng.standard_normal((30, 20)).astype(ml_dtypes.bfloat16),
        "i": np.arange(4),
    }
    model = onnx_model(onnx, arrays)
    onnx.save(model, tmp_path / "m.onnx")
    onnx.save(
        onnx_model(onnx, arrays),
        tmp_path / "e.onnx",
        save_as_external_data=True,
        location="e.data",
        size_threshold=0,
    )
    for name in ("m.onnx", "e.onnx"):
        checkpoint = open_checkpoint(tmp_path / name)
        assert checkpoint.tensors[0] == TensorInfo("w", (40, 60), "float32")
        assert [info.dtype for info in checkpoint.tensors] == ["float32", "float16", "bfloat16", "int64"]
        for key, array in arrays.items():
            assert checkpoint.read(key).tobytes() == array.tobytes()
    assert [row.name for row in mpfast.analyze(tmp_path / "e.onnx")] == ["w", "h", "b"]
    (tmp_path / "e.data").unlink()
    with pytest.raises(CheckpointError, match=r"cannot be read from e\.data"):
        open_checkpoint(tmp_path / "e.onnx").read("w")


def test_hostile_onnx(onnx, tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"\xff" * 50)
    with pytest.raises(CheckpointError, match="no valid ONNX"):
        open_checkpoint(tmp_path / "m.onnx")
    model = onnx_model(onnx, {"w": np.ones((4, 4), np.float32)})
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(CheckpointError, match="no plain file name"):
        open_checkpoint(tmp_path / "m.onnx").read("w")


def run(code, folder, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_keras_models(tmp_path):
    if importlib.util.find_spec("keras") is None:  # importing it here would fix its backend
        pytest.skip("needs Keras")
    code = """
import keras, mpfast
model = keras.Sequential([keras.Input((32,)), keras.layers.Dense(64, name="up"), keras.layers.Dense(16, name="down")])
print([(row.name, row.shape) for row in mpfast.analyze(model)])
"""
    expected = "[('sequential/up/kernel', (32, 64)), ('sequential/down/kernel', (64, 16))]"
    for backend in ("jax", "torch"):
        pytest.importorskip(backend)
        assert run(code, tmp_path, KERAS_BACKEND=backend).strip() == expected


def test_flax_models(tmp_path):
    pytest.importorskip("flax")
    code = """
from flax import nnx
import jax, mpfast
class Net(nnx.Module):
    def __init__(self, rngs):
        self.up = nnx.Linear(32, 64, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(64, 16, rngs=rngs)])
print([(row.name, row.shape) for row in mpfast.analyze(Net(nnx.Rngs(0)))])
import flax.linen as nn
params = nn.Dense(24).init(jax.random.key(0), jax.numpy.ones((1, 12)))
print([(row.name, row.shape) for row in mpfast.analyze(params)])
"""
    nnx, linen = run(code, tmp_path).splitlines()
    assert sorted(ast.literal_eval(nnx)) == [("layers.0.kernel", (64, 16)), ("up.kernel", (32, 64))]
    assert ast.literal_eval(linen) == [("params.kernel", (12, 24))]
