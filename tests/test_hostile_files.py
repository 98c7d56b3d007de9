"""Files that lie, reader by reader: each is refused with what is wrong, before memory is taken for it."""

from __future__ import annotations

import io
import json
import math
import struct
import zipfile

import numpy as np
import pytest

import mpfast
from mpfast import CheckpointError
from mpfast.checkpoints.mask_files import MaskFile
from mpfast.checkpoints.opening import open_checkpoint
from mpfast.models.budget import Budget
from mpfast.models.layer_json import layer_from_json, layer_to_json
from mpfast.models.layer_report import LayerReport
from mpfast.models.result import Analysis
from mpfast.models.verification import verify
from mpfast.support.json_records import Record, parse_json, storage_bits

HUGE = "9" * 4300  # as many digits as Python reads, one fewer than it may write of a sum


def npy_bytes(header, data=b"", version=(1, 0)):
    text = header.encode("latin-1")
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version == (1, 0) else "<I", len(text)) + text + data


def described(descr="'<f4'", shape="(2, 3)", order="False"):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}"


NPY = {
    "no bytes per entry": (npy_bytes(described("'V0'")), "no entries of a size"),
    "empty text": (npy_bytes(described("'S0'")), "no entries of a size"),
    "empty unicode": (npy_bytes(described("'U0'")), "no entries of a size"),
    "subarrays": (npy_bytes(described("'(2,3)f4'"), bytes(144)), "no entries of a size"),
    "a shape of truths": (npy_bytes(described(shape="(True, 3)"), bytes(12)), "shape"),
    "too many dimensions": (npy_bytes(described(shape="(" + "1," * 40 + ")"), bytes(4)), "shape"),
    "overflow hidden by a zero": (npy_bytes(described(shape=f"({2**62}, {2**62}, 0)")), "too large"),
    "open brackets": (npy_bytes("(" * 9000), "header"),
    "many signs": (npy_bytes("-" * 9000 + "1"), "header"),
    "an indent": (npy_bytes("  {'a'\n :\n\t1L"), "header"),
    "half a string": (npy_bytes("{'descr"), "header"),
    "a NUL": (npy_bytes("{'descr\0': 1}"), "header"),
    "a huge number": (npy_bytes(described(shape=f"({'1' * 5000},)")), "header|shape"),
    "no text for a type": (npy_bytes(described("7")), "header|descr|dtype"),
    "no dictionary": (npy_bytes("[1, 2]"), "not a dictionary"),
    "another version": (npy_bytes(described(), bytes(24), (9, 9)), "format"),
}


@pytest.mark.parametrize("case", NPY)
def test_npy(case, tmp_path):
    content, message = NPY[case]
    (tmp_path / "w.npy").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / "w.npy")
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("w.npy", content)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / "w.npz")


def test_npy_in_columns(tmp_path):
    W = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    np.save(tmp_path / "w.npy", W)
    found = open_checkpoint(tmp_path / "w.npy").read("w")
    np.testing.assert_array_equal(found, W)
    assert found.flags.f_contiguous
    assert not found.flags.writeable


def zip_bytes(method=zipfile.ZIP_STORED, names=("w.npy",)):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), npy_bytes(described(), bytes(24)), method)
    return bytearray(stream.getvalue())


def with_field(content, offset, layout, value):
    """Change a field of the first record of the central directory."""
    struct.pack_into(layout, content, content.index(b"PK\1\2") + offset, value)
    return content


