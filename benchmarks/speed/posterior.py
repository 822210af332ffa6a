"""Posterior samplers on one denoiser: ours, azula's and deepinv's, with what each draw is worth."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from azula.denoise import Denoiser as AzulaDenoiser
from azula.denoise import DiracPosterior
from azula.guidance.mmps import MMPSDenoiser
from azula.linalg.covariance import DiagonalCovariance
from azula.noise import VESchedule
from azula.sample import DDIMSampler
from torch import Tensor

from cleanprior.config import build, compose
from cleanprior.data import Measurements, digits
from cleanprior.diffusion.posterior import PosteriorSampler
from cleanprior.operators import Likelihood
from cleanprior.operators.building import build_operator
from cleanprior.seeding import generator_for
from cleanprior.training.trainer import Trainer

from .timing import Bench, Section, ratio

#: Images that the prior is trained on, restorations, draws of each for PSNR and spread.
BUDGET, IMAGES, DRAWS = 48_000, 32, 4
#: Which posterior, with which keys: the YAML's own, and fewer or more steps.
OURS = (
    ("mmps", ()),
    ("mmps", ("steps=8",)),
    ("mmps", ("steps=24",)),
    ("pigdm", ()),
    ("ddrm", ()),
    ("diffpir", ()),
    ("dps", ()),
)
DEEPINV = (
    ("DDRM", 20, None),
    ("DiffPIR", 100, None),
    ("DPS", 100, None),
    ("PosteriorDiffusion", 24, "MomentMatchingDataFidelity"),
)
AZULA = (12, 24, 64)
Draw = Callable[[Likelihood, int], Tensor]


class Azula(AzulaDenoiser):  # type: ignore[misc]
    """Our denoiser as azula calls one, on flat images."""

    def __init__(self, denoise: Any, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.denoise, self.shape = denoise, shape
        self.schedule = VESchedule(0.02, 10.0)

    def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> DiracPosterior:
        """Return the denoised images at a time."""
        level = self.schedule.sigma(t).to(x_t).reshape(-1).expand(len(x_t))
        return DiracPosterior(mean=self.denoise(x_t.reshape(-1, *self.shape), level).flatten(1))


def azula(denoise: Any, steps: int) -> Draw:
    """Return azula's MMPS on masks, with its own solver: one iteration of GMRES, two pull-backs.

    Its conjugate gradient divides zero by zero in float32, where an image is explained already.
    """

    def draw(likelihood: Likelihood, seed: int) -> Tensor:
        torch.manual_seed(seed)
        shape = likelihood.operator.image_shape
        mask = likelihood.params["mask"].expand(len(likelihood), *shape).flatten(1)
        variance = likelihood.sigma_y.reshape(-1, 1) ** 2
        guided = MMPSDenoiser(
            Azula(denoise, shape),
            likelihood.y.flatten(1),
            lambda x: mask * x,
            DiagonalCovariance(variance.expand_as(mask)),
        )
        sampler = DDIMSampler(guided, eta=1.0, steps=steps, silent=True)
        start = 10.0 * torch.randn(mask.shape, device=mask.device)
        with torch.no_grad():
            return sampler(start).reshape(-1, *shape)

    return draw


def ours(denoise: Any, name: str, keys: tuple[str, ...]) -> Draw:
    """Return one of the configured samplers, deepinv's among them."""
    config = compose([f"posterior={name}", *(f"posterior.{key}" for key in keys)])
    sampler: PosteriorSampler = build(config["posterior"])

    def draw(likelihood: Likelihood, seed: int) -> Tensor:
        generators = [generator_for(seed, "speed", image=i) for i in range(len(likelihood))]
        return sampler(denoise, likelihood, generators).x

    return draw


def worth(draw: Draw, likelihood: Likelihood, truth: Tensor) -> tuple[float, float]:
    """Return the PSNR of one draw in dB, and the spread of several over their error."""
    drawn = torch.stack([draw(likelihood, seed) for seed in range(DRAWS)]).clamp(-1, 1)
    mean = drawn.mean(0)
    psnr = 10 * torch.log10(4 / ((drawn[0] - truth) ** 2).flatten(1).mean(1)).mean().item()
    within = drawn.var(0).mean().item()
    # The mean of m draws of an exact posterior errs by (1 + 1/m) of its variance.
    error = ((mean - truth) ** 2).mean().item() / (1 + 1 / DRAWS)
    return psnr, math.sqrt(within / error)


def posterior(bench: Bench) -> Section:
    """Compare posterior samplers on digits with half of the pixels and noise of 0.05."""
    device = bench.device
    changes = [f"training.budget={BUDGET}", f"training.device={device.type}"]
    config = compose(["method=oracle", "operator=inpainting", "operator.sigma=0.05", *changes])
    data = digits()
    operator = build_operator(config["operator"], data.image_shape, 0)
    trainer: Trainer = build(config["training"])
    measured = Measurements.draw(data.train, operator, 0, "train")
    networks, _ = trainer.fit(
        build(config["method"]),
        trainer.problem(operator, config),
        measured,
        0,
        None,
        data.train,
        bench.progress,
    )
    denoise: Any = networks["denoiser"].to(device).eval().requires_grad_(False)
    held = Measurements.draw(data.test[:IMAGES], operator.to(device), 0, "test")
    truth = data.test[:IMAGES].to(device)
    whole = Likelihood.of(operator, held).to(device)
    one = whole.take(slice(0, 1))
    runs: dict[str, Draw] = {}
    for name, keys in OURS:
        runs[" ".join([name, *keys])] = ours(denoise, name, keys)
    for sampler, steps, fidelity in DEEPINV:
        given = [f"sampler={sampler}", f"steps={steps}"]
        given += [f"data_fidelity={fidelity}"] if fidelity else []
        label = f"deepinv {sampler}" + (", moment matching" if fidelity else "")
        runs[f"{label} steps={steps}"] = ours(denoise, "deepinv", tuple(given))
    for steps in AZULA:
        runs[f"azula MMPS steps={steps}"] = azula(denoise, steps)
    times = {
        size: bench.interleaved(
            f"posterior samplers, batch {size}",
            {name: partial(draw, some, 0) for name, draw in runs.items()},
        )
        for size, some in ((IMAGES, whole), (1, one))
    }
    lines = []
    many, single = f"ms an image, batch {IMAGES}", "ms an image, batch 1"
    for name, draw in runs.items():
        psnr, spread = worth(draw, whole, truth)
        found, middle = ratio(times[IMAGES][name], times[IMAGES]["mmps"])
        lines.append(
            {
                "method": name,
                "PSNR dB": psnr,
                "spread": spread,
                many: 1e3 * float(np.median(times[IMAGES][name])) / IMAGES,
                "of mmps": found,
                "±": middle,
                single: 1e3 * float(np.median(times[1][name])),
            }
        )
    notes = [
        "digits 8x8, masks of half of the pixels, noise 0.05; the prior is an oracle of "
        f"{BUDGET:,} images; PSNR of one draw, spread of {DRAWS} draws over the error of their "
        "mean (1: exact)",
        "deepinv's PosteriorDiffusion calls its denoiser twice a step, and its samplers take one "
        "image at a time here, as their own per-image parameters ask for",
        "azula's has its default solver, one iteration of GMRES: as many pull-backs a step as mmps",
    ]
    return Section(
        "posterior",
        "Posterior samplers on one denoiser",
        pd.DataFrame(lines),
        notes,
        (many, "PSNR dB", "method"),
    )
