"""Files of moments: what is in them, that they fit the model, and that they cannot lie."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from mpfast.checkpoints import MomentFile  # noqa: E402
from mpfast.integrations.torch.calibration import SecondMoments  # noqa: E402

from .attention import Attention  # noqa: E402
from .references import run_python  # noqa: E402


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("format", "mpfast-second-moments", "no second moments"),
        ("sums", "", "sums in its metadata is damaged"),
        ("sums", "[" * 20_000, "nested too deeply"),
        ("sums", "{}", "sums in its metadata must be of another form"),
        ("sums", '[{"modules": ["0"], "rows": [-3], "calls": 1}]', "rows must be a list of positive integers"),
        ("sums", '[{"modules": ["0"], "rows": [], "calls": 1}]', "rows must be a list of positive integers"),
        ("sums", '[{"modules": ["0"], "calls": 1}]', "lacks the field 'rows'"),
        ("sums", '[{"modules": [], "rows": [9], "calls": 1}]', "modules must be a list of names"),
        ("sums", '[{"modules": ["0", "0"], "rows": [9], "calls": 1}]', "two sums"),
        ("sums", '[{"modules": ["0"], "rows": [9, 9], "calls": 1}]', "lacks the tensor '0.1'"),
        ("weights", "{}", "lacks the field '0'"),
        ("options", None, "options in its metadata is damaged"),
        ("model", "[1]", "model in its metadata must be of another form"),
    ],
)
def test_files_that_lie(tmp_path, key, text, message):
    path = tmp_path / "moments.safetensors"
    layer = torch.nn.Linear(4, 4)
    with SecondMoments(torch.nn.Sequential(layer), folds=1) as moments:
        layer(torch.ones(40, 4))
    moments.save(path)
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"][key] = text
    if text is None:
        del header["__metadata__"][key]
    changed = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(changed)) + changed + content[8 + length :])
    with pytest.raises(ValueError, match=message):
        moments.load(path)
    with pytest.raises(ValueError, match=message):
        MomentFile(path)


def test_a_file_has_it_all_and_needs_no_torch(tmp_path):
    torch.manual_seed(7)
    model = Attention()
    with SecondMoments(model, folds=3, source="org/name") as moments:
        for _ in range(5):
            model(torch.randn(40, 12))
    path = tmp_path / "moments.safetensors"
    moments.save(path)
    file = MomentFile(path)
    assert list(file) == list(moments)
    assert file.rows == moments.rows
    assert file.rows_per_input == dict.fromkeys("qkvo", 200 / 12)
    assert file.shared == {"k": "q", "v": "q"}
    assert file["q"] is file["k"]
    assert not file["q"].flags.writeable
    assert file.weights == {name: f"{name}.weight" for name in "qkvo"}
    assert file.model.text("source") == "org/name"
    assert file.model.get("source_hash") is None
    assert file.warning == ""
    for name in file:
        assert np.array_equal(file[name], moments[name].numpy())
        assert np.array_equal(file[name], file[name].T)
        for number in range(3):
            assert np.array_equal(file.fold(name, number), moments.fold(name, number).numpy())
            assert np.array_equal(file.without(name, number), moments.without(name, number).numpy())
    going_on = SecondMoments(model, folds=3)
    going_on.load(path)
    more = torch.randn(40, 12)
    for watcher in (going_on, moments):
        torch.manual_seed(8)
        with watcher:
            model(more)
    assert going_on.shared == moments.shared
    for name in moments:
        assert torch.equal(going_on[name], moments[name])
    code = "import sys; from mpfast.checkpoints import MomentFile\n"
    code += "print(MomentFile(sys.argv[1])['q'].shape, 'torch' in sys.modules)"
    assert run_python("-c", code, str(path)).stdout.strip() == "(12, 12) False"
    with torch.no_grad():
        model.q.weight += 1
    with pytest.raises(ValueError, match="of other weights"):
        going_on.load(path)


def test_a_file_is_of_the_sizes_of_the_model(tmp_path):
    """Without weights, as on the meta device, nothing else tells."""
    layer = torch.nn.Linear(8, 2)
    with SecondMoments(torch.nn.Sequential(layer)) as moments:
        layer(torch.randn(40, 8))
    path = tmp_path / "moments.safetensors"
    moments.save(path)
    same = SecondMoments(torch.nn.Sequential(torch.nn.Linear(8, 2, device="meta")))
    same.load(path)
    assert torch.equal(same["0"], moments["0"])
    other = SecondMoments(torch.nn.Sequential(torch.nn.Linear(6, 2, device="meta")))
    with pytest.raises(ValueError, match=r"shape \(8, 8\) for '0', which needs \(6, 6\)"):
        other.load(path)
    for bad in ("", None):
        with pytest.raises((ValueError, TypeError), match=r"save\(\): path "):
            moments.save(bad)
        with pytest.raises((ValueError, TypeError), match=r"MomentFile\(\): path "):
            MomentFile(bad)
