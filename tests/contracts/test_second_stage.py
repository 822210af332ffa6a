"""A method that begins with another one: how it is named, what it takes over, what it samples."""

from functools import partial

import pytest
import torch

from cleanprior.cells import CellFolder, Identity, snapshot_choice
from cleanprior.cells.code import method_code
from cleanprior.cells.first_stage import finished_first_stage
from cleanprior.cells.run import Cell, evaluate, prepare, run_cell, train
from cleanprior.cells.snapshot_choice import save_chosen, score_snapshots
from cleanprior.config import build, capabilities, compose, recompose, registry
from cleanprior.errors import UserError
from cleanprior.evaluation.metrics.features import choose
from cleanprior.progress import Progress
from cleanprior.training.checkpoint import read_tensors
from cleanprior.training.snapshots import snapshot_files

TINY = [
    "training.budget=128",
    "training.batch=16",
    "training.device=cpu",
    "training.precision=fp32",
    "training.snapshots=2",
    "backbone.hid_channels=[8,16]",
    "backbone.mod_features=16",
    "sampler.steps=3",
    "posterior.steps=2",
    "evaluation.test_images=4",
    "evaluation.draws=1",
    "evaluation.samples=50",
    "evaluation.sampling_seeds=[0]",
    "evaluation.features=pixels",
]
BOTH = "ambient+distill"


# -- names -------------------------------------------------------------------------------------


def test_a_joined_name_is_the_second_stage_with_the_first_as_its_key():
    joined = compose([f"method={BOTH}", "method.teacher.delta=0.2"])
    said = compose(["method=distill", "method.teacher=ambient", "method.teacher.delta=0.2"])
    assert joined == said == recompose(joined, "a record")
    assert (joined["method"]["name"], joined["method"]["teacher"]["name"]) == ("distill", "ambient")
    built = build(joined["method"])
    assert built.teacher.delta == 0.2 and built.teacher.unless == {"NOISE_FREE": "noise=ignore"}


def test_keys_of_the_first_stage_that_follow_another_one_follow_it_there():
    joined = compose(["method=em_mmps+distill", "method.teacher.sigma_floor=0.03"])
    assert joined["method"]["teacher"]["posterior"]["sigma_floor"] == 0.03
    assert joined["method"]["teacher"] == {
        **compose(["method=em_mmps", "method.sigma_floor=0.03"])["method"]
    }


def test_what_a_method_begins_with_is_the_cell_of_that_method():
    joined = compose([f"method={BOTH}", "method.teacher.delta=0.2"])
    row = compose(["method=ambient", "method.delta=0.2"])
    begun = {**joined, "method": joined["method"]["teacher"]}
    assert Identity(begun).training == Identity(row).training
    other = compose([f"method={BOTH}", "method.teacher.delta=0.3"])
    assert Identity(other).training != Identity(joined).training
    assert method_code(compose(["method=em+distill"])) != method_code(joined)


def test_the_entitlement_is_that_of_the_first_stage():
    assert compose(["method=em+distill"])["method"]["clean_images"] == 50
    assert compose(["method=distill"])["method"]["clean_images"] == 0
    assert registry.read("method", "distill")["clean_images"] == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=ambient+naive"], "'naive' is no second stage of another method; those .*distill"),
        (["method=ambiant+distill"], r"unknown method 'ambiant'.*Did you mean 'ambient'\?"),
        (["method=ambient+distil"], r"unknown method 'distil'.*Did you mean 'distill'\?"),
        (["method=distill", "method.teacher=distill"], "it begins with another one itself"),
        (["method=distill+distill"], "it begins with another one itself"),
        (["method=distill", "method.teacher.dleta=1"], "unknown key 'method.teacher.dleta'"),
        (["method=distill", "method.teacher.name=em"], "unknown key 'method.teacher.name'"),
        (
            [f"method={BOTH}", "method.teacher.delta=2"],
            r"method.teacher.delta=2; allowed: \(0, 1\)",
        ),
    ],
)
def test_a_mistake_is_one_line(overrides, message):
    with pytest.raises(UserError, match=message):
        compose(overrides)


def test_a_first_stage_without_a_denoiser_is_refused():
    with pytest.raises(UserError, match="distill: teacher=AmbientGAN learns no denoiser"):
        build(compose(["method=ambient_gan+distill"])["method"])


