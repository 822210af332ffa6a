"""Where cells run: a group beside a cell's, checked before any library; what an engine loses."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from cleanprior.benchmarks import launchers
from cleanprior.benchmarks.launchers import slurm as slurm_launcher
from cleanprior.benchmarks.launchers.following import Following
from cleanprior.benchmarks.launchers.slurm import Slurm
from cleanprior.benchmarks.request import Request

import cleanprior as cp
from cleanprior.cells.folder import CellFolder
from cleanprior.cells.record import read_record, write_record
from cleanprior.config import compose
from cleanprior.errors import UserError
from cleanprior.jobs import local, node
from cleanprior.jobs.drive import Todo
from cleanprior.jobs.lease import held
from cleanprior.progress import Progress

MISTAKES = [
    (["--launcher", "slrm"], "unknown launcher 'slrm'; installed: local, ray, slurm. Did you mean"),
    (["--launcher", "slurm", "launcher.partitin=gpu"], "Did you mean 'launcher.partition'?"),
    (["--launcher", "slurm", "launcher.time=x"], "launcher.time=x; allowed: a whole number"),
    (["--launcher", "ray", "launcher.cpus=0"], "launcher.cpus=0; allowed: at least 1"),
    (
        ["--launcher", "slurm", "--jobs", "2"],
        "unknown key 'launcher.jobs'; allowed here",
    ),
    (["launcher=slurm"], "'launcher=slurm': the bench takes it as --launcher slurm"),
    (["launcher.setup=[a]"], "unknown key 'launcher.setup'"),
    (["--jobs", "-1"], "launcher.jobs=-1; allowed: auto, or a number at least 0"),
    (["--devices", "a"], "launcher.devices=[a]; allowed: "),
    (["--retry", "-1"], "launcher.retries=-1; allowed: at least 0"),
    (["--devices-per-cell", "0"], "devices-per-cell=0; allowed: a count from 1"),
    (
        ["--devices-per-cell", "2", "training.processes=3"],
        "--devices-per-cell 2 and 'training.processes=3' say the same; give one",
    ),
    (["training.processes=1.5"], "training.processes=1.5; allowed: a whole number"),
    (
        ["--devices-per-cell", "2", "--jobs", "0"],
        "jobs=0 (--jobs or CLEANPRIOR_JOBS) runs all in this process",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[" ".join(a) for a, _ in MISTAKES])
def test_a_mistake_is_one_line(arguments, message, capsys, monkeypatch):
    from cleanprior.cli import main

    monkeypatch.setattr(sys, "argv", ["cleanprior", "bench", "--methods", "naive", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert message in told and told.count("\n") == 1 and told.startswith("error: ")


def test_a_mistake_is_told_before_any_library_is_loaded():
    code = (
        "import sys\nfrom cleanprior.benchmarks.launchers import chosen\n"
        "from cleanprior.errors import UserError\n"
        "for settings in (['launcher.gpus=-1'], ['launcher.gpu=1'], []):\n"
        "    try:\n        chosen('slurm', settings)\n"
        "    except UserError as error:\n        print(error)\n"
        "loaded = {'torch', 'submitit', 'ray'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "launcher.gpus=-1; allowed: at least 0" in done.stdout


def test_a_launcher_is_no_part_of_a_cell(tmp_path):
    given = ["operator.p=0.7", "launcher.max_parallel=2", "+launcher.partition=gpu"]
    settings, overrides = launchers.split(given)
    assert settings == ["launcher.max_parallel=2", "launcher.partition=gpu"]
    assert overrides == ["operator.p=0.7"]
    plan = Request(methods=["naive"], overrides=overrides).plan()
    config = plan.problems[0].cells["naive"][0]
    assert "launcher" not in config
    with pytest.raises(UserError, match=r"unknown key 'launcher\.partition'"):
        compose(["method=naive", "launcher.partition=gpu"])


def test_the_options_of_bench_are_keys_of_local():
    settings = launchers.given("3", "0,2", 60.0, 2, is_stopping=True)
    made = launchers.chosen("local", settings)
    assert made == local.Local(3, [0, 2], 60.0, 2, True)
    assert launchers.chosen("local", launchers.given()) == local.Local()


def test_keys_reach_the_launcher():
    pytest.importorskip("submitit")
    settings = ["launcher.partition=gpu", "launcher.memory=1.5", "launcher.setup=[module load a,b]"]
    made = launchers.chosen("slurm", [*settings, "launcher.parameters.account=lab"])
    assert isinstance(made, Slurm)
    assert (made.partition, made.memory) == ("gpu", 1.5)
    assert (list(made.setup), made.parameters) == (["module load a", "b"], {"account": "lab"})


@pytest.mark.parametrize(("name", "library"), [("slurm", "submitit"), ("ray", "ray")])
def test_a_missing_library_is_one_line_with_its_extra(monkeypatch, name, library):
    found = importlib.util.find_spec

    def without(module, *more):
        return None if module == library else found(module, *more)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(UserError) as told:
        launchers.chosen(name)
    text = f"the launcher '{name}' needs {library}: pip install 'cleanprior[{name}]'"
    assert text in str(told.value) and "\n" not in str(told.value)


OWN = """
class Notebook:
    def __init__(self, path: str, is_loud: bool = False):
        self.path = path

    def run(self, todo, progress):
        with open(self.path, "a") as file:
            for cell in todo:
                file.write(cell.label + "\\n")

    def count(self, todo):
        return 1


