"""Snapshots: training does not notice them, the last is the result, measurements choose one."""

import pytest
import torch
from typer.testing import CliRunner

from cleanprior.cells import CellFolder, Identity
from cleanprior.cells.folder import TrainingFiles
from cleanprior.config import build, compose, registry
from cleanprior.data import Measurements
from cleanprior.errors import UserError
from cleanprior.training.checkpoint import read_tensors
from cleanprior.training.snapshots import load_snapshot, snapshot_files

TINY = [
    "training.budget=640",
    "training.batch=32",
    "training.device=cpu",
    "training.precision=fp32",
    "backbone=small",
    "backbone.hid_channels=[16,32]",
    "sampler.steps=8",
    "posterior.steps=2",
]


def train(make_operator, make_problem, x, folder, count, name="naive", interrupt=None):
    config = compose([f"method={name}", *TINY, f"training.snapshots={count}"])
    method = build(config["method"])
    if interrupt is not None:
        loss, seen = method.loss, []

        def interrupted(*arguments):
            seen.append(1)
            if len(seen) > interrupt:
                raise KeyboardInterrupt
            return loss(*arguments)

        method.loss = interrupted
    trainer = build(config["training"] | {"checkpoint_seconds": 0.0})
    operator = make_operator("inpainting", (1, 8, 8))
    measured = Measurements.draw(x, operator, 0, "train")
    networks, _ = trainer.fit(method, make_problem(operator), measured, 0, folder)
    return networks["denoiser"].state_dict()


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_training_does_not_notice_and_the_last_snapshot_is_the_result(
    make_operator, make_problem, digits_data, tmp_path
):
    x = digits_data.train[:64]
    without = train(make_operator, make_problem, x, tmp_path / "a", 0)
    kept = train(make_operator, make_problem, x, tmp_path / "b", 3)
    assert same(without, kept)
    assert snapshot_files(TrainingFiles(tmp_path / "a").snapshots) == []
    files = snapshot_files(TrainingFiles(tmp_path / "b").snapshots)
    steps = [read_tensors(f)[1]["step"] for f in files]
    assert steps == [7, 14, 20]  # 20 steps in thirds
    tensors = [
        {k.removeprefix("denoiser."): v for k, v in read_tensors(f)[0].items()} for f in files
    ]
    assert same(tensors[-1], kept)
    assert not same(tensors[0], tensors[1])


def test_a_resumed_run_keeps_the_same_snapshots(make_operator, make_problem, digits_data, tmp_path):
    x = digits_data.train[:64]
    train(make_operator, make_problem, x, tmp_path / "a", 4)
    for stop in (3, 4, 9):
        with pytest.raises(KeyboardInterrupt):
            train(make_operator, make_problem, x, tmp_path / "b", 4, interrupt=stop)
    train(make_operator, make_problem, x, tmp_path / "b", 4)
    pairs = zip(
        snapshot_files(TrainingFiles(tmp_path / "a").snapshots),
        snapshot_files(TrainingFiles(tmp_path / "b").snapshots),
        strict=True,
    )
    for first, second in pairs:
        assert same(read_tensors(first)[0], read_tensors(second)[0])
        assert read_tensors(first)[1] == read_tensors(second)[1]


def test_snapshots_are_not_part_of_a_cells_identity():
    plain, kept = compose(["method=naive"]), compose(["method=naive", "training.snapshots=5"])
    assert Identity(plain).evaluation == Identity(kept).evaluation
    assert (
        Identity(plain).evaluation
        != Identity(compose(["method=naive", "training.budget=3200"])).evaluation
    )


