"""Cells in processes of their own: equal rows, no clean image, nothing lost whoever dies."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from plugins import write_plugin

from cleanprior.cells.folder import cells_below

PROGRAM = str(Path(sys.executable).with_name("cleanprior"))
TINY = [
    "training.budget=640",
    "evaluation.test_images=16",
    "evaluation.samples=16",
    "evaluation.sampling_seeds=[0]",
    "evaluation.draws=1",
    "evaluation.features=pixels",
    "posterior.steps=2",
    "sampler.steps=2",
    "backbone.hid_channels=[8,16]",
    "backbone.mod_features=16",
]
#: Methods of a stranger: what they do while they train is what the tests look at.
GUESTS = '''
import gc, hashlib, json, os, signal, sys, time
from dataclasses import dataclass

import numpy as np
import torch

from cleanprior.diffusion.denoiser import denoising_loss
from cleanprior.training import Loss, Method


@dataclass(kw_only=True)
class Plain(Method):
    """Fit measurements; begin_round is where the others differ."""

    def build(self):
        self.denoiser = self.problem.denoiser()

    def networks(self):
        return {"denoiser": self.denoiser}

    def begin_round(self, number, plan, session):
        with open(os.environ["GUEST_LOG"], "a") as file:
            file.write(f"{type(self).__name__} {session.seed}\\n")
        self.act(session)
        return session.measurements

    def act(self, session):
        pass

    def loss(self, batch, generator, turn):
        u = self.problem.operator.lift(batch.y, batch.params)
        return Loss(denoising_loss(self.denoiser, u, generator))

    def prior(self, averaged):
        return self.make_prior(averaged["denoiser"])


class Slow(Plain):
    """Take a while for a step."""

    def loss(self, batch, generator, turn):
        time.sleep(0.1)
        with open(os.environ["GUEST_LOG"], "a") as file:
            file.write("step\\n")
        return super().loss(batch, generator, turn)


class Crash(Plain):
    """Die as a broken extension module does."""

    def act(self, session):
        os.kill(os.getpid(), signal.SIGSEGV)


class Stuck(Plain):
    """Never come back."""

    def act(self, session):
        time.sleep(600)


class Spy(Plain):
    """Look for clean images wherever a process can look."""

    def act(self, session):
        known = set(json.load(open(os.environ["GUEST_KNOWN"])))
        found = set()

        def look(array):
            rows = np.ascontiguousarray(array)
            if rows.size and rows.size % 64 == 0 and rows.dtype.kind == "f":
                for row in rows.reshape(-1, 64).astype("float32"):
                    digest = hashlib.sha256(row.tobytes()).hexdigest()
                    if digest in known:
                        found.add(digest)

        paths = set()

        def each(value, depth=0):
            if isinstance(value, torch.Tensor):
                base = value.detach().cpu()
                look(torch.tensor([], dtype=base.dtype).set_(base.untyped_storage()).numpy())
            elif isinstance(value, np.ndarray):
                look(value)
            elif isinstance(value, str) and os.environ["GUEST_PLACE"] in value:
                paths.add(value)
            elif depth < 3 and isinstance(value, dict):
                for inner in list(value.values()):
                    each(inner, depth + 1)
            elif depth < 3 and isinstance(value, (list, tuple)):
                for inner in value:
                    each(inner, depth + 1)

        for value in gc.get_objects():
            each(value)
        frame = sys._getframe()
        while frame is not None:
            for value in list(frame.f_locals.values()):
                each(value)
            frame = frame.f_back
        for value in [v for m in list(sys.modules.values()) for v in list(vars(m).values())]:
            each(value)
        folder = session.store.folder.parent
        for file in folder.rglob("*"):
            if file.suffix == ".safetensors":
                from safetensors.numpy import load_file

                for value in load_file(file).values():
                    look(value)
            elif file.is_file():
                each(file.read_text(errors="replace"))
        session.log["found"] = len(found)
        session.log["paths"] = len(paths)
'''
CARD = "_target_: guests.{}\nneeds: []\nclean_images: 0\nabout: a guest\n"
NAMES = ("Plain", "Slow", "Crash", "Stuck", "Spy")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the guests' package."""
    folder = tmp_path_factory.mktemp("site")
    files = {"__init__.py": GUESTS}
    files |= {f"configs/method/{n.lower()}.yaml": CARD.format(n) for n in NAMES}
    write_plugin(folder, "guests", files)
    return folder


