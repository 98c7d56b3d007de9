"""What is written: resumed, copied beside the weights, refused where a file cannot hold it, and verified."""

from __future__ import annotations

import json
import os
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import mpfast

from .outputs import PRUNE, WRITERS, contents, matrix, model_in
from .references import run_python


@pytest.fixture
def model(tmp_path):
    return model_in(tmp_path)


class TestResuming:
    def partial(self, model, out, tmp_path, count=2):
        """Kill a run when it has completed some files."""
        code = (
            "import os, signal, sys, mpfast; from mpfast.checkpoints.safetensors_writer import SafetensorsWriter as S\n"
            "close, done = S.close, []\n"
            "def dying(self):\n"
            "    close(self); done.append(1)\n"
            f"    if len(done) == {count}: os.kill(os.getpid(), signal.SIGKILL)\n"
            "S.close = dying\n"
            "mpfast.prune(sys.argv[1], sys.argv[2], sparsity=.5, method='magnitude', progress=False)"
        )
        run = run_python("-c", code, str(model), str(out))
        assert run.returncode == -signal.SIGKILL
        return out.with_name(f".{out.name}.mpfast-partial")

    @pytest.mark.parametrize("damage", ["none", "missing", "changed", "shorter", "another"])
    def test_a_finished_file_is_looked_at(self, damage, model, tmp_path, monkeypatch):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")  # the time that the budget notes
        PRUNE(model, tmp_path / "whole")
        staging = self.partial(model, tmp_path / "out", tmp_path)
        file = staging / "model-0.safetensors"
        content = bytearray(file.read_bytes())
        content[-100] ^= 255
        if damage == "missing":
            file.unlink()
        elif damage != "none":
            file.write_bytes({"changed": content, "shorter": content[:-8], "another": b"x" * len(content)}[damage])
        PRUNE(model, tmp_path / "out")
        assert contents(tmp_path / "out") == contents(tmp_path / "whole")
        assert mpfast.verify(tmp_path / "out").ok

    def test_a_source_that_was_edited_in_between_is_not_mixed_with_itself(self, model, tmp_path):
        self.partial(model, tmp_path / "out", tmp_path)
        file = model / "model-0.safetensors"
        status = file.stat()
        content = bytearray(file.read_bytes())
        content[-64 * 48 * 4 :] = matrix(77).tobytes()
        file.write_bytes(content)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        PRUNE(model, tmp_path / "out")
        PRUNE(model, tmp_path / "whole")
        assert contents(tmp_path / "out") == contents(tmp_path / "whole")

    @pytest.mark.parametrize("write", WRITERS)
    def test_a_source_that_is_edited_meanwhile(self, write, model, tmp_path, monkeypatch):
        file = model / "model-0.safetensors"
        original = mpfast.checkpoints.rewriter.SafetensorsWriter.close

        def close(self):
            original(self)
            status = file.stat()
            with file.open("r+b") as stream:  # size and time of the last change as they were
                stream.seek(-4, 2)
                stream.write(b"\0\0\0\0")
            os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))

        monkeypatch.setattr(mpfast.checkpoints.rewriter.SafetensorsWriter, "close", close)
        with pytest.raises(mpfast.CheckpointError, match=r"model-0\.safetensors: was changed while it was read"):
            write(model, tmp_path / "out")
        assert [path.name for path in tmp_path.iterdir()] == ["model"]