def test_what_refuses_the_first_stage_is_the_reason():
    found = capabilities.refused(compose([f"method={BOTH}", "operator=blur"]))
    assert found.code == capabilities.TEACHER
    assert found.reason.startswith("distill begins with another method, which is refused: ambient")
    assert capabilities.refused(compose([f"method={BOTH}"])) is None


# -- what is taken over ------------------------------------------------------------------------


def cell_of(name, out, *overrides):
    return CellFolder(out, compose([f"method={name}", *TINY, *overrides]))


def trained(cell):
    assert prepare(cell)[0] == "ready"
    begun = cell.files.training.first_stage.exists()
    return begun, train(cell.files.training, Progress())


@pytest.fixture(scope="module")
def taken_over(tmp_path_factory):
    """The first stage's row, the second stage that begins with it, and one that has none."""
    out, alone = tmp_path_factory.mktemp("both"), tmp_path_factory.mktemp("alone")
    torch.set_num_threads(1)
    row = cell_of("ambient", out)
    assert finished_first_stage(cell_of(BOTH, out), build(row.config["method"]), "") is None
    _, first = trained(row)
    return row, first, cell_of(BOTH, out), cell_of(BOTH, alone)


def test_a_finished_row_is_not_trained_again_and_changes_no_weight(taken_over):
    row, first, second, alone = taken_over
    begun, outcome = trained(second)
    assert begun
    begun, anew = trained(alone)
    assert not begun
    tensors = [read_tensors(c.files.training.checkpoint)[0] for c in (second, alone)]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(v, tensors[1][k]) for k, v in tensors[0].items())
    mine = read_tensors(row.files.training.checkpoint)[0]
    averages = {k: v for k, v in mine.items() if k.startswith("average.denoiser.module.")}
    assert averages and all(torch.equal(v, tensors[0][k]) for k, v in averages.items())
    # What the row cost is part of the cost, once.
    for kind in ("passes", "train_flops"):
        assert outcome["costs"][kind] == anew["costs"][kind]
    assert outcome["training"]["images"] == 128
    assert outcome["training"]["seconds"]["training"] > first["training"]["seconds"]["training"]
    assert not second.files.training.first_stage.exists()  # what a job was given goes with its end


def test_only_a_row_of_the_same_training_is_taken(taken_over, tmp_path):
    row, first, second, _ = taken_over
    method = build(second.config["method"])
    same = first["measurements_sha256"]
    assert finished_first_stage(second, method, same) == row.files.training.checkpoint
    assert finished_first_stage(second, method, "other") is None
    for other in ("seed=1", "method.teacher.delta=0.2", "training.lr=0.001"):
        assert finished_first_stage(cell_of(BOTH, second.out, other), method, same) is None
    shared = build(compose([f"method={BOTH}", "method.teacher_share=0.5"])["method"])
    assert finished_first_stage(second, shared, same) is None  # it has half of the budget


def test_a_damaged_start_is_told_and_the_first_stage_is_trained(tmp_path, caplog):
    cell = cell_of(BOTH, tmp_path)
    assert prepare(cell)[0] == "ready"
    cell.files.training.first_stage.write_bytes(b"no checkpoint")
    outcome = train(cell.files.training, Progress())
    assert outcome["training"]["steps"] == {"denoiser": 8, "fake": 4, "generator": 4}
    assert "the training begins again" in caplog.text


def test_its_row_has_samples_and_its_snapshots_are_those_of_the_generator(taken_over, monkeypatch):
    pixels = partial(choose, "pixels")  # no classifier is trained for a test
    monkeypatch.setattr(snapshot_choice, "choose", lambda _, *given, **said: pixels(*given, **said))
    _, _, second, _ = taken_over
    if prepare(second)[0] == "ready":
        train(second.files.training, Progress())
    assert evaluate(second, Progress())
    record = run_cell(second, Progress())
    (row,) = record["rows"]
    assert "by 0.5 of it in generator steps" in record["warned"]["beside"]
    assert row["missing"]["restoration"] == "no denoiser: a generator only samples"
    assert row["costs"]["sample_forwards"] == 1 and row["metrics"]["fd"] > 0
    files = snapshot_files(second.files.training.snapshots)
    assert [read_tensors(f)[1]["step"] for f in files] == [2, 4]
    cell = Cell(second)
    scores = score_snapshots(cell, 60, Progress())
    assert [s.step for s in scores.scores] == [2, 4] and all(s.proximal > 0 for s in scores.scores)
    with pytest.raises(UserError, match="there is no prior to write"):
        save_chosen(cell, scores, second.out / "prior")
