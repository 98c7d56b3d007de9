"""The spectral monitor: its clock, its turns, its file, its alarms, and real runs of the trainers it plugs into."""

from __future__ import annotations

import json
from importlib.resources import files

import numpy as np
import pytest

import mpfast
from mpfast.integrations.monitor import MEASURES, Measurement, SpectralMonitor, Thresholds, read_log
from mpfast.integrations.monitor.alarms import alarms_of


def weights(layers=3):
    rng = np.random.default_rng(0)
    return {f"{at}.weight": rng.standard_normal((24, 36)) for at in range(layers)} | {"bias": np.zeros(24)}


def test_measures_every_so_many_steps_and_agrees_with_spectrum():
    model = weights(2)
    monitor = SpectralMonitor(every=3, seconds=None, to=None, scalars=MEASURES)
    due = {step: monitor.update(model) for step in range(1, 8)}
    assert [step for step, scalars in due.items() if scalars] == [3, 6]
    for name in ("0.weight", "1.weight"):
        found = mpfast.spectrum(model[name])
        assert due[3][f"spectral/{name}/sigma_plus"] == found.edge.sigma_plus
        assert due[3][f"spectral/{name}/stable_rank"] == found.metrics()["stable_rank"]
        assert due[3][f"spectral/{name}/spikes"] == found.edge.spikes
    same = {key: value for key, value in due[3].items() if not key.endswith("seconds")}
    assert same == {key: value for key, value in due[6].items() if not key.endswith("seconds")}  # the same seed


def test_without_time_layers_take_turns():
    monitor = SpectralMonitor(every=1, seconds=0, to=None)
    model = weights(3)
    turns = []
    for step in range(1, 7):
        monitor.update(model, step)
        turns.append([name for name, one in monitor.latest.items() if one.step == step])
    assert turns == [["0.weight"], ["1.weight"], ["2.weight"]] * 2


def test_the_file_has_provenance_and_survives_a_killed_and_resumed_run(tmp_path):
    path = tmp_path / "spectral.jsonl"
    model = weights(1)
    first = SpectralMonitor(every=1, to=path, seed=7)
    for step in (1, 2, 3, 4):
        first.update(model, step)
    with path.open("ab") as file:
        file.write(b'{"step": 5, "lay')  # killed in the middle of a line
    assert [one.step for one in read_log(path).measurements] == [1, 2, 3, 4]
    again = SpectralMonitor(every=1, to=path, seed=7)
    again.update({"0.weight": 2 * model["0.weight"]}, 3)
    log = read_log(path)
    assert [one.step for one in log.measurements] == [1, 2, 3]
    assert log.measurements[2].fro_norm == pytest.approx(2 * log.measurements[1].fro_norm)
    assert log.provenance.options["seed"] == 7
    assert log.layers == ("0.weight",)
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_another_file_is_not_appended_to(tmp_path):
    other = tmp_path / "notes.txt"
    other.write_text("mine\n")
    with pytest.raises(ValueError, match="no log of a SpectralMonitor"):
        SpectralMonitor(to=other)
    with pytest.raises(ValueError, match="line 1"):
        read_log(other)
    assert other.read_text() == "mine\n"


def test_lines_go_to_a_function():
    lines = []
    SpectralMonitor(every=1, to=lines.append).update(weights(2), 1)
    assert [line.get("layer") for line in lines] == [None, "0.weight", "1.weight"]
    assert lines[0]["schema"] == "mpfast.spectral/1"


def measured(step, **changed):
    values = dict.fromkeys(MEASURES, 10.0) | {"spikes": 10, "seconds": 0.0} | changed
    return Measurement(step, "fc", **values)


@pytest.mark.parametrize(
    ("changed", "kinds"),
    [
        ({"stable_rank": 5.1}, []),
        ({"stable_rank": 4.9}, ["stable_rank"]),
        ({"spikes": 20}, []),
        ({"spikes": 21}, ["spikes"]),
        ({"spectral_norm": 19.9}, []),
        ({"spectral_norm": 20.1}, ["spectral_norm"]),
    ],
)
def test_alarms_compare_with_the_median_of_earlier_measurements(changed, kinds):
    earlier = [measured(step) for step in range(3)]
    assert [alarm.kind for alarm in alarms_of(measured(3, **changed), earlier, Thresholds())] == kinds
    assert not alarms_of(measured(2, **changed), earlier[:2], Thresholds())


def test_a_few_spikes_more_are_no_alarm():
    earlier = [measured(step, spikes=1) for step in range(3)]
    assert not alarms_of(measured(3, spikes=8), earlier, Thresholds())
    assert alarms_of(measured(3, spikes=9), earlier, Thresholds())