NPZ = {
    "encrypted": (lambda: with_field(with_field(zip_bytes(), 8, "<H", 1), 10, "<H", 0), "damaged"),
    "unknown compression": (lambda: with_field(zip_bytes(), 10, "<H", 77), "NumPy does not write"),
    "another compression": (lambda: zip_bytes(zipfile.ZIP_BZIP2), "NumPy does not write"),
    "larger than it can be": (lambda: with_field(zip_bytes(zipfile.ZIP_DEFLATED), 24, "<I", 2**31), "cannot hold"),
    "beyond the end": (lambda: with_field(zip_bytes(), 20, "<I", 2**30), "beyond the end"),
    "twice": (lambda: zip_bytes(names=("w.npy", "v.npy")).replace(b"v.npy", b"w.npy"), "occurs twice"),
    "cut directory": (lambda: zip_bytes()[:-30], "no valid .npz"),
    "an offset beyond the file": (lambda: with_field(zip_bytes(), 42, "<I", 2**31), "beyond the end|damaged"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("case", NPZ)
def test_npz(case, tmp_path):
    make, message = NPZ[case]
    (tmp_path / "w.npz").write_bytes(make())
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / "w.npz")


def safetensors_bytes(header, data=bytes(24)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


ENTRY = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def test_safetensors_with_numbers_that_python_cannot_write(tmp_path):
    path = tmp_path / "w.safetensors"
    text = b'{"w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, %s]}}' % HUGE.encode()
    path.write_bytes(safetensors_bytes(text))
    with pytest.raises(CheckpointError, match="data_offsets"):
        open_checkpoint(path)


@pytest.mark.parametrize("shape", [[1] * 33 + [6], [10**4000] * 200])
def test_safetensors_of_shapes_that_numpy_has_not(shape, tmp_path):
    (tmp_path / "w.safetensors").write_bytes(safetensors_bytes({"w": {**ENTRY, "shape": shape}}))
    with pytest.raises(CheckpointError, match="has the shape"):
        open_checkpoint(tmp_path / "w.safetensors")


INDICES = {
    "a lone surrogate": b'{"weight_map": {"w": "\\ud800.safetensors"}}',
    "a long name": json.dumps({"weight_map": {"w": "x" * 300}}).encode(),
    "a NUL": b'{"weight_map": {"w": "a\\u0000.safetensors"}}',
    "a path": b'{"weight_map": {"w": "../a.safetensors"}}',
    "a number": b'{"weight_map": {"w": 3}}',
}


@pytest.mark.parametrize("case", INDICES)
@pytest.mark.parametrize("file", ["m.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_indices(case, file, tmp_path):
    (tmp_path / file).write_bytes(INDICES[case])
    with pytest.raises(CheckpointError, match="no plain file name"):
        open_checkpoint(tmp_path / file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"weight_map": {"w": "a", "w": "b"}}', "occurs twice"),
        (b'{"weight_map": ' + b"[" * 20_000, "nested too deeply"),
        (b'{"weight_map": NaN}', "no valid JSON"),
        (b'{"weight_map": {"w": "\xff"}}', "no valid JSON"),
        (b'{"weight_map": ["w"]}', "has no weight_map"),
        (b'{"weight_map": {"w": "gone.safetensors"}}', "is missing"),
    ],
)
def test_damaged_indices(content, message, tmp_path):
    for file in ("m.safetensors.index.json", "pytorch_model.bin.index.json"):
        (tmp_path / file).write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(tmp_path / file)


def test_an_index_that_puts_a_tensor_into_two_shards(tmp_path):
    for file in ("a.safetensors", "b.safetensors"):
        (tmp_path / file).write_bytes(safetensors_bytes({"w": ENTRY}))
    index = tmp_path / "m.safetensors.index.json"
    index.write_text('{"weight_map": {"w": "a.safetensors", "v": "b.safetensors"}}')
    with pytest.raises(CheckpointError, match="pass the file that is meant"):
        open_checkpoint(index)


def test_a_directory_called_like_a_shard(tmp_path):
    (tmp_path / "a.safetensors").mkdir()
    with pytest.raises(CheckpointError, match=r"holds no \.safetensors file"):
        open_checkpoint(tmp_path)


def test_torch_names(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "m.pt"
    for state, message in (
        ({1: torch.ones(2), "1": torch.ones(2)}, "occurs twice"),
        ({(1, 2): torch.ones(2)}, "which is no name"),
        ({None: torch.ones(2)}, "which is no name"),
    ):
        torch.save(state, path)
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(path)


@pytest.mark.parametrize("error", [AttributeError, IndexError, AssertionError, struct.error, RecursionError, TypeError])
def test_whatever_torch_raises(error, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")

    def fail(*_, **__):
        raise error("inside")

    monkeypatch.setattr(torch, "load", fail)
    (tmp_path / "m.pt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"m\.pt: is damaged"):
        open_checkpoint(tmp_path / "m.pt")


@pytest.fixture
def onnx_file(tmp_path):
    onnx = pytest.importorskip("onnx")

    def write(*tensors):
        protos = []
        for fields in tensors:
            external = fields.pop("external", {})
            tensor = onnx.TensorProto(**{"name": "w", "data_type": 1, "dims": [2, 3], **fields})
            for key, value in external.items():
                tensor.data_location = onnx.TensorProto.EXTERNAL
                tensor.external_data.add(key=key, value=value)
            protos.append(tensor)
        model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], protos))
        (tmp_path / "w.bin").write_bytes(bytes(64))
        (tmp_path / "w.onnx").write_bytes(model.SerializeToString())
        return tmp_path / "w.onnx"

    return write


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        ({"dims": [2**40, 2**40]}, "which no array has"),
        ({"dims": [2**62, 2**62, 0]}, "which no array has"),
        ({"dims": [-1, 3]}, "which no array has"),
        ({"dims": [1] * 40}, "which no array has"),
        ({"data_type": 99}, "unknown data type 99"),
        ({"data_type": 0}, "unknown data type 0"),
    ],
)
def test_onnx_headers(onnx_file, tensor, message):
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(onnx_file(tensor))


