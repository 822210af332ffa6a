"""A tracker logs what a training does; neither its weights nor its cell's identity notice it."""

import importlib.util
import json
from pathlib import Path

import accelerate.tracking as accelerated
import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from accelerate.utils import LoggerType
from trained import STEPS, assert_same, fit, make_trainer, weights
from typer.testing import CliRunner

import cleanprior as cp
from cleanprior.cells.folder import CellFiles, TrainingFiles
from cleanprior.cells.identity import Identity, training_identity
from cleanprior.cli import build_app
from cleanprior.config import build, compose
from cleanprior.errors import UserError
from cleanprior.training import tracking
from cleanprior.training.tracking import TRACKERS, Tracking

TINY = [
    "method=naive",
    "training.budget=640",
    "training.batch=32",
    "training.device=cpu",
    "training.log_every=5",
    "backbone.hid_channels=[8,16]",
    "backbone.mod_features=16",
    "evaluation.test_images=8",
    "evaluation.samples=16",
    "evaluation.sampling_seeds=[0]",
    "evaluation.draws=1",
    "evaluation.features=pixels",
    "posterior.steps=2",
    "sampler.steps=2",
]
is_there = pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed"
)


@pytest.fixture
def runs(monkeypatch):
    """Every run of a made-up tracker in tensorboard's place: what it was given, what it logged."""
    made = []

    class MadeUp(GeneralTracker):
        name = "tensorboard"
        requires_logging_directory = True

        def __init__(self, project, folder, **given):
            super().__init__()
            self.folder, self.given, self.logged, self.is_over = folder, given, [], False
            made.append(self)

        @property
        def tracker(self):
            return self

        def store_init_configuration(self, values):
            pass

        def log(self, values, step=None, **given):
            assert not self.is_over and all(isinstance(v, float) for v in values.values())
            self.logged.append((step, values))

        def finish(self):
            self.is_over = True

    monkeypatch.setitem(accelerated.LOGGER_TYPE_TO_CLASS, "tensorboard", MadeUp)
    monkeypatch.setattr(accelerated, "_available_trackers", [LoggerType.TENSORBOARD])
    monkeypatch.setattr(tracking, "find_spec", lambda name: name == "tensorboard")
    return made


@pytest.mark.parametrize("name", ["naive", "em"])
def test_it_gets_what_happens_and_the_weights_do_not_notice(setting, trained, tmp_path, runs, name):
    *_, report, expected = trained(name)
    trainer = make_trainer(tracker="tensorboard", log_every=5)
    networks, _ = fit(setting(name), 0, tmp_path, trainer)
    assert_same(weights(networks), expected)
    (run,) = runs
    assert run.is_over and Path(run.folder) == TrainingFiles(tmp_path).tracked
    moments = [(k, v) for k, v in run.logged if "loss" in v]
    rates = [v["learning_rate"] for _, v in moments]
    if name == "naive":
        assert [k for k, _ in moments] == [0, 5, 10, 15, STEPS - 1]
    assert [k for k, _ in moments] == sorted({k for k, _ in moments}) and moments[0][0] == 0
    assert moments[-1][0] == STEPS - 1 and rates[-1] < max(rates) <= 2e-3
    assert all(v["images_per_second"] > 0 for _, v in moments)
    losses = {h["loss"] for h in report.history}
    assert {v["loss"] for _, v in moments} <= losses
    if name == "em":
        assert {v["round"] for _, v in moments} != {0.0}
        assert any(key.startswith("E-step/") for _, v in run.logged for key in v)


def test_a_resumed_training_goes_on_in_its_run(setting, tmp_path, runs):
    class Interrupted(Exception):
        pass

    method, *rest = setting("naive")
    loss, calls = method.loss, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 8:
            raise Interrupted
        return loss(*arguments)

    method.loss = interrupted
    trainer = make_trainer(tracker="tensorboard", checkpoint_seconds=0)
    with pytest.raises(Interrupted):
        fit((method, *rest), 0, tmp_path, trainer)
    assert runs[0].is_over, "it is closed whatever happens"
    fit(setting("naive"), 0, tmp_path, trainer)
    first, second = ([k for k, v in run.logged if "loss" in v] for run in runs)
    assert first + second == list(range(STEPS))
    assert runs[1].given == {"purge_step": 7} and runs[1].folder == runs[0].folder


