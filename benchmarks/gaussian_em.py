r"""EM against a closed form: 4,000 Gaussian images under noise, the method as it ships.

``python -m cleanprior.benchmarks.gaussian_em [METHOD] [key=value ...]`` trains a method of EM type
on noisy images of a known Gaussian, 8x8, rank 2 plus a diagonal, and prints the variance of its
samples over the truth, in the two directions that hold the signal and in all others.

A prior that only smooths has too much in the second row, one whose draws are narrow too little in
both. Two minutes on one core.
"""

import sys

import torch
from torch import Tensor

from cleanprior.config import build, compose
from cleanprior.data import Measurements
from cleanprior.operators import Operator
from cleanprior.progress import Progress
from cleanprior.seeding import generator_for
from cleanprior.training import Method, Problem
from cleanprior.training.trainer import Trainer

SHAPE, D, IMAGES, SAMPLES = (1, 8, 8), 64, 4000, 4096
NOISE = 0.3
#: Variances of the two signal directions and of the others: images stay within [-1, 1].
SIGNAL, REST = 1.6, 0.01


def images(seed: int) -> tuple[Tensor, Tensor]:
    """Return Gaussian images, (n, 1, 8, 8), and the directions of their covariance, (64, 64).

    The first two directions are those of the signal.
    """
    square = torch.randn((D, D), generator=generator_for(seed, "directions"), dtype=torch.float64)
    directions = torch.linalg.qr(square).Q
    variances = torch.full((D,), REST, dtype=torch.float64)
    variances[:2] = SIGNAL
    z = torch.randn((IMAGES, D), generator=generator_for(seed, "images"), dtype=torch.float64)
    return ((z * variances.sqrt()) @ directions.T).float().reshape(-1, *SHAPE), directions


def variances(x: Tensor, directions: Tensor) -> tuple[float, float]:
    """Return the mean variance of images in the signal's directions and in the others."""
    along = (x.flatten(1).double() @ directions).var(0)
    return along[:2].mean().item(), along[2:].mean().item()


def main(arguments: list[str]) -> None:
    """Train, sample, print."""
    named = [a for a in arguments if "=" not in a]
    keys = [a for a in arguments if "=" in a]
    name = named[0] if named else "em_mmps"
    config = compose([f"method={name}", "operator=denoising", f"operator.sigma={NOISE}", *keys])
    x, directions = images(config["data_seed"])
    operator: Operator = build(config["operator"], image_shape=SHAPE)
    trainer: Trainer = build(config["training"])
    method: Method = build(config["method"])
    backbone = {k: v for k, v in config["backbone"].items() if k not in ("name", "about")}
    problem = Problem(
        operator, "denoising", backbone, trainer.sigma_data, NOISE, trainer.autocast, config["seed"]
    )
    measured = Measurements.draw(x, operator, config["data_seed"], "train")
    progress = Progress()
    with progress.live():
        clean = x if method.clean_images == "all" else None  # the oracle: what the network can do
        averaged, _ = trainer.fit(
            method, problem, measured, config["seed"], clean=clean, progress=progress
        )
    prior = method.prior(averaged)
    assert prior is not None
    found = variances(prior.sample(SAMPLES, build(config["sampler"]), 0), directions)
    held = variances(x, directions)
    print(f"{name}: variance of {SAMPLES} samples over that of the {IMAGES} images")
    for label, ours, theirs in zip(("signal", "others"), found, held, strict=True):
        print(f"  {label:7s} {ours:.4f} / {theirs:.4f} = {ours / theirs:.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