def test_nan_is_an_alarm_that_stops_and_is_written(tmp_path):
    model = weights(2)
    monitor = SpectralMonitor(every=1, to=tmp_path / "log.jsonl")
    monitor.update(model, 1)
    assert not monitor.should_stop
    model["1.weight"][3, 4] = np.nan
    with pytest.warns(UserWarning, match=r"step 2: 1\.weight: .*non-finite"):
        monitor.update(model, 2)
    assert monitor.should_stop
    assert [(alarm.step, alarm.layer, alarm.kind) for alarm in monitor.alarms] == [(2, "1.weight", "non_finite")]
    (alarm,) = read_log(tmp_path / "log.jsonl").alarms
    assert (alarm["step"], alarm["layer"], alarm["alarm"]) == (2, "1.weight", "non_finite")


@pytest.mark.parametrize(
    "options",
    [{"every": 0}, {"seconds": -1}, {"scalars": ["rank"]}, {"stop_on": ["loss"]}, {"tol": 2}, {"to": "no/where.jsonl"}],
)
def test_options_that_cannot_be(options):
    with pytest.raises(ValueError, match=f"SpectralMonitor.*{next(iter(options))}"):
        SpectralMonitor(**{"to": None} | options)


def test_frozen_weights_are_left_out():
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(16, 24), torch.nn.Linear(24, 16))
    model[0].weight.requires_grad_(False)
    monitor = SpectralMonitor(every=1, to=None)
    monitor.update(model, 1)
    assert list(monitor.latest) == ["1.weight"]
    assert monitor.skipped == {"0.weight": "frozen: does not train"}


def test_parameters_that_ranks_share_are_gathered():
    torch = pytest.importorskip("torch")
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    distributed = torch.distributed
    if not distributed.is_available():
        pytest.skip("this PyTorch has no distributed")
    model = torch.nn.Sequential(torch.nn.Linear(16, 24), torch.nn.Linear(24, 16))
    whole = {name: value.detach().clone() for name, value in model.named_parameters()}
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        fsdp.fully_shard(model, mesh=mesh)
        assert hasattr(model[0].weight, "full_tensor")
        monitor = SpectralMonitor(every=1, seconds=None, to=None)
        monitor.update(model, 1)
    finally:
        distributed.destroy_process_group()
    assert list(monitor.latest) == ["0.weight", "1.weight"]
    for name, one in monitor.latest.items():
        assert one.sigma_plus == mpfast.spectrum(whole[name]).edge.sigma_plus


def test_a_run_of_transformers_trainer(tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from mpfast.integrations.transformers import SpectralMonitor as Callback

    class Logged(transformers.TrainerCallback):
        logs: list[tuple[int, dict]] = []  # noqa: RUF012

        def on_log(self, args, state, control, logs=None, **kwargs):
            self.logs.append((state.global_step, dict(logs)))

    config = transformers.LlamaConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=32,
    )
    torch.manual_seed(0)
    rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(0, 32, (12, 8))]

    def train(monitor, **options):
        settings = {"max_steps": 4, "per_device_train_batch_size": 2, "use_cpu": True, "disable_tqdm": True} | options
        arguments = transformers.TrainingArguments(str(tmp_path), report_to=[], save_strategy="no", **settings)
        trainer = transformers.Trainer(
            transformers.LlamaForCausalLM(config), arguments, train_dataset=rows, callbacks=[Logged(), monitor]
        )
        trainer.train()
        return trainer

    monitor = Callback(every=2, seconds=None, to=tmp_path / "spectral.jsonl", include="*self_attn*")
    trainer = train(monitor)
    key = "spectral/model.layers.0.self_attn.q_proj.weight/stable_rank"
    assert [entry["step"] for entry in trainer.state.log_history if key in entry] == [0, 2, 4]
    assert [step for step, logs in Logged.logs if key in logs] == [0, 2, 4]
    assert {one.step for one in read_log(tmp_path / "spectral.jsonl").measurements} == {0, 2, 4}
    assert all(".self_attn." in name for name in monitor.latest)

    ended = Callback(every=1, to=None, stop_on=["spectral_norm"], thresholds=Thresholds(spectral_norm=1 + 1e-9))
    with pytest.warns(UserWarning, match="largest singular value"):
        assert train(ended, learning_rate=0.5, max_steps=12).state.global_step < 12


def test_a_run_of_lightning(tmp_path):
    torch = pytest.importorskip("torch")
    try:
        from mpfast.integrations.lightning import SpectralMonitor as Callback
    except ImportError:
        pytest.skip("neither lightning nor pytorch_lightning is installed")
    pl = next(base for base in Callback.__mro__ if "lightning" in base.__module__ and base.__name__ == "Callback")
    import importlib

    package = importlib.import_module(
        "lightning.pytorch" if pl.__module__.startswith("lightning.") else "pytorch_lightning"
    )
    logger_base = importlib.import_module(f"{package.__name__}.loggers.logger").DummyLogger

    class Logged(logger_base):
        def __init__(self):
            super().__init__()
            self.rows = []

        def log_metrics(self, metrics, step=None):
            self.rows.append((step, dict(metrics)))

    class Model(package.LightningModule):
        def __init__(self):
            super().__init__()
            self.fc = torch.nn.Linear(16, 24)

        def training_step(self, batch, _):
            return self.fc(batch).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    batches = torch.utils.data.DataLoader(torch.randn(16, 16), batch_size=2)
    logged, monitor = Logged(), Callback(every=2, to=tmp_path / "spectral.jsonl")
    options = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    options |= {"enable_checkpointing": False, "default_root_dir": tmp_path}
    # Two batches make a step.
    trainer = package.Trainer(max_steps=4, accumulate_grad_batches=2, logger=logged, callbacks=[monitor], **options)
    trainer.fit(Model(), batches)
    assert [step for step, metrics in logged.rows if "spectral/fc.weight/spikes" in metrics] == [0, 2, 4]
    assert [one.step for one in read_log(tmp_path / "spectral.jsonl").of("fc.weight")] == [0, 2, 4]