class TestCompanions:
    def test_links_that_leave_the_directory_are_named(self, model, tmp_path):
        (tmp_path / "secret").write_text("key")
        (tmp_path / "secrets").mkdir()
        (tmp_path / "secrets" / "id").write_text("key")
        (model / ".hidden").write_text("key")
        (model / "x.txt").symlink_to(tmp_path / "secret")
        (model / "up.txt").symlink_to("../secret")
        (model / "folder").symlink_to(tmp_path / "secrets")
        (model / "around").symlink_to(".")
        (model / "nowhere.txt").symlink_to("missing")
        (model / "inner.txt").symlink_to(".hidden")
        (model / "notes.txt").write_text("mine")
        (model / "same.txt").symlink_to("notes.txt")
        for number, write in enumerate(WRITERS[:2]):
            result = write(model, tmp_path / f"out{number}")
            copied = {path.name for path in (tmp_path / f"out{number}").iterdir()}
            assert {"notes.txt", "same.txt", "config.json"} <= copied
            named = {text.partition(":")[0] for text in result.not_copied}
            assert named == {"x.txt", "up.txt", "folder", "around", "nowhere.txt", "inner.txt"}
            assert not named & copied

    def test_the_blobs_of_a_cache_are_followed(self, model, tmp_path):
        repository = tmp_path / "models--org--name"
        snapshot = repository / "snapshots" / "abc"
        (snapshot / "sub").mkdir(parents=True)
        (repository / "blobs").mkdir()
        (tmp_path / "models--org--other" / "blobs").mkdir(parents=True)
        for number, path in enumerate(sorted(model.iterdir())):
            (repository / "blobs" / str(number)).write_bytes(path.read_bytes())
            (snapshot / path.name).symlink_to(Path("..", "..", "blobs", str(number)))
        (repository / "blobs" / "v").write_text("a b c")
        (snapshot / "sub" / "vocab.txt").symlink_to("../../../blobs/v")
        (tmp_path / "models--org--other" / "blobs" / "w").write_text("theirs")
        (snapshot / "other.txt").symlink_to(tmp_path / "models--org--other" / "blobs" / "w")
        result = PRUNE(snapshot, tmp_path / "out")
        assert (tmp_path / "out" / "sub" / "vocab.txt").read_text() == "a b c"
        assert (tmp_path / "out" / "config.json").read_text() == "{}"
        assert [text.partition(":")[0] for text in result.not_copied] == ["other.txt"]
        assert not any(path.is_symlink() for path in (tmp_path / "out").rglob("*"))

    def test_the_index_of_linked_files_comes_along(self, model, tmp_path):
        """A directory that somebody made of links alone: what is written without the index would be no model."""
        names = {f"{part}.{word}": f"model-{part}.safetensors" for part in range(3) for word in ("weight", "bias")}
        index = json.dumps({"weight_map": names})
        (model / "model.safetensors.index.json").write_text(index)
        (tmp_path / "links").mkdir()
        for path in model.iterdir():
            (tmp_path / "links" / path.name).symlink_to(path)
        result = PRUNE(tmp_path / "links", tmp_path / "out")
        assert (tmp_path / "out" / "model.safetensors.index.json").read_text() == index
        assert [text.partition(":")[0] for text in result.not_copied] == ["config.json"]
        assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())

    def test_other_forms_of_the_weights_stay_behind(self, model, tmp_path):
        stale = [
            "model.onnx_data",
            "model.onnx.data",
            "decoder.engine",
            "model.safetensors.bak",
            "pytorch_model.bin.bak",
            "tf_model.h5",
            "flax_model.msgpack",
            "model.gguf",
            "program.pt2",
            "model.pte",
            "model.tflite",
            "weights.zip",
            "old.safetensors.1",
            "m.ckpt~",
            "variables.data-00000-of-00001",
            "model.mlpackage/Data/weight.txt",
            "onnx/model.onnx",
        ]
        kept = ["tokenizer.json", "tokenizer.model", "merges.txt", "README.md", "modeling.py", "1_Pooling/config.json"]
        for name in (*stale, *kept):
            (model / name).parent.mkdir(parents=True, exist_ok=True)
            (model / name).write_text("something")
        magic = {"blob1": b"GGUF", "blob2": b"PK\x03\x04", "blob3": b"\x89HDF\r\n\x1a\n", "blob4": b"\x93NUMPY"}
        for name, begin in magic.items():
            (model / name).write_bytes(begin + bytes(100))
        (model / "blob5").write_bytes((model / "model-0.safetensors").read_bytes())
        result = PRUNE(model, tmp_path / "out")
        for name in kept:
            assert (tmp_path / "out" / name).read_text() == "something"
        left = {text.partition(":")[0] for text in result.not_copied}
        assert left == {*stale, *magic, "blob5"}
        assert not any((tmp_path / "out" / name).exists() for name in left)


