"""Methods of a stranger for tests of jobs, and benchmarks of seconds with them."""

import json
import os
import subprocess
import sys
from pathlib import Path

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


class Odd(Plain):
    """Refuse where it is not the first of those that train together."""

    def act(self, session):
        if os.environ.get("RANK", "0") != "0":
            raise ValueError("this one is odd")


class Spoilt(Plain):
    """Lose its way where it is not the first of those that train together."""

    def loss(self, batch, generator, turn):
        found = super().loss(batch, generator, turn)
        far = float("inf") if os.environ.get("RANK", "0") != "0" else 1.0
        return Loss(found.total * far)


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
        with open(os.environ["GUEST_LOG"], "a") as file:
            file.write(f"found {len(found)} {len(paths)}\\n")
'''
CARD = "_target_: guests.{}\nneeds: []\nclean_images: 0\nabout: a guest\n"
NAMES = ("Plain", "Slow", "Crash", "Stuck", "Odd", "Spoilt", "Spy")


def write_site(folder: Path) -> Path:
    """Write the guests' package into a folder."""
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


def bench(methods: str, *more: str, jobs: int | None = 2) -> list[str]:
    where = [] if jobs is None else ["--jobs", str(jobs)]
    return ["bench", "--methods", methods, "--no-references", *where, *TINY, *more]


def records(cwd: Path) -> dict[str, dict]:
    found = {}
    for files in cells_below(cwd / "runs"):
        for path in files.records().values():
            record = json.loads(path.read_text())
            found[f"{record['method']} {record['seed']}"] = record
    return found


def assert_equal(here: dict[str, dict], there: dict[str, dict]) -> None:
    """Assert that the records of two benchmarks say the same, bit for bit."""
    assert here.keys() == there.keys()
    for key, record in here.items():
        other = there[key]
        for row, same in zip(record["rows"], other["rows"], strict=True):
            assert row["metrics"] == same["metrics"]
            assert row["per_image"] == same["per_image"]
        assert record["measurements_sha256"] == other["measurements_sha256"]
        assert record["training"]["history"] == other["training"]["history"]