def test_a_picture_of_layers_over_steps(tmp_path):
    pytest.importorskip("matplotlib").use("Agg")
    from matplotlib.figure import Figure

    from mpfast.integrations.monitor import plot_log

    monitor = SpectralMonitor(every=1, seconds=None, to=tmp_path / "log.jsonl")
    for step in (1, 2, 3):
        monitor.update(weights(2), step)
    log = read_log(tmp_path / "log.jsonl")
    ax = plot_log(log, "spikes", include="1.*", ax=Figure().add_subplot())
    drawn = [line for line in ax.get_lines() if len(line.get_xdata())]
    assert [list(line.get_xdata()) for line in drawn] == [[1, 2, 3]]
    assert list(drawn[0].get_ydata()) == [one.spikes for one in log.of("1.weight")]
    for wrong in ({"measure": "loss"}, {"include": "2.*"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            plot_log(log, **wrong)


def test_runs_are_laid_over_each_other(tmp_path):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    from mpfast.integrations.monitor import plot_log

    for name, layers in (("a", 2), ("b", 3)):
        monitor = SpectralMonitor(every=1, seconds=None, to=tmp_path / f"{name}.jsonl")
        for step in (1, 2):
            monitor.update(weights(layers), step)
    runs = {name: read_log(tmp_path / f"{name}.jsonl") for name in "ab"}
    ax = plot_log(runs, "fro_norm", ax=Figure().add_subplot())
    drawn = [(line.get_color(), line.get_linestyle()) for line in ax.get_lines() if len(line.get_xdata())]
    assert drawn == [("C0", "-"), ("C1", "-"), ("C0", "--"), ("C1", "--"), ("C2", "--")]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "0.weight", "1.weight", "2.weight", "b"]


def test_the_command_draws_the_file_of_a_monitor(tmp_path, capsys, monkeypatch):
    main = pytest.importorskip("mpfast.cli").main
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as end:
            main(["plot", *arguments])
        return end.value.code, *capsys.readouterr()

    for name in ("spectral", "other"):
        monitor = SpectralMonitor(every=1, seconds=None, to=f"{name}.jsonl")
        for step in (1, 2, 5):
            monitor.update(weights(2), step)
    assert run("spectral.jsonl") == (0, "spectral.png: stable_rank of 1 run, steps 1 to 5\n", "")
    assert run("spectral.jsonl")[0] == 0  # its own picture is replaced
    assert (tmp_path / "spectral.png").read_bytes().startswith(b"\x89PNG")
    code, out, _ = run("spectral.jsonl", "other.jsonl", "--metric", "spikes", "--include", "1.*", "-o", "both.svg")
    assert (code, out) == (0, "both.svg: spikes of 2 runs, steps 1 to 5\n")
    assert "<svg" in (tmp_path / "both.svg").read_text()
    code, out, _ = run("spectral.jsonl", "other.jsonl", "--exclude", "1.*", "--json", "-")
    schema = json.loads((files("mpfast.models") / "schemas" / "plot.json").read_text())
    pytest.importorskip("jsonschema").validate(document := json.loads(out), schema)
    logged = [one.stable_rank for one in read_log("other.jsonl").of("0.weight")]
    (layer,) = document["runs"][1]["layers"]
    assert layer == {"name": "0.weight", "steps": [1, 2, 5], "values": logged, "alarms": []}
    (tmp_path / "mine.png").write_bytes(b"\x89PNG, a photograph")
    before = (tmp_path / "spectral.jsonl").read_bytes()
    for wrong, code, message in (
        (("spectral.jsonl", "-o", "mine.png"), 1, "not replaced"),
        (("spectral.jsonl", "-o", "spectral.jsonl"), 2, "must end in .png or .svg"),
        (("spectral.jsonl", "--metric", "loss"), 2, "'loss' is not one of stable_rank"),
        (("spectral.jsonl", "--include", "9.*"), 2, "include matches no layer"),
        (("spectral.jsonl", "--exclude", "*"), 2, "exclude leaves no layer"),
        (("missing.jsonl",), 1, "missing.jsonl: no such file"),
        (("mine.png",), 1, "which is read"),
    ):
        found = run(*wrong)
        assert found[0] == code, found
        assert message in found[2]
    assert (tmp_path / "spectral.jsonl").read_bytes() == before
    assert (tmp_path / "mine.png").read_bytes() == b"\x89PNG, a photograph"