def test_a_count_below_zero_is_refused():
    with pytest.raises(UserError, match="snapshots=-1; allowed"):
        build(compose(["method=naive", "training.snapshots=-1"])["training"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An oracle of 100 steps on digits: its samples become better while it trains."""
    from cleanprior.cells.run import prepare, train

    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs")
    overrides = ["method=oracle", *TINY, "training.budget=3200", "training.snapshots=4"]
    config = compose(overrides)
    cell = CellFolder(out, config)
    from cleanprior.progress import Progress

    assert prepare(cell)[0] == "ready"
    train(cell.files.training, Progress())
    return overrides, config, out


def test_snapshots_are_scored_without_and_with_clean_images(trained):
    from cleanprior.cells.run import Cell
    from cleanprior.cells.snapshot_choice import score_snapshots
    from cleanprior.progress import Progress

    _, config, out = trained
    cell = Cell(CellFolder(out, config))
    scores = score_snapshots(cell, 80, Progress())
    assert [s.step for s in scores.scores] == [25, 50, 75, 100]
    assert "pixels" in scores.features
    # Each score is that of the snapshot's own samples.
    last = scores.scores[-1]
    networks = dict(cell.method.networks())
    assert load_snapshot(snapshot_files(cell.folder.files.training.snapshots)[-1], networks) == 100
    prior = cell.method.prior(networks)
    x = prior.sample(80, cell.sampler, cell.protocol.seed, cell.protocol.chunk)
    from cleanprior.evaluation.metrics.features import Pixels
    from cleanprior.evaluation.metrics.proximal import Proximal

    measured = cell.measurements("train")
    assert last.proximal == Proximal(Pixels(), cell.operator, measured, cell.protocol.seed)(x)
    # Training helps, and the measurements see it.
    first = scores.scores[0]
    assert last.distance < first.distance
    assert scores.floor < last.proximal < first.proximal
    assert scores.floor < scores.ceiling
    assert scores.chosen == min(scores.scores, key=lambda s: s.proximal)


def test_the_command_writes_a_table_and_a_picture(trained, monkeypatch):
    import typer

    overrides, config, out = trained
    app = typer.Typer()
    app.command()(registry.installed(registry.COMMANDS)["snapshots"].load())
    result = CliRunner().invoke(
        app, [*overrides, "-n", "40", "--out", str(out), "--to", str(out / "best")]
    )
    assert result.exit_code == 0, result.output
    assert result.output.count("chosen by measurements") == 1
    assert (out / "best" / "prior.yaml").exists()
    files = CellFolder(out, config).files
    assert len(files.snapshot_table.read_text().splitlines()) == 5
    assert files.snapshot_plot.read_bytes().startswith(b"\x89PNG")


def test_the_snapshot_that_the_measurements_choose_becomes_a_prior(trained, tmp_path):
    from cleanprior.cells.run import Cell
    from cleanprior.cells.snapshot_choice import Score, Scores, save_chosen
    from cleanprior.prior import Prior

    _, config, out = trained
    cell = Cell(CellFolder(out, config))
    steps = zip((25, 50, 75, 100), (3.0, 1.0, 2.0, 4.0), strict=True)
    scores = Scores([Score(step, value, None) for step, value in steps], 0.5, 9.0, "pixels")
    save_chosen(cell, scores, tmp_path / "best")
    saved = Prior.load(tmp_path / "best")
    assert saved.about["step"] == 50 and saved.about["chosen_by"] == "proximal FD on pixels"
    assert saved.about["method"] == "oracle" and saved.about["cell"] == Identity(config).evaluation
    networks = dict(cell.method.networks())
    assert load_snapshot(snapshot_files(cell.folder.files.training.snapshots)[1], networks) == 50
    expected = cell.method.prior(networks).denoiser.state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in saved.denoiser.state_dict().items())


def test_the_command_says_whether_clean_images_would_choose_alike():
    from cleanprior.benchmarks.snapshots import agreement

    from cleanprior.cells.snapshot_choice import Score, Scores

    def scores(distances):
        values = zip((1, 2, 3), (3.0, 1.0, 2.0), distances, strict=True)
        return Scores([Score(*v) for v in values], 0.5, 9.0, "pixels")

    assert agreement(scores([None] * 3)) is None
    assert agreement(scores([30.0, 10.0, 20.0])).endswith("over snapshots 1.00")
    said = agreement(scores([5.0, 9.0, 7.0]))
    assert said.startswith("chosen: FD 9.0, the least is 5.0") and said.endswith("-1.00")


def test_a_cell_without_snapshots_says_how_to_get_them(tmp_path):
    from cleanprior.cells.run import Cell
    from cleanprior.cells.snapshot_choice import score_snapshots
    from cleanprior.progress import Progress

    config = compose(["method=naive", *TINY])
    with pytest.raises(UserError, match="training.snapshots=8"):
        score_snapshots(Cell(CellFolder(tmp_path, config)), 10, Progress())
