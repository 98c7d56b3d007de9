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
from mpfast.checkpoints.opening import FORMATS, open_checkpoint


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


@pytest.mark.parametrize("content", [b"P", b"PK\3\4 but no archive", b"\x80\x02"])
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
    assert 'needs the package torch (extra "torch")' in done.stderr


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


def reasons(model):
    return {t.name: t.reason for t in mpfast.analyze(model).skipped}


@pytest.mark.parametrize(
    ("wrap", "names"),
    [
        (lambda w: {"params_ema": w}, ["l.weight"]),
        (lambda w: {"model": {"args": {"dim": 3}, "state_dict": w}}, ["l.weight"]),
        (lambda w: {"net": w, "optimizer": {"state": {0: {"exp_avg": w["l.weight"] + 1}}}, "epoch": 3}, ["l.weight"]),
        (
            lambda w: {"generator": w, "critic": {"l.weight": w["l.weight"] + 1}},
            ["generator.l.weight", "critic.l.weight"],
        ),
        (lambda w: {"x": {"y": {"z": [w["l.weight"]]}}}, ["z.0"]),
        (lambda w: {"loss": w}, ["l.weight"]),
        (
            lambda w: {
                "rng_net": w,
                "random_features": {"l.weight": w["l.weight"] + 1},
                "rng_state_all": [w["l.weight"][0]],
            },
            ["rng_net.l.weight", "random_features.l.weight"],
        ),
        (lambda w: {"state": {"loss": w, "metrics": {"loss": w["l.weight"].sum()}}}, ["l.weight"]),
        (lambda w: {"l.weight": w["l.weight"], "more": {"w": w["l.weight"] + 1}}, ["l.weight", "more.w"]),
    ],
)
def test_weights_are_found_wherever_a_script_keeps_them(torch, tmp_path, wrap, names):
    torch.save(wrap({"l.weight": torch.randn(32, 32)}), tmp_path / "m.pt")
    assert [row.name for row in mpfast.analyze(tmp_path / "m.pt")] == names
    skipped = reasons(tmp_path / "m.pt")
    assert all("beside the weights" in reason for reason in skipped.values())
    assert set(skipped) <= {"optimizer", "rng_state_all", "state.metrics"}


def test_files_without_a_tensor_are_errors(torch, tmp_path):
    torch.save({"epoch": 3, "args": {"dim": 3}}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match="holds no tensors in dictionaries; its keys are 'epoch', 'args'"):
        open_checkpoint(tmp_path / "m.pt")
    with pytest.raises(ValueError, match=r"analyze\(\): model holds no tensors"):
        mpfast.analyze({})


@pytest.mark.parametrize("content", [{"optimizer": {"state": {0: {"exp_avg": 1}}}}, {"loss": [1], "rng_states": [1]}])
def test_tensors_of_a_training_run_alone_are_no_model(torch, tmp_path, content):
    def filled(value):
        if isinstance(value, dict):
            return {key: filled(inner) for key, inner in value.items()}
        return [filled(inner) for inner in value] if isinstance(value, list) else torch.ones(9, 9)

    torch.save(filled(content), tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=f"of a training run alone, under '{next(iter(content))}'"):
        open_checkpoint(tmp_path / "m.pt")


def test_an_old_file_of_torch_under_the_suffix_of_another_format(torch, state, tmp_path):
    torch.save(state, tmp_path / "old.safetensors", _use_new_zipfile_serialization=False)
    assert_state(open_checkpoint(tmp_path / "old.safetensors"), state)
    content = (tmp_path / "old.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors: is damaged"):
        open_checkpoint(tmp_path / "cut.safetensors")


@pytest.mark.parametrize("suffix", [suffix for format in FORMATS for suffix in format.suffixes])
def test_a_file_without_a_byte(suffix, tmp_path):
    (tmp_path / f"m{suffix}").touch()
    with pytest.raises(CheckpointError, match=r"m\.[\w.]+: is empty; is the download complete\?$"):
        open_checkpoint(tmp_path / f"m{suffix}")


def test_a_part_without_a_byte(torch, tmp_path):
    """The message ends in a reason."""
    (tmp_path / "p.bin").touch()
    (tmp_path / "pytorch_model.bin.index.json").write_text('{"weight_map": {"w": "p.bin"}}')
    with pytest.raises(CheckpointError, match=r"p\.bin: is damaged.*never loaded: \w.*\w$"):
        open_checkpoint(tmp_path)


def test_entries_of_a_state_dictionary_that_are_no_tensors_are_named(torch, tmp_path):
    state = {"l.weight": torch.randn(32, 32), "l._extra_state": {"a": (1, 2)}, "version": 3}
    torch.save(state, tmp_path / "m.pt")
    assert list(reasons(tmp_path / "m.pt")) == ["l._extra_state"]
    with pytest.raises(ValueError, match="_extra_state"):
        mpfast.prune(tmp_path / "m.pt", tmp_path / "out", sparsity=0.5, method="magnitude")


