"""Runs over the blocks of a checkpoint that were killed go on, and no work of another run is touched."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
import mpfast  # noqa: E402
from mpfast.integrations.torch import reconstruct_checkpoint, whole_checkpoints  # noqa: E402
from mpfast.integrations.torch.skeletons import Skeleton  # noqa: E402
from mpfast.support import CheckpointError  # noqa: E402

from .whole_models import batches, saved, tiny  # noqa: E402

# Few rows for each input, which the tiny models have, are said to be few.
pytestmark = pytest.mark.filterwarnings("ignore:.*fewer than 4 inputs per dimension")


KILLED = """
    import os, signal, sys
    from mpfast.integrations.torch import reconstruct_checkpoint
    sys.path.append(sys.argv[4])  # behind the installed mpfast: the sources beside the tests have no core
    from tests.whole_models import batches

    def progress(done, total):
        if done == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)

    reconstruct_checkpoint(sys.argv[1], sys.argv[2], batches("llama"), sparsity=0.5, progress=progress)
"""


def killed(folder, out, done):
    """Run the same in a process that is killed after so many blocks; 0: which is not."""
    arguments = [str(folder), str(out), str(done), str(Path(__file__).resolve().parent.parent)]
    script = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(KILLED), *arguments]
    return subprocess.run(script, check=False, capture_output=True, text=True, cwd=out.parent).returncode


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="nothing kills so hard here")
def test_a_killed_run_goes_on(tmp_path):
    """Killed twice, after the first and after the third of four blocks: the output has the bits of one run."""
    saved("llama", tmp_path / "model", num_hidden_layers=4)
    assert killed(tmp_path / "model", tmp_path / "whole", 0) == 0
    assert killed(tmp_path / "model", tmp_path / "out", 1) == -signal.SIGKILL
    work = tmp_path / ".out.mpfast-blocks"
    first = (work / "block-00000" / "record.json").stat()
    assert not (work / "block-00001").exists()
    assert not (tmp_path / "out").exists()
    assert killed(tmp_path / "model", tmp_path / "out", 3) == -signal.SIGKILL
    assert len(list(work.glob("block-*/record.json"))) == 3
    # Not made again.
    assert (work / "block-00000" / "record.json").stat().st_mtime_ns == first.st_mtime_ns
    assert killed(tmp_path / "model", tmp_path / "out", 0) == 0
    for name in ("model.safetensors", "masks.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    reports = [json.loads((tmp_path / name / "reconstruction.json").read_text()) for name in ("out", "whole")]
    assert reports[0]["layers"] == reports[1]["layers"]
    assert mpfast.verify(tmp_path / "out").ok
    assert not list(tmp_path.glob(".*.mpfast-*"))


class StopError(Exception):
    """Somebody has had enough."""


def stopped(folder, out, given, **options):
    def progress(done, total):
        raise StopError

    with pytest.raises(StopError):
        reconstruct_checkpoint(folder, out, given, progress=progress, **options)


def test_the_work_of_another_run_is_not_touched(tmp_path):
    saved("llama", tmp_path / "model")
    given, out = batches("llama"), tmp_path / "out"
    stopped(tmp_path / "model", out, given, sparsity=0.5)
    work = tmp_path / ".out.mpfast-blocks"
    before = {path: path.read_bytes() for path in work.rglob("*") if path.is_file()}
    assert len(before) > 2
    with pytest.raises(FileExistsError, match=r"1 finished blocks of another run \(sparsity differ\).*restart=True"):
        reconstruct_checkpoint(tmp_path / "model", out, given, sparsity=0.6)
    with pytest.raises(FileExistsError, match=r"another run \(data differ\)"):
        reconstruct_checkpoint(tmp_path / "model", out, given[:3], sparsity=0.5)
    assert {path: path.read_bytes() for path in work.rglob("*") if path.is_file()} == before
    result = reconstruct_checkpoint(tmp_path / "model", out, given, sparsity=0.6, restart=True)
    assert result.budget.sparsity == 0.6
    assert not work.exists()


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-100])


def one_bit_changed(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def one_tensor_renamed(path):
    content = path.read_bytes()
    at = content.index(b"weights:") + len(b"weights:")
    path.write_bytes(content[:at] + b"M" + content[at + 1 :])


def no_file_listed(path):
    path.write_text(json.dumps({**json.loads(path.read_text()), "files": {}}))


def a_list_written(path):
    path.write_text("[]")


@pytest.mark.parametrize(
    ("damage", "file", "fact"),
    [
        (one_tensor_renamed, "00001.safetensors", r"00001\.safetensors: holds other weights than were written"),
        (no_file_listed, "record.json", r"record\.json: is not as it was written"),
        (a_list_written, "record.json", r"record\.json: is not as it was written"),
        (cut_off, "00001.safetensors", r"00001\.safetensors: .*"),
        (one_bit_changed, "00001.safetensors", r"00001\.safetensors: holds other weights than were written"),
        (Path.unlink, "00001.safetensors", ".*"),
        (cut_off, "record.json", r"record\.json: .*"),
    ],
)
def test_a_finished_block_that_was_damaged_can_be_removed(damage, file, fact, tmp_path):
    saved("llama", tmp_path / "model")
    given = batches("llama")
    stopped(tmp_path / "model", tmp_path / "out", given, sparsity=0.5)
    block = tmp_path / ".out.mpfast-blocks" / "block-00000"
    damage(block / file)
    with pytest.raises(CheckpointError, match=rf"{fact}; remove block-00000, and it is done anew"):
        reconstruct_checkpoint(tmp_path / "model", tmp_path / "out", given, sparsity=0.5)
    shutil.rmtree(block)
    reconstruct_checkpoint(tmp_path / "model", tmp_path / "out", given, sparsity=0.5)
    reconstruct_checkpoint(tmp_path / "model", tmp_path / "whole", given, sparsity=0.5)
    whole, mended = (tmp_path / name / "model.safetensors" for name in ("whole", "out"))
    assert mended.read_bytes() == whole.read_bytes()


def test_what_is_fitted_of_a_block_is_let_go_of(tmp_path, monkeypatch):
    """When the last matrix of a block is fitted, the others are in files and no longer in memory."""
    saved("llama", tmp_path / "model")
    left = []
    unload = Skeleton.unload

    def spy(self, names, tensors):
        unload(self, names, tensors)
        left.append({name for name in tensors if tensors[name].dim() == 2})
        alive = {name for name, parameter in self.model.named_parameters() if not parameter.is_meta}
        assert {name for name in alive if name in tensors or name.endswith("proj.weight")} == set(tensors)

    monkeypatch.setattr(Skeleton, "unload", spy)
    reconstruct_checkpoint(tmp_path / "model", tmp_path / "out", batches("llama"), sparsity=0.5)
    assert [len(names) for names in left] == [6, 5, 4, 3, 2, 1, 0] * 2


def test_another_model_is_another_run(tmp_path):
    saved("llama", tmp_path / "model")
    stopped(tmp_path / "model", tmp_path / "out", batches("llama"), sparsity=0.5)
    model = tiny("llama")
    with torch.no_grad():
        model.lm_head.weight += 1
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(FileExistsError, match=r"another run \(model differ\)"):
        reconstruct_checkpoint(tmp_path / "model", tmp_path / "out", batches("llama"), sparsity=0.5)


def test_a_change_that_no_sample_of_the_files_sees(tmp_path, monkeypatch):
    """The identity of a model is a sample of its bytes; a finished block is told by all of them."""
    saved("llama", tmp_path / "model")
    stopped(tmp_path / "model", tmp_path / "out", batches("llama"), sparsity=0.5)
    monkeypatch.setattr(whole_checkpoints, "content_sample_hash", lambda path: noted["model"])
    noted = json.loads((tmp_path / ".out.mpfast-blocks" / "run.json").read_text())
    model = tiny("llama")
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[3, 5] += 1
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"model\.layers\.0: has other weights.*restart=True"):
        reconstruct_checkpoint(tmp_path / "model", tmp_path / "out", batches("llama"), sparsity=0.5)


def test_nothing_is_left_of_a_run_that_did_nothing(tmp_path):
    saved("llama", tmp_path / "model")
    with pytest.raises(ValueError, match="input_ids"):
        reconstruct_checkpoint(tmp_path / "model", tmp_path / "out", [{"nothing": 1}], sparsity=0.5)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