def test_onnx_names(onnx_file):
    with pytest.raises(CheckpointError, match="'w' occurs twice"):
        open_checkpoint(onnx_file({"raw_data": bytes(24)}, {"raw_data": bytes(24)}))


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        ({"raw_data": bytes(20)}, "is damaged"),
        ({"float_data": [1.0] * 7}, "is damaged"),
        ({"dims": [], "float_data": [1.0] * 7}, "is damaged|holds data of shape"),
        ({"external": {"location": "w.bin", "offset": "-1"}}, "the offset '-1' is no number"),
        ({"external": {"location": "w.bin", "offset": "x"}}, "the offset 'x' is no number"),
        ({"external": {"location": "w.bin", "offset": "9" * 30}}, "is no number of bytes"),
        ({"external": {"location": "w.bin", "offset": "48"}}, "bytes 48 to 72 are needed, the file has 64"),
        ({"external": {"location": "w.bin", "length": "8"}}, "needs 24 bytes, not 8"),
        ({"external": {"location": "w.bin", "length": "-24"}}, "is no number of bytes"),
        ({"external": {"location": ""}}, "no plain file name"),
        ({"external": {"offset": "0"}}, "no plain file name"),
        ({"external": {"location": "gone.bin"}}, "cannot be read from gone.bin"),
        ({"dims": [2, 4], "data_type": 8, "external": {"location": "w.bin"}}, "is not read"),
    ],
)
def test_onnx_data(onnx_file, tensor, message):
    checkpoint = open_checkpoint(onnx_file(tensor))
    with pytest.raises(CheckpointError, match=message):
        checkpoint.read("w")


def test_onnx_external_data(onnx_file):
    fields = {"location": "w.bin", "offset": "40", "length": "24"}
    assert open_checkpoint(onnx_file({"external": fields})).read("w").shape == (2, 3)
    empty = {"dims": [0, 3], "external": {"location": "w.bin"}}
    assert open_checkpoint(onnx_file(empty)).read("w").shape == (0, 3)


@pytest.fixture(scope="module")
def analysis():
    W = np.random.default_rng(0).standard_normal((12, 20))
    return mpfast.analyze({"a.weight": W, "b.bias": W[0]}, progress=False)