class TestWhatAFileCannotHold:
    @pytest.mark.parametrize(
        "entry", [np.array(["cat"]), np.ones(3, complex), np.ones(3, np.longdouble), np.array([object()])]
    )
    @pytest.mark.parametrize("write", WRITERS)
    def test_the_entry_is_named(self, write, entry, tmp_path):
        with pytest.raises((ValueError, TypeError), match="my_entry"):
            write({"w": matrix(), "my_entry": entry}, tmp_path / "out")
        assert not list(tmp_path.iterdir())

    def test_quantised_tensors_of_pytorch(self, tmp_path):
        torch = pytest.importorskip("torch")
        quantised = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
        with pytest.raises((ValueError, TypeError), match="my_entry"):
            PRUNE({"w": torch.ones(64, 48), "my_entry": quantised}, tmp_path / "out")

    @pytest.mark.parametrize("write", WRITERS)
    def test_a_name_that_the_format_keeps(self, write, tmp_path):
        with pytest.raises(ValueError, match="__metadata__, which safetensors files keep for themselves"):
            write({"__metadata__": matrix(), "w": matrix()}, tmp_path / "out")

    def test_a_full_disk_is_told_with_the_path(self, model, tmp_path, monkeypatch):
        def full(descriptor):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left") as caught:
            PRUNE(model, tmp_path / "out")
        assert str(tmp_path) in caught.value.filename


class TestByteOrder:
    """Numbers count, not bytes: upcast bfloat16 has bytes that are finite numbers either way round."""

    @pytest.mark.parametrize("dtype", [">f4", ">f8", ">f2"])
    @pytest.mark.parametrize("container", ["mapping", "npz", "misaligned"])
    def test_arrays_of_the_other_byte_order(self, dtype, container, tmp_path):
        numbers = {"w": np.round(matrix() * 4), "b": np.arange(5.0), "i": np.arange(7), "c": np.ones(3, np.complex64)}
        types = {"w": dtype, "b": dtype, "i": ">i8", "c": ">c8"}
        swapped = {name: array.astype(types[name]) for name, array in numbers.items()}
        source = dict(swapped)
        if container == "npz":
            np.savez(tmp_path / "m.npz", **swapped)
            source = tmp_path / "m.npz"
        elif container == "misaligned":
            for name, array in swapped.items():
                memory = np.empty(array.nbytes + 1, np.uint8)[1:]
                memory[:] = np.frombuffer(array.tobytes(), np.uint8)
                source[name] = memory.view(array.dtype).reshape(array.shape)
        native = {name: array.astype(array.dtype.newbyteorder("=")) for name, array in swapped.items()}
        for write, file in ((PRUNE, "pruned"), (partial(mpfast.compress, rank=3), "dense")):
            write(source, tmp_path / file)
            write(native, tmp_path / f"{file}-native")
            found = load_file(tmp_path / file / "model.safetensors")
            for name, wanted in load_file(tmp_path / f"{file}-native" / "model.safetensors").items():
                np.testing.assert_array_equal(found[name], wanted)
            for name in "bic":
                np.testing.assert_array_equal(found[name], numbers[name])
        checked = mpfast.verify(tmp_path / "pruned", source)
        assert checked.ok
        rows = [mpfast.analyze(given, progress=False)[0].sigma_plus for given in (source, native)]
        assert rows[0] == rows[1]

    def test_a_file_of_one_array(self, tmp_path):
        W = np.round(matrix() * 4)
        np.save(tmp_path / "w.npy", W.astype(">f4"))
        PRUNE(tmp_path / "w.npy", tmp_path / "out")
        keep = PRUNE({"w": W}).masks["w"]
        np.testing.assert_array_equal(load_file(tmp_path / "out" / "model.safetensors")["w"], W * keep)
        assert mpfast.verify(tmp_path / "out").ok


