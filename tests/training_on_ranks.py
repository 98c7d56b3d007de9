"""Trains on several processes under a SpectralMonitor, for test_monitor_processes.py: ``HOW[,HOW...] FOLDER``.

Every rank writes what its monitor knows in the end to ``FOLDER/HOW-RANK.json``.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist

import mpfast.integrations.monitor as core
from mpfast.integrations.monitor import Thresholds

STEPS = 4
# Weights that grow a little are alarming, so that the training ends before its last step.
ALARMING = {
    "seconds": None,
    "stop_on": ["spectral_norm"],
    "thresholds": Thresholds(spectral_norm=1 + 1e-9),
}


def write(folder: Path, how: str, monitor: core.SpectralMonitor, **others: object) -> None:
    known = {
        "latest": {name: one.sigma_plus for name, one in monitor.latest.items()},
        "skipped": dict(monitor.skipped),
        "should_stop": monitor.should_stop,
        "alarms": [(alarm.step, alarm.layer, alarm.kind) for alarm in monitor.alarms],
        "warned": sum(str(one.message).startswith("step ") for one in WARNED),
    }
    rank = dist.get_rank() if dist.is_initialized() else 0
    (folder / f"{how}-{rank}.json").write_text(json.dumps({**known, **others}))


def loop(how: str, folder: Path) -> None:
    """A loop of one's own. Weights are spoilt before the last step but one, so that the last is not reached."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(16, 24), torch.nn.ReLU(), torch.nn.Linear(24, 17))
    model[2].weight.requires_grad_(False)
    model = torch.nn.Sequential(model, torch.nn.Linear(17, 24))
    model = WRAPPED[how](model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    to = folder / f"{how}.jsonl" if how != "function" else broken
    monitor = core.SpectralMonitor(every=1, seconds=0 if how == "turns" else None, to=to)
    steps, failure = [], ""
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        torch.manual_seed(step)
        model(torch.randn(8, 16)).square().mean().backward()
        optimizer.step()
        if step == STEPS - 1 and how != "turns":
            with torch.no_grad():
                [*model.parameters()][-2].fill_(float("nan"))
        try:
            steps.append((step, sorted(monitor.update(model, step))))
        except (RuntimeError, OSError) as error:
            failure = f"{type(error).__name__}: {error}"
            break
        if monitor.should_stop:
            break
    write(folder, how, monitor, steps=steps, failure=failure)


def ddp(model: torch.nn.Module) -> torch.nn.Module:
    return torch.nn.parallel.DistributedDataParallel(model)


def fsdp2(model: torch.nn.Module) -> torch.nn.Module:
    from torch.distributed.fsdp import fully_shard

    mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
    fully_shard(model[0], mesh=mesh)
    return fully_shard(model, mesh=mesh)


def fsdp1(model: torch.nn.Module) -> torch.nn.Module:
    from torch.distributed.fsdp import FullyShardedDataParallel

    cpu = torch.device("cpu")
    options = {"device_id": cpu, "use_orig_params": True}  # frozen weights beside others need it
    model[1] = FullyShardedDataParallel(model[1], **options)
    return FullyShardedDataParallel(model, **options)


WRAPPED = {"ddp": ddp, "fsdp2": fsdp2, "turns": fsdp2, "function": fsdp2, "fsdp1": fsdp1, "alone": lambda model: model}


def broken(line: object) -> None:
    raise OSError("no space left on device")


def trainer(how: str, folder: Path) -> None:
    import transformers

    from mpfast.integrations.transformers import SpectralMonitor

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 32}
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2)
    )
    rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(0, 32, (48, 8))]
    settings = {"max_steps": 12, "per_device_train_batch_size": 2, "use_cpu": True, "disable_tqdm": True}
    arguments = transformers.TrainingArguments(
        str(folder / "run"), report_to=[], save_strategy="no", learning_rate=0.5, **settings
    )
    monitor = SpectralMonitor(every=1, to=folder / f"{how}.jsonl", **ALARMING)
    training = transformers.Trainer(model, arguments, train_dataset=rows, callbacks=[monitor])
    training.train()
    assert arguments.world_size == 2
    logged = [entry["step"] for entry in training.state.log_history if "spectral/layers" in entry]
    write(folder, how, monitor, ended=training.state.global_step, logged=logged)


def lightning(how: str, folder: Path) -> None:
    import lightning.pytorch as pl

    from mpfast.integrations.lightning import SpectralMonitor

    class Model(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.fc = torch.nn.Linear(16, 24)

        def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
            return -self.fc(batch).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.5)

    monitor = SpectralMonitor(every=1, to=folder / f"{how}.jsonl", **ALARMING)
    options = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "enable_checkpointing", "logger"), False)
    training = pl.Trainer(
        max_steps=12,
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        callbacks=[monitor],
        default_root_dir=folder,
        **options,
    )
    training.fit(Model(), torch.utils.data.DataLoader(torch.randn(64, 16), batch_size=2))
    assert training.world_size == 2
    write(folder, how, monitor, ended=training.global_step)


RUNS = dict.fromkeys(WRAPPED, loop) | {"trainer": trainer, "lightning": lightning}

if __name__ == "__main__":
    hows, place = sys.argv[1].split(","), Path(sys.argv[2])
    if "WORLD_SIZE" in os.environ and set(hows) <= set(WRAPPED):  # the trainers do it themselves
        dist.init_process_group("gloo")
    with warnings.catch_warnings(record=True) as WARNED:
        warnings.simplefilter("always")
        for each in hows:
            WARNED.clear()
            RUNS[each](each, place)
    if dist.is_initialized():
        dist.barrier()
    os._exit(0)  # before the threads of Gloo are taken down, which fails now and then