class Nothing:
    pass
"""


def test_a_package_brings_a_launcher(plugin, tmp_path):
    card = "_target_: guest_engine.{}\n"
    plugin(
        "guest_engine",
        {
            "__init__.py": OWN,
            "configs/launcher/notebook.yaml": card.format("Notebook")
            + "path: x\nis_loud: false\nabout: a list\n",
            "configs/launcher/nothing.yaml": card.format("Nothing"),
        },
    )
    told = tmp_path / "told.txt"
    built = launchers.chosen("notebook", [f"launcher.path={told}"])
    for launcher, overrides in (("notebook", {"launcher.path": told}), (built, {})):
        made = cp.bench(
            "naive",
            references=False,
            launcher=launcher,
            overrides=overrides,
            out=tmp_path / "runs",
            progress=False,
        )
        assert list(made.table["status"]) == ["not run"]
    assert told.read_text().count("naive on inpainting, digits, seed 0") == 2
    with pytest.raises(UserError, match=r"launcher 'nothing': Nothing has no run"):
        launchers.chosen("nothing")
    with pytest.raises(UserError, match="unknown key 'launcher.pth'.*Did you mean 'launcher.path'"):
        launchers.chosen("notebook", ["launcher.pth=x"])
    with pytest.raises(UserError, match="the launcher was given, with its keys"):
        cp.bench("naive", launcher=built, overrides={"launcher.path": "y"}, out=tmp_path)


def todo(tmp_path, seed=0, **training):
    config = compose(["method=naive", f"seed={seed}", "training.device=auto"])
    config["training"] |= training
    return Todo(f"naive, seed {seed}", tmp_path, config)


@pytest.mark.parametrize(
    ("devices", "jobs", "there", "slots"),
    [
        ("auto", "auto", [0, 1], [(0,), (1,)]),
        ("2,0", "auto", [0, 1, 2], [(2,), (0,)]),
        ("1", "3", [0, 1], [(1,), (1,), (1,)]),
        ("auto", "2", [], [(), ()]),
    ],
)
def test_devices_are_given_one_a_job(monkeypatch, tmp_path, devices, jobs, there, slots):
    given = []

    def pool(options, slots, threads):
        return SimpleNamespace(run=lambda *_: given.append(slots))

    monkeypatch.delenv(local.VARIABLE, raising=False)
    monkeypatch.setattr(local, "gpus", lambda: there)
    monkeypatch.setattr(local, "room", lambda: 8)
    monkeypatch.setattr(local, "_Pool", pool)
    cells = [todo(tmp_path, seed) for seed in range(4)]
    launchers.chosen("local", launchers.given(jobs, devices)).run(cells, Progress())
    assert given == [slots]


def test_a_device_that_is_not_there_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(local, "gpus", lambda: [0])
    with pytest.raises(UserError, match=r"devices=3; there are: \[0\]"):
        launchers.chosen("local", launchers.given("1", "0,3")).run([todo(tmp_path)], Progress())


@pytest.mark.parametrize("name", ["slurm", "ray"])
def test_a_cluster_trains_a_cell_in_one_process(monkeypatch, tmp_path, name):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: True)
    with pytest.raises(UserError, match="--devices-per-cell is for --launcher local"):
        launchers.chosen(name).run([todo(tmp_path, processes=2)], Progress())


def test_what_is_trained_again_is_removed_once_and_not_under_somebodys_hands(tmp_path):
    cell = todo(tmp_path)
    again = Todo(cell.label, cell.out, cell.config, is_forced=True)
    cell.folder.path.mkdir(parents=True)
    with held(cell.folder.lock()):
        assert not node.hand_over(again).is_forced
        assert cell.folder.path.exists()
    handed = node.hand_over(again)
    assert not handed.is_forced and not cell.folder.path.exists()
    cell.folder.path.mkdir(parents=True)
    assert node.hand_over(handed) == handed
    assert cell.folder.path.exists()


class Job:
    """What submitit says of a job."""

    def __init__(self, folder: Path, number: int, outcome: str):
        self.job_id = f"7_{number}"
        self.paths = SimpleNamespace(
            stderr=folder / f"{number}.err", result_pickle=folder / f"{number}.pkl"
        )
        if outcome == "result":
            self.paths.result_pickle.touch()
        if outcome == "lost":
            text = "srun: fine\nslurmstepd: error: OUT OF MEMORY\nbye\n"
            self.paths.stderr.write_text(text)

    def exception(self):
        return None

    def result(self):
        return "done"


def test_a_job_that_slurm_lost_is_its_row_and_one_that_left_a_record_is_done(tmp_path, monkeypatch):
    cells = [todo(tmp_path, seed) for seed in range(3)]
    jobs = [Job(tmp_path, n, what) for n, what in enumerate(("result", "lost", "silent"))]
    waiting = dict(zip(jobs, cells, strict=True))
    write_record(CellFolder(tmp_path, cells[2].config), {"status": "done", "rows": []})
    answers = iter([None, {"7_1", "7_2"}, set(), set(), set(), set()])
    monkeypatch.setattr(slurm_launcher, "_known", lambda _: next(answers))
    monkeypatch.setattr(slurm_launcher, "INTERVAL", 0.06)
    monkeypatch.setattr(slurm_launcher, "LOST", 0.05)
    told = []
    shown = Progress()
    shown.say = lambda line, is_error=False: told.append(line)
    slurm_launcher._follow(waiting, Following(cells, shown, False))
    lines = [line for line in told if line.startswith("[")]
    assert len(lines) == 3
    assert lines[0] == "[1/3] naive, seed 0: done"
    assert "[2/3] naive, seed 1: failed: its job 7_1 of Slurm left no result: " in lines[1]
    assert "slurmstepd: error: OUT OF MEMORY" in lines[1]
    assert lines[2] == "[3/3] naive, seed 2: done"
    assert read_record(cells[1].folder)["status"].startswith("failed: its job 7_1")


def test_squeue_that_does_not_answer_loses_no_job(tmp_path, monkeypatch):
    program = tmp_path / "squeue"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for script, known in (
        ("echo 7_0; echo 7_1", {"7_0", "7_1"}),
        ("echo slurm_load_jobs error: Invalid job id specified >&2; exit 1", set()),
        ("echo Unable to contact slurm controller >&2; exit 1", None),
    ):
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        assert slurm_launcher._known({Job(tmp_path, 0, ""): None}) == known