class TestVerify:
    @pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
    def test_files_of_pytorch(self, dtype, tmp_path):
        torch = pytest.importorskip("torch")
        kind = getattr(torch, dtype)
        state = {"a.weight": torch.randn(64, 48).to(kind), "n.weight": torch.ones(64).to(kind)}
        for name in ("float8_e4m3fn", "float8_e5m2"):
            state[name] = torch.randn(16, 16).to(getattr(torch, name))
        state |= {"i": torch.arange(4), "flag": torch.tensor([True, False]), "c": torch.ones(2, dtype=torch.complex64)}
        torch.save(state, tmp_path / "m.pt")
        PRUNE(tmp_path / "m.pt", tmp_path / "out")
        found = mpfast.verify(tmp_path / "out")
        assert (found.ok, found.layers, found.untouched) == (True, 1, len(state) - 1)
        assert mpfast.verify(tmp_path / "out", state).ok
        state["float8_e5m2"] = -state["float8_e5m2"].float()
        state["float8_e5m2"] = state["float8_e5m2"].to(torch.float8_e5m2)
        assert "float8_e5m2: the source is not the one" in mpfast.verify(tmp_path / "out", state).problems[0]

    def test_onnx(self, tmp_path):
        onnx = pytest.importorskip("onnx")
        tensors = [onnx.numpy_helper.from_array(matrix(), "w"), onnx.numpy_helper.from_array(np.arange(4), "i")]
        graph = onnx.helper.make_graph([], "g", [], [], initializer=tensors)
        onnx.save(onnx.helper.make_model(graph), tmp_path / "m.onnx")
        PRUNE(tmp_path / "m.onnx", tmp_path / "out")
        found = mpfast.verify(tmp_path / "out")
        assert (found.ok, found.untouched) == (True, 1)

    def test_a_moved_source_verifies_and_an_edited_one_does_not(self, model, tmp_path):
        PRUNE(model, tmp_path / "out")
        assert mpfast.verify(tmp_path / "out").ok
        model.rename(tmp_path / "moved")
        without = mpfast.verify(tmp_path / "out")
        # The other tensors are known by their hashes, the entries that are kept by nothing.
        assert (without.ok, without.source, without.untouched) == (True, None, 3)
        assert "entries that the masks keep" in without.not_compared[0]
        moved = mpfast.verify(tmp_path / "out", tmp_path / "moved")
        assert moved.ok
        assert moved.not_compared == ("files beside the weights (configuration, tokenizer)",)
        mark = json.loads((tmp_path / "out" / ".mpfast.json").read_text())
        assert moved.source_hash == mark["source"]["hash"]
        for name, word in (
            ("1.bias", "this tensor, which is not pruned, differs"),
            ("1.weight", "content hash differs"),
        ):
            (tmp_path / "model").mkdir(exist_ok=True)
            for file in (tmp_path / "moved").glob("*.safetensors"):
                tensors = load_file(file)
                if name in tensors:
                    tensors[name] = tensors[name] + np.float32(1)
                save_file(tensors, model / file.name)
            problems = mpfast.verify(tmp_path / "out").problems
            assert any(f"{name}: the source is not the one that was pruned" in text for text in problems)
            assert any(word in text for text in problems)

    def test_a_damaged_output_is_found_without_the_source(self, model, tmp_path):
        PRUNE(model, tmp_path / "out")
        model.rename(tmp_path / "moved")
        file = tmp_path / "out" / "model-2.safetensors"
        tensors = load_file(file)
        save_file({**tensors, "2.bias": -tensors["2.bias"]}, file)
        assert "2.bias: is not pruned, but its content hash" in mpfast.verify(tmp_path / "out").problems[0]

    def test_tensors_without_entries(self, tmp_path):
        model = {"w.weight": matrix(), "none": np.empty((0, 5), np.float32), "one": np.float32(3)}
        PRUNE(model, tmp_path / "out")
        assert mpfast.verify(tmp_path / "out", model).untouched == 2
        assert mpfast.verify(tmp_path / "out").untouched == 2
        mpfast.compress(model, tmp_path / "a", base={**model, "w.weight": 2 * matrix(1)}, rank=2)
        PRUNE(tmp_path / "out", tmp_path / "again")
        assert mpfast.verify(tmp_path / "again").ok

    def test_tensors_of_types_that_are_not_read_are_compared(self, tmp_path):
        """Narrower than a byte: by the bytes of the file."""
        header = {
            "w": {"dtype": "F32", "shape": [64, 48], "data_offsets": [0, 64 * 48 * 4]},
            "q": {"dtype": "F4", "shape": [16], "data_offsets": [64 * 48 * 4, 64 * 48 * 4 + 8]},
        }
        text = json.dumps(header).encode()
        data = matrix().tobytes() + bytes(range(8))
        (tmp_path / "m.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
        PRUNE(tmp_path / "m.safetensors", tmp_path / "out")
        found = mpfast.verify(tmp_path / "out")
        assert (found.ok, found.untouched) == (True, 1)


def test_an_address_is_no_path():
    for address in ("https://host/x/model.safetensors", "s3://bucket/model", Path("https://host/x.safetensors")):
        with pytest.raises(FileNotFoundError, match="nothing is fetched from the network"):
            mpfast.analyze(address)