def test_nothing_is_logged_by_the_others_nor_without_a_folder(tmp_path, runs):
    class Second(Accelerator):
        is_main_process = False

    first = make_trainer(tracker="tensorboard").accelerator
    for accelerator, files in ((Second(cpu=True), TrainingFiles(tmp_path / "a")), (first, None)):
        with Tracking("tensorboard", accelerator, files).running() as run:
            run.log({"loss": 1.0}, 0)
    assert runs == [] and not (tmp_path / "a").exists()


def test_numbers_have_names_that_every_tracker_takes(tmp_path, runs):
    accelerator = make_trainer().accelerator
    with Tracking("tensorboard", accelerator, TrainingFiles(tmp_path)).running() as run:
        run.log({"em: one step": {"psnr": 2}, "fits": [1.0, 3.0], "kind": "low rank"}, 7)
        run.log({"kind": "low rank", "none": None, "empty": []}, 8)
    assert runs[0].logged == [(7, {"em one step/psnr": 2.0, "fits": 3.0})]


@pytest.mark.parametrize("name", TRACKERS[1:])
def test_one_that_is_not_installed_is_one_line_before_any_compute(monkeypatch, tmp_path, name):
    monkeypatch.setattr(tracking, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=rf"tracker={name} is not installed; run: pip install"):
        build(compose([f"training.tracker={name}"])["training"])
    with pytest.raises(UserError, match="tracker=comet; allowed"):
        compose(["training.tracker=comet"])


def test_it_is_no_part_of_a_cell():
    for method in ("naive", "em", "ambient"):
        plain = compose([f"method={method}"])
        for name in TRACKERS[1:]:
            logged = compose([f"method={method}", f"training.tracker={name}"])
            assert Identity(logged).training == Identity(plain).training
            assert Identity(logged).evaluation == Identity(plain).evaluation
            assert training_identity(logged) == training_identity(plain)
            del logged["training"]["tracker"]  # a configuration of before there was the key
            assert Identity(logged).evaluation == Identity(plain).evaluation


def test_from_python_it_is_written_into_the_folder(tmp_path, runs):
    operator = cp.operator("inpainting", (1, 8, 8))
    measured = cp.measure(torch.rand(16, 1, 8, 8), operator)
    values = {"budget": 64, "batch": 16, "device": "cpu", "progress": False}
    with pytest.raises(UserError, match="give folder="):
        cp.train("naive", measured, operator, **values, tracker="tensorboard")
    cp.train("naive", measured, operator, **values, folder=tmp_path, tracker="tensorboard")
    assert runs[0].logged and Path(runs[0].folder).parent == tmp_path
    cp.train("naive", measured, operator, **values, folder=tmp_path)  # the same training
    assert len(runs) == 1


@is_there
def test_a_cell_of_sealed_processes_is_one_run_that_ends_with_its_metrics(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = str(tmp_path / "runs")
    made = CliRunner().invoke(
        build_app(), ["train", *TINY, "training.tracker=tensorboard", "--out", out]
    )
    assert made.exit_code == 0, made.output
    (path,) = tmp_path.glob("runs/cells/*/record-*.json")
    record = json.loads(path.read_text())
    logged = EventAccumulator(str(CellFiles(path.parent).training.tracked / "cleanprior")).Reload()
    losses = {e.step: e.value for e in logged.Scalars("loss")}
    assert losses == {
        h["step"]: pytest.approx(h["loss"], rel=1e-6) for h in record["training"]["history"]
    }
    assert list(losses) == [0, 5, 10, 15, 19]
    row = record["rows"][0]
    (last,) = logged.Scalars(f"{row['way'].replace(':', '')}/psnr")
    assert (last.step, last.value) == (20, pytest.approx(row["metrics"]["psnr"], rel=1e-6))


@pytest.mark.parametrize("moment", ["__init__", "log", "finish"])
def test_a_tracker_that_fails_ends_no_training(
    setting, trained, tmp_path, runs, monkeypatch, caplog, moment
):
    *_, expected = trained("naive")

    def refuse(*_, **__):
        raise ConnectionError(f"no server\nat {moment}")  # a notice is told once

    monkeypatch.setattr(accelerated.LOGGER_TYPE_TO_CLASS["tensorboard"], moment, refuse)
    trainer = make_trainer(tracker="tensorboard", log_every=5)
    networks, report = fit(setting("naive"), 0, tmp_path, trainer)
    assert report.status == "done"
    assert_same(weights(networks), expected)
    (line,) = [r.getMessage() for r in caplog.records if "the training goes on" in r.getMessage()]
    assert f"ConnectionError: no server at {moment}" in line
