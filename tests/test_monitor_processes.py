"""The spectral monitor where several processes train: one measures, all hand over their shares, and all stop."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mpfast.integrations.monitor import SpectralMonitor, read_log

TRAINING = Path(__file__).with_name("training_on_ranks.py")
ON_TWO = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
LAYERS = ["0.0.weight", "1.weight"]


def train(launcher, how, folder):
    """Run to the end; what hangs is killed with all its processes."""
    process = subprocess.Popen(
        [*launcher, str(TRAINING), how, str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=500)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        pytest.fail(f"{how}: the processes wait for each other")
    assert process.returncode == 0, output[-2000:]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A loop on one process, and on two under each way to share parameters."""
    torch = pytest.importorskip("torch")
    if not torch.distributed.is_available():
        pytest.skip("this PyTorch has no distributed")
    folder = tmp_path_factory.mktemp("runs")
    train([sys.executable], "alone", folder)
    train(ON_TWO, "ddp,fsdp2,turns,function,fsdp1", folder)
    return folder


def ranks(folder, how):
    return [json.loads((folder / f"{how}-{rank}.json").read_text()) for rank in range(2)]


def lines(folder, how):
    """What is in the log, but for times."""
    log = read_log(folder / f"{how}.jsonl")
    return [{**vars(one), "seconds": 0} for one in log.measurements], log.alarms, dict(log.skipped)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "fsdp2"])
def test_two_processes_log_what_one_does_and_stop_together(runs, how):
    measured, alarms, skipped = lines(runs, "alone")
    assert [(one["step"], one["layer"]) for one in measured] == [
        (1, LAYERS[0]),
        (1, LAYERS[1]),
        (2, LAYERS[0]),
        (2, LAYERS[1]),
        (3, LAYERS[0]),
    ]
    # Gradients of the same batch are averaged: (a + a) / 2 is a, to the bit.
    assert lines(runs, how) == (measured, alarms, skipped)
    first, second = ranks(runs, how)
    for one in (first, second):
        assert one["should_stop"]
        assert one["skipped"] == {"0.2.weight": "frozen: does not train"}
        assert [step for step, _ in one["steps"]] == [1, 2, 3]
    assert first["alarms"] == [[3, LAYERS[1], "non_finite"]]
    assert (first["warned"], second["warned"]) == (1, 0)
    assert second["latest"] == {}
    assert not any(scalars for _, scalars in second["steps"])


@pytest.mark.slow
def test_layers_take_turns_on_all_processes(runs):
    measured, _, _ = lines(runs, "turns")
    assert [one["layer"] for one in measured] == LAYERS * 2
    assert [[step for step, _ in one["steps"]] for one in ranks(runs, "turns")] == [[1, 2, 3, 4]] * 2


@pytest.mark.slow
def test_what_fails_on_the_process_that_measures_fails_on_all(runs):
    first, second = ranks(runs, "function")
    assert first["failure"] == "OSError: no space left on device"
    assert second["failure"].startswith("RuntimeError: ")
    assert "rank 0: OSError: no space left on device" in second["failure"]


@pytest.mark.slow
def test_flat_parameters_are_left_out_with_a_reason(runs):
    for one in ranks(runs, "fsdp1"):
        assert one["latest"] == {}
        assert set(one["skipped"]) == {"0.0.weight", "0.2.weight", "1.weight"}
        assert all("FSDP1" in why and "fully_shard" in why for why in one["skipped"].values())
        assert [step for step, _ in one["steps"]] == [1, 2, 3, 4]
    assert not (runs / "fsdp1.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("how", "launcher"), [("trainer", ON_TWO), ("lightning", [sys.executable])])
def test_trainers_stop_on_all_processes(tmp_path, how, launcher):
    needed = {"trainer": ("transformers", "accelerate"), "lightning": ("lightning",)}[how]
    if missing := [name for name in ("torch", *needed) if importlib.util.find_spec(name) is None]:
        pytest.skip(f"{', '.join(missing)} not installed")
    train(launcher, how, tmp_path)
    first, second = ranks(tmp_path, how)
    assert first["ended"] == second["ended"] == 3
    assert (first["should_stop"], second["should_stop"]) == (True, True)
    assert {step for step, _, _ in first["alarms"]} == {3}
    assert first["warned"] == len(first["alarms"]) == len(first["latest"])
    assert (second["alarms"], second["latest"], second["warned"]) == ([], {}, 0)
    log = read_log(tmp_path / f"{how}.jsonl")
    assert [one.step for one in log.of(log.layers[0])] == [0, 1, 2, 3]  # of one process
    assert len(log.alarms) == len(first["alarms"])
    if how == "trainer":
        assert (first["logged"], second["logged"]) == ([0, 1, 2, 3], [])


@pytest.fixture
def four_processes():
    """Pretend to be the first of four that do nothing."""
    torch = pytest.importorskip("torch")
    if not torch.distributed.is_available():
        pytest.skip("this PyTorch has no distributed")
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    yield torch
    torch.distributed.destroy_process_group()


def test_what_some_of_the_processes_share_is_left_out_with_a_reason(four_processes):
    torch = four_processes
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import fully_shard

    model = torch.nn.Sequential(*(torch.nn.Linear(16, 16) for _ in range(4)))
    fully_shard(model[0], mesh=DeviceMesh("cpu", [0, 1]))
    fully_shard(model[1], mesh=DeviceMesh("cpu", [0, 1, 2, 3]))
    fully_shard(model[2], mesh=DeviceMesh("cpu", [0]))
    monitor = SpectralMonitor(every=1, seconds=None, to=None, exclude="1.*")
    monitor.update(model, 1)
    assert list(monitor.latest) == ["2.weight", "3.weight"]
    assert "some of the processes" in monitor.skipped["0.weight"]


def test_wrappers_do_not_change_names(four_processes):
    torch = four_processes
    model = torch.nn.Sequential(torch.nn.Linear(16, 16))
    monitor = SpectralMonitor(every=1, to=None)
    monitor.update(torch.compile(torch.nn.parallel.DistributedDataParallel(model)), 1)
    assert list(monitor.latest) == ["0.weight"]


def test_zero_3_is_left_out_with_a_reason():
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(16, 16))
    model[0].weight = torch.nn.Parameter(torch.empty(0))  # as DeepSpeed leaves it
    model[0].weight.ds_id, model[0].weight.ds_shape = 0, torch.Size([16, 16])
    monitor = SpectralMonitor(every=1, to=None)
    monitor.update(model, 1)
    assert not monitor.latest
    assert "ZeRO-3" in monitor.skipped["0.weight"]