def start(cwd: Path, site: Path, *arguments: str, **more: str) -> "subprocess.Popen[str]":
    env = {
        **os.environ,
        "PYTHONPATH": str(site),
        "GUEST_LOG": str(cwd / "guests.txt"),
        "GUEST_PLACE": "no such place",
        "OMP_NUM_THREADS": "1",
        **more,
    }
    return subprocess.Popen(
        [PROGRAM, *arguments],
        cwd=cwd,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run(cwd: Path, site: Path, *arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
    process = start(cwd, site, *arguments, **more)
    out, err = process.communicate(timeout=400)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def bench(methods: str, *more: str, jobs: int = 2) -> list[str]:
    return ["bench", "--methods", methods, "--no-references", "--jobs", str(jobs), *TINY, *more]


def records(cwd: Path) -> dict[str, dict]:
    found = {}
    for files in cells_below(cwd / "runs"):
        for path in files.records().values():
            record = json.loads(path.read_text())
            found[f"{record['method']} {record['seed']}"] = record
    return found


def test_rows_are_equal_in_one_process_and_in_many(tmp_path: Path, site: Path) -> None:
    results = []
    for jobs in (0, 2):
        cwd = tmp_path / str(jobs)
        cwd.mkdir()
        result = run(cwd, site, *bench("plain,naive", "--seeds", "2", jobs=jobs))
        assert result.returncode == 0, result.stderr
        results.append(records(cwd))
    here, there = results
    assert here.keys() == there.keys() and len(here) == 4
    for key, record in here.items():
        other = there[key]
        for row, same in zip(record["rows"], other["rows"], strict=True):
            assert row["metrics"] == same["metrics"]
            assert row["per_image"] == same["per_image"]
        assert record["measurements_sha256"] == other["measurements_sha256"]
        assert record["training"]["history"] == other["training"]["history"]
        assert other["training"]["memory_mb"]["cpu"] > 0
    logs = [files.log for files in cells_below(tmp_path / "2" / "runs")]
    assert all(log.is_file() for log in logs)
    assert not list((tmp_path / "2" / "runs").rglob("running.json"))


def test_no_clean_image_is_in_the_process_that_trains(tmp_path: Path, site: Path) -> None:
    import hashlib

    import numpy as np

    from cleanprior.data import digits

    data = digits()
    images = np.concatenate([data.train.numpy(), data.test.numpy()]).reshape(-1, 64)
    known = [hashlib.sha256(image.tobytes()).hexdigest() for image in images]
    (tmp_path / "known.json").write_text(json.dumps(known))
    told = {}
    for jobs in (0, 1):
        cwd = tmp_path / str(jobs)
        cwd.mkdir()
        more = {"GUEST_KNOWN": str(tmp_path / "known.json")}
        # A cell of the oracle first: its process held every image.
        result = run(cwd, site, *bench("oracle,spy", jobs=jobs), **more)
        assert result.returncode == 0, result.stderr
        told[jobs] = records(cwd)["spy 0"]["training"]["log"]["found"]
    assert told[0] == len(set(known)), "in one process, everything"
    assert told[1] == 0


def test_no_path_to_the_images_is_in_the_process_that_trains(tmp_path: Path, site: Path) -> None:
    import numpy as np
    from PIL import Image

    place = "here-lie-the-clean-images"
    (tmp_path / "known.json").write_text("[]")
    (tmp_path / place).mkdir()
    for number, image in enumerate(np.random.default_rng(0).integers(0, 256, (60, 8, 8))):
        Image.fromarray(image.astype("uint8")).save(tmp_path / place / f"{number}.png")
    told = {}
    for jobs in (0, 1):
        cwd = tmp_path / str(jobs)
        cwd.mkdir()
        more = {"GUEST_KNOWN": str(tmp_path / "known.json"), "GUEST_PLACE": place}
        data = ("--data", "folder", f"data.path={tmp_path / place}", "data.resolution=8")
        result = run(cwd, site, *bench("spy", *data, jobs=jobs), **more)
        assert result.returncode == 0, result.stderr
        told[jobs] = records(cwd)["spy 0"]["training"]["log"]["paths"]
    assert told[0] > 0 and told[1] == 0


def test_a_process_that_dies_is_its_row_and_the_others_go_on(tmp_path: Path, site: Path) -> None:
    result = run(tmp_path, site, *bench("crash,stuck,plain", "--timeout", "8"))
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    found = {k.split()[0]: r["status"] for k, r in records(tmp_path).items()}
    assert found == {
        "crash": "failed: its process was ended by SIGSEGV",
        "stuck": "failed: took longer than it was given (--timeout)",
        "plain": "done",
    }
    assert "ended by SIGSEGV" in result.stdout, "the table says so too"
    # What has never been tried comes before what has failed.
    again = run(tmp_path, site, *bench("crash,naive", "--retry", "1", jobs=1))
    lines = [line for line in again.stderr.splitlines() if line.startswith("[")]
    assert [line.split()[1] for line in lines] == ["naive", "crash", "crash"]


def test_two_benchmarks_on_one_folder_share_the_cells(tmp_path: Path, site: Path) -> None:
    arguments = bench("plain,slow", "--seeds", "3", jobs=2)
    both = [start(tmp_path, site, *arguments) for _ in range(2)]
    ends = [process.communicate(timeout=400) for process in both]
    assert [p.returncode for p in both] == [0, 0], ends
    told = (tmp_path / "guests.txt").read_text().split("\n")[:-1]
    trained = [line for line in told if line != "step"]
    assert sorted(trained) == sorted(f"{m} {s}" for m in ("Plain", "Slow") for s in range(3))
    assert len(records(tmp_path)) == 6


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_ended_from_outside_it_goes_on_where_it_was(
    tmp_path: Path, site: Path, number: signal.Signals
) -> None:
    arguments = bench("slow", jobs=1)
    process = start(tmp_path, site, *arguments)
    until = time.monotonic() + 120
    (tmp_path / "guests.txt").touch()
    assert process.poll() is None
    while not (tmp_path / "guests.txt").read_text() and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.6)  # some steps
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number
        assert "go on from the last checkpoint" in err and "Traceback" not in err
    again = run(tmp_path, site, *arguments)
    assert again.returncode == 0, again.stderr
    (record,) = records(tmp_path).values()
    steps = [h["step"] for h in record["training"]["history"]]
    assert steps == sorted(set(steps)), "no step was taken twice"
    told = (tmp_path / "guests.txt").read_text().split("\n")[:-1]
    assert told.count("Slow 0") == 2, "it was caught while it trained"
    assert told.count("step") == record["training"]["steps"]["denoiser"], "none lost or done twice"