BUDGETS = [
    (("layers",), None, "layers must be a list"),
    (("layers",), [3], r"layers\[0\] must be an object"),
    (("layers", 0, "name"), 3, "name must be text"),
    (("layers", 0, "name"), "\ud800", "name must be text"),
    (("layers", 0, "shape"), [-1, 2], "shape must be a shape"),
    (("layers", 0, "shape"), [2**40, 2**40], "shape must be a shape"),
    (("layers", 0, "shape"), [], "shape must be a shape"),
    (("layers", 0, "pruned"), 2.5, "pruned must be an integer"),
    (("layers", 0, "pruned"), True, "pruned must be an integer"),
    (("layers", 0, "pruned"), -1, "pruned must be an integer"),
    (("layers", 0, "pruned"), 241, "pruned must be at most the 240 entries"),
    (("layers", 0, "sparsity"), 1.5, r"sparsity must be a number in \[0, 1\]"),
    (("layers", 0, "sparsity"), None, r"sparsity must be a number in \[0, 1\]"),
    (("layers", 0, "sigma_plus"), -1, "sigma_plus must be a number"),
    (("layers", 0, "sigma_plus"), 10**400, "sigma_plus must be a number"),
    (("layers", 0, "rank"), "two", "rank must be an integer"),
    (("layers", 0, "surplus"), 1, "unknown field 'surplus'"),
    (("method",), 7, "method must be text"),
    (("sparsity",), "0.5", "sparsity must be a number"),
    (("sparsity",), -0.1, "sparsity must be a number"),
    (("pattern",), "2:0", "pattern must be null or of the form 2:4"),
    (("pattern",), "2/4", "pattern must be null or of the form 2:4"),
    (("source",), None, "source must be text"),
]


def changed(text, path, value):
    document = json.loads(text)
    at = document
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return json.dumps(document)


@pytest.mark.parametrize(("path", "value", "message"), BUDGETS)
def test_budgets(analysis, path, value, message):
    text = changed(analysis.budget(0.5).to_json(), path, value)
    with pytest.raises(ValueError, match=rf"Budget.from_json\(\): .*{message}"):
        Budget.from_json(text)


def test_budgets_that_are_no_json(analysis):
    text = analysis.budget(0.5).to_json()
    for broken, message in (
        (text.replace('"sparsity": 0.5', '"sparsity": NaN', 1), "NaN is not JSON"),
        (text.replace('"method"', '"pattern"', 1), "occurs twice"),
        ('{"layers": ' + "[" * 20_000, "nested too deeply"),
        (text[:40], r"Budget.from_json\(\)"),
    ):
        with pytest.raises(ValueError, match=message):
            Budget.from_json(broken)
    document = json.loads(text)
    document["layers"] *= 2
    with pytest.raises(ValueError, match="two rows of the same name"):
        Budget.from_json(json.dumps(document))


ANALYSES = [
    (("layers",), {}, "layers must be a list"),
    (("layers", 0), 3, "a row must be an object"),
    (("layers", 0, "shape"), [12], "the column 'shape' cannot be"),
    (("layers", 0, "shape"), "12", "the column 'shape' cannot be"),
    (("layers", 0, "tensor_shape"), [12, -20], "the column 'tensor_shape' cannot be"),
    (("layers", 0, "spikes"), 1.5, "the column 'spikes' cannot be 1.5"),
    (("layers", 0, "spikes"), None, "the column 'spikes' cannot be"),
    (("layers", 0, "sigma_plus"), "wide", "the column 'sigma_plus' cannot be 'wide'"),
    (("layers", 0, "sigma_plus"), 10**400, "the column 'sigma_plus' cannot be"),
    (("layers", 0, "name"), None, "the column 'name' cannot be"),
    (("layers", 0, "warnings"), "text", "the column 'warnings' cannot be"),
    (("layers", 0, "warnings"), [1], "the column 'warnings' cannot be"),
    (("layers", 0, "surplus"), [1], "the column 'surplus' cannot be"),
    (("layers", 0, "histogram"), {"low": 0}, "the column 'histogram' cannot be"),
    (("layers", 0, "histogram"), 7, "the column 'histogram' cannot be"),
    (("skipped", 0, "shape"), 7, "shape must be a shape"),
    (("skipped", 0), "b", r"skipped\[0\] must be an object"),
    (("source",), 1, "source must be text"),
    (("tol",), "small", "tol must be a number"),
    (("seed",), 1.5, "seed must be an integer"),
    (("seconds",), -1, "seconds must be a number"),
]


