"""A training step of the Trainer beside a loop that anybody would write."""

from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cleanprior.config import build, compose
from cleanprior.data import Measurements
from cleanprior.diffusion.denoiser import denoising_loss
from cleanprior.operators.building import build_operator
from cleanprior.training import Problem
from cleanprior.training.trainer import Trainer

from .timing import Bench, Section, ratio

#: Image shape, and optimiser steps of one repeat.
SIZES = (((1, 8, 8), 60), ((3, 32, 32), 6))
IMAGES = 256


class Setting:
    """The oracle on random images: its loss is that of any diffusion model."""

    def __init__(self, shape: tuple[int, int, int], steps: int, device: torch.device) -> None:
        changes = [f"training.budget={64 * steps}", f"training.device={device.type}"]
        self.config = compose(["method=oracle", "operator=inpainting", *changes])
        self.trainer: Trainer = build(self.config["training"])
        self.steps, self.device = steps, device
        self.operator = build_operator(self.config["operator"], shape, 0)
        self.problem: Problem = self.trainer.problem(self.operator, self.config)
        self.x = torch.rand((IMAGES, *shape), generator=torch.Generator().manual_seed(0)) * 2 - 1
        self.measured = Measurements.draw(self.x, self.operator, 0, "train")

    def ours(self) -> float:
        """Train by the Trainer; return the seconds of its steps, without what comes before."""
        _, report = self.trainer.fit(
            build(self.config["method"]), self.problem, self.measured, 0, None, self.x
        )
        kept = report.seconds if self.device.type == "cuda" else report.cpu_seconds
        return kept["training"]


def bare(network: Any, x: Tensor, config: dict[str, Any], bench: Bench, steps: int) -> float:
    """Train the same network by a plain loop: AdamW, clipping, a schedule, a weight average."""
    keys = config["training"]
    x = x.to(bench.device)
    optimiser = torch.optim.AdamW(network.parameters(), keys["lr"], weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(keys["ema"]))
    generator = torch.Generator(bench.device).manual_seed(0)
    start = bench.clock()
    for _ in range(steps):
        index = torch.randint(len(x), (keys["batch"],), generator=generator, device=bench.device)
        loss = denoising_loss(network, x[index], generator)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), keys["clip"])
        optimiser.step()
        schedule.step()
        average.update_parameters(network)
    return bench.clock() - start


def trainer(bench: Bench) -> Section:
    """Compare the Trainer's step with that of a plain loop."""
    lines = []
    for shape, steps in SIZES:
        setting = Setting(shape, steps, bench.device)
        seconds: dict[str, list[float]] = {"Trainer": [], "plain loop": []}
        with bench.progress.task(f"training step, {shape}", bench.repeats + 1) as task:
            for number in range(bench.repeats + 1):
                network = setting.problem.denoiser().to(bench.device)
                ours = setting.ours()
                theirs = bare(network, setting.x, setting.config, bench, steps)
                if number:
                    seconds["Trainer"].append(ours)
                    seconds["plain loop"].append(theirs)
                task.advance()
        found, spread = ratio(seconds["Trainer"], seconds["plain loop"])
        for name, times in seconds.items():
            is_ours = name == "Trainer"
            lines.append(
                {
                    "method": name,
                    "images": "x".join(map(str, shape)),
                    "ms a step": 1000 * float(pd.Series(times).median()) / steps,
                    "ratio": found if is_ours else 1.0,
                    "±": spread if is_ours else 0.0,
                }
            )
    note = (
        "the plain loop has the same network, loss, batch of 64, AdamW, clipping, schedule and "
        "weight average, and keeps its images on the device; it counts no passes, checks no loss "
        "and writes no checkpoint"
    )
    return Section("trainer", "A training step", pd.DataFrame(lines), [note])
