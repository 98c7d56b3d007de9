"""Checkpoint readers: every type and container, and files that lie."""

from __future__ import annotations

import contextlib
import io
import json
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpfast import CheckpointError
from mpfast.checkpoints.base import TensorInfo
from mpfast.checkpoints.layers import Views, select_layers
from mpfast.checkpoints.opening import open_checkpoint

SAFE_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U8": "u1", "BOOL": "?"}


def safetensors_bytes(header, data=b"", *, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype="F32", shape=(2, 3), offsets=(0, 24)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.fixture
def save(tmp_path):
    def write(content, name="model.safetensors"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    return write


HOSTILE = {
    "empty file": (b"", "is empty"),
    "cut length": (b"\x10\0\0", "too few"),
    "huge length": (struct.pack("<Q", 2**63) + b"{}", "more than the limit"),
    "length beyond the file": (safetensors_bytes({"w": entry()}, length=5000), "truncated"),
    "a zip": (b"PK\3\4" + bytes(60), "not a safetensors file"),
    "no object": (safetensors_bytes(b"[1, 2]"), "does not start with '{'"),
    "broken JSON": (safetensors_bytes(b'{"w": '), "no valid JSON"),
    "not UTF-8": (safetensors_bytes(b'{"\xff": 1}'), "no valid JSON"),
    "NaN": (safetensors_bytes(b'{"w": NaN}'), "no valid JSON"),
    "deep nesting": (safetensors_bytes(b'{"w":' + b"[" * 100_000), "no valid JSON"),
    "a name twice": (
        safetensors_bytes(b'{"w": %b, "w": %b}' % ((json.dumps(entry()).encode(),) * 2), bytes(24)),
        "twice",
    ),
    "metadata of numbers": (safetensors_bytes({"__metadata__": {"a": 1}}), "must map strings"),
    "entry of a wrong kind": (safetensors_bytes({"w": [1]}), "exactly the keys"),
    "missing key": (safetensors_bytes({"w": {"dtype": "F32", "shape": [1]}}, bytes(4)), "exactly the keys"),
    "unknown dtype": (safetensors_bytes({"w": entry("F128")}, bytes(24)), "unknown dtype"),
    "negative shape": (safetensors_bytes({"w": entry(shape=(-2, -3))}, bytes(24)), "non-negative"),
    "float shape": (safetensors_bytes({"w": entry(shape=(2.0, 3))}, bytes(24)), "non-negative"),
    "boolean shape": (safetensors_bytes({"w": entry(shape=(True, 6))}, bytes(24)), "non-negative"),
    "overflowing shape": (safetensors_bytes({"w": entry(shape=(2**40, 2**40))}, bytes(24)), "too large"),
    "overflow hidden by a zero": (
        safetensors_bytes({"w": entry(shape=(2**62, 2**62, 0), offsets=(0, 0))}),
        "too large",
    ),
    "three offsets": (safetensors_bytes({"w": entry(offsets=(0, 24, 24))}, bytes(24)), "two integers"),
    "backward offsets": (safetensors_bytes({"w": entry(offsets=(24, 0))}, bytes(24)), "backwards"),
    "negative offsets": (safetensors_bytes({"w": entry(offsets=(-24, 0))}, bytes(24)), "negative"),
    "truncated data": (safetensors_bytes({"w": entry()}, bytes(23)), "truncated"),
    "wrong size": (safetensors_bytes({"w": entry(shape=(2, 2))}, bytes(24)), "needs 16"),
    "overlap": (
        safetensors_bytes({"a": entry(), "b": entry(offsets=(12, 36))}, bytes(36)),
        "overlaps the tensor before it",
    ),
    "hole": (safetensors_bytes({"a": entry(offsets=(4, 28))}, bytes(28)), "leaves a hole"),
    "bytes after the end": (safetensors_bytes({"a": entry()}, bytes(30)), "6 bytes after the last tensor"),
}


class TestSafetensors:
    @pytest.mark.parametrize("dtype", SAFE_TYPES)
    def test_types(self, save, dtype):
        array = np.random.default_rng(0).integers(0, 2, (3, 4)).astype(SAFE_TYPES[dtype])
        path = save(safetensors_bytes({"w": entry(dtype, (3, 4), (0, array.nbytes))}, array.tobytes()))
        checkpoint = open_checkpoint(path)
        assert checkpoint.tensors == (TensorInfo("w", (3, 4), array.dtype.name),)
        read = checkpoint.read("w")
        np.testing.assert_array_equal(read, array)
        assert not read.flags.writeable
        assert checkpoint.source == str(path)

    def test_bfloat16_comes_as_its_bits(self, save):
        bits = np.arange(6, dtype=np.uint16)
        checkpoint = open_checkpoint(save(safetensors_bytes({"w": entry("BF16", (2, 3), (0, 12))}, bits.tobytes())))
        assert checkpoint.tensors[0].dtype == "bfloat16"
        np.testing.assert_array_equal(checkpoint.read("w"), bits.reshape(2, 3))

    def test_what_the_reference_implementation_writes(self, tmp_path):
        safetensors = pytest.importorskip("safetensors.numpy")
        arrays = {
            "b": np.float16([[1, 2], [3, 4]]),
            "a": np.arange(5.0),
            "none": np.empty((0, 7), np.float32),
            "scalar": np.array(3, np.int64),
        }
        path = tmp_path / "x.safetensors"
        safetensors.save_file(arrays, path, metadata={"format": "np"})
        checkpoint = open_checkpoint(path)
        assert checkpoint.metadata == {"format": "np"}
        assert {t.name for t in checkpoint.tensors} == set(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(checkpoint.read(name), array)

    def test_data_at_an_odd_offset_is_aligned(self, save):
        values = np.arange(6, dtype="<f4")
        header = {"flag": entry("U8", (1,), (0, 1)), "w": entry("F32", (2, 3), (1, 25))}
        checkpoint = open_checkpoint(save(safetensors_bytes(header, b"\1" + values.tobytes())))
        assert checkpoint.read("w").flags.aligned
        np.testing.assert_array_equal(checkpoint.read("w"), values.reshape(2, 3))

    def test_padded_header_and_no_tensors(self, save):
        assert open_checkpoint(save(safetensors_bytes(b"{}      "))).tensors == ()

    def test_arrays_outlive_the_reader(self, save):
        data = np.arange(6, dtype="<f4")
        array = open_checkpoint(save(safetensors_bytes({"w": entry()}, data.tobytes()))).read("w")
        np.testing.assert_array_equal(array.ravel(), data)

    def test_unknown_name(self, save):
        with pytest.raises(KeyError):
            open_checkpoint(save(safetensors_bytes({}))).read("w")

    @pytest.mark.parametrize("case", HOSTILE)
    def test_malformed_files(self, save, case):
        content, message = HOSTILE[case]
        path = save(content)
        with pytest.raises(CheckpointError, match=message) as caught:
            open_checkpoint(path)
        assert str(path) in str(caught.value)
        assert caught.value.offset is not None
        assert len(str(caught.value)) < 600 + len(str(path))

    def test_error_names_tensor_and_offset(self, save):
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(save(safetensors_bytes({"layer.0": entry()}, bytes(20))))
        assert caught.value.tensor == "layer.0"
        assert caught.value.offset > 8

    @settings(max_examples=300, deadline=None)
    @given(data=st.data())
    def test_any_damage_is_an_error_or_harmless(self, tmp_path_factory, data):
        """Flip, cut or insert bytes: a CheckpointError, or a file that still reads within its bounds."""
        good = safetensors_bytes(
            {"a": entry(), "b": entry("BF16", (4,), (24, 32)), "__metadata__": {"x": "y"}}, bytes(range(32))
        )
        content = bytearray(good)
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(content) - 1))
            how = data.draw(st.sampled_from(["set", "cut", "insert"]))
            if how == "set":
                content[at] = data.draw(st.integers(0, 255))
            elif how == "cut":
                del content[at : at + data.draw(st.integers(1, 8))]
            else:
                content[at:at] = data.draw(st.binary(min_size=1, max_size=4))
            if not content:
                break
        path = tmp_path_factory.mktemp("damage") / "m.safetensors"
        path.write_bytes(bytes(content))
        try:
            checkpoint = open_checkpoint(path)
        except CheckpointError:
            return
        for tensor in checkpoint.tensors:
            with contextlib.suppress(CheckpointError):
                checkpoint.read(tensor.name)


class TestShards:
    def write(self, save, index=None, second="b"):
        save(safetensors_bytes({"a": entry()}, bytes(24)), "model-1.safetensors")
        path = save(safetensors_bytes({second: entry()}, bytes(24)), "model-2.safetensors")
        if index is not None:
            text = index if isinstance(index, str) else json.dumps({"weight_map": index})
            save(text.encode(), "model.safetensors.index.json")
        return path.parent

    def test_directory_and_index(self, save):
        folder = self.write(save, {"a": "model-1.safetensors", "b": "model-2.safetensors"})
        for where in (folder, folder / "model.safetensors.index.json"):
            checkpoint = open_checkpoint(where)
            assert [t.name for t in checkpoint.tensors] == ["a", "b"]
            assert checkpoint.read("b").shape == (2, 3)

    def test_directory_without_index(self, save):
        folder = self.write(save)
        assert [t.name for t in open_checkpoint(folder).tensors] == ["a", "b"]

    @pytest.mark.parametrize(
        ("index", "message"),
        [
            ("{", "no valid JSON"),
            ("[]", "no weight_map"),
            ({}, "no weight_map"),
            ({"a": "../model-1.safetensors"}, "no plain file name"),
            ({"a": "/etc/passwd"}, "no plain file name"),
            ({"a": 3}, "no plain file name"),
            ({"a": "model-3.safetensors"}, "shard model-3.safetensors is missing"),
            ({"a": "model-2.safetensors"}, "where the index puts it"),
        ],
    )
    def test_malformed_index(self, save, index, message):
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(self.write(save, index))

    def test_the_same_tensor_in_two_files(self, save):
        with pytest.raises(CheckpointError, match="tensor 'a' is in"):
            open_checkpoint(self.write(save, second="a"))

    def test_empty_directory(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"holds no \.safetensors file"):
            open_checkpoint(tmp_path)


class TestNumpyFiles:
    @pytest.mark.parametrize("order", ["C", "F"])
    def test_npy(self, tmp_path, order):
        array = np.asarray(np.random.default_rng(0).standard_normal((4, 6)), order=order)
        path = tmp_path / "weight.npy"
        np.save(path, array)
        checkpoint = open_checkpoint(path)
        assert checkpoint.tensors == (TensorInfo("weight", (4, 6), "float64"),)
        np.testing.assert_array_equal(checkpoint.read("weight"), array)
        assert type(checkpoint.read("weight")) is np.ndarray

    @pytest.mark.parametrize("saver", [np.savez, np.savez_compressed])
    def test_npz(self, tmp_path, saver):
        arrays = {"a": np.eye(3), "b.weight": np.arange(4, dtype=np.float16)}
        path = tmp_path / "m.npz"
        saver(path, **arrays)
        checkpoint = open_checkpoint(path)
        assert [t.name for t in checkpoint.tensors] == ["a", "b.weight"]
        for name, array in arrays.items():
            np.testing.assert_array_equal(checkpoint.read(name), array)

    def test_pickles_are_never_loaded(self, tmp_path):
        path = tmp_path / "m.npy"
        np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
        with pytest.raises(CheckpointError, match="pickled"):
            open_checkpoint(path).read("m")

    @pytest.mark.parametrize("keep", [1, 3, 40, 130, 200])
    def test_truncated_npy(self, tmp_path, keep):
        stream = io.BytesIO()
        np.save(stream, np.zeros((5, 5)))
        path = tmp_path / "m.npy"
        path.write_bytes(stream.getvalue()[:keep])
        with pytest.raises(CheckpointError, match=r"no valid \.npy file"):
            open_checkpoint(path)

    def test_a_header_that_lies_costs_no_memory(self, tmp_path):
        stream = io.BytesIO()
        np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": (2**40, 2**10)})
        path = tmp_path / "m.npz"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("w.npy", stream.getvalue())
        with pytest.raises(CheckpointError, match="needs"):
            open_checkpoint(path)

    def test_damaged_npz_member(self, tmp_path):
        path = tmp_path / "m.npz"
        np.savez(path, w=np.zeros((50, 50)))
        content = bytearray(path.read_bytes())
        content[3000] ^= 0xFF
        path.write_bytes(bytes(content))
        with pytest.raises(CheckpointError, match="tensor 'w' is damaged"):
            open_checkpoint(path).read("w")

    def test_not_a_zip(self, save):
        with pytest.raises(CheckpointError, match=r"no valid \.npz archive"):
            open_checkpoint(save(b"nothing", "m.npz"))


class TestMappings:
    def test_nested_names_and_plain_values(self):
        checkpoint = open_checkpoint({"a": {"w": np.eye(2), "b": np.ones(2)}, "step": 3})
        assert [t.name for t in checkpoint.tensors] == ["a.w", "a.b", "step"]
        assert checkpoint.source == "dict"

    def test_names_that_meet(self):
        with pytest.raises(ValueError, match=r"open_checkpoint\(\): model has two arrays that are called 'a\.w'"):
            open_checkpoint({"a": {"w": np.eye(2)}, "a.w": np.eye(3)})

    def test_torch_module(self):
        torch = pytest.importorskip("torch")
        module = torch.nn.Sequential(torch.nn.Linear(3, 4, bias=False), torch.nn.Conv2d(2, 3, 3)).to(torch.bfloat16)
        checkpoint = open_checkpoint(module)
        assert [(t.name, t.shape, t.dtype) for t in checkpoint.tensors] == [
            ("0.weight", (4, 3), "bfloat16"),
            ("1.weight", (3, 2, 3, 3), "bfloat16"),
            ("1.bias", (3,), "bfloat16"),
        ]

    def test_a_module_says_what_its_weights_are(self):
        torch = pytest.importorskip("torch")
        model = torch.nn.Sequential(torch.nn.Embedding(50, 16), torch.nn.Linear(16, 16), torch.nn.Conv1d(16, 16, 3))
        layers, *_ = select_layers(open_checkpoint(model), None, None, Views())
        assert [(layer.name, layer.kind, layer.shape) for layer in layers] == [
            ("0.weight", "embedding", (50, 16)),
            ("1.weight", "linear", (16, 16)),
            ("2.weight", "conv", (16, 48)),
        ]
        layers, *_ = select_layers(open_checkpoint(model[0]), None, None, Views())
        assert [(layer.name, layer.kind) for layer in layers] == [("weight", "embedding")]

    @pytest.mark.parametrize("model", [3, object(), [np.eye(2)], None, np.eye(3)])
    def test_nothing_that_holds_tensors(self, model):
        with pytest.raises(TypeError, match="model must be a path"):
            open_checkpoint(model)

    def test_a_value_that_is_no_array(self):
        with pytest.raises(TypeError, match=r"model\['w'\] is list, not an array"):
            open_checkpoint({"w": [1, 2]})


def test_paths(tmp_path, save):
    with pytest.raises(FileNotFoundError, match="no such file"):
        open_checkpoint(tmp_path / "missing.safetensors")
    with pytest.raises(CheckpointError, match="unknown kind of file"):
        open_checkpoint(save(b"x", "model.hdf5"))
