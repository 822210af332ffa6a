"""Peak memory, each of a process of its own: over the batch, and over the number of measurements.

``python -m cleanprior.benchmarks.speed.memory WHAT SIZE DEVICE FILE`` is one such process.
"""

import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from cleanprior.config import build, compose
from cleanprior.costs import PeakMemory
from cleanprior.data import Measurements
from cleanprior.data.measurement_files import draw_measurements, read_measurements
from cleanprior.operators import Likelihood
from cleanprior.operators.building import build_operator
from cleanprior.progress import Progress
from cleanprior.seeding import generator_for
from cleanprior.training.trainer import Trainer

from .network import denoiser
from .timing import Bench, Section

#: Batches, numbers of measurements, and the images of all of them.
BATCHES, NUMBERS, SHAPE = (16, 64), (1_000, 16_000), (3, 32, 32)
#: What is run, and over which sizes.
RUNS = {
    "training, images in a batch": BATCHES,
    "training, measurements in a file": NUMBERS,
    "restoring, images at a time": BATCHES,
}
#: Optimiser steps of a training, batch where the number of measurements changes.
STEPS, BATCH = 3, 32


def memory(bench: Bench) -> Section:
    """Compare the peaks of trainings and restorations, above that of the imported libraries."""
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        total = sum(len(sizes) for sizes in RUNS.values())
        with bench.progress.task("peak memory", total) as task:
            for what, sizes in RUNS.items():
                peaks = []
                for size in sizes:
                    file = Path(folder, f"{size}.safetensors")
                    peaks.append(_child(what, size, bench.device.type, file))
                    lines.append(
                        {
                            "what": what,
                            "size": size,
                            "file MB": file.stat().st_size / 2**20 if file.exists() else 0.0,
                            "peak MB": peaks[-1],
                            "times the least": peaks[-1] / peaks[0],
                        }
                    )
                    file.unlink(missing_ok=True)
                    task.advance()
    note = (
        f"images of {'x'.join(map(str, SHAPE))}, the small backbone; the process's peak above that "
        "after importing the libraries (of a GPU: the peak of torch's own allocator)"
    )
    return Section("memory", "Peak memory", pd.DataFrame(lines), [note], is_timed=False)


def _child(what: str, size: int, device: str, file: Path) -> float:
    """Return the peak of a process of its own in MB; NaN where the system does not tell it."""
    if what == "training, measurements in a file":
        x = torch.rand((size, *SHAPE), generator=generator_for(0, "images")) * 2 - 1
        draw_measurements(file, x, _operator(), 0, "train")
    arguments = ["-m", __name__, what, str(size), device, str(file)]
    run = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    peak: float | None = json.loads(run.stdout.splitlines()[-1])
    return math.nan if peak is None else peak


def _operator() -> Any:
    return build_operator(compose(["operator=inpainting"])["operator"], SHAPE, 0)


def _train(size: int, device: str, file: Path) -> None:
    """Train the naive prior on drawn images, or on the measurements of the file."""
    batch = BATCH if file.exists() else size
    keys = [f"training.budget={STEPS * batch}", f"training.batch={batch}"]
    config = compose(["method=naive", *keys, f"training.device={device}"])
    operator = _operator()
    if file.exists():
        measured = read_measurements(file)
    else:
        x = torch.rand((size, *SHAPE), generator=generator_for(0, "images")) * 2 - 1
        measured = Measurements.draw(x, operator, 0, "train")
    trainer: Trainer = build(config["training"])
    trainer.fit(build(config["method"]), trainer.problem(operator, config), measured, 0)


def _restore(size: int, device: str) -> None:
    """Draw from p(x|y) by the shipped sampler, all images at once."""
    operator = _operator()
    x = torch.rand((size, *SHAPE), generator=generator_for(0, "images")) * 2 - 1
    measured = Measurements.draw(x, operator, 0, "test")
    network = denoiser("small", SHAPE, Bench(torch.device(device), 1, Progress()))
    network.requires_grad_(False)
    sampler = build(compose([])["posterior"])
    likelihood = Likelihood.of(operator, measured).to(device)
    sampler(network, likelihood, [generator_for(0, "draw", image=i) for i in range(size)])


def main(what: str, size: str, device: str, file: str) -> None:
    """Run one thing and print its peak above the libraries' own, in megabytes."""
    torch.set_num_threads(1)
    kind, meter = "gpu" if device == "cuda" else "cpu", PeakMemory()
    before = meter.read()[kind]
    if what.startswith("restoring"):
        _restore(int(size), device)
    else:
        _train(int(size), device, Path(file))
    peak = meter.read()[kind]
    print(json.dumps(None if peak is None or before is None else peak - before))


if __name__ == "__main__":
    main(*sys.argv[1:])