@pytest.mark.parametrize(("path", "value", "message"), ANALYSES)
def test_analyses(analysis, path, value, message):
    with pytest.raises(ValueError, match=rf"Analysis.from_json\(\): .*{message}"):
        Analysis.from_json(changed(analysis.to_json(), path, value))


def test_rows_of_the_layer_cache(analysis):
    row = analysis.layers[0]
    assert layer_from_json(layer_to_json(row)) == row
    infinite = LayerReport.from_dict({**row.to_dict(), "threshold": "inf", "ks": math.nan})
    assert infinite.threshold == math.inf
    assert math.isnan(infinite.ks)
    for text in ("[1]", "3", "null", "{}", "[" * 20_000, '{"a": 1, "a": 2}'):
        with pytest.raises(ValueError, match=r"."):
            layer_from_json(text)


@pytest.fixture
def pruned(tmp_path):
    W = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)
    mpfast.prune({"w.weight": W}, tmp_path / "out", pattern="2:4")
    return tmp_path / "out"


@pytest.mark.parametrize(
    "shapes",
    [
        "",
        "[]",
        '{"w": 3}',
        '{"w": [2.5, 3]}',
        '{"w": ["8", "16"]}',
        '{"w": [-8, -16]}',
        '{"w": [8, 16], "w": [8, 16]}',
        '{"w": [' + HUGE + "]}",
        "[" * 20_000,
        json.dumps({"w": [2**40, 2**40]}),
        json.dumps({"w": [1] * 40 + [128]}),
    ],
)
def test_mask_files(pruned, shapes):
    metadata = {"format": "mpfast.masks/1", "shapes": shapes}
    header = {"__metadata__": metadata, "w": {"dtype": "U8", "shape": [16], "data_offsets": [0, 16]}}
    path = pruned / "masks.safetensors"
    path.write_bytes(safetensors_bytes(header, bytes(16)))
    with pytest.raises(CheckpointError, match="shapes in its metadata are damaged"):
        MaskFile(path)
    with pytest.raises(CheckpointError, match="shapes in its metadata are damaged"):
        verify(pruned)


def test_a_pattern_that_does_not_divide(pruned):
    path = pruned / "budget.json"
    assert verify(pruned).ok
    path.write_text(path.read_text().replace('"2:4"', '"2:5"'))
    assert "w.weight: 128 entries are no groups of 5" in verify(pruned).problems


@pytest.mark.parametrize("source", ["x" * 300, "a\0b", ""])
def test_a_source_that_is_no_path(pruned, source):
    path = pruned / "budget.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "source": source or "nowhere"}))
    assert verify(pruned).ok


def test_documents():
    assert parse_json(b'{"a": [1]}') == {"a": [1]}
    assert storage_bits((2, 0, 3), 32) == 0
    assert storage_bits((2, 3), 4) == 24
    assert storage_bits((2**58,), 32) is None
    assert storage_bits((2**58 - 1,), 32) == 2**63 - 32
    record = Record({"a": 1, "b": None}, "here")
    assert record.optional_number("b") is None
    with pytest.raises(ValueError, match="here lacks the field 'c'"):
        record.integer("c")
    with pytest.raises(ValueError, match=r"here: a must be an integer of at least 2, not 1"):
        record.integer("a", 2)