def test_first_bytes_decide_before_a_name_does(torch, tmp_path):
    from safetensors.numpy import save_file

    W = np.random.default_rng(0).standard_normal((32, 32)).astype(np.float32)
    torch.save({"w": torch.from_numpy(W)}, tmp_path / "a.pth.tar")
    torch.save({"w": torch.from_numpy(W)}, tmp_path / "old", _use_new_zipfile_serialization=False)
    save_file({"w": W}, tmp_path / "9f86d081")
    save_file({"w": W}, tmp_path / "b.pt")
    np.savez(tmp_path / "c.npz", w=W)
    (tmp_path / "c.npz").rename(tmp_path / "c.bin")
    np.save(tmp_path / "d.npy", W)
    (tmp_path / "d.npy").rename(tmp_path / "d.safetensors")
    for file in sorted(tmp_path.iterdir()):
        (row,) = mpfast.analyze(file)
        assert row.fro_norm == pytest.approx(np.linalg.norm(W), rel=1e-5), file.name
    # What is written from a blob is opened again.
    mpfast.prune(tmp_path / "9f86d081", tmp_path / "out", sparsity=0.5, method="magnitude")
    assert mpfast.verify(tmp_path / "out").ok


def test_a_directory_is_opened_as_transformers_does(torch, tmp_path):
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    W = [rng.standard_normal((32, 32)).astype(np.float32) for _ in range(4)]

    def is_read(number):
        checkpoint = open_checkpoint(tmp_path)
        np.testing.assert_array_equal(np.asarray(checkpoint.read("w")), W[number])
        return {other.name for other in checkpoint.others}

    index = {"weight_map": {"w": "p.bin"}}
    torch.save({"w": torch.from_numpy(W[3])}, tmp_path / "p.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert is_read(3) == set()
    torch.save({"w": torch.from_numpy(W[2])}, tmp_path / "pytorch_model.bin")
    assert is_read(2) == set()
    save_file({"w": W[1]}, tmp_path / "model-00001-of-00001.safetensors")
    index = {"weight_map": {"w": "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"x": W[1]}, tmp_path / "consolidated.safetensors")
    assert is_read(1) == {"consolidated.safetensors"}
    assert "another checkpoint" in reasons(tmp_path)["consolidated.safetensors"]
    save_file({"w": W[0]}, tmp_path / "model.safetensors")
    others = {"consolidated.safetensors", "model-00001-of-00001.safetensors", "model.safetensors.index.json"}
    assert is_read(0) == others


def test_a_pipeline_names_its_parts(tmp_path):
    from safetensors.numpy import save_file

    for part in ("unet", "vae"):
        (tmp_path / part).mkdir()
        save_file({"w": np.ones((9, 9), np.float32)}, tmp_path / part / "model.safetensors")
    with pytest.raises(CheckpointError, match="pass one of its parts: unet, vae"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("order", [">", "<"])
def test_either_byte_order_is_read_right(tmp_path, order):
    W = np.random.default_rng(0).standard_normal((32, 48)).astype(f"{order}f4")
    np.save(tmp_path / "w.npy", W)
    np.savez(tmp_path / "w.npz", w=W)
    for model in ({"w": W}, tmp_path / "w.npy", tmp_path / "w.npz"):
        read = open_checkpoint(model).read("w")
        assert read.dtype.isnative
        np.testing.assert_array_equal(read, W)
        assert mpfast.analyze(model)[0].fro_norm == pytest.approx(np.linalg.norm(W), rel=1e-5)
        mpfast.prune(model, tmp_path / "out", sparsity=0.5, method="magnitude", overwrite=True)
        pruned = open_checkpoint(tmp_path / "out").read("w")
        np.testing.assert_array_equal(pruned, W * (pruned != 0))


def test_an_archive_names_what_is_no_array(tmp_path):
    import zipfile

    np.savez(tmp_path / "m.npz", w=np.eye(16))
    with zipfile.ZipFile(tmp_path / "m.npz", "a") as archive:
        archive.writestr("notes.txt", "x")
    assert list(reasons(tmp_path / "m.npz")) == ["notes.txt"]


class Graph:
    """Builds ONNX models from nodes and named arrays."""

    def __init__(self, onnx, tmp_path):
        self.onnx, self.path = onnx, tmp_path / "m.onnx"

    def tensor(self, name, array):
        return self.onnx.numpy_helper.from_array(array, name)

    def node(self, kind, inputs, outputs=("y",), **attributes):
        return self.onnx.helper.make_node(kind, list(inputs), list(outputs), **attributes)

    def graph(self, nodes, tensors=(), sparse=()):
        info = self.onnx.helper.make_tensor_value_info
        given, found = info("x", 1, [None, 64]), info("y", 1, None)
        return self.onnx.helper.make_graph(nodes, "g", [given], [found], list(tensors), sparse_initializer=list(sparse))

    def open(self, *arguments, **options):
        self.path.write_bytes(self.onnx.helper.make_model(self.graph(*arguments, **options)).SerializeToString())
        return open_checkpoint(self.path)


@pytest.fixture
def graph(onnx, tmp_path):
    return Graph(onnx, tmp_path)


W64 = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)


@pytest.mark.parametrize(
    ("kind", "inputs", "attributes", "shape", "role", "axes"),
    [
        ("MatMul", ["x", "w"], {}, (64, 32), "linear", (0,)),
        ("MatMul", ["w", "x"], {}, (32, 64), "linear", (1,)),
        ("MatMul", ["x", "w"], {}, (3, 64, 32), "experts", (1,)),
        ("Gemm", ["x", "w"], {}, (64, 32), "linear", (0,)),
        ("Gemm", ["x", "w"], {"transB": 1}, (32, 64), "linear", (1,)),
        ("Conv", ["x", "w"], {}, (32, 16, 9), "conv", (1, 2)),
        ("ConvTranspose", ["x", "w"], {}, (32, 16, 3, 3), "conv_transposed", (0,)),
        ("Gather", ["w", "x"], {}, (64, 32), "embedding", (1,)),
        ("LSTM", ["x", "w", "r"], {"hidden_size": 16}, (1, 64, 32), "linear", (2,)),
        ("LSTM", ["x", "", "", "w"], {"hidden_size": 16}, (2, 128), "vector", ()),
        ("Gemm", ["x", "z", "w"], {}, (64, 32), "vector", ()),
        ("Identity", ["w"], {}, (64, 32), "linear", ()),
    ],
)
def test_nodes_say_what_a_tensor_is(graph, kind, inputs, attributes, shape, role, axes):
    from mpfast.checkpoints import roles_of

    checkpoint = graph.open([graph.node(kind, inputs, **attributes)], [graph.tensor("w", np.ones(shape, np.float32))])
    found = roles_of(checkpoint)["w"]
    assert (found.kind, found.input_axes) == (role, axes)
    assert found.source == ("ONNX node" if kind != "Identity" else "name")


def test_a_transposed_matrix_is_followed(graph):
    from mpfast.checkpoints import roles_of

    nodes = [graph.node("Transpose", ["w"], ["t"], perm=[1, 0]), graph.node("MatMul", ["x", "t"])]
    assert roles_of(graph.open(nodes, [graph.tensor("w", W64.T.copy())]))["w"].input_axes == (1,)


def test_constants_and_subgraphs_are_read(graph):
    multiply = graph.node("MatMul", ["x", "w"])
    constant = graph.node("Constant", [], ["w"], value=graph.tensor("inner", W64))
    checkpoint = graph.open([constant, multiply])
    assert [info.name for info in checkpoint.tensors] == ["w"]
    np.testing.assert_array_equal(checkpoint.read("w"), W64)
    branches = [graph.graph([multiply], [graph.tensor("w", W64 + number)]) for number in range(2)]
    choice = graph.node("If", ["c"], name="pick", then_branch=branches[0], else_branch=branches[1])
    checkpoint = graph.open([choice], [graph.tensor("c", np.array(True))])
    names = ["c", *(f"pick.{attribute.name}.w" for attribute in choice.attribute)]
    names[1] = "w"  # the first one keeps its name
    assert [info.name for info in checkpoint.tensors] == names
    read = {checkpoint.read(name)[0, 0] for name in names[1:]}
    assert read == {W64[0, 0], (W64 + 1)[0, 0]}
    # A subgraph sees the tensors around it.
    outer = graph.graph([multiply])
    choice = graph.node("If", ["c"], then_branch=outer, else_branch=outer)
    checkpoint = graph.open([choice], [graph.tensor("c", np.array(True)), graph.tensor("w", W64)])
    assert checkpoint.tensors[1].known.input_axes == (0,)


def test_sparse_initialisers_are_named_and_not_lost(onnx, graph, tmp_path):
    values = graph.tensor("s", np.ones(3, np.float32))
    places = onnx.numpy_helper.from_array(np.array([0, 65, 130]), "places")
    sparse = onnx.helper.make_sparse_tensor(values, places, [64, 64])
    nodes = [graph.node("MatMul", ["x", "w"], ["h"]), graph.node("MatMul", ["h", "s"])]
    graph.open(nodes, [graph.tensor("w", W64)], sparse=[sparse])
    assert list(reasons(graph.path)) == ["s"]
    with pytest.raises(ValueError, match="'s' \\(sparse tensor\\)"):
        mpfast.prune(graph.path, tmp_path / "out", sparsity=0.5, method="magnitude")


def test_quantised_onnx_models_are_refused(graph):
    nodes = [graph.node("DequantizeLinear", ["w", "scale"], ["d"], axis=1), graph.node("MatMul", ["x", "d"])]
    tensors = [graph.tensor("w", np.ones((64, 32), np.int8)), graph.tensor("scale", np.ones(32, np.float32))]
    graph.open(nodes, [*tensors, graph.tensor("other", W64)])
    with pytest.raises(ValueError, match="model is quantised: w is packed"):
        mpfast.prune(graph.path, sparsity=0.5)
